//! What snapshots cost, on filesystems that share blocks and on others. Needs root and loop devices.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use orlop::engine::request::{ConsistencySpec, CreateGroup, CreateSnapshot, CreateVolume};
use orlop::error::{Error, Kind};
use orlop::volume::{Labels, SnapshotCost};

use crate::common::disk::Disk;
use crate::common::isolation::in_own_process;
use crate::common::pool::{MIB, check, id, names, open, request, snapshot_request};

/// Runs a test in a process of its own, with new filesystems.
fn on(mkfs: &[&str], test: &str, body: impl Fn(&Path)) {
    in_own_process(&format!("api::snapshot_cost::{test}"), || {
        for mkfs in mkfs {
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let disk = Disk::new(&dir.path().join("disk"), 512, &[mkfs]);
            let pool = disk.path().join("pool");
            std::fs::create_dir(&pool).unwrap();
            body(&pool);
        }
    });
}

fn cheap() -> ConsistencySpec {
    ConsistencySpec { cost: SnapshotCost::Cheap, ..ConsistencySpec::default() }
}

fn group(name: &str) -> CreateGroup {
    CreateGroup {
        name: name.into(),
        pool: "p".parse().unwrap(),
        source_volumes: [id("v")].into(),
        consistency: cheap(),
        labels: Labels::new(),
    }
}

fn is_refused<T: std::fmt::Debug>(answer: Result<T, Error>) {
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    assert!(error.chain().contains("a snapshot in pool p (backend dir) copies all bytes"), "{error}");
}

#[test]
fn a_snapshot_that_would_copy_all_bytes_is_refused_if_it_must_be_cheap() {
    on(&["mkfs.ext4"], "a_snapshot_that_would_copy_all_bytes_is_refused_if_it_must_be_cheap", |pool| {
        let engine = open(pool);
        engine.create(&request("v", MIB)).unwrap();
        let snapshot = CreateSnapshot { consistency: cheap(), ..snapshot_request("s", &id("v")) };
        is_refused(engine.check_create_snapshot(&snapshot));
        is_refused(engine.create_snapshot(&snapshot));
        is_refused(engine.create_group(&group("g")));
        is_refused(engine.create(&CreateVolume { consistency: cheap(), ..request("w", MIB) }));
        assert!(names(&pool.join("snapshots")).is_empty());
        assert_eq!(engine.inspect(&id("v")).unwrap().has_cheap_snapshots, Some(false));
        check(&engine, pool);
    });
}

fn check_cheap(pool: &Path) {
    let engine = open(pool);
    engine.create(&CreateVolume { consistency: cheap(), ..request("v", MIB) }).unwrap();
    let snapshot = CreateSnapshot { consistency: cheap(), ..snapshot_request("s", &id("v")) };
    engine.create_snapshot(&snapshot).unwrap();
    engine.create_group(&group("g")).unwrap();
    assert_eq!(engine.inspect(&id("v")).unwrap().has_cheap_snapshots, Some(true));
}

#[test]
fn a_full_pool_whose_snapshots_are_cheap_is_reported_as_full() {
    on(&["mkfs.xfs"], "a_full_pool_whose_snapshots_are_cheap_is_reported_as_full", |pool| {
        let engine = open(pool);
        engine.create(&request("v", MIB)).unwrap();
        let mut file = File::create(pool.join("../filler")).unwrap();
        for size in [1 << 20, 4096] {
            let block = vec![1; size];
            while file.write_all(&block).is_ok() {}
        }
        let snapshot = CreateSnapshot { consistency: cheap(), ..snapshot_request("s", &id("v")) };
        let error = engine.check_create_snapshot(&snapshot).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain());
        assert!(
            error.chain().starts_with("snapshotCost=cheap: try whether files of pool p"),
            "{}",
            error.chain()
        );
        assert_eq!(engine.inspect(&id("v")).unwrap().has_cheap_snapshots, None);
        drop(file);
        fs::remove_file(pool.join("../filler")).unwrap();
        engine.check_create_snapshot(&snapshot).unwrap();
    });
}

#[test]
fn snapshots_that_share_blocks_are_cheap() {
    on(&["mkfs.xfs", "mkfs.btrfs"], "snapshots_that_share_blocks_are_cheap", check_cheap);
}
