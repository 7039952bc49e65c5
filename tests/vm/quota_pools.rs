//! Pools on xfs and ext4 with project quotas, which `tests/vm/inside` has mounted.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop::check::{Verdict, inspect};
use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, Publish, Sharing, Tuning};
use orlop::error::Kind;
use orlop::fs::project::{self, Project, ProjectQuota};
use orlop::mount::MountFlags;
use orlop::volume::{Enforced, Limit, OnDelete, Policy, PolicyChange, SizeRange, Source, VolumeId};

use crate::common::disk::run;
use crate::common::full_volume::expands_under_a_writer;
use crate::common::isolation::in_own_process;
use crate::common::pool::{
    MIB, check, clone_request, edit_record, id, kind, names, open_with, read_record, request, settings,
    snapshot_request, volume_record,
};
use crate::common::wait::within_seconds;

const SIZE: u64 = 8 * MIB;

/// Calls of an emulated processor take their time.
pub(super) fn patient() -> Tuning {
    let seconds = Duration::from_secs;
    Tuning { copy_wait: seconds(120), lock_wait: seconds(10), ..Tuning::default() }
}

pub(super) fn open(pool: &Path) -> Engine {
    open_with(pool, patient())
}

/// Runs a test for each filesystem, with an empty directory on it.
pub(super) fn each_filesystem(test: impl Fn(&str, &Path)) {
    for name in ["xfs", "ext4"] {
        let dir = tempfile::tempdir_in(Path::new("/mnt").join(name)).unwrap();
        test(name, dir.path());
    }
}

pub(super) fn data(pool: &Path, volume: &str) -> PathBuf {
    pool.join("volumes").join(volume).join("data")
}

pub(super) fn limited(name: &str, size: u64, inodes: u64) -> CreateVolume {
    let policy = Policy { limit: Limit::Hard, inodes, ..Policy::default() };
    CreateVolume { policy, ..request(name, size) }
}

/// Runs a command with `sh` as a tenant runs it: root, but without the right to exceed quotas.
pub(super) fn as_tenant(command: &str) -> String {
    run("setpriv", &["--bounding-set", "-sys_resource", "sh", "-c", command])
}

/// Writes to a file until the limit; returns its size.
pub(super) fn fill(file: &Path) -> u64 {
    let file = file.display();
    let report = as_tenant(&format!("head -c 64M /dev/zero 2>&1 >>{file} || true"));
    let is_stopped = report.contains("No space left") || report.contains("Disk quota exceeded");
    assert!(is_stopped, "{file}: {report}");
    fs::metadata(file.to_string()).unwrap().len()
}

/// What the kernel knows of a project.
pub(super) fn quota(pool: &Path, id: u32) -> ProjectQuota {
    project::quota(File::open(pool).unwrap().as_fd(), id).unwrap().unwrap()
}

pub(super) fn project_of(path: &Path) -> Project {
    project::of(File::open(path).unwrap().as_fd()).unwrap()
}

pub(super) fn id_of(pool: &Path, volume: &str) -> u32 {
    let recorded = read_record(&volume_record(pool, volume))["backend"]["project"].as_u64().unwrap();
    u32::try_from(recorded).unwrap()
}

pub(super) fn wait_until_reaped(engine: &Engine, pool: &Path) {
    within_seconds(180, "the trash is removed", || {
        assert_eq!(engine.pools()[0].trash_failure, None);
        names(&pool.join("trash")).is_empty()
    });
}

/// Statistics of a volume, which is published for them.
fn stats(engine: &Engine, volume: &VolumeId, target: &Path) -> orlop::engine::request::Usage {
    let (id, sharing) = (volume.clone(), Sharing::ManyTargets);
    let (target, flags) = (target.to_owned(), MountFlags::default());
    engine.publish(&Publish { id, target: target.clone(), flags, sharing, ephemeral: None }).unwrap();
    let stats = engine.stats(volume, &target).unwrap();
    engine.unpublish(&volume.to_string(), &target).unwrap();
    stats
}

#[test]
fn a_writer_is_stopped_at_the_size_and_goes_on_after_an_expansion() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        let volume = engine.create(&limited("v", SIZE, 0)).unwrap();
        assert_eq!(read_record(&pool.join("orlop.json"))["backend"], "quota");
        assert_eq!(volume.enforced, Enforced::Bytes, "{name}");
        let shown = rustix::fs::statvfs(data(pool, "v")).unwrap();
        assert_eq!(shown.f_blocks * shown.f_frsize, SIZE, "{name}: df shows the size");
        let file = data(pool, "v").join("file");
        let written = fill(&file);
        assert!((SIZE - MIB..=SIZE).contains(&written), "{name}: {written} bytes");

        let larger = SizeRange { required: 2 * SIZE, limit: 0 };
        assert_eq!(engine.expand(&volume.id, larger).unwrap().enforced, Enforced::Bytes);
        let shown = rustix::fs::statvfs(data(pool, "v")).unwrap();
        assert_eq!(shown.f_blocks * shown.f_frsize, 2 * SIZE, "{name}: df shows the new size");
        let written = fill(&file);
        assert!((2 * SIZE - MIB..=2 * SIZE).contains(&written), "{name}: {written} after the expansion");
        check(&engine, pool);
    });
}

#[test]
fn a_program_that_waits_for_space_writes_as_soon_as_its_volume_is_expanded() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        let volume = engine.create(&limited("v", SIZE, 0)).unwrap();
        let file = data(pool, "v").join("file");
        expands_under_a_writer(name, &file, |round| {
            let larger = SizeRange { required: SIZE + u64::from(round) * MIB, limit: 0 };
            engine.expand(&volume.id, larger).unwrap();
        });
    });
}

#[test]
fn root_with_the_right_to_exceed_quotas_is_stopped_on_xfs_and_not_on_ext4() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        engine.create(&limited("v", SIZE, 0)).unwrap();
        let [privileged, usual] = ["privileged", "usual"].map(|name| data(pool, "v").join(name));
        let write = format!("head -c 12M /dev/zero 2>/dev/null >{} || true", privileged.display());
        run("sh", &["-c", &write]);
        let written = fs::metadata(&privileged).unwrap().len();
        let expected = if name == "xfs" { SIZE - MIB..=SIZE } else { 12 * MIB..=12 * MIB };
        assert!(expected.contains(&written), "{name}: root has written {written} bytes");
        fs::remove_file(&privileged).unwrap();
        let written = fill(&usual);
        assert!(
            (SIZE - MIB..=SIZE).contains(&written),
            "{name}: root of a container has written {written} bytes"
        );
    });
}

#[test]
fn a_writer_is_stopped_at_its_number_of_inodes() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        let volume = engine.create(&limited("v", SIZE, 50)).unwrap();
        assert_eq!(volume.enforced, Enforced::BytesAndInodes, "{name}");
        assert_eq!(read_record(&volume_record(pool, "v"))["enforced"], "bytes+inodes");
        let create = "for n in $(seq 200); do true >$n || break; done 2>/dev/null; ls | wc -l";
        let made = as_tenant(&format!("cd {} && {create}", data(pool, "v").display()));
        assert_eq!(made, "49", "{name}: the root directory is one of them");
        let change = PolicyChange { inodes: Some(100), ..PolicyChange::default() };
        engine.modify(&volume.id, change).unwrap();
        let made = as_tenant(&format!("cd {} && {create}", data(pool, "v").display()));
        assert_eq!(made, "99", "{name}: after the change");
        let only_inodes = engine.create(&limited("i", 0, 10)).unwrap();
        assert_eq!(only_inodes.enforced, Enforced::Inodes);
    });
}

/// Runs a command with `sh` as root of a user namespace, as that of a container with one.
fn as_root_of_a_namespace(command: &str) -> String {
    run("unshare", &["--user", "--map-root-user", "sh", "-c", command])
}

#[test]
fn root_of_a_user_namespace_is_stopped_and_cannot_leave_its_project() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        engine.create(&limited("v", SIZE, 50)).unwrap();
        let dir = data(pool, "v");
        let project = project_of(&dir);
        let write =
            format!("cd {} && head -c 64M /dev/zero 2>/dev/null >file; stat -c %s file", dir.display());
        let written: u64 = as_root_of_a_namespace(&write).parse().unwrap();
        assert!((SIZE - MIB..=SIZE).contains(&written), "{name}: {written} bytes");
        let create = "rm file; for n in $(seq 200); do true >$n || break; done 2>/dev/null; ls | wc -l";
        let made = as_root_of_a_namespace(&format!("cd {} && {create}", dir.display()));
        assert_eq!(made, "49", "{name}: files");
        let leave = format!("cd {} && mkdir -p d; chattr -p 0 1 2>&1 || echo refused", dir.display());
        assert!(as_root_of_a_namespace(&leave).ends_with("refused"), "{name}");
        assert_eq!(project_of(&dir.join("1")).id, project.id, "{name}");
    });
}

#[test]
fn statistics_are_those_of_the_kernel() {
    in_own_process("vm::quota_pools::statistics_are_those_of_the_kernel", || {
        each_filesystem(|name, pool| {
            let (engine, targets) = (open(pool), tempfile::tempdir().unwrap());
            let target = targets.path().join("t");
            let volume = engine.create(&limited("v", SIZE, 50)).unwrap();
            fs::write(data(pool, "v").join("file"), vec![1; 3 << 20]).unwrap();
            run("sync", &["-f", pool.to_str().unwrap()]);
            let usage = stats(&engine, &volume.id, &target);
            let used = usage.bytes.used.unwrap();
            assert!((3 * MIB..4 * MIB).contains(&used), "{name}: {used}");
            assert_eq!((usage.bytes.total, usage.bytes.available), (SIZE, SIZE - used), "{name}");
            let inodes = usage.inodes;
            assert_eq!((inodes.total, inodes.used, inodes.available), (50, Some(2), 48), "{name}");
        });
    });
}

#[test]
fn a_copy_that_reaches_the_limit_of_its_volume_fails_and_leaves_nothing() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        let source = engine.create(&request("source", SIZE)).unwrap();
        fs::write(data(pool, "source").join("f"), "x").unwrap();
        engine.create_snapshot(&snapshot_request("s", &source.id)).unwrap();
        let fits = CreateVolume { source: Some(Source::Snapshot(id("s"))), ..limited("fits", SIZE, 3) };
        assert_eq!(engine.create(&fits).unwrap().enforced, Enforced::BytesAndInodes, "{name}");
        let unlimited = PolicyChange { limit: Some(Limit::None), ..PolicyChange::default() };
        assert_eq!(engine.modify(&source.id, unlimited).unwrap().enforced, Enforced::No);
        // Small files take more blocks than bytes, so the copy reaches the limit and not the size.
        let many =
            format!("cd {} && for n in $(seq 3000); do echo >$n; done", data(pool, "source").display());
        run("sh", &["-c", &many]);
        let before = project_limits(pool);
        for (volume, inodes) in [("bytes", 0), ("inodes", 100)] {
            let source = Some(Source::Volume(source.id.clone()));
            let refused =
                engine.create(&CreateVolume { source, ..limited(volume, SIZE, inodes) }).unwrap_err();
            assert_eq!(refused.kind(), Kind::OutOfRange, "{name}: {}", refused.chain());
            let text = refused.chain();
            assert!(
                text.contains("limit of the new volume") && text.contains("larger size"),
                "{name}: {text}"
            );
        }
        wait_until_reaped(&engine, pool);
        within_seconds(60, "their limits are gone", || project_limits(pool) == before);
        check(&engine, pool);
        engine.create(&clone_request("unlimited", &source.id)).unwrap_err();
        let all = CreateVolume {
            policy: Policy { limit: Limit::None, ..Policy::default() },
            ..clone_request("all", &source.id)
        };
        engine.create(&all).unwrap();
    });
}

#[test]
fn an_archive_that_reaches_the_limit_of_its_volume_fails_and_leaves_nothing() {
    each_filesystem(|name, pool| {
        let (engine, archives) = (open(pool), tempfile::tempdir().unwrap());
        engine.create(&request("first", SIZE)).unwrap();
        let (tree, archive) = (archives.path().join("tree"), archives.path().join("tree.tar"));
        fs::create_dir(&tree).unwrap();
        // Small files take more blocks than bytes, so they reach the limit and not the size.
        let many = format!("cd {} && for n in $(seq 1100); do echo >$n; done", tree.display());
        run("sh", &["-c", &many]);
        run("tar", &["-C", tree.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
        let before = project_limits(pool);
        for (volume, inodes) in [("bytes", 0), ("inodes", 100)] {
            let refused = engine.create_from_file(limited(volume, SIZE / 2, inodes), &archive).unwrap_err();
            let text = refused.chain();
            assert_eq!(refused.kind(), Kind::OutOfRange, "{name}: {volume}: {text}");
            assert!(
                text.contains("limit of the new volume") && text.contains("larger size"),
                "{name}: {text}"
            );
        }
        wait_until_reaped(&engine, pool);
        within_seconds(60, "their limits are gone", || project_limits(pool) == before);
        let made = engine.create_from_file(limited("fits", SIZE, 2000), &archive).unwrap();
        assert_eq!(made.enforced, Enforced::BytesAndInodes, "{name}");
        check(&engine, pool);
    });
}

/// The projects of this pool that have limits. Other tests have pools on the same filesystem.
pub(super) fn project_limits(pool: &Path) -> BTreeSet<u32> {
    let next = read_record(&pool.join("projects.json"))["next"].as_u64().unwrap();
    let next = u32::try_from(next).unwrap();
    let (root, mut found, mut from) = (File::open(pool).unwrap(), BTreeSet::new(), next - 2000);
    while let Some(id) = project::first_used(root.as_fd(), from..next).unwrap() {
        let quota = quota(pool, id);
        if quota.max_bytes != 0 || quota.max_inodes != 0 {
            found.insert(id);
        }
        from = id + 1;
    }
    found
}

#[test]
fn ids_with_limits_are_found_wherever_the_search_begins() {
    each_filesystem(|name, pool| {
        let root = File::open(pool).unwrap();
        // Near the beginning of a block of 256 ids, and outside of the range from which pools take theirs.
        let used = 0x3000_0305;
        project::limit(root.as_fd(), used, SIZE, 0).unwrap();
        for from in [used - 1000, used - 300, used - 5, used] {
            let found = project::first_used(root.as_fd(), from..used + 100).unwrap();
            assert_eq!(found, Some(used), "{name}: from {} before it", used - from);
        }
        assert_eq!(project::first_used(root.as_fd(), used + 1..used + 100).unwrap(), None, "{name}");
        project::limit(root.as_fd(), used, 0, 0).unwrap();
    });
}

#[test]
fn a_deleted_volume_stays_charged_until_it_is_removed() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        let policy = Policy { on_delete: OnDelete::Retain, ..Policy::default() };
        let volume = engine.create(&CreateVolume { policy, ..request("v", SIZE) }).unwrap();
        fs::write(data(pool, "v").join("file"), vec![1; 2 << 20]).unwrap();
        run("sync", &["-f", pool.to_str().unwrap()]);
        let project = id_of(pool, "v");
        assert_eq!(project_of(&pool.join("volumes/v")), Project { id: project, is_inherited: false });
        assert_eq!(project_of(&data(pool, "v")), Project { id: project, is_inherited: true });
        engine.delete(&volume.id).unwrap();
        let charged = quota(pool, project);
        assert!(charged.bytes >= 2 * MIB && charged.max_bytes == SIZE, "{name}: {charged:?}");
        let kept = names(&pool.join("trash")).pop_first().unwrap();
        fs::rename(pool.join("trash").join(kept), pool.join("volumes/v")).unwrap();
        assert_eq!(engine.get(&volume.id).unwrap().enforced, Enforced::Bytes, "it is a volume again");
        let change = PolicyChange { on_delete: Some(OnDelete::Delete), ..PolicyChange::default() };
        engine.modify(&volume.id, change).unwrap();
        engine.delete(&volume.id).unwrap();
        wait_until_reaped(&engine, pool);
        within_seconds(60, "nothing is charged", || quota(pool, project) == ProjectQuota::default());
    });
}

#[test]
fn a_failed_create_leaves_no_limit() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        engine.create(&request("first", SIZE)).unwrap();
        let before = project_limits(pool);
        let mut refused = limited("v", SIZE, 0);
        let long = "x".repeat(70_000);
        refused.labels = [("label".to_owned(), long)].into();
        assert_eq!(kind(engine.create(&refused)), Kind::Invalid, "{name}: the record is too long");
        assert_eq!(project_limits(pool), before, "{name}");
        check(&engine, pool);
    });
}

#[test]
fn a_failed_expansion_leaves_the_old_limit() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        let volume = engine.create(&request("v", SIZE)).unwrap();
        let directory = pool.join("volumes/v");
        run("chattr", &["+i", directory.to_str().unwrap()]);
        let larger = SizeRange { required: 2 * SIZE, limit: 0 };
        engine.expand(&volume.id, larger).unwrap_err();
        assert_eq!(quota(pool, id_of(pool, "v")).max_bytes, SIZE, "{name}");
        run("chattr", &["-i", directory.to_str().unwrap()]);
        engine.expand(&volume.id, larger).unwrap();
        assert_eq!(quota(pool, id_of(pool, "v")).max_bytes, 2 * SIZE, "{name}");
    });
}

#[test]
fn a_copy_of_a_volume_made_by_hand_has_no_limit_and_does_not_change_that_of_the_original() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        engine.create(&request("v", SIZE)).unwrap();
        let (from, to) = (pool.join("volumes/v"), pool.join("volumes/w"));
        run("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
        edit_record(&volume_record(pool, "w"), |record| record["id"] = "p/w".into());
        let project = id_of(pool, "v");
        let larger = SizeRange { required: 2 * SIZE, limit: 0 };
        assert_eq!(engine.expand(&id("w"), larger).unwrap().enforced, Enforced::No, "{name}");
        let inspected = engine.inspect(&id("w")).unwrap();
        assert!(inspected.not_enforced.unwrap().contains("copied or moved"), "{name}");
        assert_eq!(engine.inspect(&id("v")).unwrap().not_enforced, None, "{name}");
        let hard = PolicyChange { limit: Some(Limit::Hard), ..PolicyChange::default() };
        assert_eq!(kind(engine.modify(&id("w"), hard)), Kind::Unsupported, "{name}");
        assert_eq!(quota(pool, project).max_bytes, SIZE, "{name}");
        engine.delete(&id("w")).unwrap();
        wait_until_reaped(&engine, pool);
        assert_eq!(quota(pool, project).max_bytes, SIZE, "{name}");
    });
}

#[test]
fn a_tenant_that_owns_its_directory_and_leaves_its_project_is_put_back_by_an_expansion() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        let (a, b) =
            (engine.create(&request("a", SIZE)).unwrap(), engine.create(&request("b", SIZE)).unwrap());
        let (project, other) = (id_of(pool, "a"), id_of(pool, "b"));
        chown(data(pool, "a"), Some(1000), Some(1000)).unwrap();
        let open_data = File::open(data(pool, "a")).unwrap();
        project::set(open_data.as_fd(), Project { id: other, is_inherited: true }).unwrap();
        let larger = SizeRange { required: 2 * SIZE, limit: 0 };
        assert_eq!(engine.expand(&a.id, larger).unwrap().enforced, Enforced::Bytes, "{name}");
        assert_eq!(project_of(&data(pool, "a")), Project { id: project, is_inherited: true }, "{name}");
        project::set(open_data.as_fd(), Project { id: other, is_inherited: true }).unwrap();
        drop(open_data);
        engine.delete(&a.id).unwrap();
        wait_until_reaped(&engine, pool);
        assert_eq!(quota(pool, other).max_bytes, SIZE, "{name}: the limit of the other volume stays");
        assert_eq!(quota(pool, project).max_bytes, 0, "{name}");
        engine.delete(&b.id).unwrap();
    });
}

#[test]
fn a_pool_of_plain_directories_stays_one_and_names_what_would_enforce_sizes() {
    each_filesystem(|name, pool| {
        drop(open(pool));
        edit_record(&pool.join("orlop.json"), |marker| marker["backend"] = "dir".into());
        let engine = open(pool);
        assert_eq!(engine.create(&request("v", SIZE)).unwrap().enforced, Enforced::No, "{name}");
        let refused = engine.create(&limited("hard", SIZE, 0)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported, "{name}");
        assert!(refused.chain().contains("orlop check --fix"), "{name}: {}", refused.chain());
        assert!(engine.inspect(&id("v")).unwrap().not_enforced.is_some(), "{name}");
    });
}

#[test]
fn project_ids_on_the_directories_of_the_pool_are_refused() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        for directory in ["volumes", "snapshots", "trash", "work"] {
            let path = pool.join(directory);
            let set = |project| project::set(File::open(&path).unwrap().as_fd(), project).unwrap();
            set(Project { id: 42, is_inherited: true });
            let refused = engine.create(&request("v", SIZE)).unwrap_err();
            assert_eq!(refused.kind(), Kind::Unavailable, "{name}: {directory}");
            let remedy = format!("chattr -p 0 -P {}", path.display());
            assert!(refused.chain().contains(&remedy), "{name}: {}", refused.chain());
            let bad = inspect(&[settings(pool)]).into_iter().find(|fact| fact.verdict == Verdict::Bad);
            assert!(bad.unwrap().found.contains(&remedy), "{name}");
            set(Project { id: 0, is_inherited: false });
        }
        engine.create(&request("v", SIZE)).unwrap();
    });
}

/// A filesystem of its own, at a new directory.
pub(super) fn new_filesystem(kind: &str, at: &Path) -> String {
    fs::create_dir(at).unwrap();
    run("fs", &[kind, "400M", at.to_str().unwrap()]);
    let device = run("findmnt", &["--noheadings", "--output", "SOURCE", at.to_str().unwrap()]);
    run("losetup", &["--noheadings", "--output", "BACK-FILE", &device])
}

fn unmount(at: &Path) {
    let unmounted = || rustix::mount::unmount(at, rustix::mount::UnmountFlags::empty()).is_ok();
    within_seconds(60, "no thread of the engine uses the filesystem", unmounted);
}

#[test]
fn without_quotas_a_pool_goes_on_and_says_that_it_enforces_nothing() {
    let test = "vm::quota_pools::without_quotas_a_pool_goes_on_and_says_that_it_enforces_nothing";
    in_own_process(test, || {
        let dir = tempfile::tempdir().unwrap();
        for name in ["xfs", "ext4"] {
            let at = dir.path().join(name);
            let image = new_filesystem(name, &at);
            let pool = at.join("pool");
            fs::create_dir(&pool).unwrap();
            let engine = open(&pool);
            engine.create(&limited("v", SIZE, 0)).unwrap();
            drop(engine);
            unmount(&at);
            run("mount", &["-o", "loop", &image, at.to_str().unwrap()]);

            let engine = open(&pool);
            assert_eq!(engine.create(&request("w", SIZE)).unwrap().enforced, Enforced::No, "{name}");
            let refused = engine.create(&limited("hard", SIZE, 0)).unwrap_err();
            assert_eq!(refused.kind(), Kind::Unsupported, "{name}");
            let text = refused.chain();
            assert!(text.contains("option prjquota"), "{name}: {text}");
            let is_unmounted = text.contains("unmount the filesystem") && text.contains("a remount does not");
            assert_eq!(is_unmounted, name == "xfs", "{text}");
            for volume in ["v", "w"] {
                let why = engine.inspect(&id(volume)).unwrap().not_enforced.unwrap();
                assert!(why.contains("option prjquota"), "{name}: {why}");
            }
            let facts = inspect(&[settings(&pool)]);
            assert!(facts.iter().any(|fact| fact.found.contains("sizes are not enforced")), "{name}");
            drop(engine);
            unmount(&at);
            run("mount", &["-o", "loop,prjquota", &image, at.to_str().unwrap()]);

            let engine = open(&pool);
            assert_eq!(engine.inspect(&id("v")).unwrap().not_enforced, None, "{name}");
            assert!(fill(&data(&pool, "v").join("file")) <= SIZE, "{name}");
            let larger = SizeRange { required: 2 * SIZE, limit: 0 };
            assert_eq!(engine.expand(&id("w"), larger).unwrap().enforced, Enforced::Bytes, "{name}");
            assert!(fill(&data(&pool, "w").join("file")) <= 2 * SIZE, "{name}");
            drop(engine);
        }
    });
}
