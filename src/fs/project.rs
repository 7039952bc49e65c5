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

/// The smallest project id from this one on that has limits or files; `None` if there is none, or the kernel cannot tell.
///
/// # Errors
/// The error of the failed system call.
pub fn next_used(dir: BorrowedFd<'_>, from: u32) -> Result<Option<u32>> {
    let found = none_without_quotas(quota::next_used(dir, from)).context(|| "list the projects")?;
    Ok(found.flatten())
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
