//! Volumes of a pool that several hosts share. Two engines stand for two hosts. They have the same mounts, so a mount is taken
//! away behind the back of its host where the other one must not find it.

use std::fs;
use std::path::{Path, PathBuf};

use orlop::engine::Engine;
use orlop::engine::request::{PoolSettings, Publish, Sharing};
use orlop::error::Kind;
use orlop::mount::{self, MountFlags};
use orlop::volume::VolumeId;

use crate::common::isolation;
use crate::common::pool::{MIB, id, long_waits, request, settings};
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
