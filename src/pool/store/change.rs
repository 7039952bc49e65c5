//! Replacing the record of a volume.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{self, AtFlags};

use super::record::{read_file, with_unknown_fields, write_bytes, write_file};
use super::{ObjectKind, Store};
use crate::error::{Context as _, Result};
use crate::fs::names::{remove_name, rename};
use crate::pool::dirs::{explain_rename, nonce};
use crate::pool::locks::LockGuard;
use crate::pool::object::ObjectKey;
use crate::volume::{Name, Volume};

/// A new record of a volume, written and synced but not in place yet. Dropping it before [`RecordChange::rename`] removes
/// it.
///
/// The file is in `volumes/`, named `.<name>.<nonce>.json`: its rename out of this watched directory tells the other
/// processes that the volume has changed.
#[derive(Debug)]
pub struct RecordChange<'s> {
    store: &'s Store,
    name: Name,
    /// The volume's directory.
    dir: OwnedFd,
    file: NewRecordFile<'s>,
    /// The old record; empty if there was none.
    stored: Vec<u8>,
}

/// A file in `volumes/` with a new record. Removed on drop unless it was renamed.
#[derive(Debug)]
struct NewRecordFile<'s> {
    store: &'s Store,
    file: String,
    renamed: bool,
    _lock: LockGuard<ObjectKey>,
}

impl Store {
    /// Writes the new record of a volume, with the fields of the stored record that this version does not know.
    ///
    /// # Errors
    /// `Unreadable` when the stored record is; otherwise the error of the failed system call.
    pub fn change_record(&self, volume: &Volume) -> Result<RecordChange<'_>> {
        let name = &volume.id.name;
        let shown = || format!("write volumes/{name}/{}", ObjectKind::Volumes.record());
        let dir = self.object(ObjectKind::Volumes, name)?;
        let stored = read_file(&dir, ObjectKind::Volumes.record()).context(shown)?.unwrap_or_default();
        let merged = with_unknown_fields(volume, &stored).context(shown)?;
        let file = self.new_record_file(name).context(shown)?;
        write_file(self.directory(ObjectKind::Volumes), &file.file, &merged).context(shown)?;
        Ok(RecordChange { store: self, name: name.clone(), dir, file, stored })
    }

    /// Writes the first record of an unmanaged volume. If the change cannot be synced, the volume is unmanaged again.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn first_record(&self, volume: &Volume) -> Result<RecordChange<'_>> {
        let name = &volume.id.name;
        let shown = || format!("write volumes/{name}/{}", ObjectKind::Volumes.record());
        let dir = self.object(ObjectKind::Volumes, name)?;
        let file = self.new_record_file(name).context(shown)?;
        write_file(self.directory(ObjectKind::Volumes), &file.file, volume).context(shown)?;
        Ok(RecordChange { store: self, name: name.clone(), dir, file, stored: Vec::new() })
    }

    /// Locks a name for a new record before the file exists, so that no other process takes it for an abandoned one.
    fn new_record_file(&self, name: &Name) -> Result<NewRecordFile<'_>> {
        let nonce = nonce()?;
        let lock = self.lock_new(ObjectKey::Draft(nonce.clone()))?;
        Ok(NewRecordFile { store: self, file: format!(".{name}.{nonce}.json"), renamed: false, _lock: lock })
    }
}

impl RecordChange<'_> {
    /// Replaces the record.
    ///
    /// # Errors
    /// The error of the failed system call; the old record is in place then.
    pub fn rename(&mut self) -> Result<()> {
        self.file.rename(&self.dir).context(|| format!("write the record of volume {}", self.name))
    }

    /// Makes the change survive a power failure.
    ///
    /// # Errors
    /// The error of the failed system call. The old record is restored then, since the new one may be lost with a power
    /// failure.
    pub fn sync(self) -> Result<()> {
        fs::fsync(&self.dir).context(|| format!("sync volumes/{}", self.name)).inspect_err(|_| {
            let _ = self.restore();
        })
    }

    fn restore(&self) -> Result<()> {
        if self.stored.is_empty() {
            let removed = remove_name(self.dir.as_fd(), ObjectKind::Volumes.record(), AtFlags::empty());
            return removed.context(|| "remove the new record");
        }
        let mut file = self.store.new_record_file(&self.name)?;
        write_bytes(self.store.directory(ObjectKind::Volumes), &file.file, &self.stored)?;
        file.rename(&self.dir)
    }
}

impl NewRecordFile<'_> {
    fn rename(&mut self, dir: &OwnedFd) -> Result<()> {
        let from = self.store.directory(ObjectKind::Volumes);
        let renamed = rename(from, &self.file, dir.as_fd(), ObjectKind::Volumes.record());
        explain_rename(renamed).context(|| "move the new record into place")?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for NewRecordFile<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::unlinkat(self.store.directory(ObjectKind::Volumes), &self.file, AtFlags::empty());
        }
    }
}

/// Parses the name of a file with a new record into the volume and the nonce.
pub(in crate::pool) fn parse_new_record_name(file: &str) -> Option<(Name, &str)> {
    let (name, nonce) = file.strip_prefix('.')?.strip_suffix(".json")?.rsplit_once('.')?;
    Some((name.parse().ok()?, nonce))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_new_record_holds_its_volume() {
        let (name, nonce) = parse_new_record_name(".a.b.0123.json").unwrap();
        assert_eq!((name.as_str(), nonce), ("a.b", "0123"));
        for other in ["a.0123.json", ".a.json", ".a.0123", ".0123.json", "..0123.json"] {
            assert!(parse_new_record_name(other).is_none(), "{other}");
        }
    }
}
