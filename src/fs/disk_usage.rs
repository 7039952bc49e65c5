//! How much space a tree takes on disk.

use std::os::fd::BorrowedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{Walk, fstat, fstatat, kind_of, open_directory};
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

/// Walks a tree and adds up the space that it takes. Symbolic links are not followed and mounts not entered.
///
/// # Errors
/// `Busy` when a directory was moved during the walk; otherwise the error of the failed system call.
pub fn disk_usage(data: BorrowedFd<'_>) -> Result<DiskUsage> {
    let top = fstat(data).context(|| "stat the data directory")?;
    let mut bytes = top.stx_blocks.saturating_mul(512);
    let mut parts = PARTS;
    let mut walk = Walk::new(data).context(|| "open the data directory")?;
    loop {
        let Some(entry) = walk.next().context(|| "read a directory")? else {
            if walk.leave()? {
                continue;
            }
            return Ok(DiskUsage { bytes, inodes: parts.div_ceil(PARTS) });
        };
        let stat = match fstatat(walk.dir(), &entry.name) {
            Err(Errno::NOENT) => continue,
            stat => stat.context(|| "stat an entry")?,
        };
        let is_directory = kind_of(&stat) == FileType::Directory;
        let links = if is_directory { 1 } else { u64::from(stat.stx_nlink.max(1)) };
        bytes = bytes.saturating_add(stat.stx_blocks.saturating_mul(512) / links);
        parts = parts.saturating_add(PARTS / links);
        if is_directory {
            match open_directory(walk.dir(), &entry.name) {
                // It was deleted or replaced since, or it is a mount point.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
                directory => {
                    walk.enter(directory.context(|| "open a directory")?).context(|| "stat a directory")?
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn hard_links_are_counted_once_and_holes_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::File::create(dir.path().join("d/hole")).unwrap().set_len(1 << 30).unwrap();
        let usage = disk_usage(std::fs::File::open(dir.path()).unwrap().as_fd()).unwrap();
        assert_eq!(usage.inodes, 4, "the top directory, a, d, hole");
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&usage.bytes), "{usage:?}");
    }
}
