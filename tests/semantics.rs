//! The promises of docs/semantics.md that no other test holds, on a real directory.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "ground/pool.rs"]
mod ground;
#[path = "ground/mounts.rs"]
mod mounts;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ground::named as settings;
use orlop::engine::Engine;
use orlop::engine::request::{
    CreateSnapshot, CreateVolume, OwnerSpec, PoolSettings, Publish, Sharing, SnapshotFilter, Tuning,
};
use orlop::error::Kind;
use orlop::mount::MountFlags;
use orlop::volume::{Enforced, Limit, OnDelete, Policy, PolicyChange, SizeRange, Source, Volume, VolumeId};
use rustix::mount::MountPropagationFlags;

const MIB: u64 = 1 << 20;

fn open(path: &Path) -> Engine {
    open_with(path, Tuning::default())
}

/// Opens a pool; the threads of an engine that was just dropped may hold it for a moment longer.
fn open_with(path: &Path, tuning: Tuning) -> Engine {
    let engine = Engine::open(vec![settings("p", path)], tuning).unwrap();
    within_seconds(10, || engine.pools()[0].unavailable.is_none());
    engine
}

/// Copies are asked for and never get their turn.
fn stuck() -> Tuning {
    Tuning { copies: 0, copy_wait: Duration::ZERO, ..Tuning::default() }
}

fn request(name: &str) -> CreateVolume {
    let size = SizeRange { required: MIB, limit: 0 };
    CreateVolume { name: name.into(), size, ..CreateVolume::default() }
}

fn clone_of(name: &str, of: &VolumeId) -> CreateVolume {
    CreateVolume { source: Some(Source::Volume(of.clone())), size: SizeRange::default(), ..request(name) }
}

fn cut(name: &str, of: &VolumeId) -> CreateSnapshot {
    CreateSnapshot { name: name.into(), source_volume: of.clone(), labels: Default::default() }
}

fn kind<T: std::fmt::Debug>(result: orlop::error::Result<T>) -> Kind {
    result.unwrap_err().kind()
}

fn names(dir: &Path) -> BTreeSet<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    fs::read_dir(dir).unwrap().map(name).collect()
}

fn listed(engine: &Engine) -> Vec<String> {
    engine.list(None, 100).unwrap().items.into_iter().map(|volume| volume.id.to_string()).collect()
}

#[expect(clippy::disallowed_methods, reason = "what is waited for has no condition variable")]
fn within_seconds(seconds: u64, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < deadline, "not within {seconds} s");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_name_belongs_to_one_volume_in_all_pools() {
    let (p, q) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pools = vec![settings("p", p.path()), settings("q", q.path())];
    let engine = Engine::open(pools, Tuning::default()).unwrap();
    let in_pool = |pool: &str| CreateVolume { pool: Some(pool.parse().unwrap()), ..request("a") };
    engine.create(&in_pool("p")).unwrap();
    assert_eq!(kind(engine.create(&in_pool("q"))), Kind::Conflict);
    assert!(names(&q.path().join("volumes")).is_empty());
}

#[test]
fn the_record_has_the_name_and_labels_as_they_were_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let labels = [("csi.storage.k8s.io/pvc/name".to_owned(), "data".to_owned())].into();
    let volume = open(dir.path()).create(&CreateVolume { labels, ..request("../odd name") }).unwrap();
    let record = dir.path().join(format!("volumes/{}/volume.json", volume.id.name));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["requestedName"], "../odd name");
    assert_eq!(record["labels"]["csi.storage.k8s.io/pvc/name"], "data");
    assert_eq!(record["size"], MIB);
}

#[test]
fn a_pool_that_is_moved_takes_its_volumes_along() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    fs::create_dir(&before).unwrap();
    let engine = open(&before);
    let volume = engine.create(&request("a")).unwrap();
    let snapshot = engine.create_snapshot(&cut("s", &volume.id)).unwrap();
    fs::write(before.join("volumes/a/data/file"), "kept").unwrap();
    drop(engine);
    fs::rename(&before, &after).unwrap();
    let engine = open(&after);
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    assert_eq!(engine.get_snapshot(&snapshot.id).unwrap(), snapshot);
    assert_eq!(fs::read_to_string(after.join("volumes/a/data/file")).unwrap(), "kept");
}

#[test]
fn a_record_that_cannot_be_read_is_told_and_its_data_stays() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let volume = engine.create(&request("a")).unwrap();
    engine.create(&request("b")).unwrap();
    drop(engine);
    fs::write(dir.path().join("volumes/a/volume.json"), "{").unwrap();
    let engine = open(dir.path());
    assert_eq!(listed(&engine), ["p/a", "p/b"], "it is not left out");
    assert_eq!(kind(engine.get(&volume.id)), Kind::Internal);
    assert_eq!(kind(engine.delete(&volume.id)), Kind::Internal);
    assert!(dir.path().join("volumes/a/data").is_dir());
    let sick = engine.list_health(None, 10).unwrap().items;
    assert_eq!(sick.len(), 1);
    assert_eq!((&sick[0].0, sick[0].1[0].reason), (&volume.id, "RecordUnreadable"));
}

#[test]
fn a_retry_gets_the_volume_and_a_changed_wish_is_a_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let first =
        CreateVolume { owner: OwnerSpec { mode: Some(0o750), ..OwnerSpec::default() }, ..request("a") };
    let volume = engine.create(&first).unwrap();
    let other = engine.create(&request("other")).unwrap();
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
    assert_eq!(engine.create(&CreateVolume { policy, labels, ..first }).unwrap(), volume, "not compared");
}

#[test]
fn callers_at_once_make_one_volume() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), Tuning { lock_wait: Duration::from_secs(30), ..Tuning::default() });
    let made: Vec<Volume> = thread::scope(|scope| {
        let callers: Vec<_> =
            (0..16).map(|_| scope.spawn(|| engine.create(&request("a")).unwrap())).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert!(made.iter().all(|volume| *volume == made[0]));
    assert_eq!(names(&dir.path().join("volumes")).len(), 1);
    assert!(names(&dir.path().join("work")).is_empty());
    assert_eq!(engine.pools()[0].provisioned, MIB);
}

#[test]
fn a_copy_under_way_is_joined_and_never_seen_half_made() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), stuck());
    let (a, b) = (engine.create(&request("a")).unwrap().id, engine.create(&request("b")).unwrap().id);
    for _ in 0..2 {
        let error = engine.create(&clone_of("c", &a)).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.chain().contains("is being copied from volume p/a"), "{}", error.chain());
        assert!(!engine.create_snapshot(&cut("s", &a)).unwrap().ready);
    }
    assert_eq!(engine.jobs_running(), 2, "a retry starts no second copy");
    assert_eq!(kind(engine.create(&clone_of("c", &b))), Kind::Conflict);
    assert_eq!(kind(engine.create_snapshot(&cut("s", &b))), Kind::Conflict);
    assert_eq!(kind(engine.get(&"p/c".parse().unwrap())), Kind::NotFound);
    assert_eq!(listed(&engine), ["p/a", "p/b"]);
    assert!(!engine.get_snapshot(&"p/s".parse().unwrap()).unwrap().ready);
    assert!(engine.list_snapshots(&SnapshotFilter::default(), None, 10).unwrap().items.is_empty());
    assert_eq!(kind(engine.delete(&a)), Kind::Busy, "it is being read");
    engine.delete(&b).unwrap();
}

#[test]
fn a_snapshot_is_not_deleted_while_it_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let a = engine.create(&request("a")).unwrap().id;
    let s = engine.create_snapshot(&cut("s", &a)).unwrap().id;
    drop(engine);
    let engine = open_with(dir.path(), stuck());
    let restore = CreateVolume { source: Some(Source::Snapshot(s.clone())), ..request("b") };
    assert_eq!(kind(engine.create(&restore)), Kind::Busy);
    assert_eq!(kind(engine.delete_snapshot(&s)), Kind::Busy);
    assert!(engine.get_snapshot(&s).unwrap().ready);
}

#[test]
fn a_copy_longer_than_a_call_is_finished_by_retries() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), Tuning { copy_wait: Duration::ZERO, ..Tuning::default() });
    let a = engine.create(&request("a")).unwrap().id;
    let data = dir.path().join("volumes/a/data");
    for at in 0..300 {
        fs::write(data.join(format!("{at}")), format!("{at}")).unwrap();
    }
    within_seconds(60, || match engine.create(&clone_of("b", &a)) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
            false
        }
    });
    within_seconds(60, || engine.create_snapshot(&cut("s", &a)).unwrap().ready);
    for copy in ["volumes/b/data", "snapshots/s/data"] {
        assert_eq!(names(&dir.path().join(copy)), names(&data));
    }
    assert!(names(&dir.path().join("work")).is_empty());
}

#[test]
fn the_policy_at_deletion_decides_and_trash_can_be_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let trash = dir.path().join("trash");
    let engine = open(dir.path());
    let volume = engine.create(&request("a")).unwrap();
    fs::write(dir.path().join("volumes/a/data/file"), "kept").unwrap();
    let hour = Some(Duration::from_secs(3600));
    let change = PolicyChange { on_delete: Some(OnDelete::Trash), trash_for: hour, limit: None };
    let volume = engine.modify(&volume.id, change).unwrap();
    engine.delete(&volume.id).unwrap();
    assert_eq!(kind(engine.get(&volume.id)), Kind::NotFound);
    let retain = Policy { on_delete: OnDelete::Retain, ..Policy::default() };
    let retained = engine.create(&CreateVolume { policy: retain, ..request("r") }).unwrap();
    engine.delete(&retained.id).unwrap();
    drop(engine);
    let engine = open(dir.path());
    assert!(engine.wait_idle(Duration::from_secs(10)));
    let kept: Vec<_> = names(&trash).into_iter().collect();
    assert_eq!(kept.len(), 2, "also after a restart");
    assert!(kept[1].starts_with("r.keep."), "{kept:?}");
    drop(engine);
    fs::rename(trash.join(&kept[0]), dir.path().join("volumes/a")).unwrap();
    let engine = open(dir.path());
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    assert_eq!(fs::read_to_string(dir.path().join("volumes/a/data/file")).unwrap(), "kept");
}

#[test]
fn trash_goes_when_its_time_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let trash_for = Duration::from_secs(1);
    let policy = Policy { on_delete: OnDelete::Trash, trash_for, ..Policy::default() };
    let volume = engine.create(&CreateVolume { policy, ..request("a") }).unwrap();
    engine.delete(&volume.id).unwrap();
    assert_eq!(names(&dir.path().join("trash")).len(), 1);
    within_seconds(20, || names(&dir.path().join("trash")).is_empty());
}

#[test]
fn a_size_is_promised_and_not_enforced() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let small = CreateVolume { size: SizeRange { required: 4096, limit: 0 }, ..request("a") };
    let volume = engine.create(&small).unwrap();
    assert_eq!((volume.size, volume.enforced), (4096, Enforced::No));
    fs::write(dir.path().join("volumes/a/data/file"), vec![1; 1 << 20]).unwrap();
    let hard = Policy { limit: Limit::Hard, ..Policy::default() };
    let error = engine.create(&CreateVolume { policy: hard, ..request("b") }).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.chain().contains("cannot enforce a size"), "{}", error.chain());
    let hard = PolicyChange { limit: Some(Limit::Hard), ..PolicyChange::default() };
    assert_eq!(kind(engine.modify(&volume.id, hard)), Kind::Unsupported);
    assert_eq!(engine.get(&volume.id).unwrap(), volume, "nothing was changed");
    let any = engine.create(&CreateVolume { size: SizeRange::default(), ..request("c") }).unwrap();
    assert_eq!(any.size, 0);
}

#[test]
fn callers_together_are_not_promised_more_than_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let few = PoolSettings { overcommit_percent: 1, ..settings("p", dir.path()) };
    let engine = Engine::open(vec![few], Tuning::default()).unwrap();
    let limit = engine.pools()[0].total / 100;
    let third = SizeRange { required: limit / 3, limit: 0 };
    let made: Vec<_> = thread::scope(|scope| {
        let create = |name: String| engine.create(&CreateVolume { size: third, ..request(&name) });
        let callers: Vec<_> = (0..8).map(|at| scope.spawn(move || create(format!("v{at}")))).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 3);
    assert!(made.into_iter().filter_map(Result::err).all(|error| error.kind() == Kind::NoSpace));
    assert!(engine.pools()[0].provisioned <= limit);
}

#[test]
fn a_copy_has_at_least_the_size_and_by_default_the_owner_of_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mode = |bits| OwnerSpec { mode: Some(bits), ..OwnerSpec::default() };
    let size = SizeRange { required: 2 * MIB, limit: 0 };
    let a = engine.create(&CreateVolume { size, owner: mode(0o750), ..request("a") }).unwrap().id;
    let copy = |name: &str, required, limit, owner| {
        engine.create(&CreateVolume { size: SizeRange { required, limit }, owner, ..clone_of(name, &a) })
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
    engine.create_snapshot(&cut("s", &a)).unwrap();
    assert_eq!(engine.pools()[0].provisioned, before, "a snapshot is not counted as provisioned");
}

#[test]
fn what_is_not_on_this_node_sends_the_caller_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let missing: VolumeId = "p/none".parse().unwrap();
    let pool = Some("q".parse().unwrap());
    for (may_go_elsewhere, source) in [(true, Kind::NoSpace), (false, Kind::NotFound)] {
        let copy = CreateVolume { may_go_elsewhere, ..clone_of("a", &missing) };
        assert_eq!(kind(engine.create(&copy)), source);
        let elsewhere = CreateVolume { may_go_elsewhere, pool: pool.clone(), ..request("a") };
        assert_eq!(kind(engine.create(&elsewhere)), Kind::Invalid, "no node has it");
    }
    assert!(listed(&engine).is_empty());
}

#[test]
fn one_pool_that_is_not_there_leaves_the_others_alone() {
    let dir = tempfile::tempdir().unwrap();
    let pools = vec![settings("gone", &dir.path().join("missing")), settings("q", dir.path())];
    let engine = Engine::open(pools, Tuning::default()).unwrap();
    let here = CreateVolume { pool: Some("q".parse().unwrap()), ..request("a") };
    let volume = engine.create(&here).unwrap();
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    assert!(engine.capacity(Some(&"q".parse().unwrap())).unwrap().available > 0);
    assert_eq!(engine.capacity(Some(&"gone".parse().unwrap())).unwrap().available, 0);
    assert_eq!(kind(engine.capacity(Some(&"unknown".parse().unwrap()))), Kind::Invalid);
    let gone: VolumeId = "gone/a".parse().unwrap();
    assert_eq!(kind(engine.get(&gone)), Kind::Unavailable, "not: it does not exist");
    assert_eq!(kind(engine.list(None, 10)), Kind::Unavailable, "a list without it would be untrue");
    assert_eq!(engine.health(&gone, None).unwrap()[0].reason, "PoolUnavailable");
    engine.delete(&volume.id).unwrap();
}

#[test]
fn a_volume_without_its_data_is_a_loss_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let volume = engine.create(&request("a")).unwrap();
    assert!(engine.health(&volume.id, None).unwrap().is_empty());
    fs::remove_dir(dir.path().join("volumes/a/data")).unwrap();
    assert_eq!(engine.health(&volume.id, None).unwrap()[0].reason, "DataMissing");
}

#[test]
fn a_directory_made_by_hand_is_listed_copied_and_otherwise_left_alone() {
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
    assert_eq!(engine.create_snapshot(&cut("s", &mine)).unwrap().entries, 1);
    engine.create(&clone_of("b", &mine)).unwrap();
    engine.delete(&mine).unwrap();
    assert_eq!(names(&dir.path().join("volumes/mine/data")).len(), 1);
}

/// A pool and a folder for targets in a mount namespace of its own, which ends with the thread.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn enter(test: impl FnOnce(&Self) + Send) {
        let run = || {
            mounts::enter_new_namespace(MountPropagationFlags::PRIVATE);
            let world = Self { dir: tempfile::tempdir().unwrap() };
            fs::create_dir(world.pool()).unwrap();
            test(&world);
        };
        thread::scope(|scope| scope.spawn(run).join().unwrap());
    }

    fn pool(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    fn target(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn publish(&self, id: &VolumeId, target: &str, read_only: bool) -> Publish {
        let flags = MountFlags { read_only, ..MountFlags::default() };
        let (id, target) = (id.clone(), self.target(target));
        Publish { id, target, flags, sharing: Sharing::ManyTargets, ephemeral: None }
    }
}

#[test]
fn a_published_volume_outlives_orlop_and_its_pools_absence() {
    if !mounts::possible() {
        return;
    }
    World::enter(|world| {
        let engine = open(&world.pool());
        let small = CreateVolume { size: SizeRange { required: 4096, limit: 0 }, ..request("a") };
        let id = engine.create(&small).unwrap().id;
        let publish = world.publish(&id, "t", false);
        engine.publish(&publish).unwrap();
        drop(engine);
        fs::write(publish.target.join("file"), vec![1; 1 << 20]).unwrap();
        let engine = open(&world.pool());
        engine.publish(&publish).unwrap();
        assert_eq!(kind(engine.delete(&id)), Kind::InUse, "known from the kernel, not from memory");
        let usage = engine.stats(&id, &publish.target).unwrap();
        assert_eq!((usage.bytes.total, usage.bytes.available), (4096, 0));
        assert!(usage.bytes.used.unwrap() >= MIB);
        assert_eq!(engine.health(&id, Some(&publish.target)).unwrap()[0].reason, "OverSize");

        fs::rename(world.pool(), world.target("away")).unwrap();
        assert_eq!(kind(engine.publish(&world.publish(&id, "u", false))), Kind::Unavailable);
        assert!(!world.target("u").exists());
        engine.unpublish(&id.to_string(), &publish.target).unwrap();
        assert!(!publish.target.exists());
        fs::rename(world.target("away"), world.pool()).unwrap();
        engine.delete(&id).unwrap();
    });
}

#[test]
fn many_targets_show_one_volume_each_with_its_own_flags() {
    if !mounts::possible() {
        return;
    }
    World::enter(|world| {
        let engine = open(&world.pool());
        let id = engine.create(&request("a")).unwrap().id;
        let (write, read) = (world.publish(&id, "w", false), world.publish(&id, "r", true));
        engine.publish(&write).unwrap();
        engine.publish(&read).unwrap();
        fs::write(write.target.join("file"), "seen").unwrap();
        assert_eq!(fs::read_to_string(read.target.join("file")).unwrap(), "seen");
        let refused = fs::write(read.target.join("file"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let alone = Publish { sharing: Sharing::OneTarget, ..world.publish(&id, "one", false) };
        assert_eq!(kind(engine.publish(&alone)), Kind::InUse);
        for target in [&write.target, &read.target] {
            engine.unpublish(&id.to_string(), target).unwrap();
        }
        assert!(world.pool().join("volumes/a/data/file").exists());
    });
}

#[test]
fn unpublish_takes_away_only_what_is_its_own() {
    if !mounts::possible() {
        return;
    }
    World::enter(|world| {
        let engine = open(&world.pool());
        let (a, b) = (engine.create(&request("a")).unwrap().id, engine.create(&request("b")).unwrap().id);
        let publish = world.publish(&a, "t", false);
        engine.publish(&publish).unwrap();
        assert_eq!(kind(engine.unpublish(&b.to_string(), &publish.target)), Kind::Conflict);
        assert_eq!(kind(engine.publish(&world.publish(&b, "t", false))), Kind::Conflict);
        let never = world.target("never");
        engine.unpublish("p/gone", &never).unwrap();
        assert_eq!(kind(engine.unpublish("no id at all", &never)), Kind::NotFound);
        let full = world.target("full");
        fs::create_dir(&full).unwrap();
        fs::write(full.join("file"), "not ours").unwrap();
        assert!(engine.unpublish(&a.to_string(), &full).is_err());
        assert!(full.join("file").exists(), "a target is never emptied");
        for _ in 0..2 {
            engine.unpublish(&a.to_string(), &publish.target).unwrap();
        }
        engine.delete(&a).unwrap();
    });
}

/// kubelet may ask again when it has forgotten that it did, and never gives up on NOT_FOUND.
#[test]
fn an_inline_volume_that_is_gone_is_gone_for_every_retry() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let target = dir.path().join("target");
    let inline = format!("csi-{}", "0a".repeat(32));
    engine.unpublish(&inline, &target).unwrap();
    assert_eq!(kind(engine.unpublish("fake-vol-id", &target)), Kind::NotFound);
}

/// Where the volume may lie on a disk that is not there, "gone" would leave it there for ever.
#[test]
fn an_inline_volume_is_not_called_gone_while_a_pool_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let missing = settings("p", &dir.path().join("missing"));
    let engine = Engine::open(vec![missing], Tuning::default()).unwrap();
    let inline = format!("csi-{}", "0a".repeat(32));
    assert_eq!(kind(engine.unpublish(&inline, &dir.path().join("target"))), Kind::Unavailable);
}

#[test]
fn a_pool_is_served_by_its_own_name_only() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let engine = Engine::open(vec![settings("other", dir.path())], Tuning::default()).unwrap();
    assert!(engine.pools()[0].unavailable.as_ref().unwrap().contains("this is pool \"p\""));
}
