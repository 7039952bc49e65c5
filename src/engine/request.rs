//! Requests to the engine and its results. A frontend checks the form of a request when it builds one of these.

mod group;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::group::{CreateGroup, SnapshotGroup};
use crate::error::Result;
use crate::mount::options::MountFlags;
use crate::mount::users::User;
pub use crate::pool::{HostUse, Keeper, KeptFiles, LastAudit, PoolSettings};
use crate::volume::{
    Consistency, Labels, Name, Policy, PoolName, SizeRange, Snapshot, SnapshotCost, Source, Timestamp,
    Volume, VolumeId,
};

/// A request to create a volume, or to return the one that an earlier request created.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CreateVolume {
    /// The requested name: any text. The directory's name is derived from it.
    pub name: String,
    /// The requested pool; `None`: the one named "default", or the first of the settings.
    pub pool: Option<PoolName>,
    /// Acceptable sizes.
    pub size: SizeRange,
    /// Owner and mode of the root directory.
    pub owner: OwnerSpec,
    /// Delete policy and limit.
    pub policy: Policy,
    /// Labels for the record.
    pub labels: Labels,
    /// The volume or snapshot to copy.
    pub source: Option<Source>,
    /// How consistent a copy of a volume must be.
    pub consistency: ConsistencySpec,
    /// Whether the caller can send the request to another node when this one lacks the source or the space.
    pub may_go_elsewhere: bool,
}

/// The requested owner and mode. A field that is `None` is taken from the source, or from
/// [`crate::volume::Owner::default`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSpec {
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
    /// Permission bits, at most 0o7777.
    pub mode: Option<u32>,
}

/// How consistent a copy must be, and what it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsistencySpec {
    /// What it shows.
    pub consistency: Consistency,
    /// The longest pause of the containers that use the source.
    pub max_pause: Duration,
    /// What a snapshot may cost. For a new volume: what snapshots in its pool may.
    pub cost: SnapshotCost,
}

impl Default for ConsistencySpec {
    /// A pause that probes and leases bear.
    fn default() -> Self {
        Self {
            consistency: Consistency::default(),
            max_pause: Duration::from_secs(2),
            cost: SnapshotCost::default(),
        }
    }
}

/// A request to create a snapshot, or to return the one that an earlier request created.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateSnapshot {
    /// The requested name.
    pub name: String,
    /// The volume to copy.
    pub source_volume: VolumeId,
    /// How consistent the copy must be.
    pub consistency: ConsistencySpec,
    /// Labels for the record.
    pub labels: Labels,
}

/// A filter for snapshots. An empty filter matches all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SnapshotFilter {
    /// Matches this snapshot only.
    pub id: Option<VolumeId>,
    /// Matches snapshots of this volume only.
    pub source_volume: Option<VolumeId>,
}

/// The number of targets that a volume may have on this node at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    /// One.
    OneTarget,
    /// Any number.
    ManyTargets,
}

/// A request to mount a volume at a path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publish {
    /// The volume.
    pub id: VolumeId,
    /// The target: an absolute path whose parent exists.
    pub target: PathBuf,
    /// Flags of the mount, including read-only.
    pub flags: MountFlags,
    /// Whether the volume may have other targets at the same time.
    pub sharing: Sharing,
    /// For a volume that belongs to one pod: how to create it. Its `name` is that of `id`.
    pub ephemeral: Option<Box<CreateVolume>>,
}

/// A volume in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The volume.
    pub id: VolumeId,
    /// Provisioned size in bytes; 0: no size was requested.
    pub size: u64,
    /// The volume or snapshot that it was copied from.
    pub source: Option<Source>,
}

/// A volume with its record on disk.
#[derive(Debug)]
pub struct StoredVolume {
    /// The volume.
    pub id: VolumeId,
    /// Its record, or why that cannot be read.
    pub record: Result<Volume>,
}

/// A snapshot with its record on disk.
#[derive(Debug)]
pub struct StoredSnapshot {
    /// The snapshot.
    pub id: VolumeId,
    /// Its record, or why that cannot be read.
    pub record: Result<Snapshot>,
}

/// A volume with what the host says about it.
#[derive(Debug)]
pub struct Inspected {
    /// Its record.
    pub volume: Volume,
    /// Its data directory.
    pub path: PathBuf,
    /// Why its limits are not enforced now; `None` if they are, or it has none.
    pub not_enforced: Option<String>,
    /// Whether a snapshot of it shares blocks with it. Otherwise all bytes are copied. `None` if that is not known now.
    pub has_cheap_snapshots: Option<bool>,
    /// The mounts of its data, in any mount namespace of this host.
    pub users: Vec<User>,
    /// The hosts that use it, if its pool is shared by several.
    pub hosts: Vec<HostUse>,
}

/// A volume as a frontend that names volumes without their pools describes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Described {
    /// Its record.
    pub volume: Volume,
    /// Bytes on disk; `None` until they are measured.
    pub used: Option<u64>,
    /// Its users on this host, as text, without the targets of the frontend.
    pub users: Vec<String>,
    /// The targets of the frontend at which it is mounted.
    pub targets: Vec<PathBuf>,
    /// The names of its snapshots, which are in the same pool.
    pub snapshots: Vec<Name>,
    /// What is wrong with it, with the remedy.
    pub health: Vec<String>,
}

/// Part of a listing, ordered by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The objects.
    pub items: Vec<T>,
    /// The last id of this page, if more objects follow.
    pub next: Option<VolumeId>,
}

/// The capacity of a pool, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// What may still be provisioned.
    pub available: u64,
    /// Size of the largest volume that can be created.
    pub largest: u64,
}

/// Total, used and available amount of bytes or inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amounts {
    /// The total amount.
    pub total: u64,
    /// The amount that the volume takes; `None` until the first measurement ends.
    pub used: Option<u64>,
    /// The amount that the volume can still take.
    pub available: u64,
}

/// The usage of a volume. `used` is measured in the background and is at most about [`Tuning::usage_age`] old when it
/// is requested often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: Amounts,
    /// Inodes of every type.
    pub inodes: Amounts,
}

/// The severity of a symptom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// Usable, with a defect.
    Degraded,
    /// Not usable from this node.
    Inaccessible,
    /// Data is missing or wrong.
    DataLoss,
}

/// A defect of a volume or pool. Without any, it is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symptom {
    /// The severity.
    pub severity: Severity,
    /// A machine-readable reason in CamelCase.
    pub reason: Cow<'static, str>,
    /// A human-readable message with the remedy.
    pub message: String,
}

/// The status of a pool, for metrics and health.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: PoolName,
    /// Its directory.
    pub path: PathBuf,
    /// The name of its backend, if it is available.
    pub backend: Option<Cow<'static, str>>,
    /// Why it is unavailable; `None` if it is available.
    pub unavailable: Option<String>,
    /// Why nothing can be created in it although it is available: its filesystem is read-only or has no inodes, or its
    /// directories have project ids that forbid renames.
    pub refuses: Option<String>,
    /// Since when it has been unavailable, if that is known.
    pub since: Option<Timestamp>,
    /// Total bytes of its filesystem.
    pub total: u64,
    /// Bytes provisioned to volumes.
    pub provisioned: u64,
    /// Bytes that may still be provisioned.
    pub allocatable: u64,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Number of trash entries that are to be removed, now or later, and of those that are being removed.
    pub trash: u64,
    /// Why a trash entry could not be removed; `None` while there is no such entry.
    pub trash_failure: Option<String>,
    /// What the last audit of its volumes has found; `None` if none has ended.
    pub audit: Option<LastAudit>,
    /// Number of volumes and snapshots whose record cannot be read.
    pub unreadable: u64,
    /// The first ones of them, such as `volume p/v`, each with the reason.
    pub unreadable_objects: BTreeMap<String, String>,
}

impl PoolStatus {
    /// The status of an empty pool without any space.
    #[must_use]
    pub fn new(settings: &PoolSettings) -> Self {
        Self {
            name: settings.name.clone(),
            path: settings.path.clone(),
            backend: None,
            unavailable: None,
            refuses: None,
            since: None,
            total: 0,
            provisioned: 0,
            allocatable: 0,
            volumes: 0,
            snapshots: 0,
            trash: 0,
            trash_failure: None,
            audit: None,
            unreadable: 0,
            unreadable_objects: BTreeMap::new(),
        }
    }
}

/// The upper bounds in seconds of the counters in [`PauseStats::durations`]. The last one counts all longer pauses.
pub const PAUSE_BOUNDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, f64::INFINITY];

/// What became of the pauses of this process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PauseStats {
    /// The copies for which containers were paused.
    pub kept: u64,
    /// The copies that were refused because nothing could be paused, or not within the longest pause.
    pub refused: u64,
    /// The pauses during which a source changed or its users did not stay paused.
    pub broken: u64,
    /// The sum of the durations of the pauses that were kept.
    pub total: Duration,
    /// The number of these pauses by duration: see [`PAUSE_BOUNDS`].
    pub durations: [u64; PAUSE_BOUNDS.len()],
}

impl PauseStats {
    /// Counts a pause that was kept.
    pub fn add_kept(&mut self, duration: Duration) {
        self.kept += 1;
        self.total += duration;
        let bound = PAUSE_BOUNDS.iter().position(|bound| duration.as_secs_f64() <= *bound);
        if let Some(count) = bound.and_then(|bound| self.durations.get_mut(bound)) {
            *count += 1;
        }
    }
}

/// What an engine does and did, for metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// Number of copies that are running or waiting.
    pub jobs: usize,
    /// What became of the pauses.
    pub pauses: PauseStats,
}

impl Activity {
    /// Adds what another process does and did.
    pub fn add(&mut self, other: &Self) {
        self.jobs += other.jobs;
        let (pauses, more) = (&mut self.pauses, &other.pauses);
        pauses.kept += more.kept;
        pauses.refused += more.refused;
        pauses.broken += more.broken;
        pauses.total += more.total;
        for (count, more) in pauses.durations.iter_mut().zip(more.durations) {
            *count += more;
        }
    }
}

/// Timeouts and concurrency of the engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tuning {
    /// How long a request waits for a copy before it reports that the copy still runs.
    pub copy_wait: Duration,
    /// Number of copies within one pool, or between the same two pools, that run at once. Others wait.
    pub copies: usize,
    /// How long a request waits for another one on the same object.
    pub lock_wait: Duration,
    /// Age at which a measured usage is measured again.
    pub usage_age: Duration,
    /// How often volumes are searched for files that have left their project; zero: never.
    pub audit_every: Duration,
    /// How long a caller waits for a pool that does not respond. Longer than `copy_wait` and
    /// `lock_wait` together, and than four times `lock_wait`.
    pub call_timeout: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            copy_wait: Duration::from_secs(3),
            copies: 2,
            lock_wait: Duration::from_secs(1),
            usage_age: Duration::from_secs(60),
            audit_every: Duration::from_secs(86_400),
            // Shorter than the timeout of the CSI sidecars, which is 10 s, so that they get the reason.
            call_timeout: Duration::from_secs(8),
        }
    }
}
