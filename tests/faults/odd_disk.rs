//! A pool on a filesystem that refuses some renames: directories with different project ids, and a lower layer of an
//! overlay.

use std::path::Path;

use orlop::engine::Engine;
use orlop::error::{Error, Kind};
use orlop::volume::{OnDelete, PolicyChange, SizeRange};

use crate::common::disk::{Disk, run};
use crate::common::isolation::{in_own_mount_namespace, is_root};
use crate::common::pool::{MIB, check, id, names, open, request, snapshot_request};
use crate::common::wait::within_seconds;

/// Sets the project id of a directory, and whether new entries inherit it.
fn set_project(directory: &Path, project: &str, inherit: &str) {
    run("xfs_io", &["-c", &format!("chproj {project}"), "-c", inherit, directory.to_str().unwrap()]);
}

#[track_caller]
fn names_the_project<T: std::fmt::Debug>(answer: Result<T, Error>) {
    let error = answer.unwrap_err();
    assert!(error.kind() == Kind::Unavailable && error.chain().contains("project id"), "{}", error.chain());
}

fn expand(engine: &Engine, name: &str) -> Result<(), Error> {
    engine.expand(&id(name), SizeRange { required: 2 * MIB, limit: 0 }).map(drop)
}

fn modify(engine: &Engine, name: &str) -> Result<(), Error> {
    let change = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
    engine.modify(&id(name), change).map(drop)
}

#[test]
fn a_project_id_that_forbids_a_rename_is_named_and_deleting_works() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 320, &["mkfs.xfs"]);
        let (pool, engine) = (disk.path(), open(disk.path()));
        for name in ["a", "b", "c"] {
            engine.create(&request(name, MIB)).unwrap();
        }
        engine.create_snapshot(&snapshot_request("s", &id("a"))).unwrap();
        set_project(&pool.join("volumes/a"), "42", "chattr +P");
        names_the_project(expand(&engine, "a"));
        names_the_project(modify(&engine, "a"));
        set_project(&pool.join("volumes"), "42", "chattr +P");
        names_the_project(engine.create(&request("d", MIB)));
        set_project(&pool.join("snapshots"), "42", "chattr +P");
        names_the_project(engine.create_snapshot(&snapshot_request("t", &id("a"))));
        set_project(&pool.join("trash"), "43", "chattr +P");
        engine.delete(&id("b")).unwrap();
        engine.delete_snapshot(&id("s")).unwrap();
        within_seconds(60, "they are removed", || {
            names(&pool.join("volumes")).len() == 2 && names(&pool.join("snapshots")).is_empty()
        });
        for directory in ["volumes/a", "volumes", "snapshots", "trash"] {
            set_project(&pool.join(directory), "0", "chattr -P");
        }
        expand(&engine, "a").unwrap();
        modify(&engine, "a").unwrap();
        engine.create(&request("d", MIB)).unwrap();
        engine.create_snapshot(&snapshot_request("t", &id("a"))).unwrap();
        check(&engine, pool);
    });
}

#[test]
fn a_volume_in_a_lower_layer_of_an_overlay_is_deleted() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 64, &["mkfs.ext4"]);
        let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| {
            let path = disk.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        });
        let engine = open(&lower);
        for name in ["a", "b"] {
            engine.create(&request(name, MIB)).unwrap();
            std::fs::write(lower.join("volumes").join(name).join("data/file"), name).unwrap();
        }
        engine.create_snapshot(&snapshot_request("s", &id("a"))).unwrap();
        drop(engine);
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off",
            lower.display(),
            upper.display(),
            work.display()
        );
        run("mount", &["-t", "overlay", "-o", &options, "overlay", merged.to_str().unwrap()]);
        let engine = open(&merged);
        expand(&engine, "b").unwrap();
        engine.delete(&id("a")).unwrap();
        engine.delete_snapshot(&id("s")).unwrap();
        within_seconds(60, "they are removed", || {
            names(&merged.join("volumes")).len() == 1 && names(&merged.join("snapshots")).is_empty()
        });
        engine.create(&request("a", MIB)).unwrap();
        check(&engine, &merged);
        drop(engine);
        run("umount", &["--lazy", merged.to_str().unwrap()]);
    });
}
