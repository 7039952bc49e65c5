//! A pool on a filesystem that refuses some renames: directories with different project ids, and a lower layer of an
//! overlay.

use std::path::Path;

use orlop::check::Verdict;
use orlop::engine::Engine;
use orlop::error::{Error, Kind};
use orlop::volume::{OnDelete, PolicyChange, SizeRange};

use crate::common::disk::{Disk, run};
use crate::common::isolation::{in_own_mount_namespace, is_root};
use crate::common::pool::{MIB, check, id, names, open, request, settings, snapshot_request};
use crate::common::wait::within_seconds;

/// Sets the project id of a directory, and whether new entries inherit it.
fn set_project(directory: &Path, project: &str, inherit: &str) {
    run("xfs_io", &["-c", &format!("chproj {project}"), "-c", inherit, directory.to_str().unwrap()]);
}

/// What `orlop check` finds bad.
fn check_bad(pool: &Path) -> Option<String> {
    let facts = orlop::check::inspect(&[settings(pool)]);
    facts.into_iter().find(|fact| fact.verdict == Verdict::Bad).map(|fact| fact.found)
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
        within_seconds(180, "they are removed", || {
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
fn project_ids_that_forbid_renames_are_found_when_the_pool_is_opened() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 320, &["mkfs.xfs"]);
        let pool = disk.path();
        let engine = open(pool);
        for name in ["a", "b", "c", "d"] {
            engine.create(&request(name, MIB)).unwrap();
        }
        drop(engine);
        for (name, volume) in [("volumes", "a"), ("snapshots", "b"), ("trash", "c"), ("work", "d")] {
            let directory = pool.join(name);
            set_project(&directory, "42", "chattr +P");
            let remedy = format!("chattr -p 0 -P {}", directory.display());
            assert!(check_bad(pool).unwrap().contains(&remedy), "{name}");
            let engine = open(pool);
            let status = engine.pools().remove(0);
            assert!(status.refuses.unwrap().contains(&remedy) && status.allocatable == 0, "{name}");
            assert_eq!(engine.capacity(None).unwrap().available, 0);
            names_the_project(engine.create(&request("new", MIB)));
            names_the_project(engine.create_snapshot(&snapshot_request("s", &id(volume))));
            names_the_project(expand(&engine, volume));
            assert!(names(&pool.join("work")).is_empty(), "refused before anything is made");
            engine.delete(&id(volume)).unwrap();
            run("chattr", &["-p", "0", "-P", directory.to_str().unwrap()]);
            assert_eq!((check_bad(pool), engine.pools().remove(0).refuses), (None, None));
            within_seconds(180, "it is removed", || engine.create(&request(volume, MIB)).is_ok());
        }
        for name in ["volumes", "snapshots", "trash", "work"] {
            set_project(&pool.join(name), "42", "chattr +P");
        }
        assert_eq!(check_bad(pool), None, "one id for all");
        let engine = open(pool);
        engine.create(&request("e", MIB)).unwrap();
        expand(&engine, "e").unwrap();
        engine.create_snapshot(&snapshot_request("s", &id("e"))).unwrap();
        engine.delete(&id("e")).unwrap();
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
        within_seconds(180, "they are removed", || {
            names(&merged.join("volumes")).len() == 1 && names(&merged.join("snapshots")).is_empty()
        });
        engine.create(&request("a", MIB)).unwrap();
        check(&engine, &merged);
        modify(&engine, "b").unwrap();
        engine.delete(&id("b")).unwrap();
        let alarm = || {
            engine.pools().remove(0).trash_failure.is_some_and(|text| text.contains("layers of an overlay"))
        };
        within_seconds(180, "the volume that is retained is named", alarm);
        assert_eq!(std::fs::read(merged.join("volumes/b/data/file")).unwrap(), b"b");
        drop(engine);
        run("umount", &["--lazy", merged.to_str().unwrap()]);
    });
}
