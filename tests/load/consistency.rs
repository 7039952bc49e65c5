//! A container writes to 50 files in a strict order while its volume is copied: each copy shows one instant, so it contains
//! the steps up to one of them, and no later step.
//!
//! `ORLOP_SNAPSHOTS` is the number of copies; the default is 50.
#![expect(clippy::disallowed_methods, reason = "compiles and runs the writer")]

mod history;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::*;
use tonic::transport::Channel;
use tonic::{Code, Status};

use self::history::last_step;
use crate::common::container::Container;
use crate::common::csi::{MIB, capability, create_request, from_volume, map, size};
use crate::common::disk::{Disk, run};
use crate::common::isolation::{in_own_process, skip};
use crate::common::pool::read_record;
use crate::common::server::{ORLOP, Options, Server, connect};

/// How often a copy without a pause is tried until one mixes several instants.
const TRIES: u32 = 20;
/// A copy of every this many is a clone, and the others are snapshots.
const CLONES: u32 = 10;
const BACKUPS: u32 = 5;
/// A busy machine needs longer than the default: the test is about order and not about time.
const PAUSED: [(&str, &str); 2] = [("consistency", "crash"), ("maxPause", "60s")];
const NOT_PAUSED: [(&str, &str); 1] = [("consistency", "none")];

/// How long a copy is tried.
const PATIENCE: Duration = Duration::from_secs(120);

fn number_of_snapshots() -> u32 {
    std::env::var("ORLOP_SNAPSHOTS").map_or(50, |text| text.parse().unwrap())
}

fn compile_writer(dir: &Path) -> PathBuf {
    let (source, program) = ("tests/load/consistency/writer.c", dir.join("writer"));
    run("cc", &["-O2", "-Wall", "-Werror", "-o", program.to_str().unwrap(), source]);
    program
}

/// A volume on ext4 to which a container writes.
struct Load {
    controller: ControllerClient<Channel>,
    volume: String,
    container: Container,
    server: Server,
    _disk: Disk,
}

impl Load {
    /// `None` if this machine cannot freeze containers.
    async fn start(dir: &Path) -> Option<Self> {
        let disk = Disk::new(&dir.join("disk"), 1024, &["mkfs.ext4"]);
        std::fs::create_dir(disk.path().join("pool")).unwrap();
        let server = Server::spawn(disk.path(), Options { pool: true, own_mounts: true });
        let channel = connect(&server.socket()).await;
        let mut controller = ControllerClient::new(channel);
        let request = CreateVolumeRequest { capacity_range: size(64 * MIB, 0), ..create_request("source") };
        let volume = controller.create_volume(request).await.unwrap().into_inner().volume.unwrap().volume_id;
        let request = NodePublishVolumeRequest {
            volume_id: volume.clone(),
            target_path: server.target("target"),
            volume_capability: Some(capability(Mode::SingleNodeMultiWriter)),
            ..NodePublishVolumeRequest::default()
        };
        server.node().await.node_publish_volume(request).await.unwrap();
        let target = PathBuf::from(server.target("target"));
        let container = Container::start(&server.mounts(), &target, &compile_writer(dir))?;
        Some(Self { controller, volume, container, server, _disk: disk })
    }

    /// Takes a snapshot, waits until it is ready, checks it, and deletes it. Returns its record, and the last step in it
    /// or why there is none.
    async fn snapshot(&mut self, parameters: &[(&str, &str)]) -> Copy {
        let request = CreateSnapshotRequest {
            source_volume_id: self.volume.clone(),
            name: "snapshot".to_owned(),
            parameters: map(parameters),
            ..CreateSnapshotRequest::default()
        };
        let deadline = Instant::now() + PATIENCE;
        let snapshot = loop {
            let answer = self.controller.create_snapshot(request.clone()).await;
            match answer.map(|answer| answer.into_inner().snapshot.unwrap()) {
                Ok(snapshot) if snapshot.ready_to_use => break snapshot,
                Err(status) if !is_retried(&status, deadline) => panic!("{status}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let copy = Copy::of(&self.server.pool().join("snapshots/snapshot"), "snapshot.json");
        let request = DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
        self.controller.delete_snapshot(request).await.unwrap();
        copy
    }

    /// Like [`Load::snapshot`], for a clone.
    async fn clone(&mut self, parameters: &[(&str, &str)]) -> Copy {
        let request = CreateVolumeRequest {
            volume_content_source: from_volume(&self.volume),
            capacity_range: size(64 * MIB, 0),
            parameters: map(parameters),
            ..create_request("clone")
        };
        let deadline = Instant::now() + PATIENCE;
        let volume = loop {
            match self.controller.create_volume(request.clone()).await {
                Ok(answer) => break answer.into_inner().volume.unwrap(),
                Err(status) if !is_retried(&status, deadline) => panic!("{status}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let copy = Copy::of(&self.server.pool().join("volumes/clone"), "volume.json");
        let request = DeleteVolumeRequest { volume_id: volume.volume_id, ..Default::default() };
        self.controller.delete_volume(request).await.unwrap();
        copy
    }
}

impl Load {
    /// Backs the volume up by the command line and extracts the archive by tar, with these arguments. Returns the last step in
    /// it, or why there is none.
    fn backup(&self, dir: &Path, arguments: &[&str]) -> Result<u64, String> {
        let archive = dir.join("backup.tar");
        let deadline = Instant::now() + PATIENCE;
        loop {
            // In the namespace of the server, which would be a consumer otherwise.
            let mut command = Command::new("nsenter");
            command.arg(format!("--mount={}", self.server.mounts().display())).arg(ORLOP);
            command.args(["backup", "source", "-o"]).arg(&archive).args(arguments);
            command.arg(format!("--pool=p={}", self.server.pool().display()));
            let output = command.env_remove("ORLOP_POOL").env_remove("ORLOP_CONFIG").output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                break;
            }
            // The writer may not freeze in time on a busy machine.
            assert!(Instant::now() < deadline, "{stderr}");
        }
        let extracted = dir.join("extracted");
        std::fs::create_dir(&extracted).unwrap();
        run("tar", &["-xf", archive.to_str().unwrap(), "-C", extracted.to_str().unwrap()]);
        let step = last_step(&extracted);
        std::fs::remove_dir_all(&extracted).unwrap();
        step
    }
}

/// Whether the sidecars of Kubernetes repeat a request after this answer: also one that was refused, for example because the
/// writer did not freeze within a second on a busy disk.
fn is_retried(status: &Status, deadline: Instant) -> bool {
    matches!(status.code(), Code::Aborted | Code::FailedPrecondition) && Instant::now() < deadline
}

/// What a copy shows.
struct Copy {
    step: Result<u64, String>,
    record: serde_json::Value,
}

impl Copy {
    fn of(object: &Path, record: &str) -> Self {
        Self { step: last_step(&object.join("data")), record: read_record(&object.join(record)) }
    }
}

/// Runs a test under load.
fn under_load(test: &str, body: impl AsyncFnOnce(Load)) {
    in_own_process(test, || {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            match Load::start(dir.path()).await {
                Some(load) => body(load).await,
                None => skip("no cgroup can be frozen"),
            }
        });
    });
}

#[test]
fn the_writer_makes_the_history_that_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let writer = compile_writer(dir.path());
    for steps in [0, 1, 49, 50, 1234, 30_000] {
        let written = dir.path().join(steps.to_string());
        std::fs::create_dir(&written).unwrap();
        let status = Command::new(&writer).arg(&written).arg(steps.to_string()).output().unwrap().status;
        assert!(status.success());
        assert_eq!(last_step(&written), Ok(steps));
    }
}

#[test]
fn every_copy_under_load_shows_one_instant() {
    under_load("load::consistency::every_copy_under_load_shows_one_instant", async |mut load| {
        let (begin, mut last, mut pauses) = (Instant::now(), 0, Vec::new());
        for number in 1..=number_of_snapshots() {
            let is_clone = number % CLONES == 0;
            let copy = if is_clone { load.clone(&PAUSED).await } else { load.snapshot(&PAUSED).await };
            let step =
                copy.step.unwrap_or_else(|torn| panic!("copy {number} mixes several instants: {torn}"));
            assert!(step > last, "copy {number} shows step {step}, and an earlier one showed {last}");
            last = step;
            assert_eq!(copy.record["consistency"], "crash");
            pauses.push(copy.record["pauseMs"].as_u64().expect("the writer was paused"));
            assert!(load.container.is_running());
        }
        pauses.sort_unstable();
        eprintln!(
            "{} copies of {last} steps in {:.0?}: paused for {} ms (median), at most {} ms",
            pauses.len(),
            begin.elapsed(),
            pauses[pauses.len() / 2],
            pauses[pauses.len() - 1],
        );
    });
}

#[test]
fn a_backup_under_load_shows_one_instant_if_it_is_asked_to() {
    under_load(
        "load::consistency::a_backup_under_load_shows_one_instant_if_it_is_asked_to",
        async |mut load| {
            let dir = tempfile::tempdir().unwrap();
            let mut last = 0;
            for number in 1..=BACKUPS {
                let step = load.backup(dir.path(), &[]);
                let step =
                    step.unwrap_or_else(|torn| panic!("backup {number} mixes several instants: {torn}"));
                assert!(step > last, "backup {number} shows step {step}, and an earlier one showed {last}");
                last = step;
                assert!(load.container.is_running());
            }
            let is_torn = |_| load.backup(dir.path(), &["--consistency", "none"]).is_err();
            assert!((0..TRIES).any(is_torn), "{TRIES} backups without a pause show one instant each");
        },
    );
}

#[test]
fn a_copy_without_a_pause_mixes_instants() {
    under_load("load::consistency::a_copy_without_a_pause_mixes_instants", async |mut load| {
        for number in 1..=TRIES {
            let copy = load.snapshot(&NOT_PAUSED).await;
            assert_eq!(copy.record["consistency"], "none");
            if let Err(torn) = copy.step {
                eprintln!("copy {number}: {torn}");
                return;
            }
        }
        panic!("{TRIES} copies without a pause show one instant each: the load is too low to prove anything");
    });
}
