//! Group snapshots: all or nothing, by the engine and over CSI.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::group_controller_client::GroupControllerClient;
use orlop::csi::proto::*;
use orlop::engine::Engine;
use orlop::engine::request::{ConsistencySpec, CreateGroup, SnapshotGroup, Tuning};
use orlop::error::Kind;
use orlop::pool::locks::Mode;
use orlop::pool::object::{ObjectKey, ObjectKind};
use orlop::pool::{Pool, Purpose};
use orlop::volume::{Labels, Source};
use rustix::fs::inotify;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::csi::{create_request, from_snapshot, map};
use crate::common::disk::Disk;
use crate::common::isolation::in_own_process;
use crate::common::pool::{
    MIB, check, contents, copy_request, id, is_subvolume, kind, listed_snapshots, long_waits, names, open,
    open_with, read_record, request, settings_of, snapshot_record, snapshot_request,
};
use crate::common::server::{ORLOP, Server, connect};

fn group_request(name: &str, volumes: &[&str]) -> CreateGroup {
    CreateGroup {
        name: name.into(),
        pool: "p".parse().unwrap(),
        source_volumes: volumes.iter().map(|volume| id(volume)).collect(),
        consistency: ConsistencySpec { max_pause: Duration::from_secs(2), ..ConsistencySpec::default() },
        labels: Labels::new(),
    }
}

/// Makes volumes, each with a file that says its name.
fn make_volumes(engine: &Engine, pool: &Path, volumes: &[&str]) {
    for name in volumes {
        engine.create(&request(name, MIB)).unwrap();
        fs::write(pool.join("volumes").join(name).join("data/file"), format!("of {name}")).unwrap();
    }
}

fn snapshot_names(group: &SnapshotGroup) -> Vec<&str> {
    group.snapshots.iter().map(|snapshot| snapshot.id.name.as_str()).collect()
}

fn snapshots_on_disk(pool: &Path) -> BTreeSet<String> {
    names(&pool.join("snapshots"))
}

/// Creates a group, checks its snapshots, restores one, and deletes the group.
fn use_a_group(engine: &Engine, pool: &Path) {
    make_volumes(engine, pool, &["a", "b", "c"]);
    let wanted = group_request("g", &["c", "a", "b"]);
    let group = engine.create_group(&wanted).unwrap();
    assert_eq!(snapshot_names(&group), ["g.1", "g.2", "g.3"]);
    for (snapshot, volume) in group.snapshots.iter().zip(["a", "b", "c"]) {
        assert_eq!((&snapshot.source_volume, snapshot.created), (&id(volume), group.created));
        let data = pool.join("snapshots").join(snapshot.id.name.as_str()).join("data");
        assert_eq!(fs::read_to_string(data.join("file")).unwrap(), format!("of {volume}"));
    }
    assert_eq!(engine.create_group(&wanted).unwrap(), group, "a retry returns the same group");
    assert_eq!(engine.get_group(&id("g"), &[]).unwrap(), group);
    assert_eq!(listed_snapshots(engine).len(), 3);

    let restored = copy_request("r", Source::Snapshot(id("g.2")));
    engine.create(&restored).unwrap();
    assert_eq!(fs::read_to_string(pool.join("volumes/r/data/file")).unwrap(), "of b");
    engine.delete_group(&id("g"), &[]).unwrap();
    engine.delete_group(&id("g"), &[]).unwrap();
    assert_eq!(kind(engine.get_group(&id("g"), &[])), Kind::NotFound);
    assert!(snapshots_on_disk(pool).is_empty());
    check(engine, pool);
}

#[test]
fn a_group_is_created_restored_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    use_a_group(&engine, dir.path());
}

#[test]
fn a_group_on_btrfs_consists_of_snapshots_of_subvolumes() {
    in_own_process("api::groups::a_group_on_btrfs_consists_of_snapshots_of_subvolumes", || {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 1024, &["mkfs.btrfs"]);
        let (engine, pool) = (open(disk.path()), disk.path());
        use_a_group(&engine, pool);
        engine.create_group(&group_request("h", &["a", "b"])).unwrap();
        for name in ["h.1", "h.2"] {
            assert!(is_subvolume(&pool.join("snapshots").join(name).join("data")), "{name}");
            assert_eq!(read_record(&snapshot_record(pool, name))["consistency"], "crash");
        }
    });
}

#[test]
fn a_group_that_cannot_be_made_leaves_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    make_volumes(&engine, dir.path(), &["a", "b"]);
    let refused = |request: CreateGroup, expected: Kind, word: &str| {
        let error = engine.create_group(&request).unwrap_err();
        assert_eq!(error.kind(), expected, "{error}");
        assert!(error.chain().contains(word), "{:?} lacks {word:?}", error.chain());
        assert!(snapshots_on_disk(dir.path()).is_empty(), "{word}");
    };
    refused(group_request("g", &["a", "missing"]), Kind::NotFound, "volume p/missing");
    refused(group_request("g", &[]), Kind::Unsupported, "1 to 100 volumes");
    let mut other_pool = group_request("g", &["a"]);
    other_pool.source_volumes.insert("q/b".parse().unwrap());
    refused(other_pool, Kind::Unsupported, "volume q/b is not in pool p");
    // The copy of the last volume fails, when the others are complete.
    fs::write(dir.path().join("volumes/b/data/large"), vec![1; 3 << 20]).unwrap();
    refused(group_request("g", &["a", "b"]), Kind::OutOfRange, "copy volume p/b");
    fs::remove_file(dir.path().join("volumes/b/data/large")).unwrap();

    engine.create_snapshot(&snapshot_request("g.2", &id("a"))).unwrap();
    let error = engine.create_group(&group_request("g", &["a", "b"])).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.chain().contains("snapshot p/g.2 exists, of volume p/a"), "{error}");
    assert_eq!(snapshots_on_disk(dir.path()), BTreeSet::from(["g.2".to_owned()]));
}

#[test]
fn the_name_of_a_group_belongs_to_its_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    make_volumes(&engine, dir.path(), &["a", "b", "c"]);
    let group = engine.create_group(&group_request("g", &["a", "b"])).unwrap();
    for others in [&["a"][..], &["a", "c"], &["a", "b", "c"]] {
        assert_eq!(kind(engine.create_group(&group_request("g", others))), Kind::Conflict, "{others:?}");
    }
    assert_eq!(kind(engine.create_snapshot(&snapshot_request("g.1", &id("a")))), Kind::Conflict);
    assert_eq!(engine.get_group(&id("g"), &[]).unwrap(), group);
    let ids = |names: &[&str]| names.iter().map(|name| id(name).to_string()).collect::<Vec<_>>();
    assert_eq!(engine.get_group(&id("g"), &ids(&["g.2", "g.1"])).unwrap(), group, "in any order");
    for wrong in [&["g.1"][..], &["g.1", "g.2", "g.3"], &["g.1", "other"]] {
        assert_eq!(kind(engine.get_group(&id("g"), &ids(wrong))), Kind::Invalid, "{wrong:?}");
        assert_eq!(kind(engine.delete_group(&id("g"), &ids(wrong))), Kind::Invalid, "{wrong:?}");
    }
    engine.delete_group(&id("g"), &ids(&["g.1", "g.2"])).unwrap();
    assert!(snapshots_on_disk(dir.path()).is_empty());
}

#[test]
fn a_snapshot_of_a_group_is_not_deleted_alone() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    make_volumes(&engine, dir.path(), &["a", "b"]);
    engine.create_group(&group_request("g", &["a", "b"])).unwrap();
    for name in ["g.1", "g.2"] {
        let error = engine.delete_snapshot(&id(name)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.chain().contains("belongs to group snapshot p/g"), "{error}");
        assert_eq!(kind(engine.check_removable_snapshot(&id(name))), Kind::Invalid);
    }
    engine.delete(&id("a")).unwrap();
    assert_eq!(engine.get_group(&id("g"), &[]).unwrap().snapshots.len(), 2, "it outlives its volumes");
}

#[test]
fn what_an_interrupted_group_leaves_is_invisible_and_removed_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path();
    let engine = open(pool);
    make_volumes(&engine, pool, &["a", "b", "c"]);
    let wanted = group_request("g", &["a", "b", "c"]);
    let interrupt = || {
        engine.create_group(&wanted).unwrap();
        // A creation that is interrupted before its last step, and a deletion after its first one.
        fs::remove_dir_all(pool.join("snapshots/g.1")).unwrap();
        assert_eq!(snapshots_on_disk(pool).len(), 2);
    };
    interrupt();
    assert!(engine.list_snapshots(&Default::default(), None, 10).unwrap().items.is_empty());
    assert_eq!(kind(engine.get_snapshot(&id("g.2"))), Kind::NotFound);
    assert_eq!(kind(engine.get_group(&id("g"), &[])), Kind::NotFound);
    assert_eq!(kind(engine.create(&copy_request("r", Source::Snapshot(id("g.2"))))), Kind::NotFound);
    assert!(engine.snapshot_records(&"p".parse().unwrap()).unwrap().is_empty());

    let group = engine.create_group(&wanted).unwrap();
    assert_eq!(group.snapshots.len(), 3, "a retry makes the whole group anew");
    engine.delete_group(&id("g"), &[]).unwrap();
    interrupt();
    engine.delete_group(&id("g"), &[]).unwrap();
    assert!(snapshots_on_disk(pool).is_empty(), "a retry completes the deletion");
    interrupt();
    engine.delete_snapshot(&id("g.2")).unwrap();
    assert_eq!(snapshots_on_disk(pool), BTreeSet::from(["g.3".to_owned()]));
    let other = open(pool);
    assert!(snapshots_on_disk(pool).is_empty(), "the next start removes it");
    check(&other, pool);
}

#[test]
fn a_lost_or_damaged_record_of_the_first_snapshot_of_a_group_affects_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path();
    let engine = open(pool);
    make_volumes(&engine, pool, &["a", "b"]);
    engine.create_group(&group_request("g", &["a", "b"])).unwrap();
    let record = snapshot_record(pool, "g.1");
    for damage in [
        |record: &Path| fs::write(record, "damaged").unwrap(),
        |record: &Path| {
            fs::remove_file(record).unwrap();
        },
    ] {
        damage(&record);
        let next = open(pool);
        assert_eq!(snapshots_on_disk(pool).len(), 2);
        assert_eq!(next.get_snapshot(&id("g.2")).unwrap().source_volume, id("b"));
        assert_eq!(listed_snapshots(&next).len(), 1);
        next.create(&copy_request("r", Source::Snapshot(id("g.2")))).unwrap();
        next.delete(&id("r")).unwrap();
    }
}

#[test]
fn a_start_reads_the_record_of_each_snapshot_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    make_volumes(&engine, dir.path(), &["a", "b"]);
    engine.create_group(&group_request("g", &["a", "b"])).unwrap();
    engine.create_snapshot(&snapshot_request("s", &id("a"))).unwrap();
    drop(engine);
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    for name in ["g.1", "g.2", "s"] {
        // Without the closes, equal events would become one.
        let events = inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE;
        inotify::add_watch(&watch, snapshot_record(dir.path(), name), events).unwrap();
    }
    let engine = Engine::open(vec![settings_of("p", dir.path())], long_waits()).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watch, &mut buffer);
    let mut opened = 0;
    while let Ok(event) = reader.next() {
        opened += usize::from(event.events().contains(inotify::ReadFlags::OPEN));
    }
    assert_eq!(opened, 3);
    assert_eq!(listed_snapshots(&engine).len(), 3);
}

#[test]
fn a_group_and_the_snapshots_of_other_pools_have_different_names() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["p", "q"].map(|name| dir.path().join(name));
    paths.iter().for_each(|path| fs::create_dir(path).unwrap());
    let pools = vec![settings_of("p", &paths[0]), settings_of("q", &paths[1])];
    let engine = Engine::open(pools, long_waits()).unwrap();
    make_volumes(&engine, &paths[0], &["a", "b"]);
    let other =
        orlop::engine::request::CreateVolume { pool: Some("q".parse().unwrap()), ..request("other", MIB) };
    let other = engine.create(&other).unwrap().id;
    engine.create_snapshot(&snapshot_request("g.2", &other)).unwrap();
    let error = engine.create_group(&group_request("g", &["a", "b"])).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.chain().contains("snapshot q/g.2 exists"), "{error}");
}

#[test]
fn a_group_that_takes_longer_than_a_call_completes_over_retries() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), Tuning { copy_wait: Duration::ZERO, ..long_waits() });
    make_volumes(&engine, dir.path(), &["a", "b", "c"]);
    let wanted = group_request("g", &["a", "b"]);
    let begin = std::time::Instant::now();
    let mut waited = false;
    let group = loop {
        match engine.create_group(&wanted) {
            Ok(group) => break group,
            Err(error) => assert_eq!(error.kind(), Kind::Busy, "{error}"),
        }
        if !waited {
            let others = engine.create_group(&group_request("g", &["a", "c"]));
            assert_eq!(kind(others), Kind::Conflict, "also while it is made");
        }
        waited = true;
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    };
    assert!(waited && group.snapshots.len() == 2);
    let data = |name: &str| contents(&dir.path().join(name).join("data"));
    assert_eq!(data("snapshots/g.2"), data("volumes/b"));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "runs orlop")]
fn a_group_is_removed_by_hand_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    make_volumes(&engine, dir.path(), &["a", "b"]);
    engine.create_group(&group_request("g", &["a", "b"])).unwrap();
    let rm = |arguments: &[&str]| {
        let mut orlop = std::process::Command::new(ORLOP);
        let ran = orlop.args(["snapshot", "rm", "--pool"]).arg(format!("p={}", dir.path().display()));
        let ran = ran.args(arguments).output().unwrap();
        (
            ran.status.success(),
            String::from_utf8(ran.stdout).unwrap() + &String::from_utf8(ran.stderr).unwrap(),
        )
    };
    let (done, said) = rm(&["p/g.1"]);
    assert!(!done && said.contains("belongs to group snapshot p/g"), "{said}");
    let (done, said) = rm(&["p/none"]);
    assert!(!done && said.contains("snapshot p/none does not exist"), "{said}");
    assert_eq!(rm(&["--dry-run", "p/g"]), (true, "would delete snapshot p/g\n".to_owned()));
    assert_eq!(snapshots_on_disk(dir.path()).len(), 2);
    assert_eq!(rm(&["p/g"]), (true, "p/g\n".to_owned()));
    assert!(snapshots_on_disk(dir.path()).is_empty());
    // An interrupted deletion, and a record that was lost.
    for lost in ["snapshots/g.1", "snapshots/g.1/snapshot.json"] {
        engine.create_group(&group_request("g", &["a", "b"])).unwrap();
        let lost = dir.path().join(lost);
        if lost.is_dir() { fs::remove_dir_all(lost) } else { fs::remove_file(lost) }.unwrap();
        assert_eq!(rm(&["--dry-run", "p/g"]), (true, "would delete snapshot p/g\n".to_owned()));
        assert_eq!(rm(&["p/g"]), (true, "p/g\n".to_owned()));
        assert!(snapshots_on_disk(dir.path()).is_empty());
        assert!(!rm(&["p/g"]).0, "there is nothing left");
    }
}

#[test]
fn what_is_left_of_a_group_and_in_use_does_not_take_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    make_volumes(&engine, dir.path(), &["a", "b"]);
    let wanted = group_request("g", &["a", "b"]);
    engine.create_group(&wanted).unwrap();
    fs::remove_dir_all(dir.path().join("snapshots/g.1")).unwrap();
    let other = Pool::new(settings_of("p", dir.path()), Purpose::Command, Duration::ZERO, Duration::ZERO)
        .get_or_open();
    let key = ObjectKey::Data(ObjectKind::Snapshots, "g.2".parse().unwrap());
    let lock = other.as_ref().unwrap().store.locks().try_lock(key, Mode::Exclusive).unwrap().unwrap();
    for error in [engine.create_group(&wanted).unwrap_err(), engine.delete_group(&id("g"), &[]).unwrap_err()]
    {
        assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
        assert!(
            error.chain().contains("snapshot p/g.2, which an interrupted call has left"),
            "{}",
            error.chain()
        );
    }
    drop(lock);
    assert_eq!(engine.create_group(&wanted).unwrap().snapshots.len(), 2);
}

#[test]
fn a_group_whose_first_snapshot_has_lost_its_record_is_deleted_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    make_volumes(&engine, dir.path(), &["a", "b", "c"]);
    engine.create_group(&group_request("g", &["a", "b", "c"])).unwrap();
    for lost in ["g.1", "g.3"] {
        fs::remove_file(snapshot_record(dir.path(), lost)).unwrap();
    }
    for error in [
        engine.get_group(&id("g"), &[]).unwrap_err(),
        engine.create_group(&group_request("g", &["a", "b", "c"])).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Unreadable, "{}", error.chain());
        assert!(error.chain().contains("lacks snapshot p/g.1"), "{}", error.chain());
    }
    let snapshots = ["p/g.1", "p/g.2"].map(str::to_owned);
    assert_eq!(kind(engine.delete_group(&id("g"), &snapshots)), Kind::Invalid, "it has three");
    engine.delete_group(&id("g"), &[]).unwrap();
    assert!(snapshots_on_disk(dir.path()).is_empty());
    check(&engine, dir.path());
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, word: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().contains(word), "{:?} lacks {word:?}", status.message());
}

type Groups = GroupControllerClient<Channel>;

/// A server with the volumes `p/v` and `p/w`.
async fn start() -> (Server, ControllerClient<Channel>, Groups) {
    let server = Server::start(true);
    let mut controller = server.controller().await;
    for name in ["v", "w"] {
        controller.create_volume(create_request(name)).await.unwrap();
    }
    let groups = GroupControllerClient::new(connect(&server.socket()).await);
    (server, controller, groups)
}

fn create(name: &str, volumes: &[&str], parameters: &[(&str, &str)]) -> CreateVolumeGroupSnapshotRequest {
    CreateVolumeGroupSnapshotRequest {
        name: name.to_owned(),
        source_volume_ids: volumes.iter().map(|volume| (*volume).to_owned()).collect(),
        parameters: map(parameters),
        ..Default::default()
    }
}

fn get(id: &str, snapshots: &[&str]) -> GetVolumeGroupSnapshotRequest {
    GetVolumeGroupSnapshotRequest {
        group_snapshot_id: id.to_owned(),
        snapshot_ids: snapshots.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_group_controller_answers_as_the_specification_says() {
    let (_server, _, mut groups) = start().await;
    let capabilities =
        groups.group_controller_get_capabilities(GroupControllerGetCapabilitiesRequest {}).await.unwrap();
    assert_eq!(capabilities.into_inner().capabilities.len(), 1);
    for (request, code, word) in [
        (create("", &["p/v"], &[]), Code::InvalidArgument, "name is required"),
        (create("g", &[], &[]), Code::InvalidArgument, "source_volume_ids is required"),
        (create("g", &["p/v", "p/v"], &[]), Code::InvalidArgument, "contains p/v twice"),
        (create("g", &["p/v", "../x"], &[]), Code::NotFound, "../x"),
        (create("g", &["p/v", "p/none"], &[]), Code::NotFound, "volume p/none does not exist"),
        (create("g", &["p/v", "q/w"], &[]), Code::FailedPrecondition, "must be in one pool"),
        (create("g", &["p/v"], &[("consistency", "none")]), Code::InvalidArgument, "consistency"),
        (create("g", &["p/v"], &[("unknown", "1")]), Code::InvalidArgument, "unknown"),
    ] {
        refused(groups.create_volume_group_snapshot(request).await, code, word);
    }
}

#[tokio::test]
async fn a_group_is_created_listed_and_deleted_over_csi() {
    let (server, mut controller, mut groups) = start().await;
    let labels = [("csi.storage.k8s.io/volumegroupsnapshot/name", "nightly"), ("maxPause", "5s")];
    let group = groups.create_volume_group_snapshot(create("g", &["p/w", "p/v"], &labels)).await.unwrap();
    let group = group.into_inner().group_snapshot.unwrap();
    assert!(group.ready_to_use && group.creation_time.is_some() && group.group_snapshot_id == "p/g");
    let of: Vec<_> = group.snapshots.iter().map(|snapshot| &snapshot.source_volume_id[..]).collect();
    assert_eq!(of, ["p/v", "p/w"]);
    assert!(
        group.snapshots.iter().all(|snapshot| snapshot.group_snapshot_id == "p/g" && snapshot.ready_to_use)
    );
    let record = read_record(&snapshot_record(&server.pool(), "g.1"));
    assert_eq!(record["labels"]["csi.storage.k8s.io/volumegroupsnapshot/name"], "nightly");
    refused(
        groups.create_volume_group_snapshot(create("g", &["p/v"], &[])).await,
        Code::AlreadyExists,
        "other volumes",
    );

    let listed = controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let listed: Vec<_> = listed.entries.into_iter().map(|entry| entry.snapshot.unwrap()).collect();
    assert_eq!(listed, group.snapshots, "single snapshots name their group, too");
    let alone = DeleteSnapshotRequest { snapshot_id: "p/g.1".into(), ..Default::default() };
    refused(controller.delete_snapshot(alone).await, Code::InvalidArgument, "group snapshot p/g");
    let restore =
        CreateVolumeRequest { volume_content_source: from_snapshot("p/g.2"), ..create_request("r") };
    controller.create_volume(restore).await.unwrap();

    let found = groups.get_volume_group_snapshot(get("p/g", &["p/g.1", "p/g.2"])).await.unwrap();
    assert_eq!(found.into_inner().group_snapshot.unwrap(), group);
    for (request, code) in [
        (get("", &[]), Code::InvalidArgument),
        (get("p/h", &[]), Code::NotFound),
        (get("p/g.1", &[]), Code::NotFound),
        (get("p/g", &["p/g.1"]), Code::InvalidArgument),
    ] {
        refused(groups.get_volume_group_snapshot(request).await, code, "");
    }
    let delete = |id: &str, snapshots: &[&str]| {
        let GetVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, secrets } = get(id, snapshots);
        DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, secrets }
    };
    let wrong = delete("p/g", &["p/g.1", "p/x"]);
    refused(groups.delete_volume_group_snapshot(wrong).await, Code::InvalidArgument, "p/g.1, p/g.2");
    for request in [delete("p/g", &["p/g.1", "p/g.2"]), delete("p/g", &["p/g.1", "p/g.2"]), delete("?", &[])]
    {
        groups.delete_volume_group_snapshot(request).await.unwrap();
    }
    assert!(names(&server.pool().join("snapshots")).is_empty());
}
