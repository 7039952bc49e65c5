//! Detects which system calls the kernel has, by calling each with arguments that have no effect.
#![expect(unsafe_code, reason = "libc has no safe wrappers for these calls")]

use std::io;

/// A system call that orlop uses where the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Linux 5.2: clones a mount, detached.
    OpenTree,
    /// Linux 5.12: sets the flags of a mount before it is attached.
    MountSetattr,
    /// Linux 5.6: opens a path without leaving a directory.
    Openat2,
    /// Linux 6.8: describes one mount without reading the mount table.
    Statmount,
}

impl Call {
    /// All system calls.
    pub const ALL: [Self; 4] = [Self::OpenTree, Self::MountSetattr, Self::Openat2, Self::Statmount];

    /// Returns the name, as in the manual pages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenTree => "open_tree",
            Self::MountSetattr => "mount_setattr",
            Self::Openat2 => "openat2",
            Self::Statmount => "statmount",
        }
    }

    /// Reports whether the kernel has the call.
    ///
    /// # Errors
    /// `EPERM` if the caller lacks the privilege or a security policy denies the call, so that the answer is unknown.
    pub fn is_supported(self) -> io::Result<bool> {
        let number = match self {
            Self::OpenTree => libc::SYS_open_tree,
            Self::MountSetattr => libc::SYS_mount_setattr,
            Self::Openat2 => libc::SYS_openat2,
            Self::Statmount => STATMOUNT,
        };
        // SAFETY: every argument is -1 or 0. Descriptor -1 is never open, and pointers are null or outside of the
        // address space, so the call fails with EBADF, EFAULT or EINVAL and has no effect.
        let result = unsafe { libc::syscall(number, MINUS_ONE, ZERO, ZERO, ZERO, ZERO) };
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

const MINUS_ONE: libc::c_long = -1;
const ZERO: libc::c_long = 0;

/// libc 0.2 does not define it for every C library. The number is the same on all architectures.
const STATMOUNT: libc::c_long = 457;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_every_supported_kernel_has_is_detected() {
        assert!(Call::Openat2.is_supported().unwrap());
    }
}
