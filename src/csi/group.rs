//! The GroupController service: snapshots of several volumes at the same instant.

use std::collections::BTreeSet;

use tonic::{Request, Response, Status};

use super::proto::{self, group_controller_server::GroupController};
use super::{Driver, capabilities, fields, params, response, status};
use crate::dispatch::Lane;
use crate::engine::call;
use crate::engine::request::{CreateGroup, SnapshotGroup};
use crate::error::Result;
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

impl Driver {
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
        if let Some(id) = fields::possible_id("group_snapshot_id", request.group_snapshot_id)? {
            let snapshots = request.snapshot_ids;
            self.run(&Lane::of(&id), call::DeleteGroup { id, snapshots }).await?;
        }
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
