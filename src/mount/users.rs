//! Finds the users of a directory on this host: every mount, in any mount namespace, whose root is in the directory.
//!
//! This covers pods, Docker containers and `systemd-nspawn` alike, and needs no state that a restart could lose. The
//! mount of the pool itself is not a user, because its root is above the directory. Every deletion needs the users, and
//! many may run at once, so concurrent callers share scans as in group commit: each takes the result of any scan that
//! started after its call.
//!
//! Not detected: namespaces of processes that `/proc` does not show (the node's pod needs `hostPID`), a namespace that
//! only a thread is in or only a descriptor keeps alive, and a mount that is not attached anywhere.

mod namespaces;
mod pods;
mod record;
mod scan;
mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub use self::pods::PodName;
pub use self::user::{User, container_of_cgroup, pod_of_cgroup};

use self::namespaces::ScanCache;
use self::scan::Scan;
use crate::error::Result;
use crate::mount::location::{FsLocation, MountId, MountedDir, below};
use crate::mount::mountinfo::{Device, MountInfo};

/// Finds the users of directories. Concurrent callers share scans.
#[derive(Debug)]
pub struct Users {
    proc: PathBuf,
    state: Mutex<State>,
    /// Locked by the running scan, of which there is at most one.
    cache: Mutex<ScanCache>,
    scan_ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Ids of the mounts that the callers' directories are on, with the `st_dev` seen there. While callers wait, entries are
    /// only added, so a later scan also serves earlier callers.
    wanted: BTreeMap<MountId, Device>,
    /// Number of scans started.
    started: u64,
    running: bool,
    /// Number of callers that wait for the running scan. Waking none costs a system call, too.
    waiting: usize,
    /// The last scan that succeeded, and its number.
    last: Option<(u64, Arc<Scan>)>,
}

impl Users {
    /// Creates a finder that reads processes from `proc`: `/proc`, or the path at which the host's is mounted.
    #[must_use]
    pub fn new(proc: PathBuf) -> Self {
        Self { proc, state: Mutex::default(), cache: Mutex::default(), scan_ended: Condvar::new() }
    }

    /// Returns the users of a directory at some moment after the call. A mount that has propagated to several
    /// namespaces is listed once.
    ///
    /// # Errors
    /// `Internal` if the processes cannot be listed or the directory has been removed.
    pub fn of(&self, dir: BorrowedFd<'_>) -> Result<Vec<User>> {
        Ok(self.of_each(&[MountedDir::of(dir)?])?.pop().unwrap_or_default())
    }

    /// Returns the users of each of these directories, in their order, from one scan. They need not be open any more.
    ///
    /// # Errors
    /// Same as [`Users::of`].
    pub fn of_each(&self, dirs: &[MountedDir]) -> Result<Vec<Vec<User>>> {
        let scan = self.scan(dirs)?;
        let locations = locations(&scan, dirs)?;
        if !scan.users_unknown {
            return Ok(self.identify(&scan, &locations));
        }
        if locations.iter().all(|location| scan.mounts_in(location).is_empty()) {
            return Ok(locations.iter().map(|_| Vec::new()).collect());
        }
        // In use. Scan /proc to identify the users. A mount that no process shows does not count as a use.
        let wanted = dirs.iter().map(|dir| (dir.mount, dir.device)).collect();
        let scan = scan::run_over_proc(&self.proc, &wanted)?;
        Ok(self.identify(&scan, &self::locations(&scan, dirs)?))
    }

    /// Returns the users of the directories that these mounts of this mount namespace show. Accesses no filesystem but
    /// `/proc`, so it waits for no server.
    ///
    /// # Errors
    /// `Internal` if the processes cannot be listed.
    pub fn of_mounts(&self, mounts: &[MountInfo]) -> Result<Vec<User>> {
        use std::os::unix::ffi::OsStrExt as _;
        if mounts.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = mounts.iter().map(|mount| (MountId::Table(mount.id), mount.device)).collect();
        let scan = scan::run_over_proc(&self.proc, &wanted)?;
        let shown: BTreeSet<_> =
            mounts.iter().map(|mount| (mount.device, mount.root.as_os_str().as_bytes().to_vec())).collect();
        let mut users = Vec::new();
        for (device, path) in shown {
            let location = FsLocation { device, path, detached: false };
            let of_root = scan.mounts_in(&location).into_iter().filter(|found| found.root == location.path);
            users.extend(user::identify(&self.proc, of_root.collect()));
        }
        user::name_pods(&self.proc, users.iter_mut());
        Ok(users)
    }

    /// The entries of a directory of which something is mounted, in any mount namespace of this host: they, or what is below
    /// them. On a detached mount, entries of another directory of the same name may be among them.
    ///
    /// # Errors
    /// Same as [`Users::of`].
    pub fn entries_mounted(&self, dir: BorrowedFd<'_>) -> Result<BTreeSet<Vec<u8>>> {
        let dir = MountedDir::of(dir)?;
        let scan = self.scan(std::slice::from_ref(&dir))?;
        let location = dir.location(scan.containing_mount(dir.mount))?;
        let roots = scan.mounts_in(&location).into_iter().map(|mount| &mount.root[..]);
        Ok(roots.flat_map(|root| entries_of(root, &location)).collect())
    }

    fn identify(&self, scan: &Scan, locations: &[FsLocation]) -> Vec<Vec<User>> {
        let identify = |location| user::identify(&self.proc, scan.mounts_in(location));
        let mut users: Vec<Vec<User>> = locations.iter().map(identify).collect();
        user::name_pods(&self.proc, users.iter_mut().flatten());
        users
    }

    /// Whether an overlay may be mounted, as of the last scan.
    #[must_use]
    pub fn may_be_overlays(&self) -> bool {
        self.lock().last.as_ref().is_none_or(|(_, scan)| !scan.without_overlays)
    }

    /// Returns the number of processes that could not be inspected, for lack of `CAP_SYS_PTRACE`. If it is not 0, users
    /// may go undetected.
    ///
    /// # Errors
    /// `Internal` if the processes cannot be listed.
    pub fn uninspectable(&self) -> Result<usize> {
        Ok(scan::run_over_proc(&self.proc, &BTreeMap::new())?.uninspectable)
    }

    /// Returns the number of scans started.
    #[must_use]
    pub fn scans(&self) -> u64 {
        self.lock().started
    }

    /// Returns a scan that started after this call and that covers the mounts of `dirs`.
    fn scan(&self, dirs: &[MountedDir]) -> Result<Arc<Scan>> {
        let mut state = self.lock();
        for dir in dirs {
            state.wanted.entry(dir.mount).or_insert(dir.device);
        }
        let earliest = state.started + 1;
        loop {
            match &state.last {
                Some((number, scan)) if *number >= earliest => return Ok(Arc::clone(scan)),
                _ if state.running => {
                    state.waiting += 1;
                    state = self.scan_ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.waiting -= 1;
                }
                _ => break,
            }
        }
        // Of earlier callers, which may have asked for mounts that are gone, none needs this scan.
        if state.waiting == 0 {
            state.wanted = dirs.iter().map(|dir| (dir.mount, dir.device)).collect();
        }
        state.started += 1;
        state.running = true;
        let (number, wanted) = (state.started, state.wanted.clone());
        drop(state);

        let running = RunningScan(self);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let scan = Arc::new(scan::run(&self.proc, &wanted, &mut cache)?);
        drop(cache);
        self.lock().last = Some((number, Arc::clone(&scan)));
        drop(running);
        Ok(scan)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entries of a directory that the root of a mount may be, or be below.
fn entries_of(root: &[u8], dir: &FsLocation) -> Vec<Vec<u8>> {
    let starts: Vec<usize> = if dir.detached {
        root.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).collect()
    } else {
        vec![0]
    };
    let entry = |at: usize| {
        let rest = below(&root[at..], &dir.path)?;
        rest.split(|byte| *byte == b'/').find(|part| !part.is_empty()).map(<[u8]>::to_vec)
    };
    starts.into_iter().filter_map(entry).collect()
}

fn locations(scan: &Scan, dirs: &[MountedDir]) -> Result<Vec<FsLocation>> {
    dirs.iter().map(|dir| dir.location(scan.containing_mount(dir.mount))).collect()
}

/// A running scan. Dropping it, after success or failure, wakes the waiting callers; if they need a newer scan, one of
/// them runs it.
struct RunningScan<'a>(&'a Users);

impl Drop for RunningScan<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running = false;
        if state.waiting > 0 {
            self.0.scan_ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn mounts_that_no_caller_asks_for_any_more_are_forgotten() {
        let users = Users::new("/proc".into());
        for path in ["/", "/proc", "/dev"] {
            let dir = std::fs::File::open(path).unwrap();
            users.of(dir.as_fd()).unwrap();
            assert_eq!(users.lock().wanted.len(), 1);
        }
    }
}
