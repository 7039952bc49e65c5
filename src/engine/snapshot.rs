//! Snapshots: read-only copies of a volume's data with records of their own.

use std::sync::Arc;

use super::claims::NameClaim;
use super::copy::{Copied, CopyTask, max_bytes, too_large};
use super::cost::check_snapshot_cost;
use super::jobs::{Job, JobKey};
use super::list::collect;
use super::locked::{CopyLocks, ensure_no_copy_creates};
use super::request::{CreateSnapshot, Page, SnapshotFilter};
use super::source::CopySource;
use super::{Engine, lock_data};
use crate::backend::CopySpec;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Manifest;
use crate::pool::locks::{LockGuard, Mode};
use crate::pool::object::{ObjectKey, ObjectKind};
use crate::pool::trash::Retention;
use crate::pool::{Index, OpenPool, SnapshotEntry};
use crate::volume::{
    BackendState, Consistency, CopyRecord, Labels, Name, SCHEMA, Snapshot, Source, Timestamp, Volume,
    VolumeId,
};

impl Engine {
    /// Creates a snapshot in the volume's pool, or returns the one that an earlier request of this name created. The
    /// result is not `ready` while the copy runs; a retry waits for the same copy.
    ///
    /// # Errors
    /// `NotFound` for the volume; `Conflict` when another volume's snapshot has this name; `NoSpace`.
    pub fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Snapshot> {
        let pool = self.pool(&request.source_volume.pool)?;
        let id = VolumeId { pool: request.source_volume.pool.clone(), name: Name::of(&request.name) };
        let claim = self.claims.claim(ObjectKind::Snapshots, &id)?;
        self.refuse_snapshot_name_of_other_pool(&id)?;
        let _guard = lock_snapshot(&pool, &id)?;
        // Check the jobs before the disk: a snapshot exists on disk before its job ends.
        let key = JobKey::Snapshot(id.clone());
        let running = self.jobs.find_for(&key, Some(&Source::Volume(request.source_volume.clone())));
        if let Some(job) = running.as_ref().filter(|job| *job.from.id() != request.source_volume) {
            return Err(name_taken(&id, Some(job.from.id())));
        }
        if let Some(found) = find_snapshot(&pool, &id, request)? {
            return Ok(found);
        }
        let job = match running {
            Some(job) => job,
            None => self.start_snapshot(&pool, &id, request, claim)?,
        };
        match self.jobs.join(&key, &job, self.tuning.copy_wait) {
            Some(Ok(())) => self.require_snapshot(&pool, &id),
            Some(Err(error)) => Err(error).context(|| format!("copy {} to snapshot {id}", job.from)),
            None => Ok(pending(&id, &job)),
        }
    }

    fn start_snapshot(
        &self,
        pool: &Arc<OpenPool>,
        id: &VolumeId,
        request: &CreateSnapshot,
        claim: NameClaim,
    ) -> Result<Arc<Job>> {
        pool.check_changes()?;
        check_snapshot_cost(pool, request.consistency.cost)?;
        let (volume, locks) = self.source_of_snapshot(pool, id, &request.source_volume)?;
        let mut snapshot = new_record(id, request.name.clone(), &volume, &request.labels);
        let source = Source::Volume(volume.id);
        let (pool_of_job, from) = (Arc::clone(pool), CopySource::new(pool, source.clone()));
        let (pauses, consistency) = (Arc::clone(&self.pauses), request.consistency);
        self.start_job(pool, JobKey::Snapshot(id.clone()), source, move |job| {
            let _held = (claim, locks);
            let draft = pool_of_job.draft()?;
            let max_bytes = max_bytes(&job.from, snapshot.size);
            let spec = CopySpec { max_bytes, read_only: true, ..CopySpec::default() };
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
                too_large(error, &job.from, snapshot.size, "expand the volume, or remove data")
            })?;
            add_copy(&mut snapshot, &copied);
            pool_of_job.commit_snapshot(draft, &snapshot).map(|()| copied)
        })
    }

    /// The volume that a new snapshot copies, with the locks that the copy needs.
    pub(super) fn source_of_snapshot(
        &self,
        pool: &Arc<OpenPool>,
        id: &VolumeId,
        volume: &VolumeId,
    ) -> Result<(Volume, CopyLocks)> {
        // Lock before the volume is looked up: it cannot be deleted afterwards.
        let source = (ObjectKind::Volumes, volume);
        let locks = CopyLocks::acquire(pool, (ObjectKind::Snapshots, id), pool, source)?;
        let volume = self.require_without_lock(pool, volume)?;
        pool.store.refuse_if_deleted(ObjectKind::Snapshots, &id.name)?;
        pool.check_accepts(pool.fs_stats()?)
            .context(|| format!("pool {} refuses new snapshots", pool.settings.name))?;
        Ok((volume, locks))
    }

    /// Whether [`Engine::create_snapshot`] would create the snapshot now; false if it exists already.
    ///
    /// # Errors
    /// Same as [`Engine::create_snapshot`].
    pub fn check_create_snapshot(&self, request: &CreateSnapshot) -> Result<bool> {
        let pool = self.pool(&request.source_volume.pool)?;
        let id = VolumeId { pool: request.source_volume.pool.clone(), name: Name::of(&request.name) };
        let _guard = lock_snapshot(&pool, &id)?;
        if find_snapshot(&pool, &id, request)?.is_some() {
            return Ok(false);
        }
        pool.check_changes()?;
        check_snapshot_cost(&pool, request.consistency.cost)?;
        self.source_of_snapshot(&pool, &id, &request.source_volume).map(|_| true)
    }

    /// Whether [`Engine::delete_snapshot`] would delete the snapshot now.
    ///
    /// # Errors
    /// `NotFound`; otherwise same as [`Engine::delete_snapshot`].
    pub fn check_removable_snapshot(&self, id: &VolumeId) -> Result<()> {
        let pool = self.pool(&id.pool)?;
        let _guard = lock_snapshot(&pool, id)?;
        ensure_no_copy_creates(&pool, ObjectKind::Snapshots, &id.name)?;
        let found = read(&pool, id)?.ok_or_else(|| not_found(id))?;
        refuse_member(&pool, &found)?;
        lock_data(&pool, ObjectKind::Snapshots, id).map(drop)
    }

    /// Claims the name of a snapshot that is being created, here or in a worker.
    ///
    /// # Errors
    /// `Conflict` or `Busy` when a snapshot of another pool of this engine has the name.
    pub fn claim_snapshot_name(&self, id: &VolumeId) -> Result<NameClaim> {
        let claim = self.claims.claim(ObjectKind::Snapshots, id)?;
        self.refuse_snapshot_name_of_other_pool(id)?;
        Ok(claim)
    }

    /// Refuses a name that a snapshot in another pool has, as for volumes.
    fn refuse_snapshot_name_of_other_pool(&self, id: &VolumeId) -> Result<()> {
        // In memory only: another pool's disk may not respond.
        for pool in self.pools.iter().filter(|pool| pool.settings().name != id.pool) {
            let other = VolumeId { pool: pool.settings().name.clone(), name: id.name.clone() };
            // Check the jobs before the index: a job ends when its snapshot is in the index.
            if let Some(job) = self.jobs.find_for(&JobKey::Snapshot(other.clone()), None) {
                return Err(name_taken(&other, Some(job.from.id())));
            }
            match pool.loaded().and_then(|open| open.cached_index().snapshots().get(&id.name).cloned()) {
                None => {}
                Some(SnapshotEntry::Of { volume, .. }) => return Err(name_taken(&other, Some(&volume))),
                Some(SnapshotEntry::Damaged(_)) => return Err(name_taken(&other, None)),
            }
        }
        Ok(())
    }

    /// Returns the snapshot, even if its copy is still running.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` if its pool is.
    pub fn get_snapshot(&self, id: &VolumeId) -> Result<Snapshot> {
        let pool = self.pool(&id.pool)?;
        match self.jobs.find(&JobKey::Snapshot(id.clone())).filter(|job| !job.has_ended()) {
            Some(job) => Ok(pending(id, &job)),
            None => self.require_snapshot(&pool, id),
        }
    }

    /// Like [`load`]; `NotFound` when the snapshot does not exist.
    pub(super) fn require_snapshot(&self, pool: &OpenPool, id: &VolumeId) -> Result<Snapshot> {
        let found = self.peek_snapshot(pool, id)?;
        found.ok_or_else(|| not_found(id))
    }

    /// Reads the record of a snapshot; `None` also for what is left of a group that does not exist.
    fn peek_snapshot(&self, pool: &OpenPool, id: &VolumeId) -> Result<Option<Snapshot>> {
        let found = self.peek_stored_snapshot(pool, id)?;
        let is_left = found.as_ref().map_or(Ok(false), |found| pool.is_left_of_group(found));
        Ok(if is_left? { None } else { found })
    }

    /// Reads the record of a snapshot. Updates the index if no other call works on the snapshot.
    fn peek_stored_snapshot(&self, pool: &OpenPool, id: &VolumeId) -> Result<Option<Snapshot>> {
        let found = read(pool, id);
        if entry_of(&found)
            .is_none_or(|entry| pool.cached_index().snapshots().get(&id.name) == entry.as_ref())
        {
            return found;
        }
        let key = ObjectKey::Object(ObjectKind::Snapshots, id.name.clone());
        let Some(_guard) = pool.store.locks().try_lock(key, Mode::Exclusive)? else { return found };
        // A job commits its snapshot without the lock, and updates the index itself.
        if self.jobs.find(&JobKey::Snapshot(id.clone())).is_some() {
            return found;
        }
        pool.read_into_index(
            || read(pool, id),
            |found, index| match entry_of(found) {
                Some(Some(entry)) => index.put_snapshot(id.name.clone(), entry),
                Some(None) => index.remove_snapshot(&id.name),
                None => {}
            },
        )
    }

    /// Deletes a snapshot; a running copy is stopped. Deleting a snapshot that does not exist succeeds.
    ///
    /// # Errors
    /// `Busy` while a volume is being restored from it; `Unavailable` if its pool is.
    pub fn delete_snapshot(&self, id: &VolumeId) -> Result<()> {
        self.check_pool_is_configured(id)?;
        let pool = self.pool(&id.pool)?;
        let _guard = lock_snapshot(&pool, id)?;
        self.jobs.cancel(&JobKey::Snapshot(id.clone()), self.tuning.lock_wait)?;
        ensure_no_copy_creates(&pool, ObjectKind::Snapshots, &id.name)?;
        let Some(found) = read(&pool, id)? else {
            pool.cached_index().remove_snapshot(&id.name);
            return Ok(());
        };
        refuse_member(&pool, &found)?;
        if self.jobs.reader_of(&Source::Snapshot(id.clone())).is_some() {
            let text =
                format!("a volume is being restored from snapshot {id}: retry when the restore is complete");
            return Err(Error::new(Kind::Busy, text));
        }
        let now = Retention::seconds(0);
        let _data = lock_data(&pool, ObjectKind::Snapshots, id)?;
        let entry = pool.discard(ObjectKind::Snapshots, &id.name, now);
        let entry = entry.context(|| format!("delete snapshot {id}"))?;
        pool.reaper.add([entry]);
        Ok(())
    }

    /// Lists complete snapshots by id. A snapshot whose record is damaged is left out, unless the filter names it.
    ///
    /// # Errors
    /// `Unavailable` when a pool is: an incomplete list would imply that the missing snapshots were deleted. `Unreadable`
    /// when the filter names a snapshot whose record is.
    pub fn list_snapshots(
        &self,
        filter: &SnapshotFilter,
        after: Option<&VolumeId>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        let pools = self.pools_by_name()?;
        let page = collect(&pools, after, max, Index::snapshots, |_, id, entry| {
            let wanted = filter.id.as_ref().is_none_or(|only| *only == id)
                && match (entry, &filter.source_volume) {
                    // Read again: the record may have been repaired.
                    (SnapshotEntry::Damaged(_), _) | (SnapshotEntry::Of { .. }, None) => true,
                    (SnapshotEntry::Of { volume, .. }, Some(of)) => volume == of,
                };
            wanted.then_some(id)
        })?;
        let mut items = Vec::with_capacity(page.items.len());
        for id in &page.items {
            let found = self.pool(&id.pool).and_then(|pool| self.peek_snapshot(&pool, id));
            match found {
                Err(error) if error.kind() == Kind::Unreadable && filter.id.is_none() => {}
                Err(error) => return Err(error),
                Ok(found) => items.extend(found.filter(|found| {
                    filter.source_volume.as_ref().is_none_or(|of| *of == found.source_volume)
                })),
            }
        }
        Ok(Page { items, next: page.next })
    }
}

/// The record of a new snapshot, before its copy.
pub(super) fn new_record(
    id: &VolumeId,
    requested_name: String,
    volume: &Volume,
    labels: &Labels,
) -> Snapshot {
    Snapshot {
        uid: uuid::Uuid::new_v4(),
        requested_name,
        size: volume.size,
        labels: labels.clone(),
        created: Timestamp::now(),
        ready: true,
        ..unfinished(id, volume.id.clone())
    }
}

/// A snapshot of which nothing but its name and its source is known.
fn unfinished(id: &VolumeId, source_volume: VolumeId) -> Snapshot {
    Snapshot {
        schema: SCHEMA,
        uid: uuid::Uuid::nil(),
        id: id.clone(),
        requested_name: id.name.to_string(),
        source_volume,
        size: 0,
        entries: None,
        bytes: None,
        skipped_xattrs: 0,
        vanished: 0,
        skipped_subvolumes: 0,
        copied: CopyRecord::unpaused(Consistency::None),
        backend: BackendState::default(),
        group: None,
        labels: Labels::new(),
        created: Timestamp::UNIX_EPOCH,
        ready: false,
    }
}

/// Adds to the record of a snapshot what its copy was like.
pub(super) fn add_copy(snapshot: &mut Snapshot, copied: &Copied) {
    if let Some(Manifest { entries, bytes, skipped_xattrs, vanished }) = copied.stats.copied {
        (snapshot.entries, snapshot.bytes) = (Some(entries), Some(bytes));
        (snapshot.skipped_xattrs, snapshot.vanished) = (skipped_xattrs, vanished);
    }
    snapshot.skipped_subvolumes = copied.stats.skipped_subvolumes;
    if let Some(record) = &copied.record {
        snapshot.copied.clone_from(record);
    }
}

/// Locks a snapshot, existing or not.
pub(super) fn lock_snapshot(pool: &OpenPool, id: &VolumeId) -> Result<LockGuard<ObjectKey>> {
    pool.store.locks().lock(ObjectKey::Object(ObjectKind::Snapshots, id.name.clone()))
}

/// The snapshot of this request, if it is complete.
fn find_snapshot(pool: &OpenPool, id: &VolumeId, request: &CreateSnapshot) -> Result<Option<Snapshot>> {
    let Some(found) = read(pool, id)? else { return Ok(None) };
    let same = found.source_volume == request.source_volume
        && found.requested_name == request.name
        && found.group.is_none();
    if same { Ok(Some(found)) } else { Err(name_taken(id, Some(&found.source_volume))) }
}

/// Reads the record of a snapshot. The id is that of the directory, as for volumes.
pub(super) fn read(pool: &OpenPool, id: &VolumeId) -> Result<Option<Snapshot>> {
    let found = pool.store.snapshot(&id.name)?;
    Ok(found.map(|snapshot| Snapshot { id: id.clone(), ready: true, ..snapshot }))
}

/// The entry for the result of [`read`]: `None` if the result says nothing about the snapshot.
fn entry_of(found: &Result<Option<Snapshot>>) -> Option<Option<SnapshotEntry>> {
    match found {
        Ok(found) => Some(found.as_ref().map(SnapshotEntry::from)),
        Err(error) if error.kind() == Kind::Unreadable => {
            Some(Some(SnapshotEntry::Damaged(error.chain().into())))
        }
        Err(_) => None,
    }
}

fn not_found(id: &VolumeId) -> Error {
    Error::new(Kind::NotFound, format!("snapshot {id} does not exist"))
}

/// Refuses to delete a snapshot of a group that exists.
fn refuse_member(pool: &OpenPool, snapshot: &Snapshot) -> Result<()> {
    let Some(group) = &snapshot.group else { return Ok(()) };
    if pool.is_left_of_group(snapshot)? {
        return Ok(());
    }
    let (id, name) = (&snapshot.id, &group.name);
    let text = format!(
        "snapshot {id} belongs to group snapshot {}/{name}, which is deleted as a whole: delete the group",
        id.pool
    );
    Err(Error::new(Kind::Invalid, text))
}

pub(super) fn name_taken(id: &VolumeId, source: Option<&VolumeId>) -> Error {
    let of = source.map(|source| format!(", of volume {source}")).unwrap_or_default();
    Error::new(Kind::Conflict, format!("snapshot {id} exists{of}: use another name"))
}

/// A snapshot whose copy still runs.
fn pending(id: &VolumeId, job: &Job) -> Snapshot {
    Snapshot {
        entries: Some(job.progress.entries()),
        bytes: Some(job.progress.bytes()),
        created: job.started,
        ..unfinished(id, job.from.id().clone())
    }
}
