//! The options of volumes and copies: the only list of their names. StorageClasses, inline volumes and commands use it.
//!
//! An unknown name is refused with the names that exist.

pub mod assignment;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::MapDeserializer;
use serde::de::{Error as _, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use crate::engine::request::{ConsistencySpec, OwnerSpec};
use crate::error::{Error, Kind, Result};
use crate::quantity::HumanDuration;
use crate::volume::{
    Consistency, Labels, Limit, OnDelete, Policy, PolicyChange, PoolName, SnapshotCost, shorten,
};

/// Default of `trashFor`.
pub const DEFAULT_TRASH_FOR: Duration = Duration::from_secs(7 * 86_400);
/// The largest `maxPause`: containers are never paused longer, whatever a class says.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The options of a volume, as `StorageClass.parameters` names them.
const VOLUME: &[&str] = &[
    "pool",
    "onDelete",
    "trashFor",
    "mode",
    "uid",
    "gid",
    "limit",
    "inodes",
    "consistency",
    "maxPause",
    "snapshotCost",
];
/// Those of a copy: `VolumeSnapshotClass.parameters`.
const COPY: &[&str] = &["consistency", "maxPause", "snapshotCost"];
/// Those that can be changed later: `VolumeAttributesClass.parameters`.
const MUTABLE: &[&str] = &["onDelete", "trashFor", "limit", "inodes"];

/// All options. A request may use those of its list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Parameters {
    /// Pool of the volume. Default: the one named "default", or the first of the settings.
    #[serde(deserialize_with = "from_text")]
    pool: Option<PoolName>,
    /// What happens to the data of a deleted volume: `delete` (the default), `trash` or `retain`.
    #[serde(deserialize_with = "variant")]
    on_delete: Option<OnDelete>,
    /// Retention of trash: `30m`, `12h`, `7d`, `1d12h`. Default: 7d. Only with `onDelete: trash`.
    #[serde(deserialize_with = "from_text")]
    trash_for: Option<HumanDuration>,
    /// Permission bits of the root directory in octal. Default: 0777, or the source's.
    #[serde(deserialize_with = "from_text")]
    mode: Option<Mode>,
    /// Owner of the root directory. Default: 0, or the source's.
    #[serde(deserialize_with = "from_text")]
    uid: Option<NumericId>,
    /// Group of the root directory. Default: 0, or the source's.
    #[serde(deserialize_with = "from_text")]
    gid: Option<NumericId>,
    /// Whether the size is enforced: `auto` (the default: if the pool can), `hard` (the volume is refused if the pool
    /// cannot), `none`.
    #[serde(deserialize_with = "variant")]
    limit: Option<Limit>,
    /// The largest number of files and directories, with the root directory; enforced as `limit` says. Default: any number.
    #[serde(deserialize_with = "from_text")]
    inodes: Option<InodeLimit>,
    /// What the copy of a volume in use shows: `crash` (the default: one instant) or `none` (each file at another moment).
    #[serde(deserialize_with = "variant")]
    consistency: Option<Consistency>,
    /// The longest pause of the containers that use the volume, such as `5s`. Default: 2s. Not with `consistency: none`.
    #[serde(deserialize_with = "from_text")]
    max_pause: Option<HumanDuration>,
    /// What snapshots may cost: `any` (the default) or `cheap` (what would copy all bytes is refused).
    #[serde(deserialize_with = "variant")]
    snapshot_cost: Option<SnapshotCost>,
}

/// How the author of a request writes options, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// As the parameters of a class: `trashFor: 7d`.
    Class,
    /// As on a command line: `trashfor=7d`.
    CommandLine,
}

impl Spelling {
    fn invalid(self, option: &str, reason: &str) -> Error {
        let text = match self {
            Self::Class => format!("parameter {option} {reason}"),
            Self::CommandLine => format!("option {} {reason}", option.to_ascii_lowercase()),
        };
        Error::new(Kind::Invalid, text)
    }

    fn assignment(self, option: &str, value: &str) -> String {
        match self {
            Self::Class => format!("{option}: {value}"),
            Self::CommandLine => format!("{}={value}", option.to_ascii_lowercase()),
        }
    }

    /// An option of the map `field`.
    fn key(self, field: &str, option: &str) -> String {
        match self {
            Self::Class => format!("{field}: key {:?}", shorten(option)),
            Self::CommandLine => format!("option {}", shorten(option).to_ascii_lowercase()),
        }
    }
}

/// The options of a new volume, for the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOptions {
    /// The pool; `None`: the default one.
    pub pool: Option<PoolName>,
    /// Owner and mode of the root directory.
    pub owner: OwnerSpec,
    /// Delete policy and limit.
    pub policy: Policy,
    /// How consistent a clone must be.
    pub consistency: ConsistencySpec,
    /// Labels for the record.
    pub labels: Labels,
}

/// Parses the options of a volume, and the mutable ones that override them.
///
/// # Errors
/// `Invalid`, which names the option.
pub fn volume_options(
    parameters: &HashMap<String, String>,
    mutable_parameters: &HashMap<String, String>,
    labels: Labels,
) -> Result<VolumeOptions> {
    volume_options_as(Spelling::Class, parameters, mutable_parameters, labels)
}

fn volume_options_as(
    spelling: Spelling,
    parameters: &HashMap<String, String>,
    mutable_parameters: &HashMap<String, String>,
    labels: Labels,
) -> Result<VolumeOptions> {
    let overrides = deserialize(spelling, "mutable_parameters", MUTABLE, mutable_parameters)?;
    let parameters = deserialize(spelling, "parameters", VOLUME, parameters)?;
    let on_delete = overrides.on_delete.or(parameters.on_delete).unwrap_or_default();
    let trash_for = overrides.trash_for.or(parameters.trash_for);
    check_trash_for(spelling, trash_for, on_delete)?;
    let policy = Policy {
        on_delete,
        trash_for: trash_for.map_or(DEFAULT_TRASH_FOR, |duration| duration.0),
        limit: overrides.limit.or(parameters.limit).unwrap_or_default(),
        inodes: overrides.inodes.or(parameters.inodes).map_or(0, |inodes| inodes.0),
    };
    let owner = OwnerSpec {
        uid: parameters.uid.map(|uid| uid.0),
        gid: parameters.gid.map(|gid| gid.0),
        mode: parameters.mode.map(|mode| mode.0),
    };
    let consistency = consistency(spelling, &parameters)?;
    Ok(VolumeOptions { pool: parameters.pool, owner, policy, consistency, labels })
}

/// Parses a change of a volume's policy. Absent options change nothing.
///
/// # Errors
/// Same as [`volume_options`].
pub fn policy_change(mutable_parameters: &HashMap<String, String>) -> Result<PolicyChange> {
    let Parameters { on_delete, trash_for, limit, inodes, .. } =
        deserialize(Spelling::Class, "mutable_parameters", MUTABLE, mutable_parameters)?;
    if let Some(on_delete) = on_delete {
        check_trash_for(Spelling::Class, trash_for, on_delete)?;
    }
    let (trash_for, inodes) = (trash_for.map(|duration| duration.0), inodes.map(|inodes| inodes.0));
    Ok(PolicyChange { on_delete, trash_for, limit, inodes })
}

/// Parses the options of a snapshot.
///
/// # Errors
/// Same as [`volume_options`].
pub fn snapshot_options(parameters: &HashMap<String, String>) -> Result<ConsistencySpec> {
    let parameters = deserialize(Spelling::Class, "parameters", COPY, parameters)?;
    consistency(Spelling::Class, &parameters)
}

fn consistency(spelling: Spelling, parameters: &Parameters) -> Result<ConsistencySpec> {
    let default = ConsistencySpec::default();
    let consistency = parameters.consistency.unwrap_or(default.consistency);
    let invalid = |reason: &str| Err(spelling.invalid("maxPause", reason));
    match parameters.max_pause {
        Some(_) if consistency == Consistency::None => {
            invalid(&format!("needs {}", spelling.assignment("consistency", "crash")))
        }
        Some(HumanDuration(Duration::ZERO)) => {
            invalid(&format!("must not be zero; use {}", spelling.assignment("consistency", "none")))
        }
        Some(HumanDuration(pause)) if pause > LONGEST_PAUSE => invalid("must be at most 5m"),
        max_pause => {
            let max_pause = max_pause.map_or(default.max_pause, |duration| duration.0);
            let cost = parameters.snapshot_cost.unwrap_or_default();
            Ok(ConsistencySpec { consistency, max_pause, cost })
        }
    }
}

fn check_trash_for(spelling: Spelling, trash_for: Option<HumanDuration>, on_delete: OnDelete) -> Result<()> {
    let invalid = |reason: &str| Err(spelling.invalid("trashFor", reason));
    match trash_for {
        Some(_) if on_delete != OnDelete::Trash => {
            invalid(&format!("needs {}", spelling.assignment("onDelete", "trash")))
        }
        Some(HumanDuration(Duration::ZERO)) => {
            invalid(&format!("must not be zero; use {}", spelling.assignment("onDelete", "delete")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Deserializes the options of a list. Each is deserialized alone first, so that an error names it.
fn deserialize(
    spelling: Spelling,
    field: &str,
    known: &[&str],
    map: &HashMap<String, String>,
) -> Result<Parameters> {
    let mut pairs: Vec<_> = map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    pairs.sort_unstable();
    for pair in &pairs {
        let parsed = if known.contains(&pair.0) {
            from_pairs(&[*pair]).map(drop).map_err(|error| error.to_string())
        } else {
            let known: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
            Err(format!("unknown field `{}`, expected one of {}", shorten(pair.0), known.join(", ")))
        };
        parsed.map_err(|why| Error::new(Kind::Invalid, format!("{}: {why}", spelling.key(field, pair.0))))?;
    }
    from_pairs(&pairs).map_err(|error| Error::new(Kind::Invalid, format!("{field}: {error}")))
}

fn from_pairs(pairs: &[(&str, &str)]) -> Result<Parameters, serde::de::value::Error> {
    Parameters::deserialize(MapDeserializer::new(pairs.iter().copied()))
}

fn from_text<'d, D: Deserializer<'d>, T: FromStr<Err: fmt::Display>>(
    input: D,
) -> Result<Option<T>, D::Error> {
    String::deserialize(input)?.parse().map(Some).map_err(D::Error::custom)
}

fn variant<'d, D: Deserializer<'d>, T: Deserialize<'d>>(input: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(input)?;
    // serde's error contains the whole value, so it is shortened first.
    T::deserialize(shorten(&text).into_deserializer()).map(Some)
}

/// Permission bits, written in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode(u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_octal = (3..=5).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        let bits = if is_octal { u32::from_str_radix(text, 8).ok() } else { None };
        bits.filter(|bits| *bits <= 0o7777)
            .map(Self)
            .ok_or_else(|| format!("{:?} is not an octal mode such as 0750", shorten(text)))
    }
}

/// A number of inodes; 0: any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InodeLimit(u64);

impl FromStr for InodeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| *number <= u64::from(u32::MAX));
        let number = number.filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        number.map(Self).ok_or_else(|| {
            format!("{:?} is not a number of files and directories such as 100000", shorten(text))
        })
    }
}

/// A user or group id. The largest number is not an id: chown(2) takes it to mean "unchanged".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NumericId(u32);

impl FromStr for NumericId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = if text.starts_with('+') { None } else { text.parse().ok() };
        number
            .filter(|id| *id != u32::MAX)
            .map(Self)
            .ok_or_else(|| format!("{:?} is not a number from 0 to 4294967294", shorten(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_lists_is_an_option() {
        for name in [VOLUME, COPY, MUTABLE].concat() {
            let text = from_pairs(&[(name, "\u{1}")]).unwrap_err().to_string();
            assert!(!text.contains("unknown field"), "{text}");
        }
    }
}
