//! Publishing volumes at paths. The mount table is the truth about what is published.

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Engine;
use super::request::{Publish, Sharing};
use super::takeover::check_usable;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::DirIdentity;
use crate::mount::{self, MountFlags, MountInfo};
use crate::pool::locks::{LockGuard, LockKey};
use crate::pool::object::ObjectKind;
use crate::pool::{OpenPool, Pool, UsedLock, UsedLocks};
use crate::volume::{DATA, Name, PoolName, SizeRange, Volume, VolumeId, shorten};

/// A path that volumes are published at: the directory that holds it, and its name there. One directory may have several
/// paths, since a parent may be a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// `None` if there is no such directory.
    parent: Option<DirIdentity>,
    /// The last component; the whole path if there is no parent.
    name: PathBuf,
}

impl Target {
    fn new(path: &Path) -> Self {
        let parent = path.parent().and_then(|parent| DirIdentity::at(parent).ok());
        let last = path.file_name().filter(|_| parent.is_some());
        Self { parent, name: last.map_or_else(|| path.to_owned(), PathBuf::from) }
    }
}

impl LockKey for Target {}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target {}", self.name.display())
    }
}

impl Engine {
    /// Mounts a volume at a path. Does nothing if it is mounted there with the same flags.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when something else, or the volume with other flags, is mounted at the target; `InUse` when
    /// the volume may have one target only and has another; `Invalid` for a path that cannot be a target.
    pub fn publish(&self, request: &Publish) -> Result<()> {
        let Some(volume) = &request.ephemeral else { return self.publish_existing(request) };
        let pool = self.requested_pool(Some(&request.id.pool))?.get_or_open()?;
        let existed = self.peek(&pool, &request.id)?.is_some();
        self.create_as(volume, true)?;
        self.publish_existing(request).inspect_err(|_| {
            // The caller may never unpublish what was not published. A volume that another call has published is in use.
            if !existed {
                let _ = self.delete(&request.id);
            }
        })
    }

    fn publish_existing(&self, request: &Publish) -> Result<()> {
        let locked = self.lock_volume(&request.id)?;
        self.pauses.note_published();
        // First what may hang on a dead disk: an unpublish of the target must not wait for it.
        let data = data_of(&locked.pool, &request.id)?;
        check_usable(&locked)?;
        let named = || format!("publish volume {}", request.id);
        // Before the used-lock, which a refused request must not turn into an exclusive one.
        if request.sharing == Sharing::OneTarget {
            refuse_second_target(&request.id, &request.target, data.as_fd()).context(named)?;
        }
        let used = self.take_used(&locked.pool, request, data.as_fd()).context(named)?;
        let is_stale = is_stale(&request.target, data.as_fd()).context(named)?;
        let published = self.mount_at_target(request, data.as_fd(), is_stale);
        drop(used);
        // The lock may not be needed.
        published.inspect_err(|_| locked.pool.used().into_iter().for_each(UsedLocks::check_soon))
    }

    /// Mounts the data of a volume at the target, also in place of a mount of it that is stale. Does not access the disk of its
    /// pool.
    fn mount_at_target(&self, request: &Publish, data: BorrowedFd<'_>, is_stale: bool) -> Result<()> {
        let _target = self.lock_target(&request.target)?;
        let named = || format!("publish volume {}", request.id);
        if let Some(found) = mount::mounted_at(&request.target).context(named)? {
            let checked = check_published(&request.id, &request.target, request.flags, &found, data);
            if checked.is_err() || !is_stale {
                return checked.context(named);
            }
            mount::detach_lazily(&request.target).context(named)?;
        }
        let target = mount::open_target(&request.target).context(named)?;
        mount::attach(data, target.as_fd(), request.flags)
            .context(|| format!("publish volume {} at {}", request.id, request.target.display()))
    }

    pub(super) fn lock_target(&self, target: &Path) -> Result<LockGuard<Target>> {
        self.targets.lock(Target::new(target)).context(|| target.display().to_string())
    }

    /// Unmounts a volume from a path and removes the directory there. Deletes the volume if it was created for one pod.
    /// `id` is the text of the request: the id of an inline volume names no pool.
    ///
    /// # Errors
    /// `InUse` while a process of this host holds the mount; `Conflict` when another directory is mounted there;
    /// `NotFound` when nothing is mounted there and no volume can have this id.
    pub fn unpublish(&self, id: &str, target: &Path) -> Result<()> {
        let was_there = self.unmount(id, target)?;
        self.finish_unpublish(id, target, was_there)
    }

    /// Unmounts as [`Engine::unpublish`] does, and reports whether the volume or the directory was there. Does not access
    /// the pool of the volume, which may be another process's.
    ///
    /// # Errors
    /// Same as [`Engine::unpublish`].
    pub fn unmount(&self, id: &str, target: &Path) -> Result<bool> {
        let parsed: Option<VolumeId> = id.parse().ok();
        let name = parsed.as_ref().map_or_else(|| Name::of(id), |id| id.name.clone());
        let _target = self.lock_target(target)?;
        if let Some(id) = &parsed {
            self.refuse_volume_of_other_pool(id, target)?;
        }
        unmount_and_remove(&name, target).context(|| format!("unpublish volume {name}"))
    }

    /// Unmounts as [`Engine::unmount`] does, also while the mount is busy. For a volume whose server does not respond: what
    /// keeps the mount busy waits for it, and can neither write nor end.
    ///
    /// # Errors
    /// `Conflict` when another directory is mounted there; otherwise the error of the failed system call.
    pub fn unmount_lazily(&self, id: &str, target: &Path) -> Result<bool> {
        let name = id.parse().map_or_else(|_| Name::of(id), |id: VolumeId| id.name);
        let _target = self.lock_target(target)?;
        let unmounted = match mount::root_mounted_at(target)? {
            Some(root) if is_root_of(&root, &name) => mount::detach_lazily(target).map(|()| true),
            Some(root) => Err(not_the_volume(&root, &name, target)),
            None => mount::remove_target(target).map(|()| false),
        };
        unmounted.context(|| format!("unpublish volume {name}"))
    }

    /// Deletes the volume that was unmounted, if it was created for one pod.
    ///
    /// # Errors
    /// Same as [`Engine::unpublish`].
    pub fn finish_unpublish(&self, id: &str, target: &Path, was_there: bool) -> Result<()> {
        let parsed: Option<VolumeId> = id.parse().ok();
        self.note_unmounted();
        match parsed {
            Some(id) => self.delete_if_ephemeral(&id),
            None => match self.find_ephemeral(id)? {
                Some(id) => self.delete(&id),
                // kubelet retries NOT_FOUND forever, so it must not be the answer to a request that is already done.
                None if was_there || is_inline(id) => Ok(()),
                None => {
                    let text =
                        format!("the volume id is not valid, and nothing is mounted at {}", target.display());
                    Err(Error::new(Kind::NotFound, text))
                }
            },
        }
    }

    /// Excludes the other hosts, as far as the request asks for it, from a volume that is about to be mounted.
    fn take_used<'p>(
        &self,
        pool: &'p OpenPool,
        request: &Publish,
        data: BorrowedFd<'_>,
    ) -> Result<Option<UsedLock<'p>>> {
        let Some(used) = pool.used() else { return Ok(None) };
        let (name, alone) = (&request.id.name, request.sharing == Sharing::OneTarget);
        // The lock may be one that the last target needed and that is not released yet.
        if !alone && used.holds_alone(name) && self.users.of(data)?.is_empty() {
            used.release_unused(name);
        }
        used.take(name, alone).map(Some)
    }

    /// Has the used-locks of what was just unmounted released by their threads, which may wait for a server. Does no I/O,
    /// and takes no lock that is held during I/O.
    fn note_unmounted(&self) {
        let pools = self.pools.iter().filter_map(|pool| pool.loaded());
        pools.for_each(|pool| pool.used().into_iter().for_each(UsedLocks::check_soon));
    }

    /// Refuses to unpublish a volume of the same name in another pool. Such a name is rare, so the mount table is read only
    /// then.
    fn refuse_volume_of_other_pool(&self, id: &VolumeId, target: &Path) -> Result<()> {
        let has_name = |pool: &Arc<OpenPool>| pool.cached_index().volumes().contains_key(&id.name);
        let others = self.pools.iter().filter(|pool| pool.settings().name != id.pool);
        for pool in others.filter_map(|pool| pool.loaded()).filter(has_name) {
            let Some(found) = mount::mounted_at(target)? else { return Ok(()) };
            if mount::is_below(&found, pool.store.root())? {
                let (name, at) = (&pool.settings.name, target.display());
                let text = format!(
                    "unpublish volume {id}: a volume of pool {name} is mounted at {at}; nothing was changed"
                );
                return Err(Error::new(Kind::Conflict, text));
            }
        }
        Ok(())
    }

    fn delete_if_ephemeral(&self, id: &VolumeId) -> Result<()> {
        if self.is_known_persistent(id) {
            return Ok(());
        }
        let Ok(pool) = self.pool(&id.pool) else { return Ok(()) };
        match self.peek(&pool, id) {
            Ok(Some(volume)) if volume.ephemeral => self.delete(id),
            _ => Ok(()),
        }
    }

    /// Whether the volume is known not to be deleted with its pod, so that unpublishing it does not access its pool's disk.
    /// Does no I/O.
    #[must_use]
    pub fn is_known_persistent(&self, id: &VolumeId) -> bool {
        let pool =
            self.pools.iter().find(|pool| pool.settings().name == id.pool).and_then(|pool| pool.loaded());
        let entry = pool.and_then(|pool| pool.cached_index().volumes().get(&id.name).cloned());
        match entry {
            Some(entry) => !entry.ephemeral && entry.damage.is_none(),
            // The pool may not respond since the start. The ids of inline volumes are longer than plain names can be.
            None => id.name.is_plain(),
        }
    }

    /// The pool whose index has an inline volume of this id. Does no I/O.
    #[must_use]
    pub fn pool_of_inline_volume(&self, id: &str) -> Option<PoolName> {
        let name = Name::of(id);
        let has_it = |pool: &Arc<OpenPool>| {
            let index = pool.cached_index();
            // It is not known whether a volume with a damaged record is an inline volume.
            index.volumes().get(&name).is_some_and(|entry| entry.ephemeral || entry.damage.is_some())
        };
        let found = self.pools.iter().filter_map(|pool| pool.loaded()).find(has_it);
        found.map(|pool| pool.settings.name.clone())
    }

    /// The inline volume of this id. Accesses the disks of the other pools only if no index has it.
    fn find_ephemeral(&self, id: &str) -> Result<Option<VolumeId>> {
        let name = Name::of(id);
        let known = self.pool_of_inline_volume(id);
        let may_have_it = |pool: &&Arc<Pool>| known.as_ref().is_none_or(|name| pool.settings().name == *name);
        for pool in self.pools.iter().filter(may_have_it) {
            let pool = match pool.get_or_open() {
                // A success would be final, and the volume would stay in the pool forever.
                Err(error) if is_inline(id) => {
                    return Err(error).context(|| format!("look for inline volume {id}"));
                }
                Err(_) => continue,
                Ok(pool) => pool,
            };
            let id = VolumeId { pool: pool.settings.name.clone(), name: name.clone() };
            let found = self.peek(&pool, &id).context(|| format!("look for inline volume {name}"))?;
            if found.is_some_and(|volume| volume.ephemeral) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// The mount of the volume at a path. Fails with `NotFound` unless it is published there.
    pub(super) fn check_published_at(
        &self,
        pool: &OpenPool,
        id: &VolumeId,
        path: &Path,
    ) -> Result<MountInfo> {
        let not_published = || {
            let text = format!("volume {id} is not published at {:?}", shorten(&path.to_string_lossy()));
            Error::new(Kind::NotFound, text)
        };
        let data = data_of(pool, id)?;
        let found = match mount::mounted_at(path) {
            Err(error) if error.kind() == Kind::Invalid => return Err(not_published()),
            found => found?.ok_or_else(not_published)?,
        };
        if mount::is_of(&found, data.as_fd())? { Ok(found) } else { Err(not_published()) }
    }

    /// Expands a volume that is published at a path.
    ///
    /// # Errors
    /// `NotFound` when it is not published there; otherwise same as [`Engine::expand`].
    pub fn expand_published(&self, id: &VolumeId, path: &Path, range: SizeRange) -> Result<Volume> {
        let pool = self.pool(&id.pool)?;
        self.require_without_lock(&pool, id)?;
        self.check_published_at(&pool, id, path)?;
        self.expand(id, range)
    }
}

/// Whether this directory is mounted at the target, as its path says, and was replaced on its server since. Waits for the
/// server.
pub(super) fn is_stale(target: &Path, data: BorrowedFd<'_>) -> Result<bool> {
    let Some(found) = mount::mounted_at(target)? else { return Ok(false) };
    Ok(mount::is_of(&found, data)? && mount::is_stale(&found, target))
}

/// Whether the mount at the target is the one that the request asks for.
pub(super) fn check_published(
    id: &dyn fmt::Display,
    target: &Path,
    flags: MountFlags,
    found: &MountInfo,
    data: BorrowedFd<'_>,
) -> Result<()> {
    if mount::is_same(found, data, flags)? {
        return Ok(());
    }
    let what = if mount::is_of(found, data)? { "this volume with other flags" } else { "another directory" };
    let text = format!(
        "volume {id}: {what} ({}) is already mounted at {}: unpublish it first",
        found.root.display(),
        target.display(),
    );
    Err(Error::new(Kind::Conflict, text))
}

fn data_of(pool: &OpenPool, id: &VolumeId) -> Result<OwnedFd> {
    let data = pool.store.data(ObjectKind::Volumes, &id.name)?;
    data.ok_or_else(|| Error::new(Kind::NotFound, format!("volume {id} does not exist")))
}

/// The lock of the volume, or of the share, excludes other calls that publish it.
pub(super) fn refuse_second_target(id: &dyn fmt::Display, target: &Path, data: BorrowedFd<'_>) -> Result<()> {
    if let Some(found) = mount::mounted_at(target)?
        && mount::is_of(&found, data)?
    {
        return Ok(());
    }
    let Some(other) = mount::targets_of(data)?.into_iter().next() else { return Ok(()) };
    let text = format!(
        "volume {id} may have one target only and is published at {}: unpublish it there first",
        other.display()
    );
    Err(Error::new(Kind::InUse, text))
}

/// Unmounts the volume of this name from a target and removes the directory; reports whether either existed.
pub(super) fn unmount_and_remove(name: &Name, target: &Path) -> Result<bool> {
    let Some(root) = mount::root_mounted_at(target)? else {
        let existed = target.exists();
        return mount::remove_target(target).map(|()| existed);
    };
    if !is_root_of(&root, name) {
        return Err(not_the_volume(&root, name, target));
    }
    mount::detach_top(target)?;
    match mount::remove_target(target) {
        // Another mount was below the first one.
        Err(error) if error.kind() == Kind::InUse => {
            mount::detach(target)?;
            mount::remove_target(target)?;
        }
        removed => removed?,
    }
    Ok(true)
}

fn not_the_volume(root: &Path, name: &Name, target: &Path) -> Error {
    let (root, at) = (root.display(), target.display());
    let text = format!("{root} is mounted at {at}, which is not volume {name}; nothing was changed");
    Error::new(Kind::Conflict, text)
}

/// Whether kubelet could have made this id for a pod's inline volume: `csi-` and a SHA-256.
pub(super) fn is_inline(id: &str) -> bool {
    id.strip_prefix("csi-")
        .is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|c| c.is_ascii_hexdigit()))
}

/// Whether a mount's root is the data of the volume of this name, which may be in the trash.
pub(super) fn is_root_of(root: &Path, name: &Name) -> bool {
    let mut parts = root.iter().rev().map(|part| part.to_str().unwrap_or_default());
    let (data, directory, parent) = (parts.next(), parts.next().unwrap_or_default(), parts.next());
    // `<name>.<retention>.<nonce>`, and the name may contain dots.
    let in_trash = || directory.rsplitn(3, '.').nth(2) == Some(name.as_str());
    data == Some(DATA)
        && match parent {
            Some("volumes") => directory == name.as_str(),
            Some("trash") => in_trash(),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_mount_is_matched_to_its_volume() {
        let name: Name = "v".parse().unwrap();
        for ours in ["/pool/volumes/v/data", "/volumes/v/data", "/pool/trash/v.17.00ff/data"] {
            assert!(is_root_of(Path::new(ours), &name), "{ours}");
        }
        for other in [
            "/",
            "/data",
            "/pool/volumes/w/data",
            "/pool/volumes/v",
            "/pool/trash/vv.17.00ff/data",
            "/pool/trash/v.1.17.00ff/data",
            "/v/data",
        ] {
            assert!(!is_root_of(Path::new(other), &name), "{other}");
        }
    }
}
