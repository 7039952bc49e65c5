//! Deletion in place, where a rename into the trash is impossible: a full xfs, or ext4 without reserved blocks, has no space
//! for it, and an object in a lower layer of an overlay cannot be renamed.
//!
//! One chmod, which needs no space, makes an object deleted: its directory gets a mode that nothing else has. The reaper
//! removes it where it is, or moves it into the trash when there is space, if its policy keeps it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::{DIRECTORY, ObjectKind, PRIVATE, Store, open_inside, parse, read_file};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::remove::Removed;
use crate::pool::dirs::for_each_name;
use crate::pool::trash::{Retention, TrashEntry};
use crate::volume::{DATA, Name, OnDelete, Volume};

/// The mode of a directory whose object is deleted: the sticky bit and no permissions.
const DELETED: Mode = Mode::SVTX;

/// The place of abandoned drafts.
pub(super) const WORK: &str = "work";

/// A directory that the reaper removes where it is, by its path in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InPlace {
    /// An object that was deleted.
    Deleted(ObjectKind, Name),
    /// An entry of `work/`.
    Draft(String),
}

impl InPlace {
    /// Parses the name of an entry to remove. `None` for the name of a directory in `trash/`, which contains no slash.
    #[must_use]
    pub fn parse(entry: &str) -> Option<Self> {
        let (place, name) = entry.split_once('/')?;
        let kinds = [ObjectKind::Volumes, ObjectKind::Snapshots];
        match kinds.into_iter().find(|kind| kind.directory() == place) {
            Some(kind) => name.parse().ok().map(|name| Self::Deleted(kind, name)),
            None => (place == WORK).then(|| Self::Draft(name.to_owned())),
        }
    }
}

impl Store {
    /// Makes an object deleted. Its directory is returned to be synced.
    pub(super) fn mark_deleted(&self, kind: ObjectKind, name: &Name) -> Result<OwnedFd> {
        let dir = self.object(kind, name)?;
        fs::fchmod(&dir, DELETED).context(|| format!("mark {}/{name} as deleted", kind.directory()))?;
        Ok(dir)
    }

    /// Takes the mark off.
    pub(super) fn unmark_deleted(dir: &OwnedFd) {
        let _ = fs::fchmod(dir, PRIVATE);
    }

    /// Whether the directory of this name belongs to an object that was deleted in place. The record is removed after the
    /// data, so that a directory of an administrator with this mode is not taken for one.
    pub(in crate::pool) fn is_deleted(&self, kind: ObjectKind, name: &Name) -> bool {
        let stat = |path: &str| fs::statat(self.directory(kind), path, AtFlags::SYMLINK_NOFOLLOW);
        self.forget_names(kind, Some(name));
        let exists = |file: &str| stat(&format!("{name}/{file}")).is_ok();
        stat(name.as_str()).is_ok_and(has_mark) && (exists(kind.record()) || !exists(DATA))
    }

    /// Refuses to create an object whose former one of the same name is still being removed.
    ///
    /// # Errors
    /// `Busy` then.
    pub fn refuse_if_deleted(&self, kind: ObjectKind, name: &Name) -> Result<()> {
        if !self.is_deleted(kind, name) {
            return Ok(());
        }
        let text = format!("{}/{name} was deleted and is still being removed: retry later", kind.directory());
        Err(Error::new(Kind::Busy, text))
    }

    /// Removes an object that was deleted in place, by `remove`, which may need several calls: the data first, then the
    /// rest. Without a record, only an empty directory is removed.
    pub(in crate::pool) fn remove_deleted(
        &self,
        kind: ObjectKind,
        name: &Name,
        remove: impl Fn(BorrowedFd<'_>, &str) -> Result<Removed>,
    ) -> Result<Removed> {
        let parent = self.directory(kind);
        let object = open_inside(parent, name.as_str(), DIRECTORY)
            .context(|| format!("open {}/{name}", kind.directory()))?;
        if fs::statat(&object, kind.record(), AtFlags::SYMLINK_NOFOLLOW).is_err() {
            let _ = fs::unlinkat(parent, name.as_str(), AtFlags::REMOVEDIR);
            return Ok(Removed { complete: true, ..Removed::default() });
        }
        let data = remove(object.as_fd(), DATA)?;
        if data.complete { remove(parent, name.as_str()) } else { Ok(data) }
    }

    /// What has to be removed: the trash, objects that were deleted in place, and drafts that could not be moved into the
    /// trash. What the creators of these drafts have frozen is thawed first.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn entries_to_remove(&self) -> Result<Vec<TrashEntry>> {
        let mut all = self.trash().entries()?;
        for kind in [ObjectKind::Volumes, ObjectKind::Snapshots] {
            let deleted = self.names(kind)?.into_iter().filter(|name| self.is_deleted(kind, name));
            all.extend(deleted.map(|name| TrashEntry::in_place(kind.directory(), name.as_str())));
        }
        let drafts = self.abandoned_drafts()?;
        all.extend(drafts.iter().map(|draft| TrashEntry::in_place(WORK, draft)));
        Ok(all)
    }

    /// The directory that holds the entries of `work/`.
    pub(in crate::pool) fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// How long the policy of an object that was deleted in place keeps it; `None` if it is to be removed now.
    ///
    /// # Errors
    /// `Unreadable` when the record is: the object is kept then.
    pub(in crate::pool) fn retention_of_deleted(
        &self,
        kind: ObjectKind,
        name: &Name,
    ) -> Result<Option<Retention>> {
        if kind == ObjectKind::Snapshots {
            return Ok(None);
        }
        let path = format!("{name}/{}", kind.record());
        let read = read_file(self.directory(kind), path.as_str());
        let bytes = read.context(|| format!("read {}/{path}", kind.directory()))?;
        // Without a record, its removal has begun.
        let Some(bytes) = bytes else { return Ok(None) };
        let volume: Volume = parse(&bytes).context(|| format!("read {}/{path}", kind.directory()))?;
        let keep = volume.policy.on_delete != OnDelete::Delete;
        Ok(keep.then(|| Retention::of(volume.policy)))
    }

    /// Moves an object that was deleted in place into the trash, as there is space again. The mark stays until the move
    /// survives a power failure: without both, the object would exist again.
    ///
    /// # Errors
    /// `NoSpace` when there is none; otherwise the error of the failed system call.
    pub(in crate::pool) fn bury(&self, kind: ObjectKind, name: &Name, keep: Retention) -> Result<TrashEntry> {
        let dir = open_inside(self.directory(kind), name.as_str(), DIRECTORY)
            .context(|| format!("open {}/{name}", kind.directory()))?;
        let entry = self.trash().add(self.directory(kind), name.as_str(), name.as_str(), keep)?;
        self.trash().sync()?;
        self.sync(kind)?;
        Self::unmark_deleted(&dir);
        Ok(entry)
    }

    /// Takes the mark off the entries of the trash that a process which has ended left marked: moved back by an
    /// administrator, they would count as deleted.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub(super) fn unmark_buried(&self) -> Result<()> {
        let trash = self.trash().dir();
        let mut marked = Vec::new();
        for_each_name(trash, |entry| {
            if fs::statat(trash, entry, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(has_mark) {
                marked.push(entry.to_owned());
            }
        })
        .context(|| "list trash/")?;
        if marked.is_empty() {
            return Ok(());
        }
        self.trash().sync()?;
        self.sync(ObjectKind::Volumes)?;
        for entry in marked {
            // Another process may have removed it.
            if let Ok(dir) = open_inside(trash, entry.as_str(), DIRECTORY) {
                Self::unmark_deleted(&dir);
            }
        }
        Ok(())
    }
}

fn has_mark(stat: fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
        && Mode::from_raw_mode(stat.st_mode) == DELETED
}

/// Whether a rename into the trash failed because there is no space for it, or because the trash has another project id or
/// is in another layer of an overlay.
pub(super) fn is_impossible(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::XDEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_a_slash_is_removed_where_it_is() {
        let name: Name = "a".parse().unwrap();
        assert_eq!(InPlace::parse("volumes/a"), Some(InPlace::Deleted(ObjectKind::Volumes, name.clone())));
        assert_eq!(InPlace::parse("snapshots/a"), Some(InPlace::Deleted(ObjectKind::Snapshots, name)));
        assert_eq!(InPlace::parse("work/0f"), Some(InPlace::Draft("0f".to_owned())));
        assert_eq!(InPlace::parse("a.0.0123456789abcdef"), None);
        assert_eq!(InPlace::parse("elsewhere/a"), None);
    }
}
