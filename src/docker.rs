//! The Docker frontend: the volume plugin protocol of Docker and Podman on one Unix socket.
//!
//! A volume has one target for each user that an engine names, `<targets>/<name>/<user>`. So the mount table holds the whole
//! state, and a restart of orlop or of an engine loses nothing. Engines lose track of users: a deletion does not depend on
//! these targets, but on what containers have mounted.

mod calls;
mod catalog;
mod create;
mod message;
mod restore;
mod share;
mod shares;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{self, State};
use axum::http::Method;
use axum::response::Response;
use futures_util::StreamExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower::Layer as _;
use tracing::{Instrument as _, info, warn};

use self::catalog::Catalog;
use crate::dispatch::Dispatch;
use crate::engine::named_shares::ShareRecords;
use crate::error::{Context as _, Error, Kind, Result};
use crate::metrics::Metrics;
use crate::socket::{self, Passed};
use crate::telemetry::RpcLayer;
use crate::volume::PoolName;

/// Maximum size of a request's body in bytes.
const MAX_BODY: usize = 1 << 20;
/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that change something and run at once. They go on when their clients disconnect.
const MAX_CHANGES: usize = 256;
/// How long a call waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the pools are read again until all are available.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Where the protocol is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The socket. Engines know the driver by its name without `.sock`.
    pub socket: PathBuf,
    /// The directory in which volumes are mounted for engines.
    pub targets: PathBuf,
    /// The pools whose volumes are served.
    pub pools: Vec<PoolName>,
    /// Where volumes exist, as engines show it.
    pub scope: Scope,
    /// The directory in which shares are recorded; `None` if none can be made.
    pub shares: Option<PathBuf>,
}

/// Where the volumes of a driver exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// On this host.
    Local,
    /// On all hosts that have the pools.
    Global,
}

/// The volume plugin.
#[derive(Debug)]
pub struct Plugin {
    dispatch: Dispatch,
    catalog: Catalog,
    settings: Settings,
    /// The shares that are volumes, too.
    shares: Option<Arc<ShareRecords>>,
    /// The calls in progress, also those whose clients have disconnected.
    running: TaskTracker,
    changes: Arc<Semaphore>,
}

impl Plugin {
    /// Creates the plugin of an engine, whose calls `dispatch` runs and `running` tracks. Reads the records of the shares.
    ///
    /// # Errors
    /// `Unavailable` when they cannot be read.
    pub fn open(dispatch: Dispatch, settings: Settings, running: TaskTracker) -> Result<Self> {
        let shares = settings.shares.clone().map(ShareRecords::open).transpose()?.map(Arc::new);
        let changes = Arc::new(Semaphore::new(MAX_CHANGES));
        Ok(Self { dispatch, catalog: Catalog::default(), settings, shares, running, changes })
    }

    /// Serves the protocol until `stop` completes, on a socket of its own or on one that was passed. Calls in progress
    /// continue.
    ///
    /// Listens, or accepts connections, only when all volumes are known: an engine that starts meanwhile then keeps the labels of its volumes, and
    /// would forget them if it were told that a volume does not exist.
    ///
    /// # Errors
    /// The error of the socket or of the directory of the targets.
    pub async fn serve(
        self,
        passed: Option<Passed>,
        metrics: Arc<Metrics>,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        tokio::select! { served = self.serve_connections(passed, metrics) => served, () = stop => Ok(()) }
    }

    async fn serve_connections(self, passed: Option<Passed>, metrics: Arc<Metrics>) -> Result<()> {
        let Settings { socket, targets, .. } = self.settings.clone();
        // With user namespaces, the root of a container must be able to pass through the directory.
        create_directory(&targets, 0o711)?;
        create_directory(socket.parent().unwrap_or(&socket), 0o755)?;
        self.wait_for_pools().await;
        let driver = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let layer = RpcLayer::new(driver, &message::CALLS, metrics, message::outcome);
        let router = Router::new().fallback(handle).with_state(Arc::new(self));
        let service = TowerToHyperService::new(layer.layer(router));
        let (listener, _file) = match passed {
            Some(passed) => (passed.into_listener()?, None),
            None => {
                let bound = socket::bind(&socket)?;
                (bound.listener, Some(bound.file))
            }
        };
        info!(docker = %socket.display(), "serving volumes to Docker");
        let mut connections = pin!(socket::connections(|context| listener.poll_accept(context)));
        while let Some(Ok(connection)) = connections.next().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server = Builder::new(TokioExecutor::new()).http1_only();
                // A client that sends no valid request gets no other answer.
                let _ = server.serve_connection(TokioIo::new(connection), service).await;
            });
        }
        Ok(())
    }

    /// Waits until each pool has listed its volumes.
    async fn wait_for_pools(&self) {
        let mut logged = String::new();
        loop {
            let Err(error) = self.list_all().await else { return };
            let reason = error.chain();
            if reason != logged {
                warn!(reason, "Docker is not served until all pools are available");
                logged = reason;
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    /// Reads and answers a request.
    async fn answer(self: &Arc<Self>, request: extract::Request) -> Result<String> {
        let (parts, body) = request.into_parts();
        if parts.method != Method::POST {
            return Err(Error::new(Kind::Invalid, "the volume plugin protocol has POST requests only"));
        }
        let late = |_| Error::new(Kind::Invalid, "the body of the request did not arrive in time: retry");
        let body = timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await.map_err(late)?;
        let body = body.map_err(|error| {
            let text = format!("the body of the request is incomplete, or larger than {MAX_BODY} bytes");
            Error::caused(Kind::Invalid, text, error)
        })?;
        let (plugin, request) = (Arc::clone(self), message::parse(parts.uri.path(), &body)?);
        let turn = if request.is_query() { None } else { Some(self.turn().await?) };
        // The call goes on when the client disconnects, and keeps the name that it has claimed until it ends.
        let call = async move {
            let _turn = turn;
            plugin.call(request).await
        };
        let ended = self.running.spawn(call.in_current_span()).await;
        ended.unwrap_or_else(|error| Err(unexpected_end(parts.uri.path(), error)))
    }

    /// Waits until another call may change something.
    async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        let turn = timeout(TURN_TIMEOUT, Arc::clone(&self.changes).acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| {
            let text = format!("too many calls at once: {MAX_CHANGES} have not ended; retry");
            Error::new(Kind::Busy, text)
        })
    }
}

fn unexpected_end(call: &str, error: JoinError) -> Error {
    Error::caused(Kind::Internal, format!("the call {call} ended unexpectedly"), error)
}

async fn handle(State(plugin): State<Arc<Plugin>>, request: extract::Request) -> Response {
    message::response(plugin.answer(request).await)
}

fn create_directory(path: &Path, mode: u32) -> Result<()> {
    let created = DirBuilder::new().recursive(true).mode(mode).create(path);
    created.context(|| format!("create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;
    use crate::engine::request::Tuning;

    #[tokio::test]
    async fn a_call_beyond_the_limit_is_refused_and_a_query_is_not() {
        let engine = Arc::new(Engine::open(Vec::new(), Tuning::default()).unwrap());
        let settings = Settings {
            socket: "/nonexistent/orlop.sock".into(),
            targets: "/nonexistent".into(),
            pools: Vec::new(),
            scope: Scope::Local,
            shares: None,
        };
        let plugin = Plugin::open(Dispatch::new(engine), settings, TaskTracker::new()).unwrap();
        let plugin = Arc::new(plugin);
        let call = async |path: &str| {
            let request = http::Request::post(path).body(axum::body::Body::from(r#"{"Name":"v"}"#));
            plugin.answer(request.unwrap()).await
        };
        let missing = "volume \"v\" does not exist";
        assert_eq!(call("/VolumeDriver.Remove").await.unwrap_err().chain(), missing);
        let all = u32::try_from(MAX_CHANGES).unwrap();
        let running = plugin.changes.try_acquire_many(all).unwrap();
        let refused = call("/VolumeDriver.Remove").await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy);
        assert_eq!(refused.chain(), "too many calls at once: 256 have not ended; retry");
        assert_eq!(call("/VolumeDriver.Get").await.unwrap_err().chain(), missing);
        drop(running);
        assert_eq!(call("/VolumeDriver.Remove").await.unwrap_err().chain(), missing);
    }

    #[tokio::test]
    async fn the_error_of_a_panic_names_the_call() {
        let panicked = tokio::spawn(async { panic!("bad index") }).await;
        let error = unexpected_end("/VolumeDriver.Mount", panicked.unwrap_err());
        assert_eq!(error.kind(), Kind::Internal);
        let text = error.chain();
        assert!(text.starts_with("the call /VolumeDriver.Mount ended unexpectedly: "), "{text}");
        assert!(text.contains("bad index"), "{text}");
    }
}
