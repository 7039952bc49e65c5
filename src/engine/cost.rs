//! What snapshots cost.

use crate::backend::CopySupport;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::reflink::shares_blocks;
use crate::pool::OpenPool;
use crate::volume::SnapshotCost;

/// Whether snapshots in a pool share blocks with their volumes.
///
/// # Errors
/// The error of the system call when that cannot be tried now.
pub(super) fn has_cheap_snapshots(pool: &OpenPool) -> Result<bool> {
    match pool.backend.capabilities().copies {
        CopySupport::Instant => Ok(true),
        CopySupport::Files => shares_blocks(pool.store.root())
            .context(|| format!("try whether files of pool {} can share blocks", pool.settings.name)),
    }
}

/// Refuses cheap snapshots in a pool that has none.
///
/// # Errors
/// `Unsupported` then; otherwise same as [`has_cheap_snapshots`].
pub(super) fn check_snapshot_cost(pool: &OpenPool, cost: SnapshotCost) -> Result<()> {
    if cost == SnapshotCost::Any || has_cheap_snapshots(pool).context(|| "snapshotCost=cheap")? {
        return Ok(());
    }
    let text = format!(
        "snapshotCost=cheap: a snapshot in pool {} (backend {}) copies all bytes, since its filesystem does not share blocks: \
         use snapshotCost=any, or a pool on btrfs or xfs with reflink",
        pool.settings.name,
        pool.backend.kind(),
    );
    Err(Error::new(Kind::Unsupported, text))
}
