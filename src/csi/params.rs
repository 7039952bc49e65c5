//! The parameters of a StorageClass, a VolumeAttributesClass, a VolumeSnapshotClass and an inline volume.
//!
//! [`crate::options`] parses them. Keys that Kubernetes adds, `csi.storage.k8s.io/…`, become labels of the record.

use std::collections::HashMap;

use super::fields;
use crate::engine::request::{ConsistencySpec, CreateVolume};
use crate::error::{Context as _, Error, Kind, Result};
use crate::options::{self, VolumeOptions};
use crate::quantity::Bytes;
use crate::volume::{Consistency, Labels, PolicyChange, SizeRange};

/// Prefix of the keys that Kubernetes adds, such as the name and namespace of a claim or pod.
const KUBERNETES: &str = "csi.storage.k8s.io/";
/// Key in the context of a publish that marks an inline volume, which is created and deleted with its pod.
pub(super) const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// Key that csi-provisioner adds to the context of every volume.
const PROVISIONER: &str = "storage.kubernetes.io/csiProvisionerIdentity";

/// Parses `parameters`, and the `mutable_parameters` that override them.
pub(super) fn volume_options(
    parameters: HashMap<String, String>,
    mutable_parameters: HashMap<String, String>,
) -> Result<VolumeOptions> {
    let (labels, parameters) = split_labels("parameters", parameters)?;
    let (_, mutable_parameters) = split_labels("mutable_parameters", mutable_parameters)?;
    options::volume_options(&parameters, &mutable_parameters, labels)
}

/// Names the parameter in the engine's refusal of a pool: its only `Invalid` error for a request that was parsed here.
pub(super) fn add_pool_context(error: Error) -> Error {
    let is_pool = error.kind() == Kind::Invalid;
    if is_pool { Error::caused(Kind::Invalid, "parameter pool", error) } else { error }
}

/// Parses the `mutable_parameters` of ControllerModifyVolume. Absent keys change nothing.
pub(super) fn policy_change(mutable_parameters: HashMap<String, String>) -> Result<PolicyChange> {
    let (_, mutable_parameters) = split_labels("mutable_parameters", mutable_parameters)?;
    options::policy_change(&mutable_parameters)
}

/// Parses the parameters of CreateSnapshot.
pub(super) fn snapshot_options(parameters: HashMap<String, String>) -> Result<(ConsistencySpec, Labels)> {
    let (labels, parameters) = split_labels("parameters", parameters)?;
    Ok((options::snapshot_options(&parameters)?, labels))
}

/// Parses the parameters of CreateVolumeGroupSnapshot: those of CreateSnapshot. The snapshots of a group show one instant.
pub(super) fn group_options(parameters: HashMap<String, String>) -> Result<(ConsistencySpec, Labels)> {
    let (spec, labels) = snapshot_options(parameters)?;
    match spec.consistency {
        Consistency::Crash => Ok((spec, labels)),
        Consistency::None => {
            let reason = "key \"consistency\": the snapshots of a group show one instant: use crash, or single snapshots";
            Err(fields::invalid("parameters:", reason))
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

/// Separates the keys of Kubernetes, which become labels, from the parameters.
fn split_labels(field: &str, map: HashMap<String, String>) -> Result<(Labels, HashMap<String, String>)> {
    fields::check_map(field, &map)?;
    let (labels, parameters): (HashMap<_, _>, _) =
        map.into_iter().partition(|(key, _)| key.starts_with(KUBERNETES));
    Ok((labels.into_iter().collect(), parameters))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::request::OwnerSpec;
    use crate::options::DEFAULT_TRASH_FOR;
    use crate::volume::{Limit, OnDelete, Policy, SnapshotCost};

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
                ("snapshotCost", "any"),
                ("csi.storage.k8s.io/pvc/name", "data"),
                ("csi.storage.k8s.io/anything", "else"),
            ],
            &[],
        )
        .unwrap();
        assert_eq!(options.pool, Some("ssd".parse().unwrap()));
        assert_eq!(options.owner, OwnerSpec { uid: Some(1000), gid: Some(0), mode: Some(0o750) });
        let trash_for = Duration::from_secs(129_600);
        assert_eq!(
            options.policy,
            Policy { on_delete: OnDelete::Trash, trash_for, limit: Limit::None, inodes: 0 }
        );
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
        let (spec, _) = snapshot_options(map(&[("snapshotCost", "cheap")])).unwrap();
        assert_eq!(spec.cost, SnapshotCost::Cheap);
        for (bad, expected) in [
            (
                ("pool", "p"),
                "unknown field `pool`, expected one of `consistency`, `maxPause`, `snapshotCost`",
            ),
            (("consistency", "Crash"), "key \"consistency\""),
            (("maxPause", "2"), "key \"maxPause\""),
            (("maxPause", "0s"), "maxPause must not be zero; use consistency: none"),
            (("maxPause", "301s"), "maxPause must be at most 5m"),
            (
                ("snapshotCost", "free"),
                "key \"snapshotCost\": unknown variant `free`, expected `any` or `cheap`",
            ),
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
