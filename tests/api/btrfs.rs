//! Pools on btrfs. Needs root, btrfs-progs and loop devices.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, Publish, Sharing};
use orlop::error::Kind;
use orlop::mount::MountFlags;
use orlop::volume::{
    Consistency, Enforced, Limit, OnDelete, Policy, PolicyChange, SizeRange, Source, Volume, VolumeId,
};
use rustix::io::Errno;

use crate::common::disk::{Disk, QUOTA_GROUPS, SIMPLE_QUOTAS, enable_quotas, run};
use crate::common::full_volume::expands_under_a_writer;
use crate::common::held::{create_if_told, create_while};
use crate::common::isolation::{in_own_process, skip};
use crate::common::pool::{
    MIB, check, clone_request, contents, copy_request, edit_record, id, is_subvolume, kind, names, open,
    read_record, request, snapshot_record, snapshot_request,
};
use crate::common::wait::within_seconds;

/// Runs a test in a process of its own, with a new btrfs of 1 GiB.
fn on_btrfs(test: &str, body: impl FnOnce(&Path)) {
    in_own_process(&format!("api::btrfs::{test}"), || {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 1024, &["mkfs.btrfs"]);
        body(disk.path());
    });
}

fn data(pool: &Path, volume: &str) -> std::path::PathBuf {
    pool.join("volumes").join(volume).join("data")
}

fn snapshot_data(pool: &Path, snapshot: &str) -> std::path::PathBuf {
    pool.join("snapshots").join(snapshot).join("data")
}

fn limited(name: &str, size: u64, limit: Limit) -> CreateVolume {
    CreateVolume { policy: Policy { limit, ..Policy::default() }, ..request(name, size) }
}

fn of_snapshot(name: &str) -> Source {
    Source::Snapshot(id(name))
}

fn incompressible(length: u32) -> Vec<u8> {
    let byte = |i: u32| {
        let [_, byte, ..] = i.wrapping_mul(2_654_435_761).to_le_bytes();
        byte
    };
    (0..length).map(byte).collect()
}

/// Writes to a new file until the limit; returns the number of bytes that are on the disk.
fn fill(file: &Path) -> u64 {
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    let block = incompressible(128 << 10);
    loop {
        let written = file.write_all(&block).and_then(|()| file.sync_all());
        if let Err(error) = written {
            assert_eq!(error.raw_os_error(), Some(Errno::DQUOT.raw_os_error()), "{error}");
            return file.metadata().unwrap().blocks() * 512;
        }
    }
}

fn wait_until_reaped(engine: &Engine, pool: &Path) {
    within_seconds(120, "the trash is removed", || {
        let failure = engine.pools()[0].trash_failure.clone();
        assert_eq!(failure, None);
        names(&pool.join("trash")).is_empty()
    });
}

#[test]
fn a_new_pool_on_btrfs_keeps_each_volume_in_a_subvolume() {
    on_btrfs("a_new_pool_on_btrfs_keeps_each_volume_in_a_subvolume", |pool| {
        let engine = open(pool);
        engine.create(&request("v", MIB)).unwrap();
        assert_eq!(read_record(&pool.join("orlop.json"))["backend"], "btrfs");
        assert!(is_subvolume(&data(pool, "v")));
        let stat = fs::metadata(data(pool, "v")).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (0, 0, 0o777));
        check(&engine, pool);
        engine.delete(&id("v")).unwrap();
        wait_until_reaped(&engine, pool);
    });
}

#[test]
fn a_pool_of_directories_on_btrfs_stays_one() {
    on_btrfs("a_pool_of_directories_on_btrfs_stays_one", |pool| {
        drop(open(pool));
        edit_record(&pool.join("orlop.json"), |marker| marker["backend"] = "dir".into());
        let engine = open(pool);
        let volume = engine.create(&request("v", MIB)).unwrap();
        assert!(!is_subvolume(&data(pool, "v")));
        engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
        assert!(!is_subvolume(&snapshot_data(pool, "s")));
        assert_eq!(read_record(&snapshot_record(pool, "s"))["entries"], 0);
        check(&engine, pool);
    });
}

#[test]
fn a_snapshot_a_restore_and_a_clone_are_whole_and_independent() {
    on_btrfs("a_snapshot_a_restore_and_a_clone_are_whole_and_independent", |pool| {
        let engine = open(pool);
        let volume = engine.create(&request("v", MIB)).unwrap();
        let at = data(pool, "v");
        fs::create_dir(at.join("directory")).unwrap();
        fs::write(at.join("directory/file"), "unsynced").unwrap();
        fs::hard_link(at.join("directory/file"), at.join("link")).unwrap();
        chown(at.join("link"), Some(1000), Some(1001)).unwrap();
        chown(&at, Some(5), Some(6)).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o2770)).unwrap();
        let expected = contents(&at);

        let snapshot = engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
        assert!(snapshot.ready);
        assert_eq!(snapshot.copied.consistency, Consistency::Crash);
        assert_eq!(contents(&snapshot_data(pool, "s")), expected);
        let refused = fs::write(snapshot_data(pool, "s").join("new"), "x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()));

        let restored = engine.create(&copy_request("r", of_snapshot("s"))).unwrap();
        let cloned = engine.create(&clone_request("c", &volume.id)).unwrap();
        for (name, made) in [("r", restored), ("c", cloned)] {
            assert!(is_subvolume(&data(pool, name)), "{name}");
            assert_eq!(contents(&data(pool, name)), expected, "{name}");
            assert_eq!((made.owner.uid, made.owner.gid, made.owner.mode), (5, 6, 0o2770), "{name}");
            fs::write(data(pool, name).join("directory/file"), "other").unwrap();
        }
        check(&engine, pool);
        engine.delete(&volume.id).unwrap();
        wait_until_reaped(&engine, pool);
        assert_eq!(contents(&snapshot_data(pool, "s")), expected, "it outlives its volume");
        engine.delete_snapshot(&id("s")).unwrap();
        wait_until_reaped(&engine, pool);
        assert_eq!(fs::read(data(pool, "r").join("link")).unwrap(), b"other");
    });
}

#[test]
fn a_volume_that_is_no_subvolume_is_copied_file_by_file() {
    on_btrfs("a_volume_that_is_no_subvolume_is_copied_file_by_file", |pool| {
        let engine = open(pool);
        fs::create_dir_all(data(pool, "mine")).unwrap();
        fs::write(data(pool, "mine").join("file"), "data").unwrap();
        let snapshot = engine.create_snapshot(&snapshot_request("s", &id("mine"))).unwrap();
        assert_eq!((snapshot.entries, snapshot.bytes), (Some(1), Some(4)));
        engine.create(&copy_request("r", of_snapshot("s"))).unwrap();
        assert_eq!(contents(&data(pool, "r")), contents(&data(pool, "mine")));
        check(&engine, pool);
    });
}

#[test]
fn a_snapshot_without_a_pause_has_everything_that_was_synced_before_a_later_write() {
    let test = "a_snapshot_without_a_pause_has_everything_that_was_synced_before_a_later_write";
    on_btrfs(test, |pool| {
        const FILES: u64 = 8;
        let engine = open(pool);
        let volume = engine.create(&request("v", 0)).unwrap();
        let files: Vec<_> =
            (0..FILES).map(|i| File::create(data(pool, "v").join(i.to_string())).unwrap()).collect();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0_u64.. {
                    let file = &files[(n % FILES) as usize];
                    file.write_all_at(&n.to_le_bytes(), 0).and_then(|()| file.sync_data()).unwrap();
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            for i in 0..20 {
                engine.create_snapshot(&snapshot_request(&format!("s{i}"), &volume.id)).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        for i in 0..20 {
            let read = |file: u64| {
                let bytes = fs::read(snapshot_data(pool, &format!("s{i}")).join(file.to_string())).unwrap();
                bytes.try_into().map(u64::from_le_bytes).ok()
            };
            let found: BTreeSet<_> = (0..FILES).filter_map(read).collect();
            let Some(last) = found.last().copied() else { continue };
            let expected: BTreeSet<_> = ((last + 1).saturating_sub(FILES)..=last).collect();
            assert_eq!(found, expected, "snapshot {i}");
        }
    });
}

#[test]
fn subvolumes_of_a_tenant_are_reported_at_the_snapshot_and_removed_with_the_volume() {
    let test = "subvolumes_of_a_tenant_are_reported_at_the_snapshot_and_removed_with_the_volume";
    on_btrfs(test, |pool| {
        let engine = open(pool);
        let volume = engine.create(&request("v", MIB)).unwrap();
        let path = |name: &str| data(pool, "v").join(name).to_str().unwrap().to_owned();
        fs::create_dir(path("deep")).unwrap();
        run("btrfs", &["subvolume", "create", &path("deep/outer")]);
        run("btrfs", &["subvolume", "create", &path("deep/outer/inner")]);
        fs::write(path("deep/outer/inner/file"), "x").unwrap();
        run("btrfs", &["subvolume", "snapshot", "-r", &path("deep/outer/inner"), &path("read-only")]);
        run("btrfs", &["property", "set", "-t", "subvol", &path("deep/outer"), "ro", "true"]);
        let snapshot = engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
        assert_eq!(snapshot.skipped_subvolumes, 2, "those directly in the volume");
        assert_eq!(read_record(&snapshot_record(pool, "s"))["skippedSubvolumes"], 2);
        assert!(names(&snapshot_data(pool, "s").join("deep/outer")).is_empty());
        engine.delete(&volume.id).unwrap();
        engine.delete_snapshot(&id("s")).unwrap();
        wait_until_reaped(&engine, pool);
        let left = run("btrfs", &["subvolume", "list", pool.to_str().unwrap()]);
        assert_eq!(left, "");
    });
}

#[test]
fn a_snapshot_that_a_killed_process_left_in_work_is_removed() {
    on_btrfs("a_snapshot_that_a_killed_process_left_in_work_is_removed", |pool| {
        drop(open(pool));
        let draft = pool.join("work/0123456789abcdef");
        fs::create_dir(&draft).unwrap();
        run("btrfs", &["subvolume", "create", draft.join("source").to_str().unwrap()]);
        fs::write(draft.join("source/file"), "x").unwrap();
        let [source, copy] = ["source", "data"].map(|name| draft.join(name).to_str().unwrap().to_owned());
        run("btrfs", &["subvolume", "snapshot", "-r", &source, &copy]);
        run("btrfs", &["subvolume", "delete", &source]);
        let engine = open(pool);
        wait_until_reaped(&engine, pool);
        assert!(names(&pool.join("work")).is_empty());
    });
}

/// What statistics report of a published volume.
fn used_bytes(engine: &Engine, pool: &Path, volume: &VolumeId) -> u64 {
    let target = pool.with_extension("target");
    let flags = MountFlags::default();
    let (id, sharing) = (volume.clone(), Sharing::ManyTargets);
    engine.publish(&Publish { id, target: target.clone(), flags, sharing, ephemeral: None }).unwrap();
    run("sync", &["-f", pool.to_str().unwrap()]);
    let usage = engine.stats(volume, &target).unwrap();
    engine.unpublish(&volume.to_string(), &target).unwrap();
    assert_eq!(usage.bytes.available, usage.bytes.total - usage.bytes.used.unwrap());
    usage.bytes.used.unwrap()
}

fn limits_hold(pool: &Path, quotas: u64) {
    const SIZE: u64 = 16 * MIB;
    let engine = open(pool);
    let volume = engine.create(&limited("v", SIZE, Limit::Hard)).unwrap();
    assert_eq!(volume.enforced, Enforced::Bytes, "{quotas}");
    let file = data(pool, "v").join("file");
    let written = fill(&file);
    let used = used_bytes(&engine, pool, &volume.id);
    assert!(used >= written && used <= SIZE, "{quotas}: {used} bytes are used, {written} are in the file");
    assert!((SIZE - MIB..=SIZE).contains(&written), "{quotas}: {written} of {SIZE} bytes");

    expands_under_a_writer(&format!("btrfs, quotas {quotas}"), &file, |round| {
        let larger = SizeRange { required: SIZE + u64::from(round) * MIB, limit: 0 };
        engine.expand(&volume.id, larger).unwrap();
    });
    engine.expand(&volume.id, SizeRange { required: 2 * SIZE, limit: 0 }).unwrap();
    let written = fill(&file);
    assert!((2 * SIZE - MIB..=2 * SIZE).contains(&written), "{quotas}: {written} after the expansion");

    engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
    let larger = CreateVolume { source: Some(of_snapshot("s")), ..limited("r", 3 * SIZE, Limit::Hard) };
    let restored = engine.create(&larger).unwrap();
    assert_eq!((restored.size, restored.enforced), (3 * SIZE, Enforced::Bytes), "{quotas}");
    let more = fill(&data(pool, "r").join("more"));
    // Simple quotas charge an extent to the subvolume that wrote it.
    let room = if quotas == SIMPLE_QUOTAS { 3 * SIZE } else { SIZE };
    assert!((room - 2 * MIB..=room).contains(&more), "{quotas}: {more} bytes beside those of the snapshot");

    let change = PolicyChange { limit: Some(Limit::None), ..PolicyChange::default() };
    assert_eq!(engine.modify(&volume.id, change).unwrap().enforced, Enforced::No);
    OpenOptions::new().append(true).open(&file).unwrap().write_all(&vec![1; 1 << 20]).unwrap();
    File::open(&file).unwrap().sync_all().unwrap();
    check(&engine, pool);
}

#[test]
fn quota_groups_enforce_sizes() {
    on_btrfs("quota_groups_enforce_sizes", |pool| {
        assert!(enable_quotas(pool, QUOTA_GROUPS));
        limits_hold(pool, QUOTA_GROUPS);
    });
}

#[test]
fn simple_quotas_enforce_sizes() {
    on_btrfs("simple_quotas_enforce_sizes", |pool| {
        if enable_quotas(pool, SIMPLE_QUOTAS) {
            return limits_hold(pool, SIMPLE_QUOTAS);
        }
        skip("simple quotas of btrfs need Linux 6.7");
    });
}

#[test]
fn a_copy_of_files_ends_at_the_limit_of_the_new_volume() {
    on_btrfs("a_copy_of_files_ends_at_the_limit_of_the_new_volume", |pool| {
        assert!(enable_quotas(pool, QUOTA_GROUPS));
        let engine = open(pool);
        fs::create_dir_all(data(pool, "mine")).unwrap();
        // Less data than the size, and the limit counts more than data. Files of this length share no blocks.
        let contents = incompressible(2000);
        for name in 0..4000 {
            fs::write(data(pool, "mine").join(name.to_string()), &contents).unwrap();
        }
        let clone =
            CreateVolume { source: Some(Source::Volume(id("mine"))), ..limited("c", 8 * MIB, Limit::Hard) };
        let refused = engine.create(&clone).unwrap_err();
        let text = refused.chain();
        assert_eq!(refused.kind(), Kind::OutOfRange, "{text}");
        assert!(text.contains("limit of the new volume") && text.contains("larger size"), "{text}");
        wait_until_reaped(&engine, pool);
        check(&engine, pool);
        let size = SizeRange { required: 16 * MIB, limit: 0 };
        assert_eq!(engine.create(&CreateVolume { size, ..clone }).unwrap().enforced, Enforced::Bytes);
    });
}

#[test]
fn without_quotas_a_hard_limit_is_refused_and_others_are_recorded_as_not_enforced() {
    let test = "without_quotas_a_hard_limit_is_refused_and_others_are_recorded_as_not_enforced";
    on_btrfs(test, |pool| {
        let engine = open(pool);
        let refused = engine.create(&limited("hard", MIB, Limit::Hard)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert!(refused.chain().contains("btrfs quota enable --simple PATH"), "{}", refused.chain());
        let made: Vec<Volume> = [Limit::Auto, Limit::None]
            .into_iter()
            .map(|limit| engine.create(&limited(if limit == Limit::Auto { "a" } else { "n" }, MIB, limit)))
            .map(Result::unwrap)
            .collect();
        assert!(made.iter().all(|volume| volume.enforced == Enforced::No));
        let change = PolicyChange { limit: Some(Limit::Hard), ..PolicyChange::default() };
        assert_eq!(kind(engine.modify(&id("a"), change)), Kind::Unsupported);
        check(&engine, pool);
    });
}

#[test]
fn a_number_of_inodes_that_must_be_enforced_is_refused_on_btrfs_with_the_reason() {
    let test = "a_number_of_inodes_that_must_be_enforced_is_refused_on_btrfs_with_the_reason";
    on_btrfs(test, |pool| {
        assert!(enable_quotas(pool, QUOTA_GROUPS));
        let engine = open(pool);
        let with_inodes = |name, limit| {
            let policy = Policy { limit, inodes: 50, ..Policy::default() };
            engine.create(&CreateVolume { policy, ..request(name, MIB) })
        };
        assert_eq!(with_inodes("a", Limit::Auto).unwrap().enforced, Enforced::Bytes);
        engine.create(&limited("h", MIB, Limit::Hard)).unwrap();
        let inodes = PolicyChange { inodes: Some(50), ..PolicyChange::default() };
        let hard = PolicyChange { limit: Some(Limit::Hard), ..PolicyChange::default() };
        for refused in [
            with_inodes("new", Limit::Hard).unwrap_err(),
            engine.modify(&id("h"), inodes).unwrap_err(),
            engine.modify(&id("a"), hard).unwrap_err(),
        ] {
            let text = refused.chain();
            assert_eq!(refused.kind(), Kind::Unsupported, "{text}");
            assert!(
                text.contains("cannot enforce a number of inodes") && text.contains("leave out inodes"),
                "{text}"
            );
            assert!(!text.contains("quotas are off"), "{text}");
        }
        assert_eq!(names(&pool.join("volumes")).len(), 2);
        check(&engine, pool);
    });
}

#[test]
fn child_process() {
    create_if_told();
}

#[test]
fn quotas_that_are_switched_off_during_a_create_fail_it_if_the_limit_must_hold() {
    let test = "quotas_that_are_switched_off_during_a_create_fail_it_if_the_limit_must_hold";
    on_btrfs(test, |pool| {
        assert!(enable_quotas(pool, QUOTA_GROUPS));
        let engine = open(pool);
        let switch_off = || drop(run("btrfs", &["quota", "disable", pool.to_str().unwrap()]));
        let Some(text) = create_while("api::btrfs::child_process", pool, switch_off) else { return };
        assert!(
            text.contains("Unsupported, \"create volume p/new: limit=hard")
                && text.contains("quotas were switched off"),
            "{text}"
        );
        assert_eq!(names(&pool.join("volumes")), BTreeSet::new());
        // What a process leaves is removed by the process that serves the pool.
        drop(engine);
        let engine = open(pool);
        wait_until_reaped(&engine, pool);
        check(&engine, pool);
        assert_eq!(run("btrfs", &["subvolume", "list", pool.to_str().unwrap()]), "");
    });
}

#[test]
fn a_mount_in_a_deleted_volume_is_detached_and_its_files_remain() {
    on_btrfs("a_mount_in_a_deleted_volume_is_detached_and_its_files_remain", |pool| {
        let engine = open(pool);
        engine.create(&request("v", MIB)).unwrap();
        let at = data(pool, "v").join("mount");
        fs::create_dir(&at).unwrap();
        run("mount", &["-t", "tmpfs", "tmpfs", at.to_str().unwrap()]);
        fs::write(at.join("file"), "not of the volume").unwrap();
        let mounted = File::open(&at).unwrap();
        engine.delete(&id("v")).unwrap();
        wait_until_reaped(&engine, pool);
        let still = rustix::fs::statat(&mounted, "file", rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(still.st_size, 17);
    });
}

#[test]
fn a_kept_volume_keeps_its_data_in_the_trash() {
    on_btrfs("a_kept_volume_keeps_its_data_in_the_trash", |pool| {
        let engine = open(pool);
        let policy = Policy { on_delete: OnDelete::Retain, ..Policy::default() };
        engine.create(&CreateVolume { policy, ..request("v", MIB) }).unwrap();
        fs::write(data(pool, "v").join("file"), "kept").unwrap();
        engine.delete(&id("v")).unwrap();
        let kept = names(&pool.join("trash")).pop_first().unwrap();
        fs::rename(pool.join("trash").join(kept), pool.join("volumes/v")).unwrap();
        assert_eq!(fs::read(data(pool, "v").join("file")).unwrap(), b"kept");
        assert_eq!(engine.get(&id("v")).unwrap().size, MIB);
    });
}

#[test]
fn a_snapshot_of_many_files_and_its_restore_are_quicker_than_a_copy() {
    on_btrfs("a_snapshot_of_many_files_and_its_restore_are_quicker_than_a_copy", |pool| {
        let engine = open(pool);
        let volume = engine.create(&request("v", 0)).unwrap();
        for i in 0..20_000_u32 {
            let dir = data(pool, "v").join((i / 1000).to_string());
            if i % 1000 == 0 {
                fs::create_dir(&dir).unwrap();
            }
            fs::write(dir.join(i.to_string()), [1; 4096]).unwrap();
        }
        run("sync", &["-f", pool.to_str().unwrap()]);
        let timed = |work: &dyn Fn()| {
            let began = Instant::now();
            work();
            began.elapsed()
        };
        let snapshot = timed(&|| drop(engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap()));
        let restore = timed(&|| drop(engine.create(&copy_request("r", of_snapshot("s"))).unwrap()));
        let [from, to] = [data(pool, "v"), pool.join("copy")].map(|path| path.to_str().unwrap().to_owned());
        let copy = timed(&|| {
            run("cp", &["-a", &from, &to]);
            run("sync", &["-f", &to]);
        });
        let delete = timed(&|| {
            engine.delete(&volume.id).unwrap();
            wait_until_reaped(&engine, pool);
        });
        eprintln!(
            "20000 x 4 KiB: snapshot {snapshot:?}, restore {restore:?}, delete and reap {delete:?}, cp -a {copy:?}"
        );
        assert!(
            snapshot < copy && restore < copy,
            "snapshot {snapshot:?}, restore {restore:?}, cp -a {copy:?}"
        );
    });
}

#[test]
fn a_volume_on_btrfs_shrinks_to_what_it_uses_and_its_limit_holds() {
    on_btrfs("a_volume_on_btrfs_shrinks_to_what_it_uses_and_its_limit_holds", |pool| {
        let engine = open(pool);
        if !enable_quotas(pool, SIMPLE_QUOTAS) {
            return skip("the kernel has no simple quotas");
        }
        let volume = engine.create(&limited("v", 64 * MIB, Limit::Hard)).unwrap();
        fs::write(data(pool, "v").join("file"), incompressible(8 << 20)).unwrap();
        let refused = engine.shrink(&volume.id, 4 * MIB).unwrap_err();
        assert_eq!(refused.kind(), Kind::OutOfRange);
        assert!(refused.chain().contains("uses 8"), "{}", refused.chain());
        let shrunk = engine.shrink(&volume.id, 16 * MIB).unwrap().unwrap();
        assert_eq!((shrunk.size, shrunk.enforced), (16 * MIB, Enforced::Bytes));
        let written = fill(&data(pool, "v").join("more"));
        assert!(written <= 8 * MIB, "{written} bytes");
        check(&engine, pool);
    });
}
