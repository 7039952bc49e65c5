//! Volumes become smaller, at most by what they do not use. No protocol asks for that, only a command.

use std::os::fd::AsFd as _;
use std::time::Duration;

use super::Engine;
use super::health::used;
use super::locked::LockedVolume;
use crate::backend::BackendKind;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::object::ObjectKind;
use crate::volume::{Size, Volume, VolumeId};

/// How long a call waits for the measurement of a volume whose space the kernel does not count.
const MEASURE: Duration = Duration::from_secs(2);

impl Engine {
    /// Makes a volume smaller, also while it is in use; `None` while its usage is being measured: then the call is to be
    /// repeated. What programs write meanwhile counts against the new size.
    ///
    /// # Errors
    /// `NotFound`; `OutOfRange` for a size that is not smaller, or below what the volume uses; `Unsupported` for an unmanaged
    /// volume. On error the volume is unchanged.
    pub fn shrink(&self, id: &VolumeId, size: u64) -> Result<Option<Volume>> {
        let locked = self.lock_volume(id)?;
        let Some(mut volume) = check(&locked, size)? else { return Ok(None) };
        let before = volume.clone();
        volume.size = size;
        // The record first: after a crash, programs have more space than it says, and not less.
        locked.pool.rewrite(&volume, None)?;
        let changed = locked.change_limits(&before, &mut volume, None);
        if changed.is_err() {
            locked.pool.rewrite(&before, None)?;
        }
        changed?;
        Ok(Some(volume))
    }

    /// Returns the volume that [`Engine::shrink`] would change now.
    ///
    /// # Errors
    /// Same as [`Engine::shrink`].
    pub fn check_shrink(&self, id: &VolumeId, size: u64) -> Result<Option<Volume>> {
        check(&self.lock_volume(id)?, size)
    }
}

/// The volume, if it can have this size.
fn check(locked: &LockedVolume, size: u64) -> Result<Option<Volume>> {
    let (volume, id) = (locked.require()?, &locked.id);
    locked.pool.check_changes()?;
    if !volume.managed {
        return Err(Error::new(Kind::Unsupported, format!("volume {id} is unmanaged and cannot be resized")));
    }
    if size == 0 || size >= volume.size {
        let text = match volume.size {
            0 => format!("volume {id} has no size: leave out --shrink to give it one"),
            found => format!("volume {id} has {}, and {} is not a smaller size", Size(found), Size(size)),
        };
        return Err(Error::new(Kind::OutOfRange, text));
    }
    let Some(used) = used_now(locked, &volume)? else { return Ok(None) };
    if used > size {
        let (used, size) = (Size(used), Size(size));
        let text =
            format!("volume {id} uses {used}, more than {size}: remove files, or choose a larger size");
        return Err(Error::new(Kind::OutOfRange, text));
    }
    Ok(Some(volume))
}

/// The bytes that a volume uses; `None` while they are being measured.
fn used_now(locked: &LockedVolume, volume: &Volume) -> Result<Option<u64>> {
    let (pool, id) = (&locked.pool, &locked.id);
    // The counters of btrfs are those of the last commit.
    if pool.backend.kind() == BackendKind::Btrfs {
        let synced = rustix::fs::syncfs(pool.store.directory(ObjectKind::Volumes).as_fd());
        synced.context(|| format!("sync the filesystem of volume {id}"))?;
    }
    let (used, _) = used(pool, volume, MEASURE)?;
    match pool.usage.failure(&id.name) {
        Some(reason) if used.is_none() => {
            let text = format!("volume {id} cannot be measured: {reason}");
            Err(Error::new(Kind::Busy, text))
        }
        Some(_) | None => Ok(used),
    }
}
