//! Malicious names, ids, targets, records and files: there is no panic, errors have the right kind, and nothing outside
//! the pool is changed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, Publish, Sharing, SnapshotFilter, Tuning};
use orlop::error::{Kind, Result};
use orlop::mount::MountFlags;
use orlop::volume::{Labels, Name, OnDelete, Policy, PolicyChange, PoolName, SizeRange, Source, VolumeId};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::common::backends::{ROOM, random_cases, rerun_on_each_backend};
use crate::common::pool::{
    check, clone_request, contents_and_times, copy_request, id, kind, listed, memory_dir, names, open,
    request, settings, snapshot_request,
};

/// A pool, and beside it a tree that must not change.
struct Sandbox {
    _dir: tempfile::TempDir,
    base: PathBuf,
    canary: BTreeMap<String, String>,
}

impl Sandbox {
    fn new() -> Self {
        let dir = memory_dir();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("canary/volumes/x/data")).unwrap();
        fs::create_dir_all(base.join("canary/data")).unwrap();
        fs::write(base.join("canary/data/file"), "canary").unwrap();
        fs::write(base.join("canary/volumes/x/data/file"), "canary").unwrap();
        fs::write(base.join("canary/volume.json"), "canary").unwrap();
        fs::create_dir(base.join("pool")).unwrap();
        let canary = contents_and_times(&base.join("canary"));
        Self { _dir: dir, base, canary }
    }

    fn pool(&self) -> PathBuf {
        self.base.join("pool")
    }

    fn canary(&self) -> PathBuf {
        self.base.join("canary")
    }

    fn assert_untouched(&self) {
        assert_eq!(contents_and_times(&self.canary()), self.canary, "files outside the pool changed");
        let beside: Vec<_> = names(&self.base).into_iter().collect();
        assert_eq!(beside, ["canary", "pool"], "files were created beside the pool");
    }
}

/// Malicious text: long, short, and with characters that have a meaning in a path, a shell or a terminal.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just(".."),
        Just("."),
        Just("/"),
        Just("\0"),
        Just("\n"),
        Just("ü"),
        Just("\u{202e}"),
        Just("a"),
        Just("p"),
        Just("_"),
        Just("-"),
        Just("canary"),
        Just("volumes"),
        Just("trash"),
        Just("work"),
        Just("%2e"),
        Just("\\"),
        Just("volume.json"),
        Just("\u{1F6A2}"),
        Just(" "),
        Just("~"),
        Just("$(x)"),
    ];
    prop_oneof![
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat()),
        any::<String>(),
        "[a-z]{1,80}",
        Just("🚢".repeat(32)),
        Just("x/".repeat(2048)),
        Just("p/../canary".to_owned()),
        Just("p/..".to_owned()),
        Just("../canary/x".to_owned()),
    ]
}

/// The schema of a record, mostly the known one.
fn schema() -> impl Strategy<Value = u32> {
    prop_oneof![8 => Just(1_u32), 1 => any::<u32>()]
}

/// The time of creation in a record: valid, out of range, or any text.
fn timestamp() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("2026-01-02T03:04:05.6Z".to_owned()),
        1 => Just("-009999-01-02T01:59:59Z".to_owned()),
        1 => Just("+999999-01-01T00:00:00Z".to_owned()),
        1 => text(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: random_cases(200),
        max_shrink_time: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_text_is_a_safe_volume_name(texts in prop::collection::vec(text(), 1..6)) {
        let sandbox = Sandbox::new();
        let engine = open(&sandbox.pool());
        let mut made = BTreeMap::new();
        for text in &texts {
            let labels = Labels::from([(text.clone(), text.clone())]);
            let volume = engine.create(&CreateVolume { labels, ..request(text, ROOM) }).unwrap();
            prop_assert_eq!(&volume.requested_name, text);
            prop_assert_eq!(&engine.get(&volume.id).unwrap(), &volume);
            let parsed: VolumeId = volume.id.to_string().parse().unwrap();
            prop_assert_eq!(&parsed, &volume.id);
            let snapshot = engine.create_snapshot(&snapshot_request(text, &volume.id)).unwrap();
            prop_assert_eq!(&snapshot.requested_name, text);
            made.insert(text, volume.id);
        }
        check(&engine, &sandbox.pool());
        prop_assert_eq!(names(&sandbox.pool().join("volumes")).len(), made.len(), "one directory for each name");
        for (text, id) in made {
            // As an id, the same text identifies a volume of this pool or nothing.
            match text.parse::<VolumeId>() {
                Ok(parsed) => {
                    let found = engine.get(&parsed).map(|volume| volume.id).map_err(|error| error.kind());
                    prop_assert!(matches!(found, Ok(_) | Err(Kind::NotFound)), "{:?}", found);
                    // The pool in the text may be one that is not configured.
                    let expected = if parsed.pool == id.pool { Ok(()) } else { Err(Kind::Unavailable) };
                    prop_assert_eq!(engine.delete(&parsed).map_err(|error| error.kind()), expected);
                    prop_assert_eq!(engine.delete_snapshot(&parsed).map_err(|error| error.kind()), expected);
                }
                Err(error) => prop_assert_eq!(error.kind(), Kind::NotFound),
            }
            prop_assert!(text.parse::<PoolName>().is_err() || !text.contains('/'));
            engine.delete(&id).unwrap();
            engine.delete_snapshot(&id).unwrap();
        }
        check(&engine, &sandbox.pool());
        sandbox.assert_untouched();
    }

    #[test]
    fn any_bytes_are_safe_as_a_target(bytes in prop_oneof![
        text().prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..64),
        Just(vec![b'/'; 5000]),
        Just([b"/".as_slice(), &[b'a'; 4200]].concat()),
    ]) {
        let sandbox = Sandbox::new();
        let engine = open(&sandbox.pool());
        engine.create(&request("v", ROOM)).unwrap();
        // Relative targets are refused. Below a file or a missing directory, no target can be created.
        for before in ["", "canary/data/file/", "missing/missing/"] {
            let path = if before.is_empty() {
                PathBuf::from(OsStr::from_bytes(bytes.strip_prefix(b"/").unwrap_or(&bytes)))
            } else {
                let mut path = sandbox.base.join(before).into_os_string();
                path.push(OsStr::from_bytes(&bytes));
                PathBuf::from(path)
            };
            if before.is_empty() && path.is_absolute() {
                continue;
            }
            let publish = Publish {
                id: id("v"),
                target: path.clone(),
                flags: MountFlags::default(),
                sharing: Sharing::ManyTargets,
                ephemeral: None,
            };
            let error = engine.publish(&publish).unwrap_err();
            prop_assert_eq!(error.kind(), Kind::Invalid, "{} {:?}", error.chain(), path);
            prop_assert!(error.chain().contains("target"), "{}", error.chain());
            let unpublished = engine.unpublish("p/v", &path).map_err(|error| error.kind());
            prop_assert!(matches!(unpublished, Ok(()) | Err(Kind::Invalid)), "{:?} {:?}", unpublished, path);
        }
        sandbox.assert_untouched();
    }

    #[test]
    fn any_record_is_handled_without_a_panic(record in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        any::<String>().prop_map(String::into_bytes),
        (any::<u64>(), schema(), timestamp(), text()).prop_map(|(size, schema, created, name)| serde_json::json!({
            "schema": schema, "uid": "7a3c1de0-93e6-4a2e-9d58-1f0c7f6b8e21", "id": "p/other", "requestedName": name,
            "size": size, "owner": {"uid": 0, "gid": 0, "mode": "0777"}, "created": created,
        }).to_string().into_bytes()),
    ]) {
        let sandbox = Sandbox::new();
        drop(open(&sandbox.pool()));
        let directory = sandbox.pool().join("volumes/x");
        fs::create_dir_all(directory.join("data")).unwrap();
        fs::write(directory.join("volume.json"), &record).unwrap();
        let directory_of_snapshot = sandbox.pool().join("snapshots/x");
        fs::create_dir_all(directory_of_snapshot.join("data")).unwrap();
        fs::write(directory_of_snapshot.join("snapshot.json"), &record).unwrap();
        let engine = open(&sandbox.pool());
        let all = listed(&engine);
        prop_assert_eq!(all.len(), 1);
        match engine.get(&id("x")) {
            Ok(volume) => {
                prop_assert_eq!(&volume.id, &id("x"), "the directory determines the id");
                prop_assert_eq!(engine.pools()[0].provisioned, volume.size);
                engine.expand(&id("x"), SizeRange { required: 1, limit: 0 }).unwrap();
                engine.delete(&id("x")).unwrap();
                prop_assert_eq!(engine.pools()[0].provisioned, 0);
            }
            Err(error) => {
                prop_assert!(matches!(error.kind(), Kind::Internal | Kind::Unreadable), "{:?}", error.kind());
                prop_assert!(error.chain().contains("volumes/x/volume.json"), "{}", error.chain());
                prop_assert_eq!(kind(engine.delete(&id("x"))), error.kind());
                prop_assert!(directory.join("data").is_dir(), "data with a damaged record is kept");
                prop_assert!(!engine.health(&id("x"), None).unwrap().is_empty());
            }
        }
        prop_assert!(matches!(kind(engine.get_snapshot(&id("x"))), Kind::Internal | Kind::Unreadable));
        prop_assert!(directory_of_snapshot.join("data").is_dir());
        engine.create(&request("y", ROOM)).unwrap();
        sandbox.assert_untouched();
    }

    #[test]
    fn any_sizes_are_accounted_for_correctly(sizes in prop::collection::vec(
        prop_oneof![ROOM.., Just(u64::MAX), Just(u64::MAX - 1), Just(1 << 63), ROOM..1_u64 << 30, Just(0)], 1..8,
    )) {
        let sandbox = Sandbox::new();
        let mut engine = open(&sandbox.pool());
        for (which, size) in sizes.iter().enumerate() {
            let name = format!("v{which}");
            let made = engine.create(&request(&name, *size)).map(|volume| volume.size);
            let is_refused = made.as_ref().is_err_and(|error| error.kind() == Kind::NoSpace);
            prop_assert!(matches!(&made, Ok(got) if got == size) || is_refused, "{:?}", made);
            // A record of a volume that does not fit can only come from another pool.
            if made.is_err() {
                engine.create(&request(&name, ROOM)).unwrap();
                let path = sandbox.pool().join(format!("volumes/{name}/volume.json"));
                let record = fs::read_to_string(&path).unwrap();
                fs::write(&path, record.replace(&format!("\"size\": {ROOM}"), &format!("\"size\": {size}"))).unwrap();
            }
        }
        drop(engine);
        engine = open(&sandbox.pool());
        let sum: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
        prop_assert_eq!(u128::from(engine.pools()[0].provisioned), sum.min(u64::MAX.into()));
        prop_assert_eq!(kind(engine.expand(&id("v0"), SizeRange { required: u64::MAX, limit: 0 }).and_then(|volume| {
            // The volume may have this size already.
            if volume.size == u64::MAX { Err(orlop::error::Error::new(Kind::NoSpace, "")) } else { Ok(volume) }
        })), Kind::NoSpace);
        let mut left = sum;
        for (which, size) in sizes.iter().enumerate() {
            engine.delete(&id(&format!("v{which}"))).unwrap();
            left -= u128::from(*size);
            prop_assert_eq!(u128::from(engine.pools()[0].provisioned), left.min(u64::MAX.into()), "after {}", which);
        }
        sandbox.assert_untouched();
    }
}

#[test]
fn a_limit_below_the_required_size_is_out_of_range() {
    for (required, limit) in [(2, 1), (u64::MAX, 1), (u64::MAX, u64::MAX - 1)] {
        assert_eq!(kind(SizeRange::new(required, limit)), Kind::OutOfRange);
    }
}

#[test]
fn a_record_above_the_size_bound_is_not_written() {
    let sandbox = Sandbox::new();
    let engine = open(&sandbox.pool());
    for long in [64 << 10, 10 << 20] {
        let error = engine.create(&request(&"n".repeat(long), ROOM)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{}", error.chain());
        let labels = Labels::from([("k".to_owned(), "\u{1}".repeat(long))]);
        let error =
            engine.create(&CreateVolume { labels: labels.clone(), ..request("v", ROOM) }).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{}", error.chain());
        assert!(error.chain().contains("labels"), "{}", error.chain());
    }
    let labels = Labels::from([("k".to_owned(), "v".repeat(60 << 10))]);
    let volume = engine.create(&CreateVolume { labels, ..request("v", ROOM) }).unwrap();
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    check(&engine, &sandbox.pool());
}

/// Plants malicious entries in `volumes/`; returns their names.
fn plant(sandbox: &Sandbox) -> Vec<&'static str> {
    let volumes = sandbox.pool().join("volumes");
    let canary = sandbox.canary();
    let directory = |name: &str| {
        fs::create_dir_all(volumes.join(name)).unwrap();
        volumes.join(name)
    };
    symlink("/etc", volumes.join("to-etc")).unwrap();
    symlink(&canary, volumes.join("to-canary")).unwrap();
    symlink(canary.join("volumes/x"), volumes.join("to-volume")).unwrap();
    symlink("missing", volumes.join("to-nothing")).unwrap();
    fs::write(volumes.join("a-file"), "").unwrap();
    fifo(&volumes.join("a-fifo"));
    symlink("/", directory("data-to-root").join("data")).unwrap();
    symlink(canary.join("data"), directory("data-to-canary").join("data")).unwrap();
    fs::write(directory("data-is-file").join("data"), "").unwrap();
    fifo(&directory("data-is-fifo").join("data"));
    let with_data = |name: &str| {
        fs::create_dir_all(directory(name).join("data")).unwrap();
        directory(name).join("volume.json")
    };
    symlink(canary.join("volume.json"), with_data("record-is-link")).unwrap();
    symlink("/dev/zero", with_data("record-is-zero")).unwrap();
    fifo(&with_data("record-is-fifo"));
    fs::create_dir(with_data("record-is-directory")).unwrap();
    fs::File::create(with_data("record-is-huge")).unwrap().set_len(1 << 40).unwrap();
    fs::write(with_data("record-is-garbage"), "{]").unwrap();
    fs::write(with_data("record-is-deep"), "[".repeat(60_000)).unwrap();
    // No request can lead to these names.
    fs::create_dir_all(volumes.join(OsStr::from_bytes(b"\xff\xfe")).join("data")).unwrap();
    fs::create_dir_all(directory("with space").join("data")).unwrap();
    fs::create_dir_all(directory(".hidden").join("data")).unwrap();
    vec![
        "to-etc",
        "to-canary",
        "to-volume",
        "to-nothing",
        "a-file",
        "a-fifo",
        "data-to-root",
        "data-to-canary",
        "data-is-file",
        "data-is-fifo",
        "record-is-link",
        "record-is-zero",
        "record-is-fifo",
        "record-is-directory",
        "record-is-huge",
        "record-is-garbage",
        "record-is-deep",
    ]
}

fn fifo(path: &Path) {
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o600.into(), 0).unwrap();
}

/// Tries every operation on a planted entry: it is refused or does no harm.
fn try_all(engine: &Engine, sandbox: &Sandbox, name: &str) {
    let id = id(name);
    let refused = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            let expected =
                matches!(error.kind(), Kind::Internal | Kind::NotFound | Kind::Conflict | Kind::Unreadable);
            assert!(expected, "{what} {name}: {:?} {}", error.kind(), error.chain());
            assert!(error.chain().contains(name), "{what} {name}: {}", error.chain());
        }
    };
    let target = sandbox.pool().join("target");
    let publish = Publish {
        id: id.clone(),
        target,
        flags: MountFlags::default(),
        sharing: Sharing::OneTarget,
        ephemeral: None,
    };
    let change = PolicyChange { on_delete: Some(OnDelete::Delete), ..PolicyChange::default() };
    assert!(engine.publish(&publish).is_err() || name.starts_with("record-"), "{name} was published");
    engine.unpublish(&id.to_string(), &publish.target).unwrap();
    refused("get", engine.get(&id).map(drop));
    refused("create", engine.create(&request(name, ROOM)).map(drop));
    refused("expand", engine.expand(&id, SizeRange { required: 1 << 20, limit: 0 }).map(drop));
    refused("modify", engine.modify(&id, change).map(drop));
    refused("health", engine.health(&id, None).map(drop));
    refused("clone", engine.create(&clone_request(&format!("of-{name}"), &id)).map(drop));
    refused("snapshot", engine.create_snapshot(&snapshot_request(&format!("of-{name}"), &id)).map(drop));
    refused("delete", engine.delete(&id));
    refused("create again", engine.create(&request(name, ROOM)).map(drop));
}

#[test]
fn the_same_holds_on_each_backend() {
    // In the other tests, nothing depends on the filesystem.
    let elsewhere = ["a_limit_below", "a_record_above", "every_generated_name"];
    rerun_on_each_backend("api::hostile::the_same_holds_on_each_backend", "api::hostile::", &elsewhere);
}

#[test]
fn planted_links_and_special_files_do_not_lead_outside_the_pool() {
    let sandbox = Sandbox::new();
    drop(open(&sandbox.pool()));
    let planted = plant(&sandbox);
    let engine = open(&sandbox.pool());
    let etc = contents_and_times(Path::new("/etc/ssl")).len();
    for name in &planted {
        try_all(&engine, &sandbox, name);
        sandbox.assert_untouched();
    }
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    for kept in ["to-etc", "to-canary", "to-volume", "a-file"] {
        assert!(
            sandbox.pool().join("volumes").join(kept).symlink_metadata().is_ok(),
            "{kept} is not an object of the pool and stays"
        );
    }
    assert_eq!(contents_and_times(Path::new("/etc/ssl")).len(), etc);
    // The pool still works.
    engine.create(&request("v", ROOM)).unwrap();
    engine.create_snapshot(&snapshot_request("s", &id("v"))).unwrap();
    let all = engine.list_snapshots(&SnapshotFilter::default(), None, 100).unwrap();
    assert!(all.items.iter().any(|snapshot| snapshot.id == id("s")));
    drop(engine);
    open(&sandbox.pool()).get(&id("v")).unwrap();
    sandbox.assert_untouched();
}

#[test]
fn symlinks_in_a_volume_are_not_followed() {
    let sandbox = Sandbox::new();
    let engine = open(&sandbox.pool());
    engine.create(&request("v", ROOM)).unwrap();
    let data = sandbox.pool().join("volumes/v/data");
    symlink(sandbox.canary(), data.join("out")).unwrap();
    symlink("/", data.join("root")).unwrap();
    symlink("../../../../canary/data/file", data.join("file")).unwrap();
    symlink("loop", data.join("loop")).unwrap();
    engine.create_snapshot(&snapshot_request("s", &id("v"))).unwrap();
    engine.create(&copy_request("w", Source::Snapshot(id("s")))).unwrap();
    let copy = sandbox.pool().join("volumes/w/data");
    assert_eq!(fs::read_link(copy.join("out")).unwrap(), sandbox.canary());
    check(&engine, &sandbox.pool());
    for name in ["v", "w"] {
        engine.delete(&id(name)).unwrap();
    }
    engine.delete_snapshot(&id("s")).unwrap();
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    assert!(names(&sandbox.pool().join("trash")).is_empty());
    sandbox.assert_untouched();
}

#[test]
fn foreign_entries_are_kept_in_trash_and_removed_from_work() {
    let sandbox = Sandbox::new();
    drop(open(&sandbox.pool()));
    let (trash, work) = (sandbox.pool().join("trash"), sandbox.pool().join("work"));
    let foreign = ["backup.2024.tar", "foreign", "a.1", ".1.0123456789abcdef", "v.x.0123456789abcdef"];
    for name in foreign {
        fs::create_dir(trash.join(name)).unwrap();
        fs::write(trash.join(name).join("file"), "kept").unwrap();
    }
    symlink(sandbox.canary(), trash.join("link.0+0.0123456789abcdef")).unwrap();
    fs::create_dir(trash.join("ours.0+0.0123456789abcdef")).unwrap();
    symlink(sandbox.canary(), trash.join("ours.0+0.0123456789abcdef/link")).unwrap();
    symlink(sandbox.canary(), work.join("link")).unwrap();
    fs::create_dir(work.join(OsStr::from_bytes(b"\xff\xfe"))).unwrap();
    fs::create_dir(work.join("x".repeat(255))).unwrap();
    fifo(&work.join("fifo"));
    let engine = open(&sandbox.pool());
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    let mut kept: Vec<_> = foreign.map(str::to_owned).into();
    kept.sort();
    assert_eq!(names(&trash).into_iter().collect::<Vec<_>>(), kept);
    assert_eq!(names(&work).len(), 0, "{:?}", names(&work));
    sandbox.assert_untouched();
}

#[test]
fn a_directory_copied_by_an_administrator_is_a_separate_volume() {
    let sandbox = Sandbox::new();
    let mut engine = open(&sandbox.pool());
    engine.create(&request("a", ROOM)).unwrap();
    drop(engine);
    let volumes = sandbox.pool().join("volumes");
    fs::create_dir_all(volumes.join("b/data")).unwrap();
    fs::copy(volumes.join("a/volume.json"), volumes.join("b/volume.json")).unwrap();
    engine = open(&sandbox.pool());
    assert_eq!(engine.get(&id("b")).unwrap().id, id("b"));
    engine.expand(&id("b"), SizeRange { required: 2 * ROOM, limit: 0 }).unwrap();
    assert_eq!((engine.get(&id("a")).unwrap().size, engine.get(&id("b")).unwrap().size), (ROOM, 2 * ROOM));
    assert_eq!(engine.pools()[0].provisioned, 3 * ROOM);
    engine.delete(&id("b")).unwrap();
    engine.get(&id("a")).unwrap();
    check(&engine, &sandbox.pool());
}

#[test]
fn the_longest_retention_does_not_overflow() {
    let sandbox = Sandbox::new();
    let engine = open(&sandbox.pool());
    let policy =
        Policy { on_delete: OnDelete::Trash, trash_for: Duration::from_secs(u64::MAX), ..Policy::default() };
    engine.create(&CreateVolume { policy, ..request("v", ROOM) }).unwrap();
    engine.delete(&id("v")).unwrap();
    drop(engine);
    let engine = open(&sandbox.pool());
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    assert_eq!(names(&sandbox.pool().join("trash")).len(), 1);
}

#[test]
fn a_damaged_marker_makes_the_pool_unavailable() {
    type Plant = fn(&Sandbox, &Path);
    let plants: [Plant; 5] = [
        |sandbox, path| symlink(sandbox.canary().join("volume.json"), path).unwrap(),
        |_, path| fifo(path),
        |_, path| fs::create_dir(path).unwrap(),
        |_, path| fs::write(path, "{]").unwrap(),
        |_, path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
    ];
    for plant in plants {
        let sandbox = Sandbox::new();
        plant(&sandbox, &sandbox.pool().join("orlop.json"));
        let engine = Engine::open(vec![settings(&sandbox.pool())], Tuning::default()).unwrap();
        assert_eq!(kind(engine.create(&request("v", ROOM))), Kind::Unavailable);
        assert_eq!(kind(engine.delete(&id("v"))), Kind::Unavailable);
        assert_eq!(names(&sandbox.pool()).len(), 1, "nothing was created");
        sandbox.assert_untouched();
    }
}

#[test]
fn every_generated_name_is_one_path_component() {
    for text in ["", ".", "..", "a/b", "\0", "ü", "_x", "-x", &"x".repeat(65), &"🚢".repeat(32)] {
        let name = Name::of(text).to_string();
        assert!(
            name.len() <= 64 && !name.starts_with('.') && !name.contains(['/', '\0']),
            "{text:?}: {name}"
        );
    }
}
