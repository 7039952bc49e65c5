//! A pool on a btrfs that is full, read-only or gone: changes are refused with the reason, and nothing is lost. Needs root,
//! btrfs-progs, xfsprogs and loop devices.
#![expect(clippy::disallowed_methods, reason = "unmounts filesystems")]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, PoolSettings};
use orlop::error::{Error, Kind};
use orlop::volume::{Enforced, Limit, Policy, SizeRange, VolumeId};
use rustix::io::Errno;

use crate::common::disk::{Disk, QUOTA_GROUPS, SIMPLE_QUOTAS, enable_quotas, run};
use crate::common::isolation::in_own_process;
use crate::common::pool::{
    MIB, check, clone_request, id, long_waits, names, request, settings, settings_of, snapshot_request,
};
use crate::common::wait::within_seconds;

const SIZE: u64 = 16 * MIB;

/// A btrfs with quotas in a file of another filesystem, which can be taken away.
struct Removable {
    below: Disk,
    at: PathBuf,
}

impl Removable {
    fn new(dir: &Path, mkfs: &[&str]) -> Self {
        let below = Disk::new(&dir.join("below"), 2048, &["mkfs.ext4"]);
        let disk = Self { below, at: dir.join("disk") };
        File::create(disk.image()).unwrap().set_len(512 << 20).unwrap();
        run(mkfs[0], &[&mkfs[1..], &["-q", disk.image().to_str().unwrap()]].concat());
        fs::create_dir(&disk.at).unwrap();
        disk.mount();
        assert!([SIMPLE_QUOTAS, QUOTA_GROUPS].iter().any(|kind| enable_quotas(&disk.at, *kind)));
        fs::create_dir(disk.pool()).unwrap();
        disk
    }

    fn image(&self) -> PathBuf {
        self.below.path().join("image")
    }

    fn pool(&self) -> PathBuf {
        self.at.join("pool")
    }

    fn text(&self) -> &str {
        self.at.to_str().unwrap()
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", self.image().to_str().unwrap(), self.text()]);
    }

    fn data(&self, volume: &str) -> PathBuf {
        self.pool().join("volumes").join(volume).join("data")
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let remount =
            || Command::new("mount").args(["-o", &options, self.text()]).status().unwrap().success();
        within_seconds(60, "the filesystem is remounted", remount);
    }

    /// Makes all that follows fail with EIO, as if the disk were gone.
    fn fail(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", self.below.path().to_str().unwrap()]);
    }

    /// Brings the disk back, after all users of the filesystem have ended.
    fn come_back(&self) {
        let is_unmounted = |path: &Path| Command::new("umount").arg(path).status().unwrap().success();
        within_seconds(60, "the filesystem is unmounted", || is_unmounted(&self.at));
        let image =
            run("findmnt", &["--noheadings", "--output", "SOURCE", self.below.path().to_str().unwrap()]);
        let image = run("losetup", &["--noheadings", "--output", "BACK-FILE", &image]);
        within_seconds(60, "the disk is unmounted", || is_unmounted(self.below.path()));
        run("mount", &["-o", "loop", &image, self.below.path().to_str().unwrap()]);
        self.mount();
    }
}

impl Drop for Removable {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", self.text()]).status();
    }
}

fn limited(name: &str, size: u64) -> CreateVolume {
    CreateVolume { policy: Policy { limit: Limit::Hard, ..Policy::default() }, ..request(name, size) }
}

fn larger() -> SizeRange {
    SizeRange { required: 2 * SIZE, limit: 0 }
}

/// Opens the pool with an overcommit that never refuses anything, and a pool `q` on another filesystem.
fn open(disk: &Removable, other: &Path) -> Engine {
    let pool = PoolSettings { overcommit_percent: 1000, ..settings(&disk.pool()) };
    let engine = Engine::open(vec![pool, settings_of("q", other)], long_waits()).unwrap();
    let is_open = || engine.pools().iter().all(|pool| pool.unavailable.is_none());
    within_seconds(60, "the pools are available", is_open);
    engine
}

/// Runs a test on a new btrfs with a pool that has the volumes `a` and `b` and the snapshot `s`.
fn on_removable_disk(test: &str, mkfs: &[&str], body: impl FnOnce(&Removable, &Path, Engine)) {
    in_own_process(&format!("faults::btrfs_disk::{test}"), || {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let other = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Removable::new(dir.path(), mkfs);
        let engine = open(&disk, other.path());
        for volume in ["a", "b"] {
            engine.create(&limited(volume, SIZE)).unwrap();
            fs::write(disk.data(volume).join("kept"), volume).unwrap();
        }
        engine.create_snapshot(&snapshot_request("s", &id("a"))).unwrap();
        run("sync", &["-f", disk.text()]);
        body(&disk, other.path(), engine);
    });
}

/// Checks that the volumes have what they had and their limits, and that everything works again.
fn check_all(disk: &Removable, engine: &Engine, volumes: &[&str]) {
    let pool = disk.pool();
    within_seconds(120, "the kernel has freed what was removed", || {
        run("sync", &["-f", disk.text()]);
        engine.capacity(Some(&"p".parse().unwrap())).unwrap().available > 200 * MIB
    });
    engine.create(&limited("later", SIZE)).unwrap();
    engine.create_snapshot(&snapshot_request("later", &id("a"))).unwrap();
    engine.create(&clone_request("cloned", &id("a"))).unwrap();
    within_seconds(120, "the trash is removed", || {
        assert_eq!(engine.pools()[0].trash_failure, None);
        names(&pool.join("trash")).is_empty()
    });
    let expected: BTreeSet<_> =
        volumes.iter().chain(&["later", "cloned"]).map(|name| (*name).to_owned()).collect();
    assert_eq!(names(&pool.join("volumes")), expected);
    for volume in volumes {
        assert_eq!(fs::read_to_string(disk.data(volume).join("kept")).unwrap(), *volume);
        assert_eq!(engine.get(&id(volume)).unwrap().enforced, Enforced::Bytes);
        assert_eq!(engine.expand(&id(volume), larger()).unwrap().enforced, Enforced::Bytes);
        let (written, errno) = fill(&disk.data(volume).join("file"));
        assert!((2 * SIZE - 2 * MIB..=2 * SIZE).contains(&written), "{volume}: {written} bytes");
        assert_eq!(errno, Errno::DQUOT, "{volume}");
        fs::remove_file(disk.data(volume).join("file")).unwrap();
    }
    assert_eq!(fs::read_to_string(pool.join("snapshots/s/data/kept")).unwrap(), "a");
    run("sync", &["-f", disk.text()]);
}

/// Writes to a file until that fails; returns its size and the errno.
fn fill(file: &Path) -> (u64, Errno) {
    let mut file = match OpenOptions::new().create(true).append(true).open(file) {
        Ok(file) => file,
        Err(error) => return (0, Errno::from_io_error(&error).unwrap()),
    };
    let mut errno = None;
    for length in [1 << 20, 64 << 10, 4 << 10] {
        let block = vec![1; length];
        let failed = loop {
            if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
                break error;
            }
        };
        errno = Errno::from_io_error(&failed);
    }
    (file.metadata().unwrap().len(), errno.unwrap())
}

/// The changes of a pool that make something.
fn changes(engine: &Engine) -> [(&'static str, Result<(), Error>); 4] {
    [
        ("create", engine.create(&limited("new", SIZE)).map(drop)),
        ("clone", engine.create(&clone_request("new-clone", &id("a"))).map(drop)),
        ("snapshot", engine.create_snapshot(&snapshot_request("new", &id("a"))).map(drop)),
        ("expand", engine.expand(&id("a"), larger()).map(drop)),
    ]
}

/// Checks that every change is refused as unavailable, and that the error says what is wrong with which object.
fn refuses(engine: &Engine, words: &[&str]) {
    let delete = ("delete", engine.delete(&id("b")));
    for (call, result) in changes(engine).into_iter().chain([delete]) {
        let error = result.unwrap_err();
        let text = error.chain();
        assert_eq!(error.kind(), Kind::Unavailable, "{call}: {text}");
        assert!(words.iter().any(|word| text.to_lowercase().contains(word)), "{call}: {text}");
        assert!(text.contains("new") || text.contains("p/") || text.contains("pool p"), "{call}: {text}");
    }
}

/// Checks that a full pool refuses changes as such, that a deletion makes room, and that everything works then.
fn a_full_pool_is_told_from_a_full_volume(test: &str, mkfs: &[&str]) {
    on_removable_disk(test, mkfs, |disk, other, engine| {
        let source: VolumeId = "q/source".parse().unwrap();
        engine.create(&CreateVolume { pool: Some("q".parse().unwrap()), ..request("source", 0) }).unwrap();
        fs::write(other.join("volumes/source/data/file"), vec![1; 6 << 20]).unwrap();
        for volume in ["large", "larger"] {
            engine.create(&limited(volume, 300 * MIB)).unwrap();
        }
        let (_, errno) = fill(&disk.data("large").join("file"));
        assert_eq!(errno, Errno::DQUOT, "a program in a volume at its limit");
        let (written, errno) = fill(&disk.data("larger").join("file"));
        assert!(written < 290 * MIB && errno == Errno::NOSPC, "{written} bytes: {errno}");
        let (_, errno) = fill(&disk.data("b").join("file"));
        assert_eq!(errno, Errno::NOSPC, "a program in a volume below its limit");

        let without_size = engine.create(&request("new", 0)).map(drop);
        let copies = [2, 0].map(|factor| {
            let size = SizeRange { required: factor * 8 * MIB, limit: 0 };
            engine.create(&CreateVolume { size, ..clone_request("new-copy", &source) }).map(drop)
        });
        let [copy, other_copy] = copies;
        let more = [("without a size", without_size), ("copy", copy), ("another copy", other_copy)];
        for (call, result) in changes(&engine).into_iter().chain(more) {
            let error = result.unwrap_err();
            let text = error.chain();
            assert_eq!(error.kind(), Kind::NoSpace, "{call}: {text}");
            let is_named =
                text.contains("new") || text.contains("volume p/a") || text.contains("pool p is full");
            let has_cause =
                text.contains("No space left") || text.contains("delete data, grow the filesystem");
            assert!(is_named && has_cause, "{call}: {text}");
        }
        assert_eq!(engine.get(&id("a")).unwrap().size, SIZE);
        for volume in ["large", "larger"] {
            engine.delete(&id(volume)).unwrap();
        }
        let _ = fs::remove_file(disk.data("b").join("file"));
        check_all(disk, &engine, &["a", "b"]);
        let copy = CreateVolume { size: larger(), ..clone_request("copy", &source) };
        assert_eq!(engine.create(&copy).unwrap().enforced, Enforced::Bytes);
        drop(engine);
        check(&crate::common::pool::open(&disk.pool()), &disk.pool());
    });
}

#[test]
fn a_full_btrfs_is_told_from_a_full_volume_and_loses_nothing() {
    let test = "a_full_btrfs_is_told_from_a_full_volume_and_loses_nothing";
    a_full_pool_is_told_from_a_full_volume(test, &["mkfs.btrfs"]);
}

#[test]
fn a_btrfs_without_space_for_metadata_loses_nothing() {
    let test = "a_btrfs_without_space_for_metadata_loses_nothing";
    // Data and metadata are in the same blocks, so even a name needs a free one.
    a_full_pool_is_told_from_a_full_volume(test, &["mkfs.btrfs", "--mixed"]);
}

#[test]
fn a_btrfs_that_becomes_read_only_loses_nothing() {
    let test = "a_btrfs_that_becomes_read_only_loses_nothing";
    on_removable_disk(test, &["mkfs.btrfs"], |disk, other, engine| {
        // The engine keeps files of locks open for writing.
        drop(engine);
        let engine = open(disk, other);
        disk.remount("ro");
        refuses(&engine, &["read-only"]);
        assert_eq!(fs::read_to_string(disk.data("a").join("kept")).unwrap(), "a");
        disk.remount("rw");
        check_all(disk, &engine, &["a", "b"]);
    });
}

#[test]
fn a_disk_that_fails_under_a_btrfs_loses_nothing_that_was_acknowledged() {
    let test = "a_disk_that_fails_under_a_btrfs_loses_nothing_that_was_acknowledged";
    on_removable_disk(test, &["mkfs.btrfs"], |disk, other, engine| {
        engine.create(&limited("c", SIZE)).unwrap();
        let mut kept = File::create(disk.data("c").join("kept")).unwrap();
        kept.write_all(b"c").and_then(|()| kept.sync_all()).unwrap();
        drop(kept);
        engine.create_snapshot(&snapshot_request("t", &id("c"))).unwrap();
        engine.create(&clone_request("d", &id("c"))).unwrap();
        engine.expand(&id("c"), SizeRange { required: SIZE + MIB, limit: 0 }).unwrap();
        engine.delete(&id("d")).unwrap();
        disk.fail();
        refuses(&engine, &["the log of the kernel", "the kernel's log"]);
        drop(engine);
        disk.come_back();
        let engine = open(disk, other);
        assert_eq!(engine.get(&id("c")).unwrap().size, SIZE + MIB, "the expansion");
        assert_eq!(fs::read_to_string(disk.pool().join("snapshots/t/data/kept")).unwrap(), "c");
        check_all(disk, &engine, &["a", "b", "c"]);
        drop(engine);
        check(&crate::common::pool::open(&disk.pool()), &disk.pool());
    });
}
