//! The CSI door: Identity, Controller and Node on one unix socket.
//!
//! A handler parses its message into a typed request, runs one engine call, and answers. `Driver::run` is the only
//! bridge from async to sync.

mod access;
mod capabilities;
mod controller;
mod fields;
mod identity;
mod node;
mod paging;
mod params;
mod probe;
mod registration;
mod relocate;
mod response;
mod status;
mod topology;

use std::any::Any;
use std::future::Future;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::Span;

use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::telemetry::Rpcs;

pub use probe::probe;
pub use registration::{Registration, check as check_registration, register};
pub use relocate::{ClaimRelocator, PendingClaim};

/// The messages and services of `proto/csi/v1/csi.proto`, as tonic made them.
pub mod proto {
    #![expect(
        missing_docs,
        clippy::allow_attributes,
        clippy::doc_lazy_continuation,
        clippy::doc_overindented_list_items,
        clippy::too_many_lines,
        reason = "generated; its comments are those of the proto"
    )]
    tonic::include_proto!("csi.v1");
}

/// Calls into the engine at once: one that hangs on a dead disk must not take the rest with it.
const CALLS_AT_ONCE: usize = 64;

/// Every method that is served: the closed set of names for metrics.
const METHODS: [&str; 30] = [
    "/csi.v1.Identity/GetPluginInfo",
    "/csi.v1.Identity/GetPluginCapabilities",
    "/csi.v1.Identity/Probe",
    "/csi.v1.Controller/CreateVolume",
    "/csi.v1.Controller/DeleteVolume",
    "/csi.v1.Controller/ControllerPublishVolume",
    "/csi.v1.Controller/ControllerUnpublishVolume",
    "/csi.v1.Controller/ValidateVolumeCapabilities",
    "/csi.v1.Controller/ListVolumes",
    "/csi.v1.Controller/ControllerListVolumeHealth",
    "/csi.v1.Controller/ControllerGetVolumeHealth",
    "/csi.v1.Controller/GetCapacity",
    "/csi.v1.Controller/ControllerGetCapabilities",
    "/csi.v1.Controller/CreateSnapshot",
    "/csi.v1.Controller/DeleteSnapshot",
    "/csi.v1.Controller/ListSnapshots",
    "/csi.v1.Controller/GetSnapshot",
    "/csi.v1.Controller/ControllerExpandVolume",
    "/csi.v1.Controller/ControllerGetVolume",
    "/csi.v1.Controller/ControllerModifyVolume",
    "/csi.v1.Node/NodeStageVolume",
    "/csi.v1.Node/NodeUnstageVolume",
    "/csi.v1.Node/NodePublishVolume",
    "/csi.v1.Node/NodeUnpublishVolume",
    "/csi.v1.Node/NodeGetVolumeStats",
    "/csi.v1.Node/NodeGetVolumeHealth",
    "/csi.v1.Node/NodeGetStorageHealth",
    "/csi.v1.Node/NodeExpandVolume",
    "/csi.v1.Node/NodeGetCapabilities",
    "/csi.v1.Node/NodeGetInfo",
];

/// Who this driver is and what it advertises.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The driver's name, `dir.orlop.dev`.
    pub driver: String,
    /// This node's name: the value of the topology key `<driver>/node`.
    pub node: String,
    /// Whether to advertise the controller's `EXPAND_VOLUME`; without it Kubernetes expands on the node only.
    pub controller_expand: bool,
}

/// What the services share.
#[derive(Debug, Clone)]
pub struct Driver {
    identity: Arc<Identity>,
    engine: Arc<Engine>,
    health: Arc<Health>,
    calls: Arc<Semaphore>,
    follow: Option<ClaimRelocator>,
}

impl Driver {
    /// A driver in front of an engine.
    #[must_use]
    pub fn new(identity: Identity, engine: Arc<Engine>, health: Arc<Health>) -> Self {
        let calls = Arc::new(Semaphore::new(CALLS_AT_ONCE));
        Self { identity: Arc::new(identity), engine, health, calls, follow: None }
    }

    /// The same driver, which sends claims to the node of their source.
    #[must_use]
    pub fn following(self, follow: Option<ClaimRelocator>) -> Self {
        Self { follow, ..self }
    }

    /// Runs one engine call on a thread of its own.
    ///
    /// The task is detached and owns all it needs: when the caller hangs up, tonic drops this future but the work,
    /// its permit and its volume's lock go on to the end, and a retry meets them there.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if !self.engine.has_pools() {
            return Err(nothing_served());
        }
        let permit = Arc::clone(&self.calls)
            .acquire_owned()
            .await
            .map_err(|closed| Error::caused(Kind::Unavailable, "wait for a turn", closed))?;
        let (engine, span) = (Arc::clone(&self.engine), Span::current());
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            span.in_scope(|| work(&engine))
        });
        match task.await {
            Ok(result) => result,
            Err(failed) => Err(match failed.try_into_panic() {
                Ok(panic) => Error::new(Kind::Internal, format!("a fault in orlop: {}", text_of(&*panic))),
                Err(cancelled) => Error::caused(Kind::Unavailable, "orlop is stopping", cancelled),
            }),
        }
    }

    /// Returns when no engine call is under way.
    pub async fn idle(&self) {
        let all = u32::try_from(CALLS_AT_ONCE).unwrap_or(u32::MAX);
        let _ = self.calls.acquire_many(all).await;
    }

    /// Serves CSI on a listener until `stop` ends, then until the calls under way are answered.
    ///
    /// # Errors
    /// `Unavailable` when the transport fails.
    pub async fn serve(
        self,
        listener: UnixListener,
        metrics: Arc<Metrics>,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        Server::builder()
            .layer(Rpcs::new(self.identity.driver.clone(), &METHODS, metrics, status::outcome))
            .add_service(proto::identity_server::IdentityServer::new(self.clone()))
            .add_service(proto::controller_server::ControllerServer::new(self.clone()))
            .add_service(proto::node_server::NodeServer::new(self))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
            .await
            .map_err(|failed| Error::caused(Kind::Unavailable, "serve CSI", failed))
    }
}

/// An instance without pools answers for the driver, not for volumes.
fn nothing_served() -> Error {
    let text = "this instance of the driver holds no volumes; it is there for csi-resizer alone. Volumes grow on their \
                node, and the VolumeAttributesClass of a volume is set when it is made";
    Error::new(Kind::Unsupported, text)
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::engine::request::{PoolSettings, Tuning};

    fn driver(pool: &std::path::Path) -> Driver {
        let settings = PoolSettings {
            name: "p".parse().unwrap(),
            path: pool.to_path_buf(),
            mounted: false,
            uuid: None,
            overcommit_percent: 100,
            reserve: 0,
        };
        let engine = Arc::new(Engine::open(vec![settings], Tuning::default()).unwrap());
        let health = Arc::new(Health::new(Arc::clone(&engine)));
        let identity = Identity { driver: "d".into(), node: "n".into(), controller_expand: true };
        Driver::new(identity, engine, health)
    }

    #[test]
    fn every_method_of_the_services_has_a_name() {
        let mut service = "";
        let mut found = Vec::new();
        for line in include_str!("../proto/csi/v1/csi.proto").lines() {
            if let Some(rest) = line.strip_prefix("service ") {
                service = rest.split(' ').next().unwrap();
            }
            if let Some(rest) = line.strip_prefix("  rpc ") {
                found.push(format!("/csi.v1.{service}/{}", rest.split([' ', '(']).next().unwrap()));
            }
        }
        found.retain(|name| !name.contains("/csi.v1.GroupController/") && !name.contains("SnapshotMetadata"));
        assert_eq!(found, METHODS);
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let pool = tempfile::tempdir().unwrap();
        let error = driver(pool.path()).run::<()>(|_| panic!("no {}", "luck")).await.unwrap_err();
        assert_eq!((error.kind(), error.chain()), (Kind::Internal, "a fault in orlop: no luck".to_owned()));
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_frees_nothing_early() {
        let pool = tempfile::tempdir().unwrap();
        let driver = driver(pool.path());
        let (go, wait) = mpsc::channel::<()>();
        let (say, done) = mpsc::channel();
        let call = driver.run(move |_| {
            let _ = wait.recv();
            say.send(()).map_err(|_| Error::new(Kind::Internal, "nobody waits"))
        });
        assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err(), "the call waits");
        assert_eq!(driver.calls.available_permits(), CALLS_AT_ONCE - 1);
        go.send(()).unwrap();
        done.recv_timeout(Duration::from_secs(5)).unwrap();
    }
}
