//! A pool's capacity. Allocatable is min(free in the filesystem, size × overcommit − provisioned) − reserve.

use std::sync::Arc;

use rustix::fs::{self, StatVfsMountFlags};

use super::{Index, OpenPool, PoolSettings, VolumeEntry};
use crate::backend::BackendKind;
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount;
use crate::volume::{Name, Size};

/// Statistics of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsStats {
    /// Total bytes.
    pub total: u64,
    /// Bytes that are free for unprivileged users.
    pub free: u64,
    /// Total inodes; 0: the filesystem has no fixed number.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// Whether nothing can be written.
    pub read_only: bool,
}

/// The inodes of an empty volume: its directory, `data/` and the record.
const INODES_OF_A_VOLUME: u64 = 3;

impl FsStats {
    /// Why nothing can be created, however many bytes are free; `None` if that is possible.
    #[must_use]
    pub fn refusal(&self) -> Option<Error> {
        if self.read_only {
            let text =
                "its filesystem is read-only: check the disk and the kernel's log, and mount it writable";
            return Some(Error::new(Kind::Unavailable, text));
        }
        if self.inodes > 0 && self.inodes_free < INODES_OF_A_VOLUME {
            let text = "its filesystem has no free inodes: delete files or volumes, or use a filesystem with more inodes";
            return Some(Error::new(Kind::NoSpace, text));
        }
        None
    }
}

/// Bytes reserved for a volume that is being created or expanded; released on drop.
#[derive(Debug)]
pub struct Reservation {
    pool: Arc<OpenPool>,
    bytes: u64,
}

impl Reservation {
    /// The pool that the bytes are reserved in.
    #[must_use]
    pub fn pool(&self) -> &Arc<OpenPool> {
        &self.pool
    }

    /// The number of bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Turns the reservation into the size of a volume's entry, in one step: counting the bytes twice, even briefly,
    /// would make a pool look full to another call.
    pub(super) fn commit(mut self, index: &mut Index, name: &Name, entry: VolumeEntry) {
        let bytes = std::mem::take(&mut self.bytes);
        index.reserved = index.reserved.saturating_sub(bytes.into());
        index.put_volume(name.clone(), entry);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // After `commit` nothing is left to release, and its caller has the index locked: locking it here would deadlock.
        if self.bytes > 0 {
            let mut index = self.pool.cached_index();
            index.reserved = index.reserved.saturating_sub(self.bytes.into());
        }
    }
}

impl OpenPool {
    /// Statistics of the pool's filesystem.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn fs_stats(&self) -> Result<FsStats> {
        let stat = fs::fstatvfs(self.store.root()).context(|| "read the filesystem's statistics")?;
        Ok(FsStats {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            inodes_free: stat.f_favail,
            read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }

    /// Like [`OpenPool::fs_stats`]. Also finds an ext4 filesystem that is read-only after an error, which since Linux 6.15
    /// only the mount table says.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn fs_stats_after_errors(&self) -> Result<FsStats> {
        let stats = self.fs_stats()?;
        // A mount table that cannot be read says nothing about the filesystem.
        let has_failed = || mount::is_read_only_after_error(self.store.root()).unwrap_or(false);
        let read_only = stats.read_only || has_failed();
        Ok(FsStats { read_only, ..stats })
    }

    /// Bytes that can still be provisioned.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn allocatable(self: &Arc<Self>) -> Result<u64> {
        let stats = self.fs_stats_after_errors()?;
        let provisioned = self.index()?.provisioned();
        Ok(self.allocatable_beside(stats, provisioned))
    }

    /// Refuses a new object that the pool cannot take, however many bytes are free: its filesystem cannot be written or has
    /// no inodes, or project ids forbid to move the object into place.
    ///
    /// # Errors
    /// `NoSpace` without inodes; otherwise `Unavailable`.
    pub fn check_accepts(&self, stats: FsStats) -> Result<()> {
        stats.refusal().map_or(Ok(()), Err)?;
        let (projects, path) = (self.store.projects(), &self.settings.path);
        match self.backend.kind() {
            BackendKind::Quota => projects.check_none(path),
            BackendKind::Dir | BackendKind::Btrfs => projects.check(path),
        }
    }

    /// Bytes that can be provisioned beside those that are provisioned.
    #[must_use]
    pub fn allocatable_beside(&self, stats: FsStats, provisioned: u64) -> u64 {
        if self.check_accepts(stats).is_err() {
            return 0;
        }
        allocatable(stats, provisioned, self.settings.overcommit_percent, self.settings.reserve)
    }

    /// Reserves bytes for a volume.
    ///
    /// # Errors
    /// `NoSpace` when the pool cannot provision them; `Unavailable` when nothing can be made in it.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation> {
        self.check_changes()?;
        let stats = self.fs_stats()?;
        self.check_accepts(stats)
            .context(|| format!("pool {} refuses new and larger volumes", self.settings.name))?;
        let mut index = self.index()?;
        let provisioned = index.provisioned();
        let left = allocatable(stats, provisioned, self.settings.overcommit_percent, self.settings.reserve);
        if bytes > left {
            let text = format!(
                "pool {} is full: {} requested, {} allocatable (total {}, free {}, provisioned {}, overcommit {}%, \
                 reserve {}); delete data, grow the filesystem, or change the pool's overcommit or reserve",
                self.settings.name,
                Size(bytes),
                Size(left),
                Size(stats.total),
                Size(stats.free),
                Size(provisioned),
                self.settings.overcommit_percent,
                Size(self.settings.reserve),
            );
            return Err(Error::new(Kind::NoSpace, text));
        }
        index.reserved = index.reserved.saturating_add(bytes.into());
        drop(index);
        Ok(Reservation { pool: Arc::clone(self), bytes })
    }

    /// Checks that the volumes of all processes and these bytes do not exceed what the pool may provision. Free space was
    /// checked when the bytes were reserved; a copy has taken some of it since.
    ///
    /// # Errors
    /// `NoSpace` when they do.
    pub(super) fn check_provisioned_sum(&self, bytes: u64) -> Result<()> {
        let PoolSettings { name, overcommit_percent, reserve, .. } = &self.settings;
        let limit = provisionable(self.fs_stats()?, *overcommit_percent);
        let provisioned = self.cached_index().sum_of_sizes();
        if provisioned.saturating_add(bytes).saturating_add(*reserve) <= limit {
            return Ok(());
        }
        let text = format!(
            "pool {name} is full: another process has provisioned the space meanwhile ({} requested, {} provisioned, at \
             most {} less the reserve of {}); delete volumes, grow the filesystem, or raise the pool's overcommit",
            Size(bytes),
            Size(provisioned),
            Size(limit),
            Size(*reserve)
        );
        Err(Error::new(Kind::NoSpace, text))
    }
}

/// The sum of sizes that may be provisioned, including the reserve.
fn provisionable(stats: FsStats, overcommit_percent: u32) -> u64 {
    let limit = u128::from(stats.total) * u128::from(overcommit_percent) / 100;
    u64::try_from(limit).unwrap_or(u64::MAX)
}

fn allocatable(stats: FsStats, provisioned: u64, overcommit_percent: u32, reserve: u64) -> u64 {
    let limit = provisionable(stats, overcommit_percent);
    stats.free.min(limit.saturating_sub(provisioned)).saturating_sub(reserve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocatable_is_bounded_by_free_space_and_provisioned_sizes() {
        let stats = FsStats { total: 100, free: 60, inodes: 0, inodes_free: 0, read_only: false };
        assert_eq!(allocatable(stats, 0, 100, 0), 60, "bounded by free space");
        assert_eq!(allocatable(stats, 70, 100, 0), 30, "bounded by provisioned sizes");
        assert_eq!(allocatable(stats, 70, 200, 0), 60, "with overcommit");
        assert_eq!(allocatable(stats, 70, 100, 10), 20, "less the reserve");
        assert_eq!(allocatable(stats, 120, 100, 10), 0, "never negative");
        let huge = FsStats { total: u64::MAX, free: u64::MAX, ..stats };
        assert_eq!(allocatable(huge, 0, 1000, 0), u64::MAX);
    }

    #[test]
    fn a_filesystem_that_is_read_only_or_has_no_inodes_is_refused() {
        let stats = FsStats { total: 100, free: 60, inodes: 0, inodes_free: 0, read_only: false };
        let kind = |stats: FsStats| stats.refusal().map(|refusal| refusal.kind());
        assert_eq!(kind(stats), None, "inodes are made as they are needed");
        assert_eq!(kind(FsStats { read_only: true, ..stats }), Some(Kind::Unavailable));
        assert_eq!(kind(FsStats { inodes: 9, inodes_free: 2, ..stats }), Some(Kind::NoSpace));
        assert_eq!(kind(FsStats { inodes: 9, inodes_free: 3, ..stats }), None);
    }
}
