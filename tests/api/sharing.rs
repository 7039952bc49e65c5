//! Several processes on one pool, and changes by hand. Two engines stand for two processes: the kernel's locks and events
//! belong to open file descriptions, not to processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, PoolSettings, Tuning};
use orlop::error::Kind;
use orlop::pool::{Pool, Purpose};
use orlop::volume::{OnDelete, Policy, PolicyChange, SizeRange, Source};

use crate::common::isolation::without_inotify;
use crate::common::pool::{
    check, clone_request, copy_request, edit_record, id, kind, listed, listed_snapshots, memory_dir, names,
    open, request, settings, snapshot_request, volume_record,
};
use crate::common::wait::{StopOnDrop, retry_busy, within_seconds};

const MIB: u64 = 1 << 20;

#[test]
fn processes_that_start_together_make_one_pool() {
    for _ in 0..50 {
        let dir = memory_dir();
        let start = Barrier::new(4);
        let open = || {
            let pool = Pool::new(settings(dir.path()), Purpose::Serve, Duration::ZERO, Duration::ZERO);
            start.wait();
            loop {
                match pool.get_or_open() {
                    Err(error) if error.chain().contains("is making it a pool") => {}
                    opened => return opened,
                }
            }
        };
        let uuids: BTreeSet<_> = std::thread::scope(|scope| {
            let opened: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            let pools = opened.into_iter().map(|pool| pool.join().unwrap().unwrap());
            pools.map(|pool| pool.marker.uuid.clone()).collect()
        });
        assert_eq!(uuids.len(), 1, "all use the same marker");
    }
}

fn bytes(required: u64) -> SizeRange {
    SizeRange { required, limit: 0 }
}

#[test]
fn each_process_sees_the_changes_of_the_others_at_its_next_call() {
    let dir = memory_dir();
    let (one, other) = (open(dir.path()), open(dir.path()));
    let volume = one.create(&request("a", MIB)).unwrap();
    assert_eq!(listed(&other), listed(&one));
    assert_eq!(other.create(&request("a", MIB)).unwrap(), volume, "a retry may reach another process");
    other.expand(&volume.id, bytes(3 * MIB)).unwrap();
    assert_eq!(listed(&one)["a"], 3 * MIB);
    let change = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
    one.modify(&volume.id, change).unwrap();
    assert_eq!(other.get(&volume.id).unwrap().policy.on_delete, OnDelete::Retain);
    one.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
    assert_eq!(listed_snapshots(&other).len(), 1);
    other.create(&copy_request("b", Source::Snapshot(id("s")))).unwrap();
    other.delete_snapshot(&id("s")).unwrap();
    other.delete(&volume.id).unwrap();
    assert_eq!(kind(one.get(&volume.id)), Kind::NotFound);
    for engine in [&one, &other] {
        assert_eq!(listed(engine).into_iter().collect::<Vec<_>>(), [("b".to_owned(), 3 * MIB)]);
        assert!(listed_snapshots(engine).is_empty());
        check(engine, dir.path());
    }
}

#[test]
fn a_volume_is_never_seen_without_its_record_while_another_process_creates_it() {
    let dir = memory_dir();
    let (one, other) = (open(dir.path()), open(dir.path()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match other.get(&id("a")) {
                        Ok(found) => assert!(found.managed && found.size == MIB, "{found:?}"),
                        Err(error) => assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain()),
                    }
                }
            });
        }
        for _ in 0..1000 {
            retry_busy(|| one.create(&request("a", MIB))).unwrap();
            retry_busy(|| one.delete(&id("a"))).unwrap();
        }
    });
}

#[test]
fn processes_together_never_provision_more_than_the_pool_has() {
    let dir = memory_dir();
    let engines: Vec<Engine> = (0..4).map(|_| open(dir.path())).collect();
    let limit = engines[0].pools()[0].total;
    let size = limit / 10;
    std::thread::scope(|scope| {
        for (number, engine) in engines.iter().enumerate() {
            scope.spawn(move || {
                for volume in 0..10 {
                    let name = format!("v{number}-{volume}");
                    match engine.create(&request(&name, size / 2)) {
                        Ok(created) => drop(engine.expand(&created.id, bytes(size))),
                        Err(error) => assert_eq!(error.kind(), Kind::NoSpace, "{error}"),
                    }
                }
            });
        }
    });
    let status = engines[0].pools().remove(0);
    assert!(status.provisioned <= limit, "{} of {limit} bytes", status.provisioned);
    assert!(status.provisioned > limit / 2, "the pool is used: {} of {limit} bytes", status.provisioned);
    for engine in &engines {
        check(engine, dir.path());
    }
}

#[test]
fn objects_moved_by_hand_are_seen_by_the_next_call() {
    let dir = memory_dir();
    let engine = open(dir.path());
    let retain = Policy { on_delete: OnDelete::Retain, ..Policy::default() };
    let volume = engine.create(&CreateVolume { policy: retain, ..request("a", MIB) }).unwrap();
    engine.delete(&volume.id).unwrap();
    let trash = names(&dir.path().join("trash")).pop_first().unwrap();
    fs::rename(dir.path().join("trash").join(trash), dir.path().join("volumes/a")).unwrap();
    assert_eq!(listed(&engine)["a"], MIB, "taken out of the trash");
    assert_eq!(engine.pools()[0].provisioned, MIB);
    fs::rename(dir.path().join("volumes/a"), dir.path().join("volumes/b")).unwrap();
    assert_eq!(listed(&engine).into_keys().collect::<Vec<_>>(), ["b"]);
    fs::create_dir_all(dir.path().join("volumes/unmanaged/data")).unwrap();
    assert_eq!(listed(&engine).len(), 2, "a directory made in steps");
    fs::remove_dir_all(dir.path().join("volumes/b")).unwrap();
    assert_eq!(listed(&engine).into_keys().collect::<Vec<_>>(), ["unmanaged"]);
    assert_eq!(engine.pools()[0].provisioned, 0);
}

#[test]
fn a_record_edited_by_hand_is_read_at_each_get() {
    let dir = memory_dir();
    let (engine, other) = (open(dir.path()), open(dir.path()));
    let volume = engine.create(&request("a", MIB)).unwrap();
    edit_record(&volume_record(dir.path(), "a"), |record| record["size"] = (2 * MIB).into());
    assert_eq!(other.get(&volume.id).unwrap().size, 2 * MIB);
    assert_eq!(listed(&other)["a"], 2 * MIB, "the sum has it after the volume was read");
}

#[test]
fn a_copy_in_one_process_protects_its_source_and_its_name_in_the_others() {
    let dir = memory_dir();
    let (one, other) = (open_without_waits(dir.path()), open_without_waits(dir.path()));
    let source = one.create(&request("source", MIB)).unwrap();
    // Enough files that the copy takes a while.
    let data = dir.path().join("volumes/source/data");
    (0..20_000).for_each(|number| fs::write(data.join(number.to_string()), "x").unwrap());
    assert_eq!(kind(one.create(&clone_request("copy", &source.id))), Kind::Busy);
    assert_eq!(one.active_jobs(), 1, "the copy still runs");
    assert_eq!(kind(other.delete(&source.id)), Kind::Busy);
    assert_eq!(kind(other.create(&clone_request("copy", &source.id))), Kind::Busy);
    assert_eq!(kind(other.create(&request("copy", MIB))), Kind::Busy);
    assert_eq!(kind(other.delete(&id("copy"))), Kind::Busy, "only its own process can stop the copy");
    other.expand(&source.id, bytes(2 * MIB)).unwrap();
    one.shutdown();
    drop(one);
    within_seconds(60, "the source is free when the process has ended", || other.delete(&source.id).is_ok());
}

fn open_without_waits(path: &Path) -> Engine {
    let none =
        Tuning { copy_wait: Duration::ZERO, lock_wait: Duration::from_millis(200), ..Tuning::default() };
    Engine::open(vec![settings(path)], none).unwrap()
}

#[test]
fn a_start_removes_abandoned_drafts_and_leaves_those_of_other_processes() {
    let dir = memory_dir();
    let one = open_without_waits(dir.path());
    let source = one.create(&request("source", MIB)).unwrap();
    let data = dir.path().join("volumes/source/data");
    (0..20_000).for_each(|number| fs::write(data.join(number.to_string()), "x").unwrap());
    fs::create_dir_all(dir.path().join("work/0123456789abcdef/data")).unwrap();
    fs::write(dir.path().join("volumes/.source.0123456789abcdef.json"), "{}").unwrap();
    assert_eq!(kind(one.create(&clone_request("copy", &source.id))), Kind::Busy);
    within_seconds(60, "the copy has a draft", || names(&dir.path().join("work")).len() == 2);
    let other = open(dir.path());
    assert_eq!(names(&dir.path().join("work")).len(), 1, "the draft of the running copy");
    assert!(!dir.path().join("volumes/.source.0123456789abcdef.json").exists());
    within_seconds(60, "the copy ends", || one.active_jobs() == 0);
    one.create(&clone_request("copy", &source.id)).unwrap();
    check(&other, dir.path());
}

#[test]
fn a_pool_with_exclusive_set_has_one_process() {
    let dir = memory_dir();
    let exclusive = || {
        let settings = PoolSettings { exclusive: true, ..settings(dir.path()) };
        Engine::open(vec![settings], Tuning::default()).unwrap()
    };
    let first = exclusive();
    first.create(&request("a", MIB)).unwrap();
    let (second, shared) =
        (exclusive(), Engine::open(vec![settings(dir.path())], Tuning::default()).unwrap());
    for engine in [&second, &shared] {
        assert_eq!(kind(engine.create(&request("b", MIB))), Kind::Unavailable);
        assert_eq!(kind(engine.get(&id("a"))), Kind::Unavailable);
    }
    drop(first);
    within_seconds(60, "the lock is free", || shared.get(&id("a")).is_ok());
    assert_eq!(kind(second.get(&id("a"))), Kind::Unavailable, "another process shares the pool");
}

#[test]
fn a_filesystem_that_may_not_exclude_processes_needs_exclusive() {
    let engine = Engine::open(vec![settings(Path::new("/proc/sys"))], Tuning::default()).unwrap();
    let error = engine.create(&request("a", MIB)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.chain().contains("exclusive = true"), "{}", error.chain());
}

#[test]
fn lost_events_cause_everything_to_be_read_again() {
    let dir = memory_dir();
    let engine = open(dir.path());
    engine.create(&request("a", MIB)).unwrap();
    let (here, there) = (dir.path().join("volumes/b"), dir.path().join("volumes/c"));
    fs::create_dir_all(here.join("data")).unwrap();
    let queue: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    for _ in 0..queue / 4 + 1 {
        fs::rename(&here, &there).unwrap();
        fs::rename(&there, &here).unwrap();
    }
    fs::rename(dir.path().join("volumes/a"), dir.path().join("volumes/d")).unwrap();
    assert_eq!(listed(&engine).into_keys().collect::<Vec<_>>(), ["b", "d"]);
    fs::rename(dir.path().join("volumes/d"), dir.path().join("volumes/e")).unwrap();
    assert_eq!(listed(&engine).into_keys().collect::<Vec<_>>(), ["b", "e"], "events work again");
}

#[test]
fn without_inotify_everything_is_read_at_each_use() {
    without_inotify("api::sharing::without_inotify_everything_is_read_at_each_use", || {
        let refused = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC);
        assert_eq!(refused.unwrap_err(), rustix::io::Errno::MFILE);
        let dir = memory_dir();
        let (one, other) = (open(dir.path()), open(dir.path()));
        let volume = one.create(&request("a", MIB)).unwrap();
        assert_eq!(listed(&other)["a"], MIB);
        other.expand(&volume.id, bytes(2 * MIB)).unwrap();
        assert_eq!(one.pools()[0].provisioned, MIB, "a status does not read everything each time");
        assert_eq!(listed(&one)["a"], 2 * MIB);
        other.delete(&volume.id).unwrap();
        assert!(listed(&one).is_empty());
        check(&one, dir.path());
    });
}
