//! Promises of docs/semantics.md that need no mounts and are not covered by another file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, OwnerSpec, PoolSettings, SnapshotFilter, Tuning};
use orlop::error::{Error, Kind};
use orlop::volume::{Enforced, Limit, OnDelete, Policy, PolicyChange, SizeRange, Source, Volume, VolumeId};

use crate::common::pool::{
    MIB, clone_request, id, kind, long_waits, memory_dir, names, open, open_with, read_record, request,
    settings, settings_of, snapshot_request, volume_record,
};
use crate::common::wait::within_seconds;

/// Copies never start.
fn no_copies() -> Tuning {
    Tuning { copies: 0, copy_wait: Duration::ZERO, ..Tuning::default() }
}

/// The ids of all listed volumes.
fn listed(engine: &Engine) -> Vec<String> {
    engine.list(None, 100).unwrap().items.into_iter().map(|volume| volume.id.to_string()).collect()
}

#[test]
fn a_name_is_unique_across_pools() {
    let (p, q) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pools = vec![settings_of("p", p.path()), settings_of("q", q.path())];
    let engine = Engine::open(pools, Tuning::default()).unwrap();
    let in_pool = |pool: &str| CreateVolume { pool: Some(pool.parse().unwrap()), ..request("a", MIB) };
    engine.create(&in_pool("p")).unwrap();
    assert_eq!(kind(engine.create(&in_pool("q"))), Kind::Conflict);
    assert!(names(&q.path().join("volumes")).is_empty());
}

#[test]
fn a_snapshot_name_is_unique_across_pools() {
    let (p, q) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pools = vec![settings_of("p", p.path()), settings_of("q", q.path())];
    let engine = Engine::open(pools, Tuning::default()).unwrap();
    let volume = |pool: &str| {
        let request = CreateVolume { pool: Some(pool.parse().unwrap()), ..request(pool, MIB) };
        engine.create(&request).unwrap().id
    };
    engine.create_snapshot(&snapshot_request("s", &volume("p"))).unwrap();
    let error = engine.create_snapshot(&snapshot_request("s", &volume("q"))).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert_eq!(error.chain(), "snapshot p/s exists, of volume p/p: use another name");
    assert!(names(&q.path().join("snapshots")).is_empty());
}

#[test]
fn the_record_contains_the_requested_name_and_labels() {
    let dir = tempfile::tempdir().unwrap();
    let labels = [("csi.storage.k8s.io/pvc/name".to_owned(), "data".to_owned())].into();
    let volume = open(dir.path()).create(&CreateVolume { labels, ..request("../odd name", MIB) }).unwrap();
    let record = read_record(&volume_record(dir.path(), volume.id.name.as_str()));
    assert_eq!(record["requestedName"], "../odd name");
    assert_eq!(record["labels"]["csi.storage.k8s.io/pvc/name"], "data");
    assert_eq!(record["size"], MIB);
}

#[test]
fn a_moved_pool_contains_the_same_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    fs::create_dir(&before).unwrap();
    let engine = open(&before);
    let volume = engine.create(&request("a", MIB)).unwrap();
    let snapshot = engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
    fs::write(before.join("volumes/a/data/file"), "kept").unwrap();
    drop(engine);
    fs::rename(&before, &after).unwrap();
    let engine = open(&after);
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    assert_eq!(engine.get_snapshot(&snapshot.id).unwrap(), snapshot);
    assert_eq!(fs::read_to_string(after.join("volumes/a/data/file")).unwrap(), "kept");
}

#[test]
fn a_volume_with_an_unreadable_record_is_reported_and_keeps_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let volume = engine.create(&request("a", MIB)).unwrap();
    engine.create(&request("b", MIB)).unwrap();
    drop(engine);
    fs::write(dir.path().join("volumes/a/volume.json"), "{").unwrap();
    let engine = open(dir.path());
    assert_eq!(listed(&engine), ["p/a", "p/b"], "the listing contains it");
    assert_eq!(kind(engine.get(&volume.id)), Kind::Unreadable);
    assert_eq!(kind(engine.delete(&volume.id)), Kind::Unreadable);
    assert!(dir.path().join("volumes/a/data").is_dir());
    let unhealthy = engine.list_health(None, 10).unwrap().items;
    assert_eq!(unhealthy.len(), 1);
    assert_eq!((&unhealthy[0].0, unhealthy[0].1[0].reason.as_ref()), (&volume.id, "RecordUnreadable"));
}

#[test]
fn a_retry_returns_the_volume_and_a_different_request_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let first =
        CreateVolume { owner: OwnerSpec { mode: Some(0o750), ..OwnerSpec::default() }, ..request("a", MIB) };
    let volume = engine.create(&first).unwrap();
    let other = engine.create(&request("other", MIB)).unwrap();
    let range = |required, limit| CreateVolume { size: SizeRange { required, limit }, ..first.clone() };
    for same in [range(MIB, 0), range(0, 0), range(0, MIB), range(1, 2 * MIB)] {
        assert_eq!(engine.create(&same).unwrap(), volume);
    }
    let mode = OwnerSpec { mode: Some(0o700), ..OwnerSpec::default() };
    let source = Some(Source::Volume(other.id));
    let changed = [
        range(2 * MIB, 0),
        range(0, MIB - 1),
        CreateVolume { owner: mode, ..first.clone() },
        CreateVolume { source, ..first.clone() },
    ];
    for changed in changed {
        assert_eq!(kind(engine.create(&changed)), Kind::Conflict, "{changed:?}");
    }
    let policy = Policy { on_delete: OnDelete::Retain, ..Policy::default() };
    let labels = [("k".to_owned(), "v".to_owned())].into();
    assert_eq!(
        engine.create(&CreateVolume { policy, labels, ..first }).unwrap(),
        volume,
        "neither is compared"
    );
}

#[test]
fn concurrent_creates_of_one_name_make_one_volume() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), Tuning { lock_wait: Duration::from_secs(30), ..Tuning::default() });
    let made: Vec<Volume> = thread::scope(|scope| {
        let callers: Vec<_> =
            (0..16).map(|_| scope.spawn(|| engine.create(&request("a", MIB)).unwrap())).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert!(made.iter().all(|volume| *volume == made[0]));
    assert_eq!(names(&dir.path().join("volumes")).len(), 1);
    assert!(names(&dir.path().join("work")).is_empty());
    assert_eq!(engine.pools()[0].provisioned, MIB);
}

#[test]
fn retries_join_a_running_copy_which_is_not_visible() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), no_copies());
    let (a, b) =
        (engine.create(&request("a", MIB)).unwrap().id, engine.create(&request("b", MIB)).unwrap().id);
    for _ in 0..2 {
        let error = engine.create(&clone_request("c", &a)).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.chain().contains("is being copied from volume p/a"), "{}", error.chain());
        assert!(!engine.create_snapshot(&snapshot_request("s", &a)).unwrap().ready);
    }
    assert_eq!(engine.active_jobs(), 2, "a retry starts no second copy");
    assert_eq!(kind(engine.create(&clone_request("c", &b))), Kind::Conflict);
    assert_eq!(kind(engine.create_snapshot(&snapshot_request("s", &b))), Kind::Conflict);
    assert_eq!(kind(engine.get(&"p/c".parse().unwrap())), Kind::NotFound);
    assert_eq!(listed(&engine), ["p/a", "p/b"]);
    assert!(!engine.get_snapshot(&"p/s".parse().unwrap()).unwrap().ready);
    assert!(engine.list_snapshots(&SnapshotFilter::default(), None, 10).unwrap().items.is_empty());
    assert_eq!(kind(engine.delete(&a)), Kind::Busy, "it is being copied");
    engine.delete(&b).unwrap();
}

#[test]
fn deleting_a_snapshot_during_a_restore_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let a = engine.create(&request("a", MIB)).unwrap().id;
    let s = engine.create_snapshot(&snapshot_request("s", &a)).unwrap().id;
    drop(engine);
    let engine = open_with(dir.path(), no_copies());
    let restore = CreateVolume { source: Some(Source::Snapshot(s.clone())), ..request("b", MIB) };
    assert_eq!(kind(engine.create(&restore)), Kind::Busy);
    assert_eq!(kind(engine.delete_snapshot(&s)), Kind::Busy);
    assert!(engine.get_snapshot(&s).unwrap().ready);
}

/// A request for a volume that can have more data than its size on every filesystem.
fn without_limit(request: CreateVolume) -> CreateVolume {
    CreateVolume { policy: Policy { limit: Limit::None, ..request.policy }, ..request }
}

#[test]
fn a_copy_longer_than_a_call_completes_over_retries() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), Tuning { copy_wait: Duration::ZERO, ..Tuning::default() });
    let a = engine.create(&request("a", 8 * MIB)).unwrap().id;
    let data = dir.path().join("volumes/a/data");
    for at in 0..300 {
        fs::write(data.join(format!("{at}")), format!("{at}")).unwrap();
    }
    within_seconds(180, "the clone is complete", || match engine.create(&clone_request("b", &a)) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
            false
        }
    });
    within_seconds(180, "the snapshot is ready", || {
        engine.create_snapshot(&snapshot_request("s", &a)).unwrap().ready
    });
    for copy in ["volumes/b/data", "snapshots/s/data"] {
        assert_eq!(names(&dir.path().join(copy)), names(&data));
    }
    assert!(names(&dir.path().join("work")).is_empty());
}

#[test]
fn the_policy_at_deletion_applies_and_trash_can_be_restored() {
    let dir = tempfile::tempdir().unwrap();
    let trash = dir.path().join("trash");
    let engine = open(dir.path());
    let volume = engine.create(&request("a", MIB)).unwrap();
    fs::write(dir.path().join("volumes/a/data/file"), "kept").unwrap();
    let hour = Some(Duration::from_secs(3600));
    let change =
        PolicyChange { on_delete: Some(OnDelete::Trash), trash_for: hour, ..PolicyChange::default() };
    let volume = engine.modify(&volume.id, change).unwrap();
    engine.delete(&volume.id).unwrap();
    assert_eq!(kind(engine.get(&volume.id)), Kind::NotFound);
    let retain = Policy { on_delete: OnDelete::Retain, ..Policy::default() };
    let retained = engine.create(&CreateVolume { policy: retain, ..request("r", MIB) }).unwrap();
    engine.delete(&retained.id).unwrap();
    drop(engine);
    let engine = open(dir.path());
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    let kept: Vec<_> = names(&trash).into_iter().collect();
    assert_eq!(kept.len(), 2, "both are kept after a restart");
    assert!(kept[1].starts_with("r.keep."), "{kept:?}");
    drop(engine);
    fs::rename(trash.join(&kept[0]), dir.path().join("volumes/a")).unwrap();
    let engine = open(dir.path());
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    assert_eq!(fs::read_to_string(dir.path().join("volumes/a/data/file")).unwrap(), "kept");
}

#[test]
fn trash_is_removed_after_its_retention() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let trash_for = Duration::from_secs(1);
    let policy = Policy { on_delete: OnDelete::Trash, trash_for, ..Policy::default() };
    let volume = engine.create(&CreateVolume { policy, ..request("a", MIB) }).unwrap();
    engine.delete(&volume.id).unwrap();
    assert_eq!(names(&dir.path().join("trash")).len(), 1);
    within_seconds(180, "the trash is empty", || names(&dir.path().join("trash")).is_empty());
}

#[test]
fn a_size_is_provisioned_and_not_enforced() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let volume = engine.create(&request("a", 4096)).unwrap();
    assert_eq!((volume.size, volume.enforced), (4096, Enforced::No));
    fs::write(dir.path().join("volumes/a/data/file"), vec![1; 1 << 20]).unwrap();
    let hard = Policy { limit: Limit::Hard, ..Policy::default() };
    let error = engine.create(&CreateVolume { policy: hard, ..request("b", MIB) }).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.chain().contains("cannot enforce a size"), "{}", error.chain());
    let hard = PolicyChange { limit: Some(Limit::Hard), ..PolicyChange::default() };
    assert_eq!(kind(engine.modify(&volume.id, hard)), Kind::Unsupported);
    assert_eq!(engine.get(&volume.id).unwrap(), volume, "the volume is unchanged");
    let unsized_volume = engine.create(&request("c", 0)).unwrap();
    assert_eq!(unsized_volume.size, 0);
}

#[test]
fn concurrent_creates_never_exceed_the_capacity() {
    let dir = tempfile::tempdir().unwrap();
    let small = PoolSettings { overcommit_percent: 1, ..settings(dir.path()) };
    let engine = Engine::open(vec![small], Tuning::default()).unwrap();
    let limit = engine.pools()[0].total / 100;
    let third = SizeRange { required: limit / 3, limit: 0 };
    let results: Vec<_> = thread::scope(|scope| {
        let create = |name: String| engine.create(&CreateVolume { size: third, ..request(&name, MIB) });
        let callers: Vec<_> = (0..8).map(|at| scope.spawn(move || create(format!("v{at}")))).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
    assert!(results.into_iter().filter_map(Result::err).all(|error| error.kind() == Kind::NoSpace));
    assert!(engine.pools()[0].provisioned <= limit);
}

#[test]
fn a_copy_is_as_large_as_its_source_and_has_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mode = |bits| OwnerSpec { mode: Some(bits), ..OwnerSpec::default() };
    let size = SizeRange { required: 2 * MIB, limit: 0 };
    let a = engine.create(&CreateVolume { size, owner: mode(0o750), ..request("a", MIB) }).unwrap().id;
    let copy = |name: &str, required, limit, owner| {
        engine.create(&CreateVolume { size: SizeRange { required, limit }, owner, ..clone_request(name, &a) })
    };
    assert_eq!(kind(copy("b", MIB, 0, OwnerSpec::default())), Kind::OutOfRange);
    assert_eq!(kind(copy("b", 0, MIB, OwnerSpec::default())), Kind::OutOfRange);
    let same = copy("b", 0, 0, OwnerSpec::default()).unwrap();
    assert_eq!((same.size, same.owner.mode), (2 * MIB, 0o750));
    let other = copy("c", 4 * MIB, 0, mode(0o700)).unwrap();
    assert_eq!((other.size, other.owner.mode), (4 * MIB, 0o700));
    let bits = |name: &str| {
        fs::metadata(dir.path().join(format!("volumes/{name}/data"))).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!((bits("b"), bits("c")), (0o750, 0o700));
    let before = engine.pools()[0].provisioned;
    engine.create_snapshot(&snapshot_request("s", &a)).unwrap();
    assert_eq!(engine.pools()[0].provisioned, before, "a snapshot is not counted as provisioned");
}

#[test]
fn a_copy_ends_at_the_size_of_its_volume() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let a = engine.create(&without_limit(request("a", MIB))).unwrap().id;
    let data = dir.path().join("volumes/a/data");
    (0..3).for_each(|number| fs::write(data.join(number.to_string()), vec![1; 1 << 19]).unwrap());
    let fails = |error: Error, words: &str| {
        let text = error.chain();
        assert_eq!(error.kind(), Kind::OutOfRange, "{text}");
        assert!(
            text.contains("volume p/a has more data than the 1Mi (1048576 bytes) that its copy may take: "),
            "{text}"
        );
        assert!(text.contains(words), "{text}");
    };
    fails(engine.create_snapshot(&snapshot_request("s", &a)).unwrap_err(), "expand the volume");
    fails(engine.create(&clone_request("b", &a)).unwrap_err(), "request a larger size for volume p/b");
    assert_eq!(listed(&engine), ["p/a"]);
    let larger = SizeRange { required: 2 * MIB, limit: 0 };
    engine.create(&CreateVolume { size: larger, ..clone_request("b", &a) }).unwrap();
    engine.expand(&a, larger).unwrap();
    engine.create_snapshot(&snapshot_request("s", &a)).unwrap();
}

#[test]
fn what_a_snapshot_lacks_is_counted_in_its_record() {
    let dir = memory_dir();
    let engine = open(dir.path());
    let a = engine.create(&request("a", MIB)).unwrap().id;
    let file = dir.path().join("volumes/a/data/file");
    fs::write(&file, "x").unwrap();
    for number in 0..400 {
        let name = format!("user.{number:0200}");
        rustix::fs::setxattr(&file, name, b"v", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let snapshot = engine.create_snapshot(&snapshot_request("s", &a)).unwrap();
    assert_eq!((snapshot.skipped_xattrs, snapshot.vanished), (1, 0));
    let record = fs::read_to_string(dir.path().join("snapshots/s/snapshot.json")).unwrap();
    assert!(record.contains("\"skippedXattrs\": 1") && !record.contains("vanished"), "{record}");
}

#[test]
fn a_missing_source_sends_the_caller_to_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let missing: VolumeId = "p/none".parse().unwrap();
    let pool = Some("q".parse().unwrap());
    for (may_go_elsewhere, source) in [(true, Kind::NoSpace), (false, Kind::NotFound)] {
        let copy = CreateVolume { may_go_elsewhere, ..clone_request("a", &missing) };
        assert_eq!(kind(engine.create(&copy)), source);
        let elsewhere = CreateVolume { may_go_elsewhere, pool: pool.clone(), ..request("a", MIB) };
        assert_eq!(kind(engine.create(&elsewhere)), Kind::Invalid, "no node has this pool");
    }
    assert!(listed(&engine).is_empty());
}

#[test]
fn an_unavailable_pool_does_not_affect_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let pools = vec![settings_of("missing", &dir.path().join("missing")), settings_of("q", dir.path())];
    let engine = Engine::open(pools, Tuning::default()).unwrap();
    let here = CreateVolume { pool: Some("q".parse().unwrap()), ..request("a", MIB) };
    let volume = engine.create(&here).unwrap();
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    assert!(engine.capacity(Some(&"q".parse().unwrap())).unwrap().available > 0);
    assert_eq!(engine.capacity(Some(&"missing".parse().unwrap())).unwrap().available, 0);
    assert_eq!(kind(engine.capacity(Some(&"unknown".parse().unwrap()))), Kind::Invalid);
    let elsewhere: VolumeId = "missing/a".parse().unwrap();
    assert_eq!(kind(engine.get(&elsewhere)), Kind::Unavailable, "it must not be reported as deleted");
    assert_eq!(kind(engine.list(None, 10)), Kind::Unavailable, "an incomplete list would be wrong");
    assert_eq!(engine.health(&elsewhere, None).unwrap()[0].reason, "PoolUnavailable");
    engine.delete(&volume.id).unwrap();
}

#[test]
fn missing_data_is_reported_as_data_loss() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let volume = engine.create(&request("a", MIB)).unwrap();
    assert!(engine.health(&volume.id, None).unwrap().is_empty());
    fs::remove_dir(dir.path().join("volumes/a/data")).unwrap();
    assert_eq!(engine.health(&volume.id, None).unwrap()[0].reason, "DataMissing");
}

#[test]
fn an_unmanaged_volume_is_listed_and_copied_but_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::create_dir_all(dir.path().join("volumes/mine/data")).unwrap();
    fs::write(dir.path().join("volumes/mine/data/file"), "x").unwrap();
    let engine = open(dir.path());
    let mine: VolumeId = "p/mine".parse().unwrap();
    assert_eq!(listed(&engine), ["p/mine"]);
    let change = PolicyChange { on_delete: Some(OnDelete::Delete), ..PolicyChange::default() };
    assert_eq!(kind(engine.modify(&mine, change)), Kind::Unsupported);
    assert_eq!(kind(engine.expand(&mine, SizeRange { required: MIB, limit: 0 })), Kind::Unsupported);
    assert_eq!(engine.create_snapshot(&snapshot_request("s", &mine)).unwrap().entries, Some(1));
    engine.create(&clone_request("b", &mine)).unwrap();
    engine.delete(&mine).unwrap();
    assert_eq!(names(&dir.path().join("volumes/mine/data")).len(), 1);
}

/// The kubelet may repeat a call that succeeded, and retries NOT_FOUND forever.
#[test]
fn unpublishing_a_deleted_inline_volume_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let target = dir.path().join("target");
    let inline = format!("csi-{}", "0a".repeat(32));
    engine.unpublish(&inline, &target).unwrap();
    assert_eq!(kind(engine.unpublish("fake-vol-id", &target)), Kind::NotFound);
}

/// The volume may be in the unavailable pool. After a success no caller would delete it.
#[test]
fn unpublishing_an_inline_volume_fails_while_a_pool_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let missing = settings(&dir.path().join("missing"));
    let engine = Engine::open(vec![missing], Tuning::default()).unwrap();
    let inline = format!("csi-{}", "0a".repeat(32));
    assert_eq!(kind(engine.unpublish(&inline, &dir.path().join("target"))), Kind::Unavailable);
}

#[test]
fn a_pool_under_another_name_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let engine = Engine::open(vec![settings_of("other", dir.path())], Tuning::default()).unwrap();
    assert!(engine.pools()[0].unavailable.as_ref().unwrap().contains("this is pool \"p\""));
}

#[test]
fn a_failed_copy_without_a_waiting_call_does_not_keep_its_name() {
    let dir = memory_dir();
    let engine = open_with(dir.path(), Tuning { copy_wait: Duration::ZERO, ..long_waits() });
    let create = |name| engine.create(&without_limit(request(name, MIB))).unwrap().id;
    let [large, small] = ["large", "small"].map(create);
    std::fs::write(dir.path().join("volumes/large/data/file"), vec![1; 2 << 20]).unwrap();
    let until_it_is_copied = |create: &dyn Fn() -> Result<(), Error>| {
        within_seconds(180, "the name is used again", || match create() {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
                false
            }
        });
    };
    for from in [Some(&small), None] {
        // A copy that has failed before its request looks has told its error.
        within_seconds(180, "a copy fails later", || {
            kind(engine.create(&clone_request("a", &large))) == Kind::Busy
        });
        within_seconds(180, "it has failed", || engine.active_jobs() == 0);
        let other = from.map_or_else(|| request("a", MIB), |from| clone_request("a", from));
        until_it_is_copied(&|| engine.create(&other).map(drop));
        engine.delete(&id("a")).unwrap();
    }
    let pending = engine.create_snapshot(&snapshot_request("s", &large)).unwrap();
    within_seconds(180, "it has failed", || engine.active_jobs() == 0);
    assert_eq!(kind(engine.get_snapshot(&pending.id)), Kind::NotFound, "no copy is running");
    engine.create_snapshot(&snapshot_request("s", &small)).unwrap();
}

#[test]
fn a_volume_whose_move_into_the_trash_was_interrupted_can_be_moved_back() {
    let dir = memory_dir();
    let engine = open(dir.path());
    let mut request = request("a", MIB);
    request.policy.on_delete = OnDelete::Retain;
    let volume = engine.create(&request).unwrap();
    engine.delete(&volume.id).unwrap();
    drop(engine);
    let trash = dir.path().join("trash");
    let entry = trash.join(names(&trash).first().unwrap());
    // A deletion in place was killed after the move and before the last chmod.
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o1000)).unwrap();
    let engine = open(dir.path());
    assert_eq!(fs::metadata(&entry).unwrap().permissions().mode() & 0o7777, 0o700);
    fs::rename(&entry, dir.path().join("volumes/a")).unwrap();
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
}
