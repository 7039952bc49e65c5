//! A pool in a directory of its own for the tests that look for faults, and what must hold for it at every moment.
#![allow(clippy::allow_attributes, reason = "each test that has this module uses another part of it")]
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]
#![allow(dead_code, reason = "each test that has this module uses another part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use orlop::engine::Engine;
use orlop::engine::request::{CreateSnapshot, CreateVolume, PoolSettings, SnapshotFilter, Tuning};
use orlop::volume::{SizeRange, Source, VolumeId};
use serde_json::Value;
use tempfile::TempDir;

/// A directory in memory where there is one: thousands of syncs are to cost nothing.
pub(crate) fn place() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub(crate) fn settings(path: &Path) -> PoolSettings {
    named("p", path)
}

pub(crate) fn named(name: &str, path: &Path) -> PoolSettings {
    PoolSettings {
        name: name.parse().unwrap(),
        path: path.to_owned(),
        mounted: false,
        uuid: None,
        overcommit_percent: 100,
        reserve: 0,
    }
}

/// Waits for copies as long as they take.
pub(crate) fn patient() -> Tuning {
    Tuning { copy_wait: Duration::from_secs(30), lock_wait: Duration::from_secs(2), ..Tuning::default() }
}

/// Opens the pool; the threads of an engine that was just dropped may hold it for a moment longer.
pub(crate) fn open(path: &Path) -> Engine {
    let engine = Engine::open(vec![settings(path)], patient()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Some(why) = engine.pools()[0].unavailable.clone() {
        assert!(Instant::now() < deadline, "{why}");
        pause(1);
    }
    engine
}

#[expect(clippy::disallowed_methods, reason = "a test may poll")]
pub(crate) fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

pub(crate) fn request(name: &str, size: u64) -> CreateVolume {
    CreateVolume {
        name: name.into(),
        size: SizeRange { required: size, limit: 0 },
        ..CreateVolume::default()
    }
}

pub(crate) fn copy_of(name: &str, source: Source) -> CreateVolume {
    CreateVolume { source: Some(source), ..request(name, 0) }
}

pub(crate) fn cut(name: &str, of: &VolumeId) -> CreateSnapshot {
    CreateSnapshot { name: name.into(), source_volume: of.clone(), labels: Default::default() }
}

pub(crate) fn id(name: &str) -> VolumeId {
    format!("p/{}", orlop::volume::Name::of(name)).parse().unwrap()
}

/// The names in a directory; none where there is no directory.
pub(crate) fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// What stands below a directory: for each path its type, mode, owner, link count and contents.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut |path, stat, text| {
        let line = format!("{:o} {}:{} x{} {text}", stat.mode(), stat.uid(), stat.gid(), stat.nlink());
        found.insert(path, line);
    });
    found
}

/// The same, with every number that changes when somebody so much as opens the place for writing.
pub(crate) fn seal(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut |path, stat, text| {
        let times = (stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec());
        found.insert(path, format!("{} {:o} {times:?} {text}", stat.ino(), stat.mode()));
    });
    found
}

fn walk(top: &Path, path: &Path, with: &mut impl FnMut(String, &fs::Metadata, String)) {
    // The reaper may be at it, in the trash.
    let Ok(stat) = path.symlink_metadata() else { return };
    let kind = stat.file_type();
    let text = if kind.is_symlink() {
        format!("-> {}", fs::read_link(path).unwrap_or_default().display())
    } else if kind.is_file() {
        format!("{:?}", String::from_utf8_lossy(&fs::read(path).unwrap_or_default()))
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        String::new()
    };
    with(path.strip_prefix(top).unwrap().display().to_string(), &stat, text);
    if kind.is_dir() {
        for name in names(path) {
            walk(top, &path.join(name), with);
        }
    }
}

/// Every volume by pages of two, with the provisioned size.
pub(crate) fn listed(engine: &Engine) -> BTreeMap<String, u64> {
    let (mut all, mut after) = (BTreeMap::new(), None);
    loop {
        let page = engine.list(after.as_ref(), 2).unwrap();
        for volume in page.items {
            let old = all.insert(volume.id.name.to_string(), volume.size);
            assert_eq!(old, None, "{} is listed twice", volume.id);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
}

pub(crate) fn listed_snapshots(engine: &Engine) -> BTreeSet<String> {
    let page = engine.list_snapshots(&SnapshotFilter::default(), None, usize::MAX).unwrap();
    page.items.into_iter().map(|snapshot| snapshot.id.name.to_string()).collect()
}

/// Disk, listing and ledger of a pool at rest tell one story, and nothing half-made is to be seen.
pub(crate) fn check(engine: &Engine, pool: &Path) {
    assert_eq!(engine.jobs_running(), 0, "the pool is not at rest");
    assert_eq!(names(&pool.join("work")), BTreeSet::new(), "left in work/");
    let (mut on_disk, mut provisioned) = (BTreeMap::new(), 0);
    for name in names(&pool.join("volumes")) {
        let folder = pool.join("volumes").join(&name);
        assert!(folder.join("data").is_dir(), "volume {name} has no data");
        let size = match fs::read(folder.join("volume.json")) {
            Ok(record) => {
                assert_eq!(names(&folder).len(), 2, "{name}: {:?}", names(&folder));
                let record: Value = serde_json::from_slice(&record).unwrap();
                assert_eq!(record["id"], format!("p/{name}"));
                record["size"].as_u64().unwrap()
            }
            Err(_) => 0, // put there by hand
        };
        provisioned += size;
        on_disk.insert(name, size);
    }
    assert_eq!(listed(engine), on_disk, "listing and disk");
    let status = engine.pools().remove(0);
    assert_eq!(status.provisioned, provisioned, "the ledger");
    assert_eq!(status.volumes, on_disk.len() as u64);
    let snapshots = names(&pool.join("snapshots"));
    for name in &snapshots {
        let folder = pool.join("snapshots").join(name);
        assert!(folder.join("data").is_dir(), "snapshot {name} has no data");
        let record: Value = serde_json::from_slice(&fs::read(folder.join("snapshot.json")).unwrap()).unwrap();
        assert_eq!(record["id"], format!("p/{name}"));
        let inside = contents(&folder.join("data")).len() as u64 - 1;
        assert_eq!(record["entries"].as_u64(), Some(inside), "snapshot {name} is whole");
    }
    assert_eq!(listed_snapshots(engine), snapshots, "listing and disk");
}
