//! Renaming volumes that nothing uses.

use super::Engine;
use super::locked::{as_directory, ensure_no_copy_creates};
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::object::ObjectKind;
use crate::volume::{Name, Volume, VolumeId};

impl Engine {
    /// Renames a volume within its pool.
    ///
    /// # Errors
    /// `NotFound`; `InUse` or `Busy` while anything uses it; `Conflict` when the new name is taken; `Unsupported` for an
    /// unmanaged volume. On error the volume has its old name.
    pub fn rename(&self, id: &VolumeId, to: &Name) -> Result<Volume> {
        self.rename_or_check(id, to, false).context(|| format!("rename volume {id}"))
    }

    /// Returns the volume that [`Engine::rename`] would make now.
    ///
    /// # Errors
    /// Same as [`Engine::rename`].
    pub fn check_rename(&self, id: &VolumeId, to: &Name) -> Result<Volume> {
        self.rename_or_check(id, to, true).context(|| format!("rename volume {id}"))
    }

    fn rename_or_check(&self, id: &VolumeId, to: &Name, only_check: bool) -> Result<Volume> {
        let new = VolumeId { pool: id.pool.clone(), name: to.clone() };
        if new == *id {
            return Err(Error::new(Kind::Invalid, format!("volume {id} has this name already")));
        }
        let pool = self.pool(&id.pool)?;
        let _claim = self.claims.claim(ObjectKind::Volumes, &new)?;
        // In the order of the names, so that two calls do not wait for each other.
        let (first, second) = if id.name < new.name { (id, &new) } else { (&new, id) };
        let (first, second) = (self.lock_volume_in(&pool, first)?, self.lock_volume_in(&pool, second)?);
        let (locked, target) = if first.id == *id { (first, second) } else { (second, first) };
        let volume = locked.require()?;
        if !volume.managed {
            let text = format!("volume {id} is unmanaged: rename its directory by hand");
            return Err(Error::new(Kind::Unsupported, text));
        }
        self.refuse_taken(&target)?;
        let _unused = self.lock_unused(&locked)?;
        let volume = as_directory(&new, volume);
        if only_check {
            return Ok(volume);
        }
        pool.rename_volume(&id.name, &volume)?;
        pool.usage.forget(&id.name);
        // The name of the directory counts, whatever the record says.
        let _ = pool.rewrite(&volume, None);
        Ok(volume)
    }

    /// Refuses a name for which a volume exists, or is being created or removed.
    ///
    /// # Errors
    /// `Conflict` or `Busy`.
    pub(super) fn refuse_taken(&self, target: &super::LockedVolume) -> Result<()> {
        let (pool, id) = (&target.pool, &target.id);
        ensure_no_copy_creates(pool, ObjectKind::Volumes, &id.name)?;
        pool.store.refuse_if_deleted(ObjectKind::Volumes, &id.name)?;
        let exists = match target.load() {
            Err(error) if error.kind() == Kind::Unreadable => true,
            found => found?.is_some(),
        };
        if exists {
            let text = format!("volume {id} already exists: use another name");
            return Err(Error::new(Kind::Conflict, text));
        }
        self.refuse_name_of_other_pool(id)
    }
}
