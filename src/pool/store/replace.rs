//! Replacing a volume by a draft: the two exchange their places by one rename.

use rustix::fs::{RenameFlags, renameat_with};
use rustix::io::Errno;

use super::record::{read_file, with_unknown_fields};
use super::{Discarded, Draft, ObjectKind, Store};
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::dirs::{explain_rename, rename_new};
use crate::pool::object::ObjectKey;
use crate::pool::trash::{Retention, TrashEntry};
use crate::volume::{Name, Volume};

const KIND: ObjectKind = ObjectKind::Volumes;

impl Draft<'_> {
    /// Writes the record of the volume that replaces the existing one of its name, with the fields of that one's record that
    /// this version does not know.
    ///
    /// # Errors
    /// `Unreadable` when the stored record is; otherwise the error of the failed system call.
    pub fn write_next_record(&self, volume: &Volume) -> Result<()> {
        let old = self.store.object(KIND, &volume.id.name)?;
        let stored = read_file(&old, KIND.record());
        let next = stored.and_then(|stored| with_unknown_fields(volume, &stored.unwrap_or_default()));
        self.write_record(KIND, &next.context(|| format!("read the record of volume {}", volume.id))?)
    }

    /// Exchanges the draft with the existing volume of this name, which is in the trash then. The draft waits in the trash:
    /// a crash leaves the old data in the volume or in the trash, for as long as its policy says.
    ///
    /// # Errors
    /// `Unsupported` when the filesystem exchanges no directories; otherwise the error of the failed system call. The old
    /// volume is in place then.
    pub fn exchange(&mut self, name: &Name, retention: Retention) -> Result<Discarded> {
        let entry = TrashEntry::new(name.as_str(), retention)?;
        let lock = self.store.lock_new(ObjectKey::Trash(entry.directory.clone()))?;
        let (work, trash) = (self.store.work(), self.store.trash.dir());
        let moved = self.store.trash.add_as(work, self.nonce.as_str(), &entry);
        explain_rename(moved).context(|| format!("move work/{} into trash/", self.nonce))?;
        match self.store.exchange(name, &entry) {
            Ok(()) => self.committed = true,
            Err(error) => {
                // If this fails, too, the entry stays in the trash, for as long as that keeps the volume.
                self.committed = rename_new(trash, entry.directory.as_str(), work, &self.nonce).is_err();
                return Err(error);
            }
        }
        Ok(Discarded { entry, marked: None, _lock: lock })
    }
}

impl Store {
    /// Exchanges a volume with an entry of the trash.
    fn exchange(&self, name: &Name, entry: &TrashEntry) -> Result<()> {
        let (trash, volumes) = (self.trash.dir(), self.directory(KIND));
        let exchanged = renameat_with(trash, &entry.directory, volumes, name.as_str(), RenameFlags::EXCHANGE);
        match exchanged {
            Err(Errno::INVAL | Errno::NOSYS) => {
                let text = "the filesystem of the pool cannot exchange directories: restore the archive into a new volume, \
                            remove the old one, and rename the new one";
                Err(Error::new(Kind::Unsupported, text))
            }
            exchanged => explain_rename(exchanged).context(|| format!("replace volumes/{name}")),
        }
    }

    /// Makes [`Draft::exchange`] survive a power failure.
    ///
    /// # Errors
    /// The error of the failed system call. The old volume is in place again then, and the new one is to be removed.
    pub fn sync_exchanged(&self, name: &Name, discarded: Discarded) -> Result<TrashEntry> {
        let Discarded { entry, marked: _, _lock } = discarded;
        self.trash.sync().and_then(|()| self.sync(KIND)).inspect_err(|_| {
            if self.exchange(name, &entry).is_ok() {
                let moved =
                    self.trash.add(self.trash.dir(), entry.directory.as_str(), "work", Retention::seconds(0));
                moved.into_iter().for_each(|new| self.trash.add_abandoned(new));
            }
        })?;
        Ok(entry)
    }
}
