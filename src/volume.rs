//! The words of orlop as types: names, ids, sizes, policies, volumes and snapshots. No I/O; parse and check.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};

/// A pool's name: `[a-z][a-z0-9-]{0,31}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(Box<str>);

impl PoolName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PoolName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.len() <= 32 && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(plain) {
            return Ok(Self(text.into()));
        }
        let shown = shorten(text);
        Err(Error::new(
            Kind::Invalid,
            format!("pool name {shown:?} is not a lower-case word of at most 32 letters, digits and '-'"),
        ))
    }
}

impl TryFrom<String> for PoolName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a volume's or snapshot's directory: the requested name where that is a plain word
/// (`[A-Za-z0-9][A-Za-z0-9_.-]{0,63}`), else `_` and a digest of it. So a retry finds the same directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);

impl Name {
    /// The directory for a requested name, whatever characters that has.
    #[must_use]
    pub fn of(requested: &str) -> Self {
        if is_plain(requested) {
            return Self(requested.into());
        }
        let digest = Sha256::digest(requested.as_bytes());
        let mut name = String::from("_");
        for byte in digest.iter().take(20) {
            name.push_str(&format!("{byte:02x}"));
        }
        Self(name.into())
    }

    /// The name as text; safe as a single path component.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digest = text.strip_prefix('_').is_some_and(|rest| {
            rest.len() == 40 && rest.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
        });
        if digest || is_plain(text) {
            return Ok(Self(text.into()));
        }
        Err(Error::new(Kind::NotFound, format!("{:?} is not a name that orlop gives", shorten(text))))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.into()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_plain(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// At most 64 characters of a text that somebody sent, for an error.
#[must_use]
pub fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(64).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Which volume or snapshot: `<pool>/<name>`, at most 97 bytes.
///
/// A text that does not parse is the id of nothing: `Kind::NotFound`, never a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId {
    /// The pool it lies in.
    pub pool: PoolName,
    /// Its directory's name there.
    pub name: Name,
}

impl FromStr for VolumeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(pool, name)| {
            Some(Self { pool: pool.parse().ok()?, name: name.parse().ok()? })
        });
        parsed.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("{:?} does not exist: an id is <pool>/<name>", shorten(text)))
        })
    }
}

impl TryFrom<String> for VolumeId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.name)
    }
}

/// The sizes a caller accepts, in bytes; 0 stands for "no bound" on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SizeRange {
    /// At least so much.
    pub required: u64,
    /// At most so much; 0: any.
    pub limit: u64,
}

impl SizeRange {
    /// A range of two numbers as CSI sends them.
    ///
    /// # Errors
    /// `OutOfRange` when one is negative or the limit lies below what is required.
    pub fn new(required: i64, limit: i64) -> Result<Self> {
        let bytes = |what: &str, value: i64| {
            u64::try_from(value)
                .map_err(|_| Error::new(Kind::OutOfRange, format!("{what} is negative: {value}")))
        };
        let range = Self { required: bytes("required_bytes", required)?, limit: bytes("limit_bytes", limit)? };
        if range.limit != 0 && range.limit < range.required {
            return Err(Error::new(
                Kind::OutOfRange,
                format!("limit_bytes {limit} is less than required_bytes {required}"),
            ));
        }
        Ok(range)
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

/// What the kernel really enforces for a volume, as read back from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforced {
    /// Nothing: the size is a promise of the pool's ledger.
    #[default]
    No,
    /// The size in bytes.
    Bytes,
}

/// Seconds and nanoseconds since 1970, as files have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// And nanoseconds, below 1 000 000 000.
    pub nanos: u32,
}

impl Timestamp {
    /// The time now.
    #[must_use]
    pub fn now() -> Self {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
    }
}

/// Labels of whoever asked for an object, such as a claim's name and namespace.
pub type Labels = BTreeMap<String, String>;

/// A volume as its record tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// The record's form; 1.
    pub schema: u32,
    /// `<pool>/<name>`.
    pub id: VolumeId,
    /// The name as it was asked for.
    pub requested_name: String,
    /// Promised bytes; 0: no size was asked for.
    pub size: u64,
    /// What the kernel enforces.
    #[serde(default)]
    pub enforced: Enforced,
    /// The root directory's owner and mode when it was made.
    pub owner: Owner,
    /// What may be changed later.
    #[serde(default)]
    pub policy: Policy,
    /// Labels of the one who asked.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// What it was copied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// When it was made.
    pub created: Timestamp,
    /// Whether orlop made it and may delete its data. A directory that an administrator put into `volumes/` is not.
    #[serde(default = "yes")]
    pub managed: bool,
    /// Whether it goes with the pod it was published for (CSI inline volume).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
}

/// A snapshot as its record tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Snapshot {
    /// The record's form; 1.
    pub schema: u32,
    /// `<pool>/<name>`.
    pub id: VolumeId,
    /// The name as it was asked for.
    pub requested_name: String,
    /// The volume it was taken of, which may be gone since.
    pub of: VolumeId,
    /// The volume's promised size at that time: a restore needs at least so much.
    pub size: u64,
    /// Entries copied: files, directories, links and others, the root not counted.
    pub entries: u64,
    /// Bytes of file contents copied, holes not counted.
    pub bytes: u64,
    /// Labels of the one who asked.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When the copy began.
    pub created: Timestamp,
    /// Whether the copy is complete; a record on disk always says true.
    #[serde(skip, default = "yes")]
    pub ready: bool,
}

fn yes() -> bool {
    true
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
    fn a_plain_name_is_kept_and_any_other_becomes_a_digest() {
        assert_eq!(Name::of("pvc-1.a_B").as_str(), "pvc-1.a_B");
        let long = "x".repeat(128);
        for odd in ["", ".", "..", "a/b", "../../etc", "-a", "_a", "ü", "a b", "a\0", "a\n", long.as_str()] {
            let name = Name::of(odd);
            assert!(name.as_str().starts_with('_') && name.as_str().len() == 41, "{odd:?} -> {name}");
            assert_eq!(name.as_str().parse::<Name>().unwrap(), name);
        }
        assert_ne!(Name::of("a/b"), Name::of("a/c"));
    }

    #[test]
    fn an_id_that_does_not_parse_is_the_id_of_nothing() {
        for bad in ["", "a", "/", "a/", "/b", "a/b/c", "A/b", "a/..", "a/.", "a/_b", "../a", "a/b\0", "a/b\n"] {
            assert_eq!(bad.parse::<VolumeId>().unwrap_err().kind(), Kind::NotFound, "{bad:?}");
        }
        assert_eq!("p/v.1".parse::<VolumeId>().unwrap().to_string(), "p/v.1");
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(SizeRange::new(-1, 0).unwrap_err().kind(), Kind::OutOfRange);
        assert_eq!(SizeRange::new(0, -1).unwrap_err().kind(), Kind::OutOfRange);
        assert_eq!(SizeRange::new(2, 1).unwrap_err().kind(), Kind::OutOfRange);
        let range = SizeRange::new(2, 3).unwrap();
        assert_eq!([1, 2, 3, 4].map(|size| range.admits(size)), [false, true, true, false]);
        assert!(SizeRange::new(2, 0).unwrap().admits(u64::MAX));
    }
}
