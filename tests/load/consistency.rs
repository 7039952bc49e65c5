//! A container writes to 50 files in a strict order while its volume is copied: each copy shows one instant, so it contains
//! the steps up to one of them, and no later step. The files may be in two volumes, of which group snapshots are taken.
//! Where copies are made at once, without a pause, the container syncs each step of a single volume.
//!
//! `ORLOP_SNAPSHOTS` is the number of copies; the default is 50.
#![expect(clippy::disallowed_methods, reason = "runs the writer")]

mod history;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::group_controller_client::GroupControllerClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::*;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use self::history::last_step;
use crate::common::backends::{Backend, Ground, on_each_backend};
use crate::common::container::Container;
use crate::common::csi::{MIB, capability, create_request, from_volume, map, size};
use crate::common::disk::run;
use crate::common::isolation::skip;
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

/// The volumes to which a container writes.
const ONE: [&str; 1] = ["source"];
const TWO: [&str; 2] = ["a", "b"];

fn number_of_snapshots() -> u32 {
    std::env::var("ORLOP_SNAPSHOTS").map_or(50, |text| text.parse().unwrap())
}

/// Whether the writer syncs each step before the next one.
#[derive(Debug, Clone, Copy)]
enum Steps {
    Buffered,
    Synced,
}

/// The writer. It is compiled if it is older than its source: the virtual machine is too slow for a compiler, and gets what
/// this machine has compiled.
fn writer(steps: Steps) -> PathBuf {
    let source = Path::new("tests/load/consistency/writer.c");
    let (name, synced) = match steps {
        Steps::Buffered => ("writer", "-DSYNCED=0"),
        Steps::Synced => ("synced-writer", "-DSYNCED=1"),
    };
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = directory.join(name);
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    if changed(&program) < changed(source) {
        // Another test may do so at the same time.
        let dir = tempfile::tempdir_in(directory).unwrap();
        let new = dir.path().join(name);
        let (source, output) = (source.to_str().unwrap(), new.to_str().unwrap());
        run("cc", &["-O2", "-Wall", "-Werror", synced, "-o", output, source]);
        std::fs::rename(new, &program).unwrap();
    }
    program
}

/// The writer, as a container runs it whose second volume is mounted at a directory of its own.
fn writer_of_two(dir: &Path, second: &Path) -> PathBuf {
    let writer = writer(Steps::Buffered);
    let (other, program) = (dir.join("second"), dir.join("writer-of-two"));
    std::fs::create_dir(&other).unwrap();
    let (writer, second, other) = (writer.display(), second.display(), other.display());
    let text = format!(
        "#!/bin/sh -eu\nmount --bind {second} {other}\numount {second}\nexec {writer} \"$1\" {} {other}\n",
        u64::MAX
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    program
}

/// One volume, or two, to which a container writes.
struct Load {
    backend: &'static Backend,
    controller: ControllerClient<Channel>,
    groups: GroupControllerClient<Channel>,
    volumes: Vec<String>,
    container: Container,
    server: Server,
    _dir: TempDir,
}

impl Load {
    /// `None` if this machine cannot freeze containers.
    async fn start(ground: &Ground, volumes: &[&str]) -> Option<Self> {
        let dir = ground.new_dir();
        std::fs::create_dir(dir.path().join("pool")).unwrap();
        let server = Server::spawn(dir.path(), Options { pool: true, own_mounts: true });
        let channel = connect(&server.socket()).await;
        let groups = GroupControllerClient::new(channel.clone());
        let mut controller = ControllerClient::new(channel);
        let mut ids = Vec::new();
        for name in volumes {
            let request = CreateVolumeRequest { capacity_range: size(64 * MIB, 0), ..create_request(name) };
            let created = controller.create_volume(request).await.unwrap().into_inner();
            ids.push(created.volume.unwrap().volume_id);
        }
        let targets: Vec<_> = ids.iter().map(|id| server.target(&id.replace('/', "-"))).collect();
        for (id, target) in ids.iter().zip(&targets) {
            let request = NodePublishVolumeRequest {
                volume_id: id.clone(),
                target_path: target.clone(),
                volume_capability: Some(capability(Mode::SingleNodeMultiWriter)),
                ..NodePublishVolumeRequest::default()
            };
            server.node().await.node_publish_volume(request).await.unwrap();
        }
        let program = match targets.get(1) {
            Some(second) => writer_of_two(dir.path(), Path::new(second)),
            None if ground.backend.copies_at_once() => writer(Steps::Synced),
            None => writer(Steps::Buffered),
        };
        let container = Container::start(&server.mounts(), Path::new(&targets[0]), &program)?;
        let backend = ground.backend;
        Some(Self { backend, controller, groups, volumes: ids, container, server, _dir: dir })
    }

    /// Takes a snapshot, waits until it is ready, checks it, and deletes it. Returns its record, and the last step in it
    /// or why there is none.
    async fn snapshot(&mut self, parameters: &[(&str, &str)]) -> Copy {
        let snapshot = self.take_snapshot("snapshot", &self.volumes[0].clone(), parameters).await;
        let copy = Copy::of(&self.server.pool().join("snapshots/snapshot"), "snapshot.json");
        self.delete_snapshot(snapshot).await;
        copy
    }

    async fn take_snapshot(&mut self, name: &str, volume: &str, parameters: &[(&str, &str)]) -> String {
        let request = CreateSnapshotRequest {
            source_volume_id: volume.to_owned(),
            name: name.to_owned(),
            parameters: map(parameters),
            ..CreateSnapshotRequest::default()
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.controller.create_snapshot(request.clone()).await;
            match answer.map(|answer| answer.into_inner().snapshot.unwrap()) {
                Ok(snapshot) if snapshot.ready_to_use => return snapshot.snapshot_id,
                Err(status) if !is_retried(&status, deadline) => panic!("{status}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn delete_snapshot(&mut self, snapshot_id: String) {
        let request = DeleteSnapshotRequest { snapshot_id, ..Default::default() };
        self.controller.delete_snapshot(request).await.unwrap();
    }

    /// Takes a snapshot of each volume, one after the other. Returns what both show together.
    async fn snapshots_in_turn(&mut self) -> Result<u64, String> {
        let mut taken = Vec::new();
        for (name, volume) in ["first", "second"].into_iter().zip(self.volumes.clone()) {
            taken.push(self.take_snapshot(name, &volume, &PAUSED).await);
        }
        let step = self.last_step_of_both(["first", "second"]);
        for snapshot in taken {
            self.delete_snapshot(snapshot).await;
        }
        step
    }

    /// Takes a group snapshot of both volumes. Returns what it shows, and the record of the first snapshot.
    async fn group_snapshot(&mut self) -> Copy {
        let request = CreateVolumeGroupSnapshotRequest {
            name: "group".to_owned(),
            source_volume_ids: self.volumes.clone(),
            parameters: map(&PAUSED),
            ..Default::default()
        };
        let deadline = Instant::now() + PATIENCE;
        let group = loop {
            match self.groups.create_volume_group_snapshot(request.clone()).await {
                Ok(answer) => break answer.into_inner().group_snapshot.unwrap(),
                Err(status) if !is_retried(&status, deadline) => panic!("{status}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let record = read_record(&self.server.pool().join("snapshots/group.1/snapshot.json"));
        let copy = Copy { step: self.last_step_of_both(["group.1", "group.2"]), record };
        let request = DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id,
            snapshot_ids: group.snapshots.into_iter().map(|snapshot| snapshot.snapshot_id).collect(),
            ..Default::default()
        };
        self.groups.delete_volume_group_snapshot(request).await.unwrap();
        copy
    }

    fn last_step_of_both(&self, snapshots: [&str; 2]) -> Result<u64, String> {
        let snapshots = snapshots.map(|name| self.server.pool().join("snapshots").join(name).join("data"));
        last_step(&snapshots.each_ref().map(PathBuf::as_path))
    }

    /// Like [`Load::snapshot`], for a clone.
    async fn clone(&mut self, parameters: &[(&str, &str)]) -> Copy {
        let request = CreateVolumeRequest {
            volume_content_source: from_volume(&self.volumes[0]),
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
        let step = last_step(&[&extracted]);
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
        Self { step: last_step(&[&object.join("data")]), record: read_record(&object.join(record)) }
    }
}

/// Runs a test on each backend, with a container that writes to these volumes.
fn under_load(test: &str, volumes: &[&str], body: impl AsyncFn(Load)) {
    on_each_backend(test, |ground| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            match Load::start(ground, volumes).await {
                Some(load) => body(load).await,
                None => skip("no cgroup can be frozen"),
            }
        });
    });
}

#[test]
fn the_writer_makes_the_history_that_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let histories: [(_, &[u64]); 2] =
        [(Steps::Buffered, &[0, 1, 49, 50, 1234, 30_000]), (Steps::Synced, &[0, 101])];
    for (kind, lengths) in histories {
        for steps in lengths {
            let written = dir.path().join(format!("{kind:?}-{steps}"));
            std::fs::create_dir(&written).unwrap();
            let mut command = Command::new(writer(kind));
            assert!(command.arg(&written).arg(steps.to_string()).output().unwrap().status.success());
            assert_eq!(last_step(&[&written]), Ok(*steps));
        }
    }
}

/// Checks what the record of a copy says about its consistency. Returns for how many milliseconds the writer was paused.
fn checked_pause(copy: &Copy, backend: &Backend) -> u64 {
    let record = &copy.record;
    assert_eq!(record["consistency"], "crash");
    let paused = record["paused"].as_array().map_or(0, Vec::len);
    assert_eq!(paused == 0, backend.copies_at_once(), "{record}");
    record["pauseMs"].as_u64().expect("a pause, or that there was none")
}

#[test]
fn every_copy_under_load_shows_one_instant() {
    let test = "load::consistency::every_copy_under_load_shows_one_instant";
    under_load(test, &ONE, async |mut load| {
        let (begin, mut last, mut pauses) = (Instant::now(), 0, Vec::new());
        let all = number_of_snapshots();
        for number in 1..=all {
            let is_clone = number % CLONES == 0 || number == all;
            let copy = if is_clone { load.clone(&PAUSED).await } else { load.snapshot(&PAUSED).await };
            pauses.push(checked_pause(&copy, load.backend));
            let step =
                copy.step.unwrap_or_else(|torn| panic!("copy {number} mixes several instants: {torn}"));
            assert!(step > last, "copy {number} shows step {step}, and an earlier one showed {last}");
            last = step;
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
    let test = "load::consistency::a_backup_under_load_shows_one_instant_if_it_is_asked_to";
    under_load(test, &ONE, async |mut load| {
        let dir = tempfile::tempdir().unwrap();
        let mut last = 0;
        for number in 1..=BACKUPS {
            let step = load.backup(dir.path(), &[]);
            let step = step.unwrap_or_else(|torn| panic!("backup {number} mixes several instants: {torn}"));
            assert!(step > last, "backup {number} shows step {step}, and an earlier one showed {last}");
            last = step;
            assert!(load.container.is_running());
        }
        let is_torn = |_| load.backup(dir.path(), &["--consistency", "none"]).is_err();
        assert!((0..TRIES).any(is_torn), "{TRIES} backups without a pause show one instant each");
    });
}

#[test]
fn a_copy_without_a_pause_mixes_instants() {
    under_load("load::consistency::a_copy_without_a_pause_mixes_instants", &ONE, async |mut load| {
        // Such a copy is never paused, and shows one instant of a writer that syncs.
        if load.backend.copies_at_once() {
            return;
        }
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

#[test]
fn every_group_under_load_shows_one_instant() {
    let test = "load::consistency::every_group_under_load_shows_one_instant";
    under_load(test, &TWO, async |mut load| {
        let (mut last, mut longest) = (0, 0);
        for number in 1..=number_of_snapshots() / 2 {
            let copy = load.group_snapshot().await;
            let step =
                copy.step.unwrap_or_else(|torn| panic!("group {number} mixes several instants: {torn}"));
            assert!(step > last, "group {number} shows step {step}, and an earlier one showed {last}");
            last = step;
            longest = longest.max(copy.record["pauseMs"].as_u64().expect("the writer was paused"));
            assert_eq!(copy.record["paused"].as_array().map(Vec::len), Some(1), "{}", copy.record);
            assert!(load.container.is_running());
        }
        eprintln!("{} groups of {last} steps: paused for at most {longest} ms", number_of_snapshots() / 2);
    });
}

#[test]
fn single_snapshots_of_two_volumes_mix_instants() {
    let test = "load::consistency::single_snapshots_of_two_volumes_mix_instants";
    under_load(test, &TWO, async |mut load| {
        for number in 1..=TRIES {
            if let Err(torn) = load.snapshots_in_turn().await {
                return eprintln!("pair {number}: {torn}");
            }
        }
        panic!(
            "{TRIES} pairs of single snapshots show one instant each: the load is too low to prove anything"
        );
    });
}
