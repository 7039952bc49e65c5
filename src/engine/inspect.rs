//! Volumes as their records on disk describe them. The index is not used, since a command needs each record only once.

use super::Engine;
use super::locked::read;
use super::request::{Records, StoredVolume};
use crate::error::Result;
use crate::pool::Pool;
use crate::pool::store::ObjectKind;
use crate::volume::VolumeId;

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
        let pool = self.open_pool(pool)?;
        let mut names = pool.store.names(ObjectKind::Volumes)?;
        names.sort_unstable();
        let stored = names.into_iter().filter_map(|name| {
            let id = VolumeId { pool: pool.settings.name.clone(), name };
            let record = read(&pool, &id).transpose()?;
            Some(StoredVolume { id, record })
        });
        Ok(stored.collect())
    }
}
