//! A pool on a filesystem that has become read-only or has no inodes: nothing is created in it, its capacity is 0, its
//! status says why, and its volumes are published.

use std::path::Path;
use std::time::Duration;

use orlop::csi::proto::NodeGetStorageHealthRequest;
use orlop::engine::Engine;
use orlop::engine::request::{Publish, Sharing};
use orlop::error::Kind;
use orlop::mount::MountFlags;
use orlop::volume::SizeRange;

use crate::common::csi::create_request;
use crate::common::disk::Disk;
use crate::common::isolation::{in_own_mount_namespace, is_root};
use crate::common::pool::{MIB, check, id, kind, open, request, snapshot_request};
use crate::common::server::{Options, Server};
use crate::common::wait::within_seconds;

fn on_a_disk(mkfs: &[&str], test: impl FnOnce(&Path, &Disk) + Send) {
    if is_root() {
        in_own_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let disk = Disk::new(&dir.path().join("pool"), 64, mkfs);
            test(dir.path(), &disk);
        });
    }
}

fn create_a(disk: &Disk) {
    open(disk.path()).create(&request("a", MIB)).unwrap();
    std::fs::write(disk.path().join("volumes/a/data/file"), "kept").unwrap();
}

fn is_published_once(engine: &Engine, dir: &Path) {
    let target = dir.join("target");
    let request = Publish {
        id: id("a"),
        target: target.clone(),
        flags: MountFlags::default(),
        sharing: Sharing::ManyTargets,
        ephemeral: None,
    };
    engine.publish(&request).unwrap();
    assert_eq!(std::fs::read(target.join("file")).unwrap(), b"kept");
    engine.unpublish("p/a", &target).unwrap();
}

fn refuses_as_read_only(engine: &Engine, dir: &Path) {
    assert_eq!(engine.capacity(None).unwrap().available, 0);
    assert_eq!(kind(engine.create(&request("b", MIB))), Kind::Unavailable);
    assert_eq!(kind(engine.create(&request("b", 0))), Kind::Unavailable);
    assert_eq!(kind(engine.create_snapshot(&snapshot_request("s", &id("a")))), Kind::Unavailable);
    assert_eq!(kind(engine.expand(&id("a"), SizeRange { required: 2 * MIB, limit: 0 })), Kind::Unavailable);
    assert_eq!(kind(engine.delete(&id("a"))), Kind::Unavailable);
    let status = engine.pools().remove(0);
    assert_eq!((status.unavailable, status.allocatable, status.volumes), (None, 0, 1));
    assert!(status.refuses.unwrap().contains("read-only"));
    let symptoms = engine.health(&id("a"), None).unwrap();
    assert_eq!(symptoms.iter().map(|symptom| symptom.reason.as_ref()).collect::<Vec<_>>(), ["PoolReadOnly"]);
    is_published_once(engine, dir);
}

fn works(engine: &Engine, pool: &Path) {
    engine.create(&request("b", MIB)).unwrap();
    engine.delete(&id("b")).unwrap();
    assert!(engine.wait_for_reaper(Duration::from_secs(60)));
    assert!(engine.capacity(None).unwrap().available > 0);
    assert_eq!(engine.pools()[0].refuses, None);
    check(engine, pool);
}

#[test]
fn a_read_only_filesystem_offers_nothing_until_it_is_writable_again() {
    on_a_disk(&["mkfs.ext4"], |dir, disk| {
        create_a(disk);
        for remount in ["ro", "bind,ro"] {
            let engine = open(disk.path());
            disk.remount(remount);
            refuses_as_read_only(&engine, dir);
            let started_later = open(disk.path());
            refuses_as_read_only(&started_later, dir);
            disk.remount(&remount.replace("ro", "rw"));
            works(&engine, disk.path());
        }
    });
}

#[test]
fn a_filesystem_that_is_read_only_after_an_error_offers_nothing() {
    on_a_disk(&["mkfs.ext4", "-e", "remount-ro"], |dir, disk| {
        create_a(disk);
        let engine = open(disk.path());
        works(&engine, disk.path());
        disk.fail();
        refuses_as_read_only(&engine, dir);
        drop(engine);
        let engine = open(disk.path());
        refuses_as_read_only(&engine, dir);
    });
}

#[test]
fn a_filesystem_without_inodes_offers_nothing() {
    on_a_disk(&["mkfs.ext4", "-N", "400"], |_, disk| {
        let engine = open(disk.path());
        engine.create(&request("a", MIB)).unwrap();
        let data = disk.path().join("volumes/a/data");
        let made =
            (0..400).take_while(|which| std::fs::write(data.join(which.to_string()), "").is_ok()).count();
        assert!(made > 3);
        assert_eq!(engine.capacity(None).unwrap().available, 0);
        let error = engine.create(&request("b", MIB)).unwrap_err();
        assert!(
            error.kind() == Kind::NoSpace && error.chain().contains("no free inodes"),
            "{}",
            error.chain()
        );
        assert!(engine.pools()[0].refuses.as_ref().unwrap().contains("no free inodes"));
        for which in 0..3 {
            std::fs::remove_file(data.join(which.to_string())).unwrap();
        }
        works(&engine, disk.path());
    });
}

#[test]
fn readyz_metrics_and_health_name_a_pool_that_refuses_volumes() {
    on_a_disk(&["mkfs.ext4"], |dir, disk| {
        let server = Server::spawn(dir, Options { pool: true, own_mounts: false });
        within_seconds(180, "the server accepts connections", || server.socket().exists());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let healthy = "orlop_pool_refuses_volumes{pool=\"p\"} 0";
            within_seconds(180, "it is healthy", || server.http("/metrics").contains(healthy));
            disk.remount("ro");
            let readyz = server.http("/readyz");
            assert!(
                readyz.contains("200 OK") && readyz.contains("pool p: available, but refuses new volumes"),
                "{readyz}"
            );
            assert!(server.http("/metrics").contains("orlop_pool_refuses_volumes{pool=\"p\"} 1"));
            let request = NodeGetStorageHealthRequest::default();
            let text = format!("{:?}", server.node().await.node_get_storage_health(request).await.unwrap());
            assert!(text.contains("PoolRefusesVolumes") && text.contains("read-only"), "{text}");
            let create = server.controller().await.create_volume(create_request("v")).await;
            assert_eq!(create.unwrap_err().code(), tonic::Code::ResourceExhausted);
        });
    });
}
