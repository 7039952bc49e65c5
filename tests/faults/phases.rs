//! Calls and mishaps in each phase of a consistent copy: its live part, the pause, and the end. The pool is on a filesystem
//! that reads slowly, so that each phase lasts for a second or more on every machine. The containers have that filesystem
//! mounted, but write to its files below it, in memory: so they freeze at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::*;
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::hanging_pool::{Fuse, is_installed};
use crate::common::container::{Container, hierarchies};
use crate::common::csi::{MIB, capability, create_request, from_volume, map, size};
use crate::common::isolation::{in_own_process, skip};
use crate::common::pool::{memory_dir, names, read_record};
use crate::common::server::{Server, connect};

/// Bytes of a second. Further passes read the source and the copy.
const READ_RATE: &str = "--read-rate=524288";
/// The data of the volume: files of this many bytes.
const FILES: usize = 16;
const FILE_SIZE: usize = 32 << 10;

/// Appends to two files in turn: the first one has as many lines as the second one, or one more. It starts no processes, and
/// mostly sleeps, so that it can be frozen although a busy machine does not let it run.
const WRITER: &str = "
import time
files = [open(name, 'a', buffering=1) for name in ['first', 'second']]
def write():
    for file in files:
        file.write('x\\n')
write()
print('ready', flush=True)
while True:
    write()
    time.sleep(0.01)
";

const LONG_PAUSE: (&str, &str) = ("maxPause", "60s");
const PATIENCE: Duration = Duration::from_secs(120);

/// A server with one published volume.
struct Slow {
    base: PathBuf,
    server: Server,
    controller: ControllerClient<Channel>,
    volume: String,
    _fuse: Fuse,
}

impl Slow {
    async fn start(base: &Path) -> Self {
        let fuse = Fuse::start(base, &[READ_RATE]);
        let config = base.join("orlop.toml");
        let pool = format!(
            "[[pool]]\nname = \"p\"\npath = \"{}/mount\"\nexclusive = true\nmounted = true\n\
             [tuning]\ncopy-wait = \"0s\"\n",
            base.display()
        );
        fs::write(&config, pool).unwrap();
        let server = Server::spawn_with_config(base, &config);
        let mut controller = ControllerClient::new(connect(&server.socket()).await);
        let request = CreateVolumeRequest { capacity_range: size(64 * MIB, 0), ..create_request("source") };
        let volume = controller.create_volume(request).await.unwrap().into_inner().volume.unwrap().volume_id;
        let slow = Self { base: base.to_owned(), server, controller, volume, _fuse: fuse };
        for number in 0..FILES {
            fs::write(slow.data().join(number.to_string()), vec![b'x'; FILE_SIZE]).unwrap();
        }
        slow.publish("target").await.unwrap();
        slow
    }

    fn data(&self) -> PathBuf {
        self.pool().join("volumes/source/data")
    }

    /// The pool without the slow filesystem.
    fn pool(&self) -> PathBuf {
        self.base.join("back")
    }

    async fn publish(&self, target: &str) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: self.volume.clone(),
            target_path: self.server.target(target),
            volume_capability: Some(capability(Mode::SingleNodeMultiWriter)),
            ..NodePublishVolumeRequest::default()
        };
        self.server.node().await.node_publish_volume(request).await.map(drop)
    }

    fn container(&self) -> Container {
        let program = self.base.join("writer");
        fs::write(
            &program,
            format!("#!/usr/bin/env python3\nimport os\nos.chdir('{}'){WRITER}", self.data().display()),
        )
        .unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let target = PathBuf::from(self.server.target("target"));
        Container::start(&self.server.mounts(), &target, &program).expect("a cgroup can be frozen")
    }

    /// Ends a container, which may be between its two files, and removes what it wrote.
    fn end(&self, container: Container) {
        drop(container);
        for file in ["first", "second"] {
            fs::remove_file(self.data().join(file)).unwrap();
        }
    }

    /// Requests a snapshot, and starts a container in its first pass, or later. Again if the machine was too slow for that.
    async fn start_container_during_the_copy(&mut self, is_late: bool) -> Container {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.request(Copy::Snapshot).await.unwrap();
            let has_begun = || if is_late { self.is_first_pass_over() } else { !self.drafts().is_empty() };
            until("the copy has begun", has_begun).await;
            let container = self.container();
            if !self.pool().join(Copy::Snapshot.path()).exists() {
                return container;
            }
            assert!(Instant::now() < deadline, "the container has started before the end of the copy");
            self.end(container);
            self.delete(Copy::Snapshot).await;
        }
    }

    /// Requests a copy of the volume. Whether it is ready.
    async fn request(&mut self, copy: Copy) -> Result<bool, Status> {
        let answer = match copy {
            Copy::Snapshot => {
                let request = CreateSnapshotRequest {
                    source_volume_id: self.volume.clone(),
                    name: "copy".to_owned(),
                    parameters: map(&[LONG_PAUSE]),
                    ..CreateSnapshotRequest::default()
                };
                let answer = self.controller.create_snapshot(request).await;
                answer.map(|answer| answer.into_inner().snapshot.unwrap().ready_to_use)
            }
            Copy::Clone => {
                let request = CreateVolumeRequest {
                    volume_content_source: from_volume(&self.volume),
                    capacity_range: size(64 * MIB, 0),
                    parameters: map(&[LONG_PAUSE]),
                    ..create_request("copy")
                };
                self.controller.create_volume(request).await.map(|_| true)
            }
        };
        match answer {
            Err(status) if status.code() == Code::Aborted => Ok(false),
            answer => answer,
        }
    }

    /// Requests a copy until it is ready or has failed.
    async fn complete(&mut self, copy: Copy) -> Result<Value, Status> {
        let deadline = Instant::now() + PATIENCE;
        while !self.request(copy).await? {
            assert!(Instant::now() < deadline, "the copy is complete");
            pause_between_polls().await;
        }
        Ok(read_record(&self.pool().join(copy.path()).join(copy.record())))
    }

    async fn delete(&mut self, copy: Copy) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let id = "p/copy".to_owned();
            let answer = match copy {
                Copy::Snapshot => {
                    let request = DeleteSnapshotRequest { snapshot_id: id, ..Default::default() };
                    self.controller.delete_snapshot(request).await.map(drop)
                }
                Copy::Clone => {
                    let request = DeleteVolumeRequest { volume_id: id, ..Default::default() };
                    self.controller.delete_volume(request).await.map(drop)
                }
            };
            match answer {
                Err(status) if status.code() == Code::Aborted && Instant::now() < deadline => {
                    pause_between_polls().await;
                }
                answer => return answer.unwrap(),
            }
        }
    }

    /// The directories of the drafts.
    fn drafts(&self) -> Vec<PathBuf> {
        names(&self.pool().join("work")).iter().map(|draft| self.pool().join("work").join(draft)).collect()
    }

    /// Whether the first pass has copied the data, except perhaps its end.
    fn is_first_pass_over(&self) -> bool {
        let is_copied = |number: usize, draft: &Path| {
            let copy = fs::metadata(draft.join("data").join(number.to_string()));
            copy.is_ok_and(|copy| copy.len() == FILE_SIZE as u64)
        };
        self.drafts().iter().any(|draft| (0..FILES).all(|number| is_copied(number, draft)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Copy {
    Snapshot,
    Clone,
}

impl Copy {
    fn path(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshots/copy",
            Self::Clone => "volumes/copy",
        }
    }

    fn record(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot.json",
            Self::Clone => "volume.json",
        }
    }
}

async fn pause_between_polls() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        pause_between_polls().await;
    }
}

/// Asserts that a copy shows one instant of what the containers write.
#[track_caller]
fn assert_one_instant(copy: &Path) {
    let lines = |name: &str| fs::metadata(copy.join("data").join(name)).map_or(0, |file| file.len() / 2);
    let (first, second) = (lines("first"), lines("second"));
    assert!(second > 0 && (first == second || first == second + 1), "{first} and {second} lines");
}

/// Runs a test with its own mounts, a server and a slow pool.
fn on_a_slow_pool(test: &str, body: impl AsyncFnOnce(Slow)) {
    in_own_process(test, || {
        if !is_installed() {
            return skip("bindfs is not installed");
        }
        if hierarchies().is_empty() {
            return skip("no cgroup can be frozen");
        }
        let dir = memory_dir();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { body(Slow::start(dir.path()).await).await });
    });
}

#[test]
fn a_publish_during_a_pause_succeeds_after_it() {
    on_a_slow_pool("faults::phases::a_publish_during_a_pause_succeeds_after_it", async |mut slow| {
        let container = slow.container();
        assert!(!slow.request(Copy::Snapshot).await.unwrap());
        let deadline = Instant::now() + PATIENCE;
        while !container.is_paused() {
            assert!(Instant::now() < deadline, "the container is paused");
            assert!(!slow.request(Copy::Snapshot).await.unwrap());
            pause_between_polls().await;
        }
        loop {
            match slow.publish("second").await {
                Ok(()) => break,
                // kubelet repeats the call after this answer.
                Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
            }
        }
        assert!(!container.is_paused(), "the volume was published during a pause");
        slow.complete(Copy::Snapshot).await.unwrap();
        assert_one_instant(&slow.pool().join(Copy::Snapshot.path()));
    });
}

/// Deletes a copy when `is_reached` holds of the container and the volume.
async fn cancel(slow: &mut Slow, copy: Copy, phase: &str, is_reached: impl Fn(&Container, &Slow) -> bool) {
    let mut container = slow.container();
    slow.request(copy).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !is_reached(&container, slow) {
        assert!(Instant::now() < deadline, "{copy:?}: the copy reaches its {phase}");
        slow.request(copy).await.unwrap();
        pause_between_polls().await;
    }
    slow.delete(copy).await;
    assert!(container.is_running(), "{copy:?}: the container is paused after a cancellation in its {phase}");
    let left = slow.drafts();
    assert!(left.is_empty(), "{copy:?}: a cancellation in its {phase} has left {left:?}");
    assert!(!slow.pool().join(copy.path()).exists(), "{copy:?}: it exists, although deleted in its {phase}");
    slow.end(container);
}

fn cancel_in_each_phase(test: &str, copy: Copy) {
    on_a_slow_pool(test, async |mut slow| {
        let is_live =
            |container: &Container, slow: &Slow| !slow.drafts().is_empty() && !container.is_paused();
        cancel(&mut slow, copy, "live part", is_live).await;
        cancel(&mut slow, copy, "second pass", |_, slow| slow.is_first_pass_over()).await;
        cancel(&mut slow, copy, "pause", |container, _| container.is_paused()).await;
        let was_paused = std::cell::Cell::new(false);
        let is_thawed = |container: &Container, _: &Slow| {
            was_paused.set(was_paused.get() || container.is_paused());
            was_paused.get() && !container.is_paused()
        };
        cancel(&mut slow, copy, "end", is_thawed).await;
        let container = slow.container();
        slow.complete(copy).await.unwrap();
        assert_one_instant(&slow.pool().join(copy.path()));
        drop(container);
    });
}

#[test]
fn a_snapshot_that_is_deleted_in_any_phase_leaves_nothing_paused() {
    let test = "faults::phases::a_snapshot_that_is_deleted_in_any_phase_leaves_nothing_paused";
    cancel_in_each_phase(test, Copy::Snapshot);
}

#[test]
fn a_clone_that_is_deleted_in_any_phase_leaves_nothing_paused() {
    let test = "faults::phases::a_clone_that_is_deleted_in_any_phase_leaves_nothing_paused";
    cancel_in_each_phase(test, Copy::Clone);
}

#[test]
fn a_container_that_starts_during_the_copy_is_paused() {
    on_a_slow_pool("faults::phases::a_container_that_starts_during_the_copy_is_paused", async |mut slow| {
        for is_late in [false, true] {
            let container = slow.start_container_during_the_copy(is_late).await;
            let record = slow.complete(Copy::Snapshot).await.unwrap();
            assert_one_instant(&slow.pool().join(Copy::Snapshot.path()));
            assert_eq!(record["paused"].as_array().map(Vec::len), Some(1), "late: {is_late}: {record}");
            slow.end(container);
            slow.delete(Copy::Snapshot).await;
        }
    });
}

/// Lets the container continue by hand in this many pauses. Returns the end of the copy.
async fn spoil(slow: &mut Slow, container: &Container, pauses: u32) -> Result<bool, Status> {
    let (mut spoiled, deadline) = (0, Instant::now() + PATIENCE);
    loop {
        if spoiled < pauses && container.is_paused() {
            container.thaw();
            spoiled += 1;
        }
        if slow.request(Copy::Snapshot).await? {
            assert_eq!(spoiled, pauses);
            return Ok(true);
        }
        assert!(Instant::now() < deadline, "the copy ends");
        pause_between_polls().await;
    }
}

#[test]
fn a_copy_whose_pause_is_broken_is_tried_once_more() {
    on_a_slow_pool("faults::phases::a_copy_whose_pause_is_broken_is_tried_once_more", async |mut slow| {
        let mut container = slow.container();
        assert!(spoil(&mut slow, &container, 1).await.unwrap());
        assert_one_instant(&slow.pool().join(Copy::Snapshot.path()));
        slow.delete(Copy::Snapshot).await;
        let refused = spoil(&mut slow, &container, u32::MAX).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Code::FailedPrecondition,
            "csi-snapshotter must not believe that the copy runs"
        );
        assert!(refused.message().contains("volume p/source"), "{refused}");
        assert!(container.is_running() && slow.drafts().is_empty());
    });
}
