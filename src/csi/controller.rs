//! The Controller service: creates, deletes, lists, expands and modifies volumes, and handles snapshots.

use tonic::{Request, Response, Status};

use super::paging::{self, Listing};
use super::proto::{self, controller_server::Controller, volume_content_source as content};
use super::{
    Driver, Identity, PendingClaim, access, capabilities, claim_event, fields, params, response, status,
};
use crate::dispatch::Lane;
use crate::engine::call::{self, EngineCall};
use crate::engine::request::{Capacity, CreateSnapshot, CreateVolume, Page, SnapshotFilter};
use crate::error::{Error, Kind, Result};
use crate::telemetry;
use crate::volume::{PolicyChange, PoolName, SizeRange, Source, Volume, VolumeId};

/// Parses CreateVolume. The topology is checked last: a request that no node can satisfy must not send the caller to
/// another node.
fn create_volume(request: proto::CreateVolumeRequest, identity: &Identity) -> Result<CreateVolume> {
    telemetry::record_volume_id(&request.name);
    let name = fields::name(request.name)?;
    let size = fields::size(request.capacity_range)?;
    access::parse_all(request.volume_capabilities)?;
    let options = params::volume_options(request.parameters, request.mutable_parameters)?;
    let source = request.volume_content_source.map(source).transpose()?;
    Ok(CreateVolume {
        name,
        pool: options.pool,
        size,
        owner: options.owner,
        policy: options.policy,
        labels: options.labels,
        source,
        consistency: options.consistency,
        may_go_elsewhere: identity.check(request.accessibility_requirements.as_ref())?,
    })
}

fn source(source: proto::VolumeContentSource) -> Result<Source> {
    let id = |field, text| fields::raw_id(field, text)?.parse();
    match fields::required("volume_content_source.type", source.r#type)? {
        content::Type::Snapshot(snapshot) => id("snapshot_id", snapshot.snapshot_id).map(Source::Snapshot),
        content::Type::Volume(volume) => id("volume_id", volume.volume_id).map(Source::Volume),
    }
}

/// Parses CreateSnapshot.
fn create_snapshot(request: proto::CreateSnapshotRequest, identity: &Identity) -> Result<CreateSnapshot> {
    identity.check(request.accessibility_requirements.as_ref())?;
    telemetry::record_volume_id(&request.source_volume_id);
    let name = fields::name(request.name)?;
    let (consistency, labels) = params::snapshot_options(request.parameters)?;
    let source_volume = fields::id("source_volume_id", request.source_volume_id)?;
    Ok(CreateSnapshot { name, source_volume, consistency, labels })
}

/// Parses ControllerExpandVolume, which requires a size.
fn expand(request: proto::ControllerExpandVolumeRequest) -> Result<(VolumeId, SizeRange)> {
    let id = fields::raw_id("volume_id", request.volume_id)?;
    let size = fields::size(Some(fields::required("capacity_range", request.capacity_range)?))?;
    if size == SizeRange::default() {
        return Err(fields::invalid("capacity_range", "is empty: set required_bytes"));
    }
    if request.volume_capability.is_some() {
        access::parse(request.volume_capability)?;
    }
    Ok((fields::id("volume_id", id)?, size))
}

/// Parses ControllerModifyVolume.
fn modify(request: proto::ControllerModifyVolumeRequest) -> Result<(VolumeId, PolicyChange)> {
    let id = fields::id("volume_id", request.volume_id)?;
    Ok((id, params::policy_change(request.mutable_parameters)?))
}

/// Parses the filter of ListSnapshots. `None` if no object can have one of its ids, so nothing matches.
fn filter(request: &proto::ListSnapshotsRequest) -> Option<SnapshotFilter> {
    let parse = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
    Some(SnapshotFilter {
        id: parse(&request.snapshot_id)?,
        source_volume: parse(&request.source_volume_id)?,
    })
}

/// Parses GetCapacity and returns the pool.
fn capacity(request: proto::GetCapacityRequest) -> Result<Option<PoolName>> {
    for capability in request.volume_capabilities {
        access::parse(Some(capability))?;
    }
    Ok(params::volume_options(request.parameters, [].into())?.pool)
}

/// The capacity that is reported for a request that CreateVolume refuses on every node.
///
/// Without a capacity, the scheduler sends the claim to no node and says that there is not enough storage. With this
/// one, the claim reaches CreateVolume, and the reason appears in an event of the claim.
const REFUSED_BY_CREATE: Capacity = Capacity { available: 1 << 60, largest: 1 << 60 };

/// Parses ValidateVolumeCapabilities. Returns the volume and, if the volume cannot have what was requested, the reason.
fn validate(request: &proto::ValidateVolumeCapabilitiesRequest) -> Result<(VolumeId, Option<Error>)> {
    let id = fields::raw_id("volume_id", request.volume_id.clone())?;
    if request.volume_capabilities.is_empty() {
        return Err(fields::invalid("volume_capabilities", "is required"));
    }
    let (parameters, mutable) = (request.parameters.clone(), request.mutable_parameters.clone());
    let supported = access::parse_all(request.volume_capabilities.clone())
        .and_then(|_| params::volume_options(parameters, mutable).map(|_| ()));
    Ok((fields::id("volume_id", id)?, supported.err()))
}

fn validated(
    request: proto::ValidateVolumeCapabilitiesRequest,
    unsupported: Option<Error>,
) -> proto::ValidateVolumeCapabilitiesResponse {
    if let Some(error) = unsupported {
        let message = status::truncated(error.chain(), 1024);
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

/// The error of the attach RPCs: publishing on the node needs no attach step.
fn no_attach() -> Status {
    Status::unimplemented("a directory needs no attaching: PUBLISH_UNPUBLISH_VOLUME is not advertised")
}

impl Driver {
    /// Creates a volume. If this node lacks the source or the space, moves the claim to the node of its source and then
    /// returns the error.
    async fn create_or_relocate(&self, request: CreateVolume) -> Result<Volume> {
        let claim = PendingClaim::from_request(&request);
        self.require_pools()?;
        let pool = self.dispatch.resolve_pool(request.pool.clone()).map_err(params::add_pool_context)?;
        let result = self.dispatch.create(pool, request).await;
        if let (Err(error), Some(claim), Some(relocator)) = (&result, claim, &self.relocator)
            && error.kind() == Kind::NoSpace
        {
            relocator.relocate(claim).await;
        }
        result.map_err(params::add_pool_context)
    }

    async fn capacity(&self, pool: Option<PoolName>) -> Result<Capacity> {
        self.require_pools()?;
        let pool = self.dispatch.resolve_pool(pool)?;
        let lane = Lane::Pool(pool.clone());
        self.run(&lane, call::GetCapacity { pool: Some(pool) }).await
    }

    /// Lists at most `max` objects of all pools, ordered by id.
    async fn list<T, C>(&self, call: C, max: usize, id_of: fn(&T) -> &VolumeId) -> Result<Page<T>>
    where
        C: EngineCall<Answer = Page<T>>,
    {
        self.require_pools()?;
        self.dispatch.list(call, max, id_of).await
    }
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<proto::CreateVolumeRequest>,
    ) -> Result<Response<proto::CreateVolumeResponse>, Status> {
        let request = create_volume(request.into_inner(), &self.identity)?;
        let volume = self.create_or_relocate(request).await.map_err(status::for_create)?;
        claim_event::report_created(self.events.as_ref(), &volume);
        Ok(Response::new(proto::CreateVolumeResponse { volume: response::volume(&self.identity, &volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<proto::DeleteVolumeRequest>,
    ) -> Result<Response<proto::DeleteVolumeResponse>, Status> {
        if let Some(id) = fields::possible_id("volume_id", request.into_inner().volume_id)? {
            self.run(&Lane::of(&id), call::Delete { id }).await?;
        }
        Ok(Response::new(proto::DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<proto::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<proto::ValidateVolumeCapabilitiesResponse>, Status> {
        let (id, unsupported) = validate(request.get_ref())?;
        self.run(&Lane::of(&id), call::Get { id }).await?;
        Ok(Response::new(validated(request.into_inner(), unsupported)))
    }

    async fn list_volumes(
        &self,
        request: Request<proto::ListVolumesRequest>,
    ) -> Result<Response<proto::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let range = paging::parse(Listing::Volumes, request.max_entries, &request.starting_token)?;
        let page = self
            .list(call::List { after: range.after, max: range.max }, range.max, |listed| &listed.id)
            .await?;
        let entries = page.items.iter().map(|volume| response::list_entry(&self.identity, volume)).collect();
        let next_token = paging::token(Listing::Volumes, page.next.as_ref());
        Ok(Response::new(proto::ListVolumesResponse { entries, next_token }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<proto::ControllerGetVolumeRequest>,
    ) -> Result<Response<proto::ControllerGetVolumeResponse>, Status> {
        let id = fields::id("volume_id", request.into_inner().volume_id)?;
        let volume = self.run(&Lane::of(&id), call::Get { id }).await?;
        let status = proto::controller_get_volume_response::VolumeStatus { published_node_ids: Vec::new() };
        let volume = response::volume(&self.identity, &volume);
        Ok(Response::new(proto::ControllerGetVolumeResponse { volume, status: Some(status) }))
    }

    async fn get_capacity(
        &self,
        request: Request<proto::GetCapacityRequest>,
    ) -> Result<Response<proto::GetCapacityResponse>, Status> {
        let request = request.into_inner();
        if request.accessible_topology.as_ref().is_some_and(|topology| !self.identity.is_here(topology)) {
            return Ok(Response::new(proto::GetCapacityResponse::default()));
        }
        let Ok(pool) = capacity(request) else {
            return Ok(Response::new(response::capacity(REFUSED_BY_CREATE)));
        };
        let capacity = match self.capacity(pool).await {
            // As for an unavailable pool: after an error, the scheduler would use the last capacity.
            Err(error) if error.kind() == Kind::Unresponsive => Capacity::default(),
            // The pool is not configured.
            Err(error) if error.kind() == Kind::Invalid => REFUSED_BY_CREATE,
            capacity => capacity?,
        };
        Ok(Response::new(response::capacity(capacity)))
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
        let request = create_snapshot(request.into_inner(), &self.identity)?;
        self.require_pools()?;
        let snapshot = self.dispatch.create_snapshot(request).await?;
        Ok(Response::new(proto::CreateSnapshotResponse { snapshot: response::snapshot(&snapshot) }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<proto::DeleteSnapshotRequest>,
    ) -> Result<Response<proto::DeleteSnapshotResponse>, Status> {
        if let Some(id) = fields::possible_id("snapshot_id", request.into_inner().snapshot_id)? {
            self.run(&Lane::of(&id), call::DeleteSnapshot { id }).await?;
        }
        Ok(Response::new(proto::DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<proto::ListSnapshotsRequest>,
    ) -> Result<Response<proto::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let range = paging::parse(Listing::Snapshots, request.max_entries, &request.starting_token)?;
        let Some(filter) = filter(&request) else {
            return Ok(Response::new(proto::ListSnapshotsResponse::default()));
        };
        let call = call::ListSnapshots { filter, after: range.after, max: range.max };
        let page = self.list(call, range.max, |snapshot| &snapshot.id).await?;
        let entry =
            |snapshot| proto::list_snapshots_response::Entry { snapshot: response::snapshot(snapshot) };
        let entries = page.items.iter().map(entry).collect();
        let next_token = paging::token(Listing::Snapshots, page.next.as_ref());
        Ok(Response::new(proto::ListSnapshotsResponse { entries, next_token }))
    }

    async fn get_snapshot(
        &self,
        request: Request<proto::GetSnapshotRequest>,
    ) -> Result<Response<proto::GetSnapshotResponse>, Status> {
        let id = fields::id("snapshot_id", request.into_inner().snapshot_id)?;
        let snapshot = self.run(&Lane::of(&id), call::GetSnapshot { id }).await?;
        Ok(Response::new(proto::GetSnapshotResponse { snapshot: response::snapshot(&snapshot) }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<proto::ControllerExpandVolumeRequest>,
    ) -> Result<Response<proto::ControllerExpandVolumeResponse>, Status> {
        let (id, size) = expand(request.into_inner())?;
        let volume = self.run(&Lane::of(&id), call::Expand { id, size }).await?;
        Ok(Response::new(proto::ControllerExpandVolumeResponse {
            capacity_bytes: response::saturating_i64(volume.size),
            node_expansion_required: false,
        }))
    }

    async fn controller_modify_volume(
        &self,
        request: Request<proto::ControllerModifyVolumeRequest>,
    ) -> Result<Response<proto::ControllerModifyVolumeResponse>, Status> {
        let (id, change) = modify(request.into_inner())?;
        self.run(&Lane::of(&id), call::Modify { id, change }).await?;
        Ok(Response::new(proto::ControllerModifyVolumeResponse {}))
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<proto::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<proto::ControllerGetVolumeHealthResponse>, Status> {
        let id = fields::id("volume_id", request.into_inner().volume_id)?;
        let symptoms = self.run(&Lane::of(&id), call::GetHealth { id: id.clone(), path: None }).await?;
        let health = response::health(&id, symptoms);
        Ok(Response::new(proto::ControllerGetVolumeHealthResponse { volume_health: Some(health) }))
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<proto::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<proto::ControllerListVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let range = paging::parse(Listing::Health, request.max_entries, &request.starting_token)?;
        let call = call::ListHealth { after: range.after, max: range.max };
        let page = self.list(call, range.max, |(id, _)| id).await?;
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
