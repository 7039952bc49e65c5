//! Faults under pools with project quotas: a full filesystem, one that is read-only, one that is gone. Each test has a
//! filesystem of its own.
#![expect(clippy::disallowed_methods, reason = "remounts a filesystem")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, PoolSettings};
use orlop::error::{Error, Kind};
use orlop::volume::{Enforced, Limit, Policy, SizeRange};
use rustix::mount::{UnmountFlags, unmount};

use super::quota_pools::{
    as_tenant, data, fill, id_of, limited, new_filesystem, open, patient, project_limits, quota,
    wait_until_reaped,
};
use crate::common::disk::run;
use crate::common::isolation::in_own_process;
use crate::common::pool::{
    MIB, check, clone_request, id, names, open_settings, request, settings, snapshot_request,
};
use crate::common::wait::{sleep_ms, within_seconds};

const SIZE: u64 = 8 * MIB;

/// A filesystem with project quotas that can be taken away, and a pool on it.
struct Removable {
    name: &'static str,
    image: String,
    at: PathBuf,
}

impl Removable {
    fn pool(&self) -> PathBuf {
        self.at.join("pool")
    }

    fn text(&self) -> &str {
        self.at.to_str().unwrap()
    }

    fn mount(&self) {
        run("mount", &["-o", "loop,prjquota", &self.image, self.text()]);
    }

    /// Unmounts it, whatever has files open.
    fn detach(&self) {
        unmount(&self.at, UnmountFlags::DETACH).unwrap();
    }
}

/// Runs a test for each filesystem with project quotas, with a new one and a pool that has the volumes `a` and `b`.
fn on_removable_disks(test: &str, body: impl Fn(&Removable, Engine)) {
    in_own_process(&format!("vm::quota_faults::{test}"), || {
        let dir = tempfile::tempdir().unwrap();
        for name in ["xfs", "ext4"] {
            let at = dir.path().join(name);
            let disk = Removable { name, image: new_filesystem(name, &at), at };
            fs::create_dir(disk.pool()).unwrap();
            let engine = open(&disk.pool());
            for volume in ["a", "b"] {
                engine.create(&limited(volume, SIZE, 0)).unwrap();
                fs::write(data(&disk.pool(), volume).join("kept"), volume).unwrap();
            }
            run("sync", &["-f", disk.text()]);
            body(&disk, engine);
            let _ = unmount(&disk.at, UnmountFlags::DETACH);
        }
    });
}

/// Checks that the volumes have what they had, with ids and limits of their own, that no other project has limits, and
/// that new volumes are made.
fn check_all(disk: &Removable, engine: &Engine, volumes: &[&str]) {
    let pool = disk.pool();
    engine.create(&request("later", SIZE)).unwrap();
    wait_until_reaped(engine, &pool);
    check(engine, &pool);
    let ids: BTreeSet<_> = names(&pool.join("volumes")).iter().map(|volume| id_of(&pool, volume)).collect();
    assert_eq!(ids.len(), volumes.len() + 1, "{}: ids", disk.name);
    wait_for_limits(&pool, &ids);
    for volume in volumes {
        assert_eq!(fs::read_to_string(data(&pool, volume).join("kept")).unwrap(), *volume, "{}", disk.name);
        assert_eq!(engine.get(&id(volume)).unwrap().enforced, Enforced::Bytes, "{}", disk.name);
        let larger = SizeRange { required: 2 * SIZE, limit: 0 };
        assert_eq!(engine.expand(&id(volume), larger).unwrap().enforced, Enforced::Bytes);
        let written = fill(&data(&pool, volume).join("file"));
        assert!((2 * SIZE - MIB..=2 * SIZE).contains(&written), "{}: {written} bytes", disk.name);
    }
}

/// Waits until these projects, and no others, have limits: what was removed leaves none.
fn wait_for_limits(pool: &Path, ids: &BTreeSet<u32>) {
    let has = || project_limits(pool);
    let deadline = Instant::now() + Duration::from_secs(60);
    while has() != *ids && Instant::now() < deadline {
        sleep_ms(20);
    }
    assert_eq!(has(), *ids, "the projects with limits in {}", pool.display());
}

/// Checks that every change is refused with this kind, and that the error says what is wrong.
fn refuses(engine: &Engine, kind: Kind, words: &str) {
    let larger = SizeRange { required: 2 * SIZE, limit: 0 };
    let calls: [(&str, Result<(), Error>); 5] = [
        ("create", engine.create(&limited("new", SIZE, 0)).map(drop)),
        ("clone", engine.create(&clone_request("new", &id("a"))).map(drop)),
        ("snapshot", engine.create_snapshot(&snapshot_request("new", &id("a"))).map(drop)),
        ("expand", engine.expand(&id("a"), larger).map(drop)),
        ("delete", engine.delete(&id("a"))),
    ];
    for (call, result) in calls {
        let error = result.unwrap_err();
        assert!(
            error.kind() == kind && error.chain().to_lowercase().contains(words),
            "{call}: {:?} {}",
            error.kind(),
            error.chain()
        );
    }
}

/// Checks that a program in a volume below its limit, and what needs more than a few blocks, find no space. What the filesystem
/// still has room for may succeed, as both keep blocks in reserve.
fn a_full_disk_refuses_changes(engine: &Engine, pool: &Path, name: &str) {
    let file = data(pool, "b").join("full");
    let report = as_tenant(&format!("head -c 4M /dev/zero 2>&1 >{} || true", file.display()));
    assert!(report.contains("No space left"), "{name}: {report}");
    assert!(fs::metadata(&file).map_or(0, |stat| stat.len()) < MIB, "{name}");
    let _ = fs::remove_file(&file);
    let larger = SizeRange { required: 2 * SIZE, limit: 0 };
    let calls: [(&str, bool, Result<(), Error>); 4] = [
        ("create", true, engine.create(&limited("new", SIZE, 0)).map(drop)),
        ("create without a size", false, engine.create(&request("new-empty", 0)).map(drop)),
        ("snapshot", true, engine.create_snapshot(&snapshot_request("new", &id("copied"))).map(drop)),
        ("expand", true, engine.expand(&id("a"), larger).map(drop)),
    ];
    for (call, must_fail, result) in calls {
        let Err(error) = result else {
            assert!(!must_fail, "{name}: {call} has succeeded");
            engine.delete(&id("new-empty")).unwrap();
            continue;
        };
        let text = error.chain();
        assert_eq!(error.kind(), Kind::NoSpace, "{name}: {call}: {text}");
        let has_cause = text.contains("No space left") || text.contains("delete data, grow the filesystem");
        assert!(has_cause && (text.contains("new") || text.contains("pool p")), "{name}: {call}: {text}");
    }
    assert_eq!(engine.get(&id("a")).unwrap().size, SIZE, "{name}");
}

#[test]
fn a_full_pool_is_told_from_a_full_volume_and_loses_nothing() {
    on_removable_disks("a_full_pool_is_told_from_a_full_volume_and_loses_nothing", |disk, engine| {
        drop(engine);
        let pool = disk.pool();
        // The volumes may have more than the filesystem.
        let settings = PoolSettings { overcommit_percent: 1000, ..settings(&pool) };
        let engine = open_settings(settings, patient());
        for volume in ["large", "copied"] {
            engine.create(&limited(volume, 300 * MIB, 0)).unwrap();
        }
        run("fallocate", &["-l", "100M", data(&pool, "copied").join("file").to_str().unwrap()]);
        let filler = data(&pool, "large").join("file");
        let fill_up = format!(
            "for size in 64M 16M 4M 1M 64k 4k; do while fallocate -o $(stat -c %s {f}) -l $size {f}; do :; done; done",
            f = filler.display()
        );
        fs::write(&filler, "").unwrap();
        as_tenant(&format!("{{ {fill_up}; }} 2>/dev/null"));
        let used = quota(&pool, id_of(&pool, "large"));
        assert!(used.bytes > 100 * MIB && used.bytes < used.max_bytes, "{}: {used:?}", disk.name);

        let before = project_limits(&pool);
        let copy = CreateVolume {
            policy: Policy { limit: Limit::Hard, ..Policy::default() },
            ..clone_request("new", &id("copied"))
        };
        for _ in 0..3 {
            let error = engine.create(&copy).unwrap_err();
            assert_eq!(error.kind(), Kind::NoSpace, "{}: {}", disk.name, error.chain());
            wait_until_reaped(&engine, &pool);
        }
        a_full_disk_refuses_changes(&engine, &pool, disk.name);
        wait_until_reaped(&engine, &pool);
        wait_for_limits(&pool, &before);
        engine.delete(&id("large")).unwrap();
        engine.delete(&id("copied")).unwrap();
        wait_until_reaped(&engine, &pool);
        check_all(disk, &engine, &["a", "b"]);
    });
}

#[test]
fn a_disk_that_becomes_read_only_loses_nothing() {
    on_removable_disks("a_disk_that_becomes_read_only_loses_nothing", |disk, engine| {
        let remount = |options: &str| {
            let is_remounted = || {
                let options = format!("remount,{options}");
                let flags = ["-o", &options, disk.text()];
                std::process::Command::new("mount").args(flags).status().unwrap().success()
            };
            within_seconds(60, "the filesystem is remounted", is_remounted);
        };
        // The engine keeps files of locks open for writing.
        drop(engine);
        let engine = open(&disk.pool());
        remount("ro");
        refuses(&engine, Kind::Unavailable, "read-only");
        assert_eq!(fs::read_to_string(data(&disk.pool(), "a").join("kept")).unwrap(), "a");
        remount("rw");
        check_all(disk, &engine, &["a", "b"]);
    });
}

#[test]
fn a_disk_that_is_unmounted_and_mounted_again_loses_nothing() {
    on_removable_disks("a_disk_that_is_unmounted_and_mounted_again_loses_nothing", |disk, engine| {
        disk.detach();
        refuses(&engine, Kind::Unavailable, "pool p");
        assert_eq!(names(&disk.at), BTreeSet::new(), "nothing is made at the mount point");
        disk.mount();
        check_all(disk, &engine, &["a", "b"]);
    });
}

#[test]
fn a_disk_that_fails_under_the_pool_loses_nothing_that_was_acknowledged() {
    on_removable_disks(
        "a_disk_that_fails_under_the_pool_loses_nothing_that_was_acknowledged",
        |disk, engine| {
            // All that follows fails with EIO, as if the disk were gone.
            run("xfs_io", &["-x", "-c", "shutdown", disk.text()]);
            refuses(&engine, Kind::Unavailable, "the log of the kernel");
            disk.detach();
            drop(engine);
            disk.mount();
            check_all(disk, &open(&disk.pool()), &["a", "b"]);
        },
    );
}
