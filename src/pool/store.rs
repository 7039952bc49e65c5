//! A pool's folders on disk: records, drafts and the trash. A rename makes an object exist, a rename makes it gone.
//!
//! Everything is opened relative to the folder's descriptor, by names that [`crate::volume::Name`] has checked, and
//! never through a link or across a mount.

mod draft;
mod record;

use std::ffi::CStr;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use serde::de::DeserializeOwned;

use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{DATA, Name, Snapshot, Timestamp, Volume};
pub use draft::Draft;
pub use record::replace_file;
use record::{RECORD_MAX, write_file};

/// Never out of the folder, through a link or across a mount.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Only root may look into what is not a volume's data.
const PRIVATE: Mode = Mode::RWXU;

/// The kinds of finished objects, and where they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// `volumes/`
    Volumes,
    /// `snapshots/`
    Snapshots,
}

impl ObjectKind {
    fn record(self) -> &'static str {
        match self {
            Self::Volumes => "volume.json",
            Self::Snapshots => "snapshot.json",
        }
    }

    /// The folder's name, for texts.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Volumes => "volumes",
            Self::Snapshots => "snapshots",
        }
    }
}

/// Until when the trash keeps an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retention {
    /// Seconds since 1970.
    Until(i64),
    /// Until somebody removes it by hand.
    Forever,
}

/// A folder in the trash: `<name>.<seconds since 1970, or keep>.<nonce>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trashed {
    /// The folder's name.
    pub folder: String,
    /// Until when it is kept.
    pub retention: Retention,
}

/// The open folders of one pool.
#[derive(Debug)]
pub struct Store {
    root: OwnedFd,
    volumes: OwnedFd,
    snapshots: OwnedFd,
    trash: OwnedFd,
    work: OwnedFd,
    /// What was put into the trash because it came to nothing, until somebody removes it.
    abandoned: Mutex<Vec<Trashed>>,
}

impl Store {
    /// Opens the folders of a pool, makes those that are missing, and claims the pool for this process.
    ///
    /// # Errors
    /// `Unavailable` when another process has the pool; else what the filesystem says.
    pub fn open(root: OwnedFd) -> Result<Self> {
        let folder = |name: &str| open_or_make(root.as_fd(), name);
        let store = Self {
            volumes: folder("volumes")?,
            snapshots: folder("snapshots")?,
            trash: folder("trash")?,
            work: folder("work")?,
            abandoned: Mutex::default(),
            root,
        };
        fs::fsync(&store.root).context(|| "sync the pool's folder")?;
        match fs::flock(&store.work, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(Error::new(
                Kind::Unavailable,
                "another orlop process serves this pool: stop it, or let this one serve another pool",
            )),
            result => result.context(|| "lock work/").map(|()| store),
        }
    }

    /// The pool's own folder.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The folder of what is deleted.
    #[must_use]
    pub fn trash(&self) -> BorrowedFd<'_> {
        self.trash.as_fd()
    }

    fn directory(&self, kind: ObjectKind) -> BorrowedFd<'_> {
        match kind {
            ObjectKind::Volumes => self.volumes.as_fd(),
            ObjectKind::Snapshots => self.snapshots.as_fd(),
        }
    }

    /// The record of a volume; `None`: no such record.
    ///
    /// # Errors
    /// `Internal` when it cannot be read or is not a record.
    pub fn volume(&self, name: &Name) -> Result<Option<Volume>> {
        self.record(ObjectKind::Volumes, name)
    }

    /// The record of a snapshot; `None`: no such record.
    ///
    /// # Errors
    /// `Internal` when it cannot be read or is not a record.
    pub fn snapshot(&self, name: &Name) -> Result<Option<Snapshot>> {
        self.record(ObjectKind::Snapshots, name)
    }

    fn record<T: DeserializeOwned>(&self, kind: ObjectKind, name: &Name) -> Result<Option<T>> {
        let path = format!("{name}/{}", kind.record());
        let shown = || format!("read {}/{path}", kind.folder());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match open_inside(self.directory(kind), &path, flags) {
            Err(Errno::NOENT) => return Ok(None),
            result => result.context(shown)?,
        };
        let mut bytes = Vec::with_capacity(1024);
        std::fs::File::from(file).take(RECORD_MAX).read_to_end(&mut bytes).context(shown)?;
        let record =
            serde_json::from_slice(&bytes).map_err(|error| Error::caused(Kind::Internal, shown(), error))?;
        Ok(Some(record))
    }

    /// A volume's or snapshot's data, as a path-only descriptor; `None`: no such folder.
    ///
    /// # Errors
    /// `Internal` when something else than a plain folder is there.
    pub fn data(&self, kind: ObjectKind, name: &Name) -> Result<Option<OwnedFd>> {
        let path = format!("{name}/{DATA}");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match open_inside(self.directory(kind), &path, flags) {
            Err(Errno::NOENT) => Ok(None),
            result => result.map(Some).context(|| format!("open {}/{path}", kind.folder())),
        }
    }

    /// The names of one kind, in no order. What orlop would not have named so is passed over.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn names(&self, kind: ObjectKind) -> Result<Vec<Name>> {
        let mut names = Vec::new();
        each_entry(self.directory(kind), |entry| names.extend(entry.parse().ok()))
            .context(|| format!("list {}", kind.folder()))?;
        Ok(names)
    }

    /// A new folder in `work/` that nobody sees, with nothing in it.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn draft(&self) -> Result<Draft<'_>> {
        let folder = nonce()?;
        fs::mkdirat(&self.work, &folder, PRIVATE).context(|| "make a folder in work/")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = open_inside(&self.work, &folder, flags);
        match opened.context(|| format!("open work/{folder}")) {
            Ok(dir) => Ok(Draft { store: self, folder, dir, committed: false }),
            Err(error) => {
                let _ = fs::unlinkat(&self.work, &folder, AtFlags::REMOVEDIR);
                Err(error)
            }
        }
    }

    /// Writes a changed record in place of the old one.
    ///
    /// # Errors
    /// What the filesystem says; the old record then still stands.
    pub fn rewrite(&self, volume: &Volume) -> Result<()> {
        let name = volume.id.name.as_str();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dir = open_inside(&self.volumes, name, flags).context(|| format!("open volumes/{name}"))?;
        let record = ObjectKind::Volumes.record();
        let shown = || format!("write volumes/{name}/{record}");
        let old: Option<Volume> = self.volume(&volume.id.name)?;
        self.swap_record(dir.as_fd(), volume).context(shown)?;
        fs::fsync(&dir).context(shown).inspect_err(|_| {
            // It stands, but perhaps not after a power cut: the old one comes back, as the caller is told.
            let _ = old.map(|old| self.swap_record(dir.as_fd(), &old));
        })
    }

    /// Written in `work/`, where what is left of a crash is swept, and put in place by one rename.
    fn swap_record(&self, dir: BorrowedFd<'_>, volume: &Volume) -> Result<()> {
        let new = nonce()?;
        let written = write_file(self.work.as_fd(), &new, volume).and_then(|()| {
            fs::renameat(&self.work, &new, dir, ObjectKind::Volumes.record())
                .context(|| "put the new record in place")
        });
        written.inspect_err(|_| {
            let _ = fs::unlinkat(&self.work, &new, AtFlags::empty());
        })
    }

    /// Moves an object into the trash; it is gone when this returns, also after a power cut.
    ///
    /// # Errors
    /// What the filesystem says; the object is then still there.
    pub fn discard(&self, kind: ObjectKind, name: &Name, retention: Retention) -> Result<Trashed> {
        let from = self.directory(kind);
        let trashed = self.move_to_trash(from, name.as_str(), name.as_str(), retention)?;
        // First where it is now, then where it was: what is to be kept is at no moment in neither.
        let synced = fs::fsync(&self.trash)
            .context(|| "sync trash/")
            .and_then(|()| fs::fsync(from).context(|| format!("sync {}", kind.folder())));
        // It is gone, but perhaps not after a power cut: it comes back, as the caller is told.
        synced.inspect_err(|_| {
            let _ =
                fs::renameat_with(&self.trash, &trashed.folder, from, name.as_str(), RenameFlags::NOREPLACE);
        })?;
        Ok(trashed)
    }

    /// Puts what came to nothing into the trash, for [`Store::take_abandoned`].
    fn trash_abandoned(&self, from: BorrowedFd<'_>, entry: &str, name: &str) {
        if let Ok(trashed) = self.move_to_trash(from, entry, name, Retention::Until(0)) {
            self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).push(trashed);
        }
    }

    /// What came to nothing since the last call, and is to be removed from the trash at once.
    #[must_use]
    pub fn take_abandoned(&self) -> Vec<Trashed> {
        std::mem::take(&mut *self.abandoned.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn move_to_trash(
        &self,
        from: BorrowedFd<'_>,
        entry: impl Arg,
        name: &str,
        retention: Retention,
    ) -> Result<Trashed> {
        let until = match retention {
            Retention::Until(seconds) => seconds.to_string(),
            Retention::Forever => "keep".to_owned(),
        };
        let folder = format!("{name}.{until}.{}", nonce()?);
        fs::renameat_with(from, entry, &self.trash, &folder, RenameFlags::NOREPLACE)
            .context(|| format!("move {name} into trash/"))?;
        Ok(Trashed { folder, retention })
    }

    /// What the trash holds. A folder whose name does not tell is kept for ever.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn trashed(&self) -> Result<Vec<Trashed>> {
        let mut all = Vec::new();
        each_entry(self.trash.as_fd(), |folder| {
            all.push(Trashed { folder: folder.to_owned(), retention: retention_of(folder) });
        })
        .context(|| "list trash/")?;
        Ok(all)
    }

    /// Moves whatever a former process left in `work/` into the trash, to be removed at once.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn sweep(&self) -> Result<()> {
        let mut left = Vec::new();
        each_raw_entry(self.work.as_fd(), |entry| left.push(entry.to_owned())).context(|| "list work/")?;
        for entry in &left {
            self.move_to_trash(self.work.as_fd(), entry.as_c_str(), "work", Retention::Until(0))?;
        }
        Ok(())
    }
}

/// Opens what is in a folder, never out of it, through a link or across a mount.
///
/// A rename of a part of the path, while it is walked, is answered EXDEV (the walk has ended outside) or EAGAIN: asked
/// again, the kernel says what is there now. A mount stays one however often it is asked.
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

/// Opens a private folder below `parent`, and makes it first when it is missing.
fn open_or_make(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    match fs::mkdirat(parent, name, PRIVATE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).context(|| format!("make {name}/")),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    open_inside(parent, name, flags).context(|| format!("open {name}/"))
}

/// Calls `with` for every entry of a folder that is not `.` or `..` and is UTF-8, which all our names are.
fn each_entry(dir: BorrowedFd<'_>, mut with: impl FnMut(&str)) -> Result<()> {
    each_raw_entry(dir, |entry| {
        let _ = entry.to_str().map(&mut with);
    })
}

/// Calls `with` for every entry of a folder that is not `.` or `..`.
fn each_raw_entry(dir: BorrowedFd<'_>, mut with: impl FnMut(&CStr)) -> Result<()> {
    for entry in fs::Dir::read_from(dir).context(|| "open the folder")? {
        let entry = entry.context(|| "read the folder")?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            _ => with(entry.file_name()),
        }
    }
    Ok(())
}

fn retention_of(folder: &str) -> Retention {
    // Somebody's `backup.2024.tar` is not ours to remove.
    let mut parts = folder.rsplitn(3, '.');
    let (nonce, until, name) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let is_nonce = nonce.len() == 16 && nonce.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let until = until.filter(|_| is_nonce && name.is_some_and(|name| !name.is_empty()));
    until.and_then(|seconds| seconds.parse().ok()).map_or(Retention::Forever, Retention::Until)
}

/// 16 hexadecimal digits that no other folder has.
fn nonce() -> Result<String> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .context(|| "get random bytes")?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

impl Retention {
    /// Whether it may go now.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Until(seconds) if seconds <= Timestamp::now().seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_in_the_trash_tells_until_when() {
        let nonce = "0123456789abcdef";
        assert_eq!(retention_of(&format!("pvc.1.2.1700000000.{nonce}")), Retention::Until(1_700_000_000));
        assert_eq!(retention_of(&format!("a.keep.{nonce}")), Retention::Forever);
        for foreign in ["somebody's folder", "backup.2024.tar", &format!(".1.{nonce}"), &format!("1.{nonce}")]
        {
            assert_eq!(retention_of(foreign), Retention::Forever, "{foreign}");
        }
        assert!(
            Retention::Until(0).is_over()
                && !Retention::Forever.is_over()
                && !Retention::Until(i64::MAX).is_over()
        );
    }
}
