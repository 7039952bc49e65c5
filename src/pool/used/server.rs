//! Whether a free lock says that nobody has it, for a process on the NFS server itself.
//!
//! Clients lose their locks when the server stops, and take them again within its grace period. The server refuses other
//! clients meanwhile, but not the processes of its own host. So a host counts as gone only if it has noted no life for a while,
//! although the server has served all the time.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time in which each host notes its life, once a minute, after its locks are there again.
const NOTED_AGAIN: Duration = Duration::from_secs(150);

/// The NFS server of this host.
#[derive(Debug)]
pub(super) struct NfsServer {
    /// The control files of nfsd(7): `/proc/fs/nfsd`.
    control: PathBuf,
    /// Since when it serves without a grace period.
    settled: Mutex<Option<Instant>>,
}

impl NfsServer {
    pub(super) fn of_this_host() -> Self {
        Self { control: "/proc/fs/nfsd".into(), settled: Mutex::default() }
    }

    /// Whether every host that is at work has noted its life again. Without the control files that is never known.
    pub(super) fn has_settled(&self) -> bool {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.serves() {
            *settled = None;
            return false;
        }
        settled.get_or_insert_with(Instant::now).elapsed() > NOTED_AGAIN
    }

    /// Whether it runs, and its grace period has ended.
    fn serves(&self) -> bool {
        let read = |file: &str| fs::read_to_string(self.control.join(file)).unwrap_or_default();
        read("threads").trim().parse::<u64>().is_ok_and(|threads| threads > 0)
            && read("v4_end_grace").starts_with('Y')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_stopped_or_in_its_grace_period_has_not_settled() {
        let control = tempfile::tempdir().unwrap();
        let server = NfsServer { control: control.path().to_owned(), settled: Mutex::default() };
        let long_ago = || Instant::now().checked_sub(2 * NOTED_AGAIN);
        for (threads, grace, settles) in [("8\n", "Y\n", true), ("0\n", "Y\n", false), ("8\n", "N\n", false)]
        {
            fs::write(control.path().join("threads"), threads).unwrap();
            fs::write(control.path().join("v4_end_grace"), grace).unwrap();
            assert!(!server.has_settled(), "it may have been started just now");
            if settles {
                *server.settled.lock().unwrap() = long_ago();
            }
            assert_eq!(server.has_settled(), settles, "{threads} {grace}");
        }
        *server.settled.lock().unwrap() = long_ago();
        fs::remove_file(control.path().join("threads")).unwrap();
        assert!(!server.has_settled(), "without control files");
    }
}
