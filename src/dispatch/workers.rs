//! Calls of pools that a worker process serves, and calls of both kinds of pools.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::{Dispatch, Lane, task_failed};
use crate::engine::call::{EngineCall, FinishUnpublish, Unmount, UnmountLazily, Unpublish};
use crate::engine::request::{Activity, PoolSettings, PoolStatus};
use crate::error::{Error, Kind, Result};
use crate::volume::{PoolName, VolumeId};
use crate::worker::Group;

impl Dispatch {
    /// Whether any pool is configured.
    #[must_use]
    pub fn has_pools(&self) -> bool {
        !self.pools.is_empty()
    }

    /// The settings of all pools, in their order.
    pub fn pool_settings(&self) -> impl Iterator<Item = &PoolSettings> {
        self.pools.iter()
    }

    /// The groups of pools that worker processes serve.
    #[must_use]
    pub fn groups(&self) -> &[Arc<Group>] {
        &self.groups
    }

    /// The name of the pool for a request that names none: "default", or else the first pool.
    ///
    /// # Errors
    /// `Unavailable` when no pools are configured.
    pub fn default_pool_name(&self) -> Result<PoolName> {
        let named = self.pools.iter().find(|pool| pool.name.as_str() == "default");
        match named.or(self.pools.first()) {
            Some(pool) => Ok(pool.name.clone()),
            None => self.engine.default_pool_name(),
        }
    }

    /// The pool of this name, or the default one.
    ///
    /// # Errors
    /// `Invalid` when the pool does not exist.
    pub fn resolve_pool(&self, name: Option<PoolName>) -> Result<PoolName> {
        let Some(name) = name else { return self.default_pool_name() };
        if self.pools.iter().any(|pool| pool.name == name) {
            return Ok(name);
        }
        let known: Vec<_> = self.pools.iter().map(|pool| pool.name.as_str()).collect();
        let text = format!("pool {name} does not exist; the configured pools are: {}", known.join(", "));
        Err(Error::new(Kind::Invalid, text))
    }

    /// Whether the engine of this process serves a pool, and no worker.
    #[must_use]
    pub fn serves(&self, pool: &PoolName) -> bool {
        self.group_of(pool).is_none()
    }

    /// The group of a pool, if a worker process serves it.
    pub(super) fn group_of(&self, pool: &PoolName) -> Option<&Arc<Group>> {
        self.groups.iter().find(|group| group.pools().iter().any(|served| served.name == *pool))
    }

    /// Runs one engine call: on the engine of this process, or in the worker of its pool.
    ///
    /// # Errors
    /// As for [`Dispatch::run`]; `Unsupported` for a copy between pools of different processes.
    pub async fn call<C: EngineCall>(&self, lane: &Lane, call: C) -> Result<C::Answer> {
        match self.group_of_lane(lane)? {
            None => self.run(lane, |engine| call.run(engine)).await,
            Some(group) => self.call_worker(lane, group, call).await,
        }
    }

    /// The group that runs the calls of a lane; `None`: the engine of this process runs them.
    fn group_of_lane(&self, lane: &Lane) -> Result<Option<&Arc<Group>>> {
        match lane {
            Lane::Pool(pool) => Ok(self.group_of(pool)),
            Lane::Unmount(_) | Lane::Server(_) | Lane::AllPools | Lane::NoPool => Ok(None),
            Lane::Copy { from, to } => {
                let (source, group) = (self.group_of(from), self.group_of(to));
                if source.map(|group| group.name()) == group.map(|group| group.name()) {
                    return Ok(group);
                }
                let text = format!(
                    "a volume of pool {to} cannot be copied from pool {from}, since they are isolated from each other, as \
                     pools of different servers are: copy within one pool"
                );
                Err(Error::new(Kind::Unsupported, text))
            }
        }
    }

    /// As [`Dispatch::run`], with a task in place of a thread.
    async fn call_worker<C: EngineCall>(
        &self,
        lane: &Lane,
        group: &Arc<Group>,
        call: C,
    ) -> Result<C::Answer> {
        let answered = self.call_worker_in_time(lane, group, call).await;
        answered.map_err(|error| group.explain(error))
    }

    async fn call_worker_in_time<C: EngineCall>(
        &self,
        lane: &Lane,
        group: &Arc<Group>,
        call: C,
    ) -> Result<C::Answer> {
        let started = Instant::now();
        let deadline = started + self.timeout;
        self.refuse_while_a_pool_is_stalled(lane)?;
        let calls = self.calls(lane)?;
        let mut running = calls.enter(deadline).await?;
        let group = Arc::clone(group);
        let task = tokio::spawn(async move {
            let result = group.call(call, deadline).await;
            running.set_result(&result);
            result
        });
        match timeout_at(deadline, task).await {
            Ok(ended) => ended.unwrap_or_else(|error| Err(task_failed(error))),
            Err(_) => Err(calls.overdue(started)),
        }
    }

    /// Unmounts a volume from a path as [`Engine::unpublish`] does. This process unmounts the volumes of all pools, so that
    /// pods can end while a worker does not respond; the worker is needed only for a volume that is deleted with its pod.
    /// The id of such a volume names no pool.
    ///
    /// # Errors
    /// Those of [`Engine::unpublish`].
    ///
    /// [`Engine::unpublish`]: crate::engine::Engine::unpublish
    pub async fn unpublish(&self, id: String, target: PathBuf) -> Result<()> {
        if self.unpublish_share(&id, &target).await? {
            return Ok(());
        }
        let parsed: Option<VolumeId> = id.parse().ok();
        let group = parsed.as_ref().and_then(|id| self.group_of(&id.pool).map(|group| (id, group)));
        if let Some((volume, group)) = group {
            let lane = Lane::Unmount(volume.pool.clone());
            let unmount = Unmount { id: id.clone(), target: target.clone() };
            let was_there = match self.call(&lane, unmount).await {
                Err(error) if error.kind() == Kind::InUse && group.is_dead().await => {
                    warn!(id, error = error.chain(), "{}: the volume is detached lazily", group.name());
                    self.call(&lane, UnmountLazily { id: id.clone(), target: target.clone() }).await?
                }
                unmounted => unmounted?,
            };
            group.tell_running(FinishUnpublish { id, target, was_there });
            return Ok(());
        }
        let lane = self.lane_of_unpublish(&id);
        if self.groups.is_empty() || lane != Lane::AllPools {
            return self.call(&lane, Unpublish { id, target }).await;
        }
        let was_there = self.call(&Lane::NoPool, Unmount { id: id.clone(), target: target.clone() }).await?;
        let finish = |was_there| FinishUnpublish { id: id.clone(), target: target.clone(), was_there };
        for lane in self.lanes_of_groups() {
            // An id that no volume can have is reported once, by the engine of this process.
            self.call(&lane, finish(true)).await?;
        }
        self.call(&lane, finish(was_there)).await
    }

    /// One lane of each group.
    pub(super) fn lanes_of_groups(&self) -> Vec<Lane> {
        let first = self.groups.iter().filter_map(|group| group.pools().first());
        first.map(|pool| Lane::Pool(pool.name.clone())).collect()
    }

    /// Reads the status of a pool that a worker serves; `None` if this process serves it.
    pub async fn status_of_worker(&self, settings: &PoolSettings) -> Option<PoolStatus> {
        let group = self.group_of(&settings.name)?;
        let status = group.status(&settings.name).await;
        Some(status.unwrap_or_else(|error| PoolStatus {
            unavailable: Some(error.chain()),
            ..PoolStatus::new(settings)
        }))
    }

    /// What this process and the workers do and did.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let mut activity = self.engine.activity();
        for group in self.groups.iter() {
            activity.add(&group.activity());
        }
        activity
    }
}
