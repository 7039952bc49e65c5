//! What a door may ask of the engine, and what it gets: every check of form is done before one of these exists.

use std::path::PathBuf;
use std::time::Duration;

use crate::mount::options::MountFlags;
pub use crate::pool::PoolSettings;
use crate::volume::{Labels, Policy, PoolName, SizeRange, Source, VolumeId};

/// Make a volume, or find the one that an earlier call made.
#[derive(Debug, Clone, Default)]
pub struct CreateVolume {
    /// The name asked for: any text; the directory's name follows from it.
    pub name: String,
    /// The pool asked for; none: the one named "default", or the first of the settings.
    pub pool: Option<PoolName>,
    /// Acceptable sizes.
    pub size: SizeRange,
    /// Owner and mode of the root directory.
    pub owner: OwnerSpec,
    /// Delete policy and limit.
    pub policy: Policy,
    /// Labels for the record.
    pub labels: Labels,
    /// What to fill it with.
    pub source: Option<Source>,
    /// Whether the caller can ask another node when this one does not have the source or the room.
    pub may_go_elsewhere: bool,
}

/// Owner and mode as asked for; what is `None` comes from the source, or else from [`crate::volume::Owner::default`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnerSpec {
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
    /// Permission bits, at most 0o7777.
    pub mode: Option<u32>,
}

/// Cut a snapshot, or find the one that an earlier call cut.
#[derive(Debug, Clone)]
pub struct CreateSnapshot {
    /// The name asked for.
    pub name: String,
    /// The volume to copy.
    pub of: VolumeId,
    /// Labels for the record.
    pub labels: Labels,
}

/// Which snapshots to list; an empty filter lists all.
#[derive(Debug, Clone, Default)]
pub struct SnapshotFilter {
    /// Only this one.
    pub id: Option<VolumeId>,
    /// Only those of this volume.
    pub of: Option<VolumeId>,
}

/// How many may use a volume on this node at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// One target path only.
    OneTarget,
    /// Any number of target paths.
    ManyTargets,
}

/// Make a volume appear at a path.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The volume.
    pub id: VolumeId,
    /// Where: an absolute path whose parent exists.
    pub target: PathBuf,
    /// Attributes of the mount, `ro` among them.
    pub flags: MountFlags,
    /// Whether other targets may have it too.
    pub sharing: Sharing,
    /// For a volume that lives and dies with one pod: how to make it. Its `name` is that of `id`.
    pub ephemeral: Option<Box<CreateVolume>>,
}

/// A volume as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub id: VolumeId,
    /// Promised bytes; 0: none asked for.
    pub size: u64,
    /// What it was copied from.
    pub source: Option<Source>,
}

/// Part of a listing, ordered by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The objects.
    pub items: Vec<T>,
    /// The last id of this page, when more follow it.
    pub next: Option<VolumeId>,
}

/// Room in one pool or in all, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// What may still be promised.
    pub available: u64,
    /// The largest single volume that can be made.
    pub largest: u64,
}

/// Total, used and available of one thing. Unknown parts are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// All there is.
    pub total: u64,
    /// Taken by this volume; `None` until the first measurement ends.
    pub used: Option<u64>,
    /// What this volume may still take.
    pub available: u64,
}

/// What a volume takes. `used` is measured by a walk in the background, at most a minute old when asked for often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: Amounts,
    /// Files, directories and all else.
    pub inodes: Amounts,
}

/// How bad a symptom is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Usable, not as it should be.
    Degraded,
    /// Not usable from here.
    Inaccessible,
    /// Data is gone or wrong.
    DataLoss,
}

/// Something wrong with a volume or a pool; none: healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symptom {
    /// How bad.
    pub severity: Severity,
    /// A CamelCase word for machines.
    pub reason: &'static str,
    /// A sentence for people, with the next step.
    pub message: String,
}

/// What a pool is like, for metrics, health and `orlop check`.
#[derive(Debug, Clone)]
pub struct PoolStatus {
    /// Its name.
    pub name: PoolName,
    /// Its directory.
    pub path: PathBuf,
    /// Its backend's name, when it is open.
    pub backend: Option<&'static str>,
    /// Why it is not available, if it is not.
    pub unavailable: Option<String>,
    /// Bytes of the filesystem below it.
    pub total: u64,
    /// Bytes promised to volumes.
    pub provisioned: u64,
    /// Bytes that may still be promised.
    pub free: u64,
    /// Volumes in it.
    pub volumes: u64,
    /// Snapshots in it.
    pub snapshots: u64,
    /// Entries in its trash.
    pub trash: u64,
    /// Why the reaper does not go on, if it does not.
    pub reaper_stopped: Option<String>,
}

/// How long the engine waits for what, and how much it does at once.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// How long a call waits for a copy before it answers "still running".
    pub copy_wait: Duration,
    /// Copies at once; more wait their turn.
    pub copies: usize,
    /// How long a call waits for another one on the same object.
    pub lock_wait: Duration,
    /// How old a measured usage may be.
    pub usage_age: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            copy_wait: Duration::from_secs(3),
            copies: 2,
            lock_wait: Duration::from_secs(1),
            usage_age: Duration::from_secs(60),
        }
    }
}
