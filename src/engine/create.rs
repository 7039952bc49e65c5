//! Creating volumes: empty ones at once, clones and restores by a job.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{self, Gid, Mode, Uid};

use super::Engine;
use super::claims::NameClaim;
use super::copy::{Copied, CopyTask, log_copy, max_bytes, too_large};
use super::cost::check_snapshot_cost;
use super::jobs::{Job, JobKey};
use super::locked::{CopyLocks, LockedVolume, check_limit, ensure_no_copy_creates, limits};
use super::request::{CreateVolume, OwnerSpec};
use super::source::CopySource;
use crate::backend::CopySpec;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::object::ObjectKind;
use crate::pool::store::Draft;
use crate::pool::{Committer, OpenPool, Pool, Reservation};
use crate::volume::{Enforced, Name, Owner, PoolName, SCHEMA, Size, Source, Timestamp, Volume, VolumeId};

impl Engine {
    /// Creates a volume, or returns the one that an earlier request of this name created.
    ///
    /// # Errors
    /// `Conflict` when the existing volume differs; `NoSpace`; `OutOfRange`; `NotFound` for the source; `Busy` while its
    /// data is being copied.
    pub fn create(&self, request: &CreateVolume) -> Result<Volume> {
        self.create_as(request, false)
    }

    pub(super) fn create_as(&self, request: &CreateVolume, ephemeral: bool) -> Result<Volume> {
        // The default pool is fixed, so a retry finds the volume in the same pool.
        let pool = self.requested_pool(request.pool.as_ref())?.get_or_open()?;
        let id = VolumeId { pool: pool.settings.name.clone(), name: Name::of(&request.name) };
        let claim = self.claims.claim(ObjectKind::Volumes, &id)?;
        let locked = self.lock_volume_in(&pool, &id)?;
        if let Some(job) = self.jobs.find_for(&JobKey::Volume(id.clone()), request.source.as_ref()) {
            check_source(&id, Some(&job.from), request)?;
            return self.join_copy(&locked, &job, request);
        }
        ensure_no_copy_creates(&pool, ObjectKind::Volumes, &id.name)?;
        if let Some(found) = locked.load()? {
            check_same(&found, request)?;
            return Ok(found);
        }
        self.refuse_name_of_other_pool(&id)?;
        pool.check_changes()?;
        check_limit(&pool, request.policy)?;
        check_snapshot_cost(&pool, request.consistency.cost)?;
        match &request.source {
            None => self.create_empty(&locked, request, ephemeral),
            Some(source) => {
                let job = self.start_copy(&locked, request, source, claim)?;
                self.join_copy(&locked, &job, request)
            }
        }
    }

    /// The pool of this name, or the default one. All nodes have the same settings, so an unknown name is a mistake that
    /// no other node can serve.
    pub(super) fn requested_pool(&self, name: Option<&PoolName>) -> Result<&Arc<Pool>> {
        let Some(name) = name else { return self.default_pool() };
        self.pools.iter().find(|pool| pool.settings().name == *name).ok_or_else(|| {
            let known: Vec<_> = self.pools.iter().map(|pool| pool.settings().name.as_str()).collect();
            let text = format!("pool {name} does not exist; the configured pools are: {}", known.join(", "));
            Error::new(Kind::Invalid, text)
        })
    }

    /// Refuses a pool that is in no settings.
    ///
    /// # Errors
    /// `Invalid` then; the message lists the pools.
    pub fn check_pool(&self, name: &PoolName) -> Result<()> {
        self.requested_pool(Some(name)).map(drop)
    }

    /// The pool named "default", or else the first configured pool.
    fn default_pool(&self) -> Result<&Arc<Pool>> {
        let named = self.pools.iter().find(|pool| pool.settings().name.as_str() == "default");
        let text = "this process serves no pools: send the request to one that does";
        named.or(self.pools.first()).ok_or_else(|| Error::new(Kind::Unavailable, text))
    }

    /// The pool of a volume whose request names none.
    ///
    /// # Errors
    /// `Unavailable` when there are no pools.
    pub fn default_pool_name(&self) -> Result<PoolName> {
        self.default_pool().map(|pool| pool.settings().name.clone())
    }

    /// Claims the name of a volume that is being created, here or in a worker.
    ///
    /// # Errors
    /// `Conflict` or `Busy` when a volume of another pool of this engine has the name.
    pub fn claim_volume_name(&self, id: &VolumeId) -> Result<NameClaim> {
        let claim = self.claims.claim(ObjectKind::Volumes, id)?;
        self.refuse_name_of_other_pool(id)?;
        Ok(claim)
    }

    /// Refuses a name that a volume in another pool has: names are unique across the pools of a process.
    pub(super) fn refuse_name_of_other_pool(&self, id: &VolumeId) -> Result<()> {
        // In memory only: another pool's disk may not respond.
        for pool in self.pools.iter().filter_map(|pool| pool.loaded()) {
            if pool.settings.name != id.pool && pool.cached_index().volumes().contains_key(&id.name) {
                let text = format!(
                    "volume {} already exists in pool {}: use another name",
                    id.name, pool.settings.name
                );
                return Err(Error::new(Kind::Conflict, text));
            }
        }
        Ok(())
    }

    fn create_empty(&self, locked: &LockedVolume, request: &CreateVolume, ephemeral: bool) -> Result<Volume> {
        let pool = &locked.pool;
        let reservation = pool.reserve(request.size.required)?;
        let mut volume = new_record(locked.id.clone(), request, request.size.required);
        volume.ephemeral = ephemeral;
        volume.owner = merged_owner(request.owner, Owner::default());
        let made = pool.draft().and_then(|draft| {
            volume.backend = pool.allot()?;
            volume.enforced = pool.backend.create(draft.dir(), &volume.backend, limits(&volume))?;
            finish_volume(pool, draft, &volume, reservation, Committer::Call)
        });
        pool.reaper.add(pool.store.trash().take_abandoned());
        made.context(|| format!("create volume {}", volume.id)).map(|()| volume)
    }

    fn start_copy(
        &self,
        locked: &LockedVolume,
        request: &CreateVolume,
        source: &Source,
        claim: NameClaim,
    ) -> Result<Arc<Job>> {
        let (pool, id) = (&locked.pool, &locked.id);
        let (from, size, locks) = self.find_source(source, locked).map_err(|error| {
            if error.kind() != Kind::NotFound || !request.may_go_elsewhere {
                return error;
            }
            let text =
                format!("{source} is not on this node; a pod that uses {} must run on its node", id.name);
            Error::caused(Kind::NoSpace, text, error)
        })?;
        pool.store.refuse_if_deleted(ObjectKind::Volumes, &id.name)?;
        let size = size_of_copy(id, request, source, size)?;
        let reservation = pool.reserve(size)?;
        let mut volume = new_record(id.clone(), request, size);
        let (pool_of_job, owner, consistency) = (Arc::clone(pool), request.owner, request.consistency);
        let pauses = Arc::clone(&self.pauses);
        self.start_job(pool, JobKey::Volume(id.clone()), source.clone(), move |job| {
            let _held = (claim, locks);
            let draft = pool_of_job.draft()?;
            volume.backend = pool_of_job.allot()?;
            let max_bytes = max_bytes(&job.from, size);
            let (state, limits) = (volume.backend.clone(), limits(&volume));
            let spec = CopySpec { state, limits, max_bytes, ..CopySpec::default() };
            let (pauses, pool, from) = (&pauses, &pool_of_job, &from);
            let task = CopyTask {
                pauses,
                pool,
                from,
                draft: &draft,
                spec: &spec,
                consistency,
                progress: &job.progress,
            };
            let copied = task.run().map_err(|error| {
                let next = format!("request a larger size for volume {}, or remove data", volume.id);
                too_large(error, &job.from, size, &next)
            })?;
            volume.enforced = copied.stats.enforced;
            volume.copied.clone_from(&copied.record);
            volume.owner = merged_owner(owner, owner_on_disk(draft.data()?.as_fd())?);
            finish_volume(&pool_of_job, draft, &volume, reservation, Committer::Job).map(|()| copied)
        })
    }

    /// Returns the source with its size, and the locks that the copy holds until it ends.
    pub(super) fn find_source(
        &self,
        source: &Source,
        copy: &LockedVolume,
    ) -> Result<(CopySource, u64, CopyLocks)> {
        let (pool, id) = (self.pool(&source.id().pool)?, source.id());
        let kind = match source {
            Source::Volume(_) => ObjectKind::Volumes,
            Source::Snapshot(_) => ObjectKind::Snapshots,
        };
        // Lock before the source is looked up: it cannot be deleted afterwards.
        let locks = CopyLocks::acquire(&copy.pool, (ObjectKind::Volumes, &copy.id), &pool, (kind, id))?;
        let size = match kind {
            ObjectKind::Volumes => self.require_without_lock(&pool, id)?.size,
            ObjectKind::Snapshots => self.require_snapshot(&pool, id)?.size,
        };
        Ok((CopySource::new(&pool, source.clone()), size, locks))
    }

    fn join_copy(&self, locked: &LockedVolume, job: &Arc<Job>, request: &CreateVolume) -> Result<Volume> {
        let id = &locked.id;
        match self.jobs.join(&JobKey::Volume(id.clone()), job, self.tuning.copy_wait) {
            Some(Ok(())) => {
                // The request that started the job may have asked for another size.
                let made = locked.require()?;
                check_same(&made, request).map(|()| made)
            }
            Some(Err(error)) => Err(error).context(|| format!("copy {} to volume {id}", job.from)),
            None => Err(Error::new(
                Kind::Busy,
                format!(
                    "volume {id} is being copied from {} ({} entries, {} so far): retry later",
                    job.from,
                    job.progress.entries(),
                    Size(job.progress.bytes()),
                ),
            )),
        }
    }

    /// Starts a job, and logs its result: no call may be waiting for it. If it fails, the reaper removes its remains at
    /// once.
    pub(super) fn start_job(
        &self,
        pool: &Arc<OpenPool>,
        key: JobKey,
        from: Source,
        work: impl FnOnce(&Job) -> Result<Copied> + Send + 'static,
    ) -> Result<Arc<Job>> {
        let pool = Arc::clone(pool);
        self.jobs.start(key.clone(), from, move |job| {
            let result = work(job);
            pool.reaper.add(pool.store.trash().take_abandoned());
            log_copy(&key, &job.from, &result);
            result.map(drop)
        })
    }
}

pub(super) fn new_record(id: VolumeId, request: &CreateVolume, size: u64) -> Volume {
    Volume {
        schema: SCHEMA,
        uid: uuid::Uuid::new_v4(),
        id,
        requested_name: request.name.clone(),
        size,
        enforced: Enforced::No,
        backend: crate::volume::BackendState::default(),
        owner: Owner::default(),
        policy: request.policy,
        labels: request.labels.clone(),
        source: request.source.clone(),
        copied: None,
        created: Timestamp::now(),
        last_backup: None,
        managed: true,
        ephemeral: false,
    }
}

/// Sets the owner and commits the draft: the last steps for every new volume.
pub(super) fn finish_volume(
    pool: &Arc<OpenPool>,
    draft: Draft<'_>,
    volume: &Volume,
    reservation: Reservation,
    committer: Committer,
) -> Result<()> {
    finish_data(pool, &draft, volume)?;
    pool.commit_volume(draft, volume, reservation, committer)
}

/// Sets the owner of the data, and makes it survive a power failure.
pub(super) fn finish_data(pool: &OpenPool, draft: &Draft<'_>, volume: &Volume) -> Result<()> {
    let data = draft.data()?;
    // A full volume may have no space for another owner.
    pool.backend
        .within_limits(draft.dir(), &volume.backend, &mut || set_owner(data.as_fd(), volume.owner))?;
    pool.backend.sync_data_directory(data.as_fd())
}

/// The requested owner and mode, with missing fields taken from `other`.
pub(super) fn merged_owner(spec: OwnerSpec, other: Owner) -> Owner {
    Owner {
        uid: spec.uid.unwrap_or(other.uid),
        gid: spec.gid.unwrap_or(other.gid),
        mode: spec.mode.unwrap_or(other.mode),
    }
}

pub(super) fn owner_on_disk(data: BorrowedFd<'_>) -> Result<Owner> {
    let stat = fs::fstat(data).context(|| "stat the data directory")?;
    Ok(Owner { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 })
}

fn set_owner(data: BorrowedFd<'_>, owner: Owner) -> Result<()> {
    let now = owner_on_disk(data)?;
    if (now.uid, now.gid) != (owner.uid, owner.gid) {
        let ids = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fs::fchown(data, Some(ids.0), Some(ids.1)).context(|| "set the owner of the data directory")?;
    }
    if now.mode != owner.mode {
        fs::fchmod(data, Mode::from_raw_mode(owner.mode)).context(|| "set the mode of the data directory")?;
    }
    Ok(())
}

/// Whether an existing volume satisfies a request for the same name.
pub(super) fn check_same(found: &Volume, request: &CreateVolume) -> Result<()> {
    let differs = |what: &str, actual: String| {
        let text = format!("volume {} exists with {what} {actual}: use another name", found.id);
        Err(Error::new(Kind::Conflict, text))
    };
    if found.requested_name != request.name {
        return differs("requested name", format!("{:?}", found.requested_name));
    }
    if !request.size.admits(found.size) {
        return differs("size", Size(found.size).to_string());
    }
    if merged_owner(request.owner, found.owner) != found.owner {
        let owner = found.owner;
        return differs("owner and mode", format!("{}:{} {:04o}", owner.uid, owner.gid, owner.mode));
    }
    check_source(&found.id, found.source.as_ref(), request)
}

fn check_source(id: &VolumeId, actual: Option<&Source>, request: &CreateVolume) -> Result<()> {
    if actual == request.source.as_ref() {
        return Ok(());
    }
    let actual = actual.map_or_else(|| "no source".to_owned(), |source| format!("source {source}"));
    Err(Error::new(Kind::Conflict, format!("volume {id} exists with {actual}: use another name")))
}

/// The size of a copy: at least that of its source.
pub(super) fn size_of_copy(id: &VolumeId, request: &CreateVolume, source: &Source, size: u64) -> Result<u64> {
    let too_small = |requested: u64| {
        let text =
            format!("volume {id}: {} is less than the size of {source}, {}", Size(requested), Size(size));
        Err(Error::new(Kind::OutOfRange, text))
    };
    match (request.size.required, request.size.limit) {
        (_, limit) if limit != 0 && limit < size => too_small(limit),
        (required, _) if required != 0 && required < size => too_small(required),
        (required, _) => Ok(required.max(size)),
    }
}
