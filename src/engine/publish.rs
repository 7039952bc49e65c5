//! Making volumes appear at paths, and taking them away again. The mount table says what is there, not our memory.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use super::Engine;
use super::request::{Publish, Sharing};
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::{self, MountInfo};
use crate::pool::OpenPool;
use crate::pool::locks::LockGuard;
use crate::pool::store::ObjectKind;
use crate::volume::{DATA, Name, SizeRange, Volume, VolumeId};

impl Engine {
    /// Makes a volume appear at a path. If it is there already, with the same flags, nothing is done.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when something else, or other flags, are at the target; `InUse` when the volume may
    /// have one target only and has another; `Invalid` for a target that cannot be one.
    pub fn publish(&self, request: &Publish) -> Result<()> {
        if let Some(volume) = &request.ephemeral {
            self.create_as(volume, true)?;
        }
        let _held = self.lock_volume(&request.id)?;
        let _target = self.lock_target(&request.target)?;
        let pool = self.pool(&request.id.pool)?;
        let data = data_of(&pool, &request.id)?;
        let named = || format!("publish volume {}", request.id);
        if let Some(there) = mount::mounted_at(&request.target).context(named)? {
            return self.check_published(request, &there, data.as_fd()).context(named);
        }
        if request.sharing == Sharing::OneTarget {
            refuse_second_target(&request.id, data.as_fd()).context(named)?;
        }
        let target = mount::open_target(&request.target).context(named)?;
        mount::attach(data.as_fd(), target.as_fd(), request.flags)
            .context(|| format!("publish volume {} at {}", request.id, request.target.display()))
    }

    fn check_published(&self, request: &Publish, there: &MountInfo, data: BorrowedFd<'_>) -> Result<()> {
        if mount::is_same(there, data, request.flags)? {
            return Ok(());
        }
        let what = if mount::is_of(there, data)? { "with other flags" } else { "and it is something else" };
        let text = format!(
            "volume {}: {} is mounted at {} already, {what}; unpublish it first",
            request.id,
            there.root.display(),
            request.target.display(),
        );
        Err(Error::new(Kind::Conflict, text))
    }

    fn lock_target(&self, target: &Path) -> Result<LockGuard> {
        self.locks.take(format!("target {}", target.display()))
    }

    /// Takes a volume away from a path and removes the folder that `publish` made there; deletes the volume if it was
    /// made for this one pod. `id` is the raw text: the ids of a pod's inline volumes name no pool.
    ///
    /// # Errors
    /// `InUse` while a process of this host holds it; `Conflict` when what is mounted there is not this volume;
    /// `NotFound` when nothing is there and no volume could have this id.
    pub fn unpublish(&self, id: &str, target: &Path) -> Result<()> {
        let parsed: Option<VolumeId> = id.parse().ok();
        let name = parsed.as_ref().map_or_else(|| Name::of(id), |id| id.name.clone());
        let held = self.locks.take(format!("volume {name}"))?;
        let held_target = self.lock_target(target)?;
        let was_there = take_away(&name, target).context(|| format!("unpublish volume {name}"))?;
        drop((held, held_target));
        let is_of_pod = parsed.is_none();
        match parsed.map_or_else(|| self.find_ephemeral(id), |id| Ok(Some(id)))? {
            // Known to be ephemeral when its id named no pool, and then nobody else would ever delete it.
            Some(id) if is_of_pod => self.delete(&id),
            Some(id) => self.delete_if_ephemeral(&id),
            // kubelet never gives up on NOT_FOUND, so it is not said of what may have been ours until just now.
            None if was_there || is_inline(id) => Ok(()),
            None => {
                let text = format!("no volume can have this id, and nothing is at {}", target.display());
                Err(Error::new(Kind::NotFound, text))
            }
        }
    }

    fn delete_if_ephemeral(&self, id: &VolumeId) -> Result<()> {
        let Ok(pool) = self.pool(&id.pool) else { return Ok(()) };
        match self.glance(&pool, id) {
            Ok(Some(volume)) if volume.ephemeral => self.delete(id),
            _ => Ok(()),
        }
    }

    /// The volume that was made for an inline volume of this id, which names no pool.
    fn find_ephemeral(&self, id: &str) -> Result<Option<VolumeId>> {
        let name = Name::of(id);
        for pool in &self.pools {
            let pool = match self.open_pool(pool) {
                // Nobody would come back for a volume that is left there.
                Err(error) if is_inline(id) => {
                    return Err(error).context(|| format!("look for inline volume {id}"));
                }
                Err(_) => continue,
                Ok(pool) => pool,
            };
            let id = VolumeId { pool: pool.settings.name.clone(), name: name.clone() };
            let found =
                pool.store.volume(&id.name).context(|| format!("look for inline volume {}", id.name))?;
            if found.is_some_and(|volume| volume.ephemeral) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Whether a volume is published at a path.
    pub(super) fn find_published(&self, pool: &OpenPool, id: &VolumeId, path: &Path) -> Result<()> {
        let absent = || {
            let text = format!(
                "volume {id} is not published at {:?}",
                crate::volume::shorten(&path.to_string_lossy())
            );
            Error::new(Kind::NotFound, text)
        };
        let data = data_of(pool, id)?;
        let there = match mount::mounted_at(path) {
            Err(error) if error.kind() == Kind::Invalid => return Err(absent()),
            there => there?.ok_or_else(absent)?,
        };
        if mount::is_of(&there, data.as_fd())? { Ok(()) } else { Err(absent()) }
    }

    /// Gives a volume that is published at a path a larger size.
    ///
    /// # Errors
    /// `NotFound` when it is not there; else as [`Engine::expand`].
    pub fn expand_published(&self, id: &VolumeId, path: &Path, range: SizeRange) -> Result<Volume> {
        let pool = self.pool(&id.pool)?;
        self.seen(&pool, id)?;
        self.find_published(&pool, id, path)?;
        self.expand(id, range)
    }
}

fn data_of(pool: &OpenPool, id: &VolumeId) -> Result<OwnedFd> {
    let data = pool.store.data(ObjectKind::Volumes, &id.name)?;
    data.ok_or_else(|| Error::new(Kind::NotFound, format!("volume {id} does not exist")))
}

fn refuse_second_target(id: &VolumeId, data: BorrowedFd<'_>) -> Result<()> {
    let Some(other) = mount::targets_of(data)?.into_iter().next() else { return Ok(()) };
    let text = format!(
        "volume {id} may have one target only and is published at {}: unpublish it there first",
        other.display()
    );
    Err(Error::new(Kind::InUse, text))
}

/// Unmounts a volume of this name from a path and removes the folder there; says whether there was any.
fn take_away(name: &Name, target: &Path) -> Result<bool> {
    let mounted = mount::mounted_at(target)?;
    if let Some(there) = &mounted {
        if !is_root_of(&there.root, name) {
            let (root, at) = (there.root.display(), target.display());
            let text = format!("{root} is mounted at {at}, which is not volume {name}: it is left alone");
            return Err(Error::new(Kind::Conflict, text));
        }
        mount::detach(target)?;
    }
    let was_there = mounted.is_some() || target.exists();
    mount::remove_target(target).map(|()| was_there)
}

/// Whether an id is one that kubelet makes for a pod's inline volume: `csi-` and a SHA-256.
fn is_inline(id: &str) -> bool {
    id.strip_prefix("csi-")
        .is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|c| c.is_ascii_hexdigit()))
}

/// Whether a mount's root is the data of the volume of this name, also when that is in the trash by now.
fn is_root_of(root: &Path, name: &Name) -> bool {
    let mut parts = root.iter().rev().map(|part| part.to_str().unwrap_or_default());
    let (data, folder, shelf) = (parts.next(), parts.next().unwrap_or_default(), parts.next());
    // A name may have dots of its own, so only what stands before the last two is one.
    let in_trash = || folder.rsplitn(3, '.').nth(2) == Some(name.as_str());
    data == Some(DATA)
        && match shelf {
            Some("volumes") => folder == name.as_str(),
            Some("trash") => in_trash(),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_volumes_own_root_is_unmounted() {
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
