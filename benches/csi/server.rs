//! A server under measurement: orlop's release binary or the least driver, each a process with a socket of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orlop::csi::proto::ProbeRequest;
use orlop::csi::proto::identity_client::IdentityClient;
use tonic::transport::{Channel, Endpoint};

use crate::bare::is_bare;
use crate::client::{Client, POOL, Rate, rate_of};
use crate::least;

/// The binary to measure.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_orlop");

/// Name of the volume whose record serves as a template for others; no other name contains it.
pub(crate) const TEMPLATE: &str = "template";

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Directory of its pool.
    pub(crate) pool: PathBuf,
    targets: PathBuf,
    socket: PathBuf,
    _socket_dir: tempfile::TempDir,
    /// Time from its start to the first successful `Probe`.
    pub(crate) startup: Duration,
    next: AtomicU64,
    log: PathBuf,
}

impl Server {
    /// Starts orlop on the pool `dir/pool` and waits until `Probe` succeeds.
    pub(crate) async fn orlop(dir: &Path) -> Arc<Self> {
        Self::of(Path::new(PROGRAM), dir).await
    }

    /// Like [`Server::orlop`], with another program that is orlop.
    pub(crate) async fn of(program: &Path, dir: &Path) -> Arc<Self> {
        let command = |pool: &Path, socket: &Path| {
            let mut command = Command::new(program);
            command.args(["serve", "--node-id", "bench"]);
            command.arg(format!("--pool={POOL}={}", pool.display()));
            command.arg(format!("--csi=unix://{}", socket.display()));
            command
        };
        Self::start(dir, command).await
    }

    /// Starts the least driver on the pool `dir/pool`; it gives every volume this record.
    pub(crate) async fn least(dir: &Path, record: &[u8]) -> Arc<Self> {
        fs::create_dir_all(dir).unwrap();
        let record_path = dir.join("record");
        fs::write(&record_path, record).unwrap();
        let command = |pool: &Path, socket: &Path| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.arg(least::ARGUMENT).args([pool, socket, &record_path]);
            command
        };
        Self::start(dir, command).await
    }

    async fn start(dir: &Path, command: impl FnOnce(&Path, &Path) -> Command) -> Arc<Self> {
        let (pool, targets, log) = (dir.join("pool"), dir.join("targets"), dir.join("log"));
        fs::create_dir_all(&pool).unwrap();
        fs::create_dir_all(&targets).unwrap();
        let socket_dir = tempfile::tempdir().unwrap();
        let socket = socket_dir.path().join("csi.sock");
        let stderr = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let began = Instant::now();
        let child = command(&pool, &socket).stderr(Stdio::from(stderr)).spawn().unwrap();
        let (startup, next) = (Duration::ZERO, AtomicU64::new(0));
        let mut server = Self { child, pool, targets, socket, _socket_dir: socket_dir, startup, next, log };
        while !server.is_ready().await {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {}", fs::read_to_string(&server.log).unwrap());
            assert!(began.elapsed() < Duration::from_secs(60), "the server does not become ready");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.startup = began.elapsed();
        Arc::new(server)
    }

    async fn is_ready(&self) -> bool {
        let Ok(channel) = self.channel().await else { return false };
        let response = IdentityClient::new(channel).probe(ProbeRequest {}).await;
        response.is_ok_and(|response| response.into_inner().ready.unwrap_or(true))
    }

    async fn channel(&self) -> io::Result<Channel> {
        let url = format!("unix://{}", self.socket.display());
        let endpoint = Endpoint::from_shared(url).map_err(io::Error::other)?;
        endpoint.connect().await.map_err(io::Error::other)
    }

    /// Connects a new client.
    pub(crate) async fn client(&self) -> Client {
        Client::new(self.channel().await.unwrap(), self.channel().await.unwrap())
    }

    /// Returns a name that no volume has.
    pub(crate) fn name(&self) -> String {
        format!("bench-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the target path of a volume.
    pub(crate) fn target(&self, name: &str) -> String {
        self.targets.join(name).display().to_string()
    }

    /// Returns the directory with the data of a volume.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.pool.join("volumes").join(name).join("data")
    }

    /// Returns the record that the server writes for the volume [`TEMPLATE`].
    pub(crate) async fn record(&self) -> Vec<u8> {
        let client = self.client().await;
        client.create(TEMPLATE, None).await;
        let record = fs::read(self.pool.join("volumes").join(TEMPLATE).join("volume.json")).unwrap();
        client.delete(TEMPLATE).await;
        self.trash_removed().await;
        record
    }

    /// Returns a figure of `/proc/<pid>/status`, in MiB.
    pub(crate) fn memory(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap();
        kib / 1024.0
    }

    /// Returns the CPU time that the process has used so far, its reaper included.
    pub(crate) fn cpu(&self) -> Duration {
        cpu(&self.child.id().to_string())
    }

    /// Waits until the reaper has emptied the trash, apart from what the bare system calls put there.
    pub(crate) async fn trash_removed(&self) {
        let others = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| !is_bare(&entry));
        while fs::read_dir(self.pool.join("trash")).unwrap().any(others) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs lifecycles by `callers` concurrent callers.
    pub(crate) async fn lifecycles(
        self: &Arc<Self>,
        client: &Client,
        callers: usize,
        time: Duration,
    ) -> Rate {
        let (server, client) = (Arc::clone(self), client.clone());
        rate_of(callers, time, move || {
            let (client, name) = (client.clone(), server.name());
            let target = server.target(&name);
            async move { client.lifecycle(&name, &target).await }
        })
        .await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Returns the CPU time that a process has used so far: user and system time, fields 14 and 15 of `proc_pid_stat(5)`.
pub(crate) fn cpu(process: &str) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: f64 = after_name.skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
    Duration::from_secs_f64(ticks / rustix::param::clock_ticks_per_second() as f64)
}
