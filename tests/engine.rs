//! The engine on a real directory: a volume's life, refusals, recovery.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "ground/pool.rs"]
mod ground;
#[path = "ground/stop.rs"]
mod stop;

use std::fs;
use std::path::Path;
use std::time::Duration;

use ground::named as settings;
use orlop::engine::Engine;
use orlop::engine::request::{CreateSnapshot, CreateVolume, PoolSettings, SnapshotFilter, Tuning};
use orlop::error::Kind;
use orlop::volume::{OnDelete, Policy, PolicyChange, SizeRange, Source, VolumeId};

fn open(path: &Path) -> Engine {
    Engine::open(vec![settings("p", path)], Tuning::default()).unwrap()
}

fn request(name: &str) -> CreateVolume {
    CreateVolume {
        name: name.into(),
        size: SizeRange { required: 1 << 20, limit: 0 },
        ..CreateVolume::default()
    }
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_volume_lives_is_copied_and_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let volume = engine.create(&request("a")).unwrap();
    assert_eq!(volume.id.to_string(), "p/a");
    assert_eq!(engine.create(&request("a")).unwrap(), volume, "a retry finds it");
    let data = dir.path().join("volumes/a/data");
    fs::write(data.join("file"), "hello").unwrap();

    let cut = CreateSnapshot { name: "s".into(), source_volume: volume.id.clone(), labels: Default::default() };
    let snapshot = engine.create_snapshot(&cut).unwrap();
    assert!(snapshot.ready);
    assert_eq!((snapshot.entries, snapshot.bytes), (1, 5));
    assert_eq!(engine.create_snapshot(&cut).unwrap(), snapshot);
    engine.delete(&volume.id).unwrap();
    engine.delete(&volume.id).unwrap();
    assert_eq!(engine.get(&volume.id).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(engine.get_snapshot(&snapshot.id).unwrap(), snapshot, "a snapshot outlives its volume");

    let restore = CreateVolume { source: Some(Source::Snapshot(snapshot.id.clone())), ..request("b") };
    let restored = engine.create(&restore).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("volumes/b/data/file")).unwrap(), "hello");
    let clone = CreateVolume { source: Some(Source::Volume(restored.id.clone())), ..request("c") };
    engine.create(&clone).unwrap();
    assert_eq!(
        engine.create(&request("c")).unwrap_err().kind(),
        Kind::Conflict,
        "the same name without the source"
    );
    let names: Vec<_> = engine.list(None, 10).unwrap().items.into_iter().map(|v| v.id.to_string()).collect();
    assert_eq!(names, ["p/b", "p/c"]);
    engine.delete_snapshot(&snapshot.id).unwrap();
    assert!(engine.list_snapshots(&SnapshotFilter::default(), None, 10).unwrap().items.is_empty());
    assert!(engine.wait_idle(Duration::from_secs(10)));
    assert_eq!((count(&dir.path().join("trash")), count(&dir.path().join("work"))), (0, 0));
}

#[test]
fn everything_is_there_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let kept = Policy { on_delete: OnDelete::Retain, ..Policy::default() };
    let volume = engine.create(&CreateVolume { policy: kept, ..request("a") }).unwrap();
    let grown = engine.expand(&volume.id, SizeRange { required: 2 << 20, limit: 0 }).unwrap();
    let change = PolicyChange { trash_for: Some(Duration::from_secs(60)), ..PolicyChange::default() };
    let changed = engine.modify(&volume.id, change).unwrap();
    assert_eq!((grown.size, changed.policy.trash_for.as_secs()), (2 << 20, 60));
    fs::create_dir(dir.path().join("work/left")).unwrap();
    drop(engine);
    let engine = open(dir.path());
    assert_eq!(engine.get(&volume.id).unwrap(), changed);
    assert_eq!(engine.pools()[0].provisioned, 2 << 20);
    assert!(engine.wait_idle(Duration::from_secs(10)));
    assert_eq!(count(&dir.path().join("work")), 0);
    engine.delete(&volume.id).unwrap();
    assert!(engine.wait_idle(Duration::from_secs(10)));
    assert_eq!(count(&dir.path().join("trash")), 1, "retained");
}

#[test]
fn a_pool_that_is_not_the_right_directory_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |settings: PoolSettings, why: &str| {
        let engine = Engine::open(vec![settings], Tuning::default()).unwrap();
        let error = engine.create(&request("a")).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.chain().contains(why), "{}", error.chain());
        assert!(engine.pools()[0].unavailable.is_some());
    };
    refused(settings("p", &dir.path().join("missing")), "missing");
    refused(PoolSettings { mounted: true, ..settings("p", dir.path()) }, "mounted = true");
    refused(PoolSettings { uuid: Some("x".into()), ..settings("p", dir.path()) }, "right disk");
    assert_eq!(count(dir.path()), 0, "nothing was made");
    fs::write(dir.path().join("somebody's"), "").unwrap();
    refused(settings("p", dir.path()), "not empty");
    assert_eq!(count(dir.path()), 1);
}

#[test]
fn a_disk_that_vanishes_under_it_is_noticed_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("pool"), dir.path().join("away"));
    fs::create_dir(&path).unwrap();
    let engine = open(&path);
    let volume = engine.create(&request("a")).unwrap();
    fs::rename(&path, &away).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("other"), "").unwrap();
    assert_eq!(engine.get(&volume.id).unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(engine.delete(&volume.id).unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(count(&path), 1, "nothing was made there");
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
}

#[test]
fn two_processes_do_not_share_a_pool() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let second = open(dir.path());
    assert_eq!(second.create(&request("a")).unwrap_err().kind(), Kind::Unavailable);
    drop(first);
    second.create(&request("a")).unwrap();
}

#[test]
fn a_full_pool_says_so_and_counts_right() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let free = engine.capacity(None).unwrap().available;
    let huge = CreateVolume { size: SizeRange { required: free + (1 << 30), limit: 0 }, ..request("huge") };
    assert_eq!(engine.create(&huge).unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(engine.pools()[0].provisioned, 0);
    let volume = engine.create(&request("a")).unwrap();
    let more = SizeRange { required: 1 << 60, limit: 0 };
    assert_eq!(engine.expand(&volume.id, more).unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(engine.pools()[0].provisioned, 1 << 20);
    engine.delete(&volume.id).unwrap();
    assert_eq!(engine.pools()[0].provisioned, 0);
}

#[test]
fn a_directory_put_there_by_hand_is_a_volume_that_is_never_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    fs::create_dir_all(dir.path().join("volumes/mine/data")).unwrap();
    let id: VolumeId = "p/mine".parse().unwrap();
    assert!(!engine.get(&id).unwrap().managed);
    engine.delete(&id).unwrap();
    assert!(dir.path().join("volumes/mine/data").is_dir());
}

#[test]
fn pages_stay_right_while_volumes_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for name in ["a", "b", "c", "d", "e"] {
        engine.create(&request(name)).unwrap();
    }
    let page = engine.list(None, 2).unwrap();
    let next = page.next.unwrap();
    assert_eq!(next.to_string(), "p/b");
    engine.delete(&next).unwrap();
    engine.create(&request("bb")).unwrap();
    let rest = engine.list(Some(&next), 10).unwrap();
    let names: Vec<_> = rest.items.iter().map(|v| v.id.name.as_str()).collect();
    assert_eq!((names, rest.next), (vec!["bb", "c", "d", "e"], None));
}

/// The kernel answers EXDEV when a folder is moved away while a path in it is walked: that is no mount, and no fault.
#[test]
fn a_folder_that_is_moved_while_it_is_looked_at_is_there_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let id = engine.create(&request("a")).unwrap().id;
    let (here, away) = (dir.path().join("volumes/a"), dir.path().join("trash/a"));
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = stop::Stop(&done);
            for _ in 0..100_000 {
                fs::rename(&here, &away).unwrap();
                fs::rename(&away, &here).unwrap();
            }
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            if let Err(error) = engine.get(&id) {
                assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
            }
        }
    });
}
