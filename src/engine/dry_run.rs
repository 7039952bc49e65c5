//! Whether changes would succeed now, for commands with `--dry-run`. Each check runs the part of its change that refuses.

use super::Engine;
use super::create::{check_same, size_of_copy};
use super::edit::{require_labels, reserve_growth};
use super::locked::{check_limit, ensure_no_copy_creates};
use super::request::CreateVolume;
use crate::error::Result;
use crate::pool::object::ObjectKind;
use crate::volume::{Name, SizeRange, Volume, VolumeId};

impl Engine {
    /// Whether [`Engine::create`] would create the volume now; false if it exists already.
    ///
    /// # Errors
    /// Same as [`Engine::create`].
    pub fn check_create(&self, request: &CreateVolume) -> Result<bool> {
        let pool = self.requested_pool(request.pool.as_ref())?.get_or_open()?;
        let id = VolumeId { pool: pool.settings.name.clone(), name: Name::of(&request.name) };
        let locked = self.lock_volume_in(&pool, &id)?;
        ensure_no_copy_creates(&pool, ObjectKind::Volumes, &id.name)?;
        if let Some(found) = locked.load()? {
            return check_same(&found, request).map(|()| false);
        }
        check_limit(&pool, request.policy)?;
        pool.store.refuse_if_deleted(ObjectKind::Volumes, &id.name)?;
        let size = match &request.source {
            None => request.size.required,
            Some(source) => {
                let (_, size, _locks) = self.find_source(source, &locked)?;
                size_of_copy(&id, request, source, size)?
            }
        };
        pool.reserve(size).map(|_| true)
    }

    /// Returns the volume that [`Engine::expand`] would expand now.
    ///
    /// # Errors
    /// Same as [`Engine::expand`].
    pub fn check_expand(&self, id: &VolumeId, range: SizeRange) -> Result<Volume> {
        let locked = self.lock_volume(id)?;
        let volume = locked.require()?;
        reserve_growth(&locked, &volume, range).map(|_| volume)
    }

    /// Whether [`Engine::relabel`] would change the labels now.
    ///
    /// # Errors
    /// Same as [`Engine::relabel`].
    pub fn check_relabel(&self, id: &VolumeId) -> Result<()> {
        require_labels(&self.lock_volume(id)?).map(drop)
    }

    /// Whether [`Engine::remove`] would delete the volume now.
    ///
    /// # Errors
    /// Same as [`Engine::remove`].
    pub fn check_removable(&self, id: &VolumeId) -> Result<()> {
        let (locked, _) = self.lock_managed(id)?;
        self.lock_unused(&locked).map(drop)
    }
}
