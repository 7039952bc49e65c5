//! Making volumes: empty ones at once, clones and restores by a job.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, Gid, Mode, OFlags, Uid};

use super::Engine;
use super::jobs::{Job, JobKey};
use super::request::{CreateVolume, OwnerSpec};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::{Manifest, copy_tree};
use crate::pool::locks::LockGuard;
use crate::pool::store::{Draft, ObjectKind};
use crate::pool::{OpenPool, Pool, Reservation, VolumeEntry};
use crate::volume::{Enforced, Name, Owner, PoolName, Source, Timestamp, Volume, VolumeId};

impl Engine {
    /// Makes a volume, or finds the one that an earlier call of this name made.
    ///
    /// # Errors
    /// `Conflict` when one of this name differs; `NoSpace`; `OutOfRange`; `NotFound` for the source;
    /// `Busy` while its data is still being copied.
    pub fn create(&self, request: &CreateVolume) -> Result<Volume> {
        self.create_as(request, false)
    }

    pub(super) fn create_as(&self, request: &CreateVolume, ephemeral: bool) -> Result<Volume> {
        let pool = self.choose(request)?;
        let id = VolumeId { pool: pool.settings.name.clone(), name: Name::of(&request.name) };
        let _held = self.lock_volume(&id)?;
        if let Some(job) = self.jobs.find(&JobKey::Volume(id.clone())) {
            check_source(&id, Some(&job.from), request)?;
            return self.join_copy(&pool, &id, &job, request);
        }
        if let Some(found) = self.look(&pool, &id)? {
            check_same(&found, request)?;
            return Ok(found);
        }
        self.refuse_elsewhere(&id)?;
        pool.backend.check_limit(request.policy.limit)?;
        match &request.source {
            None => self.make_empty(&pool, id, request, ephemeral),
            Some(source) => self.make_copy(&pool, id, request, source),
        }
    }

    /// The pool asked for, or the default: so a retry looks in the same place.
    fn choose(&self, request: &CreateVolume) -> Result<Arc<OpenPool>> {
        self.open_pool(self.wanted_pool(request.pool.as_ref())?)
    }

    /// The pool of this name, or the default. All nodes have the same settings, so a name that is not in them is a
    /// mistake, and no node has it: to send the caller to the next one would go on for ever.
    pub(super) fn wanted_pool(&self, name: Option<&PoolName>) -> Result<&Pool> {
        let Some(name) = name else { return self.default_pool() };
        self.pools.iter().find(|pool| pool.settings().name == *name).ok_or_else(|| {
            let known: Vec<_> = self.pools.iter().map(|pool| pool.settings().name.as_str()).collect();
            let text = format!("parameter pool: there is no pool {name} here; there is {}", known.join(", "));
            Error::new(Kind::Invalid, text)
        })
    }

    /// The pool named "default", or the first of the settings.
    pub(super) fn default_pool(&self) -> Result<&Pool> {
        let named = self.pools.iter().find(|pool| pool.settings().name.as_str() == "default");
        let text = "this instance serves no pools: ask one that does";
        named.or(self.pools.first()).ok_or_else(|| Error::new(Kind::Unavailable, text))
    }

    /// Where a volume goes whose caller names no pool.
    ///
    /// # Errors
    /// `Unavailable` when there are no pools.
    pub fn default_pool_name(&self) -> Result<crate::volume::PoolName> {
        self.default_pool().map(|pool| pool.settings().name.clone())
    }

    /// A name belongs to one volume in all pools of a driver.
    fn refuse_elsewhere(&self, id: &VolumeId) -> Result<()> {
        for pool in self.pools.iter().filter_map(Pool::opened) {
            if pool.settings.name != id.pool && pool.index().volumes().contains_key(&id.name) {
                let text = format!("volume {} is in pool {} already", id.name, pool.settings.name);
                return Err(Error::new(Kind::Conflict, text));
            }
        }
        Ok(())
    }

    fn make_empty(
        &self,
        pool: &Arc<OpenPool>,
        id: VolumeId,
        request: &CreateVolume,
        ephemeral: bool,
    ) -> Result<Volume> {
        let reserved = pool.reserve(request.size.required)?;
        let mut volume = volume_of(id, request, request.size.required);
        volume.ephemeral = ephemeral;
        volume.owner = owner_of(request.owner, Owner::default());
        let made = pool.store.draft().and_then(|draft| {
            pool.backend.make(draft.dir())?;
            finish_volume(draft, &mut volume, reserved)
        });
        self.reaper.add(pool, pool.store.take_abandoned());
        made.context(|| format!("create volume {}", volume.id)).map(|()| volume)
    }

    fn make_copy(
        &self,
        pool: &Arc<OpenPool>,
        id: VolumeId,
        request: &CreateVolume,
        source: &Source,
    ) -> Result<Volume> {
        let job = self.start_copy(pool, &id, request, source)?;
        self.join_copy(pool, &id, &job, request)
    }

    fn start_copy(
        &self,
        pool: &Arc<OpenPool>,
        id: &VolumeId,
        request: &CreateVolume,
        source: &Source,
    ) -> Result<Arc<Job>> {
        // Held while the job is entered, so that a delete of the source sees either no reader or this one.
        let _source = self.lock_source(source, id)?;
        let (data, size) = self.open_source(source).map_err(|error| {
            if error.kind() != Kind::NotFound || !request.may_go_elsewhere {
                return error;
            }
            let text =
                format!("{source} is not on this node; a pod that uses {} must run where it is", id.name);
            Error::caused(Kind::NoSpace, text, error)
        })?;
        let size = copied_size(id, request, source, size)?;
        let reserved = pool.reserve(size)?;
        let mut volume = volume_of(id.clone(), request, size);
        let (into, owner) = (Arc::clone(pool), request.owner);
        self.start_job(pool, JobKey::Volume(id.clone()), source.clone(), move |job| {
            let draft = into.store.draft()?;
            into.backend.make(draft.dir())?;
            copy_into(data.as_fd(), &draft, job)?;
            volume.owner = owner_of(owner, owner_on_disk(draft.data()?.as_fd())?);
            finish_volume(draft, &mut volume, reserved)
        })
    }

    /// None for a clone of itself: its lock is held already, and that its source does not exist is said soon.
    fn lock_source(&self, source: &Source, into: &VolumeId) -> Result<Option<LockGuard>> {
        match source {
            Source::Volume(id) if id.name == into.name => Ok(None),
            Source::Volume(id) => self.lock_volume(id).map(Some),
            Source::Snapshot(id) => self.locks.take(format!("snapshot {}", id.name)).map(Some),
        }
    }

    /// The source's data, open for reading, and the size it was promised.
    fn open_source(&self, source: &Source) -> Result<(OwnedFd, u64)> {
        let pool = self.pool(&source.id().pool)?;
        let (kind, size) = match source {
            Source::Volume(id) => (ObjectKind::Volumes, self.existing(&pool, id)?.size),
            Source::Snapshot(id) => (ObjectKind::Snapshots, self.existing_snapshot(&pool, id)?.size),
        };
        let data = pool.store.data(kind, &source.id().name)?;
        let data = data.ok_or_else(|| Error::new(Kind::Internal, format!("{source} has no data")))?;
        let data = reopen(data.as_fd()).context(|| format!("copy {source}"))?;
        Ok((data, size))
    }

    fn join_copy(
        &self,
        pool: &OpenPool,
        id: &VolumeId,
        job: &Arc<Job>,
        request: &CreateVolume,
    ) -> Result<Volume> {
        let key = JobKey::Volume(id.clone());
        match self.jobs.join(&key, job, self.tuning.copy_wait) {
            // Who joins may have asked for another size than the one who began.
            Some(Ok(())) => {
                self.existing(pool, id).and_then(|made| check_same(&made, request).map(|()| made))
            }
            Some(Err(error)) => Err(error).context(|| format!("copy {} to volume {id}", job.from)),
            None => Err(Error::new(
                Kind::Busy,
                format!(
                    "volume {id} is being copied from {} ({} entries, {} bytes so far): try again",
                    job.from,
                    job.progress.entries(),
                    job.progress.bytes(),
                ),
            )),
        }
    }
}

impl Engine {
    /// A job whose remains, when it fails, go to the reaper at once.
    pub(super) fn start_job(
        &self,
        pool: &Arc<OpenPool>,
        key: JobKey,
        from: Source,
        work: impl FnOnce(&Job) -> Result<()> + Send + 'static,
    ) -> Result<Arc<Job>> {
        let (pool, queue) = (Arc::clone(pool), self.reaper.queue());
        self.jobs.start(key, from, move |job| {
            let result = work(job);
            queue.add(&pool, pool.store.take_abandoned());
            result
        })
    }
}

/// Copies a tree into a draft's data folder and compares what arrived.
pub(super) fn copy_into(from: BorrowedFd<'_>, draft: &Draft<'_>, job: &Job) -> Result<Manifest> {
    let data = draft.data()?;
    copy_tree(from, data.as_fd(), &job.progress)
}

/// A path-only descriptor as one that can be read.
pub(super) fn reopen(folder: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(folder, ".", flags, Mode::empty()).context(|| "open the data folder")
}

fn volume_of(id: VolumeId, request: &CreateVolume, size: u64) -> Volume {
    Volume {
        schema: 1,
        id,
        requested_name: request.name.clone(),
        size,
        enforced: Enforced::No,
        owner: Owner::default(),
        policy: request.policy,
        labels: request.labels.clone(),
        source: request.source.clone(),
        created: Timestamp::now(),
        managed: true,
        ephemeral: false,
    }
}

/// Limit, owner, record, rename, index: the last steps of every new volume.
fn finish_volume(draft: Draft<'_>, volume: &mut Volume, reserved: Reservation) -> Result<()> {
    let pool = Arc::clone(reserved.pool());
    let data = draft.data()?;
    set_owner(data.as_fd(), volume.owner)?;
    volume.enforced = pool.backend.limit(data.as_fd(), volume.size, volume.policy.limit)?;
    draft.commit(ObjectKind::Volumes, &volume.id.name, volume)?;
    reserved.keep(volume.id.name.clone(), VolumeEntry::from(&*volume));
    Ok(())
}

fn owner_of(request: OwnerSpec, other: Owner) -> Owner {
    Owner {
        uid: request.uid.unwrap_or(other.uid),
        gid: request.gid.unwrap_or(other.gid),
        mode: request.mode.unwrap_or(other.mode),
    }
}

fn owner_on_disk(data: BorrowedFd<'_>) -> Result<Owner> {
    let stat = fs::fstat(data).context(|| "look at the copied folder")?;
    Ok(Owner { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 })
}

fn set_owner(data: BorrowedFd<'_>, owner: Owner) -> Result<()> {
    let now = owner_on_disk(data)?;
    if (now.uid, now.gid) != (owner.uid, owner.gid) {
        let ids = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fs::fchown(data, Some(ids.0), Some(ids.1)).context(|| "set the owner of the data folder")?;
    }
    if now.mode != owner.mode {
        fs::fchmod(data, Mode::from_raw_mode(owner.mode)).context(|| "set the mode of the data folder")?;
    }
    Ok(())
}

fn check_same(found: &Volume, request: &CreateVolume) -> Result<()> {
    let differs = |what: &str, has: String| {
        let text = format!("volume {} exists with {what} {has}: use another name", found.id);
        Err(Error::new(Kind::Conflict, text))
    };
    if found.requested_name != request.name {
        return differs("requested name", format!("{:?}", found.requested_name));
    }
    if !request.size.admits(found.size) {
        return differs("size", found.size.to_string());
    }
    if owner_of(request.owner, found.owner) != found.owner {
        let owner = found.owner;
        return differs("owner and mode", format!("{}:{} {:o}", owner.uid, owner.gid, owner.mode));
    }
    check_source(&found.id, found.source.as_ref(), request)
}

fn check_source(id: &VolumeId, has: Option<&Source>, request: &CreateVolume) -> Result<()> {
    if has == request.source.as_ref() {
        return Ok(());
    }
    let has = has.map_or_else(|| "no source".to_owned(), |source| format!("source {source}"));
    Err(Error::new(Kind::Conflict, format!("volume {id} exists with {has}: use another name")))
}

/// The size of a copy: at least its source's.
fn copied_size(id: &VolumeId, request: &CreateVolume, source: &Source, size: u64) -> Result<u64> {
    let smaller = |asked: u64| {
        let text = format!("volume {id}: {asked} bytes are less than the {size} of {source}");
        Err(Error::new(Kind::OutOfRange, text))
    };
    match (request.size.required, request.size.limit) {
        (_, limit) if limit != 0 && limit < size => smaller(limit),
        (required, _) if required != 0 && required < size => smaller(required),
        (required, _) => Ok(required.max(size)),
    }
}
