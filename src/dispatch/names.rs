//! Names are unique across the pools of this process and of its workers.

use std::time::Duration;

use super::{Dispatch, Lane};
use crate::engine::call::{
    CheckGroupName, CheckSnapshotName, CheckVolumeName, Create, EngineCall, TakeGroup, TakeSnapshot,
};
use crate::engine::request::{CreateGroup, CreateSnapshot, CreateVolume, SnapshotGroup};
use crate::error::{Kind, Result};
use crate::volume::{Name, PoolName, Snapshot, Volume, VolumeId};

/// How long a worker may take to look a name up in memory. One that does not respond in time is not asked.
const NAME_WAIT: Duration = Duration::from_secs(1);

impl Dispatch {
    /// Creates a volume in the pool that the request names.
    ///
    /// # Errors
    /// Those of [`Dispatch::call`] for [`Create`].
    pub async fn create(&self, pool: PoolName, request: CreateVolume) -> Result<Volume> {
        let id = VolumeId { name: Name::of(&request.name), pool };
        let _claim = match self.groups.is_empty() {
            true => None,
            false => Some(self.engine.claim_volume_name(&id)?),
        };
        self.check_volume_name(&id).await?;
        let request = CreateVolume { pool: Some(id.pool), ..request };
        let lane = self.lane_of_create(&request);
        self.call(&lane, Create { request }).await
    }

    /// Creates a snapshot.
    ///
    /// # Errors
    /// Those of [`Dispatch::call`] for [`TakeSnapshot`].
    pub async fn create_snapshot(&self, request: CreateSnapshot) -> Result<Snapshot> {
        let pool = &request.source_volume.pool;
        let id = VolumeId { name: Name::of(&request.name), pool: pool.clone() };
        let _claim = match self.groups.is_empty() {
            true => None,
            false => Some(self.engine.claim_snapshot_name(&id)?),
        };
        self.check_name(&id.pool, CheckSnapshotName { id: id.clone() }).await?;
        self.call(&Lane::Pool(id.pool), TakeSnapshot { request }).await
    }

    /// Creates the snapshots of a group.
    ///
    /// # Errors
    /// Those of [`Dispatch::call`] for [`TakeGroup`].
    pub async fn create_group(&self, request: CreateGroup) -> Result<SnapshotGroup> {
        let (id, snapshots) = (request.id(), request.source_volumes.len());
        let _claims = match self.groups.is_empty() {
            true => Vec::new(),
            false => self.engine.claim_group_names(&id, snapshots)?,
        };
        self.check_name(&id.pool, CheckGroupName { id: id.clone(), snapshots }).await?;
        self.call(&Lane::Pool(id.pool), TakeGroup { request }).await
    }

    /// Refuses the name of a volume that a worker of another pool has.
    ///
    /// # Errors
    /// `Conflict`; `Busy` while such a volume is being created.
    pub async fn check_volume_name(&self, id: &VolumeId) -> Result<()> {
        self.check_name(&id.pool, CheckVolumeName { id: id.clone() }).await
    }

    /// Asks the workers of other pools whether the name is taken there.
    async fn check_name<C: EngineCall<Answer = ()>>(&self, pool: &PoolName, check: C) -> Result<()> {
        let own = self.group_of(pool).map(|group| group.name());
        for group in self.groups.iter().filter(|group| Some(group.name()) != own) {
            match group.ask_running(check.clone(), NAME_WAIT).await {
                Some(Err(error)) if matches!(error.kind(), Kind::Conflict | Kind::Busy) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
