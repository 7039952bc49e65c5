//! A pool's directories on disk. One rename makes an object exist, one rename removes it.
//!
//! Everything is opened relative to a directory's descriptor, by names that [`crate::volume::Name`] has checked, never
//! through a symbolic link or across a mount.

mod abandoned;
mod change;
mod draft;
mod in_place;
mod moves;
mod record;
mod replace;
mod unmanaged;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{self, AtFlags, FlockOperation, OFlags, StatxFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use super::dirs::{DIRECTORY, PRIVATE, explain, for_each_name, nonce, open_inside, rename_new};
use super::durable_dir::DurableDir;
use super::layout::{Directories, Layout};
use super::lock_files::LockFiles;
use super::locks::{LockGuard, LockTable, Mode};
use super::medium::Medium;
use super::object::{ObjectKey, ObjectKind};
use super::projects::Projects;
use super::trash::{Retention, Trash, TrashEntry};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::inherited_project;
use crate::fs::names::make_directory;
use crate::volume::{DATA, Name, Snapshot, Volume};
pub use change::RecordChange;
pub(super) use change::parse_new_record_name;
pub use draft::Draft;
pub use in_place::InPlace;
use in_place::is_impossible;
pub(super) use record::write_file;
pub use record::{parse, read_file, replace_file};
pub use unmanaged::FoundVolume;

/// The open directories of one pool.
#[derive(Debug)]
pub struct Store {
    root: OwnedFd,
    layout: Layout,
    volumes: DurableDir,
    snapshots: DurableDir,
    work: OwnedFd,
    trash: Trash,
    medium: Medium,
    locks: LockTable<ObjectKey>,
    /// Open as long as this process has the pool for itself.
    _pool_lock: Option<OwnedFd>,
}

impl Store {
    /// Opens the directories of a pool, and creates the missing ones. Other processes may do the same, unless one of them
    /// has the pool for itself.
    ///
    /// # Errors
    /// `Unavailable` when another process has the pool for itself, when this one wants that and others use the pool, or when
    /// a directory with objects is missing; otherwise the error of the failed system call.
    pub fn open(root: OwnedFd, exclusive: bool, lock_wait: Duration) -> Result<Self> {
        Self::open_again(root, None, exclusive, lock_wait)
    }

    /// Like [`Store::open`], in a process that may have used the pool before, with the directories `last`.
    ///
    /// # Errors
    /// `Unavailable` also when one of the directories was replaced; otherwise same as [`Store::open`].
    pub(super) fn open_again(
        root: OwnedFd,
        last: Option<&Layout>,
        exclusive: bool,
        lock_wait: Duration,
    ) -> Result<Self> {
        let (directories, layout) = Layout::open(root.as_fd(), last)?;
        let Directories { volumes, snapshots, work, trash, locks } = directories;
        lock_pool(&locks, exclusive)?;
        // A process that has the pool for itself needs no locks of the kernel, which its filesystem may not have.
        let (files, pool_lock) =
            if exclusive { (None, Some(locks)) } else { (Some(LockFiles::new(locks)), None) };
        let store = Self {
            layout,
            volumes: DurableDir::new(volumes),
            snapshots: DurableDir::new(snapshots),
            work,
            trash: Trash::new(trash),
            medium: Medium::Local,
            locks: LockTable::with_files(files, lock_wait),
            _pool_lock: pool_lock,
            root,
        };
        match fs::fsync(&store.root) {
            // ext4 after an error. Nothing was created, and the volumes can be published.
            Err(Errno::ROFS) => Ok(store),
            synced => synced.context(|| "sync the pool's directory").map(|()| store),
        }
    }

    /// The same directories, on this medium.
    pub(super) fn on(self, medium: Medium) -> Self {
        Self { medium, ..self }
    }

    /// Whether other hosts use the pool, too.
    pub(super) fn medium(&self) -> Medium {
        self.medium
    }

    /// Makes an NFS client forget what it has cached of the names of objects: that one does not exist, and which record it
    /// has. The calls that follow report what fails.
    fn forget_names(&self, kind: ObjectKind, object: Option<&Name>) {
        if self.medium == Medium::Local {
            return;
        }
        let ask = |path: &str, flags| {
            let flags = flags | AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
            let _ = fs::statx(self.directory(kind), path, flags, StatxFlags::BASIC_STATS);
        };
        ask("", AtFlags::EMPTY_PATH);
        if let Some(name) = object {
            ask(name.as_str(), AtFlags::empty());
        }
    }

    /// The pool's own directory.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The pool's directories.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The project ids that the entries of the directories inherit.
    pub(super) fn projects(&self) -> Projects {
        Projects {
            volumes: inherited_project(self.volumes.as_fd()),
            snapshots: inherited_project(self.snapshots.as_fd()),
            work: inherited_project(self.work.as_fd()),
            trash: inherited_project(self.trash.dir()),
        }
    }

    /// The pool's trash.
    #[must_use]
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// The locks of the pool's objects.
    #[must_use]
    pub fn locks(&self) -> &LockTable<ObjectKey> {
        &self.locks
    }

    /// The directory with the objects of a kind.
    #[must_use]
    pub fn directory(&self, kind: ObjectKind) -> BorrowedFd<'_> {
        self.durable_dir(kind).as_fd()
    }

    fn durable_dir(&self, kind: ObjectKind) -> &DurableDir {
        match kind {
            ObjectKind::Volumes => &self.volumes,
            ObjectKind::Snapshots => &self.snapshots,
        }
    }

    fn sync(&self, kind: ObjectKind) -> Result<()> {
        self.durable_dir(kind).sync().context(|| format!("sync {}", kind.directory()))
    }

    /// The record of a volume; `None` if there is no such record.
    ///
    /// # Errors
    /// `Unreadable` when it is damaged or a newer version wrote it; otherwise the error of the failed system call.
    pub fn volume(&self, name: &Name) -> Result<Option<Volume>> {
        self.record(ObjectKind::Volumes, name)
    }

    /// The record of a snapshot; `None` if there is none.
    ///
    /// # Errors
    /// Same as [`Store::volume`].
    pub fn snapshot(&self, name: &Name) -> Result<Option<Snapshot>> {
        self.record(ObjectKind::Snapshots, name)
    }

    fn record<T: DeserializeOwned>(&self, kind: ObjectKind, name: &Name) -> Result<Option<T>> {
        if self.is_deleted(kind, name) {
            return Ok(None);
        }
        let path = format!("{name}/{}", kind.record());
        let read = read_file(self.directory(kind), path.as_str());
        let parsed = read.and_then(|bytes| bytes.map(|bytes| parse(&bytes)).transpose());
        parsed.context(|| format!("read {}/{path}", kind.directory()))
    }

    /// The directory of a volume or snapshot, which holds `data`.
    ///
    /// # Errors
    /// `Unavailable` when it is not a plain directory; `Internal` when it is missing or deleted.
    pub fn object(&self, kind: ObjectKind, name: &Name) -> Result<OwnedFd> {
        if self.is_deleted(kind, name) {
            return Err(Error::new(Kind::Internal, format!("{}/{name} has been deleted", kind.directory())));
        }
        let opened = open_inside(self.directory(kind), name.as_str(), DIRECTORY);
        explain(opened, &format!("{}/{name}", kind.directory()))
    }

    /// The data of a volume or snapshot, as a path-only descriptor; `None` if there is no such directory.
    ///
    /// # Errors
    /// `Unavailable` when something is mounted there or a symbolic link is in its place.
    pub fn data(&self, kind: ObjectKind, name: &Name) -> Result<Option<OwnedFd>> {
        if self.is_deleted(kind, name) {
            return Ok(None);
        }
        let path = format!("{name}/{DATA}");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match open_inside(self.directory(kind), path.as_str(), flags) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            opened => explain(opened, &format!("{}/{path}", kind.directory())).map(Some),
        }
    }

    /// The names of all objects of a kind, unordered. Entries that orlop could not have named are skipped.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn names(&self, kind: ObjectKind) -> Result<Vec<Name>> {
        let mut names = Vec::new();
        self.forget_names(kind, None);
        for_each_name(self.directory(kind), |entry| names.extend(entry.parse().ok()))
            .context(|| format!("list {}", kind.directory()))?;
        Ok(names)
    }

    /// Creates an empty directory in `work/` for a new object. Its name is locked first, so that no other process takes it
    /// for an abandoned one.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn draft(&self) -> Result<Draft<'_>> {
        let nonce = nonce()?;
        let lock = self.lock_new(ObjectKey::Draft(nonce.clone()))?;
        make_directory(self.work(), &nonce, PRIVATE).context(|| "create a directory in work/")?;
        let opened = open_inside(&self.work, nonce.as_str(), DIRECTORY);
        match opened.context(|| format!("open work/{nonce}")) {
            Ok(dir) => {
                Ok(Draft { store: self, nonce, dir, committed: false, is_uncertain: false, _lock: lock })
            }
            Err(error) => {
                let _ = fs::unlinkat(&self.work, &nonce, AtFlags::REMOVEDIR);
                Err(error)
            }
        }
    }

    /// Makes a new object survive a power failure.
    ///
    /// # Errors
    /// The error of the failed system call. The object is deleted then, so that a retry starts afresh.
    pub fn sync_new(&self, kind: ObjectKind, name: &Name) -> Result<()> {
        self.sync(kind).inspect_err(|_| {
            if let Ok(discarded) = self.discard(kind, name, Retention::seconds(0)) {
                self.trash.add_abandoned(discarded.entry);
            }
        })
    }

    /// Deletes an object: moves it into the trash, or marks it where it is if that is impossible. The entry is
    /// locked, so that no process removes it before the deletion is final.
    ///
    /// # Errors
    /// The error of the failed system call; the object still exists then.
    pub fn discard(&self, kind: ObjectKind, name: &Name, retention: Retention) -> Result<Discarded> {
        let entry = TrashEntry::new(name.as_str(), retention)?;
        let lock = self.lock_new(ObjectKey::Trash(entry.directory.clone()))?;
        match self.trash.add_as(self.directory(kind), name.as_str(), &entry) {
            Err(errno) if is_impossible(errno) => self.discard_in_place(kind, name),
            moved => {
                moved.context(|| format!("move {name} into trash/"))?;
                Ok(Discarded { entry, marked: None, _lock: lock })
            }
        }
    }

    fn discard_in_place(&self, kind: ObjectKind, name: &Name) -> Result<Discarded> {
        let entry = TrashEntry::in_place(kind.directory(), name.as_str());
        let lock = self.lock_new(ObjectKey::Trash(entry.directory.clone()))?;
        let marked = Some(self.mark_deleted(kind, name)?);
        Ok(Discarded { entry, marked, _lock: lock })
    }

    /// Makes the deletion of an object survive a power failure.
    ///
    /// # Errors
    /// The error of the failed system call. The object exists again then, since the caller gets an error.
    pub fn sync_discarded(&self, kind: ObjectKind, name: &Name, discarded: Discarded) -> Result<TrashEntry> {
        let Discarded { entry, marked, _lock } = discarded;
        if let Some(dir) = marked {
            let synced = fs::fsync(&dir).context(|| format!("sync {}/{name}", kind.directory()));
            synced.inspect_err(|_| Self::unmark_deleted(&dir))?;
            return Ok(entry);
        }
        // Sync the new parent first: a power failure between the two syncs must not lose data that is to be kept.
        self.trash.sync().and_then(|()| self.sync(kind)).inspect_err(|_| {
            let _ =
                rename_new(self.trash.dir(), entry.directory.as_str(), self.directory(kind), name.as_str());
        })?;
        Ok(entry)
    }

    /// Locks the name of a new entry, which is random or belongs to an object that the caller has locked.
    fn lock_new(&self, key: ObjectKey) -> Result<LockGuard<ObjectKey>> {
        let held = format!("another call or process holds {key}: retry");
        self.locks.try_lock(key, Mode::Exclusive)?.ok_or_else(|| Error::new(Kind::Busy, held))
    }

    fn try_lock_draft(&self, nonce: &str) -> Result<Option<LockGuard<ObjectKey>>> {
        self.locks.try_lock(ObjectKey::Draft(nonce.to_owned()), Mode::Exclusive)
    }
}

/// A deleted object whose deletion is not final yet.
#[derive(Debug)]
pub struct Discarded {
    entry: TrashEntry,
    /// Its directory, if it was marked where it is.
    marked: Option<OwnedFd>,
    _lock: LockGuard<ObjectKey>,
}

/// Locks the whole pool for as long as the descriptor is open: shared, or for one process alone.
fn lock_pool(locks: &OwnedFd, exclusive: bool) -> Result<()> {
    let (operation, text) = if exclusive {
        let text =
            "its settings say `exclusive = true`, and another orlop process uses it: stop that process";
        (FlockOperation::NonBlockingLockExclusive, text)
    } else {
        let text = "another orlop process has it for itself (`exclusive = true`): stop that process";
        (FlockOperation::NonBlockingLockShared, text)
    };
    match fs::flock(locks, operation) {
        Err(Errno::WOULDBLOCK) => Err(Error::new(Kind::Unavailable, text)),
        result => result.context(|| "lock locks/"),
    }
}
