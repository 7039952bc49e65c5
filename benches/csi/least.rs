//! The least driver: a CSI server that makes the system calls of each operation and nothing else.
//!
//! It has the same transport, protocol, number of threads and durable steps as orlop, but no checks, locks, index, log
//! or metrics. What orlop takes longer is therefore orlop's own cost. The bench binary executes itself again to run it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::thread;

use orlop::csi::proto::controller_server::{Controller, ControllerServer};
use orlop::csi::proto::identity_server::{Identity, IdentityServer};
use orlop::csi::proto::node_server::{Node, NodeServer};
use orlop::csi::proto::*;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::bare::{Bare, Syncs};

/// First argument of the process that is the least driver; the pool, the socket and the record's file follow.
pub(crate) const ARGUMENT: &str = "--least-driver";

/// Worker threads of the runtime, as orlop has.
const WORKERS: usize = 2;
/// Threads for blocking work at most, as orlop has.
const BLOCKING: usize = 80;
/// Nice value of the thread that empties the trash, as orlop has.
const REAPER_NICE: i32 = 19;

/// Serves until the process is killed.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) {
    let arguments: Vec<_> = arguments.map(PathBuf::from).collect();
    let [pool, socket, record] = &arguments[..] else { panic!("{ARGUMENT} POOL SOCKET RECORD") };
    // The data directory gets its mode by mkdirat alone.
    rustix::process::umask(rustix::fs::Mode::empty());
    let bare = Arc::new(Bare::new(pool, fs::read(record).unwrap()));
    let driver = Driver { trash: start_reaper(Arc::clone(&bare)), bare };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(WORKERS).max_blocking_threads(BLOCKING).enable_all().build();
    runtime.unwrap().block_on(serve(driver, socket));
}

async fn serve(driver: Driver, socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    let server = Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(ControllerServer::new(driver.clone()))
        .add_service(NodeServer::new(driver));
    server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
}

/// Starts the thread that removes deleted volumes in the background, as orlop does.
fn start_reaper(bare: Arc<Bare>) -> mpsc::Sender<String> {
    let (trash, deleted) = mpsc::channel::<String>();
    thread::spawn(move || {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), REAPER_NICE);
        deleted.iter().for_each(|name| bare.remove(&name).unwrap());
    });
    trash
}

#[derive(Debug, Clone)]
struct Driver {
    bare: Arc<Bare>,
    /// Names of deleted volumes, for the reaper.
    trash: mpsc::Sender<String>,
}

impl Driver {
    async fn run(&self, work: impl FnOnce(&Bare) -> io::Result<()> + Send + 'static) -> Result<(), Status> {
        let bare = Arc::clone(&self.bare);
        let done = tokio::task::spawn_blocking(move || work(&bare)).await.map_err(io::Error::from);
        done.flatten().map_err(|error| Status::internal(error.to_string()))
    }
}

/// Returns the name in a volume ID `pool/name`.
fn name_of(id: &str) -> &str {
    id.split_once('/').map_or(id, |(_, name)| name)
}

/// Defines methods that the bench does not call, as `async_trait` expands them: it does not expand macros.
macro_rules! unimplemented_methods {
    ($($method:ident($request:ident) -> $response:ident,)+) => {$(
        fn $method<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented("the bench does not call this")) })
        }
    )+};
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }

    unimplemented_methods! {
        get_plugin_info(GetPluginInfoRequest) -> GetPluginInfoResponse,
        get_plugin_capabilities(GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse,
    }
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let CreateVolumeRequest { name, capacity_range, .. } = request.into_inner();
        let volume = Volume {
            volume_id: crate::client::id(&name),
            capacity_bytes: capacity_range.map_or(0, |range| range.required_bytes),
            ..Volume::default()
        };
        self.run(move |bare| bare.create(&name, Syncs::All)).await?;
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let (id, trash) = (request.into_inner().volume_id, self.trash.clone());
        let delete = move |bare: &Bare| {
            let name = name_of(&id);
            bare.delete(name, Syncs::All)?;
            trash.send(name.to_owned()).map_err(io::Error::other)
        };
        self.run(delete).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    unimplemented_methods! {
        controller_publish_volume(ControllerPublishVolumeRequest) -> ControllerPublishVolumeResponse,
        controller_unpublish_volume(ControllerUnpublishVolumeRequest) -> ControllerUnpublishVolumeResponse,
        validate_volume_capabilities(ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse,
        list_volumes(ListVolumesRequest) -> ListVolumesResponse,
        get_capacity(GetCapacityRequest) -> GetCapacityResponse,
        controller_get_capabilities(ControllerGetCapabilitiesRequest) -> ControllerGetCapabilitiesResponse,
        create_snapshot(CreateSnapshotRequest) -> CreateSnapshotResponse,
        delete_snapshot(DeleteSnapshotRequest) -> DeleteSnapshotResponse,
        list_snapshots(ListSnapshotsRequest) -> ListSnapshotsResponse,
        get_snapshot(GetSnapshotRequest) -> GetSnapshotResponse,
        controller_expand_volume(ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse,
        controller_get_volume(ControllerGetVolumeRequest) -> ControllerGetVolumeResponse,
        controller_modify_volume(ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse,
        controller_get_volume_health(ControllerGetVolumeHealthRequest) -> ControllerGetVolumeHealthResponse,
        controller_list_volume_health(ControllerListVolumeHealthRequest) -> ControllerListVolumeHealthResponse,
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let NodePublishVolumeRequest { volume_id, target_path, .. } = request.into_inner();
        self.run(move |bare| bare.publish(name_of(&volume_id), Path::new(&target_path))).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let target = request.into_inner().target_path;
        self.run(move |bare| bare.unpublish(Path::new(&target))).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    unimplemented_methods! {
        node_stage_volume(NodeStageVolumeRequest) -> NodeStageVolumeResponse,
        node_unstage_volume(NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse,
        node_get_volume_stats(NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse,
        node_get_volume_health(NodeGetVolumeHealthRequest) -> NodeGetVolumeHealthResponse,
        node_get_storage_health(NodeGetStorageHealthRequest) -> NodeGetStorageHealthResponse,
        node_expand_volume(NodeExpandVolumeRequest) -> NodeExpandVolumeResponse,
        node_get_capabilities(NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse,
        node_get_info(NodeGetInfoRequest) -> NodeGetInfoResponse,
    }
}
