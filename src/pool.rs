//! A pool: a directory with a marker that says which pool it is, and what is in it, kept in memory for listings.
//!
//! A pool whose directory is missing, is not a mount point as it should be, or has another marker is unavailable:
//! nothing is made, published or deleted there, and the directory below a missing disk is never taken for it.

pub mod locks;
pub mod reaper;
pub mod store;
pub mod usage;

mod capacity;
mod index;

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::backend::{self, Backend};
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::mountinfo;
use crate::pool::store::{Store, Trashed, replace_file};
use crate::volume::{PoolName, Timestamp};

pub use capacity::Reservation;
pub use index::{Index, SnapshotEntry, VolumeEntry};

/// The marker's name in the pool's directory.
const MARKER: &str = "orlop.json";

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The form; 1.
    pub schema: u32,
    /// Tells this pool from all others.
    pub uuid: String,
    /// The name it was first opened by.
    pub name: PoolName,
    /// The backend's name.
    pub backend: String,
    /// When it became a pool.
    pub created: Timestamp,
}

/// One pool as the settings name it.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// Its name.
    pub name: PoolName,
    /// An existing directory; orlop never makes it.
    pub path: std::path::PathBuf,
    /// Whether the directory must be a mount point.
    pub mounted: bool,
    /// The UUID that its marker must have.
    pub uuid: Option<String>,
    /// How many times the filesystem's size may be promised, in percent; 100: once.
    pub overcommit_percent: u32,
    /// Bytes never promised.
    pub reserve: u64,
}

/// A pool that is there: its folders, its backend, what is in it.
#[derive(Debug)]
pub struct OpenPool {
    /// As the settings name it.
    pub settings: PoolSettings,
    /// What its marker says.
    pub marker: Marker,
    /// Its folders.
    pub store: Store,
    /// What it can do.
    pub backend: Box<dyn Backend>,
    /// What is in it.
    index: Mutex<Index>,
    place: DirIdentity,
}

/// A pool of the settings, there or not.
#[derive(Debug)]
pub struct Pool {
    settings: PoolSettings,
    open: RwLock<Option<Arc<OpenPool>>>,
    opening: Mutex<()>,
}

/// Which directory on which filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DirIdentity {
    device: u64,
    inode: u64,
}

impl Pool {
    /// A pool that is not open yet.
    #[must_use]
    pub fn new(settings: PoolSettings) -> Self {
        Self { settings, open: RwLock::new(None), opening: Mutex::new(()) }
    }

    /// As the settings name it.
    #[must_use]
    pub fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// The pool, when it is open and still where it was; never waits for a disk's contents.
    #[must_use]
    pub fn opened(&self) -> Option<Arc<OpenPool>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().filter(|pool| pool.is_in_place()).cloned()
    }

    /// The pool; opened now when it was not. `found` is told of what lies in its trash, once for each opening.
    ///
    /// # Errors
    /// `Unavailable`, with the cause and what to do.
    pub fn get(&self, found: impl FnOnce(&Arc<OpenPool>, Vec<Trashed>)) -> Result<Arc<OpenPool>> {
        if let Some(pool) = self.opened() {
            return Ok(pool);
        }
        let _one_at_a_time = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = self.opened() {
            return Ok(pool);
        }
        // The old one goes first: it holds the lock of a directory that may be the same.
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = None;
        let opened = OpenPool::open(&self.settings).map_err(|error| {
            let text = format!("pool {} at {}", self.settings.name, self.settings.path.display());
            Error::caused(Kind::Unavailable, text, error)
        })?;
        let pool = Arc::new(opened);
        let trashed = pool.store.trashed()?;
        found(&pool, trashed);
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
        let backend = backend::open(root.as_fd())?;
        let marker = match read_marker(root.as_fd())? {
            Some(marker) => check_marker(marker, settings)?,
            None => first_marker(root.as_fd(), settings, backend.name())?,
        };
        let place = place_of(&root)?;
        let store = Store::open(root)?;
        store.sweep()?;
        let index = Mutex::new(Index::read(&store)?);
        Ok(Self { settings: settings.clone(), marker, store, backend, index, place })
    }

    /// Whether the path still leads here: a disk that was unmounted or replaced is not touched.
    fn is_in_place(&self) -> bool {
        let there = fs::statat(CWD, &self.settings.path, AtFlags::empty());
        let marked = || fs::statat(self.store.root(), MARKER, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        there.is_ok_and(|stat| DirIdentity { device: stat.st_dev, inode: stat.st_ino } == self.place)
            && marked()
    }

    /// What is in the pool. Held for moments only, never over I/O that may take long.
    pub fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => Err(Error::new(
            Kind::Unavailable,
            "the directory is missing: make it, or mount its disk; orlop does not make it itself",
        )),
        Err(Errno::NOTDIR) => Err(Error::new(Kind::Unavailable, "it is not a directory")),
        result => result.context(|| "open the directory"),
    }
}

/// Whether a filesystem, or a part of one, is mounted exactly at `path`, as the host sees it.
///
/// A container has a mount at every pool's path, whether the host has a disk there or not. Is it that of a whole
/// filesystem, a disk is there; else the table of the host's first process tells, where it can be read.
///
/// # Errors
/// `Internal` when no mount table can be read.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = path.as_os_str().as_bytes();
    let Some(own) = mountinfo::by_target(path)? else { return Ok(false) };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    if own.root.as_os_str() == "/" {
        return Ok(true);
    }
    let Ok(host) = fs::open("/proc/1/mountinfo", flags, Mode::empty()) else { return Ok(true) };
    let mut found = false;
    let look = |line: mountinfo::Line<'_>| {
        found |= *line.target() == *path;
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    mountinfo::Reader::default().each(host, look).context(|| "read the host's mount table")?;
    Ok(found)
}

fn check_mount_point(path: &Path) -> Result<()> {
    if is_mount_point(path)? {
        return Ok(());
    }
    let text = "nothing is mounted there, and its settings say mounted = true: mount its disk";
    Err(Error::new(Kind::Unavailable, text))
}

/// The marker of a pool's directory; `None`: it has none.
///
/// # Errors
/// `Internal` when there is one that cannot be read.
pub fn read_marker(root: std::os::fd::BorrowedFd<'_>) -> Result<Option<Marker>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match fs::openat(root, MARKER, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        result => result.context(|| format!("open {MARKER}"))?,
    };
    let marker = serde_json::from_reader(std::fs::File::from(file))
        .map_err(|error| Error::caused(Kind::Internal, format!("read {MARKER}"), error))?;
    Ok(Some(marker))
}

fn check_marker(marker: Marker, settings: &PoolSettings) -> Result<Marker> {
    if marker.schema != 1 {
        let text = format!("{MARKER} has schema {}: a newer orlop made this pool", marker.schema);
        return Err(Error::new(Kind::Unavailable, text));
    }
    if marker.name != settings.name {
        // The ids of its volumes begin with its name.
        let text = format!("this is pool {:?}; give it this name in the settings", marker.name.as_str());
        return Err(Error::new(Kind::Unavailable, text));
    }
    match &settings.uuid {
        Some(uuid) if *uuid != marker.uuid => Err(Error::new(
            Kind::Unavailable,
            format!("this is pool {}, and the settings want {uuid}: is the right disk mounted?", marker.uuid),
        )),
        _ => Ok(marker),
    }
}

/// Makes an empty directory a pool, unless the settings say which pool it should be already.
fn first_marker(root: std::os::fd::BorrowedFd<'_>, settings: &PoolSettings, backend: &str) -> Result<Marker> {
    if let Some(uuid) = &settings.uuid {
        let text =
            format!("it has no {MARKER}, and the settings want pool {uuid}: is the right disk mounted?");
        return Err(Error::new(Kind::Unavailable, text));
    }
    if let Some(entry) = foreign_entry(root)? {
        let text = format!(
            "it has no {MARKER} and is not empty ({entry:?} is in it): name an empty directory, \
             such as a new one in it"
        );
        return Err(Error::new(Kind::Unavailable, text));
    }
    let marker = Marker {
        schema: 1,
        uuid: uuid::Uuid::new_v4().to_string(),
        name: settings.name.clone(),
        backend: backend.to_owned(),
        created: Timestamp::now(),
    };
    replace_file(root, MARKER, &marker).map(|()| marker)
}

/// Something in the directory that is neither ours nor of every new filesystem.
fn foreign_entry(root: std::os::fd::BorrowedFd<'_>) -> Result<Option<String>> {
    for entry in fs::Dir::read_from(root).context(|| "list the directory")? {
        let entry = entry.context(|| "list the directory")?;
        match entry.file_name().to_bytes() {
            b"." | b".." | b"lost+found" | b"orlop.json.new" => {}
            other => return Ok(Some(String::from_utf8_lossy(other).into_owned())),
        }
    }
    Ok(None)
}

fn place_of(root: &OwnedFd) -> Result<DirIdentity> {
    let stat = fs::fstat(root).context(|| "look at the directory")?;
    Ok(DirIdentity { device: stat.st_dev, inode: stat.st_ino })
}
