//! A pool on a full filesystem: operations that need space report it and leave nothing behind, and deleting works.

use std::ffi::CStr;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::PoolSettings;
use orlop::error::{Error, Kind};
use orlop::volume::{OnDelete, PolicyChange, SizeRange, Source};

use crate::common::isolation::{is_root, on_own_tmpfs};
use crate::common::pool::{
    check, clone_request, contents, copy_request, id, long_waits, names, request, settings, snapshot_request,
};
use crate::common::wait::within_seconds;

/// Runs `test` on a small filesystem in memory, in a mount namespace of its own.
fn on_a_small_disk(options: &CStr, test: impl FnOnce(&Path) + Send) {
    if is_root() {
        on_own_tmpfs(options, test);
    }
}

/// Opens the pool with an overcommit that never refuses anything, so that the filesystem has to.
fn open(pool: &Path) -> Engine {
    let settings = PoolSettings { overcommit_percent: 1000, ..settings(pool) };
    let engine = Engine::open(vec![settings], long_waits()).unwrap();
    within_seconds(60, "the pool is available", || engine.pools()[0].unavailable.is_none());
    engine
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    while file.write_all(&[1]).is_ok() {}
}

fn no_space<T: std::fmt::Debug>(answer: Result<T, Error>, name: &str) {
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain());
    let text = error.chain();
    // The error comes from the filesystem, or from the capacity check, which reads the free space of the filesystem.
    let expected = text.contains("No space left") && text.contains(name)
        || text.contains("pool p is full")
        || text.contains("no free inodes");
    assert!(expected, "{text}");
}

#[test]
fn a_full_filesystem_is_reported_and_can_be_freed() {
    on_a_small_disk(c"size=4m,mode=755", |pool| {
        let engine = open(pool);
        for name in ["a", "b"] {
            engine.create(&request(name, 0)).unwrap();
            fs::write(pool.join("volumes").join(name).join("data/file"), vec![7; 100_000]).unwrap();
        }
        engine.create_snapshot(&snapshot_request("s", &id("a"))).unwrap();
        fill(&pool.join("volumes/b/data/fill"));
        let before = contents(pool);
        for _ in 0..3 {
            no_space(engine.create(&request("new", 0)), "new");
            no_space(engine.create(&clone_request("new", &id("a"))), "new");
            no_space(engine.create(&copy_request("new", Source::Snapshot(id("s")))), "new");
            no_space(engine.create_snapshot(&snapshot_request("t", &id("a"))), "t");
            no_space(engine.expand(&id("a"), SizeRange { required: 1, limit: 0 }), "volumes/a");
            let change = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
            no_space(engine.modify(&id("a"), change), "volumes/a");
            assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        }
        assert_eq!(contents(pool), before, "nothing changed");
        assert_eq!(engine.pools()[0].provisioned, 0);
        check(&engine, pool);
        // A full pool can be opened, and space can be freed.
        drop(engine);
        let engine = open(pool);
        check(&engine, pool);
        engine.delete_snapshot(&id("s")).unwrap();
        engine.delete(&id("b")).unwrap();
        assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        assert_eq!(names(&pool.join("trash")).len(), 0);
        engine.create(&clone_request("new", &id("a"))).unwrap();
        engine.expand(&id("a"), SizeRange { required: 1, limit: 0 }).unwrap();
        check(&engine, pool);
    });
}

#[test]
fn a_filesystem_without_inodes_is_reported_and_can_be_freed() {
    on_a_small_disk(c"size=64m,nr_inodes=384,mode=755", |pool| {
        let engine = open(pool);
        engine.create(&request("a", 0)).unwrap();
        engine.create(&request("b", 0)).unwrap();
        let data = pool.join("volumes/b/data");
        let made = (0..384).take_while(|which| fs::write(data.join(which.to_string()), "").is_ok()).count();
        assert!(made > 10);
        let before = contents(pool);
        no_space(engine.create(&request("new", 0)), "new");
        no_space(engine.create_snapshot(&snapshot_request("t", &id("a"))), "t");
        no_space(engine.expand(&id("a"), SizeRange { required: 1, limit: 0 }), "volumes/a");
        // Two inodes are enough for the directory and its data, but not for the record.
        for spare in 1..4 {
            fs::remove_file(data.join(spare.to_string())).unwrap();
            if spare < 3 {
                no_space(engine.create(&request("new", 0)), "new");
            } else {
                engine.create(&request("new", 0)).unwrap();
                engine.delete(&id("new")).unwrap();
            }
            assert!(engine.wait_for_reaper(Duration::from_secs(120)));
            check(&engine, pool);
        }
        assert_eq!(contents(pool).len(), before.len() - 3);
        engine.delete(&id("b")).unwrap();
        assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        engine.create_snapshot(&snapshot_request("t", &id("a"))).unwrap();
        check(&engine, pool);
    });
}
