//! Projects of xfs and ext4: sets of files whose space the filesystem counts and limits together.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{fstatfs, fstatvfs};
use rustix::io::{Errno, Result as ErrnoResult};

use crate::error::{Context as _, Result};
pub use crate::sys::project::Project;
use crate::sys::project::{project, set_project};
use crate::sys::quota;
pub use crate::sys::quota::ProjectQuota;

/// The ids that orlop chooses. kubelet gives ids from 2^20 on to the volumes of pods, and administrators choose small ones.
pub const OWN_IDS: Range<u32> = 0x4000_0000..0x8000_0000;

/// `XFS_SUPER_MAGIC`.
const XFS: u64 = 0x5846_5342;
/// `EXT4_SUPER_MAGIC`.
const EXT4: u64 = 0xEF53;

/// A filesystem that can have projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projects {
    /// xfs.
    Xfs,
    /// ext4; also ext3 and ext2, which have the same type.
    Ext4,
}

/// The filesystem of a directory, if it can have projects.
#[must_use]
pub fn kind_of(dir: BorrowedFd<'_>) -> Option<Projects> {
    match fstatfs(dir).ok().and_then(|stat| u64::try_from(stat.f_type).ok()) {
        Some(XFS) => Some(Projects::Xfs),
        Some(EXT4) => Some(Projects::Ext4),
        _ => None,
    }
}

/// Whether the filesystem of a directory enforces the limits of projects now. A kernel or a filesystem that cannot tell does
/// not.
#[must_use]
pub fn is_enforced(dir: BorrowedFd<'_>) -> bool {
    kind_of(dir).is_some() && quota::is_enforced(dir).unwrap_or(false)
}

/// The project of a file or directory; `None` on a filesystem without projects.
#[must_use]
pub fn of(file: BorrowedFd<'_>) -> Option<Project> {
    project(file).ok()
}

/// Gives a file or directory a project.
///
/// # Errors
/// The error of the failed system call.
pub fn set(file: BorrowedFd<'_>, project: Project) -> Result<()> {
    set_project(file, project).context(|| format!("set the project id {}", project.id))
}

/// What the kernel knows of a project; `None` if it enforces no limits now.
///
/// # Errors
/// The error of the failed system call.
pub fn quota(dir: BorrowedFd<'_>, project: u32) -> Result<Option<ProjectQuota>> {
    let found = none_without_quotas(quota::get(dir, project).map(Option::unwrap_or_default));
    found.context(|| format!("read the quota of project {project}"))
}

/// Sets the limits of a project; 0 is no limit.
///
/// # Errors
/// The error of the failed system call.
pub fn limit(dir: BorrowedFd<'_>, project: u32, max_bytes: u64, max_inodes: u64) -> Result<()> {
    quota::set_limits(dir, project, max_bytes, max_inodes)
        .context(|| format!("set the limits of project {project}"))
}

/// Clears the limits of a project whose files were removed, if orlop has chosen its id. What fails leaves limits of an id
/// that is not used again.
pub fn clear_limits(dir: BorrowedFd<'_>, project: u32) {
    if OWN_IDS.contains(&project) {
        let _ = quota::set_limits(dir, project, 0, 0);
    }
}

/// The smallest project id in this range that has limits or files; `None` if there is none, or the kernel cannot tell.
///
/// # Errors
/// The error of the failed system call.
pub fn first_used(dir: BorrowedFd<'_>, range: Range<u32>) -> Result<Option<u32>> {
    first_of(range, |from| {
        none_without_quotas(quota::next_used(dir, from)).map(Option::flatten).context(|| "list the projects")
    })
}

/// The ids that ext4 keeps in one block. From an id on, the kernel finds all others of its block; of a later block, it passes
/// over those whose place in the block is before that of the id.
const IDS_OF_A_BLOCK: u32 = 256;

/// The first id of a range, by a search that is exact within one block of ids.
fn first_of(range: Range<u32>, next: impl Fn(u32) -> Result<Option<u32>>) -> Result<Option<u32>> {
    let mut from = range.start;
    while from < range.end {
        let end_of_block = (from - from % IDS_OF_A_BLOCK).saturating_add(IDS_OF_A_BLOCK);
        if let Some(found) = next(from)?.filter(|id| *id < range.end && *id < end_of_block) {
            return Ok(Some(found));
        }
        from = end_of_block;
    }
    Ok(None)
}

/// The largest limit up to this size that the filesystem can keep: a whole number of blocks, at least one.
///
/// # Errors
/// The error of the failed system call.
pub fn whole_blocks(dir: BorrowedFd<'_>, bytes: u64) -> Result<u64> {
    let block = fstatvfs(dir).context(|| "read the block size")?.f_frsize.max(512);
    Ok((bytes - bytes % block).max(block))
}

fn none_without_quotas<T>(found: ErrnoResult<T>) -> ErrnoResult<Option<T>> {
    match found {
        Err(Errno::NOSYS | Errno::SRCH) => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches as the kernel does: if the block of `from` is not there, the place in the block stays.
    fn search(used: &[u32], from: u32) -> Option<u32> {
        let block = |id: u32| id / IDS_OF_A_BLOCK;
        let has = |wanted: u32| used.iter().any(|id| block(*id) == wanted);
        let last = block(*used.last()?);
        let first = if has(block(from)) {
            from
        } else {
            let found = (block(from)..=last).find(|wanted| has(*wanted))?;
            found * IDS_OF_A_BLOCK + from % IDS_OF_A_BLOCK
        };
        used.iter().copied().find(|id| *id >= first)
    }

    #[test]
    fn an_id_at_the_beginning_of_a_later_block_is_found() {
        let used = [1029, 1290];
        assert_eq!(search(&used, 800), Some(1290), "the kernel passes over one");
        let first = |range| first_of(range, |from| Ok(search(&used, from))).unwrap();
        assert_eq!(first(800..2000), Some(1029));
        assert_eq!(first(1030..2000), Some(1290));
        assert_eq!(first(800..1029), None);
        assert_eq!(first(1291..2000), None);
        assert_eq!(first(u32::MAX - 3..u32::MAX), None);
    }
}
