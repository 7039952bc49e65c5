//! The root directory of a pool: a directory of this host, or a share that is mounted for this process only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use super::PoolSettings;
use super::keeper::KeptFiles;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::nfs::is_nfs;
use crate::fs::{ChangeTime, DirIdentity};
use crate::mount::namespace::MountNamespace;

/// The open root of a pool.
#[derive(Debug)]
pub struct PoolRoot {
    dir: OwnedFd,
    /// The mount of its share.
    share: Option<MountNamespace>,
}

impl PoolRoot {
    /// Opens the directory of the settings, or mounts their share, unless a predecessor of this process has left its mount.
    ///
    /// # Errors
    /// `Unavailable` when there is no such directory, or the share cannot be mounted; otherwise the error of the failed
    /// system call.
    pub fn open(settings: &PoolSettings, kept: &KeptFiles) -> Result<Self> {
        let Some(share) = &settings.share else {
            let dir = open_dir(&settings.path)?;
            if settings.exported && is_nfs(dir.as_fd()) {
                let text = "it is on a mount of NFS, and `local` is for the NFS server itself: remove `local` from the settings on \
                            this host";
                return Err(Error::new(Kind::Unavailable, text));
            }
            return Ok(Self { dir, share: None });
        };
        let kept_name = format!("{}/mount", settings.name);
        // Its directory may be gone from the server.
        let left = kept.take(&kept_name).map(MountNamespace::from_fd);
        if let Some(mount) = left
            && let Ok(dir) = mount.root()
            && DirIdentity::of_open_with_change_time(dir.as_fd()).is_ok()
        {
            return Ok(Self { dir, share: Some(mount) });
        }
        let mount = share.mount()?;
        kept.keep(&kept_name, mount.as_fd())?;
        Ok(Self { dir: mount.root()?, share: Some(mount) })
    }

    /// Splits it into the directory and the mount, which must be kept as long as volumes are published from the directory.
    pub(super) fn into_parts(self) -> (OwnedFd, Option<MountNamespace>) {
        (self.dir, self.share)
    }
}

impl AsFd for PoolRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            Err(Error::new(Kind::Unavailable, "the directory is missing: create it, or mount its disk"))
        }
        Err(Errno::NOTDIR) => Err(Error::new(Kind::Unavailable, "the path is not a directory")),
        result => result.context(|| "open the directory"),
    }
}

/// What is the pool's directory now, and when it was changed. Another disk may be mounted at a path; the root of a share is
/// the directory that was mounted, and gone (ESTALE) when the server has removed it.
pub(super) fn current(
    settings: &PoolSettings,
    root: BorrowedFd<'_>,
) -> rustix::io::Result<(DirIdentity, ChangeTime)> {
    match settings.share {
        None => DirIdentity::with_change_time(&settings.path),
        Some(_) => DirIdentity::of_open_with_change_time(root),
    }
}
