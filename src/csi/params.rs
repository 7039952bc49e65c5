//! The parameters of a StorageClass, a VolumeAttributesClass and an inline volume: the one list of their keys.
//!
//! A key that is not listed here is refused by name. Keys of Kubernetes itself, `csi.storage.k8s.io/…`, become
//! labels of the record.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use super::fields::{self, refuse};
use crate::engine::request::{CreateVolume, OwnerSpec};
use crate::error::{Error, Kind, Result};
use crate::quantity::{Bytes, HumanDuration};
use crate::volume::{Labels, Limit, OnDelete, Policy, PolicyChange, PoolName, SizeRange, shorten};

/// Keys of Kubernetes: a claim's name and namespace, a pod's, and so on.
const KUBERNETES: &str = "csi.storage.k8s.io/";
/// In a publish context: the volume lives and dies with its pod.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// What the provisioner adds to the context of every volume.
const PROVISIONER: &str = "storage.kubernetes.io/csiProvisionerIdentity";
/// How long trash is kept when nobody says.
const TRASH_FOR: Duration = Duration::from_secs(7 * 86_400);

/// `StorageClass.parameters`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Parameters {
    /// The pool to make the volume in. Default: the one named "default", or the first of the settings.
    #[serde(deserialize_with = "parsed")]
    pool: Option<PoolName>,
    /// What becomes of the data when the volume is deleted: `delete` (the default), `trash` or `retain`. Mutable.
    #[serde(deserialize_with = "word")]
    on_delete: Option<OnDelete>,
    /// How long trash is kept: `30m`, `12h`, `7d`, `1d12h`. Default: 7d. Only with `onDelete: trash`. Mutable.
    #[serde(deserialize_with = "parsed")]
    trash_for: Option<HumanDuration>,
    /// Permission bits of the root directory in octal. Default: 0777, or the source's.
    #[serde(deserialize_with = "parsed")]
    mode: Option<Mode>,
    /// Owner of the root directory. Default: 0, or the source's.
    #[serde(deserialize_with = "parsed")]
    uid: Option<NumericId>,
    /// Group of the root directory. Default: 0, or the source's.
    #[serde(deserialize_with = "parsed")]
    gid: Option<NumericId>,
    /// Whether the size is enforced: `auto` (the default: where the pool can), `hard` (or the volume is not made),
    /// `none`. Mutable.
    #[serde(deserialize_with = "word")]
    limit: Option<Limit>,
}

/// `VolumeAttributesClass.parameters`: the part of [`Parameters`] that may change later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Mutable {
    #[serde(deserialize_with = "word")]
    on_delete: Option<OnDelete>,
    #[serde(deserialize_with = "parsed")]
    trash_for: Option<HumanDuration>,
    #[serde(deserialize_with = "word")]
    limit: Option<Limit>,
}

/// Parameters and labels together, ready for the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeOptions {
    pub(super) pool: Option<PoolName>,
    pub(super) owner: OwnerSpec,
    pub(super) policy: Policy,
    pub(super) labels: Labels,
}

/// Reads `parameters` and the `mutable_parameters` that override them.
pub(super) fn options(
    parameters: HashMap<String, String>,
    mutable: HashMap<String, String>,
) -> Result<VolumeOptions> {
    let (labels, own) = split("parameters", parameters)?;
    let over = mutable_part(mutable)?;
    let request: Parameters = read("parameters", &own)?;
    let change = Mutable {
        on_delete: over.on_delete.or(request.on_delete),
        trash_for: over.trash_for.or(request.trash_for),
        limit: over.limit.or(request.limit),
    };
    check_trash(change.trash_for, change.on_delete.unwrap_or_default())?;
    let policy = Policy {
        on_delete: change.on_delete.unwrap_or_default(),
        trash_for: change.trash_for.map_or(TRASH_FOR, |span| span.0),
        limit: change.limit.unwrap_or_default(),
    };
    let owner = OwnerSpec {
        uid: request.uid.map(|id| id.0),
        gid: request.gid.map(|id| id.0),
        mode: request.mode.map(|mode| mode.0),
    };
    Ok(VolumeOptions { pool: request.pool, owner, policy, labels })
}

/// Reads the `mutable_parameters` of ControllerModifyVolume; absent keys change nothing.
pub(super) fn change(mutable: HashMap<String, String>) -> Result<PolicyChange> {
    let request = mutable_part(mutable)?;
    if let Some(on_delete) = request.on_delete {
        check_trash(request.trash_for, on_delete)?;
    }
    Ok(PolicyChange {
        on_delete: request.on_delete,
        trash_for: request.trash_for.map(|span| span.0),
        limit: request.limit,
    })
}

/// Reads parameters of which only Kubernetes' own keys are allowed, as those of CreateSnapshot.
pub(super) fn labels_only(parameters: HashMap<String, String>) -> Result<Labels> {
    let (labels, own) = split("parameters", parameters)?;
    match own.keys().min() {
        None => Ok(labels),
        Some(key) => Err(refuse(
            "parameters",
            &format!("has unknown key {:?}: snapshots take no parameters", shorten(key)),
        )),
    }
}

/// Reads the `volume_context` of a publish: how to make the volume when it is an inline one.
///
/// The context of a persistent volume is ours of long ago and the orchestrator's: any key is tolerated.
pub(super) fn inline(id: &str, mut context: HashMap<String, String>) -> Result<Option<Box<CreateVolume>>> {
    if context.remove(EPHEMERAL).as_deref() != Some("true") {
        return Ok(None);
    }
    context.remove(PROVISIONER);
    let size = match context.remove("size") {
        None => Bytes::default(),
        Some(text) => text.parse().map_err(|error| attribute("size", &error))?,
    };
    let name = fields::name(id.to_owned())?;
    let options = options(context, HashMap::new())?;
    Ok(Some(Box::new(CreateVolume {
        name,
        pool: options.pool,
        size: SizeRange { required: size.0, limit: 0 },
        owner: options.owner,
        policy: options.policy,
        labels: options.labels,
        source: None,
        may_go_elsewhere: false,
    })))
}

fn mutable_part(mutable: HashMap<String, String>) -> Result<Mutable> {
    let (_, own) = split("mutable_parameters", mutable)?;
    read("mutable_parameters", &own)
}

fn check_trash(trash_for: Option<HumanDuration>, on_delete: OnDelete) -> Result<()> {
    match trash_for {
        Some(_) if on_delete != OnDelete::Trash => Err(refuse("parameter trashFor", "needs onDelete: trash")),
        Some(HumanDuration(Duration::ZERO)) => {
            Err(refuse("parameter trashFor", "is zero: say onDelete: delete instead"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Kubernetes' keys as labels, and the rest.
fn split(field: &str, map: HashMap<String, String>) -> Result<(Labels, HashMap<String, String>)> {
    fields::map(field, &map)?;
    let (labels, own): (HashMap<_, _>, _) = map.into_iter().partition(|(key, _)| key.starts_with(KUBERNETES));
    Ok((labels.into_iter().collect(), own))
}

/// Reads a map of texts into a struct. Each key is read alone first, so that an error names the one it is about.
fn read<T: DeserializeOwned>(field: &str, map: &HashMap<String, String>) -> Result<T> {
    let mut pairs: Vec<_> = map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    pairs.sort_unstable();
    for pair in &pairs {
        one::<T>(&[*pair]).map_err(|error| {
            Error::new(Kind::Invalid, format!("{field}: key {:?}: {error}", shorten(pair.0)))
        })?;
    }
    one(&pairs).map_err(|error| Error::new(Kind::Invalid, format!("{field}: {error}")))
}

fn one<T: DeserializeOwned>(pairs: &[(&str, &str)]) -> Result<T, serde::de::value::Error> {
    T::deserialize(MapDeserializer::new(pairs.iter().copied()))
}

fn attribute(key: &str, error: &Error) -> Error {
    Error::new(Kind::Invalid, format!("volume attribute {key:?}: {}", error.chain()))
}

fn parsed<'d, D: Deserializer<'d>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<Option<T>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(D::Error::custom)
}

fn word<'d, D: Deserializer<'d>, T: Deserialize<'d>>(from: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(from)?;
    // serde's text repeats the whole value: a bounded part of it is enough.
    T::deserialize(shorten(&text).into_deserializer()).map(Some)
}

/// Permission bits, written in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode(u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let octal = (3..=5).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        let bits = if octal { u32::from_str_radix(text, 8).ok() } else { None };
        bits.filter(|bits| *bits <= 0o7777)
            .map(Self)
            .ok_or_else(|| format!("{:?} is not an octal mode such as 0750", shorten(text)))
    }
}

/// A user's or group's number; the largest stands for "no change" in the kernel and is nobody's.
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

    fn of(pairs: &[(&str, &str)], mutable: &[(&str, &str)]) -> Result<VolumeOptions> {
        options(map(pairs), map(mutable))
    }

    #[test]
    fn every_key_is_read() {
        let options = of(
            &[
                ("pool", "ssd"),
                ("onDelete", "trash"),
                ("trashFor", "1d12h"),
                ("mode", "0750"),
                ("uid", "1000"),
                ("gid", "0"),
                ("limit", "none"),
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
        assert_eq!(options.labels.len(), 2);
        assert_eq!(options.labels["csi.storage.k8s.io/pvc/name"], "data");
    }

    #[test]
    fn mutable_parameters_override() {
        let options =
            of(&[("onDelete", "trash"), ("limit", "hard")], &[("trashFor", "2h"), ("limit", "auto")]);
        let policy = options.unwrap().policy;
        assert_eq!((policy.on_delete, policy.limit), (OnDelete::Trash, Limit::Auto));
        assert_eq!(policy.trash_for, Duration::from_secs(7_200));
        assert_eq!(of(&[], &[]).unwrap().policy.trash_for, TRASH_FOR);
    }

    #[test]
    fn a_refusal_names_the_key() {
        let cases: [(Pairs<'_>, Pairs<'_>, &str); 17] = [
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
            (&[("trashFor", "0s"), ("onDelete", "trash")], &[], "trashFor is zero"),
            (&[("mode", "rwx")], &[], "key \"mode\""),
            (&[("mode", "10000")], &[], "key \"mode\""),
            (&[("mode", "+77")], &[], "key \"mode\""),
            (&[("uid", "-1")], &[], "key \"uid\""),
            (&[("gid", "4294967295")], &[], "key \"gid\""),
            (&[("limit", "")], &[], "key \"limit\""),
        ];
        for (parameters, mutable, expected) in cases {
            let error = of(parameters, mutable).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.chain().contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_modification_leaves_what_it_does_not_name() {
        assert_eq!(change(map(&[])).unwrap(), PolicyChange::default());
        assert_eq!(change(map(&[("csi.storage.k8s.io/pv/name", "x")])).unwrap(), PolicyChange::default());
        let day = Some(Duration::from_secs(86_400));
        assert_eq!(
            change(map(&[("trashFor", "1d")])).unwrap(),
            PolicyChange { trash_for: day, ..PolicyChange::default() }
        );
        assert!(change(map(&[("trashFor", "1d"), ("onDelete", "retain")])).is_err());
        assert!(change(map(&[("pool", "p")])).is_err());
    }

    #[test]
    fn snapshots_take_labels_only() {
        let labels = labels_only(map(&[("csi.storage.k8s.io/volumesnapshot/name", "s")])).unwrap();
        assert_eq!(labels.len(), 1);
        let error = labels_only(map(&[("pool", "p")])).unwrap_err();
        assert!(error.chain().contains("\"pool\""), "{error}");
    }

    #[test]
    fn an_inline_volume_is_told_by_kubernetes() {
        assert!(inline("id", map(&[("size", "1Gi"), ("junk", "1")])).unwrap().is_none());
        assert!(inline("id", map(&[(EPHEMERAL, "false"), ("junk", "1")])).unwrap().is_none());
        let attributes =
            [(EPHEMERAL, "true"), (PROVISIONER, "x"), ("size", "100Mi"), ("mode", "0700"), ("pool", "ssd")];
        let pod = [("csi.storage.k8s.io/pod.name", "web-0")];
        let request = inline("csi-0", map(&[&attributes[..], &pod[..]].concat())).unwrap().unwrap();
        assert_eq!((request.name.as_str(), request.size.required), ("csi-0", 100 << 20));
        assert_eq!(request.labels["csi.storage.k8s.io/pod.name"], "web-0");
        for (bad, expected) in [(("junk", "1"), "`junk`"), (("size", "much"), "\"size\"")] {
            let error = inline("csi-0", map(&[(EPHEMERAL, "true"), bad])).unwrap_err();
            assert!(error.chain().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_map_is_bounded() {
        let big = "x".repeat(4096);
        assert!(of(&[("csi.storage.k8s.io/x", &big)], &[]).unwrap_err().chain().starts_with("parameters "));
        assert!(of(&[], &[("onDelete", &big)]).unwrap_err().chain().starts_with("mutable_parameters "));
    }
}
