//! A pool on a full filesystem: operations that need space report it and leave nothing behind, and deleting works.

use std::ffi::CStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, PoolSettings};
use orlop::error::{Error, Kind};
use orlop::volume::{OnDelete, PolicyChange, SizeRange, Source};

use crate::common::disk::Disk;
use crate::common::isolation::{in_own_mount_namespace, is_root, on_own_tmpfs};
use crate::common::pool::{
    check, clone_request, contents, copy_request, id, long_waits, names, request, settings, snapshot_request,
};
use crate::common::wait::{StopOnDrop, within_seconds};

/// Runs `test` on a small filesystem in memory, in a mount namespace of its own.
fn on_a_small_disk(options: &CStr, test: impl FnOnce(&Path) + Send) {
    if is_root() {
        on_own_tmpfs(options, test);
    }
}

/// Opens the pool with an overcommit that never refuses anything, so that the filesystem has to.
fn open(pool: &Path) -> Engine {
    let settings = PoolSettings { overcommit_percent: 1000, ..settings(pool) };
    let engine = Engine::open(vec![settings], long_waits()).unwrap();
    within_seconds(180, "the pool is available", || engine.pools()[0].unavailable.is_none());
    engine
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    while file.write_all(&[1]).is_ok() {}
}

fn no_space<T: std::fmt::Debug>(answer: Result<T, Error>, name: &str) {
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain());
    let text = error.chain();
    // The error comes from the filesystem, or from the capacity check, which reads the free space of the filesystem.
    let expected = text.contains("No space left") && text.contains(name)
        || text.contains("pool p is full")
        || text.contains("no free inodes");
    assert!(expected, "{text}");
}

#[test]
fn a_full_filesystem_is_reported_and_can_be_freed() {
    on_a_small_disk(c"size=4m,mode=755", |pool| {
        let engine = open(pool);
        for name in ["a", "b"] {
            engine.create(&request(name, 0)).unwrap();
            fs::write(pool.join("volumes").join(name).join("data/file"), vec![7; 100_000]).unwrap();
        }
        engine.create_snapshot(&snapshot_request("s", &id("a"))).unwrap();
        fill(&pool.join("volumes/b/data/fill"));
        let before = contents(pool);
        for _ in 0..3 {
            no_space(engine.create(&request("new", 0)), "new");
            no_space(engine.create(&clone_request("new", &id("a"))), "new");
            no_space(engine.create(&copy_request("new", Source::Snapshot(id("s")))), "new");
            no_space(engine.create_snapshot(&snapshot_request("t", &id("a"))), "t");
            no_space(engine.expand(&id("a"), SizeRange { required: 1, limit: 0 }), "volumes/a");
            let change = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
            no_space(engine.modify(&id("a"), change), "volumes/a");
            assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        }
        assert_eq!(contents(pool), before, "nothing changed");
        assert_eq!(engine.pools()[0].provisioned, 0);
        check(&engine, pool);
        // A full pool can be opened, and space can be freed.
        drop(engine);
        let engine = open(pool);
        check(&engine, pool);
        engine.delete_snapshot(&id("s")).unwrap();
        engine.delete(&id("b")).unwrap();
        assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        assert_eq!(names(&pool.join("trash")).len(), 0);
        engine.create(&clone_request("new", &id("a"))).unwrap();
        engine.expand(&id("a"), SizeRange { required: 1, limit: 0 }).unwrap();
        check(&engine, pool);
    });
}

#[test]
fn a_filesystem_without_inodes_is_reported_and_can_be_freed() {
    on_a_small_disk(c"size=64m,nr_inodes=384,mode=755", |pool| {
        let engine = open(pool);
        engine.create(&request("a", 0)).unwrap();
        engine.create(&request("b", 0)).unwrap();
        let data = pool.join("volumes/b/data");
        let made = (0..384).take_while(|which| fs::write(data.join(which.to_string()), "").is_ok()).count();
        assert!(made > 10);
        let before = contents(pool);
        no_space(engine.create(&request("new", 0)), "new");
        no_space(engine.create_snapshot(&snapshot_request("t", &id("a"))), "t");
        no_space(engine.expand(&id("a"), SizeRange { required: 1, limit: 0 }), "volumes/a");
        // Two inodes are enough for the directory and its data, but not for the record.
        for spare in 1..4 {
            fs::remove_file(data.join(spare.to_string())).unwrap();
            if spare < 3 {
                no_space(engine.create(&request("new", 0)), "new");
            } else {
                engine.create(&request("new", 0)).unwrap();
                engine.delete(&id("new")).unwrap();
            }
            assert!(engine.wait_for_reaper(Duration::from_secs(120)));
            check(&engine, pool);
        }
        assert_eq!(contents(pool).len(), before.len() - 3);
        engine.delete(&id("b")).unwrap();
        assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        engine.create_snapshot(&snapshot_request("t", &id("a"))).unwrap();
        check(&engine, pool);
    });
}

/// Filesystems on which a rename may need a block, and which keep none for it.
const WITHOUT_RESERVE: [&[&str]; 3] = [
    &["mkfs.xfs", "-m", "reflink=0"],
    &["mkfs.ext4", "-m", "0"],
    // A directory of eight entries is full.
    &["mkfs.ext4", "-m", "0", "-b", "1024", "-O", "^dir_index"],
];

fn on_each_disk_without_reserve(test: impl Fn(&Path) + Send + Sync) {
    if !is_root() {
        return;
    }
    for mkfs in WITHOUT_RESERVE {
        in_own_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let disk = Disk::new(&dir.path().join("disk"), 320, mkfs);
            test(disk.path());
        });
    }
}

fn with_policy(name: &str, on_delete: OnDelete) -> CreateVolume {
    let mut request = request(name, 0);
    request.policy.on_delete = on_delete;
    request.policy.trash_for = Duration::from_secs(1000);
    request
}

/// Creates a volume that fills the disk, `count` volumes of each policy, and a snapshot.
fn create_volumes(engine: &Engine, pool: &Path, count: usize) -> Vec<String> {
    engine.create(&request("fill", 0)).unwrap();
    let policies = [OnDelete::Delete, OnDelete::Trash, OnDelete::Retain];
    let names: Vec<String> = (0..3 * count).map(|which| format!("pvc-0123456789abcdef-{which}")).collect();
    for (which, name) in names.iter().enumerate() {
        engine.create(&with_policy(name, policies[which % 3])).unwrap();
        fs::write(pool.join("volumes").join(name).join("data/file"), name).unwrap();
    }
    engine.create_snapshot(&snapshot_request("s", &id(&names[0]))).unwrap();
    names
}

/// Fills the disk again and again, as a program that retries to write its log does.
fn keep_full(mut file: fs::File, stopped: &AtomicBool) {
    while !stopped.load(Ordering::Relaxed) {
        while file.write_all(&[1; 1 << 16]).is_ok() {}
        while file.write_all(&[1; 512]).is_ok() {}
    }
}

#[test]
fn a_full_disk_can_be_emptied_while_a_tenant_keeps_it_full() {
    on_each_disk_without_reserve(|pool| {
        let engine = open(pool);
        let names = create_volumes(&engine, pool, 20);
        let again = fs::File::create(pool.join("volumes/fill/data/again")).unwrap();
        fill(&pool.join("volumes/fill/data/fill"));
        rustix::fs::sync();
        let stopped = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stopped);
            scope.spawn(|| keep_full(again, &stopped));
            for name in &names {
                engine.delete(&id(name)).unwrap();
                engine.delete(&id(name)).unwrap();
                assert_eq!(engine.get(&id(name)).unwrap_err().kind(), Kind::NotFound);
            }
            engine.delete_snapshot(&id("s")).unwrap();
        });
        let listed = engine.list(None, 100).unwrap().items;
        assert_eq!(listed.iter().map(|volume| volume.id.clone()).collect::<Vec<_>>(), [id("fill")]);
        engine.delete(&id("fill")).unwrap();
        within_seconds(180, "the disk is empty", || engine.capacity(None).unwrap().available > 100 << 20);
        // What is kept is in the trash as soon as there is space, at the latest after a minute.
        drop(engine);
        let engine = open(pool);
        // An entry gets its usual mode when its move survives a power failure.
        let is_private = |entry: String| {
            let stat = fs::metadata(pool.join("trash").join(entry));
            stat.is_ok_and(|stat| stat.permissions().mode() & 0o7777 == 0o700)
        };
        within_seconds(180, "volumes/ and trash/ hold what they should", || {
            names_in(pool, "volumes") + names_in(pool, "snapshots") == 0
                && names_in(pool, "trash") == 40
                && crate::common::pool::names(&pool.join("trash")).into_iter().all(is_private)
        });
        for name in names {
            engine.create(&request(&name, 0)).unwrap();
        }
    });
}

fn names_in(pool: &Path, directory: &str) -> usize {
    names(&pool.join(directory)).len()
}

#[test]
fn a_deletion_on_a_full_disk_is_seen_by_all_processes_and_survives_a_restart() {
    on_each_disk_without_reserve(|pool| {
        let engine = open(pool);
        let names = create_volumes(&engine, pool, 20);
        fill(&pool.join("volumes/fill/data/fill"));
        rustix::fs::sync();
        // A command removes nothing.
        let command = Engine::open_for_command(vec![settings(pool)], long_waits()).unwrap();
        for name in &names {
            command.remove(&id(name)).unwrap();
            assert_eq!(command.remove(&id(name)).unwrap_err().kind(), Kind::NotFound);
            assert_eq!(engine.get(&id(name)).unwrap_err().kind(), Kind::NotFound);
        }
        let left = |engine: &Engine| {
            let listed = engine.list(None, 100).unwrap().items;
            listed.into_iter().map(|volume| volume.id).collect::<Vec<_>>()
        };
        assert_eq!(left(&engine), [id("fill")]);
        assert!(names_in(pool, "volumes") > 1, "some are deleted where they are");
        drop((engine, command));
        let engine = open(pool);
        assert_eq!(left(&engine), [id("fill")]);
        fs::remove_file(pool.join("volumes/fill/data/fill")).unwrap();
        drop(engine);
        let engine = open(pool);
        within_seconds(180, "volumes/ and trash/ hold what they should", || {
            names_in(pool, "volumes") == 1 && names_in(pool, "trash") == 40
        });
        check(&engine, pool);
        for name in &names {
            engine.create(&request(name, 0)).unwrap();
        }
    });
}

/// Fills the blocks of a directory with names, and returns their number. Fills the disk meanwhile.
fn fill_directory(directory: &Path, data: &Path) -> usize {
    let filler = data.join("filler");
    fill(&filler);
    let mut made = 0;
    for length in [200, 20, 1] {
        let name = |which: usize| directory.join(format!("{which:0>length$}"));
        while fs::hard_link(&filler, name(made)).is_ok() {
            made += 1;
        }
    }
    // Its blocks are free, and its names stay.
    fs::File::create(&filler).unwrap();
    fs::remove_file(filler).unwrap();
    made
}

#[test]
fn the_remains_of_a_copy_that_finds_the_disk_full_are_removed() {
    on_each_disk_without_reserve(|pool| {
        let engine = open(pool);
        engine.create(&request("a", 0)).unwrap();
        let data = pool.join("volumes/a/data");
        for which in 0..40 {
            fs::create_dir(data.join(which.to_string())).unwrap();
            fs::write(data.join(which.to_string()).join("file"), vec![1; 5 << 20]).unwrap();
        }
        let foreign = fill_directory(&pool.join("trash"), &data);
        for attempt in 0..3 {
            let error = engine.create(&clone_request("b", &id("a"))).unwrap_err();
            assert_eq!(error.kind(), Kind::NoSpace);
            let has_begun = !error.chain().contains("create a directory in work/");
            assert!(has_begun || attempt > 0, "{}", error.chain());
        }
        within_seconds(180, "no remains are left", || {
            names_in(pool, "work") == 0 && names_in(pool, "trash") == foreign
        });
    });
}
