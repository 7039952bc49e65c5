//! Volumes as their records on disk describe them. The index is not used, since a command needs each record only once.

use std::os::fd::AsFd as _;

use super::Engine;
use super::locked::{not_found, read};
use super::request::{Inspected, Records, StoredVolume};
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::Pool;
use crate::pool::object::ObjectKind;
use crate::volume::{Name, VolumeId};

impl Engine {
    /// Reads the records of all volumes, ordered by id. A pool or record that cannot be read affects only itself.
    #[must_use]
    pub fn records(&self) -> Records {
        let mut pools: Vec<_> = self.pools.iter().collect();
        pools.sort_by(|a, b| a.settings().name.cmp(&b.settings().name));
        let mut records = Records::default();
        for pool in pools {
            match self.records_of(pool) {
                Ok(volumes) => records.volumes.extend(volumes),
                Err(error) => records.unavailable.push(error),
            }
        }
        records
    }

    fn records_of(&self, pool: &Pool) -> Result<Vec<StoredVolume>> {
        let pool = pool.get_or_open()?;
        let mut names = pool.store.names(ObjectKind::Volumes)?;
        names.sort_unstable();
        let stored = names.into_iter().filter_map(|name| {
            let id = VolumeId { pool: pool.settings.name.clone(), name };
            let record = read(&pool, &id).transpose()?;
            Some(StoredVolume { id, record })
        });
        Ok(stored.collect())
    }

    /// Returns the id of the volume with this name.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several pools have one; `Unavailable` when a pool is, since it may have one.
    pub fn find(&self, name: &Name) -> Result<VolumeId> {
        let mut found = Vec::new();
        for pool in &self.pools {
            let pool = pool
                .get_or_open()
                .context(|| format!("find volume {name}: name its pool, as <pool>/{name}, or retry"))?;
            let id = VolumeId { pool: pool.settings.name.clone(), name: name.clone() };
            // A volume whose record cannot be read exists.
            if !matches!(read(&pool, &id), Ok(None)) {
                found.push(id);
            }
        }
        found.sort_unstable();
        match &found[..] {
            [] => Err(Error::new(Kind::NotFound, format!("volume {name} does not exist"))),
            [id] => Ok(id.clone()),
            several => {
                let ids: Vec<_> = several.iter().map(ToString::to_string).collect();
                let text = format!("several pools have a volume {name}: name one of {}", ids.join(", "));
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
        Ok(Inspected { volume, path: pool.path_of_data(&id.name), users, hosts })
    }
}
