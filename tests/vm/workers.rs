//! A server whose pools on NFS are served by a worker process: the server freezes, and the worker is killed.
#![expect(clippy::disallowed_methods, reason = "the NFS server is controlled by a program")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::node_client::NodeClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::*;
use orlop::engine::Engine;
use orlop::engine::request::{PoolSettings, Sharing};
use orlop::volume::VolumeId;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::pools::{directory, open_on, publish_request, settings};
use crate::common::csi::{capability, create_request, map};
use crate::common::isolation::in_own_process;
use crate::common::server::{Server, connect};
use crate::common::wait::within_seconds;

/// `call-timeout` of the server.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// What an answer may take beyond that in this emulated machine.
const SLACK: Duration = Duration::from_secs(20);
/// Lives of volumes of the other pool, before and while the server is frozen.
const CYCLES: usize = 9;

/// A client of a server with the pools `ok`, a local one, and `nas`.
#[derive(Clone)]
struct Client {
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    base: PathBuf,
}

impl Client {
    async fn create(&mut self, pool: &str, name: &str) -> Result<String, Status> {
        let request = CreateVolumeRequest { parameters: map(&[("pool", pool)]), ..create_request(name) };
        let created = self.controller.create_volume(request).await?;
        Ok(created.into_inner().volume.unwrap().volume_id)
    }

    async fn get(&mut self, id: &str) -> Result<(), Status> {
        let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
        self.controller.controller_get_volume(request).await.map(drop)
    }

    async fn delete(&mut self, id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.controller.delete_volume(request).await.map(drop)
    }

    async fn publish(&mut self, id: &str, target: &str, mode: Mode) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: self.base.join(target).display().to_string(),
            volume_capability: Some(capability(mode)),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await.map(drop)
    }

    async fn unpublish(&mut self, id: &str, target: &str) -> Result<(), Status> {
        let target_path = self.base.join(target).display().to_string();
        let request = NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path };
        self.node.node_unpublish_volume(request).await.map(drop)
    }

    /// Creates a volume of the pool `nas` and publishes it. The first call makes the pool, which may take longer than a call.
    async fn published(&mut self, name: &str, target: &str, mode: Mode) -> String {
        let mut id = None;
        within_async(300, "the volume is created and published", async || {
            let mut client = self.clone();
            id = client.create("nas", name).await.ok();
            match &id {
                Some(id) => client.publish(id, target, mode).await.is_ok(),
                None => false,
            }
        })
        .await;
        id.unwrap()
    }

    /// The median time from the creation to the deletion of volumes of the pool `ok`.
    async fn median_cycle(&mut self, prefix: &str) -> Duration {
        let mut times = Vec::new();
        for number in 0..CYCLES {
            let started = Instant::now();
            let id = self.create("ok", &format!("{prefix}{number}")).await.unwrap();
            self.publish(&id, "cycle", Mode::SingleNodeMultiWriter).await.unwrap();
            self.unpublish(&id, "cycle").await.unwrap();
            self.delete(&id).await.unwrap();
            times.push(started.elapsed());
        }
        times.sort();
        times[CYCLES / 2]
    }

    /// A call for the frozen server is answered in time with its name.
    async fn is_refused(&mut self, id: &str) {
        let started = Instant::now();
        let error = self.get(id).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        assert!(error.message().contains("NFS server 10.80.0.1"), "{error:?}");
        assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{:?}", started.elapsed());
    }
}

/// The frozen NFS server. It thaws when this is dropped.
struct Frozen;

impl Frozen {
    fn new() -> Self {
        assert!(Command::new("nfs-server").arg("freeze").status().unwrap().success());
        Self
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("nfs-server").arg("thaw").status();
    }
}

/// Runs a test with a server whose pool `nas` is in this directory of the NFS server.
fn run(test: &str, pool: &str, body: impl AsyncFnOnce(&Server, Client)) {
    in_own_process(&format!("vm::workers::{test}"), || {
        directory(pool);
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().to_owned();
        fs::create_dir(base.join("ok")).unwrap();
        let text = format!(
            "[[pool]]\nname = \"ok\"\npath = \"{}/ok\"\n\
             [[pool]]\nname = \"nas\"\nserver = \"10.80.0.1\"\npath = \"/{pool}\"\n\
             [tuning]\ncopy-wait = \"1s\"\ncall-timeout = \"{}s\"\n",
            base.display(),
            CALL_TIMEOUT.as_secs(),
        );
        fs::write(base.join("orlop.toml"), text).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::spawn_with_config(&base, &base.join("orlop.toml"));
            let channel = connect(&base.join("csi.sock")).await;
            let node = NodeClient::new(channel.clone());
            let client = Client { controller: ControllerClient::new(channel), node, base: base.clone() };
            body(&server, client).await;
        });
    });
}

fn read(client: &Client, path: &str) -> String {
    fs::read_to_string(client.base.join(path)).unwrap()
}

async fn within_async(seconds: u64, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[expect(clippy::print_stderr, reason = "the suite shows figures")]
fn report(before: Duration, frozen: Duration) {
    eprintln!("a volume of another pool: {before:.1?} before, {frozen:.1?} while the server is frozen");
}

#[test]
fn a_frozen_server_is_named_and_delays_no_other_pool() {
    run(
        "a_frozen_server_is_named_and_delays_no_other_pool",
        "frozen",
        async |server: &Server, mut client: Client| {
            // The last name becomes a digest.
            let mut ids = Vec::new();
            for (number, name) in ["kept", "busy", "idle", "un usual"].iter().enumerate() {
                ids.push(client.published(name, &format!("t{number}"), Mode::SingleNodeMultiWriter).await);
            }
            fs::write(client.base.join("t0/file"), "kept").unwrap();
            let threads = server.threads();
            let before = client.median_cycle("before").await;
            let busy = File::open(client.base.join("t1")).unwrap();

            let frozen = Frozen::new();
            let mut waiting = client.clone();
            let kept = ids[0].clone();
            let waiting = tokio::spawn(async move { waiting.is_refused(&kept).await });
            let while_frozen = client.median_cycle("frozen").await;
            report(before, while_frozen);
            assert!(while_frozen < before * 3 + Duration::from_secs(1), "{before:?}, {while_frozen:?}");
            waiting.await.unwrap();
            client.is_refused(&ids[0]).await;
            for (number, id) in ids.iter().enumerate().skip(1) {
                let target = format!("t{number}");
                let answered =
                    tokio::time::timeout(CALL_TIMEOUT + SLACK, client.unpublish(id, &target)).await;
                answered.expect("unpublish waits for the server").unwrap();
                assert!(!client.base.join(target).exists());
            }
            drop(frozen);

            within_async(180, "the pool is used again", async || client.clone().get(&ids[0]).await.is_ok())
                .await;
            drop(busy);
            assert_eq!(read(&client, "t0/file"), "kept");
            within_seconds(180, "no worker is left behind", || {
                server.children().len() == 1
                    && server
                        .http("/metrics")
                        .contains("orlop_workers_left_behind{group=\"nfs:10.80.0.1\"} 0\n")
            });
            within_seconds(180, "the threads end", || server.threads() <= threads + 4);
            client.unpublish(&ids[0], "t0").await.unwrap();
            for id in &ids {
                within_async(60, "the volume is deleted", async || client.clone().delete(id).await.is_ok())
                    .await;
            }
        },
    );
}

/// The settings of the host `a` for the pool `nas`.
fn settings_of_a(pool: &str) -> PoolSettings {
    PoolSettings {
        name: "nas".parse().unwrap(),
        node: Some("host-a".to_owned()),
        ..settings("10.80.0.1", pool, "soft,timeo=300", None)
    }
}

fn is_refused_on(host: &Engine, id: &VolumeId, target: &Path) {
    for error in [
        host.delete(id).unwrap_err(),
        host.publish(&publish_request(id, target, Sharing::ManyTargets)).unwrap_err(),
    ] {
        assert!(error.chain().contains("in use on n1 since"), "{}", error.chain());
    }
}

#[test]
fn a_killed_worker_frees_neither_mounts_nor_used_locks() {
    run(
        "a_killed_worker_frees_neither_mounts_nor_used_locks",
        "killed",
        async |server: &Server, mut client: Client| {
            let id = client.published("v", "t", Mode::SingleNodeSingleWriter).await;
            fs::write(client.base.join("t/file"), "kept").unwrap();
            let host = tokio::task::block_in_place(|| open_on("a", settings_of_a("killed")));
            let (volume, target): (VolumeId, _) = (id.parse().unwrap(), client.base.join("of-a"));
            let is_refused = || tokio::task::block_in_place(|| is_refused_on(&host, &volume, &target));
            is_refused();
            for _ in 0..2 {
                let worker = server.children()[0];
                kill_process(Pid::from_raw(worker.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
                within_seconds(60, "the worker has ended", || server.children().is_empty());
                is_refused();
                assert_eq!(read(&client, "t/file"), "kept");
                within_async(180, "another worker runs", async || client.clone().get(&id).await.is_ok())
                    .await;
                is_refused();
            }
            client.unpublish(&id, "t").await.unwrap();
            within_seconds(180, "the lock is released", || {
                tokio::task::block_in_place(|| host.delete(&volume)).is_ok()
            });
        },
    );
}
