//! Records and markers on disk: their fields, newer schemas, unknown fields, damage, and the bound on their size.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use orlop::engine::Engine;
use orlop::engine::request::{ConsistencySpec, CreateSnapshot, CreateVolume, SnapshotFilter, Tuning};
use orlop::error::{Kind, Result};
use orlop::volume::{Consistency, CopyRecord, OnDelete, PolicyChange, SizeRange, Source, Timestamp};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::common::isolation::in_own_process;
use crate::common::pool::{
    MIB, clone_request, contents, copy_request, edit_record, id, kind, listed, listed_snapshots, open,
    read_record, request, settings, snapshot_record, snapshot_request, volume_record,
};

/// The largest record or marker.
const BOUND: usize = 64 << 10;

const TO_2_MIB: SizeRange = SizeRange { required: 2 * MIB, limit: 0 };

/// When a record is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damaged {
    BeforeStart,
    AtRunTime,
}

/// Checks that a call fails with this kind and that the error contains a text.
#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T>, kind: Kind, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", error.chain());
    assert!(error.chain().contains(text), "{}", error.chain());
}

/// A pool with the volumes `a` and `b` and their snapshots `s` and `t`, after `damage` was done to its files.
fn damaged_pool(pool: &Path, when: Damaged, damage: impl FnOnce()) -> Engine {
    let engine = open(pool);
    for (volume, snapshot) in [("a", "s"), ("b", "t")] {
        engine.create(&request(volume, MIB)).unwrap();
        fs::write(pool.join("volumes").join(volume).join("data/file"), volume).unwrap();
        engine.create_snapshot(&snapshot_request(snapshot, &id(volume))).unwrap();
    }
    match when {
        Damaged::AtRunTime => {
            damage();
            engine
        }
        Damaged::BeforeStart => {
            drop(engine);
            damage();
            open(pool)
        }
    }
}

/// The files of volume `a` and of snapshot `s`.
fn files_of_a_and_s(pool: &Path) -> [BTreeMap<String, String>; 2] {
    ["volumes/a", "snapshots/s"].map(|object| contents(&pool.join(object)))
}

/// Checks that every call for volume `a` and snapshot `s` fails, and that they are reported and stay on disk.
fn check_unreadable(engine: &Engine, pool: &Path, kind: Kind, reason: &str) {
    let before = files_of_a_and_s(pool);
    // The listing is first: at run time, no other call has read the damaged record yet.
    assert_eq!(listed_snapshots(engine), BTreeSet::from(["t".to_owned()]));
    let only_s = SnapshotFilter { id: Some(id("s")), ..SnapshotFilter::default() };
    fails(engine.list_snapshots(&only_s, None, 10), kind, reason);
    fails(engine.get_snapshot(&id("s")), kind, reason);
    fails(engine.create_snapshot(&snapshot_request("s", &id("b"))), kind, reason);
    fails(engine.create(&copy_request("restored", Source::Snapshot(id("s")))), kind, reason);
    fails(engine.delete_snapshot(&id("s")), kind, reason);

    fails(engine.get(&id("a")), kind, reason);
    fails(engine.create(&request("a", MIB)), kind, reason);
    fails(engine.expand(&id("a"), TO_2_MIB), kind, reason);
    let retain = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
    fails(engine.modify(&id("a"), retain), kind, reason);
    fails(engine.create_snapshot(&snapshot_request("u", &id("a"))), kind, reason);
    fails(engine.create(&clone_request("clone", &id("a"))), kind, reason);
    fails(engine.delete(&id("a")), kind, reason);

    assert!(listed(engine).contains_key("a"), "an unreadable volume is listed");
    let unhealthy = engine.list_health(None, 10).unwrap().items;
    let [(volume, symptoms)] = unhealthy.as_slice() else { panic!("{unhealthy:?}") };
    assert_eq!(*volume, id("a"));
    for symptoms in [symptoms, &engine.health(&id("a"), None).unwrap()] {
        let [symptom] = symptoms.as_slice() else { panic!("{symptoms:?}") };
        assert_eq!(symptom.reason, "RecordUnreadable");
        assert!(symptom.message.contains(reason), "{}", symptom.message);
    }
    assert_eq!(engine.pools()[0].unreadable, 2);
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    assert_eq!(files_of_a_and_s(pool), before, "nothing of an unreadable object changes");
}

/// Checks that the rest of the pool works.
fn check_others_work(engine: &Engine) {
    assert!(engine.capacity(None).unwrap().available > 0);
    assert_eq!(listed(engine).get("b"), Some(&MIB));
    assert_eq!(engine.expand(&id("b"), TO_2_MIB).unwrap().size, 2 * MIB);
    assert!(engine.health(&id("b"), None).unwrap().is_empty());
    engine.create(&request("new", MIB)).unwrap();
    engine.create(&copy_request("of-t", Source::Snapshot(id("t")))).unwrap();
    engine.create(&clone_request("of-b", &id("b"))).unwrap();
    engine.create_snapshot(&snapshot_request("new", &id("b"))).unwrap();
    assert_eq!(listed_snapshots(engine), BTreeSet::from(["new".to_owned(), "t".to_owned()]));
    engine.delete_snapshot(&id("t")).unwrap();
    engine.delete(&id("b")).unwrap();
    assert_eq!(kind(engine.get(&id("b"))), Kind::NotFound);
}

#[test]
fn every_object_has_a_new_uid() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let uid = |path: &Path| {
        let record = read_record(path);
        let uid: uuid::Uuid = record["uid"].as_str().unwrap().parse().unwrap();
        assert!(!uid.is_nil(), "{}", path.display());
        uid
    };
    let volume_uid = |name: &str| uid(&volume_record(dir.path(), name));
    let snapshot_uid = |name: &str| uid(&snapshot_record(dir.path(), name));

    assert_eq!(engine.create(&request("a", MIB)).unwrap().uid, volume_uid("a"));
    let first = volume_uid("a");
    engine.create(&request("a", MIB)).unwrap();
    engine.expand(&id("a"), TO_2_MIB).unwrap();
    assert_eq!(volume_uid("a"), first, "a retry and an expansion keep the uid");
    engine.create_snapshot(&snapshot_request("s", &id("a"))).unwrap();
    engine.create(&clone_request("b", &id("a"))).unwrap();
    engine.create(&copy_request("c", Source::Snapshot(id("s")))).unwrap();
    let mut uids = vec![first, volume_uid("b"), volume_uid("c"), snapshot_uid("s")];

    engine.delete(&id("a")).unwrap();
    engine.delete_snapshot(&id("s")).unwrap();
    engine.create(&request("a", MIB)).unwrap();
    engine.create_snapshot(&snapshot_request("s", &id("a"))).unwrap();
    uids.extend([volume_uid("a"), snapshot_uid("s")]);
    let unique: BTreeSet<_> = uids.iter().collect();
    assert_eq!(unique.len(), uids.len(), "{uids:?}");
}

#[test]
fn records_have_rfc_3339_times_and_name_the_source_volume() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let volume = engine.create(&request("a", MIB)).unwrap();
    let snapshot = engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
    let time = |record: &Value| -> Timestamp {
        let text = record["created"].as_str().unwrap();
        // Such as 2026-01-02T03:04:05.678Z.
        assert!(text.as_bytes()[10] == b'T' && text.ends_with('Z'), "{text}");
        text.parse().unwrap()
    };
    assert_eq!(time(&read_record(&volume_record(dir.path(), "a"))), volume.created);
    let record = read_record(&snapshot_record(dir.path(), "s"));
    assert_eq!(time(&record), snapshot.created);
    assert_eq!(record["sourceVolume"], "p/a");
    assert!(time(&read_record(&dir.path().join("orlop.json"))) <= volume.created);
}

#[test]
fn records_of_a_newer_schema_are_reported_and_their_objects_never_deleted() {
    for when in [Damaged::BeforeStart, Damaged::AtRunTime] {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path();
        let engine = damaged_pool(pool, when, || {
            for record in [volume_record(pool, "a"), snapshot_record(pool, "s")] {
                edit_record(&record, |record| {
                    record["schema"] = json!(2);
                    // A newer schema may give a field another type.
                    record["size"] = json!({"bytes": 1});
                });
            }
        });
        check_unreadable(&engine, pool, Kind::Unreadable, "it has schema 2");
        check_others_work(&engine);
    }
}

#[test]
fn damaged_records_affect_their_objects_only() {
    for when in [Damaged::BeforeStart, Damaged::AtRunTime] {
        for damage in ["", "{", "[]", r#"{"schema": 0}"#, r#"{"schema": 1}"#] {
            let dir = tempfile::tempdir().unwrap();
            let pool = dir.path();
            let engine = damaged_pool(pool, when, || {
                for record in [volume_record(pool, "a"), snapshot_record(pool, "s")] {
                    fs::write(record, damage).unwrap();
                }
            });
            check_unreadable(&engine, pool, Kind::Unreadable, "it is damaged");
            check_others_work(&engine);
        }
    }
}

#[test]
fn a_repaired_record_makes_its_object_usable_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path();
    let engine = damaged_pool(pool, Damaged::AtRunTime, || {});
    let records = [volume_record(pool, "a"), snapshot_record(pool, "s")];
    let originals = records.each_ref().map(|record| fs::read(record).unwrap());
    records.iter().for_each(|record| fs::write(record, "{").unwrap());
    fails(engine.get(&id("a")), Kind::Unreadable, "it is damaged");
    fails(engine.get_snapshot(&id("s")), Kind::Unreadable, "it is damaged");
    assert_eq!(engine.pools()[0].unreadable, 2);
    for (record, original) in records.iter().zip(originals) {
        fs::write(record, original).unwrap();
    }
    engine.get(&id("a")).unwrap();
    engine.get_snapshot(&id("s")).unwrap();
    assert_eq!(engine.pools()[0].unreadable, 0);
    let listed = engine.list_snapshots(&SnapshotFilter::default(), None, 10).unwrap();
    assert!(listed.items.iter().any(|snapshot| snapshot.id == id("s")), "{listed:?}");
}

#[test]
fn a_failed_system_call_does_not_mark_records_as_damaged() {
    // The limit on open files is that of the process.
    in_own_process("api::records::a_failed_system_call_does_not_mark_records_as_damaged", without_open_files);
}

fn without_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let engine = damaged_pool(dir.path(), Damaged::AtRunTime, || {});
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limits }).unwrap();
    let failed = [
        engine.get(&id("a")).err(),
        engine.get(&id("missing")).err(),
        engine.get_snapshot(&id("s")).err(),
        engine.get_snapshot(&id("missing")).err(),
        engine.list_snapshots(&SnapshotFilter::default(), None, 10).err(),
    ];
    setrlimit(Resource::Nofile, limits).unwrap();
    for error in failed {
        assert_eq!(error.map(|error| error.kind()), Some(Kind::Internal));
    }
    let status = &engine.pools()[0];
    assert_eq!((status.volumes, status.snapshots, status.unreadable), (2, 2, 0));
    assert_eq!(listed_snapshots(&engine), BTreeSet::from(["s".to_owned(), "t".to_owned()]));
}

#[test]
fn records_above_the_size_bound_affect_their_objects_only() {
    for when in [Damaged::BeforeStart, Damaged::AtRunTime] {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path();
        let start = Instant::now();
        let engine = damaged_pool(pool, when, || {
            let records =
                [(volume_record(pool, "a"), 1 << 40), (snapshot_record(pool, "s"), BOUND as u64 + 1)];
            for (record, size) in records {
                File::options().write(true).open(record).unwrap().set_len(size).unwrap();
            }
        });
        // Without the files: reading 1 TiB is what orlop must not do.
        fails(engine.get(&id("a")), Kind::Unreadable, "larger than 65536 bytes");
        fails(engine.delete(&id("a")), Kind::Unreadable, "larger than 65536 bytes");
        fails(engine.get_snapshot(&id("s")), Kind::Unreadable, "larger than 65536 bytes");
        fails(engine.delete_snapshot(&id("s")), Kind::Unreadable, "larger than 65536 bytes");
        assert_eq!(engine.health(&id("a"), None).unwrap()[0].reason, "RecordUnreadable");
        check_others_work(&engine);
        assert!(pool.join("volumes/a/data/file").exists() && pool.join("snapshots/s/data/file").exists());
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}

#[test]
fn a_marker_above_the_size_bound_makes_the_pool_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("orlop.json");
    open(dir.path()).create(&request("a", MIB)).unwrap();
    let text = fs::read_to_string(&marker).unwrap();
    let padded = |size: usize| text.clone() + &" ".repeat(size - text.len());
    fs::write(&marker, padded(BOUND)).unwrap();
    open(dir.path()).get(&id("a")).unwrap();
    for size in [BOUND as u64 + 1, 1 << 40] {
        let start = Instant::now();
        fs::write(&marker, padded(BOUND + 1)).unwrap();
        File::options().write(true).open(&marker).unwrap().set_len(size).unwrap();
        let engine = Engine::open(vec![settings(dir.path())], Tuning::default()).unwrap();
        fails(engine.get(&id("a")), Kind::Unavailable, "larger than 65536 bytes");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}

#[test]
fn unknown_fields_survive_a_rewrite() {
    let dir = tempfile::tempdir().unwrap();
    let record = volume_record(dir.path(), "a");
    let engine = open(dir.path());
    engine.create(&request("a", MIB)).unwrap();
    edit_record(&record, |record| {
        record["tags"] = json!(["x", {"y": null}]);
        record["policy"]["color"] = json!("red");
    });
    let check = |size: u64, on_delete: &str| {
        let record = read_record(&record);
        assert_eq!(record["tags"], json!(["x", {"y": null}]));
        assert_eq!(record["policy"]["color"], "red");
        assert_eq!((&record["size"], &record["policy"]["onDelete"]), (&json!(size), &json!(on_delete)));
    };
    check(MIB, "delete");
    engine.expand(&id("a"), TO_2_MIB).unwrap();
    check(2 * MIB, "delete");
    let retain = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
    engine.modify(&id("a"), retain).unwrap();
    check(2 * MIB, "retain");
    drop(engine);
    let engine = open(dir.path());
    engine.expand(&id("a"), SizeRange { required: 3 * MIB, limit: 0 }).unwrap();
    check(3 * MIB, "retain");
}

#[test]
fn the_records_of_copies_say_how_consistent_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let source = engine.create(&request("a", MIB)).unwrap().id;
    let unpaused = ConsistencySpec { consistency: Consistency::None, ..ConsistencySpec::default() };
    engine.create_snapshot(&snapshot_request("s", &source)).unwrap();
    engine.create(&clone_request("b", &source)).unwrap();
    engine.create(&CreateVolume { consistency: unpaused, ..clone_request("c", &source) }).unwrap();
    engine.create(&copy_request("d", Source::Snapshot(id("s")))).unwrap();
    let fields = |path: &Path| ["consistency", "pauseMs", "paused"].map(|key| read_record(path)[key].clone());
    let none = [Value::Null, Value::Null, Value::Null];
    let of = |consistency: &str| [json!(consistency), json!(0), Value::Null];
    assert_eq!(fields(&snapshot_record(dir.path(), "s")), of("crash"));
    let expected = [("a", none.clone()), ("b", of("crash")), ("c", of("none")), ("d", none)];
    for (volume, expected) in expected {
        assert_eq!(fields(&volume_record(dir.path(), volume)), expected, "{volume}");
    }
    // A retry gets the copy as it was made.
    let retry = CreateSnapshot { consistency: unpaused, ..snapshot_request("s", &source) };
    assert_eq!(engine.create_snapshot(&retry).unwrap().copied.consistency, Consistency::Crash);
}

#[test]
fn copies_of_earlier_versions_are_not_consistent() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let source = engine.create(&request("a", MIB)).unwrap().id;
    engine.create_snapshot(&snapshot_request("s", &source)).unwrap();
    engine.create(&clone_request("b", &source)).unwrap();
    for path in [snapshot_record(dir.path(), "s"), volume_record(dir.path(), "b")] {
        edit_record(&path, |record| {
            record.as_object_mut().unwrap().retain(|key, _| !["consistency", "pauseMs"].contains(&&key[..]));
        });
    }
    let snapshot = engine.get_snapshot(&id("s")).unwrap();
    assert_eq!(snapshot.copied, CopyRecord::unpaused(Consistency::None));
    assert_eq!(engine.get(&id("b")).unwrap().copied, None);
    let change = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
    engine.modify(&id("b"), change).unwrap();
    assert_eq!(read_record(&volume_record(dir.path(), "b"))["consistency"], Value::Null);
}

#[test]
fn a_marker_of_another_backend_makes_the_pool_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("orlop.json");
    open(dir.path()).create(&request("a", MIB)).unwrap();
    let backend = read_record(&marker)["backend"].as_str().unwrap().to_owned();
    edit_record(&marker, |marker| marker["backend"] = json!("other"));
    let before = contents(dir.path());
    let engine = Engine::open(vec![settings(dir.path())], Tuning::default()).unwrap();
    fails(engine.create(&request("b", MIB)), Kind::Unavailable, "\"other\"");
    fails(engine.delete(&id("a")), Kind::Unavailable, &format!("{backend:?}"));
    let reason = engine.pools().remove(0).unavailable.unwrap();
    assert!(reason.contains("\"other\"") && reason.contains(&format!("{backend:?}")), "{reason}");
    assert_eq!(engine.capacity(None).unwrap().available, 0);
    assert_eq!(contents(dir.path()), before, "nothing changed");
    edit_record(&marker, |marker| marker["backend"] = json!(backend));
    engine.get(&id("a")).unwrap();
}
