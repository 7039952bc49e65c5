//! Leases on files (fcntl(2), `F_SETLEASE`): a file server takes them for its clients, and a tenant may take them, too.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::{Errno, Result as ErrnoResult};

use super::copy::Progress;
use crate::error::{Context as _, Error, Kind, Result};

/// How long one reading of a tree waits for the leases on its files. A file server gives one up in milliseconds.
const LONGEST: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// How long leases were waited for.
#[derive(Debug, Default)]
pub(super) struct LeaseWait(Duration);

impl LeaseWait {
    /// Opens a file by `open`, which fails with `EAGAIN` while a process holds a lease on the file, and asks for its end. Waits for
    /// all files together at most [`LONGEST`]: a tenant must not keep a copy from its end. A process that is paused gives none
    /// up.
    ///
    /// # Errors
    /// `Busy` when a lease does not end, or the reading is cancelled; otherwise the error of the failed system call.
    #[expect(clippy::disallowed_methods, reason = "the kernel does not report the end of a lease")]
    pub(super) fn open(
        &mut self,
        is_paused: bool,
        progress: &Progress,
        open: impl Fn() -> ErrnoResult<OwnedFd>,
    ) -> Result<OwnedFd> {
        loop {
            match open() {
                Err(Errno::AGAIN) if !is_paused && self.0 < LONGEST => {
                    progress.check()?;
                    std::thread::sleep(POLL);
                    self.0 += POLL;
                }
                Err(Errno::AGAIN) => {
                    let text =
                        "a process holds a lease on the file (fcntl(2), F_SETLEASE): stop it and retry";
                    return Err(Error::new(Kind::Busy, text));
                }
                opened => return opened.context(|| "open"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_is_opened_when_its_lease_ends() {
        let (left, progress) = (Cell::new(3), Progress::default());
        let open = || {
            left.set(left.get() - 1);
            if left.get() == 0 { Ok(File::open("/").unwrap().into()) } else { Err(Errno::AGAIN) }
        };
        LeaseWait::default().open(false, &progress, open).unwrap();
        assert_eq!(left.get(), 0);
        let refused = LeaseWait::default().open(true, &progress, || Err(Errno::AGAIN)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy, "a paused process gives none up");
    }
}
