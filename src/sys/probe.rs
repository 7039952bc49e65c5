//! Which system calls this kernel knows: each is called with arguments that can do nothing.
#![expect(unsafe_code, reason = "libc has no safe wrappers for these calls")]

use std::io;

/// A system call that orlop likes to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Linux 5.2: a mount made of a filesystem, seen by nobody.
    Fsopen,
    /// Linux 5.2: a mount copied from a directory, seen by nobody.
    OpenTree,
    /// Linux 5.12: flags of a mount set before it is visible.
    MountSetattr,
    /// Linux 5.6: a path walked without leaving a directory.
    Openat2,
    /// Linux 5.14: quotas by an open file instead of a device.
    QuotactlFd,
    /// Linux 6.8: one mount's facts without reading the table.
    Statmount,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Fsopen, Self::OpenTree, Self::MountSetattr, Self::Openat2, Self::QuotactlFd, Self::Statmount];

    /// The name of its manual page.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fsopen => "fsopen",
            Self::OpenTree => "open_tree",
            Self::MountSetattr => "mount_setattr",
            Self::Openat2 => "openat2",
            Self::QuotactlFd => "quotactl_fd",
            Self::Statmount => "statmount",
        }
    }

    /// Whether the kernel knows the call; an error when a security policy hides the answer.
    ///
    /// # Errors
    /// `EPERM` where the caller lacks the right to make the call at all.
    pub fn known(self) -> io::Result<bool> {
        let number = match self {
            Self::Fsopen => libc::SYS_fsopen,
            Self::OpenTree => libc::SYS_open_tree,
            Self::MountSetattr => libc::SYS_mount_setattr,
            Self::Openat2 => libc::SYS_openat2,
            Self::QuotactlFd => libc::SYS_quotactl_fd,
            Self::Statmount => STATMOUNT,
        };
        // SAFETY: every argument is -1 or 0: descriptor -1 is never open, and where a call takes pointers they
        // are null or outside of the address space, so that it answers EBADF, EFAULT or EINVAL and does nothing.
        let result = unsafe { libc::syscall(number, NONE, ZERO, ZERO, ZERO, ZERO) };
        if result >= 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Ok(false),
            Some(libc::EPERM) => Err(error),
            _ => Ok(true),
        }
    }
}

const NONE: libc::c_long = -1;
const ZERO: libc::c_long = 0;

/// libc 0.2 does not name it for every C library; the number is the same on every architecture.
const STATMOUNT: libc::c_long = 457;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_every_supported_kernel_has_is_known() {
        assert!(Call::Openat2.known().unwrap());
    }
}
