//! Whether this host changes a pool. In a pool on an NFS server whose backend needs the server's own filesystem, only the
//! server does: it makes, limits, copies and deletes volumes, and removes what is left of them. Other hosts use volumes, and
//! keep their used-locks and records.

use std::sync::Arc;

use super::store::Draft;
use super::{OpenPool, Pool};
use crate::error::{Context as _, Result};

impl OpenPool {
    /// Refuses a change of the pool by a host that only uses its volumes.
    ///
    /// # Errors
    /// `Unsupported` then.
    pub fn check_changes(&self) -> Result<()> {
        let name = &self.settings.name;
        self.backend.check_changes().context(|| format!("pool {name} is not changed from this host"))
    }

    /// Makes an empty draft for a new object.
    ///
    /// # Errors
    /// `Unsupported` as in [`OpenPool::check_changes`]; otherwise the error of the failed system call.
    pub fn draft(&self) -> Result<Draft<'_>> {
        self.check_changes()?;
        self.store.draft()
    }
}

impl Pool {
    /// Deletes what is left of groups, and starts the threads that remove its trash and search for files outside of their projects, if this host changes the pool.
    pub(super) fn start_upkeep(&self, pool: &Arc<OpenPool>) -> Result<()> {
        if pool.backend.check_changes().is_err() {
            return Ok(());
        }
        // As for the sweep: what cannot be deleted now is deleted by a later start.
        let _ = pool.discard_partial_groups();
        self.reaper.attach(pool)?;
        self.auditor.attach(pool)
    }
}
