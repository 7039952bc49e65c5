//! Objects being made: whole or not, nobody sees them until one rename.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::{ObjectKind, Store, open_inside, write_file};
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{DATA, Name};

/// A folder in `work/`: whole or not, nobody sees it until it is settled. Dropped before, it goes.
#[derive(Debug)]
pub struct Draft<'s> {
    pub(super) store: &'s Store,
    pub(super) folder: String,
    pub(super) dir: OwnedFd,
    pub(super) committed: bool,
}

impl Draft<'_> {
    /// The draft's folder.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The data folder that the backend has made in it.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn data(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        open_inside(&self.dir, DATA, flags).context(|| "open the new data folder")
    }

    /// Writes the record and gives the draft its place: when this returns the object exists, also after a power cut.
    ///
    /// # Errors
    /// `Conflict` when the place is taken; else what the filesystem says. Nothing is visible then.
    pub fn commit<T: Serialize>(mut self, kind: ObjectKind, name: &Name, record: &T) -> Result<()> {
        write_file(self.dir(), kind.record(), record).context(|| format!("write {}", kind.record()))?;
        fs::fsync(&self.dir).context(|| format!("sync work/{}", self.folder))?;
        let place = self.store.directory(kind);
        match fs::renameat_with(&self.store.work, &self.folder, place, name.as_str(), RenameFlags::NOREPLACE)
        {
            Err(Errno::EXIST) => {
                let text = format!("{}/{name} is there already", kind.folder());
                return Err(Error::new(Kind::Conflict, text));
            }
            result => result.context(|| format!("move work/{} to {}/{name}", self.folder, kind.folder()))?,
        }
        self.committed = true;
        // It stands, but perhaps not after a power cut: take it back, so that the caller's retry starts afresh.
        fs::fsync(place).context(|| format!("sync {}", kind.folder())).inspect_err(|_| {
            self.store.trash_abandoned(place, name.as_str(), name.as_str());
        })
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for kind in [ObjectKind::Volumes, ObjectKind::Snapshots] {
            let _ = fs::unlinkat(&self.dir, kind.record(), AtFlags::empty());
        }
        let _ = fs::unlinkat(&self.dir, DATA, AtFlags::REMOVEDIR);
        let removed = fs::unlinkat(&self.store.work, &self.folder, AtFlags::REMOVEDIR);
        if removed.is_err() {
            // A copy that broke off: the reaper removes it; if even this fails, the sweep of the next start does.
            self.store.trash_abandoned(self.store.work.as_fd(), &self.folder, "work");
        }
    }
}
