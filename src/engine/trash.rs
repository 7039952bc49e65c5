//! Deleted volumes that are still in the trash: listed, and restored.

use super::Engine;
use super::locked::as_directory;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::locks::Mode;
use crate::pool::object::{ObjectKey, ObjectKind};
use crate::pool::trash::{Retention, TrashEntry};
use crate::volume::{Name, PoolName, Timestamp, Volume, VolumeId};

/// A deleted volume.
#[derive(Debug)]
pub struct Trashed {
    /// The id that it had.
    pub id: VolumeId,
    /// The name of its directory in `trash/`.
    pub entry: String,
    /// Its record, or why that cannot be read.
    pub record: Result<Volume>,
    /// When it was deleted, if its entry says that.
    pub deleted: Option<Timestamp>,
    /// Until when it is kept.
    pub kept: Kept,
}

/// How long the trash keeps a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Until an administrator removes it.
    Forever,
    /// Until this time.
    Until(Timestamp),
    /// Not any more: it is being removed, or will be.
    Due,
}

impl Kept {
    fn of(retention: Retention, now: Timestamp) -> Self {
        let Retention::For { deleted, seconds } = retention else { return Self::Forever };
        let until = deleted.saturating_add(seconds);
        // What is not kept at all is removed at once, whatever the clock says.
        if seconds == 0 || until <= now.as_second() {
            return Self::Due;
        }
        // Later than any calendar.
        Timestamp::from_second(until).map_or(Self::Forever, Self::Until)
    }
}

impl Engine {
    /// The volumes in the trash of a pool, ordered by name and then by the time of their deletion, the last one first.
    ///
    /// # Errors
    /// `Unavailable` if the pool is; the error of the system call when the trash cannot be listed.
    pub fn trash(&self, pool: &PoolName) -> Result<Vec<Trashed>> {
        let (pool, now) = (self.pool(pool)?, Timestamp::now());
        let mut found = Vec::new();
        let listed = pool.store.trash().entries();
        for entry in listed.context(|| format!("list the trash of pool {}", pool.settings.name))? {
            let Some(name) = entry.object() else { continue };
            let Some(record) = pool.store.trashed_volume(&entry).transpose() else { continue };
            let deleted = match entry.retention {
                Retention::For { deleted, .. } => Timestamp::from_second(deleted).ok(),
                Retention::Forever => None,
            };
            let id = VolumeId { pool: pool.settings.name.clone(), name };
            let kept = Kept::of(entry.retention, now);
            found.push(Trashed { id, entry: entry.directory, record, deleted, kept });
        }
        found.sort_by(|a, b| (&a.id, b.deleted, &a.entry).cmp(&(&b.id, a.deleted, &b.entry)));
        Ok(found)
    }

    /// Has a volume in the trash removed, whatever its retention: [`Engine::remove_remains`] removes it in this process.
    ///
    /// # Errors
    /// `NotFound` when the trash has no such entry; `Busy` while another process removes it, or other hosts may use it.
    pub fn expire(&self, pool: &PoolName, entry: &str) -> Result<()> {
        let pool = self.pool(pool)?;
        let busy = || Error::new(Kind::Busy, format!("trash/{entry} is being removed or restored"));
        let key = ObjectKey::Trash(entry.to_owned());
        let _lock = pool.store.locks().try_lock(key, Mode::Exclusive)?.ok_or_else(busy)?;
        let found = pool.store.trash().entries()?.into_iter().find(|found| found.directory == entry);
        let gone = || Error::new(Kind::NotFound, format!("trash/{entry} does not exist any more"));
        pool.expire(&found.ok_or_else(gone)?)
    }

    /// Moves a volume out of the trash, under this name. It is not a volume of one pod any more.
    ///
    /// # Errors
    /// `NotFound` when the trash has no such entry; `Conflict` when the name is taken, or the entry is not kept any more;
    /// `NoSpace` when the pool cannot provision its size; `Unreadable` when its record is.
    pub fn undelete(&self, pool: &PoolName, entry: &str, to: &Name) -> Result<Volume> {
        self.undelete_or_check(pool, entry, to, false).context(|| format!("restore volume {pool}/{to}"))
    }

    /// Returns the volume that [`Engine::undelete`] would make now.
    ///
    /// # Errors
    /// Same as [`Engine::undelete`].
    pub fn check_undelete(&self, pool: &PoolName, entry: &str, to: &Name) -> Result<Volume> {
        self.undelete_or_check(pool, entry, to, true).context(|| format!("restore volume {pool}/{to}"))
    }

    fn undelete_or_check(&self, pool: &PoolName, entry: &str, to: &Name, only_check: bool) -> Result<Volume> {
        let pool = self.pool(pool)?;
        let id = VolumeId { pool: pool.settings.name.clone(), name: to.clone() };
        let _claim = self.claims.claim(ObjectKind::Volumes, &id)?;
        let target = self.lock_volume_in(&pool, &id)?;
        self.refuse_taken(&target)?;
        let key = ObjectKey::Trash(entry.to_owned());
        let removed = || Error::new(Kind::Conflict, format!("trash/{entry} is being removed"));
        let _lock = pool.store.locks().try_lock(key, Mode::Exclusive)?.ok_or_else(removed)?;
        let gone = || Error::new(Kind::NotFound, format!("trash/{entry} does not exist any more"));
        let entries = pool.store.trash().entries()?;
        let entry: TrashEntry =
            entries.into_iter().find(|found| found.directory == entry).ok_or_else(gone)?;
        // The reaper may have removed a part of it.
        if Kept::of(entry.retention, Timestamp::now()) == Kept::Due {
            return Err(removed());
        }
        let stored = pool.store.trashed_volume(&entry)?.ok_or_else(gone)?;
        let was_of_a_pod = stored.ephemeral;
        let volume = Volume { ephemeral: false, ..as_directory(&id, stored) };
        let reservation = pool.reserve(volume.size)?;
        if only_check {
            return Ok(volume);
        }
        pool.restore_volume(&entry, &volume, reservation)?;
        match pool.rewrite(&volume, None) {
            Err(error) if was_of_a_pod => {
                let text = "it is restored, but its record still says that it is deleted with its pod";
                Err(error).context(|| text)
            }
            // The name of the directory counts, whatever the record says.
            Ok(()) | Err(_) => Ok(volume),
        }
    }
}
