//! Attributes of files for which rustix has no call: the read-only flag of a btrfs subvolume (`ioctl_btrfs`), and the flags
//! and the project id of a file that cannot be opened (`file_getattr(2)`, Linux 6.17).
#![expect(unsafe_code, reason = "rustix has none of these calls, so they are called by their numbers")]

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use linux_raw_sys::general::{self, file_attr};
use linux_raw_sys::ioctl;
use rustix::io::Errno;

use super::mount_setattr::last_errno;

const SUBVOLUME_READ_ONLY: u64 = linux_raw_sys::btrfs::BTRFS_SUBVOL_RDONLY as u64;
const IMMUTABLE: u64 = (general::FS_XFLAG_IMMUTABLE | general::FS_XFLAG_APPEND) as u64;

/// Clears the read-only flag of a btrfs subvolume, given its open top directory; reports whether it was set.
///
/// # Errors
/// `ENOTTY` on another filesystem; `EINVAL` for a directory that is not the top of a subvolume; `EROFS` on a read-only
/// mount; `EPERM` without the privilege.
pub fn make_subvolume_writable(top: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut flags = 0;
    subvolume_ioctl(top, ioctl::BTRFS_IOC_SUBVOL_GETFLAGS, &mut flags)?;
    if flags & SUBVOLUME_READ_ONLY == 0 {
        return Ok(false);
    }
    flags &= !SUBVOLUME_READ_ONLY;
    subvolume_ioctl(top, ioctl::BTRFS_IOC_SUBVOL_SETFLAGS, &mut flags).map(|()| true)
}

fn subvolume_ioctl(top: BorrowedFd<'_>, request: u32, flags: &mut u64) -> Result<(), Errno> {
    // SAFETY: both requests read or write one 64-bit integer, which `flags` is, and the descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            top.as_raw_fd(),
            libc::c_long::from(request),
            std::ptr::from_mut(flags),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Clears the immutable and append-only flags of a name of any type, which is not followed; reports whether any was set. The
/// kernel does not accept a path-only descriptor.
///
/// # Errors
/// `ENOSYS` before Linux 6.17; `EOPNOTSUPP` where the filesystem has no flags for this type of file; `EPERM` without the
/// privilege.
pub fn make_mutable(at: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    let mut attributes = attributes(at, name)?;
    if attributes.fa_xflags & IMMUTABLE == 0 {
        return Ok(false);
    }
    attributes.fa_xflags &= !IMMUTABLE;
    file_attr_call(general::__NR_file_setattr, at, name, &mut attributes).map(|()| true)
}

/// Returns the project id of a name of any type, which is not followed.
///
/// # Errors
/// `ENOSYS` before Linux 6.17; `EOPNOTSUPP` where the filesystem has no project ids for this type of file.
pub fn project_of_name(at: BorrowedFd<'_>, name: &CStr) -> Result<u32, Errno> {
    attributes(at, name).map(|attributes| attributes.fa_projid)
}

/// Gives a name of any type, which is not followed, a project id.
///
/// # Errors
/// Same as [`project_of_name`]; `EDQUOT` or `ENOSPC` if the project is at its limit; `EPERM` without the privilege.
pub fn set_project_of_name(at: BorrowedFd<'_>, name: &CStr, project: u32) -> Result<(), Errno> {
    let attributes = attributes(at, name)?;
    let mut attributes = file_attr { fa_projid: project, ..attributes };
    file_attr_call(general::__NR_file_setattr, at, name, &mut attributes)
}

fn attributes(at: BorrowedFd<'_>, name: &CStr) -> Result<file_attr, Errno> {
    let mut attributes =
        file_attr { fa_xflags: 0, fa_extsize: 0, fa_nextents: 0, fa_projid: 0, fa_cowextsize: 0 };
    file_attr_call(general::__NR_file_getattr, at, name, &mut attributes).map(|()| attributes)
}

fn file_attr_call(
    number: u32,
    at: BorrowedFd<'_>,
    name: &CStr,
    attributes: &mut file_attr,
) -> Result<(), Errno> {
    // SAFETY: the name is NUL-terminated, `attributes` is a live `struct file_attr` of the size that is passed,
    // and the descriptor is open during the call.
    let result = unsafe {
        libc::syscall(
            libc::c_long::from(number),
            at.as_raw_fd(),
            name.as_ptr(),
            std::ptr::from_mut(attributes),
            size_of::<file_attr>(),
            general::AT_SYMLINK_NOFOLLOW,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}
