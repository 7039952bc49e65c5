//! Listings in pages, ordered by id. A page starts after the last id of the previous page, whether or not that object
//! still exists, so pages stay correct while objects are created and deleted.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::Engine;
use super::health::known_symptoms;
use super::request::{Capacity, Listed, Page, PoolSettings, PoolStatus, Symptom};
use crate::error::{Kind, Result};
use crate::pool::{Index, OpenPool, Pool};
use crate::volume::{Name, PoolName, VolumeId};

/// Maximum number of objects that a status names because their record cannot be read.
const MAX_NAMED: usize = 100;

impl Engine {
    /// Opens all pools and returns them ordered by name.
    pub(super) fn pools_by_name(&self) -> Result<Vec<Arc<OpenPool>>> {
        let mut pools = self.pools.iter().map(|pool| pool.get_or_open()).collect::<Result<Vec<_>>>()?;
        pools.sort_by(|a, b| a.settings.name.cmp(&b.settings.name));
        Ok(pools)
    }

    /// Lists at most `max` volumes after `after`.
    ///
    /// # Errors
    /// `Unavailable` when a pool is: an incomplete list would imply that the missing volumes were deleted.
    pub fn list(&self, after: Option<&VolumeId>, max: usize) -> Result<Page<Listed>> {
        let pools = self.pools_by_name()?;
        collect(&pools, after, max, Index::volumes, |_, id, entry| {
            Some(Listed { id, size: entry.size, source: entry.source.as_deref().cloned() })
        })
    }

    /// Lists at most `max` unhealthy volumes after `after`, with their symptoms.
    ///
    /// # Errors
    /// `Unavailable` when a pool is.
    pub fn list_health(
        &self,
        after: Option<&VolumeId>,
        max: usize,
    ) -> Result<Page<(VolumeId, Vec<Symptom>)>> {
        let pools = self.pools_by_name()?;
        collect(&pools, after, max, Index::volumes, |pool, id, entry| {
            let symptoms = known_symptoms(pool, &id, entry);
            (!symptoms.is_empty()).then_some((id, symptoms))
        })
    }

    /// Returns the capacity of a pool, or of the default one. The capacity of an unavailable pool is 0.
    ///
    /// # Errors
    /// `Invalid` when the pool does not exist.
    pub fn capacity(&self, pool: Option<&PoolName>) -> Result<Capacity> {
        if self.pools.is_empty() {
            return Ok(Capacity::default());
        }
        let pool = match self.requested_pool(pool)?.get_or_open() {
            Err(error) if error.kind() == Kind::Unavailable => return Ok(Capacity::default()),
            pool => pool?,
        };
        let available = pool.allocatable()?;
        Ok(Capacity { available, largest: available })
    }

    /// Returns the status of each pool, in the order of the settings.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolStatus> {
        self.pools.iter().map(|pool| status(pool)).collect()
    }

    /// Returns the status of one pool of this process.
    #[must_use]
    pub fn status(&self, settings: &PoolSettings) -> PoolStatus {
        self.status_of(&settings.name).unwrap_or_else(|| PoolStatus::new(settings))
    }

    /// Returns the status of the pool of this name, if it is configured.
    #[must_use]
    pub fn status_of(&self, name: &PoolName) -> Option<PoolStatus> {
        self.pools.iter().find(|pool| pool.settings().name == *name).map(|pool| status(pool))
    }
}

fn status(pool: &Pool) -> PoolStatus {
    let settings = pool.settings();
    let mut status = PoolStatus::new(settings);
    status.trash_failure = pool.reaper().failure();
    status.audit = pool.last_audit();
    let counted = pool.get_or_open().and_then(|open| {
        drop(open.recent_index()?);
        Ok((open.fs_stats_after_errors()?, open))
    });
    match counted {
        Err(error) => status.unavailable = Some(error.chain()),
        Ok((stats, open)) => {
            let index = open.cached_index();
            (status.total, status.provisioned) = (stats.total, index.provisioned());
            status.refuses = open.check_accepts(stats).err().map(|refusal| refusal.chain());
            status.allocatable = open.allocatable_beside(stats, index.provisioned());
            status.volumes = index.volumes().len() as u64;
            status.snapshots = index.snapshots().len() as u64;
            status.unreadable = index.unreadable().count() as u64;
            status.unreadable_objects = index
                .unreadable()
                .take(MAX_NAMED)
                .map(|(kind, object, why)| (format!("{kind} {}/{object}", settings.name), why.to_owned()))
                .collect();
            status.backend = Some(open.backend.kind().as_str().into());
            status.trash = pool.reaper().waiting() as u64;
        }
    }
    status
}

/// Collects at most `max` items of the entries after `after`. Entries for which `to_item` returns `None` are skipped.
pub(super) fn collect<E, T>(
    pools: &[Arc<OpenPool>],
    after: Option<&VolumeId>,
    max: usize,
    entries: impl Fn(&Index) -> &BTreeMap<Name, E>,
    to_item: impl Fn(&OpenPool, VolumeId, &E) -> Option<T>,
) -> Result<Page<T>> {
    let mut items = Vec::new();
    let mut last: Option<VolumeId> = None;
    for pool in pools {
        let name = &pool.settings.name;
        let from = match after {
            Some(after) if after.pool > *name => continue,
            Some(after) if after.pool == *name => Bound::Excluded(&after.name),
            _ => Bound::Unbounded,
        };
        let index = pool.index()?;
        for (entry_name, entry) in entries(&index).range::<Name, _>((from, Bound::Unbounded)) {
            let id = VolumeId { pool: name.clone(), name: entry_name.clone() };
            let Some(item) = to_item(pool, id, entry) else { continue };
            if items.len() == max {
                return Ok(Page { items, next: last });
            }
            items.push(item);
            last = Some(VolumeId { pool: name.clone(), name: entry_name.clone() });
        }
    }
    Ok(Page { items, next: None })
}
