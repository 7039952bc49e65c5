//! Assembles the process: opens the engine, starts the frontends, and shuts them down in order.

#[cfg(feature = "kube")]
mod cluster;
#[cfg(feature = "kube")]
mod groups;

use std::collections::BTreeMap;
#[cfg(feature = "kube")]
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{field, info, info_span, warn};
use uuid::Uuid;

use crate::config::Settings;
use crate::csi::{self, Driver};
use crate::dispatch::Dispatch;
use crate::docker::{self, Plugin};
use crate::engine::Engine;
use crate::engine::request::{KeptFiles, PoolSettings};
use crate::error::{Context, Error, Kind, Result};
use crate::health::Health;
use crate::http;
#[cfg(feature = "kube")]
use crate::kube::ClusterState;
use crate::metrics::Metrics;
use crate::socket::{self, Passed};
use crate::sys::program_text;
use crate::worker::{Group, Launch, Probe, Setup, Worker};

/// Threads besides those of engine calls and of readings of the pools' status.
const SPARE_BLOCKING_THREADS: usize = 16;
/// How long calls in progress may take after SIGTERM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long sending a response may take after the last call has finished.
const RESPONSE_GRACE: Duration = Duration::from_millis(500);
/// How often the memory of program text is given back. The pages that are in use are mapped again within microseconds. Much more
/// often than background work runs (each minute), which maps some megabytes for a moment.
const TEXT_RELEASE: Duration = Duration::from_secs(10);
/// How soon after the end of a call, which has mapped some megabytes, too.
const TEXT_RELEASE_AFTER_CALL: Duration = Duration::from_millis(10);
/// How long a command waits for the list of PersistentVolumes.
#[cfg(feature = "kube")]
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the engine may take to stop its jobs.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, or until a frontend fails.
///
/// # Errors
/// When the engine cannot be opened, or a frontend cannot be started or fails.
pub fn serve(settings: Settings) -> Result<()> {
    let passed = socket::passed()?;
    raise_file_limit();
    let pools = settings.pools.len();
    let max_threads = Dispatch::max_threads(pools) + Health::max_threads(pools) + SPARE_BLOCKING_THREADS;
    // One thread for all protocols: they are never the bottleneck, and a call wakes one thread less. Engine calls have
    // threads of their own.
    let runtime = Builder::new_current_thread()
        .max_blocking_threads(max_threads)
        .enable_all()
        .build()
        .context(|| "start the runtime")?;
    let served = runtime.block_on(run_frontends(settings, passed));
    // A call that hangs on a dead disk must not keep the process alive. The next start removes unfinished drafts.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Allows this process as many open files as an administrator permits: a pool has 256 lock files.
fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
}

async fn run_frontends(settings: Settings, passed: Vec<Passed>) -> Result<()> {
    let mut signals = Signals::new()?;
    let groups = groups(&settings);
    let (all, tuning, records) = (settings.pools, settings.tuning, settings.known_pools);
    let pools: Vec<_> = all.iter().filter(|pool| pool.worker.is_none()).cloned().collect();
    let opened = tokio::task::spawn_blocking(move || Engine::open_recorded(pools, tuning, &records));
    let engine = Arc::new(opened.await.map_err(|error| task_failed(error, "open the pools"))??);
    let calls = Dispatch::with_groups(Arc::clone(&engine), all, groups);
    let health = Arc::new(Health::new(calls.clone()));
    // Logs the status of each pool.
    health.pools().await;
    watch(&health);
    let (metrics, call_finished) = metrics(&health);
    let stop = CancellationToken::new();
    let mut frontends = JoinSet::new();

    let driver = Driver::new(settings.identity.clone(), calls.clone(), Arc::clone(&health));
    #[cfg(feature = "kube")]
    let driver = cluster::Wanted {
        relocations: settings.follow_sources,
        events: settings.claim_events,
        groups: settings.group_snapshots,
    }
    .connect(driver, &settings.identity, &stop);
    // The socket file is removed when this is dropped.
    let bound = settings.csi.as_deref().map(socket::bind).transpose()?;
    let _socket_file = bound.map(|bound| {
        frontends.spawn(driver.serve(bound.listener, Arc::clone(&metrics), stop.clone().cancelled_owned()));
        bound.file
    });
    let docker_calls = TaskTracker::new();
    for (plugin, socket) in plugins(settings.docker, &calls, &docker_calls, passed).await? {
        frontends.spawn(plugin.serve(socket, Arc::clone(&metrics), stop.clone().cancelled_owned()));
    }
    if let Some(address) = &settings.http {
        let listener = http::bind(address).await?;
        let serving = http::serve(listener, health, metrics, stop.clone().cancelled_owned());
        frontends.spawn(async {
            serving.await;
            Ok(())
        });
    }
    // Start the registration last: kubelet calls the CSI socket as soon as it finds the registration socket.
    if let Some(registration) = settings.registration {
        frontends.spawn(csi::register(registration, stop.clone()));
    }
    info!(
        csi = settings.csi.as_deref().map(|csi| field::display(csi.display())),
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    tokio::spawn(release_program_text(call_finished));

    let result = tokio::select! {
        name = signals.recv() => { info!(signal = name, "stopping"); Ok(()) }
        Some(ended) = frontends.join_next() => ended.unwrap_or_else(|error| Err(task_failed(error, "serve"))),
    };
    stop.cancel();
    drain(&mut frontends, &calls, &docker_calls).await;
    stop_workers(&calls).await;
    shut_down(engine).await;
    result
}

/// The metrics, and what is notified after each call.
fn metrics(health: &Arc<Health>) -> (Arc<Metrics>, Arc<Notify>) {
    let call_finished = Arc::new(Notify::new());
    let notify = Arc::clone(&call_finished);
    let metrics = Metrics::with_pools(Arc::clone(health)).with_hook(move || notify.notify_one());
    (Arc::new(metrics), call_finished)
}

async fn shut_down(engine: Arc<Engine>) {
    let stopping = tokio::task::spawn_blocking(move || engine.shutdown());
    if tokio::time::timeout(STOP_TIMEOUT, stopping).await.is_err() {
        warn!("a job did not stop in time; the next start removes its draft");
    }
}

/// Keeps the resident memory of an idle process small, after the start and after each burst of calls.
async fn release_program_text(call_finished: Arc<Notify>) {
    loop {
        program_text::release();
        tokio::select! {
            () = call_finished.notified() => tokio::time::sleep(TEXT_RELEASE_AFTER_CALL).await,
            () = tokio::time::sleep(TEXT_RELEASE) => {}
        }
    }
}

/// The frontends for Docker, each with its socket if the service manager has passed one.
async fn plugins(
    endpoints: Vec<docker::Settings>,
    calls: &Dispatch,
    running: &TaskTracker,
    mut passed: Vec<Passed>,
) -> Result<Vec<(Plugin, Option<Passed>)>> {
    let mut plugins = Vec::new();
    for endpoint in endpoints {
        let socket = passed.iter().position(|passed| *passed.path() == endpoint.socket);
        let socket = socket.map(|at| passed.swap_remove(at));
        let (calls, running) = (calls.clone(), running.clone());
        let plugin = tokio::task::spawn_blocking(move || Plugin::open(calls, endpoint, running));
        plugins.push((plugin.await.map_err(|error| task_failed(error, "open the shares"))??, socket));
    }
    // A client of a socket that nothing serves would wait for ever.
    let Some(unused) = passed.first() else { return Ok(plugins) };
    let text = format!(
        "{} was passed by the service manager, and neither --docker nor --docker-global names it: use the same path in both",
        unused.path().display()
    );
    Err(Error::new(Kind::Invalid, text))
}

/// Watches the pools and the NFS servers from now on.
fn watch(health: &Arc<Health>) {
    let (pools, servers) = (Arc::clone(health), Arc::clone(health));
    tokio::spawn(async move { pools.watch().await });
    tokio::spawn(async move { servers.watch_servers().await });
}

/// The groups of pools that worker processes serve.
fn groups(settings: &Settings) -> Vec<Arc<Group>> {
    let mut groups: BTreeMap<String, Vec<PoolSettings>> = BTreeMap::new();
    for pool in &settings.pools {
        if let Some(group) = &pool.worker {
            // Workers that succeed each other are one process for the other hosts.
            let process = Some(Uuid::new_v4());
            let pool = PoolSettings { worker: None, process, ..pool.clone() };
            groups.entry(group.clone()).or_default().push(pool);
        }
    }
    let group = |(group, pools)| {
        let setup = Setup {
            group,
            pools,
            tuning: settings.tuning.clone(),
            known_pools: settings.known_pools.clone(),
            log: settings.log.clone(),
            log_as_json: settings.log_as_json,
        };
        let share = setup.pools.iter().find_map(|pool| pool.share.clone());
        let probe = share.map(|share| Probe::new(move || share.ping()));
        Arc::new(Group::new(Launch::default(), setup, probe))
    };
    groups.into_iter().map(group).collect()
}

/// Stops the workers side by side.
async fn stop_workers(calls: &Dispatch) {
    let mut stopping = JoinSet::new();
    for group in calls.groups() {
        let group = Arc::clone(group);
        stopping.spawn(async move { group.shutdown(STOP_TIMEOUT).await });
    }
    while stopping.join_next().await.is_some() {}
}

/// Runs a worker until its parent ends.
///
/// # Errors
/// When the engine cannot be opened, or the parent cannot be understood.
pub fn work(worker: &Worker, setup: Setup, kept: BTreeMap<String, OwnedFd>) -> Result<()> {
    raise_file_limit();
    let _span = info_span!("worker", group = setup.group).entered();
    let kept = KeptFiles::new(Arc::new(worker.clone()), kept);
    let engine = Arc::new(Engine::open_kept(setup.pools, setup.tuning, &setup.known_pools, &kept)?);
    let served = worker.serve(&engine);
    // Closing the files of a dead disk may hang; the exit does not wait for it.
    std::mem::forget(engine);
    served
}

/// Waits until the frontends have responded to the calls in progress. Idle connections may stay open: a client can take
/// long to close one.
async fn drain(frontends: &mut JoinSet<Result<()>>, calls: &Dispatch, docker_calls: &TaskTracker) {
    let all_ended = async {
        while let Some(ended) = frontends.join_next().await {
            if let Err(error) = ended.unwrap_or_else(|error| Err(task_failed(error, "stop"))) {
                warn!(error = error.chain(), "a frontend failed");
            }
        }
    };
    let idle = async {
        calls.wait_until_idle().await;
        tokio::time::sleep(RESPONSE_GRACE).await;
    };
    let docker_ended = async {
        docker_calls.close();
        if !docker_calls.is_empty() {
            docker_calls.wait().await;
            tokio::time::sleep(RESPONSE_GRACE).await;
        }
    };
    let drained = async {
        tokio::select! { () = all_ended => {}, () = idle => {} }
        docker_ended.await;
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        warn!("some calls did not finish in time; their callers must retry");
    }
}

fn task_failed(error: JoinError, what: &str) -> Error {
    Error::caused(Kind::Internal, what, error)
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context(|| "listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and returns its name.
    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Releases the claims of a lost Kubernetes node; passes each step to `report`.
///
/// # Errors
/// Same as [`crate::kube::release_node`].
#[cfg(feature = "kube")]
pub fn release_node(release: &crate::kube::Release, report: impl FnMut(String)) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context(|| "start the runtime")?;
    runtime.block_on(crate::kube::release_node(release, report))
}

/// What the cluster of this pod says about volumes of a driver on a node.
///
/// # Errors
/// Same as [`crate::kube::volume_states`]; also `Unavailable` when the API server does not respond in time.
#[cfg(feature = "kube")]
pub fn volume_states(
    driver: &str,
    node: Option<&str>,
    handles: &BTreeSet<String>,
) -> Result<BTreeMap<String, ClusterState>> {
    let runtime = Builder::new_current_thread().enable_all().build().context(|| "start the runtime")?;
    let asked = crate::kube::volume_states(driver, node, handles);
    let states = runtime.block_on(async { tokio::time::timeout(LIST_TIMEOUT, asked).await });
    // A name that is still being resolved is not waited for.
    runtime.shutdown_background();
    states.unwrap_or_else(|_| Err(Error::new(Kind::Unavailable, "the API server did not respond in time")))
}

/// Asks the process that serves a CSI socket whether it is ready.
///
/// # Errors
/// `Unavailable` when it is not ready or does not respond in time.
pub fn probe(socket: &Path, timeout: Duration) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context(|| "start the runtime")?;
    runtime.block_on(async {
        let timed_out =
            |_| Error::new(Kind::Unavailable, format!("no response within {} s", timeout.as_secs()));
        tokio::time::timeout(timeout, csi::probe(socket)).await.map_err(timed_out)?
    })
}
