//! What a frontend tells about a volume by name, and the deletion of a volume that is mounted at the frontend's own targets.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::publish::unmount_and_remove;
use super::request::Described;
use super::source::reopen;
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::users::User;
use crate::pool::object::ObjectKind;
use crate::pool::{OpenPool, SnapshotEntry};
use crate::volume::{Name, PoolName, Volume, VolumeId};

/// Longest wait for the first measurement of a volume: a frontend describes volumes often, and a later call has the result.
const FIRST_MEASUREMENT: Duration = Duration::from_millis(20);

impl Engine {
    /// The names of a pool's volumes. Inline volumes and names that are digests are left out: no person uses them.
    ///
    /// # Errors
    /// `Unavailable` if the pool is.
    pub fn names(&self, pool: &PoolName) -> Result<Vec<Name>> {
        let pool = self.pool(pool)?;
        let index = pool.index()?;
        let named = index.volumes().iter().filter(|(name, entry)| name.is_plain() && !entry.ephemeral);
        Ok(named.map(|(name, _)| name.clone()).collect())
    }

    /// Returns a volume with its usage, its users and its snapshots. Mounts below `targets` are the frontend's own.
    ///
    /// # Errors
    /// `NotFound`, also for an inline volume; `Unavailable` if its pool is; `Internal` if the processes cannot be listed.
    pub fn describe(&self, id: &VolumeId, targets: &Path) -> Result<Described> {
        let pool = self.pool(&id.pool)?;
        let volume = self.require_without_lock(&pool, id)?;
        if volume.ephemeral {
            return Err(super::locked::not_found(id));
        }
        let users = self.users_of_volume(&pool, id)?;
        let (own, others): (Vec<_>, Vec<_>) = users.into_iter().partition(|user| is_own(user, targets));
        Ok(Described {
            used: self.recent_usage(&pool, &volume)?,
            users: others.iter().map(ToString::to_string).collect(),
            targets: own.into_iter().map(|user| user.target).collect(),
            snapshots: snapshots_of(&pool, id),
            volume,
        })
    }

    /// Deletes a volume as [`Engine::remove`] does, although it is mounted below `targets`. Those mounts are removed first,
    /// unless anything else uses the volume.
    ///
    /// # Errors
    /// Same as [`Engine::remove`].
    pub fn remove_published(&self, id: &VolumeId, targets: &Path) -> Result<()> {
        let (locked, volume) = self.lock_managed(id)?;
        let users = self.users_of_volume(&locked.pool, id)?;
        let (own, others): (Vec<_>, Vec<_>) = users.into_iter().partition(|user| is_own(user, targets));
        if let Some(user) = others.first() {
            let more =
                if others.len() > 1 { format!(" and {} more", others.len() - 1) } else { String::new() };
            let text = format!("volume {id} is in use by {user}{more}: stop it and retry");
            return Err(Error::new(Kind::InUse, text));
        }
        for user in own {
            let _target = self.lock_target(&user.target)?;
            unmount_and_remove(&id.name, &user.target).context(|| format!("unpublish volume {id}"))?;
        }
        self.delete_loaded(&locked, &volume)
    }

    fn users_of_volume(&self, pool: &OpenPool, id: &VolumeId) -> Result<Vec<User>> {
        match pool.store.data(ObjectKind::Volumes, &id.name)? {
            Some(data) => self.users.of(data.as_fd()).context(|| format!("find the users of volume {id}")),
            None => Ok(Vec::new()),
        }
    }

    /// The bytes that a volume takes, if they are known. Starts a measurement when the last one is old.
    fn recent_usage(&self, pool: &Arc<OpenPool>, volume: &Volume) -> Result<Option<u64>> {
        let name = &volume.id.name;
        let Some(data) = pool.store.data(ObjectKind::Volumes, name)? else { return Ok(None) };
        let object = pool.store.object(ObjectKind::Volumes, name)?;
        let used = pool.backend.used(object.as_fd(), &volume.backend);
        match used.context(|| format!("read the usage of volume {}", volume.id))? {
            Some(used) => Ok(Some(used.bytes)),
            None => {
                let measured = pool.usage.measure(name, reopen(data.as_fd())?, FIRST_MEASUREMENT)?;
                Ok(measured.map(|usage| usage.bytes))
            }
        }
    }
}

/// Whether a mount is one that this process, or an earlier one, made in this mount namespace below `targets`.
fn is_own(user: &User, targets: &Path) -> bool {
    user.pid.is_none() && user.target.starts_with(targets)
}

fn snapshots_of(pool: &OpenPool, id: &VolumeId) -> Vec<Name> {
    let is_of = |entry: &SnapshotEntry| matches!(entry, SnapshotEntry::Of(volume) if volume == id);
    let index = pool.cached_index();
    let found = index.snapshots().iter().filter(|(_, entry)| is_of(entry));
    found.map(|(name, _)| name.clone()).collect()
}
