//! What a pool may still promise: min(what the filesystem has, total × overcommit − what was promised) − reserve.

use std::sync::Arc;

use rustix::fs;

use super::{OpenPool, VolumeEntry};
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::Name;

/// Bytes of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
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
        index.promised = index.promised.saturating_sub(bytes.into());
        index.put_volume(name, entry);
    }
}

impl Drop for Reservation {
    /// There is no such volume.
    fn drop(&mut self) {
        let mut index = self.pool.index();
        index.promised = index.promised.saturating_sub(self.bytes.into());
    }
}

impl OpenPool {
    /// What the filesystem has.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn room(&self) -> Result<Room> {
        let stat = fs::fstatvfs(self.store.root()).context(|| "ask the filesystem for its room")?;
        Ok(Room {
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
    pub fn free(&self) -> Result<u64> {
        let room = self.room()?;
        let promised = self.index().promised();
        Ok(free(room, promised, self.settings.overcommit_percent, self.settings.reserve))
    }

    /// Sets bytes aside.
    ///
    /// # Errors
    /// `NoSpace` when the pool may not promise so much.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation> {
        let room = self.room()?;
        let mut index = self.index();
        let free = free(room, index.promised(), self.settings.overcommit_percent, self.settings.reserve);
        if bytes > free {
            let text = format!(
                "pool {} is full: {bytes} bytes asked for, {free} left to promise ({} of {} promised); \
                 delete volumes, grow the filesystem, or raise the pool's overcommit",
                self.settings.name,
                index.promised(),
                room.total,
            );
            return Err(Error::new(Kind::NoSpace, text));
        }
        index.promised = index.promised.saturating_add(bytes.into());
        drop(index);
        Ok(Reservation { pool: Arc::clone(self), bytes })
    }
}

fn free(room: Room, promised: u64, overcommit_percent: u32, reserve: u64) -> u64 {
    let limit = u128::from(room.total) * u128::from(overcommit_percent) / 100;
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    room.free.min(limit.saturating_sub(promised)).saturating_sub(reserve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_bounded_by_disk_and_ledger() {
        let room = Room { total: 100, free: 60, inodes: 0, inodes_free: 0 };
        assert_eq!(free(room, 0, 100, 0), 60, "the disk has no more");
        assert_eq!(free(room, 70, 100, 0), 30, "the ledger has no more");
        assert_eq!(free(room, 70, 200, 0), 60, "overcommit");
        assert_eq!(free(room, 70, 100, 10), 20, "reserve");
        assert_eq!(free(room, 120, 100, 10), 0, "never below nothing");
        assert_eq!(free(Room { total: u64::MAX, free: u64::MAX, ..room }, 0, 1000, 0), u64::MAX);
    }
}
