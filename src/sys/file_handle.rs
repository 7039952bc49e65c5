//! Opens a file through another mount of its filesystem (`name_to_handle_at(2)`, `open_by_handle_at(2)`).
#![expect(unsafe_code, reason = "rustix has neither call")]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use super::mount_setattr::last_errno;

/// `struct file_handle` with the largest handle, `MAX_HANDLE_SZ`.
#[repr(C)]
struct FileHandle {
    handle_bytes: u32,
    handle_type: i32,
    handle: [u8; 128],
}

/// Opens the file behind a descriptor as a path-only descriptor, through the mount that `through` was opened through.
///
/// # Errors
/// `EOPNOTSUPP` on a filesystem without handles; `ESTALE` if `through` is on another filesystem or the file was removed;
/// `EPERM` without `CAP_DAC_READ_SEARCH` in the initial user namespace.
pub fn open_through(file: BorrowedFd<'_>, through: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut handle = FileHandle { handle_bytes: 128, handle_type: 0, handle: [0; 128] };
    let mut mount_id = 0_i32;
    // SAFETY: the path is a C string, `handle` has space for the number of bytes that it contains, and the kernel writes
    // one `int` to `mount_id`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(last_errno());
    }
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: `handle` is a complete handle, which the kernel only reads.
    let result =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, through.as_raw_fd(), &raw const handle, flags) };
    let opened = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(last_errno)?;
    // SAFETY: the kernel returned a new descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}
