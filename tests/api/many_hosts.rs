//! Pools that several hosts use. Two engines stand for two hosts: on a pool with `shared = true` they learn of each other's
//! changes by the pool alone, as on NFS.

use std::fs;
use std::path::Path;
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::PoolSettings;
use orlop::error::Kind;
use orlop::volume::{OnDelete, PolicyChange, SizeRange, Source, VolumeId};

use crate::common::pool::{
    MIB, check, copy_request, id, kind, listed, listed_snapshots, long_waits, memory_dir, names, request,
    settings, snapshot_request,
};

/// A host that serves the shared pool `p` in this directory.
fn host(node: &str, path: &Path) -> Engine {
    let settings = PoolSettings { shared: true, node: Some(node.to_owned()), ..settings(path) };
    Engine::open(vec![settings], long_waits()).unwrap()
}

fn bytes(required: u64) -> SizeRange {
    SizeRange { required, limit: 0 }
}

#[test]
fn each_host_sees_the_changes_of_the_others_at_its_next_call() {
    let dir = memory_dir();
    let (one, other) = (host("node-a", dir.path()), host("node-b", dir.path()));
    let volume = one.create(&request("a", MIB)).unwrap();
    assert_eq!(listed(&other), listed(&one));
    assert_eq!(other.create(&request("a", MIB)).unwrap(), volume, "a retry may reach another host");
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
fn a_host_that_missed_many_changes_sees_them_all() {
    let dir = memory_dir();
    let (one, other) = (host("node-a", dir.path()), host("node-b", dir.path()));
    assert!(listed(&other).is_empty());
    for number in 0..100 {
        one.create(&request(&format!("v{number}"), MIB)).unwrap();
    }
    (0..50).for_each(|number| one.delete(&id(&format!("v{number}"))).unwrap());
    assert_eq!(listed(&other), listed(&one));
    fs::remove_file(dir.path().join("generation")).unwrap();
    one.create(&request("w", MIB)).unwrap();
    assert_eq!(listed(&other).len(), 51, "the changes were announced in a file that is gone");
    check(&other, dir.path());
}

#[test]
fn hosts_together_never_provision_more_than_the_pool_has() {
    let dir = memory_dir();
    let engines: Vec<Engine> = (0..3).map(|number| host(&format!("node-{number}"), dir.path())).collect();
    let limit = engines[0].pools()[0].total;
    let size = limit / 10;
    std::thread::scope(|scope| {
        for (number, engine) in engines.iter().enumerate() {
            scope.spawn(move || {
                for volume in 0..10 {
                    match engine.create(&request(&format!("v{number}-{volume}"), size / 2)) {
                        Ok(created) => drop(engine.expand(&created.id, bytes(size))),
                        Err(error) => assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain()),
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
fn a_host_keeps_deleted_volumes_for_ten_minutes() {
    let dir = memory_dir();
    let engine = host("node-a", dir.path());
    let id: VolumeId = engine.create(&request("a", MIB)).unwrap().id;
    engine.delete(&id).unwrap();
    assert!(engine.wait_for_reaper(Duration::from_secs(60)));
    let trash = names(&dir.path().join("trash"));
    let entry = trash.first().unwrap();
    assert!(entry.contains("+600."), "a host whose orlop is down may still use it: {entry}");
}
