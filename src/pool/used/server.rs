//! Whether the server of a share can tell that a client has ended.
//!
//! Clients lose their locks when the server stops, and take them again within its grace period. The server refuses other
//! clients meanwhile, but not the processes of its own host. So a host counts as gone only if it has noted no life for a while,
//! although the server has accepted requests all the time.

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
    serving_since: Mutex<Option<Instant>>,
}

impl NfsServer {
    pub(super) fn of_this_host() -> Self {
        Self { control: "/proc/fs/nfsd".into(), serving_since: Mutex::default() }
    }

    /// Whether every host that is at work has noted its life again. Without the control files that is never known.
    pub(super) fn has_served_long_enough(&self) -> bool {
        let mut since = self.serving_since.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.serves() {
            *since = None;
            return false;
        }
        since.get_or_insert_with(Instant::now).elapsed() > NOTED_AGAIN
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
    fn a_server_that_is_stopped_or_in_its_grace_period_cannot_tell_that_a_client_has_ended() {
        let control = tempfile::tempdir().unwrap();
        let server = NfsServer { control: control.path().to_owned(), serving_since: Mutex::default() };
        let long_ago = || Instant::now().checked_sub(2 * NOTED_AGAIN);
        for (threads, grace, serves) in [("8\n", "Y\n", true), ("0\n", "Y\n", false), ("8\n", "N\n", false)] {
            fs::write(control.path().join("threads"), threads).unwrap();
            fs::write(control.path().join("v4_end_grace"), grace).unwrap();
            assert!(!server.has_served_long_enough(), "it may have been started just now");
            if serves {
                *server.serving_since.lock().unwrap() = long_ago();
            }
            assert_eq!(server.has_served_long_enough(), serves, "{threads} {grace}");
        }
        *server.serving_since.lock().unwrap() = long_ago();
        fs::remove_file(control.path().join("threads")).unwrap();
        assert!(!server.has_served_long_enough(), "without control files");
    }
}
