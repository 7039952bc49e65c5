//! The volume logic. Synchronous, and independent of any protocol. Methods follow the sequence *lock, load, act, commit*.

pub mod call;
pub mod jobs;
pub mod named_shares;
pub mod request;
pub mod share;
pub mod survey;
pub mod takeover;
pub mod trash;

mod adopt;
mod archive;
mod audit;
mod claims;
mod consistency;
mod copy;
mod cost;
mod create;
mod described;
mod dry_run;
mod edit;
mod groups;
mod health;
mod inspect;
mod list;
mod locked;
mod publish;
mod rename;
mod replace;
mod shrink;
mod snapshot;
mod source;
mod system_directory;

use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::loop_devices::loop_device_in;
use crate::mount::overlays::overlay_in;
use crate::mount::users::Users;
use crate::pause::Pauser;
use crate::pool::locks::{LockGuard, LockTable, Mode};
use crate::pool::object::{ObjectKey, ObjectKind};
use crate::pool::trash::Retention;
use crate::pool::{OpenPool, Pool, Purpose, UsedLock};
use crate::volume::{PoolName, Source, Volume, VolumeId};
pub use archive::BackedUp;
pub use claims::NameClaim;
use claims::NameClaims;
use consistency::Pauses;
use jobs::{JobKey, Jobs};
use locked::{LockedVolume, ensure_no_copy_creates};
use publish::Target;
use request::{Activity, KeptFiles, PauseStats, PoolSettings, Tuning};

/// The pools of this process and the operations on their contents.
#[derive(Debug)]
pub struct Engine {
    pools: Vec<Arc<Pool>>,
    targets: LockTable<Target>,
    claims: NameClaims,
    jobs: Jobs,
    users: Users,
    pauses: Arc<Pauses>,
    tuning: Tuning,
}

impl Engine {
    /// Opens the pools side by side, and waits for them at most for the call timeout. A pool that has not responded then
    /// is opened when it does. Opening an unavailable pool is retried on each request for it.
    ///
    /// # Errors
    /// `Invalid` when two pools have the same name.
    pub fn open(pools: Vec<PoolSettings>, tuning: Tuning) -> Result<Self> {
        let engine = Self::new(pools, Purpose::Serve, tuning, None, &KeptFiles::default())?;
        engine.open_pools()?;
        Ok(engine)
    }

    /// Opens the pools as [`Engine::open`] does, and records them in a directory of the host: where a pool was once, an
    /// empty directory does not become a new one, also after a restart.
    ///
    /// # Errors
    /// Same as [`Engine::open`].
    pub fn open_recorded(pools: Vec<PoolSettings>, tuning: Tuning, records: &Path) -> Result<Self> {
        Self::open_kept(pools, tuning, records, &KeptFiles::default())
    }

    /// Opens the pools as [`Engine::open_recorded`] does, in a process whose mounts and used-locks are kept for its
    /// successors, and which takes over those of its predecessors.
    ///
    /// # Errors
    /// Same as [`Engine::open`].
    pub fn open_kept(
        pools: Vec<PoolSettings>,
        tuning: Tuning,
        records: &Path,
        kept: &KeptFiles,
    ) -> Result<Self> {
        let engine = Self::new(pools, Purpose::Serve, tuning, Some(records), kept)?;
        engine.open_pools()?;
        Ok(engine)
    }

    /// Prepares the pools for one command; each is opened when the command needs it. Nothing is swept, reaped or
    /// measured, and no directory becomes a pool.
    ///
    /// # Errors
    /// `Invalid` when two pools have the same name.
    pub fn open_for_command(pools: Vec<PoolSettings>, tuning: Tuning) -> Result<Self> {
        Self::new(pools, Purpose::Command, tuning, None, &KeptFiles::default())
    }

    fn new(
        pools: Vec<PoolSettings>,
        purpose: Purpose,
        tuning: Tuning,
        records: Option<&Path>,
        kept: &KeptFiles,
    ) -> Result<Self> {
        for (i, pool) in pools.iter().enumerate() {
            if pools.iter().take(i).any(|earlier| earlier.name == pool.name) {
                return Err(Error::new(Kind::Invalid, format!("two pools are named {}", pool.name)));
            }
        }
        let pool = |settings| {
            let pool =
                Pool::new(settings, purpose, tuning.lock_wait, tuning.usage_age).with_kept(kept.clone());
            let pool = pool.with_audits(tuning.audit_every);
            Arc::new(match records {
                Some(records) => pool.with_records(records),
                None => pool,
            })
        };
        Ok(Self {
            pools: pools.into_iter().map(pool).collect(),
            targets: LockTable::new(tuning.lock_wait),
            claims: NameClaims::default(),
            jobs: Jobs::new(tuning.copies),
            users: Users::new("/proc".into()),
            pauses: Arc::new(Pauses::new(Pauser::new("/proc".into()))),
            tuning,
        })
    }

    fn open_pools(&self) -> Result<()> {
        // Nothing is sent: the channel closes when the last thread ends.
        let (open, ended) = mpsc::channel::<Infallible>();
        for pool in &self.pools {
            let (pool, open) = (Arc::clone(pool), open.clone());
            let work = move || {
                // A failure is reported by `pools` and by every request for the pool.
                let _ = pool.get_or_open();
                drop(open);
            };
            thread::Builder::new().name("open".to_owned()).spawn(work).context(|| "open the pools")?;
        }
        drop(open);
        let _ = ended.recv_timeout(self.tuning.call_timeout);
        Ok(())
    }

    /// The settings of the pools, in their order.
    pub fn pool_settings(&self) -> impl Iterator<Item = &PoolSettings> {
        self.pools.iter().map(|pool| pool.settings())
    }

    /// Timeouts and concurrency.
    #[must_use]
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Reports whether any pool is configured, available or not.
    #[must_use]
    pub fn has_pools(&self) -> bool {
        !self.pools.is_empty()
    }

    /// Returns the pool with this name, opened if necessary.
    fn pool(&self, name: &PoolName) -> Result<Arc<OpenPool>> {
        match self.pools.iter().find(|pool| pool.settings().name == *name) {
            Some(pool) => pool.get_or_open(),
            None => Err(Error::new(Kind::NotFound, format!("pool {name} is not configured in this process"))),
        }
    }

    /// Refuses to delete from a pool that is not configured. Its data may still exist, and a success would be final and
    /// leave the data behind.
    fn check_pool_is_configured(&self, id: &VolumeId) -> Result<()> {
        if self.pools.iter().any(|pool| pool.settings().name == id.pool) {
            return Ok(());
        }
        let text = format!(
            "delete {id}: pool {} is not configured in this process; configure it and retry",
            id.pool
        );
        Err(Error::new(Kind::Unavailable, text))
    }

    /// Returns the volume.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` if its pool is.
    pub fn get(&self, id: &VolumeId) -> Result<Volume> {
        let pool = self.pool(&id.pool)?;
        self.require_without_lock(&pool, id)
    }

    /// Deletes a volume according to its policy, and cancels a copy that is creating it. Succeeds without effect for a
    /// missing or unmanaged volume.
    ///
    /// # Errors
    /// `InUse` if it is mounted; the message names the pod or process. `Busy` while it is copied; `Unavailable` if its pool is.
    pub fn delete(&self, id: &VolumeId) -> Result<()> {
        self.check_pool_is_configured(id)?;
        let locked = self.lock_to_delete(id)?;
        match locked.load()? {
            Some(volume) if volume.managed => self.delete_loaded(&locked, &volume),
            _ => Ok(()),
        }
    }

    /// Deletes a volume as [`Engine::delete`] does, for a caller that expects it to exist.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for an unmanaged volume; otherwise same as [`Engine::delete`].
    pub fn remove(&self, id: &VolumeId) -> Result<()> {
        let (locked, volume) = self.lock_managed(id)?;
        self.delete_loaded(&locked, &volume)
    }

    fn lock_managed(&self, id: &VolumeId) -> Result<(LockedVolume, Volume)> {
        self.check_pool_is_configured(id)?;
        let locked = self.lock_to_delete(id)?;
        let volume = locked.require()?;
        if !volume.managed {
            let text = format!("volume {id} is unmanaged and is never deleted: remove its directory by hand");
            return Err(Error::new(Kind::Unsupported, text));
        }
        Ok((locked, volume))
    }

    fn lock_to_delete(&self, id: &VolumeId) -> Result<LockedVolume> {
        let locked = self.lock_volume(id)?;
        self.jobs.cancel(&JobKey::Volume(id.clone()), self.tuning.lock_wait)?;
        ensure_no_copy_creates(&locked.pool, ObjectKind::Volumes, &id.name)?;
        Ok(locked)
    }

    fn delete_loaded(&self, locked: &LockedVolume, volume: &Volume) -> Result<()> {
        let (pool, id) = (&locked.pool, &locked.id);
        let _unused = self.lock_unused(locked)?;
        let entry = pool.discard(ObjectKind::Volumes, &id.name, Retention::of(volume.policy));
        let entry = entry.context(|| format!("delete volume {id}"))?;
        pool.usage.forget(&id.name);
        pool.reaper.add([entry]);
        Ok(())
    }

    /// Locks the data of a volume that nothing uses: no mount, no copy, and no other host.
    fn lock_unused<'l>(&self, locked: &'l LockedVolume) -> Result<UnusedLocks<'l>> {
        let (pool, id) = (&locked.pool, &locked.id);
        pool.check_changes()?;
        if let Some(reader) = self.jobs.reader_of(&Source::Volume(id.clone())) {
            let to = reader.id();
            let text = format!("volume {id} is being copied to {to}: retry when the copy is complete");
            return Err(Error::new(Kind::Busy, text));
        }
        self.refuse_if_used(locked)?;
        let alone = pool.used().map(|used| used.take_to_delete(&id.name)).transpose()?;
        Ok(UnusedLocks { _alone: alone, _data: lock_data(pool, ObjectKind::Volumes, id)? })
    }

    fn refuse_if_used(&self, locked: &LockedVolume) -> Result<()> {
        let id = &locked.id;
        let Some(data) = locked.pool.store.data(ObjectKind::Volumes, &id.name)? else { return Ok(()) };
        let path = locked.pool.path_of_data(&id.name);
        match self.user_of(data.as_fd(), &path).context(|| format!("find the users of volume {id}"))? {
            None => Ok(()),
            Some(user) => {
                let text = format!("volume {id} is in use by {user}: stop it and retry");
                Err(Error::new(Kind::InUse, text))
            }
        }
    }

    /// The first user of a directory that is found.
    fn user_of(&self, data: BorrowedFd<'_>, path: &Path) -> Result<Option<String>> {
        let users = self.users.of(data)?;
        if let Some(first) = users.first() {
            let more = if users.len() > 1 { format!(" and {} more", users.len() - 1) } else { String::new() };
            return Ok(Some(format!("{first}{more}")));
        }
        match loop_device_in(data)? {
            None if self.users.may_be_overlays() => {
                Ok(overlay_in(data, path)?.map(|overlay| overlay.to_string()))
            }
            device => Ok(device),
        }
    }

    /// Number of copies that are running or waiting.
    #[must_use]
    pub fn active_jobs(&self) -> usize {
        self.jobs.count()
    }

    /// Entries and bytes that the running copies have copied so far.
    #[must_use]
    pub fn copied_so_far(&self) -> (u64, u64) {
        self.jobs.progress()
    }

    /// What this process does and did.
    #[must_use]
    pub fn activity(&self) -> Activity {
        Activity { jobs: self.active_jobs(), pauses: self.pauses() }
    }

    /// What became of the pauses of this process.
    #[must_use]
    pub fn pauses(&self) -> PauseStats {
        self.pauses.stats()
    }

    /// Waits until no trash of any pool is due for removal; reports whether that happened in time. An entry whose removal
    /// failed is due again after a minute.
    #[must_use]
    pub fn wait_for_reaper(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        self.pools.iter().all(|pool| pool.reaper().wait_until_idle(left()))
    }

    /// Stops the copies. The next start removes their drafts, and retries start them again.
    pub fn shutdown(&self) {
        self.jobs.shutdown(Duration::from_secs(2));
    }
}

/// The locks of a volume that nothing uses and nothing begins to use.
#[derive(Debug)]
struct UnusedLocks<'l> {
    _alone: Option<UsedLock<'l>>,
    _data: LockGuard<ObjectKey>,
}

/// Locks the data of an object that is to be deleted.
///
/// # Errors
/// `Busy` while a copy of any process reads it.
fn lock_data(pool: &OpenPool, kind: ObjectKind, id: &VolumeId) -> Result<LockGuard<ObjectKey>> {
    pool.check_changes()?;
    let lock = pool.store.locks().try_lock(ObjectKey::Data(kind, id.name.clone()), Mode::Exclusive)?;
    lock.ok_or_else(|| {
        let text = format!("{kind} {id} is being copied: retry when the copy is complete");
        Error::new(Kind::Busy, text)
    })
}
