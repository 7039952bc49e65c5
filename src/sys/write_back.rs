//! `sync_file_range(2)`: writes the changed pages of a file to its disk, without its metadata.
#![expect(unsafe_code, reason = "rustix has no such call")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

use super::mount_setattr::last_errno;

/// Writes all changed pages of an open file and waits for them. Afterwards the next store through a mapping of the file
/// faults, so that the filesystem can set the times of the file. It takes microseconds if no page has changed.
///
/// # Errors
/// `ENOSYS` or `EINVAL` where the kernel or the filesystem has no such call; otherwise the error of a failed write.
pub fn write_back(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // Without all three the kernel leaves out pages that were changed while they are being written.
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, flags)
}

/// Starts to write the changed pages of an open file, so that a later sync has less to do. It waits for the disk only while that
/// has many requests, and changes nothing where it does not work.
pub fn start_write_back(file: BorrowedFd<'_>) {
    let _ = sync_range(file, libc::SYNC_FILE_RANGE_WRITE);
}

fn sync_range(file: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    // SAFETY: the call takes integers only, and the descriptor is open. A length of 0 means the end of the file.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}
