//! Static shares: directories of a server that a request names. orlop mounts them and does not manage them.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Engine;
use super::publish::{check_published, is_inline, is_root_of, is_stale, refuse_second_target};
use super::request::{Amounts, Sharing, Usage};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs;
use crate::mount::{self, MountFlags, MountInfo};
use crate::remote::{self, NfsShare};
use crate::volume::VolumeId;

/// A request to mount a directory of a share at a path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PublishShare {
    /// The id of the volume in the request.
    pub id: String,
    /// The share, with its options.
    pub share: NfsShare,
    /// The directory of the share that is mounted: a relative path without `..`; empty: all of it.
    pub directory: PathBuf,
    /// The target: an absolute path whose parent exists.
    pub target: PathBuf,
    /// Flags of the mount, including read-only.
    pub flags: MountFlags,
    /// Whether the directory may have other targets at the same time.
    pub sharing: Sharing,
}

impl Engine {
    /// Mounts a directory of a share at a path. Does nothing if it is mounted there with the same flags.
    ///
    /// # Errors
    /// `Unavailable` when the share cannot be mounted, or has no such directory; `Conflict` when something else, or the
    /// directory with other flags, is mounted at the target; `InUse` when it may have one target only and has another;
    /// `Invalid` for a path that cannot be a target.
    pub fn publish_share(&self, request: &PublishShare) -> Result<()> {
        let PublishShare { id, share, directory, target, flags, sharing } = request;
        remote::check_network()?;
        let named = || format!("publish share {share} of volume {id}");
        // First what may wait for the server: an unpublish of the target must not wait for it.
        let mount = share.mount().context(named)?;
        let root = mount.root().context(named)?;
        let dir = match directory.as_os_str().is_empty() {
            true => root,
            false => fs::open_below(root.as_fd(), directory.as_path())
                .map_err(|errno| no_directory(request, errno))
                .context(named)?,
        };
        // Two targets at once would each find no other one.
        let location = PathBuf::from(share.to_string()).join(directory);
        let _only = match sharing {
            Sharing::OneTarget => Some(self.lock_target(&location)?),
            Sharing::ManyTargets => None,
        };
        let is_stale = is_stale(target, dir.as_fd()).context(named)?;
        let _target = self.lock_target(target)?;
        if let Some(found) = mount::mounted_at(target).context(named)? {
            let checked = check_published(id, target, *flags, &found, dir.as_fd());
            if checked.is_err() || !is_stale {
                return checked.context(named);
            }
            mount::detach_lazily(target).context(named)?;
        }
        if *sharing == Sharing::OneTarget {
            refuse_second_target(id, target, dir.as_fd()).context(named)?;
        }
        let opened = mount::open_target(target).context(named)?;
        mount::attach(dir.as_fd(), opened.as_fd(), *flags).context(named)
    }

    /// Unmounts a share from a path and removes the directory there. Reports whether nothing is left to do: a volume of a
    /// pool is left to [`Engine::unpublish`]. Does not wait for a server.
    ///
    /// # Errors
    /// `InUse` while a process of this host holds the mount; `Busy` when its server does not respond and it is still
    /// mounted after some seconds.
    pub fn unpublish_share(&self, id: &str, target: &Path) -> Result<bool> {
        if is_inline(id) || self.is_id_of_pool(id) {
            return Ok(false);
        }
        let _target = self.lock_target(target)?;
        let named = || format!("unpublish share {id}");
        let mut is_unmounted = false;
        while let Some(found) = mount::mounted_at(target).context(named)? {
            if !is_share(id, &found) {
                return Ok(false);
            }
            mount::detach_share(target).context(named)?;
            is_unmounted = true;
        }
        if is_unmounted {
            mount::remove_target(target).context(named)?;
        }
        Ok(is_unmounted || self.is_share_no_more(id, target))
    }

    /// Whether nothing is at the target and the id is only that of a share. kubelet repeats a request whose answer it has
    /// not got.
    fn is_share_no_more(&self, id: &str, target: &Path) -> bool {
        let may_be_volume = id.parse::<VolumeId>().is_ok() || self.pool_of_inline_volume(id).is_some();
        !may_be_volume && !target.exists()
    }

    /// The server of the share that is published at a path with this id. Does not contact it.
    ///
    /// # Errors
    /// `Internal` when the mount table cannot be read.
    pub fn server_of_share(&self, id: &str, path: &Path) -> Result<Option<String>> {
        if self.is_id_of_pool(id) {
            return Ok(None);
        }
        let found = match mount::mounted_at(path) {
            Err(error) if error.kind() == Kind::Invalid => None,
            found => found?,
        };
        Ok(found.filter(|found| is_share(id, found)).and_then(|found| found.nfs_server().map(str::to_owned)))
    }

    /// The usage of the filesystem of a share that is published at a path. Waits for its server.
    ///
    /// # Errors
    /// `Unavailable` when the server reports an error.
    pub fn usage_of_share(&self, path: &Path) -> Result<Usage> {
        let stats = rustix::fs::statvfs(path).map_err(|errno| {
            let text = format!("read the usage of the share at {}", path.display());
            Error::caused(Kind::Unavailable, text, std::io::Error::from(errno))
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(stats.f_frsize);
        let amounts = |total: u64, free: u64, available: u64| Amounts {
            total,
            used: Some(total.saturating_sub(free)),
            available,
        };
        Ok(Usage {
            bytes: amounts(bytes(stats.f_blocks), bytes(stats.f_bfree), bytes(stats.f_bavail)),
            inodes: amounts(stats.f_files, stats.f_ffree, stats.f_favail),
        })
    }

    fn is_id_of_pool(&self, id: &str) -> bool {
        let id: Option<VolumeId> = id.parse().ok();
        id.is_some_and(|id| self.pools.iter().any(|pool| pool.settings().name == id.pool))
    }
}

/// Whether a mount is one of a share, and not of a volume of this id whose pool is no longer configured.
fn is_share(id: &str, found: &MountInfo) -> bool {
    let is_volume = |id: VolumeId| is_root_of(&found.root, &id.name);
    found.nfs_server().is_some() && !id.parse().is_ok_and(is_volume)
}

fn no_directory(request: &PublishShare, errno: Errno) -> Error {
    let why = match errno {
        Errno::NOENT => "does not exist: create it, since orlop does not manage the share",
        Errno::LOOP | Errno::XDEV | Errno::NOTDIR => {
            "is no directory of the share, or a symbolic link leads to it"
        }
        _ => "cannot be opened",
    };
    let text = format!("its directory {:?} {why}", request.directory);
    Error::caused(Kind::Unavailable, text, std::io::Error::from(errno))
}
