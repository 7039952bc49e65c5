//! Volumes of a pool that several hosts share. Two engines stand for two hosts. They have the same mounts, so a mount is taken
//! away behind the back of its host where the other one must not find it.

use std::fs;
use std::path::{Path, PathBuf};

use orlop::engine::Engine;
use orlop::engine::request::{ConsistencySpec, CreateSnapshot, PoolSettings, Publish, Sharing};
use orlop::error::Kind;
use orlop::mount::{self, MountFlags};
use orlop::volume::{Consistency, VolumeId};

use crate::common::isolation;
use crate::common::pool::{MIB, id, long_waits, request, settings, snapshot_request};
use crate::common::wait::within_seconds;

fn host(node: &str, pool: &Path) -> Engine {
    let settings = PoolSettings { shared: true, node: Some(node.to_owned()), ..settings(pool) };
    let engine = Engine::open(vec![settings], long_waits()).unwrap();
    within_seconds(60, "the pool is available", || engine.pools()[0].unavailable.is_none());
    engine
}

fn publish(id: &VolumeId, target: PathBuf, sharing: Sharing) -> Publish {
    Publish { id: id.clone(), target, flags: MountFlags::default(), sharing, ephemeral: None }
}

fn on_a_pool(test: impl FnOnce(&Path, &Path) + Send) {
    if !isolation::is_root() {
        return;
    }
    isolation::in_own_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("pool");
        fs::create_dir(&pool).unwrap();
        test(&pool, dir.path());
    });
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: orlop::error::Result<T>, node: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::InUse, "{}", error.chain());
    assert!(error.chain().contains(&format!("in use on {node} since ")), "{}", error.chain());
}

#[test]
fn a_volume_that_another_host_uses_is_not_deleted() {
    on_a_pool(|pool, dir| {
        let (a, b) = (host("node-a", pool), host("node-b", pool));
        let id = a.create(&request("v", MIB)).unwrap().id;
        let target = dir.join("t");
        a.publish(&publish(&id, target.clone(), Sharing::ManyTargets)).unwrap();
        mount::detach(&target).unwrap();
        refused(b.delete(&id), "node-a");
        refused(b.remove(&id), "node-a");
        let hosts = b.inspect(&id).unwrap().hosts;
        assert_eq!(hosts.iter().map(|host| host.node.as_str()).collect::<Vec<_>>(), ["node-a"]);
        a.unpublish(&id.to_string(), &target).unwrap();
        within_seconds(60, "the lock is released after the unpublish", || b.delete(&id).is_ok());
    });
}

#[test]
fn a_volume_with_one_target_is_published_on_one_host() {
    on_a_pool(|pool, dir| {
        let (a, b) = (host("node-a", pool), host("node-b", pool));
        let id = a.create(&request("v", MIB)).unwrap().id;
        let (of_a, of_b) = (dir.join("a"), dir.join("b"));
        a.publish(&publish(&id, of_a.clone(), Sharing::OneTarget)).unwrap();
        mount::detach(&of_a).unwrap();
        for sharing in [Sharing::OneTarget, Sharing::ManyTargets] {
            refused(b.publish(&publish(&id, of_b.clone(), sharing)), "node-a");
        }
        a.unpublish(&id.to_string(), &of_a).unwrap();
        let alone = publish(&id, of_b.clone(), Sharing::OneTarget);
        within_seconds(60, "the lock is released after the unpublish", || b.publish(&alone).is_ok());
        mount::detach(&of_b).unwrap();
        refused(a.publish(&publish(&id, of_a, Sharing::ManyTargets)), "node-b");
    });
}

#[test]
fn a_host_takes_the_locks_of_what_it_has_mounted_when_it_starts() {
    on_a_pool(|pool, dir| {
        let (a, b) = (host("node-a", pool), host("node-b", pool));
        for name in ["alone", "many"] {
            a.create(&request(name, MIB)).unwrap();
        }
        let target = |name: &str| dir.join(name);
        a.publish(&publish(&id("alone"), target("alone"), Sharing::OneTarget)).unwrap();
        a.publish(&publish(&id("many"), target("many"), Sharing::ManyTargets)).unwrap();
        drop(a);
        let _a = host("node-a", pool);
        for name in ["alone", "many"] {
            mount::detach(&target(name)).unwrap();
            refused(b.delete(&id(name)), "node-a");
        }
        refused(b.publish(&publish(&id("alone"), target("b"), Sharing::ManyTargets)), "node-a");
        b.publish(&publish(&id("many"), target("b"), Sharing::ManyTargets)).unwrap();
        mount::detach(&target("b")).unwrap();
    });
}

#[test]
fn a_host_that_is_gone_keeps_no_volume() {
    on_a_pool(|pool, dir| {
        let (a, b) = (host("node-a", pool), host("node-b", pool));
        let id = a.create(&request("v", MIB)).unwrap().id;
        a.publish(&publish(&id, dir.join("t"), Sharing::OneTarget)).unwrap();
        mount::detach(&dir.join("t")).unwrap();
        refused(b.delete(&id), "node-a");
        drop(a);
        within_seconds(60, "the locks end with the process", || b.delete(&id).is_ok());
    });
}

#[test]
fn a_process_takes_over_the_locks_of_another_one_of_its_host() {
    on_a_pool(|pool, dir| {
        let b = host("node-b", pool);
        let before = host("node-a", pool);
        let id = before.create(&request("v", MIB)).unwrap().id;
        before.publish(&publish(&id, dir.join("t"), Sharing::OneTarget)).unwrap();
        let _after = host("node-a", pool);
        drop(before);
        let is_alone = || b.inspect(&id).unwrap().hosts.iter().any(|host| host.alone);
        // Much sooner than the minute after which locks are compared with mounts anyway.
        within_seconds(30, "the next process has the lock, still alone", is_alone);
        mount::detach(&dir.join("t")).unwrap();
        refused(b.publish(&publish(&id, dir.join("b"), Sharing::ManyTargets)), "node-a");
    });
}

#[test]
fn a_refused_second_target_keeps_no_other_host_away() {
    on_a_pool(|pool, dir| {
        let (a, b) = (host("node-a", pool), host("node-b", pool));
        let id = a.create(&request("v", MIB)).unwrap().id;
        a.publish(&publish(&id, dir.join("t"), Sharing::ManyTargets)).unwrap();
        let second = a.publish(&publish(&id, dir.join("u"), Sharing::OneTarget)).unwrap_err();
        assert!(second.chain().contains("may have one target only"), "{}", second.chain());
        b.publish(&publish(&id, dir.join("b"), Sharing::ManyTargets)).unwrap();
        mount::detach(&dir.join("t")).unwrap();
        mount::detach(&dir.join("b")).unwrap();
    });
}

#[test]
fn a_consistent_copy_of_a_volume_that_another_host_uses_is_refused() {
    on_a_pool(|pool, dir| {
        let (a, b) = (host("node-a", pool), host("node-b", pool));
        let id = a.create(&request("v", MIB)).unwrap().id;
        let target = dir.join("t");
        a.publish(&publish(&id, target.clone(), Sharing::ManyTargets)).unwrap();
        mount::detach(&target).unwrap();
        let refused = b.create_snapshot(&snapshot_request("s", &id)).unwrap_err();
        assert_eq!(refused.kind(), Kind::InUse, "{}", refused.chain());
        for part in ["consistency: none", "in use on node-a since"] {
            assert!(refused.chain().contains(part), "{}", refused.chain());
        }
        let consistency = ConsistencySpec { consistency: Consistency::None, ..ConsistencySpec::default() };
        let request = CreateSnapshot { consistency, ..snapshot_request("s", &id) };
        assert!(b.create_snapshot(&request).unwrap().ready);
        a.create_snapshot(&snapshot_request("of-a", &id)).unwrap();
        a.unpublish(&id.to_string(), &target).unwrap();
        within_seconds(60, "the lock is released", || {
            b.create_snapshot(&snapshot_request("later", &id)).is_ok()
        });
    });
}

#[test]
fn a_shared_pool_on_a_read_only_filesystem_is_used() {
    on_a_pool(|pool, dir| {
        let id = host("node-a", pool).create(&request("v", MIB)).unwrap().id;
        rustix::mount::mount_bind(pool, pool).unwrap();
        let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(pool, flags, c"").unwrap();
        let a = host("node-a", pool);
        let target = dir.join("t");
        a.publish(&publish(&id, target.clone(), Sharing::ManyTargets)).unwrap();
        assert_eq!(a.list(None, 9).unwrap().items.len(), 1);
        a.unpublish(&id.to_string(), &target).unwrap();
        drop(a);
        isolation::unmount_all(pool);
    });
}
