//! A pool: a directory that describes itself by a marker, and an index of its contents in memory.
//!
//! A pool is unavailable when its directory is missing, is not the mount point that it should be, or has another
//! marker. Nothing is created, published or deleted in an unavailable pool, and the empty directory below an unmounted
//! disk is not used in its place.

pub mod locks;
pub mod reaper;
pub mod store;
pub mod trash;
pub mod usage;

mod capacity;
mod index;
mod marker;

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use self::marker::MARKER;
use self::store::Store;
use self::trash::TrashEntry;
use crate::backend::{self, Backend};
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::mountinfo;
use crate::volume::PoolName;

pub use capacity::{FsStats, Reservation};
pub use index::{Index, SnapshotEntry, VolumeEntry};
pub use marker::{Marker, read_marker};

/// One pool, as the settings describe it.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// Its name.
    pub name: PoolName,
    /// An existing directory. orlop never creates it.
    pub path: std::path::PathBuf,
    /// Whether the directory must be a mount point.
    pub mounted: bool,
    /// The UUID that its marker must have.
    pub uuid: Option<String>,
    /// The size that may be provisioned, in percent of the filesystem's size.
    pub overcommit_percent: u32,
    /// Bytes that are never provisioned.
    pub reserve: u64,
}

/// An available pool.
#[derive(Debug)]
pub struct OpenPool {
    /// Its settings.
    pub settings: PoolSettings,
    /// Its marker.
    pub marker: Marker,
    /// Its directories.
    pub store: Store,
    /// What its filesystem can do.
    pub backend: Box<dyn Backend>,
    index: Mutex<Index>,
    identity: DirIdentity,
}

/// A pool of the settings, available or not.
#[derive(Debug)]
pub struct Pool {
    settings: PoolSettings,
    open: RwLock<Option<Arc<OpenPool>>>,
    opening: Mutex<()>,
}

/// Identifies a directory among all filesystems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DirIdentity {
    device: u64,
    inode: u64,
}

impl Pool {
    /// Creates a pool that is not open yet.
    #[must_use]
    pub fn new(settings: PoolSettings) -> Self {
        Self { settings, open: RwLock::new(None), opening: Mutex::new(()) }
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// The pool, if it is open and still at its path.
    #[must_use]
    pub fn opened(&self) -> Option<Arc<OpenPool>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().filter(|pool| pool.is_in_place()).cloned()
    }

    /// The pool, opened if it was not. `on_open` receives the entries of its trash, once for each opening.
    ///
    /// # Errors
    /// `Unavailable`, with the cause and the remedy.
    pub fn get(&self, on_open: impl FnOnce(&Arc<OpenPool>, Vec<TrashEntry>)) -> Result<Arc<OpenPool>> {
        if let Some(pool) = self.opened() {
            return Ok(pool);
        }
        let _one_at_a_time = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = self.opened() {
            return Ok(pool);
        }
        // Drop the old one first: it holds the lock of what may be the same directory.
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = None;
        let opened = OpenPool::open(&self.settings).map_err(|error| {
            let text = format!("pool {} at {}", self.settings.name, self.settings.path.display());
            Error::caused(Kind::Unavailable, text, error)
        })?;
        let pool = Arc::new(opened);
        let entries = pool.store.trash_entries()?;
        on_open(&pool, entries);
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&pool));
        Ok(pool)
    }
}

impl OpenPool {
    fn open(settings: &PoolSettings) -> Result<Self> {
        let root = open_root(&settings.path)?;
        if settings.mounted {
            check_mount_point(&settings.path)?;
        }
        let backend = backend::open(root.as_fd());
        let marker = marker::open(root.as_fd(), settings, backend.kind())?;
        let identity = DirIdentity::of(&root)?;
        let store = Store::open(root)?;
        store.sweep()?;
        let index = Mutex::new(Index::read(&store)?);
        Ok(Self { settings: settings.clone(), marker, store, backend, index, identity })
    }

    /// Whether the path still leads to this pool. A disk that was unmounted or replaced must not be used.
    fn is_in_place(&self) -> bool {
        let found = fs::statat(CWD, &self.settings.path, AtFlags::empty());
        let has_marker = || fs::statat(self.store.root(), MARKER, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        found.is_ok_and(|stat| DirIdentity { device: stat.st_dev, inode: stat.st_ino } == self.identity)
            && has_marker()
    }

    /// The index, locked. Callers hold it briefly and do no slow I/O meanwhile.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DirIdentity {
    fn of(dir: &OwnedFd) -> Result<Self> {
        let stat = fs::fstat(dir).context(|| "stat the directory")?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => Err(Error::new(
            Kind::Unavailable,
            "the directory is missing: create it, or mount its disk; orlop does not create it",
        )),
        Err(Errno::NOTDIR) => Err(Error::new(Kind::Unavailable, "it is not a directory")),
        result => result.context(|| "open the directory"),
    }
}

/// Whether a filesystem, or a part of one, is mounted exactly at `path`, as the host sees it.
///
/// In a container every pool's path is a mount point, whether the host has a disk there or not. If the mount shows a
/// whole filesystem, there is a disk. Otherwise the mount table of process 1 decides, where it is readable.
///
/// # Errors
/// `Internal` when no mount table can be read.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = path.as_os_str().as_bytes();
    let Some(own) = mountinfo::by_target(path)? else { return Ok(false) };
    if own.root.as_os_str() == "/" {
        return Ok(true);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(host) = fs::open("/proc/1/mountinfo", flags, Mode::empty()) else { return Ok(true) };
    let mut found = false;
    let visit = |line: mountinfo::Line<'_>| {
        found |= *line.target() == *path;
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    mountinfo::Reader::default().each(host, visit).context(|| "read the host's mount table")?;
    Ok(found)
}

fn check_mount_point(path: &Path) -> Result<()> {
    if is_mount_point(path)? {
        return Ok(());
    }
    let text = "nothing is mounted there, and its settings say mounted = true: mount its disk";
    Err(Error::new(Kind::Unavailable, text))
}
