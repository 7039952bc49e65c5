//! Whether files can share blocks.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, ioctl_ficlone, openat};
use rustix::io::Errno;

/// Reports whether files in a directory can share blocks. It tries that with two unnamed temporary files. A filesystem that
/// knows no such files does not share blocks either.
///
/// # Errors
/// The error of the system call when that cannot be tried now, for example as the filesystem is full.
pub fn shares_blocks(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let temporary = || openat(directory, ".", flags, Mode::RUSR | Mode::WUSR);
    let attempt = || {
        let (mut from, to) = (File::from(temporary()?), temporary()?);
        from.write_all(&[1; 4096])?;
        Ok(ioctl_ficlone(&to, &from)?)
    };
    match attempt() {
        Ok(()) => Ok(true),
        Err(error) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the filesystem cannot do this at all.
fn is_unsupported(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    let unsupported = [Errno::OPNOTSUPP, Errno::INVAL, Errno::XDEV, Errno::NOTTY, Errno::NOSYS, Errno::ISDIR];
    errno.is_some_and(|errno| unsupported.contains(&errno))
}
