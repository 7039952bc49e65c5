//! The Node service: publishes volumes at paths of this node and reports on them.

use std::path::PathBuf;

use tonic::{Request, Response, Status};

use super::proto::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetStorageHealthRequest,
    NodeGetStorageHealthResponse, NodeGetVolumeHealthRequest, NodeGetVolumeHealthResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, node_server::Node,
};
use super::{Driver, access, capabilities, fields, params, response, share, status};
use crate::dispatch::{Dispatch, Lane};
use crate::engine::call;
use crate::engine::request::Publish;
use crate::error::Result;
use crate::telemetry;
use crate::volume::{Name, SizeRange, VolumeId};

/// Parses NodePublishVolume. An inline volume is in the pool that its attributes name, or in the default one.
fn publish(request: NodePublishVolumeRequest, dispatch: &Dispatch) -> Result<Publish> {
    telemetry::record_volume_id(&request.volume_id);
    let raw_id = fields::raw_id("volume_id", request.volume_id)?;
    let target = fields::target(request.target_path)?;
    let mut access = access::parse(request.volume_capability)?;
    access.flags.read_only |= request.readonly;
    fields::check_map("volume_context", &request.volume_context)?;
    let mut ephemeral = params::inline_volume(&raw_id, request.volume_context)?;
    let id = match &mut ephemeral {
        None => raw_id.parse()?,
        Some(volume) => {
            let pool = match volume.pool.take() {
                Some(pool) => pool,
                None => dispatch.default_pool_name()?,
            };
            volume.pool = Some(pool.clone());
            VolumeId { pool, name: Name::of(&raw_id) }
        }
    };
    Ok(Publish { id, target, flags: access.flags, sharing: access.sharing, ephemeral })
}

/// Parses NodeGetVolumeStats, but for the id, which may be that of a static share. A relative path is accepted: no volume is
/// published there, and csi-sanity expects NOT_FOUND.
fn stats(request: NodeGetVolumeStatsRequest) -> Result<(String, PathBuf)> {
    telemetry::record_volume_id(&request.volume_id);
    let id = fields::raw_id("volume_id", request.volume_id)?;
    Ok((id, fields::path("volume_path", request.volume_path)?))
}

/// Parses NodeExpandVolume. The path is as for NodeGetVolumeStats.
fn expand(request: NodeExpandVolumeRequest) -> Result<(VolumeId, PathBuf, SizeRange)> {
    let id = fields::raw_id("volume_id", request.volume_id)?;
    let path = fields::path("volume_path", request.volume_path)?;
    let size = fields::size(request.capacity_range)?;
    if request.volume_capability.is_some() {
        access::parse(request.volume_capability)?;
    }
    Ok((fields::id("volume_id", id)?, path, size))
}

/// Parses NodeGetVolumeHealth.
fn health(request: NodeGetVolumeHealthRequest) -> Result<(VolumeId, Option<PathBuf>)> {
    let id = fields::id("volume_id", request.volume_id)?;
    let path = Some(request.volume_publish_path).filter(|path| !path.is_empty());
    Ok((id, path.map(|path| fields::path("volume_publish_path", path)).transpose()?))
}

/// The error of the staging RPCs.
fn no_staging() -> Status {
    Status::unimplemented("a directory needs no staging: STAGE_UNSTAGE_VOLUME is not advertised")
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        if share::is_share(&request.volume_context) {
            telemetry::record_volume_id(&request.volume_id);
            self.dispatch.publish_share(share::publish(request)?).await?;
            return Ok(Response::new(NodePublishVolumeResponse {}));
        }
        let request = publish(request, &self.dispatch)?;
        self.run(&Lane::of(&request.id), call::PublishVolume { request }).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    /// The id is passed on unparsed, since the id of an inline volume names no pool.
    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        telemetry::record_volume_id(&request.volume_id);
        let id = fields::raw_id("volume_id", request.volume_id)?;
        let target = fields::target(request.target_path)?;
        self.dispatch.unpublish(id, target).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let (id, path) = stats(request.into_inner())?;
        let usage = match self.dispatch.usage_of_share(&id, &path).await? {
            Some(usage) => usage,
            None => {
                let id = id.parse()?;
                self.run(&Lane::of(&id), call::GetUsage { id, path }).await?
            }
        };
        Ok(Response::new(NodeGetVolumeStatsResponse { usage: response::usage(&usage) }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let (id, path, size) = expand(request.into_inner())?;
        let expanded = self.run(&Lane::of(&id), call::ExpandPublished { id, path, size }).await;
        let volume = expanded.map_err(status::for_node_expand)?;
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: response::saturating_i64(volume.size) }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let (id, path) = health(request.into_inner())?;
        let symptoms = self.run(&Lane::of(&id), call::GetHealth { id: id.clone(), path }).await?;
        let health = response::health(&id, symptoms);
        Ok(Response::new(NodeGetVolumeHealthResponse { volume_health: Some(health) }))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        let backend_health = response::storage_health(&self.health.pools().await);
        Ok(Response::new(NodeGetStorageHealthResponse { backend_health }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: capabilities::node() }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.identity.node.clone(),
            max_volumes_per_node: 0,
            accessible_topology: self.identity.own_topology(),
        }))
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(no_staging())
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(no_staging())
    }
}
