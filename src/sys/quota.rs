//! Project quotas (`quotactl_fd(2)`, Linux 5.14), which rustix does not have.
#![expect(unsafe_code, reason = "rustix has no such call, so it is called by its number")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use linux_raw_sys::general::__NR_quotactl_fd;
use rustix::io::Errno;

use super::mount_setattr::last_errno;

/// `PRJQUOTA`.
const PROJECT: u32 = 2;
/// `Q_XGETQUOTA`, `Q_XSETQLIM`, `Q_XGETQSTATV` and `Q_XGETNEXTQUOTA` of `linux/dqblk_xfs.h`. Other filesystems have them, too.
const GET: u32 = command(3);
const SET_LIMITS: u32 = command(4);
const GET_STATE: u32 = command(8);
const GET_NEXT: u32 = command(9);

/// `FS_QUOTA_PDQ_ACCT | FS_QUOTA_PDQ_ENFD`.
const ACCOUNTED_AND_ENFORCED: u16 = 0b11_0000;
/// `FS_DQ_ISOFT | FS_DQ_IHARD | FS_DQ_BSOFT | FS_DQ_BHARD`.
const ALL_LIMITS: u16 = 0b1111;
/// `FS_PROJ_QUOTA`.
const PROJECT_QUOTA: i8 = 2;
/// The unit of bytes.
const BLOCK: u64 = 512;

/// `QCMD(XQM_CMD(number), PRJQUOTA)`.
const fn command(number: u32) -> u32 {
    (0x5800 + number) * 256 + PROJECT
}

/// `struct fs_disk_quota`.
#[derive(Default)]
#[repr(C)]
struct DiskQuota {
    version: i8,
    flags: i8,
    field_mask: u16,
    id: u32,
    block_hard_limit: u64,
    block_soft_limit: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    block_count: u64,
    inode_count: u64,
    timers_and_warnings: [u32; 4],
    realtime_limits_and_count: [u64; 3],
    realtime_timer_and_warnings: [u32; 2],
    padding: [u8; 8],
}

/// `struct fs_quota_statv`.
#[repr(C)]
struct State {
    version: i8,
    pad: u8,
    flags: u16,
    inodes_in_core: u32,
    users_groups_projects: [u64; 9],
    limits: [i32; 3],
    warnings: [u16; 2],
    rest: [u64; 8],
}

const _: () = assert!(size_of::<DiskQuota>() == 112 && size_of::<State>() == 160);

/// What the kernel knows of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProjectQuota {
    /// The largest number of bytes, in units of 512; 0: no limit.
    pub max_bytes: u64,
    /// The largest number of inodes; 0: no limit.
    pub max_inodes: u64,
    /// The bytes that its files take.
    pub bytes: u64,
    /// The number of its inodes.
    pub inodes: u64,
}

/// Whether the filesystem of an open file counts the space of projects and enforces their limits.
///
/// # Errors
/// `ENOSYS` or `ESRCH` where it does neither; otherwise the error of the failed system call.
pub fn is_enforced(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut state = State {
        version: 1,
        pad: 0,
        flags: 0,
        inodes_in_core: 0,
        users_groups_projects: [0; 9],
        limits: [0; 3],
        warnings: [0; 2],
        rest: [0; 8],
    };
    call(file, GET_STATE, 0, &mut state)?;
    Ok(state.flags & ACCOUNTED_AND_ENFORCED == ACCOUNTED_AND_ENFORCED)
}

/// The limits and the usage of a project; `None` if it has neither.
///
/// # Errors
/// Same as [`is_enforced`].
pub fn get(file: BorrowedFd<'_>, project: u32) -> Result<Option<ProjectQuota>, Errno> {
    let mut quota = DiskQuota::default();
    match call(file, GET, project, &mut quota) {
        Ok(()) => Ok(Some(quota.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets the limits of a project; 0 clears one.
///
/// # Errors
/// `EPERM` without the privilege; otherwise same as [`is_enforced`].
pub fn set_limits(file: BorrowedFd<'_>, project: u32, max_bytes: u64, max_inodes: u64) -> Result<(), Errno> {
    let mut quota = DiskQuota {
        version: 1,
        flags: PROJECT_QUOTA,
        field_mask: ALL_LIMITS,
        id: project,
        block_hard_limit: max_bytes / BLOCK,
        inode_hard_limit: max_inodes,
        ..DiskQuota::default()
    };
    call(file, SET_LIMITS, project, &mut quota)
}

/// The smallest project id from this one on that has limits or files; `None` if there is none.
///
/// # Errors
/// Same as [`is_enforced`].
pub fn next_used(file: BorrowedFd<'_>, from: u32) -> Result<Option<u32>, Errno> {
    let mut quota = DiskQuota::default();
    match call(file, GET_NEXT, from, &mut quota) {
        Ok(()) => Ok(Some(quota.id)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

impl From<DiskQuota> for ProjectQuota {
    fn from(quota: DiskQuota) -> Self {
        Self {
            max_bytes: quota.block_hard_limit.saturating_mul(BLOCK),
            max_inodes: quota.inode_hard_limit,
            bytes: quota.block_count.saturating_mul(BLOCK),
            inodes: quota.inode_count,
        }
    }
}

fn call<T>(file: BorrowedFd<'_>, command: u32, project: u32, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: each command reads or writes one structure, of which `argument` has the type or a larger one, and the
    // descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::c_long::from(__NR_quotactl_fd),
            file.as_raw_fd(),
            command,
            project,
            std::ptr::from_mut(argument),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}
