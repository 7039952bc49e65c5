//! Pauses the programs that write to volumes, by freezing the cgroups of the containers that consume them.

mod record;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

pub use self::record::{FrozenCgroup, Hierarchy, PauseRecord, thaw};

use crate::error::Result;

/// Finds and pauses the consumers of directories.
#[derive(Debug)]
pub struct Pauser {
    #[expect(dead_code, reason = "read when processes are looked at")]
    proc: PathBuf,
}

/// Consumers that are paused. Dropping it lets them continue.
#[derive(Debug)]
pub struct Pause {
    containers: Vec<String>,
}

/// A pause that has ended, during which no consumer ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paused {
    /// From the freeze to the thaw.
    pub duration: Duration,
    /// The containers that were paused: the id of each, or the path of its cgroup if it has none.
    pub containers: Vec<String>,
}

impl Pauser {
    /// Creates a pauser that reads processes from `proc`: `/proc`, or the path at which the host's is mounted.
    #[must_use]
    pub fn new(proc: PathBuf) -> Self {
        Self { proc }
    }

    /// Reports whether a container consumes one of these directories: whether a process has one of them, or a directory
    /// below, mounted in a mount namespace other than the host's and orlop's. What propagated from the target of a
    /// publish to another namespace is no consumption.
    ///
    /// # Errors
    /// `Internal` if the processes cannot be listed; `Unsupported` if some cannot be inspected; `Busy` if that takes too
    /// long.
    pub fn is_consumed(&self, _dirs: &[BorrowedFd<'_>]) -> Result<bool> {
        Ok(false)
    }

    /// Pauses every consumer of the directories. `None`: nothing consumes them. `record` is called with what will be
    /// frozen, before anything is frozen; when it returns, it must have written that to stable storage. It is called
    /// again when the freeze is tried again. The pause ends by itself after `limit`.
    ///
    /// # Errors
    /// `InUse` if a process cannot be paused, which the error names with the remedy; `Unsupported` if this host does not
    /// let orlop freeze cgroups; `Busy` if the consumers keep changing or do not freeze in time; the error of `record`.
    pub fn pause(
        &self,
        _dirs: &[BorrowedFd<'_>],
        _limit: Duration,
        _record: &mut dyn FnMut(&PauseRecord) -> Result<()>,
    ) -> Result<Option<Pause>> {
        Ok(None)
    }
}

impl Pause {
    /// Lets the consumers continue.
    ///
    /// # Errors
    /// `Busy` if they were not paused the whole time: the limit was reached, the helper died, a consumer appeared, or
    /// something else thawed them. They run after an error, too.
    pub fn resume(self) -> Result<Paused> {
        Ok(Paused { duration: Duration::ZERO, containers: self.containers })
    }
}
