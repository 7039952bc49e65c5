//! Existing volumes get limits: those of a pool of plain directories whose filesystem has project quotas now, and directories that
//! are adopted.

use std::os::fd::{AsFd as _, BorrowedFd};

use super::Engine;
use super::locked::LockedVolume;
use crate::backend::BackendKind;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::object::ObjectKind;
use crate::volume::{Enforced, Limit, PoolName, Size, Volume, VolumeId};

/// The files of a volume that are counted from now on.
#[derive(Debug)]
pub struct Entered {
    /// The volume.
    pub volume: Volume,
    /// The bytes that it uses, if these are more than its size, which is not enforced then.
    pub above_size: Option<u64>,
}

impl Entered {
    /// The volume, unless its size must be enforced and is not.
    pub(super) fn required(self) -> Result<Volume> {
        match self.above_size {
            Some(used) if self.volume.policy.limit == Limit::Hard => {
                let (id, used, size) = (&self.volume.id, Size(used), Size(self.volume.size));
                let text =
                    format!("limit=hard: volume {id} uses {used}, more than its size of {size}: expand it");
                Err(Error::new(Kind::OutOfRange, text))
            }
            Some(_) | None => Ok(self.volume),
        }
    }
}

impl Engine {
    /// Records the backend with project quotas in the marker of a pool of plain directories, if its filesystem has them. Returns
    /// whether the pool has that backend.
    ///
    /// # Errors
    /// `Unavailable` if the pool is, or when its directories pass on a project id.
    pub fn take_over_pool(&self, name: &PoolName) -> Result<bool> {
        let pool = self.pool(name)?;
        if !pool.can_be_taken_over() {
            return Ok(pool.backend.kind() == BackendKind::Quota);
        }
        pool.take_over().context(|| format!("give pool {name} the backend {}", BackendKind::Quota))?;
        Ok(true)
    }

    /// Gives the files of a volume that nothing uses a project, and sets its limits; `None` if it has a project.
    ///
    /// # Errors
    /// `InUse`, naming the user; `Unsupported` when a file cannot be moved into a project, naming it. The volume can be used as
    /// before then. After a crash, it cannot be published until this is repeated.
    pub fn take_over(&self, id: &VolumeId) -> Result<Option<Entered>> {
        let locked = self.lock_volume(id)?;
        let mut volume = locked.require()?;
        if !volume.managed || locked.pool.has_entered(&id.name, &volume.backend)? {
            return Ok(None);
        }
        // Before a project id is spent.
        let _unused = self.lock_unused(&locked)?;
        volume.backend = locked.pool.state_to_enter(&volume.backend)?;
        locked.pool.rewrite(&volume, None)?;
        enter(&locked, volume).context(|| format!("take over volume {id}")).map(Some)
    }
}

/// Has the kernel count the files of a volume, whose record says that this has begun, and sets its limits.
pub(super) fn enter(locked: &LockedVolume, mut volume: Volume) -> Result<Entered> {
    let (pool, begun) = (&locked.pool, volume.clone());
    let object = pool.store.object(ObjectKind::Volumes, &locked.id.name)?;
    let draft = pool.draft()?;
    let entered = pool.backend.enter(object.as_fd(), draft.dir(), &begun.backend);
    drop(draft);
    match entered {
        Ok(state) => volume.backend = state,
        Err(error) => {
            volume.backend = pool.backend.leave(object.as_fd(), &begun.backend).context(|| error.chain())?;
            volume.enforced = Enforced::No;
            pool.rewrite(&volume, None)?;
            return Err(error);
        }
    }
    let limited = limit(locked, object.as_fd(), &begun, &mut volume);
    if !matches!(limited, Ok(None)) {
        // All its files are counted, so programs can use it.
        volume.enforced = Enforced::No;
        pool.rewrite(&volume, None)?;
    }
    limited.map(|above_size| Entered { volume, above_size })
}

/// Sets the limits of a volume whose files are all counted. Returns the bytes that it uses if these are more than its size.
fn limit(
    locked: &LockedVolume,
    object: BorrowedFd<'_>,
    begun: &Volume,
    volume: &mut Volume,
) -> Result<Option<u64>> {
    let used = locked.pool.backend.used(object, &volume.backend)?.map_or(0, |used| used.bytes);
    if volume.size != 0 && used > volume.size {
        return Ok(Some(used));
    }
    locked.change_limits(begun, volume, None).map(|()| None)
}

/// Refuses a volume whose files are not all counted, since that was interrupted: programs could not move them.
pub(super) fn check_usable(locked: &LockedVolume) -> Result<()> {
    // A takeover of the pool may have begun while the caller waited for the lock.
    locked.pool.check_same_backend()?;
    if locked.pool.backend.kind() != BackendKind::Quota {
        return Ok(());
    }
    match locked.load() {
        Ok(Some(volume)) => locked.pool.backend.check_usable(&volume.backend),
        // A record that cannot be read does not keep the data from being used.
        Err(error) if error.kind() == Kind::Unreadable => Ok(()),
        loaded => loaded.map(drop),
    }
    .map_err(|error| Error::caused(error.kind(), format!("use volume {}", locked.id), error))
}
