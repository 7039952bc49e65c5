//! How much a walk may find. A tenant that moves directories while they are read can make a tree look endless.

use std::os::fd::BorrowedFd;

use rustix::fs::fstatvfs;

use crate::error::{Context as _, Error, Kind, Result};

/// Levels below the top directory. The state of a walk grows with each level.
const MAX_DEPTH: usize = 1 << 20;
/// Parts of an inode: a name of a file that has several counts as its share, and at least as one part. So the names that
/// a walk finds are bounded, too.
const INODE: u64 = 128;
/// Where the filesystem reports no number of inodes, bytes of its size for each entry. One takes less than a block: small
/// files are stored with their metadata, and a snapshot within a tree repeats names and takes nothing.
const BYTES_PER_ENTRY: u64 = 256;
/// The least number of entries there.
const MIN_ENTRIES: u64 = 1 << 24;
/// Where the filesystem does not report its size either, as ramfs.
const ENTRIES_IF_UNKNOWN: u64 = 1 << 28;

/// The entries that a walk may still find: as many as the filesystem has inodes. Where it reports no such number, as btrfs,
/// a bound that a still tree hardly exceeds.
#[derive(Debug)]
pub(super) struct Budget {
    parts: u64,
}

impl Budget {
    /// The budget for a tree on the filesystem of an open file.
    pub(super) fn of_filesystem(file: BorrowedFd<'_>) -> Result<Self> {
        let stat = fstatvfs(file).context(|| "read the filesystem's statistics")?;
        let entries = entries_of(stat.f_files, stat.f_blocks.saturating_mul(stat.f_frsize));
        Ok(Self { parts: entries.saturating_mul(INODE) })
    }

    /// Takes one name of a file with this number of links.
    ///
    /// # Errors
    /// `Busy` when the budget is spent.
    pub(super) fn take(&mut self, links: u64) -> Result<()> {
        match self.parts.checked_sub(INODE / links.clamp(1, INODE)) {
            Some(left) => self.parts = left,
            None => {
                let text = "the tree seems to have more entries than the filesystem can hold: a process may be \
                            moving directories in it; stop that process and retry";
                return Err(Error::new(Kind::Busy, text));
            }
        }
        Ok(())
    }

    /// Checks that a walk may descend to this level.
    ///
    /// # Errors
    /// `Busy` below [`MAX_DEPTH`].
    pub(super) fn check_depth(depth: usize) -> Result<()> {
        if depth < MAX_DEPTH {
            return Ok(());
        }
        let text =
            format!("directories are nested {MAX_DEPTH} levels deep: move the deepest ones up and retry");
        Err(Error::new(Kind::Busy, text))
    }
}

/// The most entries of a tree on a filesystem with this number of inodes and this size, which are 0 if they are not known.
fn entries_of(inodes: u64, size: u64) -> u64 {
    match (inodes, size) {
        (0, 0) => ENTRIES_IF_UNKNOWN,
        (0, size) => (size / BYTES_PER_ENTRY).max(MIN_ENTRIES),
        (inodes, _) => inodes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_after_the_inodes_of_the_filesystem() {
        let mut budget = Budget { parts: 2 * INODE };
        budget.take(1).unwrap();
        (0..64).for_each(|_| budget.take(64).unwrap());
        assert_eq!(budget.take(u64::MAX).unwrap_err().kind(), Kind::Busy);
        let mut budget = Budget { parts: INODE };
        (0..INODE).for_each(|_| budget.take(u64::MAX).unwrap());
        assert!(budget.take(u64::MAX).is_err(), "each name counts");
        assert!(Budget::check_depth(MAX_DEPTH).is_err());
    }

    #[test]
    fn a_budget_is_large_where_the_number_of_inodes_is_unknown() {
        assert_eq!(entries_of(1000, 1 << 40), 1000);
        assert_eq!(entries_of(0, 1 << 40), 1 << 32);
        assert_eq!(entries_of(0, 1 << 20), MIN_ENTRIES);
        assert_eq!(entries_of(0, 0), ENTRIES_IF_UNKNOWN);
    }
}
