//! Pools on disks that are unmounted and mounted again.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use orlop::engine::Engine;
use orlop::engine::request::{Publish, Sharing, Tuning};
use orlop::error::Kind;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, unmount};

use crate::common::isolation;
use crate::common::pool::{MIB, clone_request, kind, names, open, request, settings};

/// Runs `test` with the root of a disk, which stays mounted there, and another path at which to mount it.
fn with_a_disk(test: impl FnOnce(&Path, &Path) + Send) {
    if !isolation::is_root() {
        return;
    }
    isolation::in_own_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (disk, path) = (dir.path().join("disk"), dir.path().join("pool"));
        for path in [&disk, &path] {
            fs::create_dir(path).unwrap();
        }
        rustix::mount::mount("tmpfs", &disk, "tmpfs", MountFlags::empty(), None).unwrap();
        test(&disk, &path);
        isolation::unmount_all(&path);
        isolation::unmount_all(&disk);
    });
}

fn unmount_lazily(path: &Path) {
    unmount(path, UnmountFlags::DETACH).unwrap();
}

#[test]
fn the_mount_point_of_a_disk_that_is_unmounted_lazily_never_becomes_a_pool() {
    with_a_disk(|disk, path| {
        mount_bind(disk, path).unwrap();
        let engine = open(path);
        let volume = engine.create(&request("a", MIB)).unwrap();
        unmount_lazily(path);
        assert_eq!(kind(engine.delete(&volume.id)), Kind::Unavailable);
        assert_eq!(kind(engine.create(&request("n", MIB))), Kind::Unavailable);
        assert_eq!(engine.capacity(None).unwrap().available, 0);
        assert!(names(path).is_empty());
        mount_bind(disk, path).unwrap();
        assert_eq!(engine.get(&volume.id).unwrap(), volume);
    });
}

#[test]
fn the_mount_point_of_a_disk_that_was_never_usable_does_not_become_a_pool_either() {
    with_a_disk(|disk, path| {
        mount_bind(disk, path).unwrap();
        fs::write(disk.join("orlop.json"), "{").unwrap();
        let engine = Engine::open(vec![settings(path)], Tuning::default()).unwrap();
        assert!(engine.pools()[0].unavailable.as_ref().unwrap().contains("damaged"));
        unmount_lazily(path);
        let reason = engine.pools().remove(0).unavailable.unwrap();
        assert!(reason.contains("a disk was mounted here: mount its disk"), "{reason}");
        assert!(names(path).is_empty());
        fs::remove_file(disk.join("orlop.json")).unwrap();
        mount_bind(disk, path).unwrap();
        assert!(engine.pools()[0].unavailable.is_none(), "an empty disk becomes a pool");
    });
}

#[test]
fn something_mounted_over_a_volume_or_over_all_is_named_and_the_data_below_is_kept() {
    with_a_disk(|disk, _| {
        let engine = open(disk);
        let volume = engine.create(&request("a", MIB)).unwrap();
        fs::write(disk.join("volumes/a/data/file"), "kept").unwrap();
        for path in ["volumes/a/data", "volumes/a", "volumes"] {
            let path = disk.join(path);
            rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), None).unwrap();
            let error = engine.delete(&volume.id).unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
            assert!(error.chain().contains("something is mounted there: unmount it"), "{}", error.chain());
            let publish = Publish {
                id: volume.id.clone(),
                target: disk.join("target"),
                flags: orlop::mount::MountFlags::default(),
                sharing: Sharing::ManyTargets,
                ephemeral: None,
            };
            assert_eq!(kind(engine.publish(&publish)), Kind::Unavailable);
            assert_eq!(kind(engine.create(&clone_request("c", &volume.id))), Kind::Unavailable);
            let symptom = engine.health(&volume.id, None).unwrap().remove(0);
            assert!(symptom.reason.ends_with("Unavailable"), "{symptom:?}");
            unmount_lazily(&path);
        }
        assert_eq!(fs::read_to_string(disk.join("volumes/a/data/file")).unwrap(), "kept");
        engine.delete(&volume.id).unwrap();
    });
}

#[test]
fn a_volume_with_a_layer_of_an_overlay_is_in_use() {
    with_a_disk(|disk, path| {
        let link = disk.join("link");
        std::os::unix::fs::symlink(disk.join("pool"), &link).unwrap();
        fs::create_dir(disk.join("pool")).unwrap();
        let engine = open(&link);
        let [a, b] = ["a", "ab"].map(|name| engine.create(&request(name, MIB)).unwrap().id);
        for dir in ["lower", "upper", "work"] {
            fs::create_dir(disk.join(dir)).unwrap();
            fs::create_dir(disk.join("pool/volumes/a/data").join(dir)).unwrap();
        }
        mount_bind(disk.join("pool"), path).unwrap();
        let elsewhere = |layer: &str| disk.join(layer);
        for pool in [&disk.join("pool"), &link, path] {
            let inside = |layer: &str| pool.join("volumes/a/data").join(layer);
            for layers in [
                [inside("lower"), elsewhere("upper"), elsewhere("work")],
                [elsewhere("lower"), inside("upper"), inside("work")],
            ] {
                let merged = disk.join("merged");
                fs::create_dir(&merged).unwrap();
                let [lower, upper, work] = layers.each_ref().map(|layer| layer.display());
                let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
                let options = CString::new(options).unwrap();
                rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), &*options).unwrap();
                let error = engine.delete(&a).unwrap_err();
                let text = error.chain();
                assert_eq!(error.kind(), Kind::InUse, "{text}");
                assert!(text.contains(&format!("the overlay at {}", merged.display())), "{text}");
                engine.delete(&b).unwrap();
                engine.create(&request("ab", MIB)).unwrap();
                unmount(&merged, UnmountFlags::empty()).unwrap();
                fs::remove_dir(&merged).unwrap();
            }
        }
        engine.delete(&a).unwrap();
    });
}
