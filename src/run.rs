//! Puts the parts together: the engine, the doors in front of it, and their end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Settings;
use crate::csi::{self, Driver};
use crate::engine::Engine;
use crate::error::{Context, Error, Kind, Result};
use crate::health::Health;
use crate::http;
use crate::metrics::Metrics;
use crate::socket;

/// gRPC is never the bottleneck: two threads keep memory small.
const WORKERS: usize = 2;
/// The engine calls of a door, and a few more.
const BLOCKING: usize = 80;
/// How long calls under way may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);
/// How long an answer may take to leave when no call is under way any more.
const IDLE: Duration = Duration::from_millis(500);
/// How long the engine may take to stop its jobs.
const STOP: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, or until a door fails.
///
/// # Errors
/// When the engine or a door cannot be opened, or a door fails.
pub fn serve(settings: Settings) -> Result<()> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .context(|| "start the runtime")?;
    let served = runtime.block_on(doors(settings));
    // Work that hangs on a dead disk must not keep the process; what is half done is swept at the next start.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn doors(settings: Settings) -> Result<()> {
    let mut signals = Signals::new()?;
    let (pools, tuning) = (settings.pools, settings.tuning);
    let opened = tokio::task::spawn_blocking(move || {
        let engine = Arc::new(Engine::open(pools, tuning)?);
        Ok((Arc::new(Health::new(Arc::clone(&engine))), engine))
    });
    let (health, engine) = opened.await.map_err(|failed| fault(failed, "open the pools"))??;
    tell(&health);
    let metrics = Arc::new(Metrics::of(Arc::clone(&health)));
    let stop = CancellationToken::new();
    let mut doors = JoinSet::new();

    let bound = socket::bind(&settings.csi)?;
    #[cfg(feature = "kube")]
    let follow = settings.follow_sources.then(|| follow(&settings.identity));
    #[cfg(not(feature = "kube"))]
    let follow = None;
    let driver = Driver::new(settings.identity, Arc::clone(&engine), Arc::clone(&health)).following(follow);
    let calls = driver.clone();
    doors.spawn(driver.serve(bound.listener, Arc::clone(&metrics), stop.clone().cancelled_owned()));
    if let Some(address) = &settings.http {
        let listener = http::bind(address).await?;
        doors.spawn(http::serve(listener, health, metrics, stop.clone().cancelled_owned()));
    }
    // Last: kubelet calls the CSI socket as soon as it sees this one.
    if let Some(registration) = settings.registration {
        doors.spawn(csi::register(registration, stop.clone()));
    }
    info!(csi = %settings.csi.display(), version = env!("CARGO_PKG_VERSION"), "serving");

    let ended = tokio::select! {
        name = signals.any() => { info!(signal = name, "stopping"); Ok(()) }
        Some(door) = doors.join_next() => door.unwrap_or_else(|failed| Err(fault(failed, "serve"))),
    };
    stop.cancel();
    drain(&mut doors, &calls).await;
    let stopping = tokio::task::spawn_blocking(move || engine.shutdown());
    if tokio::time::timeout(STOP, stopping).await.is_err() {
        warn!("a job did not stop in time; its remains are swept at the next start");
    }
    ended
}

/// How long the API server may take to move a claim: without it the caller comes again.
#[cfg(feature = "kube")]
const FOLLOW: Duration = Duration::from_secs(5);

#[cfg(feature = "kube")]
fn follow(identity: &csi::Identity) -> csi::ClaimRelocator {
    let follower = Arc::new(crate::kube::Relocator::new(identity.driver.clone(), identity.node.clone()));
    csi::ClaimRelocator::by(move |csi::PendingClaim { space, claim, source }| {
        let follower = Arc::clone(&follower);
        async move {
            let sent = tokio::time::timeout(FOLLOW, follower.send(&space, &claim, &source)).await;
            match sent {
                Ok(Ok(Some(node))) => {
                    info!(claim, namespace = space, %source, node, "the claim goes to its source")
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    warn!(
                        claim,
                        namespace = space,
                        error = error.chain(),
                        "cannot send the claim to its source"
                    );
                }
                Err(_) => warn!(claim, namespace = space, "the API server did not answer in time"),
            }
        }
    })
}

fn tell(health: &Health) {
    for pool in &*health.last() {
        let (name, path) = (pool.name.as_str(), pool.path.display());
        match &pool.unavailable {
            None => info!(pool = name, %path, backend = pool.backend, volumes = pool.volumes, "pool is open"),
            Some(cause) => warn!(pool = name, %path, cause, "pool is not available"),
        }
    }
}

/// Waits for the doors to answer the calls they have. A connection without a call may stay open: its client is slow
/// to notice, and need not be waited for.
async fn drain(doors: &mut JoinSet<Result<()>>, calls: &Driver) {
    let all = async {
        while let Some(ended) = doors.join_next().await {
            if let Err(error) = ended.unwrap_or_else(|failed| Err(fault(failed, "stop"))) {
                warn!(error = error.chain(), "a door failed");
            }
        }
    };
    let idle = async {
        calls.idle().await;
        tokio::time::sleep(IDLE).await;
    };
    let answered = async {
        tokio::select! { () = all => {}, () = idle => {} }
    };
    if tokio::time::timeout(DRAIN, answered).await.is_err() {
        warn!("some calls were not answered in time; their callers ask again");
    }
}

fn fault(failed: JoinError, what: &str) -> Error {
    Error::caused(Kind::Internal, what, failed)
}

#[derive(Debug)]
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let on = |kind| signal(kind).context(|| "listen for signals");
        Ok(Self { term: on(SignalKind::terminate())?, int: on(SignalKind::interrupt())? })
    }

    async fn any(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Releases the claims of a lost Kubernetes node.
///
/// # Errors
/// As [`crate::kube::release_node`].
#[cfg(feature = "kube")]
pub fn release_node(release: &crate::kube::Release, say: impl FnMut(String)) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context(|| "start the runtime")?;
    runtime.block_on(crate::kube::release_node(release, say))
}

/// Asks the orlop behind a socket whether it is ready.
///
/// # Errors
/// `Unavailable` when it says no, or nothing in time.
pub fn probe(socket: &Path, within: Duration) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context(|| "start the runtime")?;
    runtime.block_on(async {
        let late = |_| Error::new(Kind::Unavailable, format!("no answer within {} s", within.as_secs()));
        tokio::time::timeout(within, csi::probe(socket)).await.map_err(late)?
    })
}
