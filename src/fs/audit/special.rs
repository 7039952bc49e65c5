//! Files that cannot be opened, and whose project the kernel does not set: they are made again.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, Statx, mknodat, readlinkat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::attributes::Attributes;
use crate::fs::{kind_of, open_path};

/// The name of the new file until it replaces the old one.
const NEW: &CStr = c"new";

/// Replaces a file by a new one of the same type, attributes and times, made in `scratch`, whose project it gets. Its number and
/// its change time are new.
///
/// # Errors
/// `Unsupported` for a file with several names; otherwise the error of the failed system call. The old file stays then.
pub(super) fn make_again(
    at: BorrowedFd<'_>,
    name: &CStr,
    stat: &Statx,
    scratch: BorrowedFd<'_>,
) -> Result<()> {
    if stat.stx_nlink > 1 {
        let text = "the kernel cannot set the project of this type of file, and this one has several names: leave it one";
        return Err(Error::new(Kind::Unsupported, text));
    }
    match unlinkat(scratch, NEW, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        removed => removed.context(|| "remove an unfinished file")?,
    }
    let old = open_path(at, name).context(|| "open")?;
    let kind = kind_of(stat);
    if kind == FileType::Symlink {
        let target = readlinkat(&old, c"", Vec::new()).context(|| "read the symlink")?;
        symlinkat(target, scratch, NEW).context(|| "make the symlink again")?;
    } else {
        let device = rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
        let mode = Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o777);
        mknodat(scratch, NEW, kind, mode, device).context(|| "make the node again")?;
    }
    Attributes::new().copy_to_name(old.as_fd(), scratch, NEW, stat)?;
    renameat(scratch, NEW, at, name).context(|| "replace the old file")
}
