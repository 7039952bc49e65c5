//! Every rule about volumes. Synchronous; knows no protocol; methods read *lock, look, act, record*.

pub mod jobs;
pub mod request;

mod create;
mod health;
mod list;
mod publish;
mod snapshot;

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::users::Users;
use crate::pool::locks::{LockGuard, LockTable};
use crate::pool::reaper::Reaper;
use crate::pool::store::{ObjectKind, Retention};
use crate::pool::usage::UsageCache;
use crate::pool::{OpenPool, Pool, VolumeEntry};
use crate::volume::{
    OnDelete, Owner, Policy, PolicyChange, PoolName, SizeRange, Source, Timestamp, Volume, VolumeId,
};
use jobs::{JobKey, Jobs};
use request::{PoolSettings, Tuning};

/// All pools of this process and the rules for what is in them.
#[derive(Debug)]
pub struct Engine {
    pools: Vec<Pool>,
    locks: LockTable,
    jobs: Jobs,
    reaper: Reaper,
    users: Users,
    usage: UsageCache,
    tuning: Tuning,
}

impl Engine {
    /// Takes the pools over. Those that are not available are tried again whenever they are asked for.
    ///
    /// # Errors
    /// `Invalid` when two pools have one name; else what the kernel says when it gives no threads.
    pub fn open(pools: Vec<PoolSettings>, tuning: Tuning) -> Result<Self> {
        for (i, pool) in pools.iter().enumerate() {
            if pools.iter().take(i).any(|earlier| earlier.name == pool.name) {
                return Err(Error::new(Kind::Invalid, format!("two pools are named {}", pool.name)));
            }
        }
        let engine = Self {
            pools: pools.into_iter().map(Pool::new).collect(),
            locks: LockTable::new(tuning.lock_wait),
            jobs: Jobs::new(tuning.copies),
            reaper: Reaper::start()?,
            users: Users::new("/proc".into()),
            usage: UsageCache::new(tuning.usage_age),
            tuning,
        };
        for pool in &engine.pools {
            // What is wrong with it is said by `pools`, and to everyone who asks for it.
            let _ = engine.open_pool(pool);
        }
        Ok(engine)
    }

    /// Whether there is any pool in the settings, available or not.
    #[must_use]
    pub fn has_pools(&self) -> bool {
        !self.pools.is_empty()
    }

    fn open_pool(&self, pool: &Pool) -> Result<Arc<OpenPool>> {
        pool.get(|opened, trashed| self.reaper.add(opened, trashed))
    }

    /// The pool of this name, open.
    fn pool(&self, name: &PoolName) -> Result<Arc<OpenPool>> {
        match self.pools.iter().find(|pool| pool.settings().name == *name) {
            Some(pool) => self.open_pool(pool),
            None => Err(Error::new(Kind::NotFound, format!("there is no pool {name} here"))),
        }
    }

    /// The pool of what is to be deleted. Where it is not in the settings, "it is gone" would be a lie: the data may
    /// still lie there, and nobody would come back for it.
    fn pool_to_delete_from(&self, id: &VolumeId) -> Result<Arc<OpenPool>> {
        if self.pools.iter().any(|pool| pool.settings().name == id.pool) {
            return self.pool(&id.pool);
        }
        let text = format!(
            "delete {id}: pool {} is not in the settings of this instance: add it, try again",
            id.pool
        );
        Err(Error::new(Kind::Unavailable, text))
    }

    fn lock_volume(&self, id: &VolumeId) -> Result<LockGuard> {
        self.locks.take(volume_key(id))
    }

    /// The record of a volume, with the index brought in line with what is on disk. The caller holds its lock.
    fn look(&self, pool: &OpenPool, id: &VolumeId) -> Result<Option<Volume>> {
        let found = read(pool, id)?;
        let mut index = pool.index();
        match &found {
            Some(volume) => index.put_volume(id.name.clone(), VolumeEntry::from(volume)),
            None => index.take_volume(&id.name),
        }
        drop(index);
        Ok(found)
    }

    /// As [`Engine::look`], for who does not hold the volume's lock: while that is held, whoever holds it keeps the
    /// index, and what was read here may be past already.
    fn glance(&self, pool: &OpenPool, id: &VolumeId) -> Result<Option<Volume>> {
        let found = read(pool, id)?;
        let entry = found.as_ref().map(VolumeEntry::from);
        if pool.index().volumes().get(&id.name) == entry.as_ref() {
            return Ok(found);
        }
        match self.locks.try_take(volume_key(id)) {
            Some(_held) => self.look(pool, id),
            None => Ok(found),
        }
    }

    fn existing(&self, pool: &OpenPool, id: &VolumeId) -> Result<Volume> {
        self.look(pool, id)?.ok_or_else(|| missing(id))
    }

    /// As [`Engine::existing`], for who does not hold the volume's lock.
    fn seen(&self, pool: &OpenPool, id: &VolumeId) -> Result<Volume> {
        self.glance(pool, id)?.ok_or_else(|| missing(id))
    }

    /// The volume.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` when its pool is.
    pub fn get(&self, id: &VolumeId) -> Result<Volume> {
        let pool = self.pool(&id.pool)?;
        self.seen(&pool, id)
    }

    /// Deletes a volume; one that does not exist is deleted already. Its data goes where its policy says.
    ///
    /// # Errors
    /// `InUse`, naming who uses it; `Busy` while it is copied; `Unavailable` when its pool is.
    pub fn delete(&self, id: &VolumeId) -> Result<()> {
        let _held = self.lock_volume(id)?;
        self.jobs.cancel(&JobKey::Volume(id.clone()), self.tuning.lock_wait)?;
        let pool = self.pool_to_delete_from(id)?;
        self.delete_locked(&pool, id)
    }

    fn delete_locked(&self, pool: &Arc<OpenPool>, id: &VolumeId) -> Result<()> {
        let Some(volume) = self.look(pool, id)? else { return Ok(()) };
        if !volume.managed {
            return Ok(());
        }
        if let Some(JobKey::Volume(into) | JobKey::Snapshot(into)) =
            self.jobs.reader_of(&Source::Volume(id.clone()))
        {
            return Err(Error::new(
                Kind::Busy,
                format!("volume {id} is being copied to {into}: try again then"),
            ));
        }
        self.refuse_if_used(pool, id)?;
        let trashed = pool.store.discard(ObjectKind::Volumes, &id.name, retention(volume.policy));
        let trashed = trashed.context(|| format!("delete volume {id}"))?;
        pool.index().take_volume(&id.name);
        self.usage.forget(id);
        self.reaper.add(pool, [trashed]);
        Ok(())
    }

    fn refuse_if_used(&self, pool: &OpenPool, id: &VolumeId) -> Result<()> {
        let Some(data) = pool.store.data(ObjectKind::Volumes, &id.name)? else { return Ok(()) };
        let users = self.users.of(std::os::fd::AsFd::as_fd(&data));
        let users = users.context(|| format!("find who uses volume {id}"))?;
        let Some(first) = users.first() else { return Ok(()) };
        let more = if users.len() > 1 { format!(" and {} more", users.len() - 1) } else { String::new() };
        let text = format!("volume {id} is in use by {first}{more}: stop what uses it first");
        Err(Error::new(Kind::InUse, text))
    }

    /// Gives a volume a larger size; one that is large enough already stays as it is.
    ///
    /// # Errors
    /// `NotFound`; `OutOfRange` for less than it has; `NoSpace` when the pool may not promise so much.
    pub fn expand(&self, id: &VolumeId, range: SizeRange) -> Result<Volume> {
        let _held = self.lock_volume(id)?;
        let pool = self.pool(&id.pool)?;
        let mut volume = self.existing(&pool, id)?;
        if range.limit != 0 && range.limit < volume.size {
            let text = format!("volume {id} has {} bytes and cannot shrink to {}", volume.size, range.limit);
            return Err(Error::new(Kind::OutOfRange, text));
        }
        if range.required <= volume.size {
            return Ok(volume);
        }
        if !volume.managed {
            let text = format!("volume {id} was put there by hand: its size is not orlop's to change");
            return Err(Error::new(Kind::Unsupported, text));
        }
        let reserved = pool.reserve(range.required - volume.size)?;
        volume.size = range.required;
        self.set_limit(&pool, &mut volume)?;
        pool.store.rewrite(&volume)?;
        reserved.keep(id.name.clone(), VolumeEntry::from(&volume));
        Ok(volume)
    }

    /// Changes the part of a volume's policy that may change.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for a limit that the pool cannot set; then nothing is changed.
    pub fn modify(&self, id: &VolumeId, change: PolicyChange) -> Result<Volume> {
        let _held = self.lock_volume(id)?;
        let pool = self.pool(&id.pool)?;
        let mut volume = self.existing(&pool, id)?;
        let policy = change.applied_to(volume.policy);
        if policy == volume.policy {
            return Ok(volume);
        }
        if !volume.managed {
            let text = format!("volume {id} was put there by hand: it has no policy to change");
            return Err(Error::new(Kind::Unsupported, text));
        }
        volume.policy = policy;
        self.set_limit(&pool, &mut volume)?;
        pool.store.rewrite(&volume)?;
        Ok(volume)
    }

    fn set_limit(&self, pool: &OpenPool, volume: &mut Volume) -> Result<()> {
        let data = pool.store.data(ObjectKind::Volumes, &volume.id.name)?;
        let data =
            data.ok_or_else(|| Error::new(Kind::Internal, format!("volume {} has no data", volume.id)))?;
        let data = std::os::fd::AsFd::as_fd(&data);
        volume.enforced = pool.backend.limit(data, volume.size, volume.policy.limit)?;
        Ok(())
    }

    /// Copies that run now.
    #[must_use]
    pub fn jobs_running(&self) -> usize {
        self.jobs.count()
    }

    /// Waits until the reaper has removed what is due; says whether it has.
    #[must_use]
    pub fn wait_idle(&self, wait: Duration) -> bool {
        self.reaper.wait_idle(wait)
    }

    /// Stops the copies; what they have made so far is swept at the next start, and a retry starts them again.
    pub fn shutdown(&self) {
        self.jobs.shutdown(Duration::from_secs(2));
    }
}

fn volume_key(id: &VolumeId) -> String {
    format!("volume {}", id.name)
}

fn missing(id: &VolumeId) -> Error {
    Error::new(Kind::NotFound, format!("volume {id} does not exist"))
}

/// The record of a volume, or what stands for it where there is only data. Where it lies says which volume it is, not
/// what its record says: the folder may be a copy of another, or the pool may have got another name.
fn read(pool: &OpenPool, id: &VolumeId) -> Result<Option<Volume>> {
    if let Some(volume) = pool.store.volume(&id.name)? {
        return Ok(Some(Volume { id: id.clone(), ..volume }));
    }
    let data = pool.store.data(ObjectKind::Volumes, &id.name)?;
    Ok(data.map(|_| unmanaged(id)))
}

/// A folder in `volumes/` without a record: an administrator put it there, and orlop does not delete it.
fn unmanaged(id: &VolumeId) -> Volume {
    Volume {
        schema: 1,
        id: id.clone(),
        requested_name: id.name.to_string(),
        size: 0,
        enforced: crate::volume::Enforced::No,
        owner: Owner::default(),
        policy: Policy { on_delete: OnDelete::Retain, ..Policy::default() },
        labels: crate::volume::Labels::new(),
        source: None,
        created: Timestamp::default(),
        managed: false,
        ephemeral: false,
    }
}

fn retention(policy: Policy) -> Retention {
    let now = Timestamp::now().seconds;
    match policy.on_delete {
        OnDelete::Delete => Retention::Until(now),
        OnDelete::Trash => Retention::Until(
            now.saturating_add(i64::try_from(policy.trash_for.as_secs()).unwrap_or(i64::MAX)),
        ),
        OnDelete::Retain => Retention::Forever,
    }
}
