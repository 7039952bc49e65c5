//! Refuses a pool inside another pool: deleting a volume of the outer one would delete the volumes of the inner one.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Mode, OFlags};

use super::marker::read_marker;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::DirIdentity;

/// More than the directories of the longest path.
const MAX_DEPTH: usize = 2048;

/// Looks for a marker in the directories above a pool's, as this process and as the host sees them: in a container, the
/// directories above a mount are not those of the host.
///
/// # Errors
/// `Unavailable` when there is one; otherwise the error of the failed system call.
pub fn check_outside_pools(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    check_above(root)?;
    match on_host(root, path) {
        Some(host) => check_above(host.as_fd()),
        None => Ok(()),
    }
}

/// The same directory in the mount namespace of process 1; `None` if that cannot be opened or is another directory.
fn on_host(root: BorrowedFd<'_>, path: &Path) -> Option<OwnedFd> {
    let path = Path::new("/proc/1/root").join(path.strip_prefix("/").ok()?);
    let host = fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let is_same = DirIdentity::of(host.as_fd()).ok()? == DirIdentity::of(root).ok()?;
    is_same.then_some(host)
}

fn check_above(root: BorrowedFd<'_>) -> Result<()> {
    let parent = |dir: BorrowedFd<'_>| {
        // Needs no right to read it.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(dir, "..", flags, Mode::empty()).context(|| "open a directory above it")
    };
    let identity = |dir: BorrowedFd<'_>| DirIdentity::of(dir).context(|| "stat a directory above it");
    let (mut dir, mut last) = (parent(root)?, identity(root)?);
    for _ in 0..MAX_DEPTH {
        let found = identity(dir.as_fd())?;
        if found == last {
            break;
        }
        let outer = match read_marker(dir.as_fd()) {
            Ok(None) => None,
            Ok(Some(marker)) => Some(format!("pool {}", marker.name)),
            Err(error) if error.kind() == Kind::Unreadable => Some("a pool with a damaged marker".to_owned()),
            Err(error) => return Err(error).context(|| "look for a pool above it"),
        };
        if let Some(outer) = outer {
            let text = format!("the directory is inside {outer}: name a directory that is in no other pool");
            return Err(Error::new(Kind::Unavailable, text));
        }
        (dir, last) = (parent(dir.as_fd())?, found);
    }
    Ok(())
}
