//! A pool: a directory that a marker file identifies, and an index of its contents in memory.
//!
//! A pool is unavailable when its directory is missing, is not a mount point although `mounted` is set, or has
//! another marker. Nothing is created, published or deleted in an unavailable pool, and the empty directory below an unmounted
//! disk is never used in its place.

pub mod locks;
pub mod object;
pub mod reaper;
pub mod store;
pub mod trash;
pub mod usage;

mod auditor;
mod cache;
mod capacity;
mod changes;
mod clock;
mod commit;
mod dirs;
mod durable_dir;
mod generation;
mod groups;
mod hosts;
mod index;
mod keeper;
mod known;
mod layout;
mod lock_files;
mod marker;
mod medium;
mod mount_point;
mod moves;
mod nfs_root;
mod parents;
mod project_ids;
mod projects;
mod root;
mod settings;
mod takeover;
mod used;
mod watch;

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread;
use std::time::Duration;

use rustix::fs::{self, AtFlags};

use self::auditor::Auditor;
use self::cache::IndexCache;
use self::known::KnownPool;
use self::layout::Layout;
use self::marker::MARKER;
use self::object::ObjectKind;
use self::project_ids::ProjectIds;
use self::reaper::{Reaper, ReaperQueue};
use self::store::Store;
use self::usage::UsageCache;
use crate::backend::{self, Backend};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::{ChangeTime, DirIdentity};
use crate::mount::namespace::MountNamespace;
use crate::volume::{DATA, Name};

pub use auditor::LastAudit;
pub use capacity::{FsStats, Reservation};
pub use commit::Committer;
pub use hosts::HostUse;
pub use index::{Index, SnapshotEntry, VolumeEntry};
pub use keeper::{Keeper, KeptFiles};
pub use marker::{Marker, read_marker};
pub use medium::{Medium, check_shareable};
pub use parents::check_outside_pools;
pub use projects::check_projects;
pub use root::PoolRoot;
pub use settings::PoolSettings;
pub use used::{UsedLock, UsedLocks};

/// What a process opens pools for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve them. An empty directory becomes a pool, the remains in `work/` are removed, and the trash is reaped.
    Serve,
    /// To run one command. A directory without a marker is refused, and only what the command names is changed.
    Command,
}

/// An available pool.
#[derive(Debug)]
pub struct OpenPool {
    /// The pool's configuration.
    pub settings: PoolSettings,
    /// The contents of its marker file.
    pub marker: Marker,
    /// Its directories.
    pub store: Store,
    /// The backend for its filesystem.
    pub backend: Box<dyn Backend>,
    /// Whether other hosts use it, too.
    pub medium: Medium,
    /// Where deleted objects are added for removal.
    pub reaper: ReaperQueue,
    /// The measured usage of its volumes.
    pub usage: UsageCache,
    used: Option<Arc<UsedLocks>>,
    project_ids: ProjectIds,
    cache: IndexCache,
    identity: DirIdentity,
    /// The inode number of the marker, if it is known.
    marker_inode: Option<u64>,
    /// The mount of its share, from which volumes are published.
    _share: Option<MountNamespace>,
    /// The change time of the pool's directory at the last complete check.
    checked: Mutex<Option<ChangeTime>>,
}

/// A configured pool, available or not. Its background threads are its own, so a pool that does not respond affects no
/// other.
#[derive(Debug)]
pub struct Pool {
    settings: PoolSettings,
    lock_wait: Duration,
    purpose: Purpose,
    known: KnownPool,
    kept: KeptFiles,
    reaper: Reaper,
    auditor: Auditor,
    usage: UsageCache,
    open: RwLock<Option<Arc<OpenPool>>>,
    /// Locked while the pool is opened.
    opening: Mutex<Last>,
}

/// What is known of the last instance of a pool.
#[derive(Debug, Default)]
struct Last {
    /// It may still be in use, for example by a copy.
    instance: Weak<OpenPool>,
    layout: Option<Layout>,
    /// Its used-locks, which would exclude those of the next instance.
    used: Option<Arc<UsedLocks>>,
}

impl Pool {
    /// Creates a pool that is not open yet. Its callers wait at most `lock_wait` for the lock of an object. A measured usage
    /// is measured again when it is older than `usage_age`.
    #[must_use]
    pub fn new(settings: PoolSettings, purpose: Purpose, lock_wait: Duration, usage_age: Duration) -> Self {
        let (reaper, usage) = (Reaper::default(), UsageCache::new(settings.name.clone(), usage_age));
        let (open, opening) = (RwLock::new(None), Mutex::new(Last::default()));
        let known = KnownPool::new(&settings.path, None);
        let (kept, auditor) = (KeptFiles::default(), Auditor::default());
        Self { settings, purpose, lock_wait, known, kept, reaper, auditor, usage, open, opening }
    }

    /// The same pool, with its record in this directory of the host. An empty directory whose path has a record never
    /// becomes a pool.
    #[must_use]
    pub fn with_records(self, records: &Path) -> Self {
        let known = KnownPool::new(&self.settings.path, Some(records));
        Self { known, ..self }
    }

    /// The same pool, whose descriptors are kept for the successors of this process.
    #[must_use]
    pub fn with_kept(self, kept: KeptFiles) -> Self {
        Self { kept, ..self }
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// The reaper of its trash.
    #[must_use]
    pub fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// Returns the pool if it is open and its directory is still at its path.
    #[must_use]
    pub fn get_if_open(&self) -> Option<Arc<OpenPool>> {
        // Not under the lock: the disk may not respond, and `loaded` must not wait for it.
        self.loaded().filter(|pool| pool.is_unchanged())
    }

    /// Returns the pool if it was opened, without any check that its directory is still there. Does no I/O.
    #[must_use]
    pub fn loaded(&self) -> Option<Arc<OpenPool>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the pool, opened if necessary. When it is opened to be served, its reaper starts to work.
    ///
    /// # Errors
    /// `Unavailable`, with the cause and the remedy; `Internal` if a thread cannot be spawned.
    pub fn get_or_open(&self) -> Result<Arc<OpenPool>> {
        if let Some(pool) = self.get_if_open() {
            return Ok(pool);
        }
        let mut last = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = self.get_if_open() {
            return Ok(pool);
        }
        if let Some(old) = self.set_open(None) {
            last.instance = Arc::downgrade(&old);
            self.close(old);
        }
        // With `exclusive`, the lock of an instance that is still in use would refuse a new one.
        if let Some(pool) = last.instance.upgrade().filter(|pool| pool.is_in_place()) {
            if self.purpose == Purpose::Serve {
                self.start_upkeep(&pool)?;
            }
            drop(self.set_open(Some(Arc::clone(&pool))));
            return Ok(pool);
        }
        let pool = self.open_now(&mut last).map_err(|error| {
            let text = format!("pool {} at {}", self.settings.name, self.settings.path.display());
            Error::caused(Kind::Unavailable, text, error)
        })?;
        last.layout = Some(*pool.store.layout());
        last.used.clone_from(&pool.used);
        drop(self.set_open(Some(Arc::clone(&pool))));
        Ok(pool)
    }

    /// Replaces the open instance, and returns the old one to be dropped when nothing is locked: closing its files may hang.
    #[must_use]
    fn set_open(&self, pool: Option<Arc<OpenPool>>) -> Option<Arc<OpenPool>> {
        std::mem::replace(&mut *self.open.write().unwrap_or_else(PoisonError::into_inner), pool)
    }

    /// Drops an instance whose disk may not respond. Its lock must be free before the pool is opened again.
    fn close(&self, old: Arc<OpenPool>) {
        if self.settings.exclusive {
            return drop(old);
        }
        // If there is no thread, the closure and the instance are dropped here.
        let _ = thread::Builder::new().name("close".to_owned()).spawn(move || drop(old));
    }

    fn open_now(&self, last: &mut Last) -> Result<Arc<OpenPool>> {
        let pool = Arc::new(OpenPool::open(self, last)?);
        if self.purpose == Purpose::Serve {
            drop(pool.index()?);
            pool.start_used_checks()?;
            self.start_upkeep(&pool)?;
        }
        Ok(pool)
    }
}

impl OpenPool {
    /// The path of a volume's data, for messages and comparisons: files are opened by descriptor.
    #[must_use]
    pub fn path_of_data(&self, volume: &Name) -> PathBuf {
        self.settings.path.join(ObjectKind::Volumes.directory()).join(volume.as_str()).join(DATA)
    }

    fn open(configured: &Pool, last: &mut Last) -> Result<Self> {
        let settings = &configured.settings;
        let root = PoolRoot::open(settings, &configured.kept)?;
        if settings.mounted {
            mount_point::check(&settings.path)?;
        }
        // A cluster filesystem has the locks that its administrator says it has.
        if !settings.exclusive && (!settings.shared || settings.exported) {
            medium::check_shareable(root.as_fd())?;
        }
        check_outside_pools(root.as_fd(), &settings.path)?;
        nfs_root::check(root.as_fd(), settings)?;
        let marker = match configured.purpose {
            Purpose::Serve => {
                configured.known.note_mount();
                marker::open_or_initialize(root.as_fd(), settings, &configured.known)?
            }
            Purpose::Command => marker::open(root.as_fd(), settings)?,
        };
        // It may be replaced meanwhile: then the next call opens the pool again.
        let marker_inode = marker::inode(root.as_fd());
        let marker = read_marker(root.as_fd())?.unwrap_or(marker);
        let backend = backend::open(root.as_fd(), &marker.backend)?;
        configured.known.note(&marker)?;
        let identity = DirIdentity::of(root.as_fd()).context(|| "stat the directory")?;
        let medium = Medium::of(root.as_fd(), settings)?;
        let (root, share) = root.into_parts();
        let layout = last.layout.as_ref();
        let store = Store::open_again(root, layout, settings.exclusive, configured.lock_wait)?.on(medium);
        if medium == Medium::Local {
            store.locks().make_files()?;
        }
        let has_upkeep = configured.purpose == Purpose::Serve && backend.check_changes().is_ok();
        if has_upkeep {
            // What cannot be swept now, for example on a full disk, is swept by a later start.
            let _ = store.sweep();
            commit::prepare(&store)?;
        }
        if let Some(former) = last.used.take() {
            former.close();
        }
        let used = UsedLocks::open(settings, configured.purpose, &store, &configured.kept)?.map(Arc::new);
        Ok(Self {
            settings: settings.clone(),
            marker,
            store,
            backend,
            medium,
            reaper: configured.reaper.queue(),
            usage: configured.usage.clone(),
            used,
            project_ids: ProjectIds::default(),
            cache: IndexCache::default(),
            identity,
            marker_inode,
            _share: share,
            checked: Mutex::new(None),
        })
    }

    /// Refuses a change of a pool that was unmounted or replaced since the call began.
    fn check_in_place(&self) -> Result<()> {
        if self.is_in_place() {
            return Ok(());
        }
        Err(Error::new(Kind::Unavailable, "the pool's directory has changed since the call began: retry"))
    }

    /// Like [`OpenPool::is_in_place`], but the names in the directory are looked up only if the directory has changed since
    /// the last time. A mount over one of them goes unnoticed; [`OpenPool::check_in_place`] finds it before each change.
    fn is_unchanged(&self) -> bool {
        let Ok((found, changed)) = root::current(&self.settings, self.store.root()) else { return false };
        if found != self.identity {
            return false;
        }
        let is_checked = *self.checked.lock().unwrap_or_else(PoisonError::into_inner) == Some(changed);
        is_checked || self.has_directories(changed)
    }

    /// Whether the path still refers to this pool. A disk that was unmounted, and directories that were moved away or
    /// replaced, must not be used.
    fn is_in_place(&self) -> bool {
        let found = root::current(&self.settings, self.store.root());
        found.is_ok_and(|(found, changed)| found == self.identity && self.has_directories(changed))
    }

    fn has_directories(&self, changed: ChangeTime) -> bool {
        let marker = fs::statat(self.store.root(), MARKER, AtFlags::SYMLINK_NOFOLLOW);
        // Another process has changed the backend of the pool.
        let is_changed = |inode: u64| self.marker_inode.is_some_and(|known| known != inode);
        let has_marker = marker.is_ok_and(|marker| !is_changed(marker.st_ino));
        let found = has_marker && self.store.layout().is_in_place(self.store.root());
        // A change right after this check can have the same time.
        let checked = (found && changed.is_past()).then_some(changed);
        *self.checked.lock().unwrap_or_else(PoisonError::into_inner) = checked;
        found
    }
}
