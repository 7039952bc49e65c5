//! What commands show of a pool beside its records: space, usage, and users. And a volume that a command mounts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Engine;
use super::health::{open_data, used_by_backend};
use super::locked::LockedVolume;
use super::takeover::check_usable;
use crate::error::{Error, Kind, Result};
use crate::fs::Measurement;
use crate::mount::location::MountedDir;
use crate::mount::users::User;
use crate::pool::object::ObjectKind;
use crate::pool::{HostUse, Medium, OpenPool};
use crate::volume::{DATA, Name, PoolName, Volume, VolumeId};

/// How long a volume is measured before it is the turn of the next one: a large volume does not hide the small ones.
const TURN: Duration = Duration::from_millis(5);
/// Number of measurements that are begun at once. Each has some open directories.
const MOST_MEASURED: usize = 4;

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

/// The users of the volumes of a pool.
#[derive(Debug, Clone, Default)]
pub struct PoolUses {
    known: BTreeMap<Name, Uses>,
    unknown: BTreeSet<Name>,
}

impl PoolUses {
    /// Takes out the users of a volume; `None` if they are not known.
    pub fn take(&mut self, name: &Name) -> Option<Uses> {
        let found = self.known.remove(name);
        // A host that uses it is known, whatever is mounted on this one.
        if self.unknown.contains(name) { found } else { Some(found.unwrap_or_default()) }
    }
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

    /// The users of the volumes of a pool. Loop devices and overlays are not looked for.
    ///
    /// # Errors
    /// `Unavailable` if the pool is; `Internal` if the processes cannot be listed.
    pub fn uses_of_pool(&self, pool: &PoolName) -> Result<PoolUses> {
        let pool = self.pool(pool)?;
        let mut found = PoolUses::default();
        let mounted = self.users.entries_mounted(pool.store.directory(ObjectKind::Volumes))?;
        let names = mounted.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse::<Name>().ok());
        let (mut used, mut directories) = (Vec::new(), Vec::new());
        for name in names {
            // Not kept open: there may be more of them than this process may have open files.
            let data = pool.store.data(ObjectKind::Volumes, &name);
            match data.and_then(|data| data.map(|data| MountedDir::of(data.as_fd())).transpose()) {
                Ok(Some(directory)) => {
                    directories.push(directory);
                    used.push(name);
                }
                Ok(None) => {}
                // For example, something is mounted at the directory. That does not hide the other volumes.
                Err(_) => drop(found.unknown.insert(name)),
            }
        }
        // One scan for all of them.
        let users = if directories.is_empty() { Vec::new() } else { self.users.of_each(&directories)? };
        for (name, users) in used.into_iter().zip(users) {
            found.known.entry(name).or_default().users = users;
        }
        if let Some(used) = pool.used() {
            for (name, hosts) in used.all_users()? {
                found.known.entry(name).or_default().hosts = hosts;
            }
        }
        Ok(found)
    }

    /// The bytes that these volumes of a pool take: of all that the filesystem counts, and of others as far as they are measured
    /// at the deadline.
    ///
    /// # Errors
    /// `Unavailable` if the pool is.
    pub fn used_bytes(
        &self,
        pool: &PoolName,
        volumes: &[&Volume],
        deadline: Instant,
    ) -> Result<BTreeMap<Name, u64>> {
        let pool = self.pool(pool)?;
        let (mut found, mut begun) = (BTreeMap::new(), VecDeque::new());
        let mut uncounted = Vec::new();
        for volume in volumes {
            // A volume that cannot be measured does not hide the others.
            match used_by_backend(&pool, volume) {
                Ok(Some(used)) => drop(found.insert(volume.id.name.clone(), used.bytes)),
                Ok(None) => uncounted.push(volume),
                Err(_) => {}
            }
        }
        let mut waiting = uncounted.into_iter();
        while Instant::now() < deadline {
            let next = if begun.len() < MOST_MEASURED { waiting.next() } else { None };
            let (name, mut measurement) = match next.map(|volume| (&volume.id.name, walk(&pool, volume))) {
                Some((name, Ok(measurement))) => (name, measurement),
                Some((_, Err(_))) => continue,
                None => match begun.pop_front() {
                    Some(first) => first,
                    None => break,
                },
            };
            match measurement.run(TURN) {
                Ok(Some(usage)) => drop(found.insert(name.clone(), usage.bytes)),
                Ok(None) => begun.push_back((name, measurement)),
                Err(_) => {}
            }
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

/// Begins to count the files of a volume.
fn walk(pool: &OpenPool, volume: &Volume) -> Result<Measurement> {
    Measurement::new(open_data(pool, volume)?.as_fd())
}
