//! Objects being made. An object becomes visible, complete, by one rename.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::abandoned::{PAUSE, pause_to_bytes};
use super::in_place::{WORK, is_impossible};
use super::record::replace_bytes;
use super::{DIRECTORY, ObjectKind, Store, open_inside, write_file};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::names::remove_name;
use crate::fs::project::{self, Project};
use crate::pause::PauseRecord;
use crate::pool::dirs::{explain_rename, rename_new};
use crate::pool::locks::LockGuard;
use crate::pool::object::ObjectKey;
use crate::pool::trash::{Retention, TrashEntry};
use crate::volume::{DATA, Name};

/// A directory in `work/`, whose name is locked. Dropping it before [`Draft::rename_to`] removes it.
#[derive(Debug)]
pub struct Draft<'s> {
    pub(super) store: &'s Store,
    pub(super) nonce: String,
    pub(super) dir: OwnedFd,
    pub(super) committed: bool,
    /// Whether a rename failed that the server of the pool may still carry out.
    pub(super) is_uncertain: bool,
    pub(super) _lock: LockGuard<ObjectKey>,
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

    /// Writes the record and makes the draft survive a power failure.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn write_record<T: Serialize>(&self, kind: ObjectKind, record: &T) -> Result<()> {
        write_file(self.dir(), kind.record(), record).context(|| format!("write {}", kind.record()))?;
        fs::fsync(&self.dir).context(|| format!("sync work/{}", self.nonce))
    }

    /// Records what is about to be frozen, on stable storage.
    ///
    /// # Errors
    /// `InUse` when so many containers are to be paused that the record would be too large; otherwise the error of the failed
    /// system call.
    pub fn write_pause(&self, record: &PauseRecord) -> Result<()> {
        let write = || replace_bytes(self.dir(), PAUSE, &pause_to_bytes(record)?);
        write().context(|| format!("write work/{}/{PAUSE}", self.nonce))
    }

    /// Removes that record, when nothing is frozen any more.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn remove_pause(&self) -> Result<()> {
        let removed = remove_name(self.dir(), PAUSE, AtFlags::empty());
        removed.context(|| format!("remove work/{}/{PAUSE}", self.nonce))
    }

    /// Renames the draft into place: the object exists.
    ///
    /// # Errors
    /// `Conflict` when the name is taken; otherwise the error of the failed system call. Nothing is visible then.
    pub fn rename_to(&mut self, kind: ObjectKind, name: &Name) -> Result<()> {
        let to = format!("{}/{name}", kind.directory());
        let taken = || {
            Error::new(Kind::Conflict, format!("{to} already exists: retry to get it, or use another name"))
        };
        let (from, parent) = (self.store.work.as_fd(), self.store.directory(kind));
        let renamed = rename_new(from, self.nonce.as_str(), parent, name.as_str());
        match renamed {
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                self.store.refuse_if_deleted(kind, name)?;
                return Err(taken());
            }
            renamed => {
                self.is_uncertain = renamed.is_err_and(|errno| !is_impossible(errno));
                explain_rename(renamed).context(|| format!("move work/{} to {to}", self.nonce))?;
            }
        }
        self.committed = true;
        Ok(())
    }
}

impl Draft<'_> {
    /// Removes an empty volume that was not made; false if something is left.
    fn remove(&self) -> bool {
        // By its name only: it may be an object by now, and be known to others.
        if self.is_uncertain {
            return false;
        }
        for kind in [ObjectKind::Volumes, ObjectKind::Snapshots] {
            let _ = fs::unlinkat(&self.dir, kind.record(), AtFlags::empty());
        }
        let _ = fs::unlinkat(&self.dir, PAUSE, AtFlags::empty());
        let _ = fs::unlinkat(&self.dir, DATA, AtFlags::REMOVEDIR);
        remove_name(self.store.work(), &self.nonce, AtFlags::REMOVEDIR).is_ok()
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if self.remove() {
            if let Some(Project { id, is_inherited: false }) = project::of(self.dir()) {
                project::clear_limits(self.store.root(), id);
            }
        } else {
            // The remains of a copy are left to the reaper.
            let work = self.store.work.as_fd();
            let moved = self.store.trash.add(work, self.nonce.as_str(), WORK, Retention::seconds(0));
            // Without space for the move, they are removed where they are.
            let left = moved.unwrap_or_else(|_| TrashEntry::in_place(WORK, &self.nonce));
            self.store.trash.add_abandoned(left);
        }
    }
}
