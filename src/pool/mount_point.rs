//! Whether the disk of a pool is mounted.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, Mode, OFlags};

use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::mountinfo;

/// Whether a filesystem, or a part of one, is mounted exactly at `path`, as the host sees it.
///
/// In a container every pool's path is a mount point, even without a disk on the host. If the root of the mount is that of
/// a filesystem, a disk is mounted. Otherwise the mount table of process 1 decides; if it cannot be read, the path counts
/// as a mount point.
///
/// # Errors
/// `Internal` when no mount table can be read.
pub(super) fn is_mount_point(path: &Path) -> Result<bool> {
    let path = path.as_os_str().as_bytes();
    let Some(own) = mountinfo::by_target(path)? else { return Ok(false) };
    if own.root.as_os_str() == "/" {
        return Ok(true);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(host) = fs::open("/proc/1/mountinfo", flags, Mode::empty()) else { return Ok(true) };
    let mut found = false;
    let visit = |line: mountinfo::Line<'_>| {
        found |= *line.target() == *path;
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    mountinfo::Reader::default().each(host, visit).context(|| "read the host's mount table")?;
    Ok(found)
}

/// Refuses a directory at which nothing is mounted.
///
/// # Errors
/// `Unavailable` in that case; otherwise those of [`is_mount_point`].
pub(super) fn check(path: &Path) -> Result<()> {
    if is_mount_point(path)? {
        return Ok(());
    }
    let text = "nothing is mounted there, and its settings say mounted = true: mount its disk";
    Err(Error::new(Kind::Unavailable, text))
}
