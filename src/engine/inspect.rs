//! Volumes as their records on disk describe them. The index is not used, since a command needs each record only once.

use std::os::fd::AsFd as _;

use super::Engine;
use super::cost::has_cheap_snapshots;
use super::locked::{not_found, read};
use super::request::{Inspected, StoredSnapshot, StoredVolume};
use super::snapshot;
use crate::backend::LimitSupport;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::OpenPool;
use crate::pool::object::ObjectKind;
use crate::volume::{Enforced, Limit, Name, PoolName, Snapshot, Volume, VolumeId};

impl Engine {
    /// Reads the records of the volumes of a pool, ordered by name. A record that cannot be read affects only itself.
    ///
    /// # Errors
    /// `Unavailable` if the pool is; the error of the system call when its volumes cannot be listed.
    pub fn records(&self, pool: &PoolName) -> Result<Vec<StoredVolume>> {
        let pool = self.pool(pool)?;
        let mut names = pool.store.names(ObjectKind::Volumes)?;
        names.sort_unstable();
        let stored = names.into_iter().filter_map(|name| {
            let id = VolumeId { pool: pool.settings.name.clone(), name };
            let record = read(&pool, &id).transpose()?;
            Some(StoredVolume { id, record })
        });
        Ok(stored.collect())
    }

    /// Reads the records of the snapshots of a pool, as [`Engine::records`] does.
    ///
    /// # Errors
    /// Same as [`Engine::records`].
    pub fn snapshot_records(&self, pool: &PoolName) -> Result<Vec<StoredSnapshot>> {
        let pool = self.pool(pool)?;
        let mut names = pool.store.names(ObjectKind::Snapshots)?;
        names.sort_unstable();
        let stored = names.into_iter().filter_map(|name| {
            let id = VolumeId { pool: pool.settings.name.clone(), name };
            let record = snapshot::read(&pool, &id).transpose()?;
            let is_left = |found: &Snapshot| pool.is_left_of_group(found).unwrap_or(false);
            if record.as_ref().is_ok_and(is_left) {
                return None;
            }
            Some(StoredSnapshot { id, record })
        });
        Ok(stored.collect())
    }

    /// Returns the id of the volume with this name.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several pools have one; `Unavailable` when a pool is, since it may have one.
    pub fn find(&self, name: &Name) -> Result<VolumeId> {
        self.find_in_pools("volume", name, |pool, id| Ok(read(pool, id)?.is_some()))
    }

    /// Returns the id of the snapshot with this name.
    ///
    /// # Errors
    /// Same as [`Engine::find`].
    pub fn find_snapshot(&self, name: &Name) -> Result<VolumeId> {
        self.find_in_pools("snapshot", name, |pool, id| Ok(pool.store.snapshot(&id.name)?.is_some()))
    }

    fn find_in_pools(
        &self,
        object: &str,
        name: &Name,
        exists: impl Fn(&OpenPool, &VolumeId) -> Result<bool>,
    ) -> Result<VolumeId> {
        let mut found = Vec::new();
        for pool in &self.pools {
            let pool = pool
                .get_or_open()
                .context(|| format!("find {object} {name}: name its pool, as <pool>/{name}, or retry"))?;
            let id = VolumeId { pool: pool.settings.name.clone(), name: name.clone() };
            // An object whose record cannot be read exists.
            if exists(&pool, &id).unwrap_or(true) {
                found.push(id);
            }
        }
        found.sort_unstable();
        match &found[..] {
            [] => Err(Error::new(Kind::NotFound, format!("{object} {name} does not exist"))),
            [id] => Ok(id.clone()),
            several => {
                let ids: Vec<_> = several.iter().map(ToString::to_string).collect();
                let text = format!("several pools have a {object} {name}: name one of {}", ids.join(", "));
                Err(Error::new(Kind::Invalid, text))
            }
        }
    }

    /// Returns a volume with its data directory and its users. Reads no other record.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` if its pool is; `Unreadable` if its record is; `Internal` if the processes cannot be
    /// listed.
    pub fn inspect(&self, id: &VolumeId) -> Result<Inspected> {
        let pool = self.pool(&id.pool)?;
        let volume = read(&pool, id)?.ok_or_else(|| not_found(id))?;
        let users = match pool.store.data(ObjectKind::Volumes, &id.name)? {
            Some(data) => self.users.of(data.as_fd()).context(|| format!("find the users of volume {id}"))?,
            None => Vec::new(),
        };
        let hosts = pool.used().map(|used| used.users(&id.name)).transpose();
        let hosts = hosts.context(|| format!("find the hosts that use volume {id}"))?.unwrap_or_default();
        let (path, not_enforced) = (pool.path_of_data(&id.name), not_enforced(&pool, &volume));
        let has_cheap_snapshots = has_cheap_snapshots(&pool).ok();
        Ok(Inspected { volume, path, not_enforced, has_cheap_snapshots, users, hosts })
    }
}

/// Why the limits of a volume are not enforced now.
fn not_enforced(pool: &OpenPool, volume: &Volume) -> Option<String> {
    if !volume.managed || (volume.size == 0 && volume.policy.inodes == 0) {
        return None;
    }
    if volume.policy.limit == Limit::None {
        return Some("limit=none".to_owned());
    }
    let is_possible = pool.backend.capabilities().limits != LimitSupport::None;
    match (is_possible, volume.enforced) {
        (true, Enforced::Bytes | Enforced::Inodes | Enforced::BytesAndInodes) => None,
        (true, Enforced::No) => Some(
            "its pool enforced no sizes when its limits were set, or it was copied or moved since: expand it, or run \
             `orlop check --fix`"
                .to_owned(),
        ),
        (false, _) => {
            let how = pool.backend.how_to_limit().unwrap_or("its filesystem cannot limit directories");
            Some(how.to_owned())
        }
    }
}
