//! Records of volumes and snapshots, as they are stored in a pool.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{CopyRecord, Enforced, Labels, Name, Owner, Policy, Source, Timestamp, VolumeId};

/// The schema of records and markers that this version reads and writes.
pub const SCHEMA: u32 = 1;

/// Data that a backend stores in an object's record, such as a project id. Only the backend knows the fields.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackendState(Map<String, Value>);

impl BackendState {
    /// The number in a field.
    #[must_use]
    pub fn number(&self, field: &str) -> Option<u64> {
        self.0.get(field)?.as_u64()
    }

    /// The same state, with this number in a field.
    #[must_use]
    pub fn with_number(mut self, field: &str, number: u64) -> Self {
        self.0.insert(field.to_owned(), number.into());
        self
    }

    /// The same state without this field.
    #[must_use]
    pub fn without(mut self, field: &str) -> Self {
        self.0.remove(field);
        self
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The record of a volume, `volume.json`. Fields that this version does not know are kept when it is rewritten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// The record's schema: [`SCHEMA`].
    pub schema: u32,
    /// Distinguishes this object from earlier objects of the same name.
    pub uid: Uuid,
    /// `<pool>/<name>`.
    pub id: VolumeId,
    /// The name that was requested, unchanged.
    pub requested_name: String,
    /// Provisioned size in bytes; 0: no size was requested.
    pub size: u64,
    /// What the kernel enforces.
    #[serde(default)]
    pub enforced: Enforced,
    /// Data of the pool's backend.
    #[serde(default, skip_serializing_if = "BackendState::is_empty")]
    pub backend: BackendState,
    /// Owner and mode of the data directory when it was created.
    pub owner: Owner,
    /// The part that can be modified later.
    #[serde(default)]
    pub policy: Policy,
    /// Labels from the request.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The volume or snapshot that it was copied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// How consistent the copy of a volume was made; `None` for other volumes, and for clones of earlier versions.
    #[serde(flatten)]
    pub copied: Option<CopyRecord>,
    /// Time of creation.
    pub created: Timestamp,
    /// The time of the last complete backup of it; `None` if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_backup: Option<Timestamp>,
    /// Whether orlop created it and may delete its data. A directory that an administrator placed in `volumes/` is
    /// unmanaged.
    #[serde(default = "yes")]
    pub managed: bool,
    /// Whether it is deleted with the pod that it was published for (CSI inline volume).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
}

/// The part of the record of a snapshot that says to which group it belongs. All snapshots of a group have the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupMembership {
    /// The name of the group, from which the names of its snapshots follow.
    pub name: Name,
    /// Distinguishes this group from earlier groups of the same name.
    pub uid: Uuid,
    /// Number of snapshots in the group.
    pub snapshots: usize,
}

impl GroupMembership {
    /// The most snapshots in a group.
    pub const MAX: usize = 100;

    /// The name of a snapshot of the group, counted from 1.
    #[must_use]
    pub fn member(group: &Name, number: usize) -> Name {
        Name::of(&format!("{group}.{number}"))
    }

    /// The name of the snapshot whose existence makes the group exist: it is committed last and deleted first.
    #[must_use]
    pub fn first(group: &Name) -> Name {
        Self::member(group, 1)
    }
}

/// The record of a snapshot, `snapshot.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The record's schema: [`SCHEMA`].
    pub schema: u32,
    /// Distinguishes this object from earlier objects of the same name.
    pub uid: Uuid,
    /// `<pool>/<name>`.
    pub id: VolumeId,
    /// The name that was requested, unchanged.
    pub requested_name: String,
    /// The volume that it is a copy of, which may have been deleted since.
    pub source_volume: VolumeId,
    /// Provisioned size of that volume in bytes: the smallest size of a restored volume.
    pub size: u64,
    /// Number of directory entries below the data directory; `None` if they were not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Apparent sizes of the regular files in bytes; `None` if they were not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Number of extended attributes that could not be copied.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_xattrs: u64,
    /// Number of names that were deleted or replaced while they were copied.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub vanished: u64,
    /// Number of btrfs subvolumes of the tenant, directly in the volume, that are not in the snapshot; at most 255.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_subvolumes: u64,
    /// How consistent the copy was made.
    #[serde(flatten, deserialize_with = "CopyRecord::of_snapshot")]
    pub copied: CopyRecord,
    /// Data of the pool's backend.
    #[serde(default, skip_serializing_if = "BackendState::is_empty")]
    pub backend: BackendState,
    /// The group that it was made in, and is deleted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupMembership>,
    /// Labels from the request.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Time at which the copy started.
    pub created: Timestamp,
    /// Whether the copy is complete. Always true in a pool, where it is not stored; an answer of a worker may say false.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub ready: bool,
}

impl Snapshot {
    /// The id of the group that it belongs to.
    #[must_use]
    pub fn group_id(&self) -> Option<VolumeId> {
        let group = self.group.as_ref()?;
        Some(VolumeId { pool: self.id.pool.clone(), name: group.name.clone() })
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_true(value: &bool) -> bool {
    *value
}

fn yes() -> bool {
    true
}
