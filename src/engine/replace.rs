//! Volumes whose contents are replaced by those of an archive.

use std::io::Read;

use super::Engine;
use super::archive::extract;
use super::create::finish_data;
use super::locked::LockedVolume;
use crate::archive::Reader;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::fs::unpack::{UnpackSpec, Unpacked};
use crate::pool::trash::Retention;
use crate::volume::{Timestamp, Volume, VolumeId};

impl Engine {
    /// Replaces a volume that nothing uses by a new one with the contents of an archive, and with the name, size, policy and
    /// labels of the old one, which goes to the trash as by a deletion. No process ever sees a part of the new contents, or none.
    ///
    /// # Errors
    /// `NotFound`; `InUse` or `Busy` while anything uses the volume; `Unsupported` for an unmanaged volume and for a pool
    /// that cannot exchange directories; `Unreadable` for an archive that is damaged or hostile; `OutOfRange` when it has
    /// more data than the size of the volume; `NoSpace` when the pool has no space for a second one; otherwise the error of the failed system call. On error the volume is
    /// unchanged.
    pub fn replace_from_archive<R: Read>(
        &self,
        id: &VolumeId,
        from: &mut Reader<R>,
        spec: &UnpackSpec,
        progress: &Progress,
    ) -> Result<(Volume, Unpacked)> {
        let locked = self.lock_volume(id)?;
        let old = require_replaceable(&locked)?;
        // Held until the end: nothing begins to use the old data, and no copy of it is begun.
        let _unused = self.lock_unused(&locked)?;
        let result = replace(&locked, old, from, spec, progress).context(|| format!("replace volume {id}"));
        locked.pool.reaper.add(locked.pool.store.trash().take_abandoned());
        result
    }

    /// Whether [`Engine::replace_from_archive`] would replace the volume now, whatever the archive contains.
    ///
    /// # Errors
    /// Same as [`Engine::replace_from_archive`].
    pub fn check_replace(&self, id: &VolumeId) -> Result<()> {
        let locked = self.lock_volume(id)?;
        let volume = require_replaceable(&locked)?;
        self.lock_unused(&locked)?;
        locked.pool.reserve(volume.size).map(drop)
    }
}

fn require_replaceable(locked: &LockedVolume) -> Result<Volume> {
    let (volume, id) = (locked.require()?, &locked.id);
    let why = if !volume.managed {
        "it is unmanaged: adopt it first, or replace the files in its directory by hand"
    } else if locked.pool.used().is_some() {
        "the filesystem of its pool cannot exchange directories: restore the archive into a new volume, remove the old one, \
         and rename the new one"
    } else {
        return Ok(volume);
    };
    Err(Error::new(Kind::Unsupported, format!("volume {id} is not replaced: {why}")))
}

fn replace<R: Read>(
    locked: &LockedVolume,
    old: Volume,
    from: &mut Reader<R>,
    spec: &UnpackSpec,
    progress: &Progress,
) -> Result<(Volume, Unpacked)> {
    let pool = &locked.pool;
    // The old one keeps its uid in the trash.
    let (uid, created) = (uuid::Uuid::new_v4(), Timestamp::now());
    let mut volume = Volume { uid, created, source: None, copied: None, last_backup: None, ..old };
    // Until the old data is gone, there are two.
    let _reservation = pool.reserve(volume.size)?;
    let draft = pool.draft()?;
    let unpacked = extract(pool, &draft, &mut volume, from, spec, progress)?;
    finish_data(pool, &draft, &volume)?;
    progress.check()?;
    let entry = pool.replace_volume(draft, &volume, Retention::of(volume.policy))?;
    pool.usage.forget(&volume.id.name);
    pool.reaper.add([entry]);
    Ok((volume, unpacked))
}
