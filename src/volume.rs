//! The words of orlop as types: names, ids, sizes, policies, volumes and snapshots. No I/O; parse and check.

mod id;
mod record;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
pub use id::{Name, PoolName, VolumeId, shorten};
pub use jiff::Timestamp;
pub use record::{BackendState, SCHEMA, Snapshot, Volume};

/// The folder of a volume or snapshot that a container sees.
pub const DATA: &str = "data";

/// The sizes a caller accepts, in bytes; 0 stands for "no bound" on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SizeRange {
    /// At least so much.
    pub required: u64,
    /// At most so much; 0: any.
    pub limit: u64,
}

impl SizeRange {
    /// Creates a range.
    ///
    /// # Errors
    /// `OutOfRange` when the limit is below the required size.
    pub fn new(required: u64, limit: u64) -> Result<Self> {
        if limit != 0 && limit < required {
            let text = format!("the largest allowed size {limit} is below the required size {required}");
            return Err(Error::new(Kind::OutOfRange, text));
        }
        Ok(Self { required, limit })
    }

    /// Whether a volume of this size answers the request.
    #[must_use]
    pub fn admits(self, size: u64) -> bool {
        size >= self.required && (self.limit == 0 || size <= self.limit)
    }
}

/// What becomes of a volume's data when the volume is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDelete {
    /// It is removed, in the background.
    #[default]
    Delete,
    /// It stays in the pool's trash until `trashFor` has passed.
    Trash,
    /// It stays in the pool's trash until somebody removes it by hand.
    Retain,
}

/// Whether a volume's size is to be enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Where the pool can.
    #[default]
    Auto,
    /// Or the volume is not made.
    Hard,
    /// Never.
    None,
}

/// The part of a volume's policy that may be changed later (`VolumeAttributesClass`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// What becomes of the data on delete.
    pub on_delete: OnDelete,
    /// How long trash is kept, in seconds.
    #[serde(with = "seconds")]
    pub trash_for: Duration,
    /// Whether the size is to be enforced.
    pub limit: Limit,
}

/// A change of some of the policy; what is `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PolicyChange {
    /// See [`Policy::on_delete`].
    pub on_delete: Option<OnDelete>,
    /// See [`Policy::trash_for`].
    pub trash_for: Option<Duration>,
    /// See [`Policy::limit`].
    pub limit: Option<Limit>,
}

impl PolicyChange {
    /// The policy after the change.
    #[must_use]
    pub fn applied_to(self, policy: Policy) -> Policy {
        Policy {
            on_delete: self.on_delete.unwrap_or(policy.on_delete),
            trash_for: self.trash_for.unwrap_or(policy.trash_for),
            limit: self.limit.unwrap_or(policy.limit),
        }
    }
}

/// Who owns a new volume's root directory, and its permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
}

impl Default for Owner {
    /// Root's, and anybody may write: a container of any user can use it, as with Docker's volumes and every peer.
    fn default() -> Self {
        Self { uid: 0, gid: 0, mode: 0o777 }
    }
}

/// What a new volume's data is copied from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A clone of this volume.
    Volume(VolumeId),
    /// A restore of this snapshot.
    Snapshot(VolumeId),
}

impl Source {
    /// The id of the volume or snapshot.
    #[must_use]
    pub fn id(&self) -> &VolumeId {
        match self {
            Self::Volume(id) | Self::Snapshot(id) => id,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(id) => write!(f, "volume {id}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
        }
    }
}

/// The limits that a new or resized object is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes; 0: unlimited.
    pub bytes: u64,
    /// Whether the limits are to be enforced.
    pub mode: Limit,
}

/// What the kernel enforces for a volume, as read back from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforced {
    /// Nothing: the size is a promise of the pool's ledger.
    #[default]
    No,
    /// The size in bytes.
    Bytes,
}

/// Labels of whoever asked for an object, such as a claim's name and namespace.
pub type Labels = BTreeMap<String, String>;

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.as_secs())
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_range_admits_sizes_between_its_bounds() {
        assert_eq!(SizeRange::new(2, 1).unwrap_err().kind(), Kind::OutOfRange);
        let range = SizeRange::new(2, 3).unwrap();
        assert_eq!([1, 2, 3, 4].map(|size| range.admits(size)), [false, true, true, false]);
        assert!(SizeRange::new(2, 0).unwrap().admits(u64::MAX));
    }
}
