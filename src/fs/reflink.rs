//! Whether files can share blocks.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, ioctl_ficlone, openat};

/// Reports whether files in a directory can share blocks. It tries that with two unnamed temporary files.
///
/// # Errors
/// The error of the system call when such files cannot be made.
pub fn shares_blocks(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let temporary = || openat(directory, ".", flags, Mode::RUSR | Mode::WUSR);
    let (mut from, to) = (File::from(temporary()?), temporary()?);
    from.write_all(&[1; 4096])?;
    Ok(ioctl_ficlone(&to, &from).is_ok())
}
