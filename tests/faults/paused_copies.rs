//! Copies of volumes that containers use: what is paused, what is refused, and what a killed process leaves.
#![expect(clippy::disallowed_methods, reason = "the users of volumes are processes")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::*;
use orlop::engine::request::{ConsistencySpec, CreateSnapshot, Publish, Sharing};
use orlop::error::Kind;
use orlop::mount::options::MountFlags;
use orlop::pause::{FrozenCgroup, Hierarchy, PauseRecord};
use orlop::pool::{OpenPool, Pool, PoolSettings, Purpose};
use orlop::volume::Consistency;
use tonic::Code;
use tonic::transport::Channel;

use crate::common::container::{Container, TestCgroup, hierarchies};
use crate::common::csi::{capability, create_request, from_volume, map};
use crate::common::isolation::{in_own_process, is_root, skip};
use crate::common::pool::{id, open, read_record, request, snapshot_request};
use crate::common::server::{Options, Server, connect};
use crate::common::wait::within_seconds;

/// A busy machine may take longer than the default.
const LONG_PAUSE: (&str, &str) = ("maxPause", "60s");

/// A program that writes to one file of its volume all the time.
fn writer(dir: &Path) -> PathBuf {
    let path = dir.join("writer");
    let text = "#!/bin/sh\necho ready\nwhile :; do echo x >> \"$1/file\"; [ -s /dev/null ]; done\n";
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

struct Csi {
    server: Server,
    controller: ControllerClient<Channel>,
    volume: String,
    dir: tempfile::TempDir,
}

impl Csi {
    /// A server with a published volume.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pool")).unwrap();
        let server = Server::spawn(dir.path(), Options { pool: true, own_mounts: true });
        let mut controller = ControllerClient::new(connect(&server.socket()).await);
        let created = controller.create_volume(create_request("source")).await.unwrap().into_inner();
        let volume = created.volume.unwrap().volume_id;
        let publish = NodePublishVolumeRequest {
            volume_id: volume.clone(),
            target_path: server.target("target"),
            volume_capability: Some(capability(Mode::SingleNodeMultiWriter)),
            ..NodePublishVolumeRequest::default()
        };
        server.node().await.node_publish_volume(publish).await.unwrap();
        Self { server, controller, volume, dir }
    }

    fn container(&self) -> Option<Container> {
        let target = PathBuf::from(self.server.target("target"));
        Container::start(&self.server.mounts(), &target, &writer(self.dir.path()))
    }

    /// Takes a snapshot, waits until it is ready, and returns its record.
    async fn snapshot(&mut self, name: &str, parameters: &[(&str, &str)]) -> serde_json::Value {
        let request = CreateSnapshotRequest {
            source_volume_id: self.volume.clone(),
            name: name.to_owned(),
            parameters: map(parameters),
            ..CreateSnapshotRequest::default()
        };
        loop {
            match self.controller.create_snapshot(request.clone()).await {
                Ok(answer) if answer.get_ref().snapshot.as_ref().unwrap().ready_to_use => break,
                Err(status) if status.code() != Code::Aborted => panic!("{status}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        read_record(&self.server.pool().join("snapshots").join(name).join("snapshot.json"))
    }

    /// Number of pauses with this result, as the metrics report it.
    fn pauses(&self, result: &str) -> u64 {
        let (metrics, name) =
            (self.server.http("/metrics"), format!("orlop_pauses_total{{result=\"{result}\"}} "));
        metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }
}

/// Runs a test with its own mounts and a server.
fn with_server(test: &str, body: impl AsyncFnOnce(Csi)) {
    in_own_process(test, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { body(Csi::start().await).await });
    });
}

#[test]
fn a_copy_pauses_the_containers_of_its_volume_and_says_so() {
    with_server(
        "faults::paused_copies::a_copy_pauses_the_containers_of_its_volume_and_says_so",
        async |mut csi| {
            let Some(mut container) = csi.container() else { return skip("no cgroup can be frozen") };
            let record = csi.snapshot("s", &[LONG_PAUSE]).await;
            assert_eq!(record["consistency"], "crash");
            assert!(record["pauseMs"].as_u64().unwrap() > 0, "{record}");
            assert_eq!(record["paused"].as_array().unwrap().len(), 1, "{record}");
            assert!(container.is_running());
            let mut names: Vec<_> = fs::read_dir(csi.server.pool().join("snapshots/s"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            assert_eq!(names, ["data", "snapshot.json"], "nothing of the pause is left");
            assert_eq!(csi.pauses("kept"), 1);

            let mut clone = create_request("clone");
            (clone.volume_content_source, clone.parameters) = (from_volume(&csi.volume), map(&[LONG_PAUSE]));
            while let Err(status) = csi.controller.create_volume(clone.clone()).await {
                assert_eq!(status.code(), Code::Aborted, "{status}");
            }
            let record = read_record(&csi.server.pool().join("volumes/clone/volume.json"));
            assert_eq!((&record["consistency"], csi.pauses("kept")), (&"crash".into(), 2), "{record}");
            assert!(container.is_running());
        },
    );
}

#[test]
fn a_copy_without_consistency_and_one_of_an_idle_volume_pause_nothing() {
    with_server(
        "faults::paused_copies::a_copy_without_consistency_and_one_of_an_idle_volume_pause_nothing",
        async |mut csi| {
            let Some(mut container) = csi.container() else { return skip("no cgroup can be frozen") };
            let record = csi.snapshot("unpaused", &[("consistency", "none")]).await;
            assert_eq!((&record["consistency"], &record["pauseMs"]), (&"none".into(), &0.into()));
            assert!(container.is_running());
            drop(container);
            let record = csi.snapshot("idle", &[]).await;
            assert_eq!((&record["consistency"], &record["pauseMs"]), (&"crash".into(), &0.into()));
            assert_eq!(["kept", "refused", "broken"].map(|result| csi.pauses(result)), [0, 0, 0]);
        },
    );
}

#[test]
fn a_copy_that_would_pause_too_long_is_refused_before_the_pause() {
    in_own_process(
        "faults::paused_copies::a_copy_that_would_pause_too_long_is_refused_before_the_pause",
        || {
            let dir = tempfile::tempdir().unwrap();
            let (pool, target) = (dir.path().join("pool"), dir.path().join("target"));
            fs::create_dir(&pool).unwrap();
            let engine = open(&pool);
            let volume = engine.create(&request("a", 1 << 20)).unwrap().id;
            let flags = MountFlags::default();
            let (publish, sharing) = (target.clone(), Sharing::ManyTargets);
            let publish = Publish { id: volume.clone(), target: publish, flags, sharing, ephemeral: None };
            engine.publish(&publish).unwrap();
            let mounts = Path::new("/proc/self/ns/mnt");
            let Some(mut container) = Container::start(mounts, &target, &writer(dir.path())) else {
                return skip("no cgroup can be frozen");
            };
            let spec = |consistency, max_pause| ConsistencySpec {
                consistency,
                max_pause,
                ..ConsistencySpec::default()
            };
            let short = spec(Consistency::Crash, Duration::from_nanos(1));
            let refused = CreateSnapshot { consistency: short, ..snapshot_request("s", &volume) };
            let error = engine.create_snapshot(&refused).unwrap_err();
            assert_eq!(error.kind(), Kind::InUse, "csi-snapshotter must not believe that the copy runs");
            for expected in ["volume p/a is in use", "maxPause", "consistency: none", "shares extents"] {
                assert!(error.chain().contains(expected), "{}", error.chain());
            }
            assert!(container.is_running());
            assert_eq!((engine.pauses().refused, engine.pauses().kept), (1, 0));
            within_seconds(60, "the draft is removed", || {
                fs::read_dir(pool.join("work")).unwrap().next().is_none()
            });
            engine.get_snapshot(&id("s")).unwrap_err();
            let none = spec(Consistency::None, Duration::ZERO);
            engine.create_snapshot(&CreateSnapshot { consistency: none, ..refused }).unwrap();
            assert!(container.is_running());
        },
    );
}

/// A frozen cgroup with one process, as a killed orlop leaves it.
struct Frozen {
    cgroup: TestCgroup,
    hierarchy: Hierarchy,
    process: Child,
}

impl Frozen {
    /// `None` if this machine has no cgroup that can be frozen.
    fn new() -> Option<Self> {
        let hierarchy = *hierarchies().first()?;
        let cgroup = TestCgroup::new(hierarchy);
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        let frozen = Self { cgroup, hierarchy, process };
        fs::write(frozen.cgroup.procs(), frozen.process.id().to_string()).unwrap();
        frozen.cgroup.set_frozen(true);
        Some(frozen)
    }

    /// The record of a pause that froze it.
    fn record(&self) -> PauseRecord {
        let inode = fs::metadata(self.cgroup.procs().parent().unwrap()).unwrap().ino();
        let frozen = FrozenCgroup { hierarchy: self.hierarchy, path: self.cgroup.path(), inode };
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim_end().to_owned();
        PauseRecord { host: "here".into(), boot_id, cgroups: vec![frozen] }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.cgroup.set_frozen(false);
        let _ = self.process.wait();
    }
}

/// Writes a draft whose creator has ended.
fn abandon(pool: &Path, draft: &str, record: &PauseRecord) -> PathBuf {
    let draft = pool.join("work").join(draft);
    fs::create_dir_all(draft.join("data/dir")).unwrap();
    fs::write(draft.join("pause.json"), serde_json::to_vec(record).unwrap()).unwrap();
    draft
}

fn open_pool(path: &Path) -> (Pool, Arc<OpenPool>) {
    let settings = PoolSettings::new("p".parse().unwrap(), path.to_owned());
    let pool = Pool::new(settings, Purpose::Serve, Duration::from_secs(1), Duration::from_secs(60));
    let open = pool.get_or_open().unwrap();
    (pool, open)
}

#[test]
fn what_a_killed_process_left_frozen_is_thawed_by_the_next_start_and_by_a_running_one() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(frozen) = Frozen::new() else { return skip("no cgroup can be frozen") };
    drop(open_pool(dir.path()));
    let draft = abandon(dir.path(), "0123456789abcdef", &frozen.record());
    let (_pool, open) = open_pool(dir.path());
    assert!(!frozen.cgroup.is_frozen());
    within_seconds(60, "the draft is removed", || !draft.exists());

    frozen.cgroup.set_frozen(true);
    let draft = abandon(dir.path(), "0123456789abcdef", &frozen.record());
    let entries = open.store.entries_to_remove().unwrap();
    assert!(!frozen.cgroup.is_frozen(), "the listing of a running process");
    assert!(entries.iter().any(|entry| entry.directory == "work/0123456789abcdef"));
    fs::remove_dir_all(draft).unwrap();
}

#[test]
fn a_pause_of_very_many_containers_is_recorded_and_thawed_by_the_next_start() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(frozen) = Frozen::new() else { return skip("no cgroup can be frozen") };
    let mut record = frozen.record();
    let gone = |number: u32| FrozenCgroup {
        path: format!("/kubepods.slice/kubepods-burstable.slice/gone-{number:064}.scope"),
        ..record.cgroups[0].clone()
    };
    let many: Vec<_> = (0..5000).map(gone).collect();
    record.cgroups.splice(0..0, many);
    let (_pool, open) = open_pool(dir.path());
    let draft = open.store.draft().unwrap();
    draft.write_pause(&record).unwrap();
    let written = fs::read(
        fs::read_dir(dir.path().join("work")).unwrap().next().unwrap().unwrap().path().join("pause.json"),
    );
    drop(draft);

    let abandoned = abandon(dir.path(), "0123456789abcdef", &record);
    fs::write(abandoned.join("pause.json"), written.unwrap()).unwrap();
    open.store.sweep().unwrap();
    assert!(!frozen.cgroup.is_frozen() && !abandoned.exists());
}

#[test]
fn a_pause_of_a_process_that_lives_and_one_of_another_host_are_left_alone() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(frozen) = Frozen::new() else { return skip("no cgroup can be frozen") };
    let (_pool, open) = open_pool(dir.path());
    let draft = open.store.draft().unwrap();
    draft.write_pause(&frozen.record()).unwrap();
    // A pause that is tried again is recorded again.
    draft.write_pause(&frozen.record()).unwrap();
    let elsewhere = PauseRecord { boot_id: "7d2c".into(), host: "elsewhere".into(), ..frozen.record() };
    let foreign = abandon(dir.path(), "0123456789abcdef", &elsewhere);
    open.store.sweep().unwrap();
    let entries = open.store.entries_to_remove().unwrap();
    assert!(!entries.iter().any(|entry| entry.directory.starts_with("work/")), "{entries:?}");
    assert!(frozen.cgroup.is_frozen() && foreign.exists());
    drop(draft);

    let record = fs::File::options().write(true).open(foreign.join("pause.json")).unwrap();
    record.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    open.store.sweep().unwrap();
    assert!(frozen.cgroup.is_frozen() && !foreign.exists(), "the other host had its time");
}
