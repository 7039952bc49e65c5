//! What a frontend tells about a volume by name, and the deletion of a volume that is mounted at the frontend's own targets.

use std::fmt;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
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

    /// Returns a volume with its usage, its users, its snapshots and its symptoms. Mounts below `targets` are the frontend's own.
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
        let OwnAndOthers { own, others } = separate(users, targets);
        Ok(Described {
            used: self.recent_usage(&pool, &volume)?,
            users: others.iter().map(ToString::to_string).collect(),
            targets: own,
            snapshots: snapshots_of(&pool, id),
            health: self.health(id, None)?.into_iter().map(|symptom| symptom.message).collect(),
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
        let OwnAndOthers { own, others } = separate(users, targets);
        refuse_while_used(id, &others)?;
        for target in own {
            let _target = self.lock_target(&target)?;
            unmount_and_remove(&id.name, &target).context(|| format!("unpublish volume {id}"))?;
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

/// The mounts of a frontend, and the users besides them.
pub(super) struct OwnAndOthers {
    /// The frontend's own targets.
    pub(super) own: Vec<PathBuf>,
    /// Anything else that uses the volume.
    pub(super) others: Vec<User>,
}

/// Separates the mounts that this process, or an earlier one, made in this mount namespace below `targets`. Copies that
/// propagation has made of them, such as in a container that has the host's file tree, are no users: they end with them.
pub(super) fn separate(users: Vec<User>, targets: &Path) -> OwnAndOthers {
    let is_own = |user: &User| user.pid.is_none() && user.target.starts_with(targets);
    let (own, mut others): (Vec<_>, Vec<_>) = users.into_iter().partition(is_own);
    // A container that uses the volume has it somewhere else, and may have let it receive events.
    let is_copy = |user: &User, own: &User| {
        own.group.is_some() && own.group == user.group && own.target.file_name() == user.target.file_name()
    };
    others.retain(|user| !own.iter().any(|own| is_copy(user, own)));
    OwnAndOthers { own: own.into_iter().map(|user| user.target).collect(), others }
}

/// # Errors
/// `InUse`, naming a user.
pub(super) fn refuse_while_used(volume: &dyn fmt::Display, users: &[User]) -> Result<()> {
    let Some(user) = users.first() else { return Ok(()) };
    let more = if users.len() > 1 { format!(" and {} more", users.len() - 1) } else { String::new() };
    let text = format!("volume {volume} is in use by {user}{more}: stop it and retry");
    Err(Error::new(Kind::InUse, text))
}

fn snapshots_of(pool: &OpenPool, id: &VolumeId) -> Vec<Name> {
    let is_of = |entry: &SnapshotEntry| matches!(entry, SnapshotEntry::Of { volume, .. } if volume == id);
    let index = pool.cached_index();
    let found = index.snapshots().iter().filter(|(_, entry)| is_of(entry));
    found.map(|(name, _)| name.clone()).collect()
}
