//! Pauses the programs that write to volumes, by freezing the cgroups of the containers that consume them.
//!
//! A consumer is a process that has a volume mounted in a mount namespace other than the host's and orlop's. Any other
//! process counts as a writer only if it has a file of the volume open for writing or mapped. A pause is refused
//! when there is such a process, and when a cgroup of a consumer holds what the host depends on.
//!
//! A helper process does the freezing (`helper.rs`), so that no container stays frozen when orlop ends or hangs. What
//! both leave when they are killed together is in a [`PauseRecord`], by which [`thaw`] cleans up.
//!
//! Not detected: namespaces of processes that `/proc` does not show (the node's pod needs `hostPID`), a thread with a
//! mount namespace, a descriptor table or a cgroup other than its process's, a descriptor that is in no process but in
//! a socket, and what the kernel writes for a process that is frozen, such as asynchronous writes that have begun.

mod cgroups;
mod helper;
mod mounts;
mod owner;
mod plan;
mod process;
mod record;
mod scan;
mod writers;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::helper::serve as serve_helper;
pub use self::owner::HELPER_COMMAND;
pub use self::record::{FrozenCgroup, Hierarchy, PauseRecord, thaw};

use self::owner::{Helper, Watch};
use self::plan::Plan;
use self::scan::{OtherWriters, Scanner, Volumes};
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::loop_devices::loop_device_in;

/// How long a scan of the processes may take while they run.
const SCAN_WAIT: Duration = Duration::from_secs(10);

/// The program that runs the helper: this one, even if its file was replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Whether this process is shown the processes of its host. In a PID namespace of its own, process 1 is orlop: this process,
/// or another one of the same program.
#[must_use]
pub fn sees_host_processes() -> bool {
    let program = |path| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
    std::process::id() != 1 && program("/proc/1/exe").is_none_or(|first| program(OWN_PROGRAM) != Some(first))
}

/// Finds and pauses the consumers of directories.
#[derive(Debug)]
pub struct Pauser {
    scanner: Scanner,
    helper: PathBuf,
}

/// Consumers that are paused. Dropping it lets them continue.
#[derive(Debug)]
pub struct Pause {
    scanner: Scanner,
    volumes: Arc<Volumes>,
    plan: Plan,
    watch: Watch,
    started: Instant,
    deadline: Instant,
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
        Self { scanner: Scanner::new(proc), helper: OWN_PROGRAM.into() }
    }

    /// Uses another program as the helper. It is run with [`HELPER_COMMAND`] and must call [`serve_helper`].
    #[must_use]
    pub fn with_helper(mut self, program: PathBuf) -> Self {
        self.helper = program;
        self
    }

    /// Reports whether a container consumes one of these directories: whether a process has one of them, or a directory
    /// below, mounted in a mount namespace other than the host's and orlop's. What propagated from the target of a
    /// publish to another namespace is no consumption.
    ///
    /// # Errors
    /// `Internal` if the processes cannot be listed; `Unsupported` if some cannot be inspected; `Busy` if that takes too
    /// long.
    pub fn is_consumed(&self, dirs: &[BorrowedFd<'_>]) -> Result<bool> {
        self.scanner.is_consumed(&Arc::new(Volumes::of(dirs)?), SCAN_WAIT)
    }

    /// Pauses every consumer of the directories. `None`: nothing consumes them. `record` is called with what will be
    /// frozen, before anything is frozen; when it returns, it must have written that to stable storage. It is called
    /// again when the freeze is tried again, and not at all if everything is frozen already. The pause ends by itself
    /// after `limit`.
    ///
    /// # Errors
    /// `InUse` if a process cannot be paused, which the error names with the remedy; `Unsupported` if this host does not
    /// let orlop freeze cgroups; `Busy` if the consumers keep changing or do not freeze in time; the error of `record`.
    pub fn pause(
        &self,
        dirs: &[BorrowedFd<'_>],
        limit: Duration,
        record: &mut dyn FnMut(&PauseRecord) -> Result<()>,
    ) -> Result<Option<Pause>> {
        for dir in dirs {
            if let Some(device) = loop_device_in(*dir)? {
                let text = format!("{device} writes to the volume: detach it, or use consistency: none");
                return Err(Error::new(Kind::InUse, text));
            }
        }
        let volumes = Arc::new(Volumes::of(dirs)?);
        match self.try_to_pause(&volumes, limit, record)? {
            Attempt::Ended(pause) => Ok(pause),
            Attempt::Changed(_) => match self.try_to_pause(&volumes, limit, record)? {
                Attempt::Ended(pause) => Ok(pause),
                Attempt::Changed(error) => Err(error),
            },
        }
    }

    fn try_to_pause(
        &self,
        volumes: &Arc<Volumes>,
        limit: Duration,
        record: &mut dyn FnMut(&PauseRecord) -> Result<()>,
    ) -> Result<Attempt> {
        let Some(mut plan) = self.scanner.plan(volumes, SCAN_WAIT, OtherWriters::Refused)? else {
            return Ok(Attempt::Ended(None));
        };
        let cgroups = std::mem::take(&mut plan.open);
        let mut helper = Helper::start(&self.helper, &self.scanner.proc, cgroups, limit)?;
        let to_freeze = helper.to_freeze();
        if !to_freeze.is_empty() {
            record(&PauseRecord::new(&self.scanner.proc, to_freeze)?)?;
        }
        let started = Instant::now();
        let deadline = started + limit;
        helper.freeze()?;
        let scanner = self.scanner.for_pause();
        // The last scan finds other writers: the containers are not to wait for two such scans.
        if let Err(error) = check(&scanner, volumes, &plan, limit, OtherWriters::NotSought) {
            return Ok(Attempt::Changed(error));
        }
        let watch = Watch::start(helper, deadline)?;
        let volumes = Arc::clone(volumes);
        Ok(Attempt::Ended(Some(Pause { scanner, volumes, plan, watch, started, deadline })))
    }
}

enum Attempt {
    Ended(Option<Pause>),
    /// The processes were not those that the plan was made for.
    Changed(Error),
}

/// Fails unless every consumer is in the cgroups of the plan, and, unless that is not sought, nothing else can write.
fn check(
    scanner: &Scanner,
    volumes: &Arc<Volumes>,
    plan: &Plan,
    limit: Duration,
    writers: OtherWriters,
) -> Result<()> {
    match scanner.plan(volumes, limit, writers).context(|| "scan the processes while they are paused")? {
        Some(now) if !plan.covers(&now) => Err(Error::new(
            Kind::Busy,
            "a consumer of the volume started while the others were paused: retry",
        )),
        Some(_) | None => Ok(()),
    }
}

impl Pause {
    /// Lets the consumers continue.
    ///
    /// # Errors
    /// `Busy` if they were not paused the whole time: the limit was reached, the helper died, a consumer appeared, or
    /// something else thawed them; `InUse` if another process can write now. They run after an error, too.
    pub fn resume(self) -> Result<Paused> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        check(&self.scanner, &self.volumes, &self.plan, left, OtherWriters::Refused)?;
        let ended = self.watch.end()?;
        Ok(Paused { duration: ended.duration_since(self.started), containers: self.plan.containers })
    }
}
