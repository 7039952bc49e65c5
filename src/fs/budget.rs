//! How much a walk may find. A tenant that moves directories while they are read can make a tree look endless.

use std::os::fd::BorrowedFd;

use rustix::fs::fstatvfs;

use crate::error::{Context as _, Error, Kind, Result};

/// Levels below the top directory. The state of a walk grows with each level.
const MAX_DEPTH: usize = 1 << 20;
/// Parts of an inode: a name of a file that has several counts as its share, and at least as one part. So the names that
/// a walk finds are bounded, too.
const INODE: u64 = 128;
/// Where the filesystem has no fixed number of inodes, bytes of its size for each one.
const BYTES_PER_INODE: u64 = 4096;
/// Where the filesystem reports neither, as ramfs.
const INODES_IF_UNKNOWN: u64 = 1 << 28;

/// The entries that a walk may still find: as many as the filesystem can hold.
#[derive(Debug)]
pub(super) struct Budget {
    parts: u64,
}

impl Budget {
    /// The budget for a tree on the filesystem of an open file.
    pub(super) fn of_filesystem(file: BorrowedFd<'_>) -> Result<Self> {
        let stat = fstatvfs(file).context(|| "read the filesystem's statistics")?;
        let inodes = match (stat.f_files, stat.f_blocks) {
            (0, 0) => INODES_IF_UNKNOWN,
            (0, blocks) => blocks.saturating_mul(stat.f_frsize) / BYTES_PER_INODE,
            (inodes, _) => inodes,
        };
        Ok(Self { parts: inodes.saturating_mul(INODE) })
    }

    /// Takes one name of a file with this number of links.
    ///
    /// # Errors
    /// `Busy` when the filesystem cannot hold so many.
    pub(super) fn take(&mut self, links: u64) -> Result<()> {
        match self.parts.checked_sub(INODE / links.clamp(1, INODE)) {
            Some(left) => self.parts = left,
            None => {
                let text = "more entries than the filesystem can hold: a process moves or creates entries while \
                            they are read: stop it and retry";
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
}
