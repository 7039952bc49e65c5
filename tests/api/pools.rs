//! Pools whose directory is missing, replaced or not theirs alone.
#![expect(clippy::disallowed_methods, reason = "the program under test is a process")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use orlop::csi::proto::{DeleteVolumeRequest, GetCapacityRequest};
use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, OwnerSpec, Tuning};
use orlop::error::Kind;
use orlop::volume::{OnDelete, Policy};
use rustix::fs::XattrFlags;
use tonic::Code;

use crate::common::csi::create_request;
use crate::common::isolation::{is_root, skip};
use crate::common::pool::{
    MIB, clone_request, id, kind, memory_dir, names, open, request, settings, settings_of, snapshot_request,
};
use crate::common::server::{ORLOP, Options, Server};
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

#[test]
fn a_pool_whose_directories_were_replaced_is_unavailable_until_they_are_back() {
    let disk = Disk::new();
    let engine = open(&disk.pool());
    let volume = engine.create(&request("a", MIB)).unwrap();
    for name in ["volumes", "snapshots", "locks"] {
        let (path, away) = (disk.pool().join(name), disk.dir.path().join(name));
        fs::rename(&path, &away).unwrap();
        assert_eq!(kind(engine.delete(&volume.id)), Kind::Unavailable, "{name}");
        let missing = format!("{name}/ is missing: put it back");
        assert!(reason(&engine).contains(&missing), "{}", reason(&engine));
        fs::create_dir(&path).unwrap();
        assert_eq!(kind(engine.create(&request("n", MIB))), Kind::Unavailable, "{name}");
        assert_eq!(kind(engine.delete(&volume.id)), Kind::Unavailable, "{name}");
        let replaced = format!("{name}/ is not the directory that it was");
        assert!(reason(&engine).contains(&replaced), "{}", reason(&engine));
        assert!(names(&path).is_empty());
        fs::remove_dir(&path).unwrap();
        fs::rename(&away, &path).unwrap();
        assert_eq!(engine.get(&volume.id).unwrap(), volume, "{name}");
    }
}

#[test]
fn the_trash_and_the_drafts_of_a_pool_may_be_replaced() {
    let disk = Disk::new();
    let engine = open(&disk.pool());
    for name in ["work", "trash"] {
        let (path, away) = (disk.pool().join(name), disk.dir.path().join(name));
        fs::remove_dir_all(&path).unwrap();
        let policy = Policy { on_delete: OnDelete::Retain, ..Policy::default() };
        let volume = engine.create(&CreateVolume { policy, ..request("a", MIB) }).unwrap();
        fs::rename(&path, &away).unwrap();
        fs::create_dir(&path).unwrap();
        engine.delete(&volume.id).unwrap();
        assert!(names(&away).is_empty(), "nothing is moved into the old {name}/");
    }
    assert_eq!(names(&disk.pool().join("trash")).len(), 1);
}

#[test]
fn a_pool_that_has_lost_its_volumes_is_not_opened() {
    let disk = Disk::new();
    drop(open(&disk.pool()));
    let volumes = disk.pool().join("volumes");
    let start = || Engine::open(vec![settings(&disk.pool())], Tuning::default()).unwrap();
    fs::remove_dir(&volumes).unwrap();
    assert!(reason(&start()).contains("volumes/ is missing"), "{}", reason(&start()));
    std::os::unix::fs::symlink("snapshots", &volumes).unwrap();
    assert!(reason(&start()).contains("put the real one in its place"), "{}", reason(&start()));
    fs::remove_file(&volumes).unwrap();
    for name in ["work", "trash"] {
        fs::remove_dir(disk.pool().join(name)).unwrap();
    }
    fs::remove_dir_all(disk.pool().join("locks")).unwrap();
    assert!(start().pools()[0].unavailable.is_none(), "its creation may have been interrupted");
}

#[test]
fn a_pool_inside_a_volume_of_another_pool_is_refused() {
    let disk = Disk::new();
    open(&disk.pool()).create(&request("a", MIB)).unwrap();
    let inner = disk.pool().join("volumes/a/data/deep/inner");
    fs::create_dir_all(&inner).unwrap();
    let link = disk.dir.path().join("link");
    std::os::unix::fs::symlink(&inner, &link).unwrap();
    for path in [&inner, &link] {
        let engine = Engine::open(vec![settings_of("inner", path)], Tuning::default()).unwrap();
        assert_eq!(kind(engine.create(&request("n", MIB))), Kind::Unavailable);
        assert!(reason(&engine).contains("is inside pool p"), "{}", reason(&engine));
        assert!(names(&inner).is_empty());
    }
    let output = Command::new(ORLOP).args(["check", "--pool"]).arg(format!("i={}", inner.display())).output();
    assert!(String::from_utf8(output.unwrap().stdout).unwrap().contains("is inside pool p"));
}

#[test]
fn a_default_acl_of_the_pools_directory_gives_no_access_to_volumes() {
    if !is_root() {
        return;
    }
    let dir = memory_dir();
    // Version 2; user::rwx, user:1234:rwx, group::rwx, mask::rwx, other::rwx.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, id) in [(0x01, u32::MAX), (0x02, 1234), (0x04, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)] {
        acl.extend([tag, 0, 7, 0]);
        acl.extend(id.to_le_bytes());
    }
    rustix::fs::setxattr(dir.path(), "system.posix_acl_default", &acl, XattrFlags::empty()).unwrap();
    let engine = open(dir.path());
    let owner = OwnerSpec { mode: Some(0o770), ..OwnerSpec::default() };
    let volume = engine.create(&CreateVolume { owner, ..request("a", MIB) }).unwrap();
    engine.create(&clone_request("b", &volume.id)).unwrap();
    engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
    let private = ["volumes", "snapshots", "work", "trash", "locks"].map(|name| (name, 0o700));
    let data = ["volumes/a/data", "volumes/b/data", "snapshots/s/data"].map(|name| (name, 0o770));
    for (name, mode) in private.into_iter().chain(data) {
        let path = dir.path().join(name);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "{name}");
        let mut names = vec![0; 1024];
        let length = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
        assert!(!String::from_utf8_lossy(&names[..length]).contains("posix_acl"), "{name}");
    }
}

#[test]
fn a_volume_with_the_image_of_a_loop_device_is_in_use() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let volume = engine.create(&request("a", MIB)).unwrap();
    let image = dir.path().join("volumes/a/data/disk.img");
    fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    let output = Command::new("losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
    if !output.status.success() {
        return skip("no loop device can be made");
    }
    let device = String::from_utf8(output.stdout).unwrap();
    let deleted = engine.delete(&volume.id);
    assert!(Command::new("losetup").args(["--detach", device.trim()]).status().unwrap().success());
    let error = deleted.unwrap_err();
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.chain().contains("loop device loop"), "{}", error.chain());
    // The kernel detaches it when its last user, such as udev, closes it.
    within_seconds(60, "the volume is deleted", || engine.delete(&volume.id).is_ok());
}
