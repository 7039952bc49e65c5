//! Attaching on kernels before 5.12, by mount(2).
//!
//! A bind that is mounted first and made read-only after is writable for a moment, and for good wherever it has
//! propagated to, since a remount does not propagate. So it is made on a private stage that nobody looks at and moved
//! in place when it is done: what propagates is a copy with all its flags.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags as Classic, MountPropagationFlags, UnmountFlags};

use super::location::link_to;
use super::options::MountFlags;
use crate::error::{Context as _, Result};

/// `flags` are all the flags that the mount shall have: a remount takes away what it does not name.
pub(super) fn attach(source: BorrowedFd<'_>, target: BorrowedFd<'_>, flags: MountFlags) -> Result<()> {
    let stage = Stage::new()?;
    let at = &stage.dir;
    rustix::mount::mount_bind(link_to(source), at).context(|| "bind the directory")?;
    rustix::mount::mount_remount(at, Classic::BIND | flags.classic(), c"").context(|| "set the flags")?;
    rustix::mount::mount_change(at, MountPropagationFlags::PRIVATE).context(|| "make the mount private")?;
    rustix::mount::mount_move(at, link_to(target)).context(|| "move the mount in place")
}

/// A directory mounted on itself, private: a mount can only be moved from one that is.
struct Stage {
    dir: PathBuf,
}

impl Stage {
    fn new() -> Result<Self> {
        let dir = new_dir()?;
        let stage = Self { dir };
        let at = &stage.dir;
        rustix::mount::mount_bind(at, at).context(|| format!("bind {} on itself", at.display()))?;
        rustix::mount::mount_change(at, MountPropagationFlags::PRIVATE)
            .context(|| format!("make {} private", at.display()))?;
        Ok(stage)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // At most two: the stage and, after a failure, what stood on it. Nobody else knows the place.
        while rustix::mount::unmount(&self.dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        let _left_to_tmp = std::fs::remove_dir(&self.dir);
    }
}

/// A new directory that only root may enter. On a read-only root, `TMPDIR` says where.
fn new_dir() -> Result<PathBuf> {
    let base = std::env::temp_dir();
    for turn in 0_u32.. {
        let name =
            format!(".orlop-{}-{}-{turn}", std::process::id(), rustix::thread::gettid().as_raw_nonzero());
        let dir = base.join(name);
        match rustix::fs::mkdir(&dir, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            made => return made.context(|| format!("make {}", dir.display())).map(|()| dir),
        }
    }
    Ok(base)
}
