//! A pool's directories on disk. One rename makes an object exist, one rename removes it.
//!
//! Everything is opened relative to a directory's descriptor, by names that [`crate::volume::Name`] has checked, never
//! through a symbolic link or across a mount.

mod draft;
mod record;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use super::dirs::{DIRECTORY, PRIVATE, for_each_entry, for_each_name, nonce, open_inside, open_or_create};
use super::trash::{Retention, Trash, TrashEntry};
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{DATA, Name, Snapshot, Volume};
pub use draft::Draft;
pub use record::{parse, read_file, replace_file};
use record::{with_unknown_fields, write_bytes, write_file};

/// The kinds of object in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// Volumes, in `volumes/`.
    Volumes,
    /// Snapshots, in `snapshots/`.
    Snapshots,
}

impl ObjectKind {
    fn record(self) -> &'static str {
        match self {
            Self::Volumes => "volume.json",
            Self::Snapshots => "snapshot.json",
        }
    }

    /// The name of the directory that holds the objects of this kind.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Self::Volumes => "volumes",
            Self::Snapshots => "snapshots",
        }
    }
}

/// The open directories of one pool.
#[derive(Debug)]
pub struct Store {
    root: OwnedFd,
    volumes: OwnedFd,
    snapshots: OwnedFd,
    work: OwnedFd,
    trash: Trash,
}

impl Store {
    /// Opens the directories of a pool, creates the missing ones, and locks the pool for this process.
    ///
    /// # Errors
    /// `Unavailable` when another process holds the pool; otherwise the error of the failed system call.
    pub fn open_and_lock(root: OwnedFd) -> Result<Self> {
        let directory = |name: &str| open_or_create(root.as_fd(), name);
        let store = Self {
            volumes: directory("volumes")?,
            snapshots: directory("snapshots")?,
            work: directory("work")?,
            trash: Trash::new(directory("trash")?),
            root,
        };
        fs::fsync(&store.root).context(|| "sync the pool's directory")?;
        match fs::flock(&store.work, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(Error::new(
                Kind::Unavailable,
                "another orlop process serves this pool: stop it, or let this process serve another pool",
            )),
            result => result.context(|| "lock work/").map(|()| store),
        }
    }

    /// The pool's own directory.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The pool's trash.
    #[must_use]
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    fn directory(&self, kind: ObjectKind) -> BorrowedFd<'_> {
        match kind {
            ObjectKind::Volumes => self.volumes.as_fd(),
            ObjectKind::Snapshots => self.snapshots.as_fd(),
        }
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
        let path = format!("{name}/{}", kind.record());
        let read = read_file(self.directory(kind), path.as_str());
        let parsed = read.and_then(|bytes| bytes.map(|bytes| parse(&bytes)).transpose());
        parsed.context(|| format!("read {}/{path}", kind.directory()))
    }

    /// The directory of a volume or snapshot, which holds `data`.
    ///
    /// # Errors
    /// `Internal` when it is missing or not a plain directory.
    pub fn object(&self, kind: ObjectKind, name: &Name) -> Result<OwnedFd> {
        open_inside(self.directory(kind), name.as_str(), DIRECTORY)
            .context(|| format!("open {}/{name}", kind.directory()))
    }

    /// The data of a volume or snapshot, as a path-only descriptor; `None` if there is no such directory.
    ///
    /// # Errors
    /// `Internal` when it is not a plain directory.
    pub fn data(&self, kind: ObjectKind, name: &Name) -> Result<Option<OwnedFd>> {
        let path = format!("{name}/{DATA}");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match open_inside(self.directory(kind), path.as_str(), flags) {
            Err(Errno::NOENT) => Ok(None),
            result => result.map(Some).context(|| format!("open {}/{path}", kind.directory())),
        }
    }

    /// The names of all objects of a kind, unordered. Entries that orlop could not have named are skipped.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn names(&self, kind: ObjectKind) -> Result<Vec<Name>> {
        let mut names = Vec::new();
        for_each_name(self.directory(kind), |entry| names.extend(entry.parse().ok()))
            .context(|| format!("list {}", kind.directory()))?;
        Ok(names)
    }

    /// Creates an empty directory in `work/` for a new object.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn draft(&self) -> Result<Draft<'_>> {
        let nonce = nonce()?;
        fs::mkdirat(&self.work, &nonce, PRIVATE).context(|| "create a directory in work/")?;
        let opened = open_inside(&self.work, nonce.as_str(), DIRECTORY);
        match opened.context(|| format!("open work/{nonce}")) {
            Ok(dir) => Ok(Draft { store: self, nonce, dir, committed: false }),
            Err(error) => {
                let _ = fs::unlinkat(&self.work, &nonce, AtFlags::REMOVEDIR);
                Err(error)
            }
        }
    }

    /// Replaces the record of a volume. Fields of the stored record that this version does not know are kept.
    ///
    /// # Errors
    /// The error of the failed system call; the old record is in place then.
    pub fn rewrite(&self, volume: &Volume) -> Result<()> {
        let (name, record) = (&volume.id.name, ObjectKind::Volumes.record());
        let shown = || format!("write volumes/{name}/{record}");
        let dir = self.object(ObjectKind::Volumes, name)?;
        let stored = read_file(&dir, record).context(shown)?.unwrap_or_default();
        let merged = with_unknown_fields(volume, &stored).context(shown)?;
        self.swap_record(dir.as_fd(), |work, new| write_file(work, new, &merged)).context(shown)?;
        fs::fsync(&dir).context(shown).inspect_err(|_| {
            // The new record may be lost with a power failure, and the caller gets an error: restore the old one.
            let _ = self.swap_record(dir.as_fd(), |work, new| write_bytes(work, new, &stored));
        })
    }

    /// Writes a record in `work/`, where the remains of a crash are swept, and renames it into place.
    fn swap_record(
        &self,
        dir: BorrowedFd<'_>,
        write: impl FnOnce(BorrowedFd<'_>, &str) -> Result<()>,
    ) -> Result<()> {
        let new = nonce()?;
        let written = write(self.work.as_fd(), &new).and_then(|()| {
            fs::renameat(&self.work, &new, dir, ObjectKind::Volumes.record())
                .context(|| "rename the new record into place")
        });
        written.inspect_err(|_| {
            let _ = fs::unlinkat(&self.work, &new, AtFlags::empty());
        })
    }

    /// Moves an object into the trash. When this returns, the object does not exist, also after a power failure.
    ///
    /// # Errors
    /// The error of the failed system call; the object still exists then.
    pub fn discard(&self, kind: ObjectKind, name: &Name, retention: Retention) -> Result<TrashEntry> {
        let from = self.directory(kind);
        let entry = self.trash.add(from, name.as_str(), name.as_str(), retention)?;
        // Sync the new parent first: a power failure between the two syncs must not lose data that is to be kept.
        let synced =
            self.trash.sync().and_then(|()| fs::fsync(from).context(|| format!("sync {}", kind.directory())));
        // The rename may be lost with a power failure, and the caller gets an error: undo it.
        synced.inspect_err(|_| {
            let (trash, flags) = (self.trash.dir(), RenameFlags::NOREPLACE);
            let _ = fs::renameat_with(trash, &entry.directory, from, name.as_str(), flags);
        })?;
        Ok(entry)
    }

    /// Moves everything that an earlier process left in `work/` into the trash, to be removed at once.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn sweep(&self) -> Result<()> {
        let mut left = Vec::new();
        for_each_entry(self.work.as_fd(), |entry| left.push(entry.to_owned())).context(|| "list work/")?;
        for entry in &left {
            self.trash.add(self.work.as_fd(), entry.as_c_str(), "work", Retention::Until(0))?;
        }
        Ok(())
    }
}
