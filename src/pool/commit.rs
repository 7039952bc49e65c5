//! The renames that change the contents of a pool, each applied to the index in the same step.
//!
//! A change that provisions space checks the sum and renames under the pool's commit lock, so processes together never
//! provision more than the pool has. No fsync is done under that lock. It may wait for a reading of the whole pool when
//! events were lost or there is no inotify instance.

use std::sync::Arc;
use std::time::Duration;

use super::OpenPool;
use super::capacity::Reservation;
use super::generation;
use super::index::{Index, SnapshotEntry, VolumeEntry};
use super::locks::LockGuard;
use super::medium::Medium;
use super::object::{ObjectKey, ObjectKind};
use super::store::{Draft, Store};
use super::trash::{Retention, TrashEntry};
use crate::error::{Context as _, Kind, Result};
use crate::volume::{Name, Snapshot, Volume};

/// What waits for the commit lock, which other processes and hosts may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committer {
    /// A call, which must end before its deadline and is retried.
    Call,
    /// A job. A copy that gives up is lost, so it waits for a minute.
    Job,
}

/// How long a job waits for the commit lock.
const JOB_WAIT: Duration = Duration::from_secs(60);

impl Committer {
    fn lock(self, store: &Store) -> Result<LockGuard<ObjectKey>> {
        let wait = match self {
            // With the waits for its other locks, less than the call timeout.
            Self::Call => store.locks().wait().saturating_mul(2),
            Self::Job => JOB_WAIT,
        };
        store.locks().lock_within(ObjectKey::Commit, wait)
    }
}

/// Prepares a pool for changes, before the first one of this process.
///
/// # Errors
/// Those of [`generation::allocate`]; `Busy` when another process holds the commit lock for too long.
pub(super) fn prepare(store: &Store) -> Result<()> {
    if store.medium() == Medium::Local || generation::is_allocated(store.root()).unwrap_or(false) {
        return Ok(());
    }
    let _commit = Committer::Call.lock(store)?;
    match generation::allocate(store.root()) {
        // Nothing can be changed, and volumes can be published.
        Err(error) if error.kind() == Kind::Unavailable => Ok(()),
        allocated => allocated,
    }
}

/// How long at least the trash keeps an object that other hosts may use, in seconds: a host whose orlop was down for a while
/// may have it mounted.
pub(super) const SHARED_RETENTION: i64 = 600;

impl OpenPool {
    /// Makes a draft the volume of this record. When this returns, the volume exists and survives a power failure.
    ///
    /// # Errors
    /// `Conflict` when the name is taken; `NoSpace` when other processes have provisioned the space meanwhile; `Busy` when
    /// another process holds the commit lock for too long; otherwise the error of the failed system call. Nothing is visible
    /// then.
    pub fn commit_volume(
        self: &Arc<Self>,
        mut draft: Draft<'_>,
        volume: &Volume,
        reservation: Reservation,
        committer: Committer,
    ) -> Result<()> {
        let (kind, name) = (ObjectKind::Volumes, &volume.id.name);
        draft.write_record(kind, volume)?;
        self.provision(reservation, volume, committer, || draft.rename_to(kind, name))?;
        drop(draft);
        self.store.sync_new(kind, name).inspect_err(|_| self.announce_undone(kind, name))
    }

    /// Makes a draft the snapshot of this record. When this returns, the snapshot exists and survives a power failure.
    ///
    /// # Errors
    /// `Conflict` when the name is taken; otherwise the error of the failed system call. Nothing is visible then.
    pub fn commit_snapshot(&self, mut draft: Draft<'_>, snapshot: &Snapshot) -> Result<()> {
        let (kind, name) = (ObjectKind::Snapshots, &snapshot.id.name);
        draft.write_record(kind, snapshot)?;
        let entry = SnapshotEntry::from(snapshot);
        let rename = || draft.rename_to(kind, name);
        let update = |index: &mut Index| index.put_snapshot(name.clone(), entry);
        self.rename(kind, name, Committer::Job, rename, update)?;
        drop(draft);
        self.store.sync_new(kind, name).inspect_err(|_| self.announce_undone(kind, name))
    }

    /// Replaces the record of a volume, which uses a reservation if it has grown. Fields of the stored record that this
    /// version does not know are kept.
    ///
    /// # Errors
    /// `NoSpace` as in [`OpenPool::commit_volume`]; otherwise the error of the failed system call. The old record is in
    /// place then.
    pub fn rewrite(self: &Arc<Self>, volume: &Volume, growth: Option<Reservation>) -> Result<()> {
        self.check_changes()?;
        let mut change = self.store.change_record(volume)?;
        match growth {
            Some(reservation) => self.provision(reservation, volume, Committer::Call, || change.rename())?,
            None => {
                let (name, entry) = (&volume.id.name, VolumeEntry::from(volume));
                let update = |index: &mut Index| index.put_volume(name.clone(), entry);
                self.rename(ObjectKind::Volumes, name, Committer::Call, || change.rename(), update)?;
            }
        }
        change.sync()
    }

    /// Deletes an object. When this returns, the object does not exist, also after a power failure.
    ///
    /// # Errors
    /// The error of the failed system call; the object still exists then.
    pub fn discard(&self, kind: ObjectKind, name: &Name, retention: Retention) -> Result<TrashEntry> {
        let retention = match self.medium {
            Medium::Local => retention,
            Medium::Shared => retention.at_least(SHARED_RETENTION),
        };
        let discard = || self.store.discard(kind, name, retention);
        let update = |index: &mut Index| index.remove(kind, name);
        let discarded = self.rename(kind, name, Committer::Call, discard, update)?;
        let synced = self.store.sync_discarded(kind, name, discarded);
        synced.inspect_err(|_| self.announce_undone(kind, name))
    }

    /// Checks a reservation against the sum of all processes, renames, and turns the reservation into the volume's size.
    pub(super) fn provision(
        self: &Arc<Self>,
        reservation: Reservation,
        volume: &Volume,
        committer: Committer,
        rename: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (name, entry) = (&volume.id.name, VolumeEntry::from(volume));
        if reservation.bytes() == 0 {
            let update = |index: &mut Index| reservation.commit(index, name, entry);
            return self.rename(ObjectKind::Volumes, name, committer, rename, update);
        }
        self.check_changes()?;
        // Catch up first, so that little is left to do under the lock.
        drop(self.index()?);
        let _commit = committer.lock(&self.store).context(|| format!("provision volume {}", volume.id))?;
        let mut news = self.cache.news();
        news.catch_up(&self.store, &self.cache)?;
        self.check_provisioned_sum(reservation.bytes())?;
        self.check_in_place()?;
        news.announce(&self.store, ObjectKind::Volumes, &[name])?;
        rename()?;
        news.skip_own(ObjectKind::Volumes, name);
        reservation.commit(&mut self.cached_index(), name, entry);
        Ok(())
    }

    /// Reads an object and updates the index with the result, while nothing else updates the index. A commit in between
    /// would be undone in the index.
    pub fn read_into_index<T>(&self, read: impl FnOnce() -> T, update: impl FnOnce(&T, &mut Index)) -> T {
        let _news = self.cache.news();
        let found = read();
        update(&found, &mut self.cached_index());
        found
    }

    /// Announces to the other hosts that a change was undone, since the sync that would have made it final has failed.
    pub(super) fn announce_undone(&self, kind: ObjectKind, name: &Name) {
        if self.medium == Medium::Local {
            return;
        }
        // If this fails, the pool cannot be written. The others read everything once a minute.
        let Ok(_commit) = Committer::Call.lock(&self.store) else { return };
        let mut news = self.cache.news();
        let _ = news.announce(&self.store, kind, &[name]);
        news.read_later(kind, name);
    }

    /// Renames an object that no other call or process changes now: the caller holds its lock, or that of the copy to it.
    fn rename<T>(
        &self,
        kind: ObjectKind,
        name: &Name,
        committer: Committer,
        rename: impl FnOnce() -> Result<T>,
        update: impl FnOnce(&mut Index),
    ) -> Result<T> {
        self.rename_objects(kind, &[name], committer, rename, update)
    }

    /// Makes one rename that concerns these objects, which no other call or process changes now. Updates the index, and
    /// drops the rename's own events, so that the objects are not read again.
    pub(super) fn rename_objects<T>(
        &self,
        kind: ObjectKind,
        names: &[&Name],
        committer: Committer,
        rename: impl FnOnce() -> Result<T>,
        update: impl FnOnce(&mut Index),
    ) -> Result<T> {
        self.check_changes()?;
        // Where other hosts use the pool, changes are announced one after another.
        let _commit = match self.medium {
            Medium::Local => None,
            Medium::Shared => {
                let shown = names.first().map_or("", |name| name.as_str());
                Some(committer.lock(&self.store).context(|| format!("change {kind} {shown}"))?)
            }
        };
        let mut news = self.cache.news();
        self.check_in_place()?;
        news.announce(&self.store, kind, names)?;
        let renamed = rename()?;
        names.iter().for_each(|name| news.skip_own(kind, name));
        update(&mut self.cached_index());
        Ok(renamed)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::pool::{Pool, PoolSettings, Purpose};

    /// A host of a shared pool. Its calls wait at most so long for a lock.
    pub(in crate::pool) fn host(dir: &Path, wait: Duration) -> Arc<OpenPool> {
        let settings =
            PoolSettings { shared: true, ..PoolSettings::new("p".parse().unwrap(), dir.to_owned()) };
        Pool::new(settings, Purpose::Serve, wait, Duration::ZERO).get_or_open().unwrap()
    }

    #[test]
    fn a_call_does_not_wait_longer_than_its_deadline_for_the_change_of_another_host() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [Duration::from_millis(100); 2].map(|wait| host(dir.path(), wait));
        std::fs::create_dir_all(dir.path().join("volumes/a/data")).unwrap();
        let commit = other.store.locks().lock(ObjectKey::Commit).unwrap();
        let started = std::time::Instant::now();
        let discard = || one.discard(ObjectKind::Volumes, &"a".parse().unwrap(), Retention::Forever);
        assert_eq!(discard().unwrap_err().kind(), Kind::Busy);
        assert!(started.elapsed() < JOB_WAIT / 2, "{:?}", started.elapsed());
        drop(commit);
        discard().unwrap();
    }

    #[test]
    fn a_call_that_began_before_a_directory_was_replaced_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let settings = PoolSettings::new("p".parse().unwrap(), dir.path().to_owned());
        let open = Pool::new(settings, Purpose::Serve, Duration::ZERO, Duration::ZERO).get_or_open().unwrap();
        let (volumes, away) = (dir.path().join("volumes"), dir.path().join("away"));
        std::fs::create_dir_all(volumes.join("a/data")).unwrap();
        std::fs::rename(&volumes, &away).unwrap();
        std::fs::create_dir(&volumes).unwrap();
        let discard = || open.discard(ObjectKind::Volumes, &"a".parse().unwrap(), Retention::Forever);
        assert_eq!(discard().unwrap_err().kind(), Kind::Unavailable);
        assert!(away.join("a/data").exists());
        std::fs::remove_dir(&volumes).unwrap();
        std::fs::rename(&away, &volumes).unwrap();
        discard().unwrap();
    }
}
