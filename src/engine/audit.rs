//! Audits of volumes, for commands.

use super::Engine;
use crate::error::{Context as _, Result};
use crate::fs::audit::Audit;
use crate::pool::object::ObjectKind;
use crate::volume::{PoolName, VolumeId};

impl Engine {
    /// The volumes of a pool, ordered by name, managed or not.
    ///
    /// # Errors
    /// `Unavailable` if the pool is; the error of the system call when its volumes cannot be listed.
    pub fn ids(&self, pool: &PoolName) -> Result<Vec<VolumeId>> {
        let mut names = self.pool(pool)?.store.names(ObjectKind::Volumes)?;
        names.sort_unstable();
        Ok(names.into_iter().map(|name| VolumeId { pool: pool.clone(), name }).collect())
    }

    /// Starts to look for files of a volume that its limits do not count; with `mend`, they are put back. `None` if there can
    /// be none, as in a pool without project quotas.
    ///
    /// # Errors
    /// `Unavailable` if the pool is; `Unreadable` when the record is; otherwise the error of the failed system call.
    pub fn audit(&self, id: &VolumeId, mend: bool) -> Result<Option<Audit>> {
        self.pool(&id.pool)?.audit(&id.name, mend).context(|| format!("audit volume {id}"))
    }
}
