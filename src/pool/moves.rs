//! Moves of whole volumes, each with its update of the index: to another name, out of the trash, and into the pool.

use std::sync::Arc;

use super::OpenPool;
use super::capacity::Reservation;
use super::commit::{Committer, SHARED_RETENTION};
use super::index::{Index, VolumeEntry};
use super::medium::Medium;
use super::object::ObjectKind;
use super::store::Draft;
use super::trash::{Retention, TrashEntry};
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{Name, Timestamp, Volume};

const KIND: ObjectKind = ObjectKind::Volumes;

impl OpenPool {
    /// Renames a volume. The caller holds the locks of both names.
    ///
    /// # Errors
    /// `Conflict` when the new name is taken; otherwise the error of the failed system call. The volume has its old name
    /// then.
    pub fn rename_volume(&self, from: &Name, volume: &Volume) -> Result<()> {
        let to = &volume.id.name;
        let rename = || {
            self.store.rename_volume(from, to)?;
            self.store.sync_volumes().inspect_err(|_| {
                let _ = self.store.rename_volume(to, from);
            })
        };
        let entry = VolumeEntry::from(volume);
        self.rename_objects(KIND, &[from, to], Committer::Call, rename, |index| {
            index.remove_volume(from);
            index.put_volume(to.clone(), entry);
        })
    }

    /// Moves an entry of the trash back, as this volume. The caller holds the locks of both.
    ///
    /// # Errors
    /// `Conflict` when the name is taken; `NoSpace` when other processes have provisioned the space meanwhile; otherwise the
    /// error of the failed system call. The volume is in the trash then.
    pub fn restore_volume(
        self: &Arc<Self>,
        entry: &TrashEntry,
        volume: &Volume,
        reservation: Reservation,
    ) -> Result<()> {
        let name = &volume.id.name;
        self.provision(reservation, volume, Committer::Call, || self.store.restore(entry, name))?;
        self.store.sync_restored(entry, name).inspect_err(|_| self.announce_undone(KIND, name))
    }

    /// Ends the retention of an entry of the trash, whose lock the caller holds, and has it removed.
    ///
    /// # Errors
    /// `Busy` while other hosts may still use it; otherwise those of [`Trash::expire`](super::trash::Trash::expire).
    pub fn expire(&self, entry: &TrashEntry) -> Result<()> {
        self.check_changes()?;
        if self.medium == Medium::Shared {
            let deleted = match entry.retention {
                Retention::For { deleted, .. } => deleted,
                Retention::Forever => self.store.trash().added(entry)?,
            };
            let left = deleted.saturating_add(SHARED_RETENTION).saturating_sub(Timestamp::now().as_second());
            if left > 0 {
                let text = format!("other hosts may still use trash/{}: retry in {left} s", entry.directory);
                return Err(Error::new(Kind::Busy, text));
            }
        }
        self.reaper.add([self.store.trash().expire(entry)?]);
        Ok(())
    }

    /// Makes a draft the volume of this record, in place of the existing one, which goes to the trash. The caller holds the
    /// locks of the volume and of its data.
    ///
    /// # Errors
    /// `Unsupported` when the filesystem exchanges no directories; otherwise the error of the failed system call. The old
    /// volume is in place then.
    pub fn replace_volume(
        &self,
        mut draft: Draft<'_>,
        volume: &Volume,
        retention: Retention,
    ) -> Result<TrashEntry> {
        let name = &volume.id.name;
        draft.write_next_record(volume)?;
        let entry = VolumeEntry::from(volume);
        let exchange = || draft.exchange(name, retention);
        let update = |index: &mut Index| index.put_volume(name.clone(), entry);
        let discarded = self.rename_objects(KIND, &[name], Committer::Job, exchange, update)?;
        drop(draft);
        self.store.sync_exchanged(name, discarded)
    }

    /// Gives an unmanaged volume its first record. The caller holds its lock.
    ///
    /// # Errors
    /// `NoSpace` as in [`OpenPool::restore_volume`]; otherwise the error of the failed system call. The volume is unmanaged
    /// then.
    pub fn adopt(self: &Arc<Self>, volume: &Volume, reservation: Reservation) -> Result<()> {
        self.store.make_private(&volume.id.name)?;
        let mut change = self.store.first_record(volume)?;
        self.provision(reservation, volume, Committer::Call, || change.rename())?;
        change.sync().context(|| format!("adopt volume {}", volume.id))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pool::commit::tests::host;

    #[test]
    fn a_host_that_looks_during_a_rename_learns_of_both_names() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [Duration::from_secs(60); 2].map(|wait| host(dir.path(), wait));
        let (from, to): (Name, Name) = ("from".parse().unwrap(), "to".parse().unwrap());
        std::fs::create_dir_all(dir.path().join("volumes/from/data")).unwrap();
        let has = |name| other.index().unwrap().volumes().contains_key(name);
        let rename = || {
            assert!(has(&from) && !has(&to), "announced, and not renamed yet");
            one.store.rename_volume(&from, &to)
        };
        one.rename_objects(KIND, &[&from, &to], Committer::Call, rename, |_| {}).unwrap();
        assert!(has(&to) && !has(&from));
    }
}
