//! What commands show of a pool beside its records: space, usage, and users. And a volume that a command mounts.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Engine;
use super::health::used;
use super::locked::{LockedVolume, read};
use super::takeover::check_usable;
use crate::error::{Error, Kind, Result};
use crate::mount::location::MountedDir;
use crate::mount::users::User;
use crate::pool::object::ObjectKind;
use crate::pool::{HostUse, Medium};
use crate::volume::{DATA, Name, PoolName, VolumeId};

/// The space of a pool, in bytes, and the number of its objects.
#[derive(Debug, Clone)]
pub struct Space {
    /// The pool.
    pub pool: PoolName,
    /// Its directory.
    pub path: PathBuf,
    /// Its backend.
    pub backend: &'static str,
    /// Size of its filesystem.
    pub total: u64,
    /// Free in its filesystem.
    pub free: u64,
    /// Provisioned to volumes.
    pub provisioned: u64,
    /// May still be provisioned.
    pub allocatable: u64,
    /// Number of volumes.
    pub volumes: usize,
    /// Number of snapshots.
    pub snapshots: usize,
    /// Number of deleted objects in the trash.
    pub trash: usize,
}

/// What uses a volume.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    /// The mounts on this host.
    pub users: Vec<User>,
    /// The hosts, if its pool is shared by several.
    pub hosts: Vec<HostUse>,
}

/// The data of a volume, which is neither deleted nor renamed while this exists.
#[derive(Debug)]
pub struct HeldData {
    data: OwnedFd,
    _locked: LockedVolume,
}

impl HeldData {
    /// The data directory, as a path-only descriptor.
    #[must_use]
    pub fn data(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }
}

impl Engine {
    /// The space of a pool.
    ///
    /// # Errors
    /// `Unavailable` if the pool is; otherwise the error of the failed system call.
    pub fn space(&self, pool: &PoolName) -> Result<Space> {
        let pool = self.pool(pool)?;
        let stats = pool.fs_stats_after_errors()?;
        let index = pool.index()?;
        let (provisioned, volumes, snapshots) =
            (index.provisioned(), index.volumes().len(), index.snapshots().len());
        drop(index);
        Ok(Space {
            pool: pool.settings.name.clone(),
            path: pool.settings.path.clone(),
            backend: pool.backend.kind().as_str(),
            total: stats.total,
            free: stats.free,
            provisioned,
            allocatable: pool.allocatable_beside(stats, provisioned),
            volumes,
            snapshots,
            trash: pool.store.trash().entries()?.len(),
        })
    }

    /// The path of a volume's data, existing or not; `None` if its pool is in no settings.
    #[must_use]
    pub fn path_of_data(&self, id: &VolumeId) -> Option<PathBuf> {
        let settings = self.pool_settings().find(|pool| pool.name == id.pool)?;
        let volumes = settings.path.join(ObjectKind::Volumes.directory());
        Some(volumes.join(id.name.as_str()).join(DATA))
    }

    /// Whether a volume has its data directory.
    ///
    /// # Errors
    /// `Unavailable` if the pool is, or when something is mounted at the directory.
    pub fn has_data(&self, id: &VolumeId) -> Result<bool> {
        Ok(self.pool(&id.pool)?.store.data(ObjectKind::Volumes, &id.name)?.is_some())
    }

    /// The volumes of a pool that are in use, with their users. Loop devices and overlays are not looked for.
    ///
    /// # Errors
    /// `Unavailable` if the pool is; `Internal` if the processes cannot be listed.
    pub fn used_volumes(&self, pool: &PoolName) -> Result<BTreeMap<Name, Uses>> {
        let pool = self.pool(pool)?;
        let mut found: BTreeMap<Name, Uses> = BTreeMap::new();
        let mounted = self.users.entries_mounted(pool.store.directory(ObjectKind::Volumes))?;
        let names = mounted.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse::<Name>().ok());
        let (mut used, mut directories) = (Vec::new(), Vec::new());
        for name in names {
            // Not kept open: there may be more of them than this process may have open files.
            let Some(data) = pool.store.data(ObjectKind::Volumes, &name)? else { continue };
            directories.push(MountedDir::of(data.as_fd())?);
            used.push(name);
        }
        // One scan for all of them.
        let users = if directories.is_empty() { Vec::new() } else { self.users.of_each(&directories)? };
        for (name, users) in used.into_iter().zip(users).filter(|(_, users)| !users.is_empty()) {
            found.entry(name).or_default().users = users;
        }
        if let Some(used) = pool.used() {
            for name in pool.store.names(ObjectKind::Volumes)? {
                let hosts = used.users(&name)?;
                if !hosts.is_empty() {
                    found.entry(name).or_default().hosts = hosts;
                }
            }
        }
        Ok(found)
    }

    /// The bytes that these volumes of a pool take, as far as they are known within `wait`.
    ///
    /// # Errors
    /// `Unavailable` if the pool is.
    pub fn used_bytes(&self, pool: &PoolName, names: &[Name], wait: Duration) -> Result<BTreeMap<Name, u64>> {
        let (pool, deadline) = (self.pool(pool)?, Instant::now() + wait);
        let mut found = BTreeMap::new();
        for name in names {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let id = VolumeId { pool: pool.settings.name.clone(), name: name.clone() };
            // A volume that cannot be measured does not hide the others.
            let bytes = read(&pool, &id).and_then(|volume| match volume {
                Some(volume) => Ok(used(&pool, &volume, left)?.0),
                None => Ok(None),
            });
            found.extend(bytes.ok().flatten().map(|bytes| (name.clone(), bytes)));
        }
        Ok(found)
    }

    /// Holds a volume that the caller is about to mount by itself.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` in a pool that several hosts share, since they would not see the mount.
    pub fn hold(&self, id: &VolumeId) -> Result<HeldData> {
        let locked = self.lock_volume(id)?;
        locked.require()?;
        check_usable(&locked)?;
        if locked.pool.medium == Medium::Shared {
            let text = format!(
                "volume {id}: several hosts share its pool, and they would not see that this command uses it"
            );
            return Err(Error::new(Kind::Unsupported, text));
        }
        let data = locked.pool.store.data(ObjectKind::Volumes, &id.name)?;
        let data = data.ok_or_else(|| Error::new(Kind::NotFound, format!("volume {id} has no data")))?;
        Ok(HeldData { data, _locked: locked })
    }
}
