//! How much space a tree takes on disk.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{Budget, Entry, Walk, fstat, fstatat, kind_of, open_directory};
use crate::error::{Context as _, Result};

/// Parts that an inode is counted in: each of its hard links contributes an equal share of them.
const PARTS: u64 = 1 << 20;

/// Space that a tree takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// Allocated bytes: blocks, not file lengths.
    pub bytes: u64,
    /// Inodes of every type, including the top directory.
    pub inodes: u64,
}

/// A walk through a tree that adds up the space that it takes, in slices. Symbolic links are not followed and mounts not
/// entered.
#[derive(Debug)]
pub struct Measurement {
    walk: Walk,
    budget: Budget,
    bytes: u64,
    parts: u64,
}

impl Measurement {
    /// Starts at the top directory of a tree.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn new(data: BorrowedFd<'_>) -> Result<Self> {
        let top = fstat(data).context(|| "stat the data directory")?;
        Ok(Self {
            walk: Walk::of_live_tree(data).context(|| "open the data directory")?,
            budget: Budget::of_filesystem(data)?,
            bytes: top.stx_blocks.saturating_mul(512),
            parts: PARTS,
        })
    }

    /// Continues for about this time; `None` if something is left then.
    ///
    /// # Errors
    /// `Busy` when the tree keeps changing so that the walk finds no end or no way back; otherwise the error of the failed
    /// system call.
    pub fn run(&mut self, slice: Duration) -> Result<Option<DiskUsage>> {
        let started = Instant::now();
        loop {
            match self.walk.next().context(|| "read a directory")? {
                Some(entry) => self.count(&entry)?,
                None if self.walk.leave()? => {}
                None => {
                    return Ok(Some(DiskUsage { bytes: self.bytes, inodes: self.parts.div_ceil(PARTS) }));
                }
            }
            if started.elapsed() >= slice {
                return Ok(None);
            }
        }
    }

    /// Adds an entry of the current directory, and enters it if it is a directory.
    fn count(&mut self, entry: &Entry) -> Result<()> {
        let stat = match fstatat(self.walk.dir(), &entry.name) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat.context(|| "stat an entry")?,
        };
        let is_directory = kind_of(&stat) == FileType::Directory;
        let links = if is_directory { 1 } else { u64::from(stat.stx_nlink.max(1)) };
        self.budget.take(links)?;
        self.bytes = self.bytes.saturating_add(stat.stx_blocks.saturating_mul(512) / links);
        self.parts = self.parts.saturating_add(PARTS / links);
        if !is_directory {
            return Ok(());
        }
        Budget::check_depth(self.walk.depth())?;
        match open_directory(self.walk.dir(), &entry.name) {
            // It was deleted or replaced since, or it is a mount point.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(()),
            directory => {
                let directory = directory.context(|| "open a directory")?;
                self.walk.enter(directory).context(|| "stat a directory")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn start(dir: &std::path::Path) -> Measurement {
        Measurement::new(std::fs::File::open(dir).unwrap().as_fd()).unwrap()
    }

    #[test]
    fn hard_links_are_counted_once_and_holes_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::File::create(dir.path().join("d/hole")).unwrap().set_len(1 << 30).unwrap();
        let usage = start(dir.path()).run(Duration::MAX).unwrap().unwrap();
        assert_eq!(usage.inodes, 4, "the top directory, a, d, hole");
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&usage.bytes), "{usage:?}");
    }

    #[test]
    fn a_measurement_in_slices_is_the_same_as_one_at_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), vec![1; 1 << 16]).unwrap();
        let expected = start(dir.path()).run(Duration::MAX).unwrap().unwrap();
        let mut measurement = start(dir.path());
        let mut slices = 1;
        let usage = loop {
            match measurement.run(Duration::ZERO).unwrap() {
                Some(usage) => break usage,
                None => slices += 1,
            }
        };
        assert_eq!(usage, expected);
        assert!(slices > 4, "{slices}");
    }
}
