//! The parameters of a StorageClass, a VolumeAttributesClass, a VolumeSnapshotClass and an inline volume: the only list of
//! their keys.
//!
//! An unknown key is refused by name. Keys that Kubernetes adds, `csi.storage.k8s.io/…`, become labels of the record.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use super::fields::{self, invalid};
use crate::engine::request::{ConsistencySpec, CreateVolume, OwnerSpec};
use crate::error::{Context as _, Error, Kind, Result};
use crate::quantity::{Bytes, HumanDuration};
use crate::volume::{
    Consistency, Labels, Limit, OnDelete, Policy, PolicyChange, PoolName, SizeRange, shorten,
};

/// Prefix of the keys that Kubernetes adds, such as the name and namespace of a claim or pod.
const KUBERNETES: &str = "csi.storage.k8s.io/";
/// Key in the context of a publish that marks an inline volume, which is created and deleted with its pod.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// Key that csi-provisioner adds to the context of every volume.
const PROVISIONER: &str = "storage.kubernetes.io/csiProvisionerIdentity";
/// Default of `trashFor`.
const DEFAULT_TRASH_FOR: Duration = Duration::from_secs(7 * 86_400);
/// The largest `maxPause`: containers are never paused longer, whatever a class says.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// `StorageClass.parameters`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Parameters {
    /// Pool of the volume. Default: the one named "default", or the first of the settings.
    #[serde(deserialize_with = "from_text")]
    pool: Option<PoolName>,
    /// What happens to the data of a deleted volume: `delete` (the default), `trash` or `retain`. Mutable.
    #[serde(deserialize_with = "variant")]
    on_delete: Option<OnDelete>,
    /// Retention of trash: `30m`, `12h`, `7d`, `1d12h`. Default: 7d. Only with `onDelete: trash`. Mutable.
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
    /// cannot), `none`. Mutable.
    #[serde(deserialize_with = "variant")]
    limit: Option<Limit>,
    /// What a clone of a volume in use shows, as in [`SnapshotParameters`].
    #[serde(deserialize_with = "variant")]
    consistency: Option<Consistency>,
    /// The longest pause for a clone, as in [`SnapshotParameters`].
    #[serde(deserialize_with = "from_text")]
    max_pause: Option<HumanDuration>,
}

/// `VolumeSnapshotClass.parameters`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SnapshotParameters {
    /// What the copy of a volume in use shows: `crash` (the default: one instant) or `none` (each file at another moment).
    #[serde(deserialize_with = "variant")]
    consistency: Option<Consistency>,
    /// The longest pause of the containers that use the volume, such as `5s`. Default: 2s. Not with `consistency: none`.
    #[serde(deserialize_with = "from_text")]
    max_pause: Option<HumanDuration>,
}

/// `VolumeAttributesClass.parameters`: the part of [`Parameters`] that can be changed later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Mutable {
    #[serde(deserialize_with = "variant")]
    on_delete: Option<OnDelete>,
    #[serde(deserialize_with = "from_text")]
    trash_for: Option<HumanDuration>,
    #[serde(deserialize_with = "variant")]
    limit: Option<Limit>,
}

/// The parameters and labels of a new volume, for the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeOptions {
    pub(super) pool: Option<PoolName>,
    pub(super) owner: OwnerSpec,
    pub(super) policy: Policy,
    pub(super) consistency: ConsistencySpec,
    pub(super) labels: Labels,
}

/// Parses `parameters`, and the `mutable_parameters` that override them.
pub(super) fn volume_options(
    parameters: HashMap<String, String>,
    mutable_parameters: HashMap<String, String>,
) -> Result<VolumeOptions> {
    let (labels, parameters) = split_labels("parameters", parameters)?;
    let overrides = mutable(mutable_parameters)?;
    let parameters: Parameters = deserialize("parameters", &parameters)?;
    let on_delete = overrides.on_delete.or(parameters.on_delete).unwrap_or_default();
    let trash_for = overrides.trash_for.or(parameters.trash_for);
    check_trash_for(trash_for, on_delete)?;
    let policy = Policy {
        on_delete,
        trash_for: trash_for.map_or(DEFAULT_TRASH_FOR, |duration| duration.0),
        limit: overrides.limit.or(parameters.limit).unwrap_or_default(),
    };
    let owner = OwnerSpec {
        uid: parameters.uid.map(|uid| uid.0),
        gid: parameters.gid.map(|gid| gid.0),
        mode: parameters.mode.map(|mode| mode.0),
    };
    let consistency = consistency(parameters.consistency, parameters.max_pause)?;
    Ok(VolumeOptions { pool: parameters.pool, owner, policy, consistency, labels })
}

/// Names the parameter in the engine's refusal of a pool: its only `Invalid` error for a request that was parsed here.
pub(super) fn add_pool_context(error: Error) -> Error {
    let is_pool = error.kind() == Kind::Invalid;
    if is_pool { Error::caused(Kind::Invalid, "parameter pool", error) } else { error }
}

/// Parses the `mutable_parameters` of ControllerModifyVolume. Absent keys change nothing.
pub(super) fn policy_change(mutable_parameters: HashMap<String, String>) -> Result<PolicyChange> {
    let Mutable { on_delete, trash_for, limit } = mutable(mutable_parameters)?;
    if let Some(on_delete) = on_delete {
        check_trash_for(trash_for, on_delete)?;
    }
    Ok(PolicyChange { on_delete, trash_for: trash_for.map(|duration| duration.0), limit })
}

/// Parses the parameters of CreateSnapshot.
pub(super) fn snapshot_options(parameters: HashMap<String, String>) -> Result<(ConsistencySpec, Labels)> {
    let (labels, parameters) = split_labels("parameters", parameters)?;
    let parameters: SnapshotParameters = deserialize("parameters", &parameters)?;
    Ok((consistency(parameters.consistency, parameters.max_pause)?, labels))
}

fn consistency(
    consistency: Option<Consistency>,
    max_pause: Option<HumanDuration>,
) -> Result<ConsistencySpec> {
    let default = ConsistencySpec::default();
    let consistency = consistency.unwrap_or(default.consistency);
    match max_pause {
        Some(_) if consistency == Consistency::None => {
            Err(invalid("parameter maxPause", "needs consistency: crash"))
        }
        Some(HumanDuration(Duration::ZERO)) => {
            Err(invalid("parameter maxPause", "must not be zero; use consistency: none"))
        }
        Some(HumanDuration(pause)) if pause > LONGEST_PAUSE => {
            Err(invalid("parameter maxPause", "must be at most 5m"))
        }
        max_pause => {
            let max_pause = max_pause.map_or(default.max_pause, |duration| duration.0);
            Ok(ConsistencySpec { consistency, max_pause })
        }
    }
}

/// Parses the `volume_context` of a publish. Returns how to create an inline volume; `None` if the volume is persistent.
///
/// The context of a persistent volume may contain any key: the orchestrator and earlier versions of orlop add some.
pub(super) fn inline_volume(
    id: &str,
    mut context: HashMap<String, String>,
) -> Result<Option<Box<CreateVolume>>> {
    if context.remove(EPHEMERAL).as_deref() != Some("true") {
        return Ok(None);
    }
    context.remove(PROVISIONER);
    let size = match context.remove("size") {
        None => Bytes::default(),
        Some(text) => text.parse::<Bytes>().context(|| "volume attribute \"size\"")?,
    };
    let name = fields::name(id.to_owned())?;
    let options = volume_options(context, HashMap::new())?;
    Ok(Some(Box::new(CreateVolume {
        name,
        pool: options.pool,
        size: SizeRange { required: size.0, limit: 0 },
        owner: options.owner,
        policy: options.policy,
        labels: options.labels,
        source: None,
        consistency: options.consistency,
        may_go_elsewhere: false,
    })))
}

fn mutable(parameters: HashMap<String, String>) -> Result<Mutable> {
    let (_, parameters) = split_labels("mutable_parameters", parameters)?;
    deserialize("mutable_parameters", &parameters)
}

fn check_trash_for(trash_for: Option<HumanDuration>, on_delete: OnDelete) -> Result<()> {
    match trash_for {
        Some(_) if on_delete != OnDelete::Trash => {
            Err(invalid("parameter trashFor", "needs onDelete: trash"))
        }
        Some(HumanDuration(Duration::ZERO)) => {
            Err(invalid("parameter trashFor", "must not be zero; use onDelete: delete"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Separates the keys of Kubernetes, which become labels, from the parameters.
fn split_labels(field: &str, map: HashMap<String, String>) -> Result<(Labels, HashMap<String, String>)> {
    fields::check_map(field, &map)?;
    let (labels, parameters): (HashMap<_, _>, _) =
        map.into_iter().partition(|(key, _)| key.starts_with(KUBERNETES));
    Ok((labels.into_iter().collect(), parameters))
}

/// Deserializes a map. Each key is deserialized alone first, so that an error names its key.
fn deserialize<T: DeserializeOwned>(field: &str, map: &HashMap<String, String>) -> Result<T> {
    let mut pairs: Vec<_> = map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    pairs.sort_unstable();
    for pair in &pairs {
        from_pairs::<T>(&[*pair]).map_err(|error| {
            Error::new(Kind::Invalid, format!("{field}: key {:?}: {error}", shorten(pair.0)))
        })?;
    }
    from_pairs(&pairs).map_err(|error| Error::new(Kind::Invalid, format!("{field}: {error}")))
}

fn from_pairs<T: DeserializeOwned>(pairs: &[(&str, &str)]) -> Result<T, serde::de::value::Error> {
    T::deserialize(MapDeserializer::new(pairs.iter().copied()))
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

    type Pairs<'p> = &'p [(&'p str, &'p str)];

    fn map(pairs: Pairs<'_>) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn parse(parameters: Pairs<'_>, mutable: Pairs<'_>) -> Result<VolumeOptions> {
        volume_options(map(parameters), map(mutable))
    }

    #[test]
    fn every_parameter_is_parsed() {
        let options = parse(
            &[
                ("pool", "ssd"),
                ("onDelete", "trash"),
                ("trashFor", "1d12h"),
                ("mode", "0750"),
                ("uid", "1000"),
                ("gid", "0"),
                ("limit", "none"),
                ("maxPause", "5s"),
                ("csi.storage.k8s.io/pvc/name", "data"),
                ("csi.storage.k8s.io/anything", "else"),
            ],
            &[],
        )
        .unwrap();
        assert_eq!(options.pool, Some("ssd".parse().unwrap()));
        assert_eq!(options.owner, OwnerSpec { uid: Some(1000), gid: Some(0), mode: Some(0o750) });
        let trash_for = Duration::from_secs(129_600);
        assert_eq!(options.policy, Policy { on_delete: OnDelete::Trash, trash_for, limit: Limit::None });
        let five = Duration::from_secs(5);
        assert_eq!(options.consistency, ConsistencySpec { max_pause: five, ..ConsistencySpec::default() });
        assert_eq!(options.labels.len(), 2);
        assert_eq!(options.labels["csi.storage.k8s.io/pvc/name"], "data");
    }

    #[test]
    fn mutable_parameters_override_parameters() {
        let options =
            parse(&[("onDelete", "trash"), ("limit", "hard")], &[("trashFor", "2h"), ("limit", "auto")]);
        let policy = options.unwrap().policy;
        assert_eq!((policy.on_delete, policy.limit), (OnDelete::Trash, Limit::Auto));
        assert_eq!(policy.trash_for, Duration::from_secs(7_200));
        assert_eq!(parse(&[], &[]).unwrap().policy.trash_for, DEFAULT_TRASH_FOR);
    }

    #[test]
    fn an_invalid_parameter_is_refused_by_name() {
        let cases: [(Pairs<'_>, Pairs<'_>, &str); 20] = [
            (&[("XXX_FakeKey", "1")], &[], "unknown field `XXX_FakeKey`, expected one of `pool`, `onDelete`"),
            (
                &[],
                &[("XXX_FakeKey", "1")],
                "unknown field `XXX_FakeKey`, expected one of `onDelete`, `trashFor`",
            ),
            (&[("ondelete", "trash")], &[], "ondelete"),
            (&[], &[("pool", "a")], "mutable_parameters: key \"pool\""),
            (&[], &[("mode", "0750")], "mutable_parameters: key \"mode\""),
            (&[("pool", "A/b")], &[], "parameters: key \"pool\""),
            (
                &[("onDelete", "keep")],
                &[],
                "parameters: key \"onDelete\": unknown variant `keep`, expected one of",
            ),
            (&[("onDelete", "trash"), ("trashFor", "7")], &[], "key \"trashFor\""),
            (&[("trashFor", "7d")], &[], "trashFor needs onDelete: trash"),
            (
                &[("trashFor", "7d"), ("onDelete", "trash")],
                &[("onDelete", "delete")],
                "trashFor needs onDelete",
            ),
            (&[("trashFor", "0s"), ("onDelete", "trash")], &[], "trashFor must not be zero"),
            (&[("mode", "rwx")], &[], "key \"mode\""),
            (&[("mode", "10000")], &[], "key \"mode\""),
            (&[("mode", "+77")], &[], "key \"mode\""),
            (&[("uid", "-1")], &[], "key \"uid\""),
            (&[("gid", "4294967295")], &[], "key \"gid\""),
            (&[("limit", "")], &[], "key \"limit\""),
            (&[("consistency", "app")], &[], "unknown variant `app`, expected `crash` or `none`"),
            (&[("maxPause", "2s"), ("consistency", "none")], &[], "maxPause needs consistency: crash"),
            (&[], &[("consistency", "none")], "mutable_parameters: key \"consistency\""),
        ];
        for (parameters, mutable, expected) in cases {
            let error = parse(parameters, mutable).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.chain().contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_modification_changes_only_the_given_parameters() {
        assert_eq!(policy_change(map(&[])).unwrap(), PolicyChange::default());
        assert_eq!(
            policy_change(map(&[("csi.storage.k8s.io/pv/name", "x")])).unwrap(),
            PolicyChange::default()
        );
        let day = Some(Duration::from_secs(86_400));
        assert_eq!(
            policy_change(map(&[("trashFor", "1d")])).unwrap(),
            PolicyChange { trash_for: day, ..PolicyChange::default() }
        );
        assert!(policy_change(map(&[("trashFor", "1d"), ("onDelete", "retain")])).is_err());
        assert!(policy_change(map(&[("pool", "p")])).is_err());
    }

    #[test]
    fn the_parameters_of_snapshots_are_parsed_strictly() {
        let label = ("csi.storage.k8s.io/volumesnapshot/name", "s");
        let (spec, labels) = snapshot_options(map(&[label])).unwrap();
        assert_eq!((spec, labels.len()), (ConsistencySpec::default(), 1));
        assert_eq!((spec.consistency, spec.max_pause), (Consistency::Crash, Duration::from_secs(2)));
        let (spec, _) = snapshot_options(map(&[("consistency", "none"), label])).unwrap();
        assert_eq!(spec.consistency, Consistency::None);
        let (spec, _) = snapshot_options(map(&[("consistency", "crash"), ("maxPause", "1m")])).unwrap();
        assert_eq!(spec.max_pause, Duration::from_secs(60));
        for (bad, expected) in [
            (("pool", "p"), "unknown field `pool`, expected `consistency` or `maxPause`"),
            (("consistency", "Crash"), "key \"consistency\""),
            (("maxPause", "2"), "key \"maxPause\""),
            (("maxPause", "0s"), "maxPause must not be zero; use consistency: none"),
            (("maxPause", "301s"), "maxPause must be at most 5m"),
        ] {
            let error = snapshot_options(map(&[bad])).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.chain().contains(expected), "{error}");
        }
    }

    #[test]
    fn the_context_of_an_inline_volume_is_parsed_strictly() {
        assert!(inline_volume("id", map(&[("size", "1Gi"), ("junk", "1")])).unwrap().is_none());
        assert!(inline_volume("id", map(&[(EPHEMERAL, "false"), ("junk", "1")])).unwrap().is_none());
        let attributes =
            [(EPHEMERAL, "true"), (PROVISIONER, "x"), ("size", "100Mi"), ("mode", "0700"), ("pool", "ssd")];
        let pod = [("csi.storage.k8s.io/pod.name", "web-0")];
        let volume = inline_volume("csi-0", map(&[&attributes[..], &pod[..]].concat())).unwrap().unwrap();
        assert_eq!((volume.name.as_str(), volume.size.required), ("csi-0", 100 << 20));
        assert_eq!(volume.labels["csi.storage.k8s.io/pod.name"], "web-0");
        for (bad, expected) in [(("junk", "1"), "`junk`"), (("size", "much"), "\"size\"")] {
            let error = inline_volume("csi-0", map(&[(EPHEMERAL, "true"), bad])).unwrap_err();
            assert!(error.chain().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_large_map_is_refused() {
        let big = "x".repeat(4096);
        assert!(
            parse(&[("csi.storage.k8s.io/x", &big)], &[]).unwrap_err().chain().starts_with("parameters ")
        );
        assert!(parse(&[], &[("onDelete", &big)]).unwrap_err().chain().starts_with("mutable_parameters "));
    }
}
