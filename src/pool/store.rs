//! A pool's directories on disk. One rename makes an object exist, one rename removes it.
//!
//! Everything is opened relative to a directory's descriptor, by names that [`crate::volume::Name`] has checked, never
//! through a symbolic link or across a mount.

mod draft;
mod record;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::trash::TrashEntry;
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{DATA, Name, Snapshot, Volume};
pub use draft::Draft;
pub use record::{parse, read_file, replace_file};
use record::{with_unknown_fields, write_file};

/// Resolution stays inside the directory and crosses neither a link nor a mount.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Everything but a volume's data is accessible to root only.
const PRIVATE: Mode = Mode::RWXU;

/// The kinds of object in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// Volumes, in `volumes/`.
    Volumes,
    /// Snapshots, in `snapshots/`.
    Snapshots,
}

impl ObjectKind {
    pub(super) fn record(self) -> &'static str {
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
    pub(super) root: OwnedFd,
    volumes: OwnedFd,
    snapshots: OwnedFd,
    pub(super) trash: OwnedFd,
    pub(super) work: OwnedFd,
    /// Abandoned drafts awaiting removal.
    pub(super) abandoned: Mutex<Vec<TrashEntry>>,
}

impl Store {
    /// Opens the directories of a pool, creates the missing ones, and locks the pool for this process.
    ///
    /// # Errors
    /// `Unavailable` when another process holds the pool; otherwise the failed call.
    pub fn open(root: OwnedFd) -> Result<Self> {
        let directory = |name: &str| open_or_create(root.as_fd(), name);
        let store = Self {
            volumes: directory("volumes")?,
            snapshots: directory("snapshots")?,
            trash: directory("trash")?,
            work: directory("work")?,
            abandoned: Mutex::default(),
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

    pub(super) fn directory(&self, kind: ObjectKind) -> BorrowedFd<'_> {
        match kind {
            ObjectKind::Volumes => self.volumes.as_fd(),
            ObjectKind::Snapshots => self.snapshots.as_fd(),
        }
    }

    /// The record of a volume; `None`: there is none.
    ///
    /// # Errors
    /// `Unsupported` when a newer version wrote it; `Internal` when it is damaged or cannot be read.
    pub fn volume(&self, name: &Name) -> Result<Option<Volume>> {
        self.record(ObjectKind::Volumes, name)
    }

    /// The record of a snapshot; `None`: there is none.
    ///
    /// # Errors
    /// As [`Store::volume`].
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

    /// The data of a volume or snapshot, as a path-only descriptor; `None`: there is no such directory.
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
    /// The failed call.
    pub fn names(&self, kind: ObjectKind) -> Result<Vec<Name>> {
        let mut names = Vec::new();
        for_each_name(self.directory(kind), |entry| names.extend(entry.parse().ok()))
            .context(|| format!("list {}", kind.directory()))?;
        Ok(names)
    }

    /// Creates an empty directory in `work/` for a new object.
    ///
    /// # Errors
    /// The failed call.
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
    /// The failed call; the old record is in place then.
    pub fn rewrite(&self, volume: &Volume) -> Result<()> {
        let (name, record) = (&volume.id.name, ObjectKind::Volumes.record());
        let shown = || format!("write volumes/{name}/{record}");
        let dir = self.object(ObjectKind::Volumes, name)?;
        let stored = read_file(&dir, record).context(shown)?.unwrap_or_default();
        let merged = with_unknown_fields(volume, &stored).context(shown)?;
        self.swap_record(dir.as_fd(), &merged).context(shown)?;
        fs::fsync(&dir).context(shown).inspect_err(|_| {
            // The new record may be lost with a power failure, and the caller is told that it failed: restore the old one.
            if let Ok(old) = serde_json::from_slice::<serde_json::Value>(&stored) {
                let _ = self.swap_record(dir.as_fd(), &old);
            }
        })
    }

    /// Writes a record in `work/`, where the remains of a crash are swept, and renames it into place.
    fn swap_record(&self, dir: BorrowedFd<'_>, record: &impl Serialize) -> Result<()> {
        let new = nonce()?;
        let written = write_file(self.work.as_fd(), &new, record).and_then(|()| {
            fs::renameat(&self.work, &new, dir, ObjectKind::Volumes.record())
                .context(|| "rename the new record into place")
        });
        written.inspect_err(|_| {
            let _ = fs::unlinkat(&self.work, &new, AtFlags::empty());
        })
    }
}

/// Opens a path inside a directory, never outside of it, through a link or across a mount.
///
/// The kernel answers EXDEV or EAGAIN when a component is renamed during the walk (openat2(2)). The call is repeated;
/// a real mount gives the same answer each time.
fn open_inside<P: Arg + Copy>(dir: impl AsFd, path: P, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let open = || fs::openat2(&dir, path, flags, Mode::empty(), INSIDE);
    let mut opened = open();
    for _ in 0..64 {
        match opened {
            Err(Errno::XDEV | Errno::AGAIN | Errno::INTR) => opened = open(),
            _ => break,
        }
    }
    opened
}

/// Opens a private directory in `parent`; creates it if it is missing.
fn open_or_create(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    match fs::mkdirat(parent, name, PRIVATE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).context(|| format!("create {name}/")),
    }
    open_inside(parent, name, DIRECTORY).context(|| format!("open {name}/"))
}

/// Calls `with` for each UTF-8 entry of a directory except `.` and `..`. All names that orlop gives are UTF-8.
pub(super) fn for_each_name(dir: BorrowedFd<'_>, mut with: impl FnMut(&str)) -> Result<()> {
    for_each_entry(dir, |entry| {
        let _ = entry.to_str().map(&mut with);
    })
}

/// Calls `with` for each entry of a directory except `.` and `..`.
pub(super) fn for_each_entry(dir: BorrowedFd<'_>, mut with: impl FnMut(&CStr)) -> Result<()> {
    for entry in fs::Dir::read_from(dir).context(|| "open the directory")? {
        let entry = entry.context(|| "read the directory")?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            _ => with(entry.file_name()),
        }
    }
    Ok(())
}

/// A random name of 16 hexadecimal digits.
pub(super) fn nonce() -> Result<String> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .context(|| "get random bytes")?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}
