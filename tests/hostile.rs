//! Hostile names, ids, targets, records and folders: no panic, the right kind of error, and nothing outside the pool
//! is so much as opened for writing.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "ground/pool.rs"]
mod ground;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ground::{check, copy_of, cut, id, listed, names, open, request, seal, settings};
use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, Publish, Sharing, SnapshotFilter, Tuning};
use orlop::error::{Kind, Result};
use orlop::mount::MountFlags;
use orlop::volume::{Labels, Name, OnDelete, Policy, PolicyChange, PoolName, SizeRange, Source, VolumeId};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// A pool, and beside it a tree that nobody is to touch.
struct World {
    _dir: tempfile::TempDir,
    base: PathBuf,
    canary: BTreeMap<String, String>,
}

impl World {
    fn new() -> Self {
        let dir = ground::place();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("canary/volumes/x/data")).unwrap();
        fs::create_dir_all(base.join("canary/data")).unwrap();
        fs::write(base.join("canary/data/file"), "not yours").unwrap();
        fs::write(base.join("canary/volumes/x/data/file"), "not yours").unwrap();
        fs::write(base.join("canary/volume.json"), "not yours").unwrap();
        fs::create_dir(base.join("pool")).unwrap();
        let canary = seal(&base.join("canary"));
        Self { _dir: dir, base, canary }
    }

    fn pool(&self) -> PathBuf {
        self.base.join("pool")
    }

    fn canary(&self) -> PathBuf {
        self.base.join("canary")
    }

    fn assert_untouched(&self) {
        assert_eq!(seal(&self.canary()), self.canary, "outside of the pool");
        let beside: Vec<_> = names(&self.base).into_iter().collect();
        assert_eq!(beside, ["canary", "pool"], "beside the pool");
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind()
}

/// Text that somebody chose to do harm: long, short, with every character that means something to somebody.
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

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        max_shrink_time: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_text_is_more_than_a_name(texts in prop::collection::vec(text(), 1..6)) {
        let world = World::new();
        let engine = open(&world.pool());
        let mut made = BTreeMap::new();
        for text in &texts {
            let labels = Labels::from([(text.clone(), text.clone())]);
            let volume = engine.create(&CreateVolume { labels, ..request(text, 1) }).unwrap();
            prop_assert_eq!(&volume.requested_name, text);
            prop_assert_eq!(&engine.get(&volume.id).unwrap(), &volume);
            let parsed: VolumeId = volume.id.to_string().parse().unwrap();
            prop_assert_eq!(&parsed, &volume.id);
            let snapshot = engine.create_snapshot(&cut(text, &volume.id)).unwrap();
            prop_assert_eq!(&snapshot.requested_name, text);
            made.insert(text, volume.id);
        }
        check(&engine, &world.pool());
        prop_assert_eq!(names(&world.pool().join("volumes")).len(), made.len(), "one folder for each name");
        for (text, id) in made {
            // As an id the same text is that of this pool's volume, or of nothing.
            match text.parse::<VolumeId>() {
                Ok(parsed) => {
                    let found = engine.get(&parsed).map(|volume| volume.id).map_err(|error| error.kind());
                    prop_assert!(matches!(found, Ok(_) | Err(Kind::NotFound)), "{:?}", found);
                    engine.delete(&parsed).unwrap();
                    engine.delete_snapshot(&parsed).unwrap();
                }
                Err(error) => prop_assert_eq!(error.kind(), Kind::NotFound),
            }
            prop_assert!(text.parse::<PoolName>().is_err() || !text.contains('/'));
            engine.delete(&id).unwrap();
            engine.delete_snapshot(&id).unwrap();
        }
        check(&engine, &world.pool());
        world.assert_untouched();
    }

    #[test]
    fn no_bytes_of_a_target_do_harm(bytes in prop_oneof![
        text().prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..64),
        Just(vec![b'/'; 5000]),
        Just([b"/".as_slice(), &[b'a'; 4200]].concat()),
    ]) {
        let world = World::new();
        let engine = open(&world.pool());
        engine.create(&request("v", 1)).unwrap();
        // Relative ones are never taken; below the canary's file and in a missing folder none can be made.
        for before in ["", "canary/data/file/", "missing/missing/"] {
            let path = if before.is_empty() {
                PathBuf::from(OsStr::from_bytes(bytes.strip_prefix(b"/").unwrap_or(&bytes)))
            } else {
                let mut path = world.base.join(before).into_os_string();
                path.push(OsStr::from_bytes(&bytes));
                PathBuf::from(path)
            };
            if before.is_empty() && path.is_absolute() {
                continue;
            }
            // `canary/data/file/.` and the like name something that is there.
            let publish = Publish {
                id: id("v"),
                target: path.clone(),
                flags: MountFlags::default(),
                sharing: Sharing::ManyTargets,
                ephemeral: None,
            };
            let error = engine.publish(&publish).unwrap_err();
            prop_assert_eq!(error.kind(), Kind::Invalid, "{} {:?}", error.chain(), path);
            prop_assert!(error.chain().contains("target_path"), "{}", error.chain());
            let unpublished = engine.unpublish("p/v", &path).map_err(|error| error.kind());
            prop_assert!(matches!(unpublished, Ok(()) | Err(Kind::Invalid)), "{:?} {:?}", unpublished, path);
        }
        world.assert_untouched();
    }

    #[test]
    fn no_record_makes_it_panic(record in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        any::<String>().prop_map(String::into_bytes),
        (any::<u64>(), any::<i64>(), text()).prop_map(|(size, seconds, name)| serde_json::json!({
            "schema": 1, "id": "p/other", "requestedName": name, "size": size,
            "owner": {"uid": 0, "gid": 0, "mode": 511}, "created": {"seconds": seconds, "nanos": 0},
        }).to_string().into_bytes()),
    ]) {
        let world = World::new();
        drop(open(&world.pool()));
        let folder = world.pool().join("volumes/x");
        fs::create_dir_all(folder.join("data")).unwrap();
        fs::write(folder.join("volume.json"), &record).unwrap();
        fs::create_dir_all(world.pool().join("snapshots/x/data")).unwrap();
        fs::write(world.pool().join("snapshots/x/snapshot.json"), &record).unwrap();
        let engine = open(&world.pool());
        let all = listed(&engine);
        prop_assert_eq!(all.len(), 1);
        match engine.get(&id("x")) {
            Ok(volume) => {
                prop_assert_eq!(&volume.id, &id("x"), "where it lies says which it is");
                prop_assert_eq!(engine.pools()[0].provisioned, volume.size);
                engine.expand(&id("x"), SizeRange { required: 1, limit: 0 }).unwrap();
                engine.delete(&id("x")).unwrap();
                prop_assert_eq!(engine.pools()[0].provisioned, 0);
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), Kind::Internal);
                prop_assert!(error.chain().contains("volumes/x/volume.json"), "{}", error.chain());
                prop_assert_eq!(kind(engine.delete(&id("x"))), Kind::Internal);
                prop_assert!(folder.join("data").is_dir(), "what is not understood is kept");
                prop_assert!(!engine.health(&id("x"), None).unwrap().is_empty());
            }
        }
        prop_assert_eq!(kind(engine.get_snapshot(&id("x"))), Kind::Internal);
        engine.create(&request("y", 1)).unwrap();
        world.assert_untouched();
    }

    #[test]
    fn no_size_upsets_the_ledger(sizes in prop::collection::vec(
        prop_oneof![any::<u64>(), Just(u64::MAX), Just(u64::MAX - 1), Just(1 << 63), 0..1_u64 << 30], 1..8,
    )) {
        let world = World::new();
        let mut engine = open(&world.pool());
        for (which, size) in sizes.iter().enumerate() {
            let name = format!("v{which}");
            let made = engine.create(&request(&name, *size)).map(|volume| volume.size);
            prop_assert!(matches!(&made, Ok(got) if got == size) || kind(made) == Kind::NoSpace);
            // As a record that was written elsewhere.
            if *size > 1 << 40 {
                engine.create(&request(&name, 7)).unwrap();
                let path = world.pool().join(format!("volumes/{name}/volume.json"));
                let record = fs::read_to_string(&path).unwrap();
                fs::write(&path, record.replace("\"size\": 7", &format!("\"size\": {size}"))).unwrap();
            }
        }
        drop(engine);
        engine = open(&world.pool());
        let sum: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
        prop_assert_eq!(u128::from(engine.pools()[0].provisioned), sum.min(u64::MAX.into()));
        prop_assert_eq!(kind(engine.expand(&id("v0"), SizeRange { required: u64::MAX, limit: 0 }).and_then(|volume| {
            // It has that size already.
            if volume.size == u64::MAX { Err(orlop::error::Error::new(Kind::NoSpace, "")) } else { Ok(volume) }
        })), Kind::NoSpace);
        let mut left = sum;
        for (which, size) in sizes.iter().enumerate() {
            engine.delete(&id(&format!("v{which}"))).unwrap();
            left -= u128::from(*size);
            prop_assert_eq!(u128::from(engine.pools()[0].provisioned), left.min(u64::MAX.into()), "after {}", which);
        }
        world.assert_untouched();
    }
}

#[test]
fn a_limit_below_the_required_size_is_out_of_range() {
    for (required, limit) in [(2, 1), (u64::MAX, 1), (u64::MAX, u64::MAX - 1)] {
        assert_eq!(kind(SizeRange::new(required, limit)), Kind::OutOfRange);
    }
}

#[test]
fn a_record_too_large_to_be_read_again_is_never_written() {
    let world = World::new();
    let engine = open(&world.pool());
    for long in [64 << 10, 10 << 20] {
        let error = engine.create(&request(&"n".repeat(long), 1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{}", error.chain());
        let labels = Labels::from([("k".to_owned(), "\u{1}".repeat(long))]);
        let error = engine.create(&CreateVolume { labels: labels.clone(), ..request("v", 1) }).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{}", error.chain());
        assert!(error.chain().contains("labels"), "{}", error.chain());
    }
    let labels = Labels::from([("k".to_owned(), "v".repeat(60 << 10))]);
    let volume = engine.create(&CreateVolume { labels, ..request("v", 1) }).unwrap();
    assert_eq!(engine.get(&volume.id).unwrap(), volume);
    check(&engine, &world.pool());
}

/// Each of these was planted in `volumes/` before the engine looked.
fn plant(world: &World) -> Vec<&'static str> {
    let volumes = world.pool().join("volumes");
    let canary = world.canary();
    let folder = |name: &str| {
        fs::create_dir_all(volumes.join(name)).unwrap();
        volumes.join(name)
    };
    symlink("/etc", volumes.join("to-etc")).unwrap();
    symlink(&canary, volumes.join("to-canary")).unwrap();
    symlink(canary.join("volumes/x"), volumes.join("to-volume")).unwrap();
    symlink("missing", volumes.join("to-nothing")).unwrap();
    fs::write(volumes.join("a-file"), "").unwrap();
    fifo(&volumes.join("a-fifo"));
    symlink("/", folder("data-to-root").join("data")).unwrap();
    symlink(canary.join("data"), folder("data-to-canary").join("data")).unwrap();
    fs::write(folder("data-is-file").join("data"), "").unwrap();
    fifo(&folder("data-is-fifo").join("data"));
    let with_data = |name: &str| {
        fs::create_dir_all(folder(name).join("data")).unwrap();
        folder(name).join("volume.json")
    };
    symlink(canary.join("volume.json"), with_data("record-is-link")).unwrap();
    symlink("/dev/zero", with_data("record-is-zero")).unwrap();
    fifo(&with_data("record-is-fifo"));
    fs::create_dir(with_data("record-is-folder")).unwrap();
    fs::File::create(with_data("record-is-huge")).unwrap().set_len(1 << 40).unwrap();
    fs::write(with_data("record-is-garbage"), "{]").unwrap();
    fs::write(with_data("record-is-deep"), "[".repeat(60_000)).unwrap();
    // What nobody could have asked for by these names.
    fs::create_dir_all(volumes.join(OsStr::from_bytes(b"\xff\xfe")).join("data")).unwrap();
    fs::create_dir_all(folder("with space").join("data")).unwrap();
    fs::create_dir_all(folder(".hidden").join("data")).unwrap();
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
        "record-is-folder",
        "record-is-huge",
        "record-is-garbage",
        "record-is-deep",
    ]
}

fn fifo(path: &Path) {
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o600.into(), 0).unwrap();
}

/// Every operation on one planted thing: refused, or harmless.
fn try_all(engine: &Engine, world: &World, name: &str) {
    let id = id(name);
    let refused = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            let clear =
                matches!(error.kind(), Kind::Internal | Kind::NotFound | Kind::Conflict | Kind::Unsupported);
            assert!(clear, "{what} {name}: {:?} {}", error.kind(), error.chain());
            assert!(error.chain().contains(name), "{what} {name}: {}", error.chain());
        }
    };
    let target = world.pool().join("target");
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
    refused("create", engine.create(&request(name, 1)).map(drop));
    refused("expand", engine.expand(&id, SizeRange { required: 1 << 20, limit: 0 }).map(drop));
    refused("modify", engine.modify(&id, change).map(drop));
    refused("health", engine.health(&id, None).map(drop));
    refused("clone", engine.create(&copy_of(&format!("of-{name}"), Source::Volume(id.clone()))).map(drop));
    refused("snapshot", engine.create_snapshot(&cut(&format!("of-{name}"), &id)).map(drop));
    refused("delete", engine.delete(&id));
    refused("create again", engine.create(&request(name, 1)).map(drop));
}

#[test]
fn what_is_planted_in_a_pool_leads_nowhere() {
    let world = World::new();
    drop(open(&world.pool()));
    let planted = plant(&world);
    // Found at the opening, and found while open.
    let engine = open(&world.pool());
    let etc = seal(Path::new("/etc/ssl")).len();
    for name in &planted {
        try_all(&engine, &world, name);
        world.assert_untouched();
    }
    assert!(engine.wait_idle(Duration::from_secs(10)));
    for kept in ["to-etc", "to-canary", "to-volume", "a-file"] {
        assert!(world.pool().join("volumes").join(kept).symlink_metadata().is_ok(), "{kept} was not ours");
    }
    assert_eq!(seal(Path::new("/etc/ssl")).len(), etc);
    // And the pool goes on working.
    engine.create(&request("v", 1)).unwrap();
    engine.create_snapshot(&cut("s", &id("v"))).unwrap();
    let all = engine.list_snapshots(&SnapshotFilter::default(), None, 100).unwrap();
    assert!(all.items.iter().any(|snapshot| snapshot.id == id("s")));
    drop(engine);
    open(&world.pool()).get(&id("v")).unwrap();
    world.assert_untouched();
}

#[test]
fn links_in_a_volume_are_copied_and_removed_as_links() {
    let world = World::new();
    let engine = open(&world.pool());
    engine.create(&request("v", 1)).unwrap();
    let data = world.pool().join("volumes/v/data");
    symlink(world.canary(), data.join("out")).unwrap();
    symlink("/", data.join("root")).unwrap();
    symlink("../../../../canary/data/file", data.join("file")).unwrap();
    symlink("loop", data.join("loop")).unwrap();
    engine.create_snapshot(&cut("s", &id("v"))).unwrap();
    engine.create(&copy_of("w", Source::Snapshot(id("s")))).unwrap();
    let copy = world.pool().join("volumes/w/data");
    assert_eq!(fs::read_link(copy.join("out")).unwrap(), world.canary());
    check(&engine, &world.pool());
    for name in ["v", "w"] {
        engine.delete(&id(name)).unwrap();
    }
    engine.delete_snapshot(&id("s")).unwrap();
    assert!(engine.wait_idle(Duration::from_secs(10)));
    assert!(names(&world.pool().join("trash")).is_empty());
    world.assert_untouched();
}

#[test]
fn foreign_things_in_trash_stay_and_in_work_go() {
    let world = World::new();
    drop(open(&world.pool()));
    let (trash, work) = (world.pool().join("trash"), world.pool().join("work"));
    let foreign = ["backup.2024.tar", "somebody's", "a.1", ".1.0123456789abcdef", "v.x.0123456789abcdef"];
    for name in foreign {
        fs::create_dir(trash.join(name)).unwrap();
        fs::write(trash.join(name).join("file"), "kept").unwrap();
    }
    symlink(world.canary(), trash.join("link.0.0123456789abcdef")).unwrap();
    fs::create_dir(trash.join("ours.0.0123456789abcdef")).unwrap();
    symlink(world.canary(), trash.join("ours.0.0123456789abcdef/link")).unwrap();
    symlink(world.canary(), work.join("link")).unwrap();
    fs::create_dir(work.join(OsStr::from_bytes(b"\xff\xfe"))).unwrap();
    fs::create_dir(work.join("x".repeat(255))).unwrap();
    fifo(&work.join("fifo"));
    let engine = open(&world.pool());
    assert!(engine.wait_idle(Duration::from_secs(10)));
    let mut kept: Vec<_> = foreign.map(str::to_owned).into();
    kept.sort();
    assert_eq!(names(&trash).into_iter().collect::<Vec<_>>(), kept);
    assert_eq!(names(&work).len(), 0, "{:?}", names(&work));
    world.assert_untouched();
}

#[test]
fn a_folder_copied_by_hand_is_a_volume_of_its_own() {
    let world = World::new();
    let mut engine = open(&world.pool());
    engine.create(&request("a", 4096)).unwrap();
    drop(engine);
    let volumes = world.pool().join("volumes");
    fs::create_dir_all(volumes.join("b/data")).unwrap();
    fs::copy(volumes.join("a/volume.json"), volumes.join("b/volume.json")).unwrap();
    engine = open(&world.pool());
    assert_eq!(engine.get(&id("b")).unwrap().id, id("b"));
    engine.expand(&id("b"), SizeRange { required: 8192, limit: 0 }).unwrap();
    assert_eq!((engine.get(&id("a")).unwrap().size, engine.get(&id("b")).unwrap().size), (4096, 8192));
    assert_eq!(engine.pools()[0].provisioned, 8192 + 4096);
    engine.delete(&id("b")).unwrap();
    engine.get(&id("a")).unwrap();
    check(&engine, &world.pool());
}

#[test]
fn the_longest_time_in_the_trash_is_for_ever() {
    let world = World::new();
    let engine = open(&world.pool());
    let policy =
        Policy { on_delete: OnDelete::Trash, trash_for: Duration::from_secs(u64::MAX), ..Policy::default() };
    engine.create(&CreateVolume { policy, ..request("v", 1) }).unwrap();
    engine.delete(&id("v")).unwrap();
    drop(engine);
    let engine = open(&world.pool());
    assert!(engine.wait_idle(Duration::from_secs(10)));
    assert_eq!(names(&world.pool().join("trash")).len(), 1);
}

#[test]
fn a_marker_that_is_no_marker_makes_the_pool_unavailable() {
    type Plant = fn(&World, &Path);
    let plants: [Plant; 5] = [
        |world, path| symlink(world.canary().join("volume.json"), path).unwrap(),
        |_, path| fifo(path),
        |_, path| fs::create_dir(path).unwrap(),
        |_, path| fs::write(path, "{]").unwrap(),
        |_, path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
    ];
    for plant in plants {
        let world = World::new();
        plant(&world, &world.pool().join("orlop.json"));
        let engine = Engine::open(vec![settings(&world.pool())], Tuning::default()).unwrap();
        assert_eq!(kind(engine.create(&request("v", 1))), Kind::Unavailable);
        assert_eq!(kind(engine.delete(&id("v"))), Kind::Unavailable);
        assert_eq!(names(&world.pool()).len(), 1, "nothing was made");
        world.assert_untouched();
    }
}

#[test]
fn every_name_that_orlop_gives_is_one_component() {
    for text in ["", ".", "..", "a/b", "\0", "ü", "_x", "-x", &"x".repeat(65), &"🚢".repeat(32)] {
        let name = Name::of(text).to_string();
        assert!(
            name.len() <= 64 && !name.starts_with('.') && !name.contains(['/', '\0']),
            "{text:?}: {name}"
        );
    }
}
