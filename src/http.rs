//! Three pages for machines: `/metrics`, `/livez`, `/readyz`.

use std::fmt::Write as _;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::error::{Context, Error, Kind, Result};
use crate::health::{self, Health};
use crate::metrics::{self, Metrics};
use crate::socket::{self, SocketFile};
use crate::volume::shorten;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `127.0.0.1:9810`; `:9810` for every address.
    Tcp(SocketAddr),
    /// `unix:///run/orlop/http.sock`.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with("unix://") || text.starts_with('/') {
            return socket::path(text).map(Self::Unix);
        }
        let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
        full.parse().map(Self::Tcp).map_err(|_| {
            let shown = shorten(text);
            Error::new(Kind::Invalid, format!("{shown:?} is not an address such as 127.0.0.1:9810 or :9810"))
        })
    }
}

/// A listener that nobody serves yet.
#[derive(Debug)]
pub struct Listener(Either);

#[derive(Debug)]
enum Either {
    Tcp(TcpListener),
    Unix(tokio::net::UnixListener, SocketFile),
}

/// Listens.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: &Address) -> Result<Listener> {
    match address {
        Address::Tcp(at) => {
            let listener = TcpListener::bind(at).await.context(|| format!("listen on {at}"))?;
            Ok(Listener(Either::Tcp(listener)))
        }
        Address::Unix(path) => {
            let bound = socket::bind(path)?;
            Ok(Listener(Either::Unix(bound.listener, bound.place)))
        }
    }
}

/// Serves the pages until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: Listener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let pages = pages(health, metrics);
    let served = match listener.0 {
        Either::Tcp(listener) => axum::serve(listener, pages).with_graceful_shutdown(stop).await,
        Either::Unix(listener, _place) => axum::serve(listener, pages).with_graceful_shutdown(stop).await,
    };
    served.context(|| "serve HTTP")
}

fn pages(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(exposition).with_state((Arc::clone(&health), metrics)))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready).with_state(health))
}

async fn exposition(State((health, metrics)): State<(Arc<Health>, Arc<Metrics>)>) -> impl IntoResponse {
    // The figures are those of the last look: have one.
    health.pools().await;
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.text())
}

/// Ready when a pool is there, or when none is to be.
async fn ready(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let pools = health.pools().await;
    let ready = health::ready(&pools);
    let mut body = String::from(if ready { "ready\n" } else { "not ready\n" });
    for pool in &*pools {
        let state = pool.unavailable.as_ref().map(|cause| format!("unavailable: {cause}"));
        let _ = writeln!(body, "pool {}: {}", pool.name, state.as_deref().unwrap_or("available"));
    }
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;
    use crate::engine::Engine;
    use crate::engine::request::{PoolSettings, Tuning};

    #[test]
    fn addresses() {
        assert_eq!("127.0.0.1:9".parse::<Address>().unwrap(), Address::Tcp("127.0.0.1:9".parse().unwrap()));
        assert_eq!(":9".parse::<Address>().unwrap(), Address::Tcp("[::]:9".parse().unwrap()));
        assert_eq!("unix:///a/b.sock".parse::<Address>().unwrap(), Address::Unix("/a/b.sock".into()));
        for bad in ["", "9810", "localhost:http", "unix://a.sock"] {
            assert_eq!(bad.parse::<Address>().unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }

    async fn ask(health: &Arc<Health>, path: &str) -> (StatusCode, String) {
        let metrics = Arc::new(Metrics::of(Arc::clone(health)));
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = pages(Arc::clone(health), metrics).oneshot(request).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn pages_tell_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let settings = PoolSettings {
            name: "p".parse().unwrap(),
            path: folder.path().to_path_buf(),
            mounted: false,
            uuid: None,
            overcommit_percent: 100,
            reserve: 0,
        };
        let engine = Engine::open(vec![settings], Tuning::default()).unwrap();
        let health = Arc::new(Health::new(Arc::new(engine)));
        assert_eq!(ask(&health, "/livez").await, (StatusCode::OK, "ok\n".to_owned()));
        assert_eq!(ask(&health, "/readyz").await, (StatusCode::OK, "ready\npool p: available\n".to_owned()));
        let (status, text) = ask(&health, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("orlop_pool_available{pool=\"p\"} 1\n") && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(ask(&health, "/other").await.0, StatusCode::NOT_FOUND);
    }
}
