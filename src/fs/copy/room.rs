//! The inodes that a copy may take, so that it never takes the last ones from the tenants of the same filesystem.

use std::os::fd::BorrowedFd;

use rustix::fs::fstatvfs;

use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::Budget;

/// A copy leaves this part of all inodes free.
const KEPT_FREE: u64 = 20;
/// The free inodes are read again after so many new entries, or after a fraction of those that are kept free.
const CHECK_EVERY: u64 = 256;

/// What the destination of a copy has room for.
pub(in crate::fs) struct Room {
    budget: Budget,
    /// Entries until the free inodes are read again.
    unchecked: u64,
    created: u64,
}

impl Room {
    pub(in crate::fs) fn new(to: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self { budget: Budget::of_filesystem(to)?, unchecked: 0, created: 0 })
    }

    /// Starts to count the entries of the source anew.
    pub(super) fn begin_pass(&mut self, to: BorrowedFd<'_>) -> Result<()> {
        self.budget = Budget::of_filesystem(to)?;
        Ok(())
    }

    /// Counts an entry of the source, one of this number of links.
    ///
    /// # Errors
    /// `Busy` as [`Budget::take`].
    pub(in crate::fs) fn visit(&mut self, links: u64) -> Result<()> {
        self.budget.take(links)
    }

    /// The entries that were created.
    pub(in crate::fs) fn created(&self) -> u64 {
        self.created
    }

    /// Counts a new entry. `underway` is the number of entries that are counted already and not created yet.
    ///
    /// # Errors
    /// `NoSpace` when few inodes are left; the entry is not counted then.
    pub(in crate::fs) fn take(&mut self, to: BorrowedFd<'_>, underway: u64) -> Result<()> {
        if let Some(left) = self.unchecked.checked_sub(1) {
            self.unchecked = left;
            self.created += 1;
            return Ok(());
        }
        let stat = fstatvfs(to).context(|| "read the filesystem's statistics")?;
        let kept = stat.f_files / KEPT_FREE;
        let is_limited = stat.f_files > 0;
        if stat.f_favail.saturating_sub(underway) >= kept {
            self.unchecked = if is_limited { (kept / KEPT_FREE).min(CHECK_EVERY) } else { CHECK_EVERY };
            self.created += 1;
            return Ok(());
        }
        let text = format!(
            "{} of {} inodes of the filesystem are free, and a copy leaves {kept}: delete files or volumes and retry",
            stat.f_favail, stat.f_files
        );
        Err(Error::new(Kind::NoSpace, text))
    }
}
