//! Snapshots: read-only copies of a volume's data, with records of their own.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::Engine;
use super::create::{copy_into, reopen};
use super::jobs::{Job, JobKey};
use super::list::collect;
use super::request::{CreateSnapshot, Page, SnapshotFilter};
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::store::{ObjectKind, Retention};
use crate::pool::{Index, OpenPool, Pool, SnapshotEntry};
use crate::volume::{Name, Snapshot, Source, Timestamp, VolumeId};

impl Engine {
    /// Cuts a snapshot in the volume's pool, or finds the one that an earlier call of this name cut. Not `ready`
    /// while the copy still runs; a retry joins it.
    ///
    /// # Errors
    /// `NotFound` for the volume; `Conflict` when the name has a snapshot of another volume; `NoSpace`.
    pub fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Snapshot> {
        let name = Name::of(&request.name);
        let _held = self.locks.take(format!("snapshot {name}"))?;
        if let Some(found) = self.find_snapshot(&name, request)? {
            return Ok(found);
        }
        let pool = self.pool(&request.of.pool)?;
        let id = VolumeId { pool: request.of.pool.clone(), name };
        let job = match self.jobs.find(&JobKey::Snapshot(id.clone())) {
            Some(job) => job,
            None => self.start_snapshot(&pool, &id, request)?,
        };
        match self.jobs.join(&JobKey::Snapshot(id.clone()), &job, self.tuning.copy_wait) {
            Some(Ok(())) => self.existing_snapshot(&pool, &id),
            Some(Err(error)) => Err(error).context(|| format!("copy {} to snapshot {id}", job.from)),
            None => Ok(pending(&id, &job)),
        }
    }

    fn start_snapshot(
        &self,
        pool: &Arc<OpenPool>,
        id: &VolumeId,
        request: &CreateSnapshot,
    ) -> Result<Arc<Job>> {
        // Held until the job is entered, so that a delete sees either no reader or this one.
        let _volume = self.lock_volume(&request.of)?;
        let volume = self.existing(pool, &request.of)?;
        let data = pool.store.data(ObjectKind::Volumes, &volume.id.name)?;
        let data =
            data.ok_or_else(|| Error::new(Kind::Internal, format!("volume {} has no data", volume.id)))?;
        let data = reopen(data.as_fd()).context(|| format!("copy volume {} to snapshot {id}", volume.id))?;
        let mut snapshot = Snapshot {
            schema: 1,
            id: id.clone(),
            requested_name: request.name.clone(),
            of: volume.id.clone(),
            size: volume.size,
            entries: 0,
            bytes: 0,
            labels: request.labels.clone(),
            created: Timestamp::now(),
            ready: true,
        };
        let into = Arc::clone(pool);
        self.start_job(pool, JobKey::Snapshot(id.clone()), Source::Volume(volume.id), move |job| {
            let draft = into.store.draft()?;
            into.backend.make(draft.dir())?;
            let manifest = copy_into(data.as_fd(), &draft, job)?;
            (snapshot.entries, snapshot.bytes) = (manifest.entries, manifest.bytes);
            draft.commit(ObjectKind::Snapshots, &snapshot.id.name, &snapshot)?;
            let entry = SnapshotEntry { of: snapshot.of, created: snapshot.created };
            into.index().put_snapshot(snapshot.id.name, entry);
            Ok(())
        })
    }

    /// The snapshot of this name in any pool, when it is complete.
    fn find_snapshot(&self, name: &Name, request: &CreateSnapshot) -> Result<Option<Snapshot>> {
        for pool in self.pools.iter().filter_map(Pool::opened) {
            let id = VolumeId { pool: pool.settings.name.clone(), name: name.clone() };
            // First the jobs, then the disk: what a job has made stands there before the job ends.
            if let Some(job) = self.jobs.find(&JobKey::Snapshot(id.clone()))
                && *job.from.id() != request.of
            {
                return Err(taken(&pending(&id, &job)));
            }
            if let Some(found) = read(&pool, &id)? {
                let same = found.of == request.of && found.requested_name == request.name;
                return if same { Ok(Some(found)) } else { Err(taken(&found)) };
            }
        }
        Ok(None)
    }

    /// The snapshot, also one that is still being cut.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` when its pool is.
    pub fn get_snapshot(&self, id: &VolumeId) -> Result<Snapshot> {
        let pool = self.pool(&id.pool)?;
        match self.jobs.find(&JobKey::Snapshot(id.clone())) {
            Some(job) => Ok(pending(id, &job)),
            None => self.existing_snapshot(&pool, id),
        }
    }

    pub(super) fn existing_snapshot(&self, pool: &OpenPool, id: &VolumeId) -> Result<Snapshot> {
        let found = read(pool, id)?;
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("snapshot {id} does not exist")))
    }

    /// Deletes a snapshot; one that does not exist is deleted already. A running copy is stopped.
    ///
    /// # Errors
    /// `Busy` while a volume is being restored from it; `Unavailable` when its pool is.
    pub fn delete_snapshot(&self, id: &VolumeId) -> Result<()> {
        let _held = self.locks.take(format!("snapshot {}", id.name))?;
        self.jobs.cancel(&JobKey::Snapshot(id.clone()), self.tuning.lock_wait)?;
        let pool = self.pool_to_delete_from(id)?;
        if pool.store.snapshot(&id.name)?.is_none() {
            return Ok(());
        }
        if self.jobs.reader_of(&Source::Snapshot(id.clone())).is_some() {
            let text = format!("a volume is being restored from snapshot {id}: try again when it is done");
            return Err(Error::new(Kind::Busy, text));
        }
        let now = Retention::Until(Timestamp::now().seconds);
        let trashed = pool.store.discard(ObjectKind::Snapshots, &id.name, now);
        let trashed = trashed.context(|| format!("delete snapshot {id}"))?;
        pool.index().take_snapshot(&id.name);
        self.reaper.add(&pool, [trashed]);
        Ok(())
    }

    /// Snapshots that are complete, by id.
    ///
    /// # Errors
    /// `Unavailable` when a pool is: a list that left it out would say that its snapshots are gone.
    pub fn list_snapshots(
        &self,
        filter: &SnapshotFilter,
        after: Option<&VolumeId>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        let pools = self.pools_by_name()?;
        let page = collect(&pools, after, max, Index::snapshots, |id, entry| {
            let wanted = filter.of.as_ref().is_none_or(|of| *of == entry.of)
                && filter.id.as_ref().is_none_or(|only| *only == id);
            wanted.then_some(id)
        });
        let mut items = Vec::with_capacity(page.items.len());
        for id in &page.items {
            items.extend(read(&*self.pool(&id.pool)?, id)?);
        }
        Ok(Page { items, next: page.next })
    }
}

/// The record of a snapshot. Where it lies says which it is, as with a volume.
fn read(pool: &OpenPool, id: &VolumeId) -> Result<Option<Snapshot>> {
    let found = pool.store.snapshot(&id.name)?;
    Ok(found.map(|snapshot| Snapshot { id: id.clone(), ..snapshot }))
}

fn taken(found: &Snapshot) -> Error {
    let text = format!("snapshot {} exists, of volume {}: use another name", found.id, found.of);
    Error::new(Kind::Conflict, text)
}

/// A snapshot that is still being copied.
fn pending(id: &VolumeId, job: &Job) -> Snapshot {
    Snapshot {
        schema: 1,
        id: id.clone(),
        requested_name: id.name.to_string(),
        of: job.from.id().clone(),
        size: 0,
        entries: job.progress.entries(),
        bytes: job.progress.bytes(),
        labels: crate::volume::Labels::new(),
        created: job.started,
        ready: false,
    }
}
