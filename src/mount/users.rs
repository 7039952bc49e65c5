//! Who uses a directory on this host: every mount, in any mount namespace, whose root lies in it.
//!
//! So a pod, a Docker container and a `systemd-nspawn` are seen alike, and seen again after a restart. The mount of
//! the pool itself is none of them, for its root lies above the directory. A deletion asks each time, and many may
//! ask at once, so callers share scans as commits share a sync: each takes the result of any scan that began after
//! it had asked.
//!
//! What is not seen: namespaces of processes that `/proc` does not show (the node's pod needs `hostPID`), a namespace
//! that only a thread is in or only a descriptor keeps alive, and a mount that is not attached anywhere.

mod namespaces;
mod record;
mod scan;
mod user;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub use self::user::User;

use self::namespaces::Known;
use self::scan::Scan;
use crate::error::Result;
use crate::mount::location::{FsLocation, Handle};
use crate::mount::mountinfo::Device;

/// Finds who uses a directory, and shares the scans of those who ask at once.
#[derive(Debug)]
pub struct Users {
    proc: PathBuf,
    state: Mutex<State>,
    /// Of the scan that runs: there is one at a time.
    known: Mutex<Known>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The mounts that directories were asked by, each with the `st_dev` seen there: one for each pool. What is asked
    /// stays, so a later scan serves an earlier caller.
    asked: BTreeMap<u64, Device>,
    /// How many scans have begun.
    begun: u64,
    /// One is running.
    running: bool,
    /// The last that has ended well, and which it was.
    last: Option<(u64, Arc<Scan>)>,
}

impl Users {
    /// Reads the processes of `proc`, which is `/proc` or the host's at another place.
    #[must_use]
    pub fn new(proc: PathBuf) -> Self {
        Self { proc, state: Mutex::default(), known: Mutex::default(), done: Condvar::new() }
    }

    /// Who uses this directory, as of some moment after the call. A mount that has propagated to several namespaces
    /// is named once.
    ///
    /// # Errors
    /// `Internal` if the processes cannot be listed, or the directory has been removed.
    pub fn of(&self, dir: BorrowedFd<'_>) -> Result<Vec<User>> {
        Ok(self.of_each(&[dir])?.pop().unwrap_or_default())
    }

    /// Who uses each of these directories, in their order, by one scan.
    ///
    /// # Errors
    /// As [`Users::of`].
    pub fn of_each(&self, dirs: &[BorrowedFd<'_>]) -> Result<Vec<Vec<User>>> {
        let handles: Vec<Handle> = dirs.iter().map(|dir| Handle::of(*dir)).collect::<Result<_>>()?;
        let scan = self.scan(&handles)?;
        let places = places(&scan, &handles)?;
        if !scan.nameless {
            return Ok(self.named(&scan, &places));
        }
        if places.iter().all(|place| scan.in_place(place).is_empty()) {
            return Ok(places.iter().map(|_| Vec::new()).collect());
        }
        // Somebody does. Who, only the processes tell, and what none of them shows is nobody's.
        let asked = handles.iter().map(|handle| (handle.mount, handle.device)).collect();
        let scan = scan::processes(&self.proc, &asked)?;
        Ok(self.named(&scan, &self::places(&scan, &handles)?))
    }

    fn named(&self, scan: &Scan, places: &[FsLocation]) -> Vec<Vec<User>> {
        places.iter().map(|place| user::users(&self.proc, scan.in_place(place))).collect()
    }

    /// How many processes did not let themselves be looked at: not 0 means that uses may go unseen, for want of the
    /// right to (`CAP_SYS_PTRACE`).
    ///
    /// # Errors
    /// `Internal` if the processes cannot be listed.
    pub fn unseen(&self) -> Result<usize> {
        Ok(scan::processes(&self.proc, &BTreeMap::new())?.refused)
    }

    /// How many scans have begun since the start.
    #[must_use]
    pub fn scans(&self) -> u64 {
        self.lock().begun
    }

    /// A scan that has begun after this call and looked for what lies on the mounts of `handles`.
    fn scan(&self, handles: &[Handle]) -> Result<Arc<Scan>> {
        let mut state = self.lock();
        for handle in handles {
            state.asked.entry(handle.mount).or_insert(handle.device);
        }
        let wanted = state.begun + 1;
        loop {
            match &state.last {
                Some((number, scan)) if *number >= wanted => return Ok(Arc::clone(scan)),
                _ if state.running => state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner),
                _ => break,
            }
        }
        state.begun += 1;
        state.running = true;
        let (number, asked) = (state.begun, state.asked.clone());
        drop(state);

        let running = Running(self);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let scan = Arc::new(scan::run(&self.proc, &asked, &mut known)?);
        drop(known);
        self.lock().last = Some((number, Arc::clone(&scan)));
        drop(running);
        Ok(scan)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the directories lie.
fn places(scan: &Scan, handles: &[Handle]) -> Result<Vec<FsLocation>> {
    handles.iter().map(|handle| handle.place(scan.anchor(handle.mount))).collect()
}

/// A scan under way; when it ends, well or not, those who wait are woken, and one of them scans if it must.
struct Running<'a>(&'a Users);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running = false;
        self.0.done.notify_all();
    }
}
