//! The real program behind a real socket, and its caller.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::identity_client::IdentityClient;
use orlop::csi::proto::node_client::NodeClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use orlop::csi::proto::*;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// What each volume is promised.
pub(crate) const SIZE: u64 = 64 << 10;

/// The program to measure.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_orlop");

/// A running orlop.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Its pool's directory.
    pub(crate) pool: PathBuf,
    targets: PathBuf,
    socket: tempfile::TempDir,
    /// From its start until `Probe` answered.
    pub(crate) started: Duration,
    next: AtomicU64,
    log: PathBuf,
}

/// Its clients: one connection for each service, as the sidecars and the kubelet have.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) controller: ControllerClient<Channel>,
    pub(crate) node: NodeClient<Channel>,
}

impl Server {
    /// Starts it on the pool `dir/pool` and waits for its `Probe`.
    pub(crate) async fn start(dir: &Path) -> Arc<Self> {
        let (pool, targets, log) = (dir.join("pool"), dir.join("targets"), dir.join("log"));
        fs::create_dir_all(&pool).unwrap();
        fs::create_dir_all(&targets).unwrap();
        let socket = tempfile::tempdir().unwrap();
        let stderr = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let began = Instant::now();
        let child = Command::new(PROGRAM)
            .args(["serve", "--node-id", "bench"])
            .arg(format!("--pool=p={}", pool.display()))
            .arg(format!("--csi=unix://{}", socket.path().join("csi.sock").display()))
            .stderr(Stdio::from(stderr))
            .spawn()
            .unwrap();
        let mut server =
            Self { child, pool, targets, socket, started: Duration::ZERO, next: AtomicU64::new(0), log };
        loop {
            let ready = async {
                let mut identity = IdentityClient::new(server.channel().await?);
                let answer = identity.probe(ProbeRequest {}).await.map_err(io::Error::other)?;
                Ok::<_, io::Error>(answer.into_inner().ready.unwrap_or(true))
            };
            if ready.await.unwrap_or(false) {
                break;
            }
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "orlop ended: {}", fs::read_to_string(&server.log).unwrap());
            assert!(began.elapsed() < Duration::from_secs(60), "orlop does not get ready");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.started = began.elapsed();
        Arc::new(server)
    }

    async fn channel(&self) -> io::Result<Channel> {
        let url = format!("unix://{}", self.socket.path().join("csi.sock").display());
        let endpoint = Endpoint::from_shared(url).map_err(io::Error::other)?;
        endpoint.connect().await.map_err(io::Error::other)
    }

    /// A client.
    pub(crate) async fn client(&self) -> Client {
        Client {
            controller: ControllerClient::new(self.channel().await.unwrap()),
            node: NodeClient::new(self.channel().await.unwrap()),
        }
    }

    /// A name that no volume has.
    pub(crate) fn name(&self) -> String {
        format!("bench-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Where a volume is published.
    pub(crate) fn target(&self, name: &str) -> String {
        self.targets.join(name).display().to_string()
    }

    /// A number of `/proc/<pid>/status`, in MiB.
    pub(crate) fn memory(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap();
        kib / 1024.0
    }

    /// Seconds of processor time that it has taken so far, its reaper's among them.
    pub(crate) fn processor(&self) -> f64 {
        processor(&self.child.id().to_string())
    }

    /// Waits until the reaper has emptied the trash but for what others put there.
    pub(crate) async fn reaped(&self) -> Duration {
        let began = Instant::now();
        let ours = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| !entry.file_name().to_string_lossy().starts_with("bare-"))
        };
        while fs::read_dir(self.pool.join("trash")).unwrap().any(ours) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        began.elapsed()
    }

    /// Lifecycles a second of so many callers.
    pub(crate) async fn rate(self: &Arc<Self>, client: &Client, callers: usize, time: Duration) -> f64 {
        let (server, client) = (Arc::clone(self), client.clone());
        rate_of(callers, time, move || {
            let (client, name) = (client.clone(), server.name());
            let target = server.target(&name);
            async move { client.lifecycle(&name, &target).await }
        })
        .await
    }
}

/// Seconds of processor time that a process has taken so far.
pub(crate) fn processor(process: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: f64 = after_name.skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// How often a second so many callers do something.
pub(crate) async fn rate_of<F, W>(callers: usize, time: Duration, work: W) -> f64
where
    F: Future<Output = ()> + Send + 'static,
    W: Fn() -> F + Clone + Send + 'static,
{
    let began = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let work = work.clone();
        all.spawn(async move {
            let mut done = 0_u32;
            while began.elapsed() < time {
                work().await;
                done += 1;
            }
            done
        });
    }
    let done: u32 = all.join_all().await.into_iter().sum();
    f64::from(done) / began.elapsed().as_secs_f64()
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn capability() -> Option<VolumeCapability> {
    Some(VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    })
}

/// The id of a volume of this name.
pub(crate) fn id(name: &str) -> String {
    format!("p/{name}")
}

impl Client {
    /// Makes a volume, empty or of a source; asks again while it is being copied.
    pub(crate) async fn create(&self, name: &str, source: Option<volume_content_source::Type>) {
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: SIZE as i64, limit_bytes: 0 }),
            volume_capabilities: capability().into_iter().collect(),
            volume_content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
            ..CreateVolumeRequest::default()
        };
        while let Err(status) = self.controller.clone().create_volume(request.clone()).await {
            assert_eq!(status.code(), Code::Aborted, "{}", status.message());
        }
    }

    pub(crate) async fn delete(&self, name: &str) {
        let request = DeleteVolumeRequest { volume_id: id(name), secrets: HashMap::new() };
        expect(self.controller.clone().delete_volume(request).await);
    }

    pub(crate) async fn publish(&self, name: &str, target: &str) {
        let request = NodePublishVolumeRequest {
            volume_id: id(name),
            target_path: target.to_owned(),
            volume_capability: capability(),
            ..NodePublishVolumeRequest::default()
        };
        expect(self.node.clone().node_publish_volume(request).await);
    }

    pub(crate) async fn unpublish(&self, name: &str, target: &str) {
        let request = NodeUnpublishVolumeRequest { volume_id: id(name), target_path: target.to_owned() };
        expect(self.node.clone().node_unpublish_volume(request).await);
    }

    /// Cuts a snapshot and waits until it is ready.
    pub(crate) async fn snapshot(&self, of: &str, name: &str) {
        let request = CreateSnapshotRequest {
            source_volume_id: id(of),
            name: name.to_owned(),
            ..CreateSnapshotRequest::default()
        };
        loop {
            let made = expect(self.controller.clone().create_snapshot(request.clone()).await);
            if made.snapshot.is_some_and(|snapshot| snapshot.ready_to_use) {
                return;
            }
        }
    }

    pub(crate) async fn delete_snapshot(&self, name: &str) {
        let request = DeleteSnapshotRequest { snapshot_id: id(name), secrets: HashMap::new() };
        expect(self.controller.clone().delete_snapshot(request).await);
    }

    pub(crate) async fn lifecycle(&self, name: &str, target: &str) {
        self.create(name, None).await;
        self.publish(name, target).await;
        self.unpublish(name, target).await;
        self.delete(name).await;
    }

    /// One page of the volumes; answers how many it held and the token of the next.
    pub(crate) async fn page(&self, max_entries: i32, starting_token: String) -> (usize, String) {
        let request = ListVolumesRequest { max_entries, starting_token };
        let page = expect(self.controller.clone().list_volumes(request).await);
        (page.entries.len(), page.next_token)
    }
}

fn expect<T>(answer: Result<tonic::Response<T>, Status>) -> T {
    match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => panic!("{:?}: {}", status.code(), status.message()),
    }
}
