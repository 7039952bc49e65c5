//! What a pool may still promise: min(what the filesystem has, total × overcommit − what was promised) − reserve.

use std::sync::Arc;

use rustix::fs;

use super::{OpenPool, VolumeEntry};
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::Name;

/// Bytes of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsStats {
    /// All.
    pub total: u64,
    /// Free for others than root.
    pub free: u64,
    /// All inodes; 0: the filesystem has no fixed number.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// Bytes set aside for a volume that is being made or grown; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    pool: Arc<OpenPool>,
    bytes: u64,
}

impl Reservation {
    /// The pool that has set them aside.
    #[must_use]
    pub fn pool(&self) -> &Arc<OpenPool> {
        &self.pool
    }

    /// The volume is made or grown: its entry carries the promise from now on. At no moment is it counted twice, or
    /// another call would be told that a pool is full that is not.
    pub fn keep(mut self, name: Name, entry: VolumeEntry) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut index = self.pool.index();
        index.provisioned = index.provisioned.saturating_sub(bytes.into());
        index.put_volume(name, entry);
    }
}

impl Drop for Reservation {
    /// There is no such volume.
    fn drop(&mut self) {
        let mut index = self.pool.index();
        index.provisioned = index.provisioned.saturating_sub(self.bytes.into());
    }
}

impl OpenPool {
    /// What the filesystem has.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn fs_stats(&self) -> Result<FsStats> {
        let stat = fs::fstatvfs(self.store.root()).context(|| "ask the filesystem for its room")?;
        Ok(FsStats {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            inodes_free: stat.f_favail,
        })
    }

    /// What may still be promised.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn allocatable(&self) -> Result<u64> {
        let stats = self.fs_stats()?;
        let provisioned = self.index().provisioned();
        Ok(allocatable(stats, provisioned, self.settings.overcommit_percent, self.settings.reserve))
    }

    /// Sets bytes aside.
    ///
    /// # Errors
    /// `NoSpace` when the pool may not promise so much.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation> {
        let stats = self.fs_stats()?;
        let mut index = self.index();
        let free =
            allocatable(stats, index.provisioned(), self.settings.overcommit_percent, self.settings.reserve);
        if bytes > free {
            let text = format!(
                "pool {} is full: {bytes} bytes asked for, {free} left to promise ({} of {} promised); \
                 delete volumes, grow the filesystem, or raise the pool's overcommit",
                self.settings.name,
                index.provisioned(),
                stats.total,
            );
            return Err(Error::new(Kind::NoSpace, text));
        }
        index.provisioned = index.provisioned.saturating_add(bytes.into());
        drop(index);
        Ok(Reservation { pool: Arc::clone(self), bytes })
    }
}

fn allocatable(stats: FsStats, provisioned: u64, overcommit_percent: u32, reserve: u64) -> u64 {
    let limit = u128::from(stats.total) * u128::from(overcommit_percent) / 100;
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    stats.free.min(limit.saturating_sub(provisioned)).saturating_sub(reserve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_bounded_by_disk_and_ledger() {
        let stats = FsStats { total: 100, free: 60, inodes: 0, inodes_free: 0 };
        assert_eq!(allocatable(stats, 0, 100, 0), 60, "the disk has no more");
        assert_eq!(allocatable(stats, 70, 100, 0), 30, "the ledger has no more");
        assert_eq!(allocatable(stats, 70, 200, 0), 60, "overcommit");
        assert_eq!(allocatable(stats, 70, 100, 10), 20, "reserve");
        assert_eq!(allocatable(stats, 120, 100, 10), 0, "never below nothing");
        assert_eq!(allocatable(FsStats { total: u64::MAX, free: u64::MAX, ..stats }, 0, 1000, 0), u64::MAX);
    }
}
