//! The Node service: volumes at paths of this machine.

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
use super::{Driver, access, capabilities, fields, params, response};
use crate::engine::Engine;
use crate::engine::request::Publish;
use crate::error::{Error, Result};
use crate::telemetry;
use crate::volume::{Name, SizeRange, VolumeId};

/// Reads NodePublishVolume. An inline volume lives in the pool its attributes name, else in the default one.
fn publish(request: NodePublishVolumeRequest, engine: &Engine) -> Result<Publish> {
    telemetry::about(&request.volume_id);
    let raw = fields::raw_id("volume_id", request.volume_id)?;
    let target = fields::target(request.target_path)?;
    let mut access = access::access(request.volume_capability)?;
    access.flags.read_only |= request.readonly;
    fields::map("volume_context", &request.volume_context)?;
    let mut ephemeral = params::inline(&raw, request.volume_context)?;
    let id = match &mut ephemeral {
        None => raw.parse()?,
        Some(request) => {
            let pool = match request.pool.take() {
                Some(pool) => pool,
                None => engine.default_pool_name()?,
            };
            request.pool = Some(pool.clone());
            VolumeId { pool, name: Name::of(&raw) }
        }
    };
    Ok(Publish { id, target, flags: access.flags, sharing: access.sharing, ephemeral })
}

/// A volume at a path, as stats and health ask for it.
#[derive(Debug)]
struct At {
    id: VolumeId,
    path: PathBuf,
}

impl TryFrom<NodeGetVolumeStatsRequest> for At {
    type Error = Error;

    /// A relative path is no error of form: no volume is there, as csi-sanity wants it.
    fn try_from(request: NodeGetVolumeStatsRequest) -> Result<Self> {
        let id = fields::raw_id("volume_id", request.volume_id)?;
        let path = fields::path("volume_path", request.volume_path)?;
        Ok(Self { id: fields::id("volume_id", id)?, path })
    }
}

/// NodeExpandVolume, read.
#[derive(Debug)]
struct Expand {
    at: At,
    size: SizeRange,
}

impl TryFrom<NodeExpandVolumeRequest> for Expand {
    type Error = Error;

    fn try_from(request: NodeExpandVolumeRequest) -> Result<Self> {
        let id = fields::raw_id("volume_id", request.volume_id)?;
        let path = fields::path("volume_path", request.volume_path)?;
        let size = fields::size(request.capacity_range)?;
        if request.volume_capability.is_some() {
            access::access(request.volume_capability)?;
        }
        Ok(Self { at: At { id: fields::id("volume_id", id)?, path }, size })
    }
}

/// NodeGetVolumeHealth, read.
fn health(request: NodeGetVolumeHealthRequest) -> Result<(VolumeId, Option<PathBuf>)> {
    let id = fields::id("volume_id", request.volume_id)?;
    let path = Some(request.volume_publish_path).filter(|path| !path.is_empty());
    Ok((id, path.map(|path| fields::path("volume_publish_path", path)).transpose()?))
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = publish(request.into_inner(), &self.engine)?;
        self.run(move |engine| engine.publish(&request)).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    /// An inline volume's id is one of no pool, so the id goes on as it came.
    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        telemetry::about(&request.volume_id);
        let id = fields::raw_id("volume_id", request.volume_id)?;
        let target = fields::target(request.target_path)?;
        self.run(move |engine| engine.unpublish(&id, &target)).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let at = At::try_from(request.into_inner())?;
        let usage = self.run(move |engine| engine.stats(&at.id, &at.path)).await?;
        Ok(Response::new(NodeGetVolumeStatsResponse { usage: response::usage(&usage) }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let Expand { at, size } = request.into_inner().try_into()?;
        let volume = self.run(move |engine| engine.expand_published(&at.id, &at.path, size)).await?;
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: response::signed(volume.size) }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let (id, path) = health(request.into_inner())?;
        let found =
            self.run(move |engine| Ok(response::health(&id, engine.health(&id, path.as_deref())?))).await?;
        Ok(Response::new(NodeGetVolumeHealthResponse { volume_health: Some(found) }))
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
            accessible_topology: Some(self.identity.here()),
        }))
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(Status::unimplemented("a directory needs no staging: STAGE_UNSTAGE_VOLUME is not advertised"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(Status::unimplemented("a directory needs no staging: STAGE_UNSTAGE_VOLUME is not advertised"))
    }
}
