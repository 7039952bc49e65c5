//! Objects being made. An object becomes visible, complete, by one rename.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, RenameFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::{DIRECTORY, ObjectKind, Store, open_inside, write_file};
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{DATA, Name};

/// A directory in `work/`. Dropping it without [`Draft::commit`] removes it.
#[derive(Debug)]
pub struct Draft<'s> {
    pub(super) store: &'s Store,
    pub(super) nonce: String,
    pub(super) dir: OwnedFd,
    pub(super) committed: bool,
}

impl Draft<'_> {
    /// The draft's directory.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The data directory that the backend has made in it.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn data(&self) -> Result<OwnedFd> {
        open_inside(&self.dir, DATA, DIRECTORY).context(|| "open the new data directory")
    }

    /// Writes the record and renames the draft into place. When this returns, the object exists and survives a power
    /// failure.
    ///
    /// # Errors
    /// `Conflict` when the name is taken; otherwise the error of the failed system call. Nothing is visible then.
    pub fn commit<T: Serialize>(mut self, kind: ObjectKind, name: &Name, record: &T) -> Result<()> {
        let to = format!("{}/{name}", kind.directory());
        write_file(self.dir(), kind.record(), record).context(|| format!("write {}", kind.record()))?;
        fs::fsync(&self.dir).context(|| format!("sync work/{}", self.nonce))?;
        let parent = self.store.directory(kind);
        let flags = RenameFlags::NOREPLACE;
        match fs::renameat_with(&self.store.work, &self.nonce, parent, name.as_str(), flags) {
            Err(Errno::EXIST) => {
                return Err(Error::new(Kind::Conflict, format!("{to} already exists")));
            }
            result => result.context(|| format!("rename work/{} to {to}", self.nonce))?,
        }
        self.committed = true;
        // The rename may be lost with a power failure: undo it, so that the caller's retry starts afresh.
        fs::fsync(parent).context(|| format!("sync {}", kind.directory())).inspect_err(|_| {
            self.store.trash.add_abandoned(parent, name.as_str(), name.as_str());
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
        let removed = fs::unlinkat(&self.store.work, &self.nonce, AtFlags::REMOVEDIR);
        if removed.is_err() {
            // The remains of a copy are left to the reaper. If even this fails, the next start removes them.
            self.store.trash.add_abandoned(self.store.work.as_fd(), &self.nonce, "work");
        }
    }
}
