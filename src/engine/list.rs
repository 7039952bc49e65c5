//! Listings, ordered by id, in pages that stay right while volumes come and go: a page begins after the last id of the
//! one before, whether that volume still exists or not.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::Engine;
use super::request::{Capacity, Listed, Page, PoolStatus, Symptom};
use crate::error::{Kind, Result};
use crate::pool::{Index, OpenPool, Pool};
use crate::volume::{Name, PoolName, VolumeId};

impl Engine {
    /// All pools, open, by name.
    pub(super) fn pools_by_name(&self) -> Result<Vec<Arc<OpenPool>>> {
        let mut pools = self.pools.iter().map(|pool| self.open_pool(pool)).collect::<Result<Vec<_>>>()?;
        pools.sort_by(|a, b| a.settings.name.cmp(&b.settings.name));
        Ok(pools)
    }

    /// At most `max` volumes after `after`.
    ///
    /// # Errors
    /// `Unavailable` when a pool is: a list that left it out would say that its volumes are gone.
    pub fn list(&self, after: Option<&VolumeId>, max: usize) -> Result<Page<Listed>> {
        let pools = self.pools_by_name()?;
        Ok(collect(&pools, after, max, Index::volumes, |id, entry| {
            Some(Listed { id, size: entry.size, source: entry.source.as_deref().cloned() })
        }))
    }

    /// At most `max` volumes after `after` with which something is wrong.
    ///
    /// # Errors
    /// `Unavailable` when a pool is.
    pub fn list_health(
        &self,
        after: Option<&VolumeId>,
        max: usize,
    ) -> Result<Page<(VolumeId, Vec<Symptom>)>> {
        let pools = self.pools_by_name()?;
        Ok(collect(&pools, after, max, Index::volumes, |id, entry| {
            let symptoms = self.known_symptoms(&id, entry);
            (!symptoms.is_empty()).then_some((id, symptoms))
        }))
    }

    /// What one pool may still promise, or the default one. A pool that is not there promises nothing.
    ///
    /// # Errors
    /// `Invalid` when there is no such pool.
    pub fn capacity(&self, pool: Option<&PoolName>) -> Result<Capacity> {
        if self.pools.is_empty() {
            return Ok(Capacity::default());
        }
        let pool = match self.open_pool(self.wanted_pool(pool)?) {
            Err(error) if error.kind() == Kind::Unavailable => return Ok(Capacity::default()),
            pool => pool?,
        };
        let available = pool.allocatable()?;
        Ok(Capacity { available, largest: available })
    }

    /// What each pool is like, in the order of the settings.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolStatus> {
        self.pools.iter().map(|pool| self.status(pool)).collect()
    }

    fn status(&self, pool: &Pool) -> PoolStatus {
        let settings = pool.settings();
        let mut status = PoolStatus {
            name: settings.name.clone(),
            path: settings.path.clone(),
            backend: None,
            unavailable: None,
            total: 0,
            provisioned: 0,
            free: 0,
            volumes: 0,
            snapshots: 0,
            trash: 0,
            reaper_stopped: self.reaper.stopped(&settings.name),
        };
        match self.open_pool(pool).and_then(|open| Ok((open.fs_stats()?, open.allocatable()?, open))) {
            Err(error) => status.unavailable = Some(error.chain()),
            Ok((stats, free, open)) => {
                let index = open.index();
                (status.total, status.free, status.provisioned) = (stats.total, free, index.provisioned());
                status.volumes = index.volumes().len() as u64;
                status.snapshots = index.snapshots().len() as u64;
                status.backend = Some(open.backend.name());
                status.trash = self.reaper.waiting(&settings.name) as u64;
            }
        }
        status
    }
}

/// Takes at most `max` of what `make` makes of the entries after `after`.
pub(super) fn collect<E, T>(
    pools: &[Arc<OpenPool>],
    after: Option<&VolumeId>,
    max: usize,
    map: impl Fn(&Index) -> &BTreeMap<Name, E>,
    make: impl Fn(VolumeId, &E) -> Option<T>,
) -> Page<T> {
    let mut items = Vec::new();
    let mut last: Option<VolumeId> = None;
    for pool in pools {
        let name = &pool.settings.name;
        let from = match after {
            Some(after) if after.pool > *name => continue,
            Some(after) if after.pool == *name => Bound::Excluded(&after.name),
            _ => Bound::Unbounded,
        };
        let index = pool.index();
        for (entry_name, entry) in map(&index).range::<Name, _>((from, Bound::Unbounded)) {
            let id = VolumeId { pool: name.clone(), name: entry_name.clone() };
            let Some(item) = make(id, entry) else { continue };
            if items.len() == max {
                return Page { items, next: last };
            }
            items.push(item);
            last = Some(VolumeId { pool: name.clone(), name: entry_name.clone() });
        }
    }
    Page { items, next: None }
}
