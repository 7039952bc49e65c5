//! The project id of a directory (`ioctl_xfs_fsgetxattr(2)`), which rustix does not read.
#![expect(unsafe_code, reason = "rustix has no such call, so it is called by its number")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use linux_raw_sys::general::{FS_XFLAG_PROJINHERIT, fsxattr};
use linux_raw_sys::ioctl::FS_IOC_FSGETXATTR;
use rustix::io::Errno;

use super::mount_setattr::last_errno;

/// Returns the project id that new entries of an open directory inherit; `None` if it has no inheritance.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` on a filesystem without project ids; otherwise the error of the failed system call.
pub fn inherited_project(dir: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    let mut attributes = fsxattr {
        fsx_xflags: 0,
        fsx_extsize: 0,
        fsx_nextents: 0,
        fsx_projid: 0,
        fsx_cowextsize: 0,
        fsx_pad: [0; 8],
    };
    // SAFETY: the request writes one `struct fsxattr`, which `attributes` is, and the descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            dir.as_raw_fd(),
            libc::c_long::from(FS_IOC_FSGETXATTR),
            std::ptr::from_mut(&mut attributes),
        )
    };
    match result {
        0 => Ok((attributes.fsx_xflags & FS_XFLAG_PROJINHERIT != 0).then_some(attributes.fsx_projid)),
        _ => Err(last_errno()),
    }
}
