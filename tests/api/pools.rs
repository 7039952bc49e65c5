//! Pools whose directory is missing, replaced or not theirs alone.

use std::fs;
use std::path::{Path, PathBuf};

use orlop::csi::proto::{DeleteVolumeRequest, GetCapacityRequest};
use orlop::engine::Engine;
use orlop::engine::request::Tuning;
use orlop::error::Kind;
use tonic::Code;

use crate::common::csi::create_request;
use crate::common::pool::{MIB, id, kind, names, open, request, settings};
use crate::common::server::{Options, Server};
use crate::common::wait::within_seconds;

/// A pool that can be moved away, as an unmounted disk is, with an empty directory in its place.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(disk.pool()).unwrap();
        disk
    }

    fn pool(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    fn records(&self) -> PathBuf {
        self.dir.path().join("known-pools")
    }

    fn unmount(&self) {
        fs::rename(self.pool(), self.dir.path().join("away")).unwrap();
        fs::create_dir(self.pool()).unwrap();
    }

    fn mount(&self) {
        fs::remove_dir(self.pool()).expect("nothing was made in the empty directory");
        fs::rename(self.dir.path().join("away"), self.pool()).unwrap();
    }

    /// Starts with the records of this host.
    fn start(&self) -> Engine {
        Engine::open_recorded(vec![settings(&self.pool())], Tuning::default(), &self.records()).unwrap()
    }

    fn record(&self) -> PathBuf {
        let entries: Vec<_> = fs::read_dir(self.records()).unwrap().collect();
        assert_eq!(entries.len(), 1);
        entries[0].as_ref().unwrap().path()
    }
}

/// The reason why the pool of an engine is unavailable.
fn reason(engine: &Engine) -> String {
    engine.pools().remove(0).unavailable.expect("the pool is unavailable")
}

#[test]
fn an_empty_directory_never_replaces_a_pool_that_was_open() {
    let disk = Disk::new();
    let engine = open(&disk.pool());
    let volume = engine.create(&request("a", MIB)).unwrap();
    disk.unmount();
    assert_eq!(kind(engine.delete(&volume.id)), Kind::Unavailable);
    assert_eq!(kind(engine.get(&volume.id)), Kind::Unavailable);
    assert_eq!(kind(engine.create(&request("n", MIB))), Kind::Unavailable);
    assert_eq!(kind(engine.list(None, 10)), Kind::Unavailable);
    assert_eq!(engine.capacity(None).unwrap().available, 0);
    assert_eq!(engine.health(&volume.id, None).unwrap()[0].reason, "PoolUnavailable");
    let reason = reason(&engine);
    assert!(reason.contains("was here: mount its disk") && reason.contains("restart orlop"), "{reason}");
    disk.mount();
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    engine.delete(&volume.id).unwrap();
}

#[test]
fn an_empty_directory_never_replaces_a_pool_of_which_the_host_has_a_record() {
    let disk = Disk::new();
    drop(disk.start());
    disk.unmount();
    let engine = disk.start();
    assert_eq!(kind(engine.delete(&id("a"))), Kind::Unavailable);
    let file = disk.record();
    assert!(reason(&engine).contains(&format!("remove {}", file.display())), "{}", reason(&engine));
    fs::write(&file, "{").unwrap();
    assert!(reason(&engine).contains("a damaged record"), "{}", reason(&engine));
    disk.mount();
    assert!(engine.pools()[0].unavailable.is_none(), "no restart is needed");
    drop(engine);
    disk.unmount();
    assert!(!reason(&disk.start()).contains("damaged"), "the record was written again");
    fs::remove_file(file).unwrap();
    assert!(disk.start().pools()[0].unavailable.is_none(), "the administrator wants a new pool here");
}

#[test]
fn a_new_pool_at_another_path_and_a_pool_that_was_moved_are_used() {
    let disk = Disk::new();
    let volume = disk.start().create(&request("a", MIB)).unwrap();
    let moved = disk.dir.path().join("moved");
    fs::rename(disk.pool(), &moved).unwrap();
    let at = |path: &Path| {
        Engine::open_recorded(vec![settings(path)], Tuning::default(), &disk.records()).unwrap()
    };
    assert_eq!(at(&moved).get(&volume.id).unwrap(), volume);
    let other = disk.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    assert_eq!(kind(at(&other).get(&volume.id)), Kind::NotFound);
}

#[test]
fn a_host_whose_record_cannot_be_written_does_not_use_the_pool() {
    let disk = Disk::new();
    fs::write(disk.records(), "a file").unwrap();
    let engine = disk.start();
    assert!(reason(&engine).contains("known-pools"), "{}", reason(&engine));
    fs::remove_file(disk.records()).unwrap();
    assert!(engine.pools()[0].unavailable.is_none());
}

#[tokio::test]
async fn a_server_that_starts_without_its_disk_waits_for_it() {
    let disk = Disk::new();
    let options = Options { pool: true, own_mounts: false };
    let mut server = Server::spawn(disk.dir.path(), options);
    server.controller().await.create_volume(create_request("a")).await.unwrap();
    assert!(server.terminate().success());
    disk.unmount();
    let server = Server::spawn(disk.dir.path(), options);
    let mut controller = server.controller().await;
    let delete = || DeleteVolumeRequest { volume_id: "p/a".into(), ..DeleteVolumeRequest::default() };
    let capacity = controller.get_capacity(GetCapacityRequest::default()).await.unwrap().into_inner();
    assert_eq!(capacity.available_capacity, 0);
    let status = controller.delete_volume(delete()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
    let status = controller.create_volume(create_request("n")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
    let readyz = server.http("/readyz");
    assert!(readyz.contains("mount its disk"), "{readyz}");
    assert!(server.http("/metrics").contains("orlop_pool_available{pool=\"p\"} 0"));
    disk.mount();
    controller.delete_volume(delete()).await.unwrap();
    within_seconds(60, "the pool is available", || server.http("/readyz").contains("pool p: available"));
    assert!(names(&disk.pool().join("volumes")).is_empty());
}
