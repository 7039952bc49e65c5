//! `mount_setattr(2)` (Linux 5.12): the flags and the propagation of a mount that is held by a file descriptor.
#![expect(unsafe_code, reason = "rustix has no mount_setattr; the call is made by its number")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use linux_raw_sys::general;
use rustix::io::Errno;

/// No write through this mount.
pub const RDONLY: u64 = general::MOUNT_ATTR_RDONLY as u64;
/// No set-user-id, set-group-id or file capabilities.
pub const NOSUID: u64 = general::MOUNT_ATTR_NOSUID as u64;
/// No device nodes.
pub const NODEV: u64 = general::MOUNT_ATTR_NODEV as u64;
/// No programs.
pub const NOEXEC: u64 = general::MOUNT_ATTR_NOEXEC as u64;
/// The bits that hold the rule for access times: clear all of them when setting one.
pub const ATIME: u64 = general::MOUNT_ATTR__ATIME as u64;
/// Access times now and then; the rule that has no bit of its own.
pub const RELATIME: u64 = general::MOUNT_ATTR_RELATIME as u64;
/// Never access times.
pub const NOATIME: u64 = general::MOUNT_ATTR_NOATIME as u64;
/// Always access times.
pub const STRICTATIME: u64 = general::MOUNT_ATTR_STRICTATIME as u64;
/// Never access times of directories.
pub const NODIRATIME: u64 = general::MOUNT_ATTR_NODIRATIME as u64;
/// No symbolic link is followed (Linux 5.14).
pub const NOSYMFOLLOW: u64 = general::MOUNT_ATTR_NOSYMFOLLOW as u64;
/// The propagation of a mount that tells nobody and hears nobody.
pub const PRIVATE: u64 = general::MS_PRIVATE as u64;

/// What to change about a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Flags to set.
    pub set: u64,
    /// Flags to clear, before `set` is applied.
    pub clear: u64,
    /// The new propagation; 0 leaves it.
    pub propagation: u64,
}

/// Changes the one mount whose root `mount` is: not the mounts below it.
///
/// # Errors
/// `ENOSYS` before Linux 5.12, `EINVAL` for a flag that the kernel does not know or a descriptor that is not the
/// root of a mount, `EPERM` without the right.
pub fn mount_setattr(mount: BorrowedFd<'_>, change: Change) -> Result<(), Errno> {
    let attr = general::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated constant, `attr` is a live `struct mount_attr` whose size is the one
    // given, the descriptor is open for the length of the call, and the kernel writes to none of them.
    let answer = unsafe {
        libc::syscall(
            libc::c_long::from(general::__NR_mount_setattr),
            mount.as_raw_fd(),
            c"".as_ptr(),
            general::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<general::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The reason why the call before has failed.
pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
