//! The GroupController service: snapshots of several volumes at the same instant.

use std::collections::{BTreeSet, HashMap};

use tonic::{Request, Response, Status};

use super::proto::{self, group_controller_server::GroupController};
use super::{Driver, capabilities, fields, params, response, status};
use crate::dispatch::Lane;
use crate::engine::call;
use crate::engine::request::{CreateGroup, SnapshotGroup};
use crate::error::{Kind, Result};
use crate::telemetry;
use crate::volume::VolumeId;

/// Parses CreateVolumeGroupSnapshot. That all volumes are in one pool is checked by the engine.
fn create(request: proto::CreateVolumeGroupSnapshotRequest) -> Result<CreateGroup> {
    telemetry::record_volume_id(&request.name);
    let field = "source_volume_ids";
    let name = fields::name(request.name)?;
    let (consistency, labels) = params::group_options(request.parameters)?;
    let mut source_volumes = BTreeSet::new();
    for text in request.source_volume_ids {
        let volume: VolumeId = fields::raw_id(field, text)?.parse()?;
        if let Some(twice) = source_volumes.replace(volume) {
            return Err(fields::invalid(field, &format!("contains {twice} twice")));
        }
    }
    let pool = fields::required(field, source_volumes.first())?.pool.clone();
    Ok(CreateGroup { name, pool, source_volumes, consistency, labels })
}

/// `None` if the object does not exist.
fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// For group snapshots that this process makes by itself, and not for a client of the socket.
impl Driver {
    /// Whether this process has a volume of this id.
    ///
    /// # Errors
    /// Those of the engine, except `NotFound`.
    pub async fn has_volume(&self, id: &str) -> Result<bool> {
        let Some(id) = found(id.parse::<VolumeId>())? else { return Ok(false) };
        Ok(found(self.run(&Lane::of(&id), call::Get { id }).await)?.is_some())
    }

    /// Makes the group snapshot that a request of CSI with these fields asks for.
    ///
    /// # Errors
    /// `Invalid` for a wrong field; those of the engine.
    pub async fn make_group(
        &self,
        name: String,
        source_volume_ids: Vec<String>,
        parameters: HashMap<String, String>,
    ) -> Result<SnapshotGroup> {
        let secrets = HashMap::new();
        let request =
            proto::CreateVolumeGroupSnapshotRequest { name, source_volume_ids, parameters, secrets };
        self.create_group(create(request)?).await
    }

    /// The group snapshot of this id with these snapshots, if this process has it.
    ///
    /// # Errors
    /// Those of the engine, except `NotFound`.
    pub async fn find_group(&self, id: &str, snapshots: &[String]) -> Result<Option<SnapshotGroup>> {
        let Some(id) = found(id.parse::<VolumeId>())? else { return Ok(None) };
        found(self.run(&Lane::of(&id), call::GetGroup { id, snapshots: snapshots.to_vec() }).await)
    }

    /// Deletes a group snapshot. It may be deleted already.
    ///
    /// # Errors
    /// `Invalid` when its snapshots are others; those of the engine.
    pub async fn remove_group(&self, id: String, snapshots: Vec<String>) -> Result<()> {
        let Some(id) = fields::possible_id("group_snapshot_id", id)? else { return Ok(()) };
        self.run(&Lane::of(&id), call::DeleteGroup { id, snapshots }).await
    }

    async fn create_group(&self, request: CreateGroup) -> Result<SnapshotGroup> {
        self.require_pools()?;
        self.dispatch.create_group(request).await
    }
}

#[tonic::async_trait]
impl GroupController for Driver {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<proto::GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<proto::GroupControllerGetCapabilitiesResponse>, Status> {
        let capabilities = capabilities::group_controller();
        Ok(Response::new(proto::GroupControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<proto::CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<proto::CreateVolumeGroupSnapshotResponse>, Status> {
        let request = create(request.into_inner())?;
        let group = self.create_group(request).await.map_err(status::for_create_group)?;
        let group_snapshot = response::group(&group);
        Ok(Response::new(proto::CreateVolumeGroupSnapshotResponse { group_snapshot }))
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<proto::DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<proto::DeleteVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        self.remove_group(request.group_snapshot_id, request.snapshot_ids).await?;
        Ok(Response::new(proto::DeleteVolumeGroupSnapshotResponse {}))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<proto::GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<proto::GetVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let (id, snapshots) =
            (fields::id("group_snapshot_id", request.group_snapshot_id)?, request.snapshot_ids);
        let group = self.run(&Lane::of(&id), call::GetGroup { id, snapshots }).await?;
        Ok(Response::new(proto::GetVolumeGroupSnapshotResponse { group_snapshot: response::group(&group) }))
    }
}
