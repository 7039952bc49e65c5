//! The Controller service: volumes and snapshots as such.

use tonic::{Request, Response, Status};

use super::paging::{self, Listing};
use super::proto::{self, controller_server::Controller, volume_content_source as content};
use super::{Driver, Identity, PendingClaim, access, capabilities, fields, params, response, status};
use crate::engine::request::{CreateSnapshot, CreateVolume, SnapshotFilter};
use crate::error::{Error, Kind, Result};
use crate::telemetry;
use crate::volume::{PolicyChange, PoolName, SizeRange, Source, VolumeId};

/// Reads CreateVolume. Whether this node is one of those asked for comes last: a request that no node would take
/// must not send the caller to the next.
fn create(request: proto::CreateVolumeRequest, identity: &Identity) -> Result<CreateVolume> {
    telemetry::about(&request.name);
    let name = fields::name(request.name)?;
    let size = fields::size(request.capacity_range)?;
    access::all(request.volume_capabilities)?;
    let options = params::options(request.parameters, request.mutable_parameters)?;
    let source = request.volume_content_source.map(source).transpose()?;
    Ok(CreateVolume {
        name,
        pool: options.pool,
        size,
        owner: options.owner,
        policy: options.policy,
        labels: options.labels,
        source,
        may_go_elsewhere: identity.check(request.accessibility_requirements.as_ref())?,
    })
}

fn source(source: proto::VolumeContentSource) -> Result<Source> {
    let id = |field, text| fields::raw_id(field, text)?.parse();
    match fields::required("volume_content_source.type", source.r#type)? {
        content::Type::Snapshot(of) => id("snapshot_id", of.snapshot_id).map(Source::Snapshot),
        content::Type::Volume(of) => id("volume_id", of.volume_id).map(Source::Volume),
    }
}

impl TryFrom<proto::CreateSnapshotRequest> for CreateSnapshot {
    type Error = Error;

    fn try_from(request: proto::CreateSnapshotRequest) -> Result<Self> {
        telemetry::about(&request.source_volume_id);
        let name = fields::name(request.name)?;
        let labels = params::labels_only(request.parameters)?;
        let source_volume = fields::id("source_volume_id", request.source_volume_id)?;
        Ok(Self { name, source_volume, labels })
    }
}

/// Reads ControllerExpandVolume: without a size there is nothing to do.
fn expand(request: proto::ControllerExpandVolumeRequest) -> Result<(VolumeId, SizeRange)> {
    let id = fields::raw_id("volume_id", request.volume_id)?;
    let size = fields::size(Some(fields::required("capacity_range", request.capacity_range)?))?;
    if size == SizeRange::default() {
        return Err(fields::refuse("capacity_range", "names no size"));
    }
    if request.volume_capability.is_some() {
        access::access(request.volume_capability)?;
    }
    Ok((fields::id("volume_id", id)?, size))
}

/// Reads ControllerModifyVolume.
fn modify(request: proto::ControllerModifyVolumeRequest) -> Result<(VolumeId, PolicyChange)> {
    let id = fields::id("volume_id", request.volume_id)?;
    Ok((id, params::change(request.mutable_parameters)?))
}

/// Reads the filter of ListSnapshots; `None`: an id of it is that of nothing.
fn filter(request: &proto::ListSnapshotsRequest) -> Option<SnapshotFilter> {
    let read = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
    Some(SnapshotFilter { id: read(&request.snapshot_id)?, source_volume: read(&request.source_volume_id)? })
}

/// Reads GetCapacity; `None`: here is none of what was asked for. What no node can make is an error, not "no room":
/// the provisioner asks before it takes a claim, and leaves one without room to others, who know no more.
fn place(request: proto::GetCapacityRequest, identity: &Identity) -> Result<Option<Option<PoolName>>> {
    let pool = params::options(request.parameters, [].into())?.pool;
    let elsewhere = request.accessible_topology.is_some_and(|place| !identity.is_here(&place));
    for capability in request.volume_capabilities {
        access::access(Some(capability))?;
    }
    Ok((!elsewhere).then_some(pool))
}

/// Reads ValidateVolumeCapabilities: the volume, and why what was asked is not possible, if it is not.
fn validate(request: &proto::ValidateVolumeCapabilitiesRequest) -> Result<(VolumeId, Option<Error>)> {
    let id = fields::raw_id("volume_id", request.volume_id.clone())?;
    if request.volume_capabilities.is_empty() {
        return Err(fields::refuse("volume_capabilities", "is required"));
    }
    let (parameters, mutable) = (request.parameters.clone(), request.mutable_parameters.clone());
    let possible = access::all(request.volume_capabilities.clone())
        .and_then(|_| params::options(parameters, mutable).map(|_| ()));
    Ok((fields::id("volume_id", id)?, possible.err()))
}

fn validated(
    request: proto::ValidateVolumeCapabilitiesRequest,
    refused: Option<Error>,
) -> proto::ValidateVolumeCapabilitiesResponse {
    if let Some(error) = refused {
        let message = status::bounded(error.chain(), 1024);
        return proto::ValidateVolumeCapabilitiesResponse { confirmed: None, message };
    }
    let confirmed = proto::validate_volume_capabilities_response::Confirmed {
        volume_context: request.volume_context,
        volume_capabilities: request.volume_capabilities,
        parameters: request.parameters,
        mutable_parameters: request.mutable_parameters,
    };
    proto::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() }
}

/// No attach step: the node publishes on its own.
fn no_attach() -> Status {
    Status::unimplemented("a directory needs no attaching: PUBLISH_UNPUBLISH_VOLUME is not advertised")
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<proto::CreateVolumeRequest>,
    ) -> Result<Response<proto::CreateVolumeResponse>, Status> {
        let request = create(request.into_inner(), &self.identity)?;
        let away = PendingClaim::of(&request);
        let made = self.run(move |engine| engine.create(&request)).await;
        if let (Err(error), Some(away), Some(follow)) = (&made, away, &self.follow)
            && error.kind() == Kind::NoSpace
        {
            follow.send(away).await;
        }
        let made = made.map_err(status::of_create)?;
        Ok(Response::new(proto::CreateVolumeResponse { volume: response::made(&self.identity, &made) }))
    }

    async fn delete_volume(
        &self,
        request: Request<proto::DeleteVolumeRequest>,
    ) -> Result<Response<proto::DeleteVolumeResponse>, Status> {
        if let Some(id) = fields::id_if_any("volume_id", request.into_inner().volume_id)? {
            self.run(move |engine| engine.delete(&id)).await?;
        }
        Ok(Response::new(proto::DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<proto::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<proto::ValidateVolumeCapabilitiesResponse>, Status> {
        let (id, refused) = validate(request.get_ref())?;
        self.run(move |engine| engine.get(&id)).await?;
        Ok(Response::new(validated(request.into_inner(), refused)))
    }

    async fn list_volumes(
        &self,
        request: Request<proto::ListVolumesRequest>,
    ) -> Result<Response<proto::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let start = paging::start(Listing::Volumes, request.max_entries, &request.starting_token)?;
        let page = self.run(move |engine| engine.list(start.after.as_ref(), start.max)).await?;
        let entries = page.items.iter().map(|volume| response::listed(&self.identity, volume)).collect();
        let next_token = paging::token(Listing::Volumes, page.next.as_ref());
        Ok(Response::new(proto::ListVolumesResponse { entries, next_token }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<proto::ControllerGetVolumeRequest>,
    ) -> Result<Response<proto::ControllerGetVolumeResponse>, Status> {
        let id = fields::id("volume_id", request.into_inner().volume_id)?;
        let volume = self.run(move |engine| engine.get(&id)).await?;
        let status = proto::controller_get_volume_response::VolumeStatus { published_node_ids: Vec::new() };
        let volume = response::made(&self.identity, &volume);
        Ok(Response::new(proto::ControllerGetVolumeResponse { volume, status: Some(status) }))
    }

    async fn get_capacity(
        &self,
        request: Request<proto::GetCapacityRequest>,
    ) -> Result<Response<proto::GetCapacityResponse>, Status> {
        let Some(pool) = place(request.into_inner(), &self.identity)? else {
            return Ok(Response::new(proto::GetCapacityResponse::default()));
        };
        let capacity = self.run(move |engine| engine.capacity(pool.as_ref())).await?;
        Ok(Response::new(proto::GetCapacityResponse {
            available_capacity: response::signed(response::coarse(capacity.available)),
            maximum_volume_size: Some(response::signed(response::coarse(capacity.largest))),
            minimum_volume_size: None,
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<proto::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<proto::ControllerGetCapabilitiesResponse>, Status> {
        let capabilities = capabilities::controller(self.identity.controller_expand);
        Ok(Response::new(proto::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<proto::CreateSnapshotRequest>,
    ) -> Result<Response<proto::CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        self.identity.check(request.accessibility_requirements.as_ref())?;
        let request = CreateSnapshot::try_from(request)?;
        let snapshot = self.run(move |engine| engine.create_snapshot(&request)).await?;
        Ok(Response::new(proto::CreateSnapshotResponse { snapshot: response::snapshot(&snapshot) }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<proto::DeleteSnapshotRequest>,
    ) -> Result<Response<proto::DeleteSnapshotResponse>, Status> {
        if let Some(id) = fields::id_if_any("snapshot_id", request.into_inner().snapshot_id)? {
            self.run(move |engine| engine.delete_snapshot(&id)).await?;
        }
        Ok(Response::new(proto::DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<proto::ListSnapshotsRequest>,
    ) -> Result<Response<proto::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let start = paging::start(Listing::Snapshots, request.max_entries, &request.starting_token)?;
        let Some(filter) = filter(&request) else {
            return Ok(Response::new(proto::ListSnapshotsResponse::default()));
        };
        let page =
            self.run(move |engine| engine.list_snapshots(&filter, start.after.as_ref(), start.max)).await?;
        let entry = |found| proto::list_snapshots_response::Entry { snapshot: response::snapshot(found) };
        let entries = page.items.iter().map(entry).collect();
        let next_token = paging::token(Listing::Snapshots, page.next.as_ref());
        Ok(Response::new(proto::ListSnapshotsResponse { entries, next_token }))
    }

    async fn get_snapshot(
        &self,
        request: Request<proto::GetSnapshotRequest>,
    ) -> Result<Response<proto::GetSnapshotResponse>, Status> {
        let id = fields::id("snapshot_id", request.into_inner().snapshot_id)?;
        let snapshot = self.run(move |engine| engine.get_snapshot(&id)).await?;
        Ok(Response::new(proto::GetSnapshotResponse { snapshot: response::snapshot(&snapshot) }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<proto::ControllerExpandVolumeRequest>,
    ) -> Result<Response<proto::ControllerExpandVolumeResponse>, Status> {
        let (id, size) = expand(request.into_inner())?;
        let volume = self.run(move |engine| engine.expand(&id, size)).await?;
        Ok(Response::new(proto::ControllerExpandVolumeResponse {
            capacity_bytes: response::signed(volume.size),
            node_expansion_required: false,
        }))
    }

    async fn controller_modify_volume(
        &self,
        request: Request<proto::ControllerModifyVolumeRequest>,
    ) -> Result<Response<proto::ControllerModifyVolumeResponse>, Status> {
        let (id, change) = modify(request.into_inner())?;
        self.run(move |engine| engine.modify(&id, change)).await?;
        Ok(Response::new(proto::ControllerModifyVolumeResponse {}))
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<proto::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<proto::ControllerGetVolumeHealthResponse>, Status> {
        let id = fields::id("volume_id", request.into_inner().volume_id)?;
        let found = self.run(move |engine| Ok(response::health(&id, engine.health(&id, None)?))).await?;
        Ok(Response::new(proto::ControllerGetVolumeHealthResponse { volume_health: Some(found) }))
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<proto::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<proto::ControllerListVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let start = paging::start(Listing::Health, request.max_entries, &request.starting_token)?;
        let page = self.run(move |engine| engine.list_health(start.after.as_ref(), start.max)).await?;
        let entries = page.items.into_iter().map(|(id, symptoms)| response::health(&id, symptoms)).collect();
        let next_token = paging::token(Listing::Health, page.next.as_ref());
        Ok(Response::new(proto::ControllerListVolumeHealthResponse { entries, next_token }))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<proto::ControllerPublishVolumeRequest>,
    ) -> Result<Response<proto::ControllerPublishVolumeResponse>, Status> {
        Err(no_attach())
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<proto::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<proto::ControllerUnpublishVolumeResponse>, Status> {
        Err(no_attach())
    }
}
