//! The project id of a directory (`ioctl_xfs_fsgetxattr(2)`), which rustix neither reads nor writes.
#![expect(unsafe_code, reason = "rustix has no such call, so it is called by its number")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use linux_raw_sys::general::{FS_XFLAG_PROJINHERIT, fsxattr};
use linux_raw_sys::ioctl::{FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR};
use rustix::io::Errno;

use super::mount_setattr::last_errno;

/// The project of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Project {
    /// Its id; 0 is that of everything that was never given another one.
    pub id: u32,
    /// Whether new entries of the directory get the same id.
    pub is_inherited: bool,
}

/// Returns the project of an open file or directory.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` on a filesystem without project ids; otherwise the error of the failed system call.
pub fn project(file: BorrowedFd<'_>) -> Result<Project, Errno> {
    let attributes = attributes(file)?;
    let is_inherited = attributes.fsx_xflags & FS_XFLAG_PROJINHERIT != 0;
    Ok(Project { id: attributes.fsx_projid, is_inherited })
}

/// Gives an open file or directory another project.
///
/// # Errors
/// `EOPNOTSUPP` on ext4 without the feature `project`; `EDQUOT` or `ENOSPC` if the project is at its limit; otherwise the
/// error of the failed system call.
pub fn set_project(file: BorrowedFd<'_>, project: Project) -> Result<(), Errno> {
    let mut attributes = attributes(file)?;
    attributes.fsx_projid = project.id;
    attributes.fsx_xflags &= !FS_XFLAG_PROJINHERIT;
    if project.is_inherited {
        attributes.fsx_xflags |= FS_XFLAG_PROJINHERIT;
    }
    call(file, FS_IOC_FSSETXATTR, &mut attributes)
}

fn attributes(file: BorrowedFd<'_>) -> Result<fsxattr, Errno> {
    let mut attributes = fsxattr {
        fsx_xflags: 0,
        fsx_extsize: 0,
        fsx_nextents: 0,
        fsx_projid: 0,
        fsx_cowextsize: 0,
        fsx_pad: [0; 8],
    };
    call(file, FS_IOC_FSGETXATTR, &mut attributes).map(|()| attributes)
}

fn call(file: BorrowedFd<'_>, request: u32, attributes: &mut fsxattr) -> Result<(), Errno> {
    // SAFETY: both requests read or write one `struct fsxattr`, which `attributes` is, and the descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            file.as_raw_fd(),
            libc::c_long::from(request),
            std::ptr::from_mut(attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}
