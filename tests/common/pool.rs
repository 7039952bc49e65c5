//! A pool, requests for it, and a check that its directories, listings and accounting agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{CreateSnapshot, CreateVolume, PoolSettings, SnapshotFilter, Tuning};
use orlop::error::{Error, Kind};
use orlop::volume::{SizeRange, Source, VolumeId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use super::wait::within_seconds;

pub(crate) const MIB: u64 = 1 << 20;

/// A temporary directory, in memory if possible, where thousands of syncs cost nothing.
pub(crate) fn memory_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Settings of the pool `p`.
pub(crate) fn settings(path: &Path) -> PoolSettings {
    settings_of("p", path)
}

/// Settings of the pool with this name.
pub(crate) fn settings_of(name: &str, path: &Path) -> PoolSettings {
    PoolSettings::new(name.parse().unwrap(), path.to_owned())
}

/// Requests wait for copies until these are complete.
pub(crate) fn long_waits() -> Tuning {
    Tuning { copy_wait: Duration::from_secs(30), lock_wait: Duration::from_secs(2), ..Tuning::default() }
}

/// Opens the pool `p` with [`long_waits`].
pub(crate) fn open(path: &Path) -> Engine {
    open_with(path, long_waits())
}

/// Opens the pool `p`. Waits until it is available: threads of an engine that was just dropped, or a process that is
/// being started, may hold its lock a little longer.
pub(crate) fn open_with(path: &Path, tuning: Tuning) -> Engine {
    open_settings(settings(path), tuning)
}

/// The same for a pool with these settings.
pub(crate) fn open_settings(settings: PoolSettings, tuning: Tuning) -> Engine {
    let engine = Engine::open(vec![settings], tuning).unwrap();
    within_seconds(60, "the pool is available", || engine.pools()[0].unavailable.is_none());
    engine
}

/// A request for a volume of this size.
pub(crate) fn request(name: &str, size: u64) -> CreateVolume {
    CreateVolume {
        name: name.into(),
        size: SizeRange { required: size, limit: 0 },
        ..CreateVolume::default()
    }
}

/// A request for a clone or restore.
pub(crate) fn copy_request(name: &str, source: Source) -> CreateVolume {
    CreateVolume { source: Some(source), ..request(name, 0) }
}

/// A request for a clone.
pub(crate) fn clone_request(name: &str, source: &VolumeId) -> CreateVolume {
    copy_request(name, Source::Volume(source.clone()))
}

/// A request for a snapshot of a volume.
pub(crate) fn snapshot_request(name: &str, volume: &VolumeId) -> CreateSnapshot {
    CreateSnapshot {
        name: name.into(),
        source_volume: volume.clone(),
        consistency: Default::default(),
        labels: Default::default(),
    }
}

/// The id that an object of this requested name has in the pool `p`.
pub(crate) fn id(name: &str) -> VolumeId {
    format!("p/{}", orlop::volume::Name::of(name)).parse().unwrap()
}

/// The kind of the error that a call must fail with.
#[track_caller]
pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> Kind {
    result.unwrap_err().kind()
}

/// The record or marker at a path.
pub(crate) fn read_record(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Changes a record on disk, as an administrator or another version of orlop would.
pub(crate) fn edit_record(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut record = read_record(path);
    change(&mut record);
    fs::write(path, record.to_string()).unwrap();
}

/// The path of a volume's record.
pub(crate) fn volume_record(pool: &Path, name: &str) -> PathBuf {
    pool.join("volumes").join(name).join("volume.json")
}

/// The path of a snapshot's record.
pub(crate) fn snapshot_record(pool: &Path, name: &str) -> PathBuf {
    pool.join("snapshots").join(name).join("snapshot.json")
}

/// The names in a directory; none if it does not exist.
pub(crate) fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Everything below a directory: for each path its type, mode, owner, link count and contents.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut |path, stat, text| {
        let line = format!("{:o} {}:{} x{} {text}", stat.mode(), stat.uid(), stat.gid(), stat.nlink());
        found.insert(path, line);
    });
    found
}

/// Everything below a directory, with the inode numbers and times that any write changes.
pub(crate) fn contents_and_times(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut |path, stat, text| {
        let times = (stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec());
        found.insert(path, format!("{} {:o} {times:?} {text}", stat.ino(), stat.mode()));
    });
    found
}

fn walk(top: &Path, path: &Path, with: &mut impl FnMut(String, &fs::Metadata, String)) {
    // The reaper may remove entries of the trash at the same time.
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

/// The names and provisioned sizes of all volumes, listed in pages of two.
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

/// The names of all listed snapshots.
pub(crate) fn listed_snapshots(engine: &Engine) -> BTreeSet<String> {
    let page = engine.list_snapshots(&SnapshotFilter::default(), None, usize::MAX).unwrap();
    page.items.into_iter().map(|snapshot| snapshot.id.name.to_string()).collect()
}

/// What a process reports about its pool.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) volumes: BTreeMap<String, u64>,
    pub(crate) snapshots: BTreeSet<String>,
    pub(crate) provisioned: u64,
}

impl Report {
    pub(crate) fn of(engine: &Engine) -> Self {
        Self {
            volumes: listed(engine),
            snapshots: listed_snapshots(engine),
            provisioned: engine.pools()[0].provisioned,
        }
    }
}

/// Checks that the directories, listings and accounting of an idle pool agree, and that no draft is left.
pub(crate) fn check(engine: &Engine, pool: &Path) {
    assert_eq!(engine.active_jobs(), 0, "copies are running");
    assert_eq!(names(&pool.join("work")), BTreeSet::new(), "drafts are left in work/");
    let new_records: Vec<_> =
        names(&pool.join("volumes")).into_iter().filter(|name| is_new_record(name)).collect();
    assert!(new_records.is_empty(), "new records are left in volumes/: {new_records:?}");
    check_listings(engine, pool);
}

/// Whether a directory is the top of a btrfs subvolume.
pub(crate) fn is_subvolume(dir: &Path) -> bool {
    fs::metadata(dir).unwrap().ino() == 256
}

/// Whether a name in `volumes/` is that of a record that is not in place.
fn is_new_record(name: &str) -> bool {
    name.starts_with('.')
}

/// Checks that the directories, listings and accounting of a pool agree. A killed process may have left drafts in it.
pub(crate) fn check_listings(engine: &Engine, pool: &Path) {
    let (mut on_disk, mut provisioned) = (BTreeMap::new(), 0);
    for name in names(&pool.join("volumes")).into_iter().filter(|name| !is_new_record(name)) {
        let directory = pool.join("volumes").join(&name);
        assert!(directory.join("data").is_dir(), "volume {name} has no data");
        let size = match fs::read(directory.join("volume.json")) {
            Ok(record) => {
                assert_eq!(names(&directory).len(), 2, "{name}: {:?}", names(&directory));
                let record: Value = serde_json::from_slice(&record).unwrap();
                // That of a volume that was just renamed may have its old id: the name of the directory counts.
                assert!(record["id"].as_str().is_some_and(|id| id.starts_with("p/")));
                record["size"].as_u64().unwrap()
            }
            Err(_) => 0, // unmanaged
        };
        provisioned += size;
        on_disk.insert(name, size);
    }
    assert_eq!(listed(engine), on_disk, "listed volumes and directories differ");
    let status = engine.pools().remove(0);
    assert_eq!(status.provisioned, provisioned, "provisioned bytes");
    assert_eq!(status.volumes, on_disk.len() as u64);
    let snapshots = names(&pool.join("snapshots"));
    for name in &snapshots {
        let directory = pool.join("snapshots").join(name);
        assert!(directory.join("data").is_dir(), "snapshot {name} has no data");
        let record = read_record(&directory.join("snapshot.json"));
        assert_eq!(record["id"], format!("p/{name}"));
        // A snapshot of a subvolume is made without a look at its entries.
        if record.get("entries").is_some() || !is_subvolume(&directory.join("data")) {
            let inside = contents(&directory.join("data")).len() as u64 - 1;
            assert_eq!(record["entries"].as_u64(), Some(inside), "snapshot {name} is incomplete");
        }
    }
    assert_eq!(listed_snapshots(engine), snapshots, "listed snapshots and directories differ");
}
