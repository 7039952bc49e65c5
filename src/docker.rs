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
use tokio::time::timeout;
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
}

impl Plugin {
    /// Creates the plugin of an engine, whose calls `dispatch` runs. Reads the records of the shares.
    ///
    /// # Errors
    /// `Unavailable` when they cannot be read.
    pub fn open(dispatch: Dispatch, settings: Settings) -> Result<Self> {
        let shares = settings.shares.clone().map(ShareRecords::open).transpose()?.map(Arc::new);
        Ok(Self { dispatch, catalog: Catalog::default(), settings, shares })
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
        // The call goes on when the client disconnects, and keeps the name that it has claimed until it ends.
        let call = tokio::spawn(async move { plugin.call(request).await }.in_current_span());
        call.await
            .unwrap_or_else(|error| Err(Error::caused(Kind::Internal, "the call ended unexpectedly", error)))
    }
}

async fn handle(State(plugin): State<Arc<Plugin>>, request: extract::Request) -> Response {
    message::response(plugin.answer(request).await)
}

fn create_directory(path: &Path, mode: u32) -> Result<()> {
    let created = DirBuilder::new().recursive(true).mode(mode).create(path);
    created.context(|| format!("create {}", path.display()))
}
