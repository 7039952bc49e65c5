//! Directories whose changes survive a power failure.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::fsync;
use rustix::io;

/// A directory that concurrent callers sync together: one `fsync` serves all callers that have asked before its start.
#[derive(Debug)]
pub(super) struct DurableDir {
    dir: OwnedFd,
    syncs: Mutex<Syncs>,
    /// Where the callers wait that need a sync with an even number, and with an odd one: each of them needs the one that
    /// runs or the next.
    ended: [Condvar; 2],
}

#[derive(Debug, Default)]
struct Syncs {
    /// Number of syncs that have started.
    started: u64,
    /// Number of syncs that have ended.
    ended: u64,
    /// The number of the last sync that failed. The kernel reports a failed write to one sync only.
    failed: Option<(u64, io::Errno)>,
    /// Number of waiting callers. Waking none costs a system call, too.
    waiting: usize,
}

impl DurableDir {
    pub(super) fn new(dir: OwnedFd) -> Self {
        Self { dir, syncs: Mutex::default(), ended: Default::default() }
    }

    /// Makes all changes of the directory's entries before this call survive a power failure.
    ///
    /// # Errors
    /// The error of `fsync`, also of a later one that other callers share.
    pub(super) fn sync(&self) -> io::Result<()> {
        // A sync that runs may have missed the caller's change.
        let needed = self.lock().started + 1;
        self.share(needed, || fsync(&self.dir))
    }

    /// Waits for the sync with this number, or a later one. Runs it unless another caller does.
    fn share(&self, needed: u64, fsync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let waits = |syncs: &mut Syncs| syncs.ended < needed && syncs.started > syncs.ended;
        let mut syncs = self.lock();
        if waits(&mut syncs) {
            syncs.waiting += 1;
            let waited = self.ended_of(needed).wait_while(syncs, waits);
            syncs = waited.unwrap_or_else(PoisonError::into_inner);
            syncs.waiting -= 1;
        }
        if syncs.ended < needed {
            syncs.started += 1;
            drop(syncs);
            let synced = fsync();
            syncs = self.lock();
            syncs.ended = syncs.started;
            if let Err(error) = synced {
                syncs.failed = Some((syncs.ended, error));
            }
            if syncs.waiting > 0 {
                self.ended_of(syncs.ended).notify_all();
                // One of those that need the next sync runs it.
                self.ended_of(syncs.ended + 1).notify_one();
            }
        }
        match syncs.failed {
            Some((number, error)) if number >= needed => Err(error),
            _ => Ok(()),
        }
    }

    fn ended_of(&self, number: u64) -> &Condvar {
        &self.ended[usize::from(number % 2 == 1)]
    }

    fn lock(&self) -> MutexGuard<'_, Syncs> {
        self.syncs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for DurableDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn callers_share_the_sync_that_starts_after_their_changes_and_its_failure() {
        let dir = tempfile::tempdir().unwrap();
        let directory = DurableDir::new(std::fs::File::open(dir.path()).unwrap().into());
        let syncs = AtomicU64::new(0);
        let fail = || {
            syncs.fetch_add(1, Ordering::Relaxed);
            Err(io::Errno::IO)
        };
        let (start, started) = mpsc::channel();
        let (resume, resumed) = mpsc::channel();
        let wait = move || {
            start.send(()).unwrap();
            resumed.recv().map_err(|_| io::Errno::IO)
        };
        thread::scope(|scope| {
            let first = scope.spawn(|| directory.share(1, wait));
            started.recv().unwrap();
            let others: Vec<_> = (0..8).map(|_| scope.spawn(|| directory.share(2, fail))).collect();
            resume.send(()).unwrap();
            assert_eq!(first.join().unwrap(), Ok(()), "it ended before the failure");
            others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), Err(io::Errno::IO)));
        });
        assert_eq!(syncs.into_inner(), 1);
        assert_eq!(directory.sync(), Ok(()), "a failure is not reported to later callers");
    }
}
