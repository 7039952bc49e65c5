//! Groups of snapshots: of several volumes of one pool, at the same instant. `pool/groups.rs` says when a group exists.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use tracing::{info, warn};

use super::claims::NameClaim;
use super::consistency::{Part, Pauses};
use super::copy::{Copied, exclude_other_hosts, max_bytes};
use super::cost::check_snapshot_cost;
use super::jobs::{Job, JobKey};
use super::locked::{CopyLocks, ensure_no_copy_creates};
use super::request::{ConsistencySpec, CreateGroup, SnapshotGroup};
use super::snapshot::{add_copy, lock_snapshot, name_taken, new_record, read};
use super::source::CopySource;
use super::{Engine, lock_data};
use crate::backend::{CopySpec, CopyStats};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::pool::OpenPool;
use crate::pool::locks::LockGuard;
use crate::pool::object::{ObjectKey, ObjectKind};
use crate::pool::store::Draft;
use crate::pool::trash::Retention;
use crate::volume::{Consistency, CopyRecord, GroupMembership, Size, Snapshot, Source, VolumeId};

/// A snapshot of a group that is being made.
struct Member {
    snapshot: Snapshot,
    from: CopySource,
    _locks: CopyLocks,
}

impl Engine {
    /// Creates snapshots of several volumes that show the same instant, or returns those that an earlier request of this name
    /// created. The containers that use any of the volumes are paused together. Either all snapshots exist, or none.
    ///
    /// # Errors
    /// `Conflict` when a group of other volumes has this name, or another snapshot the name of one of the group's; `Busy`
    /// while the data is being copied; `NotFound` for a volume; `Unsupported` when the volumes cannot be in one group; `InUse`
    /// when the containers cannot be paused; `NoSpace`.
    pub fn create_group(&self, request: &CreateGroup) -> Result<SnapshotGroup> {
        check_volumes(request)?;
        let (pool, id) = (self.pool(&request.pool)?, request.id());
        let claims = self.claim_group_names(&id, request.source_volumes.len())?;
        let _guard = lock_snapshot(&pool, &first_of(&id))?;
        // Check the jobs before the disk: a group exists on disk before its job ends.
        let (key, sources) = (JobKey::Group(id.clone()), sources(request));
        let running = self.jobs.find_for_all(&key, &sources);
        if running.as_ref().is_some_and(|job| !job.sources().eq(&sources)) {
            return Err(other_volumes(&id));
        }
        if let Some(found) = find_group(&pool, &id, request)? {
            return Ok(found);
        }
        let job = match running {
            Some(job) => job,
            None => self.start_group(&pool, &id, request, claims)?,
        };
        match self.jobs.join(&key, &job, self.tuning.copy_wait) {
            Some(Ok(())) => load_group(&pool, &id)?.ok_or_else(|| not_found(&id)),
            Some(Err(error)) => Err(error).context(|| format!("make group snapshot {id}")),
            None => {
                let (entries, bytes) = (job.progress.entries(), Size(job.progress.bytes()));
                let text = format!(
                    "the volumes of group snapshot {id} are being copied ({entries} entries, {bytes} so far): retry later"
                );
                Err(Error::new(Kind::Busy, text))
            }
        }
    }

    /// Claims the names of the snapshots of a group that is being created, here or in a worker.
    ///
    /// # Errors
    /// `Conflict` or `Busy` when a snapshot of another pool of this engine has one of the names.
    pub fn claim_group_names(&self, id: &VolumeId, snapshots: usize) -> Result<Vec<NameClaim>> {
        (1..=snapshots).map(|number| self.claim_snapshot_name(&member_of(id, number))).collect()
    }

    fn start_group(
        &self,
        pool: &Arc<OpenPool>,
        id: &VolumeId,
        request: &CreateGroup,
        claims: Vec<NameClaim>,
    ) -> Result<Arc<Job>> {
        pool.check_changes()?;
        check_snapshot_cost(pool, request.consistency.cost)?;
        pool.discard_partial_group(&id.name)?;
        let mut members = self.members(pool, id, request)?;
        let pauses = Arc::clone(&self.pauses);
        let spec = ConsistencySpec { consistency: Consistency::Crash, ..request.consistency };
        let (key, pool_of_job) = (JobKey::Group(id.clone()), Arc::clone(pool));
        let id = id.clone();
        let mut sources = sources(request);
        let first = sources.remove(0);
        self.jobs.start_for_all(key, (first, sources), move |job| {
            let _held = claims;
            let made = make_group(&pool_of_job, &mut members, &pauses, spec, &job.progress);
            pool_of_job.reaper.add(pool_of_job.store.trash().take_abandoned());
            log_group(&id, &made);
            made.map(drop)
        })
    }

    /// The snapshots to make, with the locks of their copies.
    fn members(&self, pool: &Arc<OpenPool>, id: &VolumeId, request: &CreateGroup) -> Result<Vec<Member>> {
        let group = GroupMembership {
            name: id.name.clone(),
            uid: uuid::Uuid::new_v4(),
            snapshots: request.source_volumes.len(),
        };
        let mut members: Vec<Member> = Vec::with_capacity(group.snapshots);
        for (number, source) in (1..).zip(&request.source_volumes) {
            let id = member_of(id, number);
            if let Some(other) = read(pool, &id)? {
                return Err(name_taken(&id, Some(&other.source_volume)));
            }
            let (volume, locks) = self.source_of_snapshot(pool, &id, source)?;
            let mut snapshot = new_record(&id, id.name.to_string(), &volume, &request.labels);
            snapshot.group = Some(group.clone());
            // Of one instant.
            snapshot.created = members.first().map_or(snapshot.created, |first| first.snapshot.created);
            let from = CopySource::new(pool, Source::Volume(volume.id));
            members.push(Member { snapshot, from, _locks: locks });
        }
        Ok(members)
    }

    /// Returns a group. `snapshots` are the ids that the caller has for its snapshots, or nothing.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when its snapshots are others; `Unreadable` when one is missing.
    pub fn get_group(&self, id: &VolumeId, snapshots: &[String]) -> Result<SnapshotGroup> {
        let pool = self.pool(&id.pool)?;
        let group = load_group(&pool, id)?.ok_or_else(|| not_found(id))?;
        check_snapshots(&group.id, group.snapshots.len(), snapshots)?;
        Ok(group)
    }

    /// Deletes a group with its snapshots; a running copy is stopped. Deleting a group that does not exist succeeds.
    ///
    /// # Errors
    /// `Invalid` when its snapshots are not those that the caller lists; `Busy` while a volume is being restored from one of
    /// them, and nothing is deleted then.
    pub fn delete_group(&self, id: &VolumeId, snapshots: &[String]) -> Result<()> {
        self.check_pool_is_configured(id)?;
        let (pool, first) = (self.pool(&id.pool)?, first_of(id));
        let guard = lock_snapshot(&pool, &first)?;
        self.jobs.cancel(&JobKey::Group(id.clone()), self.tuning.lock_wait)?;
        ensure_no_copy_creates(&pool, ObjectKind::Snapshots, &first.name)?;
        let Some(group) = membership(&pool, id)? else { return pool.discard_partial_group(&id.name) };
        check_snapshots(id, group.snapshots, snapshots)?;
        let (all, _locks) = lock_to_delete(&pool, id, &group, guard)?;
        // Without those that were removed by hand, and with those that have lost their records.
        let mut own = Vec::with_capacity(all.len());
        for snapshot in &all {
            if is_of(&pool, snapshot, &group)? {
                own.push(snapshot);
            }
        }
        // The first one first: then the group does not exist any more.
        discard(&pool, own).context(|| format!("delete group snapshot {id}"))
    }

    /// Whether [`Engine::delete_group`] would delete the group, or what is left of it, now.
    ///
    /// # Errors
    /// `NotFound`; otherwise same as [`Engine::delete_group`].
    pub fn check_removable_group(&self, id: &VolumeId) -> Result<()> {
        let (pool, first) = (self.pool(&id.pool)?, first_of(id));
        let guard = lock_snapshot(&pool, &first)?;
        match membership(&pool, id)? {
            Some(group) => lock_to_delete(&pool, id, &group, guard).map(drop),
            None if pool.left_of_group(&id.name)?.is_empty() => Err(not_found(id)),
            None => Ok(()),
        }
    }
}

/// Locks all snapshots of a group, of which the first one is locked already, and their data. Returns them in order.
fn lock_to_delete(
    pool: &OpenPool,
    id: &VolumeId,
    group: &GroupMembership,
    first: LockGuard<ObjectKey>,
) -> Result<(Vec<VolumeId>, Vec<LockGuard<ObjectKey>>)> {
    let (all, mut locks): (Vec<_>, _) =
        ((1..=group.snapshots).map(|number| member_of(id, number)).collect(), vec![first]);
    for other in all.iter().skip(1) {
        locks.push(lock_snapshot(pool, other)?);
    }
    for snapshot in &all {
        locks.push(lock_data(pool, ObjectKind::Snapshots, snapshot)?);
    }
    Ok((all, locks))
}

fn check_volumes(request: &CreateGroup) -> Result<()> {
    let (volumes, refuse) = (&request.source_volumes, |text| Err(Error::new(Kind::Unsupported, text)));
    if let Some(other) = volumes.iter().find(|volume| volume.pool != request.pool) {
        return refuse(format!(
            "volume {other} is not in pool {}: the volumes of a group snapshot must be in one pool",
            request.pool
        ));
    }
    if volumes.is_empty() || volumes.len() > GroupMembership::MAX {
        return refuse(format!(
            "a group snapshot has 1 to {} volumes, not {}",
            GroupMembership::MAX,
            volumes.len()
        ));
    }
    Ok(())
}

fn sources(request: &CreateGroup) -> Vec<Source> {
    request.source_volumes.iter().cloned().map(Source::Volume).collect()
}

fn member_of(group: &VolumeId, number: usize) -> VolumeId {
    VolumeId { pool: group.pool.clone(), name: GroupMembership::member(&group.name, number) }
}

fn first_of(group: &VolumeId) -> VolumeId {
    member_of(group, 1)
}

/// The group of this request, if it exists.
fn find_group(pool: &Arc<OpenPool>, id: &VolumeId, request: &CreateGroup) -> Result<Option<SnapshotGroup>> {
    let Some(found) = load_group(pool, id)? else { return Ok(None) };
    let same = found.snapshots.iter().map(|snapshot| &snapshot.source_volume).eq(&request.source_volumes);
    if same { Ok(Some(found)) } else { Err(other_volumes(id)) }
}

/// What the snapshots of a group say about it, also when the first one has lost its record; `None` if the group does not exist.
fn membership(pool: &Arc<OpenPool>, id: &VolumeId) -> Result<Option<GroupMembership>> {
    match read(pool, &first_of(id))? {
        Some(first) => Ok(first.group.filter(|group| group.name == id.name)),
        None => pool.group_without_first(&id.name),
    }
}

fn load_group(pool: &Arc<OpenPool>, id: &VolumeId) -> Result<Option<SnapshotGroup>> {
    let Some(group) = membership(pool, id)? else { return Ok(None) };
    let mut snapshots = Vec::with_capacity(group.snapshots);
    for number in 1..=group.snapshots {
        let member = member_of(id, number);
        let found = read(pool, &member)?.filter(|found| found.group.as_ref() == Some(&group));
        snapshots.push(found.ok_or_else(|| {
            let text = format!(
                "group snapshot {id} lacks snapshot {member}, which was removed or has lost its record: delete the group"
            );
            Error::new(Kind::Unreadable, text)
        })?);
    }
    let created = snapshots.first().map(|first| first.created);
    Ok(created.map(|created| SnapshotGroup { id: id.clone(), snapshots, created }))
}

fn is_of(pool: &OpenPool, id: &VolumeId, group: &GroupMembership) -> Result<bool> {
    match read(pool, id)? {
        Some(found) => Ok(found.group.as_ref() == Some(group)),
        None => pool.has_directory(&id.name),
    }
}

/// Refuses a list of snapshots that is not that of the group. An empty one says nothing.
fn check_snapshots(id: &VolumeId, snapshots: usize, listed: &[String]) -> Result<()> {
    let own: BTreeSet<_> = (1..=snapshots).map(|number| member_of(id, number).to_string()).collect();
    if listed.is_empty() || listed.iter().collect::<BTreeSet<_>>() == own.iter().collect() {
        return Ok(());
    }
    let own: Vec<_> = own.into_iter().collect();
    let text = format!("the snapshots of group snapshot {id} are {}", own.join(", "));
    Err(Error::new(Kind::Invalid, text))
}

/// Deletes snapshots in this order, whose locks the caller holds.
fn discard<'s>(pool: &OpenPool, snapshots: impl IntoIterator<Item = &'s VolumeId>) -> Result<()> {
    snapshots.into_iter().try_for_each(|snapshot| {
        let entry = pool.discard(ObjectKind::Snapshots, &snapshot.name, Retention::seconds(0))?;
        pool.reaper.add([entry]);
        Ok(())
    })
}

/// Copies all volumes as they are at one instant, and makes the copies visible. Returns what was paused.
fn make_group(
    pool: &OpenPool,
    members: &mut [Member],
    pauses: &Pauses,
    spec: ConsistencySpec,
    progress: &Progress,
) -> Result<CopyRecord> {
    let drafts = members.iter().map(|_| pool.draft()).collect::<Result<Vec<_>>>()?;
    let (record, copies) = copy_members(pool, members, &drafts, pauses, spec, progress)?;
    for (member, stats) in members.iter_mut().zip(copies) {
        add_copy(&mut member.snapshot, &Copied { stats, record: Some(record.clone()) });
    }
    commit(pool, members, drafts)?;
    Ok(record)
}

fn copy_members(
    pool: &OpenPool,
    members: &[Member],
    drafts: &[Draft<'_>],
    pauses: &Pauses,
    spec: ConsistencySpec,
    progress: &Progress,
) -> Result<(CopyRecord, Vec<CopyStats>)> {
    let data = members.iter().map(|member| member.from.open()).collect::<Result<Vec<OwnedFd>>>()?;
    let _alone = members
        .iter()
        .map(|member| exclude_other_hosts(&member.from, &member.snapshot.source_volume))
        .collect::<Result<Vec<_>>>()?;
    let mut parts = Vec::with_capacity(members.len());
    for ((member, draft), data) in members.iter().zip(drafts).zip(&data) {
        let max_bytes = max_bytes(member.from.source(), member.snapshot.size);
        let spec = CopySpec { max_bytes, read_only: true, in_passes: true, ..CopySpec::default() };
        let copy = pool.backend.begin_copy(data.as_fd(), draft.dir(), &spec, progress)?;
        let id = &member.snapshot.source_volume;
        parts.push(Part { pool, id, data: data.as_fd(), draft, progress, copy });
    }
    let record = pauses.copy(&mut parts, spec).map_err(explain_size)?;
    let copies = parts.into_iter().map(|part| part.copy.finish()).collect::<Result<_>>()?;
    Ok((record, copies))
}

/// Adds what to do to the error of a copy that has reached its size.
fn explain_size(error: Error) -> Error {
    if error.kind() != Kind::OutOfRange {
        return error;
    }
    let text =
        "a volume has more data than its size, which its copy may take: expand the volume, or remove data";
    Error::caused(Kind::OutOfRange, text, error)
}

/// Makes the snapshots visible: the first one last, which makes the group exist. If that fails, none is left.
fn commit(pool: &OpenPool, members: &[Member], drafts: Vec<Draft<'_>>) -> Result<()> {
    let mut committed = Vec::with_capacity(members.len());
    for (member, draft) in members.iter().zip(drafts).rev() {
        if let Err(error) = pool.commit_snapshot(draft, &member.snapshot) {
            // What cannot be deleted now is invisible, and deleted by the next start.
            let _ = discard(pool, committed);
            return Err(error);
        }
        committed.push(&member.snapshot.id);
    }
    Ok(())
}

fn other_volumes(id: &VolumeId) -> Error {
    Error::new(Kind::Conflict, format!("group snapshot {id} of other volumes exists: use another name"))
}

fn not_found(id: &VolumeId) -> Error {
    Error::new(Kind::NotFound, format!("group snapshot {id} does not exist"))
}

/// Logs the result: no call may be waiting for it.
fn log_group(id: &VolumeId, made: &Result<CopyRecord>) {
    let to = id.to_string();
    match made {
        Err(error) => warn!(to, error = error.chain(), "group snapshot failed"),
        Ok(CopyRecord { pause_ms, paused, .. }) => {
            info!(to, pause_ms, paused = paused.join(", "), "group snapshot finished");
        }
    }
}
