//! Types for names, ids, sizes, policies, volumes and snapshots. They parse and check their values; no I/O.

mod claim;
mod consistency;
mod id;
mod record;
mod size;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
pub use claim::{CLAIM_NAME, CLAIM_NAMESPACE, Claim};
pub use consistency::{Consistency, CopyRecord, SnapshotCost};
pub use id::{Name, PoolName, VolumeId, shorten};
pub use jiff::Timestamp;
pub use record::{BackendState, GroupMembership, SCHEMA, Snapshot, Volume};
pub use size::Size;

/// The directory in a volume's or snapshot's own directory that contains its files. Containers see only this one.
pub const DATA: &str = "data";

/// The sizes that a request accepts, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SizeRange {
    /// The smallest size; 0: no minimum.
    pub required: u64,
    /// The largest size; 0: no maximum.
    pub limit: u64,
}

impl SizeRange {
    /// Creates a range.
    ///
    /// # Errors
    /// `OutOfRange` when the limit is below the required size.
    pub fn new(required: u64, limit: u64) -> Result<Self> {
        if limit != 0 && limit < required {
            let text = format!(
                "the largest allowed size, {}, is below the required size, {}",
                Size(limit),
                Size(required)
            );
            return Err(Error::new(Kind::OutOfRange, text));
        }
        Ok(Self { required, limit })
    }

    /// Whether a volume of this size satisfies the request.
    #[must_use]
    pub fn admits(self, size: u64) -> bool {
        size >= self.required && (self.limit == 0 || size <= self.limit)
    }
}

/// What happens to the data when a volume is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDelete {
    /// It is removed in the background.
    #[default]
    Delete,
    /// It is kept in the pool's trash until `trashFor` has passed.
    Trash,
    /// It is kept in the pool's trash until an administrator removes it.
    Retain,
}

/// Whether the size of a volume is to be enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// It is enforced if the pool can do that.
    #[default]
    Auto,
    /// It is enforced, or the request fails.
    Hard,
    /// It is not enforced.
    None,
}

/// The settings of a volume that can be modified later (`VolumeAttributesClass`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// What happens to the data when the volume is deleted.
    pub on_delete: OnDelete,
    /// How long the data is kept with [`OnDelete::Trash`]; stored in seconds.
    #[serde(with = "seconds")]
    pub trash_for: Duration,
    /// Whether the size is to be enforced.
    pub limit: Limit,
    /// The largest number of files and directories, with the volume's own; 0: any number.
    #[serde(skip_serializing_if = "is_zero")]
    pub inodes: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A change of a policy. A field that is `None` is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyChange {
    /// New value of [`Policy::on_delete`].
    pub on_delete: Option<OnDelete>,
    /// New value of [`Policy::trash_for`].
    pub trash_for: Option<Duration>,
    /// New value of [`Policy::limit`].
    pub limit: Option<Limit>,
    /// New value of [`Policy::inodes`].
    #[serde(default)]
    pub inodes: Option<u64>,
}

impl PolicyChange {
    /// Returns the policy after the change.
    #[must_use]
    pub fn applied_to(self, policy: Policy) -> Policy {
        Policy {
            on_delete: self.on_delete.unwrap_or(policy.on_delete),
            trash_for: self.trash_for.unwrap_or(policy.trash_for),
            limit: self.limit.unwrap_or(policy.limit),
            inodes: self.inodes.unwrap_or(policy.inodes),
        }
    }
}

/// Owner and permission bits of a volume's data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits, at most 0o7777; stored in octal, such as `"0770"`.
    #[serde(with = "octal")]
    pub mode: u32,
}

impl Default for Owner {
    /// Owned by root and writable by every user, so that a container of any user can use it. Docker and comparable
    /// CSI drivers have the same default.
    fn default() -> Self {
        Self { uid: 0, gid: 0, mode: 0o777 }
    }
}

/// The object that the data of a new volume is copied from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The new volume is a clone of this volume.
    Volume(VolumeId),
    /// The new volume is restored from this snapshot.
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

/// The requested limits of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Size in bytes; 0: unlimited.
    pub bytes: u64,
    /// Number of inodes; 0: unlimited.
    pub inodes: u64,
    /// Whether the limits are to be enforced.
    pub mode: Limit,
}

/// What the kernel enforces for a volume, as read back from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforced {
    /// Nothing: the size is accounted for but not enforced.
    #[default]
    No,
    /// The size in bytes.
    Bytes,
    /// The number of inodes.
    Inodes,
    /// Both.
    #[serde(rename = "bytes+inodes")]
    BytesAndInodes,
}

/// Labels from the request for an object, such as the name and namespace of a claim.
pub type Labels = BTreeMap<String, String>;

mod octal {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(mode: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{mode:04o}"))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<u32, D::Error> {
        let text = String::deserialize(from)?;
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| D::Error::custom("the mode is not octal, such as \"0770\""))
    }
}

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

    #[test]
    fn a_mode_is_stored_in_octal() {
        let owner = Owner { uid: 1, gid: 2, mode: 0o770 };
        let text = serde_json::to_string(&owner).unwrap();
        assert_eq!(text, r#"{"uid":1,"gid":2,"mode":"0770"}"#);
        assert_eq!(serde_json::from_str::<Owner>(&text).unwrap(), owner);
        for bad in [r#""""#, r#""rwx""#, r#""10000""#, "504"] {
            let text = format!(r#"{{"uid":1,"gid":2,"mode":{bad}}}"#);
            assert!(serde_json::from_str::<Owner>(&text).is_err(), "{bad}");
        }
    }
}
