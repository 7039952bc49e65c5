//! Changes of existing volumes: size, policy, labels; and the removal of what the copies of a command left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Engine;
use super::locked::LockedVolume;
use crate::error::{Error, Kind, Result};
use crate::pool::Reservation;
use crate::volume::{PolicyChange, Size, SizeRange, Timestamp, Volume, VolumeId};

impl Engine {
    /// Expands a volume. Does nothing if the volume is already large enough.
    ///
    /// # Errors
    /// `NotFound`; `OutOfRange` for a smaller size; `NoSpace` when the pool cannot provision the size.
    pub fn expand(&self, id: &VolumeId, range: SizeRange) -> Result<Volume> {
        let locked = self.lock_volume(id)?;
        let mut volume = locked.require()?;
        let Some(growth) = reserve_growth(&locked, &volume, range)? else { return Ok(volume) };
        let before = volume.clone();
        volume.size = range.required;
        locked.change_limits(&before, &mut volume, Some(growth))?;
        Ok(volume)
    }

    /// Changes the mutable part of a volume's policy.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for a limit that the pool cannot enforce. On error the volume is unchanged.
    pub fn modify(&self, id: &VolumeId, change: PolicyChange) -> Result<Volume> {
        let locked = self.lock_volume(id)?;
        let mut volume = locked.require()?;
        let policy = change.applied_to(volume.policy);
        if policy == volume.policy {
            return Ok(volume);
        }
        if !volume.managed {
            let text = format!("volume {id} is unmanaged and has no policy");
            return Err(Error::new(Kind::Unsupported, text));
        }
        let before = volume.clone();
        volume.policy = policy;
        locked.change_limits(&before, &mut volume, None)?;
        Ok(volume)
    }

    /// Sets the labels with a value, and removes those without.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for an unmanaged volume. On error the volume is unchanged.
    pub fn relabel(&self, id: &VolumeId, changes: &BTreeMap<String, Option<String>>) -> Result<Volume> {
        let locked = self.lock_volume(id)?;
        let mut volume = require_labels(&locked)?;
        for (key, value) in changes {
            match value {
                Some(value) => volume.labels.insert(key.clone(), value.clone()),
                None => volume.labels.remove(key),
            };
        }
        locked.pool.rewrite(&volume, None)?;
        Ok(volume)
    }

    /// Records that a backup of the volume is complete, which shows it as of `time` or later. Does nothing if the volume was
    /// replaced by another one of its name, is unmanaged, or has a later backup.
    ///
    /// # Errors
    /// `NotFound`, or another kind when the record cannot be replaced. On error the volume is unchanged.
    pub fn record_backup(&self, id: &VolumeId, uid: Uuid, time: Timestamp) -> Result<()> {
        let locked = self.lock_volume(id)?;
        let mut volume = locked.require()?;
        // A host that cannot change the pool makes backups, too.
        if locked.pool.check_changes().is_err() {
            return Ok(());
        }
        // A time in the future is from a clock that was wrong.
        let later = volume.last_backup.filter(|known| *known <= Timestamp::now());
        if !volume.managed || volume.uid != uid || later >= Some(time) {
            return Ok(());
        }
        volume.last_backup = Some(time);
        locked.pool.rewrite(&volume, None)
    }

    /// Removes what copies of this process have left behind, for a command: no thread of it does that otherwise. The rest of
    /// the trash is left alone.
    ///
    /// # Errors
    /// `Busy` when it takes longer than `timeout`; the rest remains in the trash. `Unreadable` or another kind when a
    /// removal fails.
    pub fn remove_remains(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        for pool in self.pools.iter().filter_map(|pool| Some((pool, pool.loaded()?))) {
            let (pool, open) = pool;
            if !pool.reaper().remove_queued(&open, deadline)? {
                let name = &pool.settings().name;
                let text =
                    format!("what is left of it in pool {name} is not removed yet: `orlop serve` removes it");
                return Err(Error::new(Kind::Busy, text));
            }
        }
        Ok(())
    }
}

/// Reserves the bytes by which a volume is expanded; `None` if it is large enough.
pub(super) fn reserve_growth(
    locked: &LockedVolume,
    volume: &Volume,
    range: SizeRange,
) -> Result<Option<Reservation>> {
    let id = &locked.id;
    if range.limit != 0 && range.limit < volume.size {
        let text =
            format!("volume {id} has {} and cannot shrink to {}", Size(volume.size), Size(range.limit));
        return Err(Error::new(Kind::OutOfRange, text));
    }
    if range.required <= volume.size {
        return Ok(None);
    }
    if !volume.managed {
        let text = format!("volume {id} is unmanaged and cannot be resized");
        return Err(Error::new(Kind::Unsupported, text));
    }
    locked.pool.reserve(range.required - volume.size).map(Some)
}

/// The record of a volume whose labels can be changed.
pub(super) fn require_labels(locked: &LockedVolume) -> Result<Volume> {
    let volume = locked.require()?;
    locked.pool.check_changes()?;
    if volume.managed {
        return Ok(volume);
    }
    let text = format!("volume {} is unmanaged and has no labels", locked.id);
    Err(Error::new(Kind::Unsupported, text))
}
