//! Mounts made by mount(2), for kernels before 5.12.
//!
//! A bind mount that is made first and remounted read-only afterwards is writable for a moment, and stays writable
//! wherever it has propagated to, since a remount does not propagate. So the mount is made in a private staging
//! directory and moved into place when its flags are set: what propagates is a copy with all flags.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags as MsFlags, MountPropagationFlags, UnmountFlags};

use super::location::fd_link;
use super::options::MountFlags;
use crate::error::{Context as _, Error, Kind, Result};

/// `flags` must be complete: a remount clears every flag that it does not name.
pub(super) fn attach(source: BorrowedFd<'_>, target: BorrowedFd<'_>, flags: MountFlags) -> Result<()> {
    let staging = StagingMount::new()?;
    let at = &staging.dir;
    rustix::mount::mount_bind(fd_link(source), at).context(|| "bind the directory")?;
    rustix::mount::mount_remount(at, MsFlags::BIND | flags.ms_flags(), c"")
        .context(|| "set the flags of the mount")?;
    rustix::mount::mount_change(at, MountPropagationFlags::PRIVATE).context(|| "make the mount private")?;
    rustix::mount::mount_move(at, fd_link(target)).context(|| "move the mount into place")
}

/// A directory that is mounted on itself and private: a mount cannot be moved out of a shared parent mount.
struct StagingMount {
    dir: PathBuf,
}

impl StagingMount {
    fn new() -> Result<Self> {
        let staging = Self { dir: create_staging_dir()? };
        let at = &staging.dir;
        rustix::mount::mount_bind(at, at).context(|| format!("bind {} on itself", at.display()))?;
        rustix::mount::mount_change(at, MountPropagationFlags::PRIVATE)
            .context(|| format!("make {} private", at.display()))?;
        Ok(staging)
    }
}

impl Drop for StagingMount {
    fn drop(&mut self) {
        // At most two mounts: the staging mount and, after a failure, the unfinished mount on it. A lazy unmount is
        // safe, because no other process uses the directory.
        while rustix::mount::unmount(&self.dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        // Best effort: an empty directory may stay in the temporary directory.
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Creates a directory that only root can enter, below `TMPDIR` or `/tmp`.
fn create_staging_dir() -> Result<PathBuf> {
    let base = std::env::temp_dir();
    for attempt in 0_u32.. {
        let name =
            format!(".orlop-{}-{}-{attempt}", std::process::id(), rustix::thread::gettid().as_raw_nonzero());
        let dir = base.join(name);
        match rustix::fs::mkdir(&dir, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            result => return result.context(|| format!("create {}", dir.display())).map(|()| dir),
        }
    }
    Err(Error::new(Kind::Internal, format!("create a directory in {}: all names are taken", base.display())))
}
