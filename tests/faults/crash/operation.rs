//! The operations that are interrupted, and what each must have done or not done afterwards.
#![expect(clippy::wildcard_enum_match_arm, reason = "most operations share the last arm")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use orlop::archive::{Entry, EntryKind, Reader, Writer};
use orlop::engine::Engine;
use orlop::engine::request::{
    ConsistencySpec, CreateGroup, CreateVolume, OwnerSpec, Publish, Sharing, Tuning,
};
use orlop::error::{Error, Kind, Result};
use orlop::fs::copy::Progress;
use orlop::fs::unpack::UnpackSpec;
use orlop::mount::{self, MountFlags};
use orlop::volume::{OnDelete, Policy, PolicyChange, SizeRange, Source, VolumeId};

use crate::common::backends::Backend;
use crate::common::pool::{
    clone_request, contents, copy_request, id, long_waits, names, request, snapshot_request,
};
use crate::common::wait::within_seconds;

const FRESH: &str = "fresh-object";
pub(super) const OLD: &str = "old-volume";
pub(super) const RETAINED: &str = "old-retained";
pub(super) const TRASHED: &str = "old-trashed";
/// The snapshots of a group, of [`RETAINED`] and [`TRASHED`]. The first one makes the group exist.
pub(super) const GROUP: [&str; 2] = ["group.1", "group.2"];
pub(super) const SNAPSHOT: &str = "old-snapshot";
/// An id as the kubelet generates it for an inline volume, and the name of its directory.
const INLINE: &str = "csi-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
static INLINE_NAME: LazyLock<String> = LazyLock::new(|| id(INLINE).name.to_string());
const GROWN: u64 = 8 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    FirstOpen,
    OpenAfterCrash,
    Create,
    Clone,
    Restore,
    Snapshot,
    Expand,
    Modify,
    Delete,
    DeleteToTrash,
    DeleteRetained,
    DeleteSnapshot,
    CreateGroup,
    DeleteGroup,
    Rename,
    Undelete,
    Replace,
    ReplaceTrashed,
    Publish,
    Unpublish,
    PublishEphemeral,
    UnpublishEphemeral,
}

pub(super) const ALL: &[Operation] = &[
    Operation::FirstOpen,
    Operation::OpenAfterCrash,
    Operation::Create,
    Operation::Clone,
    Operation::Restore,
    Operation::Snapshot,
    Operation::Expand,
    Operation::Modify,
    Operation::Delete,
    Operation::DeleteToTrash,
    Operation::DeleteRetained,
    Operation::DeleteSnapshot,
    Operation::CreateGroup,
    Operation::DeleteGroup,
    Operation::Rename,
    Operation::Undelete,
    Operation::Replace,
    Operation::ReplaceTrashed,
    Operation::Publish,
    Operation::Unpublish,
    Operation::PublishEphemeral,
    Operation::UnpublishEphemeral,
];

/// The directory of one case, with the pool and the target.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) dir: PathBuf,
    pub(super) backend: &'static Backend,
}

impl Base {
    pub(super) fn open(&self) -> Engine {
        self.backend.open_patiently(&self.pool())
    }

    pub(super) fn pool(&self) -> PathBuf {
        self.dir.join("pool")
    }

    pub(super) fn target(&self) -> PathBuf {
        self.dir.join("target")
    }

    fn data(&self, kind: &str, name: &str) -> PathBuf {
        self.pool().join(kind).join(name).join("data")
    }

    pub(super) fn is_mounted(&self) -> bool {
        mount::mounted_at(&self.target()).unwrap().is_some()
    }
}

fn has_deleted_in_place(pool: &Path, directory: &str) -> bool {
    let entries = [directory, "trash"].map(|parent| fs::read_dir(pool.join(parent)).into_iter().flatten());
    let is_marked = |entry: fs::DirEntry| entry.metadata().is_ok_and(|stat| stat.mode() == 0o41000);
    entries.into_iter().flatten().flatten().any(is_marked)
}

fn ephemeral() -> CreateVolume {
    request(INLINE, 1 << 20)
}

fn replace(engine: &Engine, name: &str) -> Result<VolumeId> {
    let entry = |path: &str, kind, size| Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: 1,
        gid: 2,
        modified: (1, 2),
        accessed: None,
        xattrs: Vec::new(),
        size,
        data: None,
    };
    let mut archive = Writer::new(Vec::new());
    archive.entry(&entry(".", EntryKind::Directory, 0))?;
    archive.entry(&entry("new", EntryKind::Directory, 0))?;
    archive.entry(&entry("new/file", EntryKind::File, 3))?;
    archive.data(b"new")?;
    archive.entry(&entry("new/link", EntryKind::HardLink(b"new/file".to_vec()), 0))?;
    let (archive, _) = archive.finish()?;
    let mut reader = Reader::new(&archive[..]);
    let spec = UnpackSpec::default();
    Ok(engine.replace_from_archive(&id(name), &mut reader, &spec, &Progress::default())?.0.id)
}

fn group() -> CreateGroup {
    CreateGroup {
        name: "group".into(),
        pool: id(OLD).pool,
        source_volumes: [id(RETAINED), id(TRASHED)].into(),
        consistency: ConsistencySpec { max_pause: Duration::from_secs(60), ..ConsistencySpec::default() },
        labels: Default::default(),
    }
}

fn publish(engine: &Engine, base: &Base, name: &str, ephemeral: Option<CreateVolume>) -> Result<()> {
    engine.publish(&Publish {
        id: id(name),
        target: base.target(),
        flags: MountFlags::default(),
        sharing: Sharing::ManyTargets,
        ephemeral: ephemeral.map(Box::new),
    })
}

fn unavailable(engine: &Engine) -> Result<String> {
    match &engine.pools()[0].unavailable {
        Some(why) => Err(Error::new(Kind::Unavailable, why.clone())),
        None => Ok(String::new()),
    }
}

impl Operation {
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::FirstOpen | Self::OpenAfterCrash)
    }

    pub(super) fn is_of_group(self) -> bool {
        matches!(self, Self::CreateGroup | Self::DeleteGroup)
    }

    /// Whether its error may be about what it leaves after it took effect, which a retry removes.
    pub(super) fn may_fail_when_done(self) -> bool {
        self.mounts() || self == Self::DeleteGroup
    }

    /// Removes from the pool's snapshots what an interrupted group has left: it exists while its first snapshot does.
    pub(super) fn without_rest_of_group(self, mut snapshots: BTreeSet<String>) -> BTreeSet<String> {
        if self.is_of_group() && !snapshots.contains(GROUP[0]) {
            snapshots.remove(GROUP[1]);
        }
        snapshots
    }

    pub(super) fn mounts(self) -> bool {
        matches!(self, Self::Publish | Self::Unpublish | Self::PublishEphemeral | Self::UnpublishEphemeral)
    }

    /// The directory and the name of the object that it works on.
    pub(super) fn object(self) -> (&'static str, &'static str) {
        match self {
            Self::FirstOpen | Self::OpenAfterCrash => ("", ""),
            Self::Create | Self::Clone | Self::Restore | Self::Rename => ("volumes", FRESH),
            Self::PublishEphemeral | Self::UnpublishEphemeral => ("volumes", INLINE_NAME.as_str()),
            Self::Snapshot => ("snapshots", FRESH),
            Self::Expand | Self::Modify | Self::Delete | Self::Replace | Self::Publish | Self::Unpublish => {
                ("volumes", OLD)
            }
            Self::DeleteToTrash | Self::Undelete | Self::ReplaceTrashed => ("volumes", TRASHED),
            Self::DeleteRetained => ("volumes", RETAINED),
            Self::DeleteSnapshot => ("snapshots", SNAPSHOT),
            Self::CreateGroup | Self::DeleteGroup => ("snapshots", GROUP[0]),
        }
    }

    /// Makes the pool and the acknowledged objects that exist before the operation. Returns the second process, which has
    /// the pool open all the time; none if the operation opens a new pool.
    pub(super) fn prepare(self, base: &Base) -> Option<Engine> {
        fs::create_dir(base.pool()).unwrap();
        if self == Self::FirstOpen {
            return None;
        }
        // It never waits for a lock: a process that ends leaves none.
        let tuning = Tuning { lock_wait: Duration::ZERO, ..long_waits() };
        let engine = base.backend.open(&base.pool(), tuning);
        for (name, on_delete) in
            [(OLD, OnDelete::Delete), (RETAINED, OnDelete::Retain), (TRASHED, OnDelete::Trash)]
        {
            let policy = Policy { on_delete, trash_for: Duration::from_secs(3600), ..Policy::default() };
            engine.create(&CreateVolume { policy, ..request(name, 1 << 20) }).unwrap();
            fs::write(base.data("volumes", name).join("file"), format!("of {name}")).unwrap();
        }
        fill(&base.data("volumes", OLD));
        engine.create_snapshot(&snapshot_request(SNAPSHOT, &id(OLD))).unwrap();
        match self {
            Self::Undelete => engine.delete(&id(TRASHED)).unwrap(),
            Self::DeleteGroup => drop(engine.create_group(&group()).unwrap()),
            Self::Unpublish => publish(&engine, base, OLD, None).unwrap(),
            Self::UnpublishEphemeral => publish(&engine, base, INLINE, Some(ephemeral())).unwrap(),
            Self::OpenAfterCrash => {
                fs::create_dir_all(base.pool().join("work/0123456789abcdef/data/deep")).unwrap();
                fs::write(base.pool().join("work/0123456789abcdef/volume.json"), "{").unwrap();
                fs::write(base.pool().join("work/fedcba9876543210"), "{").unwrap();
            }
            _ => {}
        }
        Some(engine)
    }

    /// Runs the operation; returns the id of its object.
    pub(super) fn run(self, engine: &Engine, base: &Base) -> Result<String> {
        let answer = match self {
            Self::FirstOpen | Self::OpenAfterCrash => return unavailable(engine),
            Self::Create => {
                let owner = OwnerSpec { uid: Some(7), gid: Some(8), mode: Some(0o2750) };
                engine.create(&CreateVolume { owner, ..request(FRESH, 1 << 20) })?.id
            }
            Self::Clone => engine.create(&clone_request(FRESH, &id(OLD)))?.id,
            Self::Restore => engine.create(&copy_request(FRESH, Source::Snapshot(id(SNAPSHOT))))?.id,
            Self::Snapshot => {
                let snapshot = engine.create_snapshot(&snapshot_request(FRESH, &id(OLD)))?;
                assert!(snapshot.ready);
                snapshot.id
            }
            Self::Expand => engine.expand(&id(OLD), SizeRange { required: GROWN, limit: 0 })?.id,
            Self::Modify => {
                let change = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
                engine.modify(&id(OLD), change)?.id
            }
            Self::Delete => engine.delete(&id(OLD)).map(|()| id(OLD))?,
            Self::DeleteToTrash => engine.delete(&id(TRASHED)).map(|()| id(TRASHED))?,
            Self::DeleteRetained => engine.delete(&id(RETAINED)).map(|()| id(RETAINED))?,
            Self::DeleteSnapshot => engine.delete_snapshot(&id(SNAPSHOT)).map(|()| id(SNAPSHOT))?,
            Self::CreateGroup => {
                let group = engine.create_group(&group())?;
                assert_eq!(group.snapshots.len(), 2);
                id(GROUP[0])
            }
            Self::DeleteGroup => engine.delete_group(&group().id(), &[]).map(|()| id(GROUP[0]))?,
            // Repeated after it was done, it does not find its source.
            Self::Rename => match engine.rename(&id(OLD), &id(FRESH).name) {
                Err(error) if error.kind() == Kind::NotFound => engine.get(&id(FRESH))?.id,
                renamed => renamed?.id,
            },
            Self::Undelete => match engine.trash(&id(TRASHED).pool)?.first() {
                None => engine.get(&id(TRASHED))?.id,
                Some(trashed) => engine.undelete(&trashed.id.pool, &trashed.entry, &trashed.id.name)?.id,
            },
            Self::Replace => replace(engine, OLD)?,
            Self::ReplaceTrashed => replace(engine, TRASHED)?,
            Self::Publish => publish(engine, base, OLD, None).map(|()| id(OLD))?,
            Self::Unpublish => engine.unpublish(&id(OLD).to_string(), &base.target()).map(|()| id(OLD))?,
            Self::PublishEphemeral => {
                publish(engine, base, INLINE, Some(ephemeral())).map(|()| id(INLINE))?
            }
            Self::UnpublishEphemeral => engine.unpublish(INLINE, &base.target()).map(|()| id(INLINE))?,
        };
        Ok(answer.to_string())
    }

    /// The number of entries that it leaves in the trash.
    pub(super) fn kept(self) -> RangeInclusive<usize> {
        match self {
            Self::DeleteToTrash | Self::DeleteRetained => 1..=1,
            // It is repeated, and an interrupted one may leave the new volume there.
            Self::ReplaceTrashed => 1..=4,
            _ => 0..=0,
        }
    }

    /// Whether the target is a mount point, before or after the operation.
    pub(super) fn mounted(self, done: bool) -> bool {
        match self {
            Self::Publish | Self::PublishEphemeral => done,
            Self::Unpublish | Self::UnpublishEphemeral => !done,
            _ => false,
        }
    }

    /// Reports whether the operation took effect. Checks that it took effect completely or not at all.
    pub(super) fn is_done(self, base: &Base, before: &BTreeMap<String, String>) -> bool {
        let (directory, name) = self.object();
        // Without space for a rename, an object is deleted where it is, and the reaper moves or removes it. When the first
        // attempt fails too, the next one comes a minute later.
        within_seconds(180, "nothing is deleted in place", || !has_deleted_in_place(&base.pool(), directory));
        let now = contents(&base.pool());
        let object = |all: &BTreeMap<String, String>| subtree(all, &format!("{directory}/{name}"));
        let exists = base.pool().join(directory).join(name).exists();
        let existed = before.contains_key(&format!("{directory}/{name}"));
        match self {
            Self::FirstOpen | Self::OpenAfterCrash => return false,
            Self::Publish | Self::Unpublish => assert_eq!(object(&now), object(before)),
            Self::Expand | Self::Modify => {
                let record = "volume.json".to_owned();
                let (mut now, mut before) = (object(&now), object(before));
                let (new, old) = (now.remove(&record), before.remove(&record));
                assert_eq!(now, before);
                let word =
                    if self == Self::Expand { format!("\\\"size\\\": {GROWN}") } else { "retain".to_owned() };
                if new == old {
                    return false;
                }
                assert!(new.unwrap().contains(&word));
                return true;
            }
            Self::Replace | Self::ReplaceTrashed => return self.is_replaced(base, before, &now),
            _ if exists == existed => assert_eq!(object(&now), object(before)),
            Self::Create => {
                let data = fs::metadata(base.data(directory, name)).unwrap();
                assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (7, 8, 0o2750));
            }
            Self::Clone | Self::Restore | Self::Snapshot => {
                let copy = contents(&base.data(directory, name));
                assert_eq!(copy, subtree(before, &format!("volumes/{OLD}/data")), "the copy is complete");
            }
            Self::CreateGroup => check_group(base, before),
            Self::Rename => {
                assert!(!base.pool().join("volumes").join(OLD).exists());
                let renamed = contents(&base.data(directory, name));
                assert_eq!(renamed, subtree(before, &format!("volumes/{OLD}/data")));
            }
            Self::Undelete => {
                let restored = contents(&base.data(directory, name));
                let entry = before.keys().find(|path| path.starts_with("trash/") && path.ends_with("/data"));
                assert_eq!(restored, subtree(before, entry.unwrap()));
            }
            Self::PublishEphemeral => assert!(base.data(directory, name).is_dir()),
            Self::DeleteToTrash | Self::DeleteRetained => {
                let trash = names(&base.pool().join("trash"));
                let kept = trash.iter().find(|entry| entry.starts_with(name)).unwrap();
                assert_eq!(
                    subtree(&now, &format!("trash/{kept}")),
                    object(before),
                    "the kept volume is complete"
                );
            }
            Self::Delete | Self::DeleteSnapshot | Self::DeleteGroup | Self::UnpublishEphemeral => {}
        }
        let moved = exists != existed || matches!(self, Self::Publish | Self::Unpublish);
        moved && base.is_mounted() == self.mounted(true)
    }

    /// Reports whether the volume has the new contents. Checks that it has them or the old ones, and that the trash has the old
    /// ones as long as they are to be kept.
    fn is_replaced(
        self,
        base: &Base,
        before: &BTreeMap<String, String>,
        now: &BTreeMap<String, String>,
    ) -> bool {
        let (directory, name) = self.object();
        let volume = format!("{directory}/{name}");
        if subtree(now, &volume) == subtree(before, &volume) {
            return false;
        }
        let data: Vec<_> = subtree(now, &format!("{volume}/data")).into_keys().collect();
        assert_eq!(data, ["", "new", "new/file", "new/link"], "the new contents are complete");
        assert_eq!(fs::read(base.data(directory, name).join("new/file")).unwrap(), b"new");
        let old = subtree(before, &format!("{volume}/data"));
        let in_trash = |entry: &String| subtree(now, &format!("trash/{entry}/data")) == old;
        let is_kept = self == Self::Replace || names(&base.pool().join("trash")).iter().any(in_trash);
        assert!(is_kept, "the old contents are in the trash");
        true
    }

    /// Checks that all other objects are unchanged.
    pub(super) fn check_other_objects(self, base: &Base, before: &BTreeMap<String, String>) {
        let now = contents(&base.pool());
        let (directory, name) = self.object();
        let own = format!("{directory}/{name}");
        let is_renamed = self == Self::Rename && base.pool().join(&own).exists();
        let renamed = format!("volumes/{OLD}");
        let others = |all: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            let kept = all.iter().filter(|(path, _)| {
                let is_at = |top: &str| path.as_str() == top || path.starts_with(&format!("{top}/"));
                let is_of_group = self.is_of_group() && is_at(&format!("{directory}/{}", GROUP[1]));
                let is_own = is_at(&own) || is_of_group || (is_renamed && is_at(&renamed));
                // A new record that is not in place yet belongs to the operation.
                let is_new_record = path.starts_with("volumes/.");
                (path.starts_with("volumes/") || path.starts_with("snapshots/")) && !is_own && !is_new_record
            });
            kept.map(|(path, text)| (path.clone(), text.clone())).collect()
        };
        assert_eq!(others(&now), others(before), "an object that was acknowledged before changed");
    }
}

/// Checks that both snapshots of the group are complete.
fn check_group(base: &Base, before: &BTreeMap<String, String>) {
    for (snapshot, volume) in GROUP.into_iter().zip([RETAINED, TRASHED]) {
        let copy = contents(&base.data("snapshots", snapshot));
        assert_eq!(copy, subtree(before, &format!("volumes/{volume}/data")), "the group is complete");
    }
}

/// The entries at and below a path, with paths relative to it.
fn subtree(all: &BTreeMap<String, String>, top: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (path, text) in all {
        match path.strip_prefix(top) {
            Some("") => found.insert(String::new(), text.clone()),
            Some(rest) => rest.strip_prefix('/').and_then(|rest| found.insert(rest.to_owned(), text.clone())),
            None => None,
        };
    }
    found
}

/// Makes one entry of every type that a copy handles with its own system calls.
fn fill(data: &Path) {
    fs::create_dir_all(data.join("dir/deeper")).unwrap();
    fs::write(data.join("dir/file"), "a file").unwrap();
    fs::hard_link(data.join("dir/file"), data.join("link")).unwrap();
    symlink("dir/file", data.join("symlink")).unwrap();
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    sparse.set_len(32 << 10).unwrap();
    (&sparse).write_all(b"start").unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, data.join("fifo"), fifo, 0o640.into(), 0).unwrap();
}
