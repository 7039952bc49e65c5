//! `mount_setattr(2)` (Linux 5.12): changes the flags and the propagation of a mount, given a file descriptor of it.
#![expect(unsafe_code, reason = "rustix has no mount_setattr, so it is called by its number")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use linux_raw_sys::general;
use rustix::io::Errno;

/// Writes through the mount fail.
pub const RDONLY: u64 = general::MOUNT_ATTR_RDONLY as u64;
/// Set-user-id bits, set-group-id bits and file capabilities are ignored.
pub const NOSUID: u64 = general::MOUNT_ATTR_NOSUID as u64;
/// Device nodes cannot be opened.
pub const NODEV: u64 = general::MOUNT_ATTR_NODEV as u64;
/// Programs cannot be executed.
pub const NOEXEC: u64 = general::MOUNT_ATTR_NOEXEC as u64;
/// Mask of the access-time bits: clear all of them when setting one.
pub const ATIME: u64 = general::MOUNT_ATTR__ATIME as u64;
/// Access times are updated if they are older than the last change or than a day. The value is 0.
pub const RELATIME: u64 = general::MOUNT_ATTR_RELATIME as u64;
/// Access times are never updated.
pub const NOATIME: u64 = general::MOUNT_ATTR_NOATIME as u64;
/// Access times are updated at every read.
pub const STRICTATIME: u64 = general::MOUNT_ATTR_STRICTATIME as u64;
/// Access times of directories are never updated.
pub const NODIRATIME: u64 = general::MOUNT_ATTR_NODIRATIME as u64;
/// Symbolic links are not followed (Linux 5.14).
pub const NOSYMFOLLOW: u64 = general::MOUNT_ATTR_NOSYMFOLLOW as u64;
/// Private propagation: the mount neither sends nor receives mount events.
pub const PRIVATE: u64 = general::MS_PRIVATE as u64;

/// A change of a mount's attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Flags to set.
    pub set: u64,
    /// Flags to clear, before `set` is applied.
    pub clear: u64,
    /// The new propagation; 0: unchanged.
    pub propagation: u64,
}

/// Changes the mount whose root is `mount`, but not the mounts below it.
///
/// # Errors
/// `ENOSYS` before Linux 5.12; `EINVAL` for a flag that the kernel does not know or a descriptor that is not the root
/// of a mount; `EPERM` without the privilege.
pub fn mount_setattr(mount: BorrowedFd<'_>, change: Change) -> Result<(), Errno> {
    set_attributes(mount, 0, change)
}

/// Like [`mount_setattr`], for all mounts below it, too.
///
/// # Errors
/// Same as [`mount_setattr`].
pub fn mount_setattr_of_tree(mount: BorrowedFd<'_>, change: Change) -> Result<(), Errno> {
    set_attributes(mount, general::AT_RECURSIVE, change)
}

fn set_attributes(mount: BorrowedFd<'_>, flags: u32, change: Change) -> Result<(), Errno> {
    let attr = general::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated constant, `attr` is a live `struct mount_attr` of the size that is passed,
    // the descriptor is open during the call, and the kernel writes to none of them.
    let result = unsafe {
        libc::syscall(
            libc::c_long::from(general::__NR_mount_setattr),
            mount.as_raw_fd(),
            c"".as_ptr(),
            general::AT_EMPTY_PATH | flags,
            &raw const attr,
            size_of::<general::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Returns the errno of the last failed call in this thread.
pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
