//! The engine on a real directory: the lifecycle of a volume, refusals, recovery.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, PoolSettings, SnapshotFilter, Tuning};
use orlop::error::Kind;
use orlop::volume::{OnDelete, Policy, PolicyChange, SizeRange, Source};

use crate::common::pool::{
    MIB, clone_request, contents_and_times, copy_request, id, kind, open, request, settings, snapshot_request,
};
use crate::common::wait::StopOnDrop;

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_volume_is_created_copied_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let volume = engine.create(&request("a", MIB)).unwrap();
    assert_eq!(volume.id.to_string(), "p/a");
    assert_eq!(engine.create(&request("a", MIB)).unwrap(), volume, "a retry returns the same volume");
    let data = dir.path().join("volumes/a/data");
    fs::write(data.join("file"), "hello").unwrap();

    let snapshot_of_a = snapshot_request("s", &volume.id);
    let snapshot = engine.create_snapshot(&snapshot_of_a).unwrap();
    assert!(snapshot.ready);
    assert_eq!((snapshot.entries, snapshot.bytes), (Some(1), Some(5)));
    assert_eq!(engine.create_snapshot(&snapshot_of_a).unwrap(), snapshot);
    engine.delete(&volume.id).unwrap();
    engine.delete(&volume.id).unwrap();
    assert_eq!(kind(engine.get(&volume.id)), Kind::NotFound);
    assert_eq!(engine.get_snapshot(&snapshot.id).unwrap(), snapshot, "a snapshot outlives its volume");

    let restored = engine.create(&copy_request("b", Source::Snapshot(snapshot.id.clone()))).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("volumes/b/data/file")).unwrap(), "hello");
    engine.create(&clone_request("c", &restored.id)).unwrap();
    assert_eq!(
        engine.create(&request("c", MIB)).unwrap_err().kind(),
        Kind::Conflict,
        "the same name without the source"
    );
    let names: Vec<_> = engine.list(None, 10).unwrap().items.into_iter().map(|v| v.id.to_string()).collect();
    assert_eq!(names, ["p/b", "p/c"]);
    engine.delete_snapshot(&snapshot.id).unwrap();
    assert!(engine.list_snapshots(&SnapshotFilter::default(), None, 10).unwrap().items.is_empty());
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    assert_eq!((count(&dir.path().join("trash")), count(&dir.path().join("work"))), (0, 0));
}

#[test]
fn volumes_and_their_changes_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let retain = Policy { on_delete: OnDelete::Retain, ..Policy::default() };
    let volume = engine.create(&CreateVolume { policy: retain, ..request("a", MIB) }).unwrap();
    let grown = engine.expand(&volume.id, SizeRange { required: 2 << 20, limit: 0 }).unwrap();
    let change = PolicyChange { trash_for: Some(Duration::from_secs(60)), ..PolicyChange::default() };
    let changed = engine.modify(&volume.id, change).unwrap();
    assert_eq!((grown.size, changed.policy.trash_for.as_secs()), (2 << 20, 60));
    fs::create_dir(dir.path().join("work/abandoned")).unwrap();
    drop(engine);
    let engine = open(dir.path());
    assert_eq!(engine.get(&volume.id).unwrap(), changed);
    assert_eq!(engine.pools()[0].provisioned, 2 << 20);
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    assert_eq!(count(&dir.path().join("work")), 0);
    engine.delete(&volume.id).unwrap();
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    assert_eq!(count(&dir.path().join("trash")), 1, "retained");
}

#[test]
fn a_directory_that_is_not_the_configured_pool_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |settings: PoolSettings, reason: &str| {
        let engine = Engine::open(vec![settings], Tuning::default()).unwrap();
        let error = engine.create(&request("a", MIB)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.chain().contains(reason), "{}", error.chain());
        assert!(engine.pools()[0].unavailable.is_some());
    };
    refused(settings(&dir.path().join("missing")), "missing");
    refused(PoolSettings { mounted: true, ..settings(dir.path()) }, "mounted = true");
    refused(PoolSettings { uuid: Some("x".into()), ..settings(dir.path()) }, "right disk");
    assert_eq!(count(dir.path()), 0, "nothing was created");
    fs::write(dir.path().join("foreign"), "").unwrap();
    refused(settings(dir.path()), "not empty");
    assert_eq!(count(dir.path()), 1);
}

#[test]
fn an_engine_for_a_command_sweeps_nothing_and_makes_no_pool() {
    let dir = tempfile::tempdir().unwrap();
    let for_command = || Engine::open_for_command(vec![settings(dir.path())], Tuning::default()).unwrap();
    let error = for_command().get(&id("a")).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.chain().contains("is not a pool: it has no orlop.json"), "{}", error.chain());
    assert_eq!(count(dir.path()), 0, "an empty directory stays empty");

    let volume = open(dir.path()).create(&request("a", MIB)).unwrap();
    fs::create_dir(dir.path().join("work/draft")).unwrap();
    fs::create_dir(dir.path().join("trash/a.1+0.0123456789abcdef")).unwrap();
    let before = contents_and_times(dir.path());
    let engine = for_command();
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    drop(engine);
    assert_eq!(contents_and_times(dir.path()), before);
}

#[test]
fn a_pool_that_disappears_is_unavailable_until_it_returns() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("pool"), dir.path().join("away"));
    fs::create_dir(&path).unwrap();
    let engine = open(&path);
    let volume = engine.create(&request("a", MIB)).unwrap();
    fs::rename(&path, &away).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("other"), "").unwrap();
    assert_eq!(kind(engine.get(&volume.id)), Kind::Unavailable);
    assert_eq!(kind(engine.delete(&volume.id)), Kind::Unavailable);
    assert_eq!(count(&path), 1, "nothing was created there");
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
}

#[test]
fn a_full_pool_refuses_volumes_and_expansion() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let free = engine.capacity(None).unwrap().available;
    let huge = request("huge", free + (1 << 30));
    assert_eq!(kind(engine.create(&huge)), Kind::NoSpace);
    assert_eq!(engine.pools()[0].provisioned, 0);
    let volume = engine.create(&request("a", MIB)).unwrap();
    let more = SizeRange { required: 1 << 60, limit: 0 };
    assert_eq!(kind(engine.expand(&volume.id, more)), Kind::NoSpace);
    assert_eq!(engine.pools()[0].provisioned, MIB);
    engine.delete(&volume.id).unwrap();
    assert_eq!(engine.pools()[0].provisioned, 0);
}

#[test]
fn an_unmanaged_volume_is_never_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    fs::create_dir_all(dir.path().join("volumes/mine/data")).unwrap();
    let id = id("mine");
    assert!(!engine.get(&id).unwrap().managed);
    engine.delete(&id).unwrap();
    assert!(dir.path().join("volumes/mine/data").is_dir());
}

#[test]
fn pages_are_correct_while_volumes_are_created_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for name in ["a", "b", "c", "d", "e"] {
        engine.create(&request(name, MIB)).unwrap();
    }
    let page = engine.list(None, 2).unwrap();
    let next = page.next.unwrap();
    assert_eq!(next.to_string(), "p/b");
    engine.delete(&next).unwrap();
    engine.create(&request("bb", MIB)).unwrap();
    let rest = engine.list(Some(&next), 10).unwrap();
    let names: Vec<_> = rest.items.iter().map(|v| v.id.name.as_str()).collect();
    assert_eq!((names, rest.next), (vec!["bb", "c", "d", "e"], None));
}

/// The kernel returns EXDEV if a directory moves while a path in it is resolved. That is neither a mount nor a failure.
#[test]
fn reading_a_volume_while_its_directory_moves_finds_it_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let id = engine.create(&request("a", MIB)).unwrap().id;
    let (here, away) = (dir.path().join("volumes/a"), dir.path().join("trash/a"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = StopOnDrop(&done);
            for _ in 0..100_000 {
                fs::rename(&here, &away).unwrap();
                fs::rename(&away, &here).unwrap();
            }
        });
        while !done.load(Ordering::Relaxed) {
            if let Err(error) = engine.get(&id) {
                assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
            }
        }
    });
}
