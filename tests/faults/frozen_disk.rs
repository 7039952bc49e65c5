//! A disk that hangs: every change of one pool blocks, and the other pool works as before.
#![expect(clippy::disallowed_methods, reason = "makes, mounts and freezes a filesystem")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::Tuning;
use orlop::volume::{OnDelete, PoolName, Source, VolumeId};

use crate::common::disk::{Disk, run};
use crate::common::isolation::in_own_process;
use crate::common::pool::{copy_request, memory_dir, names, request, settings_of, snapshot_request};
use crate::common::wait::within_seconds;

/// A filesystem that can be frozen.
struct Freezable(Disk);

impl Freezable {
    /// Blocks every call that changes the filesystem, until the result is dropped.
    fn freeze(&self) -> Frozen<'_> {
        // The calls cannot be interrupted. So the filesystem is thawed even if this process is killed. `read` waits in the
        // shell itself, so that no other process has to be ended.
        let path = self.0.path().to_str().unwrap();
        let thaw = format!("read -t 120; fsfreeze --unfreeze {path}");
        let guard = Command::new("bash").args(["-c", &thaw]).stdin(Stdio::piped()).spawn().unwrap();
        run("fsfreeze", &["--freeze", path]);
        Frozen { path, guard }
    }
}

struct Frozen<'d> {
    path: &'d str,
    guard: Child,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").args(["--unfreeze", self.path]).status();
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

/// Creates a volume with a file, which is kept for a second after its deletion.
fn create(engine: &Engine, pool: &PoolName, path: &Path, name: &str) -> VolumeId {
    let mut request = request(name, 0);
    request.pool = Some(pool.clone());
    request.policy.on_delete = OnDelete::Trash;
    request.policy.trash_for = Duration::from_secs(1);
    let id = engine.create(&request).unwrap().id;
    fs::write(path.join("volumes").join(name).join("data/file"), "x").unwrap();
    id
}

fn removals_and_copies(dir: &Path) {
    let (frozen_path, path) = (dir.join("frozen"), memory_dir());
    let disk = Freezable(Disk::new(&frozen_path, 32, &["mkfs.ext4", "-O", "^has_journal"]));
    let pools = ["frozen", "p"].map(|name| name.parse::<PoolName>().unwrap());
    let settings = vec![settings_of("frozen", &frozen_path), settings_of("p", path.path())];
    let tuning = Tuning { copies: 1, copy_wait: Duration::ZERO, ..Tuning::default() };
    let engine = Engine::open(settings, tuning).unwrap();
    let [source, deleted] = ["a", "b"].map(|name| create(&engine, &pools[0], &frozen_path, name));
    let [own_source, own_deleted] = ["c", "d"].map(|name| create(&engine, &pools[1], path.path(), name));
    let is_ready =
        |name: &str, of: &VolumeId| engine.create_snapshot(&snapshot_request(name, of)).unwrap().ready;
    let copied = || {
        let mut request = copy_request("copy", Source::Volume(source.clone()));
        request.pool = Some(pools[1].clone());
        engine.create(&request).is_ok()
    };

    // Its retention ends while the disk is frozen, and the reaper blocks.
    engine.delete(&deleted).unwrap();
    let frozen = disk.freeze();
    assert!(!is_ready("of-a", &source));
    engine.delete(&own_deleted).unwrap();
    within_seconds(180, "a copy within the other pool is complete", || is_ready("of-c", &own_source));
    within_seconds(180, "a copy from the frozen pool, which can be read, is complete", copied);
    within_seconds(180, "the other pool's trash is removed", || names(&path.path().join("trash")).is_empty());
    assert!(!is_ready("of-a", &source));
    assert_eq!(names(&frozen_path.join("trash")).len(), 1);
    drop(frozen);
    within_seconds(180, "the copy continues", || is_ready("of-a", &source));
    within_seconds(180, "the removal continues", || names(&frozen_path.join("trash")).is_empty());
}

#[test]
fn a_disk_that_hangs_delays_no_removal_and_no_copy_of_another_pool() {
    in_own_process(
        "faults::frozen_disk::a_disk_that_hangs_delays_no_removal_and_no_copy_of_another_pool",
        || {
            let dir = tempfile::tempdir().unwrap();
            removals_and_copies(dir.path());
        },
    );
}
