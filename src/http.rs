//! The HTTP endpoints `/metrics`, `/livez` and `/readyz`.
//!
//! Anyone who reaches the address can connect, so a connection serves one request within a time limit, and the number of
//! connections is limited: clients that send nothing take neither descriptors nor memory from the other frontends.

use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use futures_util::StreamExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::{Context as _, Error, Kind, Result};
use crate::health::{self, Health};
use crate::metrics::{self, Metrics};
use crate::socket::{self, SocketFile};
use crate::volume::shorten;

/// Maximum number of open connections. Further ones wait in the kernel, where they take no descriptor.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may take, from its start to the end of its response.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `127.0.0.1:9810`, or `:9810` for all addresses of the host.
    Tcp(SocketAddr),
    /// `unix:///run/orlop/http.sock`.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with("unix://") || text.starts_with('/') {
            return socket::parse_path(text).map(Self::Unix);
        }
        let with_host = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
        with_host.parse().map(Self::Tcp).map_err(|_| {
            let shown = shorten(text);
            Error::new(Kind::Invalid, format!("{shown:?} is not an address such as 127.0.0.1:9810 or :9810"))
        })
    }
}

/// A listener that is not served yet.
#[derive(Debug)]
pub struct Listener(Transport);

#[derive(Debug)]
enum Transport {
    Tcp(TcpListener),
    Unix(tokio::net::UnixListener, SocketFile),
}

/// Listens on an address.
///
/// # Errors
/// As [`socket::bind`] for a socket; otherwise the failed call, such as for an address that is in use.
pub async fn bind(address: &Address) -> Result<Listener> {
    match address {
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address).await.context(|| format!("listen on {address}"))?;
            Ok(Listener(Transport::Tcp(listener)))
        }
        Address::Unix(path) => {
            let bound = socket::bind(path)?;
            Ok(Listener(Transport::Unix(bound.listener, bound.file)))
        }
    }
}

/// Serves the endpoints until `stop` completes. Responses that have begun continue.
pub async fn serve(
    listener: Listener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let router = router(health, metrics);
    let serving = async {
        match listener.0 {
            Transport::Tcp(listener) => serve_each(|context| listener.poll_accept(context), router).await,
            Transport::Unix(listener, _file) => {
                serve_each(|context| listener.poll_accept(context), router).await;
            }
        }
    };
    tokio::select! { () = serving => {}, () = stop => {} }
}

/// Accepts connections and serves each in a task of its own.
async fn serve_each<C, A>(accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<(C, A)>>, router: Router)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connections = pin!(socket::connections(accept));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Some(Ok(connection)) = connections.next().await else { return };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let mut server = Builder::new(TokioExecutor::new()).http1_only();
            server.http1().keep_alive(false);
            // A client that sends no valid request or does not read its response gets no other answer.
            let _ =
                timeout(CONNECTION_TIMEOUT, server.serve_connection(TokioIo::new(connection), service)).await;
            drop(permit);
        });
    }
}

fn router(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page).with_state((Arc::clone(&health), metrics)))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(health))
}

async fn metrics_page(State((health, metrics)): State<(Arc<Health>, Arc<Metrics>)>) -> impl IntoResponse {
    // The exposition contains the latest status, so refresh it.
    health.pools().await;
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.text())
}

/// Responds with 200 or 503 and one line for each pool.
async fn readyz(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let pools = health.pools().await;
    let ready = health::is_ready(&pools);
    let mut body = String::from(if ready { "ready\n" } else { "not ready\n" });
    for pool in &pools {
        let state = match (&pool.unavailable, &pool.refuses) {
            (Some(cause), _) => format!("unavailable: {cause}"),
            (None, Some(cause)) => format!("available, but refuses new volumes: {cause}"),
            (None, None) => "available".to_owned(),
        };
        let _ = writeln!(body, "pool {}: {state}", pool.name);
    }
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;
    use crate::dispatch::Dispatch;
    use crate::engine::Engine;
    use crate::engine::request::{PoolSettings, Tuning};

    #[test]
    fn tcp_and_unix_addresses_are_parsed() {
        assert_eq!("127.0.0.1:9".parse::<Address>().unwrap(), Address::Tcp("127.0.0.1:9".parse().unwrap()));
        assert_eq!(":9".parse::<Address>().unwrap(), Address::Tcp("[::]:9".parse().unwrap()));
        assert_eq!("unix:///a/b.sock".parse::<Address>().unwrap(), Address::Unix("/a/b.sock".into()));
        for bad in ["", "9810", "localhost:http", "unix://a.sock"] {
            assert_eq!(bad.parse::<Address>().unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }

    async fn get_page(health: &Arc<Health>, path: &str) -> (StatusCode, String) {
        let metrics = Arc::new(Metrics::with_pools(Arc::clone(health)));
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(Arc::clone(health), metrics).oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn endpoints_report_the_state_of_the_pools() {
        let directory = tempfile::tempdir().unwrap();
        let settings = PoolSettings::new("p".parse().unwrap(), directory.path().to_path_buf());
        let engine = Engine::open(vec![settings], Tuning::default()).unwrap();
        let health = Arc::new(Health::new(Dispatch::new(Arc::new(engine))));
        assert_eq!(get_page(&health, "/livez").await, (StatusCode::OK, "ok\n".to_owned()));
        assert_eq!(
            get_page(&health, "/readyz").await,
            (StatusCode::OK, "ready\npool p: available\n".to_owned())
        );
        let (status, text) = get_page(&health, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("orlop_pool_available{pool=\"p\"} 1\n") && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(get_page(&health, "/other").await.0, StatusCode::NOT_FOUND);
    }
}
