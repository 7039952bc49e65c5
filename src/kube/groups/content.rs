//! A VolumeGroupSnapshotContent, and what a node has to do about it.

use ::kube::ResourceExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::volume::{Snapshot, Timestamp, VolumeId};

/// Finalizer of a content, which the snapshot-controller adds, and which is removed when the group snapshot is deleted.
pub(super) const FINALIZER: &str =
    "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection";
/// Annotation of a content whose VolumeGroupSnapshot is being deleted, which the snapshot-controller adds.
const BEING_DELETED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted";
/// Label of a content whose member contents have the label of their node.
pub(super) const MEMBERS_LABELLED: &str = "orlop.dev/members-labelled";
/// Prefix of the names of group snapshots, as csi-snapshotter has it.
const PREFIX: &str = "groupsnapshot";

/// A VolumeGroupSnapshotContent in the API, with the fields that are needed.
pub(super) type Object = ::kube::core::Object<Spec, Status>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    driver: String,
    deletion_policy: String,
    source: Source,
    volume_group_snapshot_class_name: String,
    volume_group_snapshot_ref: Reference,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    volume_handles: Vec<String>,
    group_snapshot_handles: Option<Handles>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Handles {
    volume_group_snapshot_handle: String,
    volume_snapshot_handles: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Reference {
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    ready_to_use: bool,
    volume_group_snapshot_handle: Option<String>,
    volume_snapshot_info_list: Vec<Member>,
    error: Option<Failure>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Member {
    volume_handle: String,
    snapshot_handle: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Failure {
    message: String,
}

/// What a node has to do about a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'c> {
    /// Nothing, until it changes.
    Nothing,
    /// Claim it, if this volume is on the node.
    ClaimByVolume(&'c str),
    /// Claim it, if this group snapshot is on the node.
    ClaimByGroup {
        /// Its id.
        id: &'c str,
        /// The ids of its snapshots.
        snapshots: &'c [String],
    },
    /// Make the group snapshot.
    Create {
        /// Its name.
        name: String,
        /// The volumes.
        volumes: &'c [String],
    },
    /// Report the group snapshot, which exists.
    Find {
        /// Its id.
        id: &'c str,
        /// The ids of its snapshots.
        snapshots: &'c [String],
    },
    /// Label the contents of its members.
    LabelMembers,
    /// Delete the group snapshot, and complete the deletion of the content.
    Delete {
        /// Its id.
        id: String,
        /// The ids of its snapshots, or nothing.
        snapshots: Vec<String>,
    },
    /// Complete the deletion of the content.
    Release,
}

/// A VolumeGroupSnapshotContent.
#[derive(Debug, Clone)]
pub struct GroupContent(Object);

impl GroupContent {
    pub(super) fn new(mut object: Object) -> Self {
        // Most of an object, and of no use here.
        object.metadata.managed_fields = None;
        Self(object)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.metadata.name.as_deref().unwrap_or_default()
    }

    pub(super) fn version(&self) -> &str {
        self.0.metadata.resource_version.as_deref().unwrap_or_default()
    }

    pub(super) fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.0.finalizers().iter().map(String::as_str)
    }

    pub(super) fn class(&self) -> &str {
        &self.0.spec.volume_group_snapshot_class_name
    }

    /// Parameters with the names of the Kubernetes objects, without the prefix of their keys.
    pub(super) fn names(&self) -> [(&'static str, &str); 3] {
        let of = &self.0.spec.volume_group_snapshot_ref;
        [
            ("volumegroupsnapshot/name", &of.name),
            ("volumegroupsnapshot/namespace", &of.namespace),
            ("volumegroupsnapshotcontent/name", self.name()),
        ]
    }

    pub(super) fn group_uid(&self) -> &str {
        &self.0.spec.volume_group_snapshot_ref.uid
    }

    /// Whether its VolumeGroupSnapshot is being deleted.
    pub(super) fn is_group_terminating(&self) -> bool {
        self.0.annotations().contains_key(BEING_DELETED)
    }

    /// Whether it is deleted as soon as it is released.
    fn is_terminating(&self) -> bool {
        self.0.metadata.deletion_timestamp.is_some()
    }

    /// Whether its deletion, or that of its VolumeGroupSnapshot, has begun since it was in an earlier state.
    #[must_use]
    pub fn is_further_in_deletion_than(&self, earlier: &Self) -> bool {
        self.is_terminating() && !earlier.is_terminating()
            || self.is_group_terminating() && !earlier.is_group_terminating()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.0.status.as_ref().is_some_and(|status| status.ready_to_use)
    }

    pub(super) fn error(&self) -> Option<&String> {
        Some(&self.0.status.as_ref()?.error.as_ref()?.message)
    }

    fn has_unlabelled_members(&self) -> bool {
        !self.members().is_empty() && !self.0.labels().contains_key(MEMBERS_LABELLED)
    }

    fn members(&self) -> &[Member] {
        self.0.status.as_ref().map(|status| status.volume_snapshot_info_list.as_slice()).unwrap_or_default()
    }

    /// The volumes of the snapshots that the snapshot-controller makes contents for.
    pub(super) fn member_volumes(&self) -> impl Iterator<Item = &str> {
        self.members().iter().map(|member| member.volume_handle.as_str())
    }

    /// What `node` has to do. A content of volumes is claimed by the node of the first one. It stays with that node, since its
    /// volumes may be deleted before it.
    pub(super) fn step(&self, driver: &str, node: &str) -> Step<'_> {
        let spec = &self.0.spec;
        let owner = self.0.labels().get(&node_label(driver));
        if spec.driver != driver || owner.is_some_and(|owner| owner != node) {
            return Step::Nothing;
        }
        if self.is_terminating() {
            return self.step_of_deletion(owner.is_some());
        }
        let existing = spec.source.group_snapshot_handles.as_ref();
        match (owner, existing, spec.source.volume_handles.as_slice()) {
            (None, Some(Handles { volume_group_snapshot_handle: id, volume_snapshot_handles }), _) => {
                Step::ClaimByGroup { id, snapshots: volume_snapshot_handles }
            }
            (None, None, [first, ..]) if !self.group_uid().is_empty() => Step::ClaimByVolume(first),
            (Some(_), _, _) if self.has_unlabelled_members() => Step::LabelMembers,
            (Some(_), _, _) if self.is_ready() => Step::Nothing,
            (Some(_), Some(Handles { volume_group_snapshot_handle: id, volume_snapshot_handles }), _) => {
                Step::Find { id, snapshots: volume_snapshot_handles }
            }
            (Some(_), None, volumes) if !volumes.is_empty() && !self.is_group_terminating() => {
                Step::Create { name: self.group_name(), volumes }
            }
            (None | Some(_), None, _) => Step::Nothing,
        }
    }

    /// What a content needs that is deleted. While its VolumeGroupSnapshot stays, so does the group snapshot. Any node releases a
    /// content that no node has claimed, as nothing was made for it.
    fn step_of_deletion(&self, is_claimed: bool) -> Step<'_> {
        let Object { spec, status, .. } = &self.0;
        let is_existing = spec.source.group_snapshot_handles.is_some();
        let is_unbound = is_existing && self.group_uid().is_empty();
        if !(self.is_group_terminating() || is_unbound) || !self.finalizers().any(|name| name == FINALIZER) {
            return Step::Nothing;
        }
        if is_claimed && self.has_unlabelled_members() {
            return Step::LabelMembers;
        }
        let reported = status.as_ref().and_then(|status| status.volume_group_snapshot_handle.clone());
        // One that was not reported is deleted whatever the policy says: no object names it.
        let id = match reported {
            Some(id) if spec.deletion_policy == "Delete" => Some(id),
            Some(_) => None,
            None if is_existing => None,
            None => self.expected_id(),
        };
        match id.filter(|_| is_claimed) {
            Some(id) => {
                let snapshots = self.members().iter().map(|member| member.snapshot_handle.clone());
                Step::Delete { id, snapshots: snapshots.collect() }
            }
            None => Step::Release,
        }
    }

    fn group_name(&self) -> String {
        format!("{PREFIX}-{}", self.group_uid())
    }

    /// The id of the group snapshot that [`Step::Create`] makes.
    fn expected_id(&self) -> Option<String> {
        let first: VolumeId = self.0.spec.source.volume_handles.first()?.parse().ok()?;
        Some(format!("{}/{}", first.pool, self.group_name()))
    }
}

/// The label with the node that has claimed a content.
pub(super) fn node_label(driver: &str) -> String {
    format!("{driver}/node")
}

/// The name that the snapshot-controller gives the content of the snapshot of a volume.
pub(super) fn member_content(group_uid: &str, volume: &str) -> String {
    let mut name = "snapcontent-".to_owned();
    for byte in Sha256::digest(format!("{group_uid}{volume}")) {
        name.push_str(&format!("{byte:02x}"));
    }
    name
}

/// A time in the format of the API, which has no fractions of a second.
pub(super) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The status of a content whose group snapshot is ready. The snapshot-controller makes the contents of the members from it, and
/// does not make those of an existing group snapshot, which an administrator makes.
pub(super) fn ready_status(
    content: &GroupContent,
    id: &VolumeId,
    created: Timestamp,
    snapshots: &[Snapshot],
) -> Value {
    let mut status = json!({
        "volumeGroupSnapshotHandle": id,
        "readyToUse": true,
        "creationTime": seconds(created),
        "error": null,
    });
    if content.0.spec.source.group_snapshot_handles.is_none() {
        let member = |snapshot: &Snapshot| {
            json!({
                "volumeHandle": snapshot.source_volume,
                "snapshotHandle": snapshot.id,
                // In nanoseconds, since v1beta2 of the API.
                "creationTime": i64::try_from(snapshot.created.as_nanosecond()).unwrap_or_default(),
                "readyToUse": snapshot.ready,
                "restoreSize": snapshot.size,
            })
        };
        status["volumeSnapshotInfoList"] = snapshots.iter().map(member).collect();
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVER: &str = "dir.orlop.dev";

    /// A content of two volumes of the pool `p`, with changes.
    fn content(change: impl FnOnce(&mut Value)) -> GroupContent {
        let mut object = json!({
            "apiVersion": "groupsnapshot.storage.k8s.io/v1",
            "kind": "VolumeGroupSnapshotContent",
            "metadata": {"name": "c", "finalizers": [FINALIZER], "labels": {}, "annotations": {}},
            "spec": {
                "driver": DRIVER,
                "deletionPolicy": "Delete",
                "source": {"volumeHandles": ["p/b", "p/a"]},
                "volumeGroupSnapshotRef": {"namespace": "n", "name": "g", "uid": "u1"},
            },
        });
        change(&mut object);
        GroupContent::new(serde_json::from_value(object).unwrap())
    }

    fn claimed(object: &mut Value) {
        object["metadata"]["labels"]["dir.orlop.dev/node"] = "n1".into();
    }

    /// With the status that orlop reports, and labelled members if they are.
    fn ready(object: &mut Value, are_labelled: bool) {
        claimed(object);
        object["status"] = json!({
            "readyToUse": true,
            "volumeGroupSnapshotHandle": "p/g",
            "volumeSnapshotInfoList": [{"volumeHandle": "p/a", "snapshotHandle": "p/g.1"}],
        });
        if are_labelled {
            object["metadata"]["labels"][MEMBERS_LABELLED] = "true".into();
        }
    }

    fn deleted(object: &mut Value) {
        object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        object["metadata"]["annotations"][BEING_DELETED] = "yes".into();
    }

    /// Of a group snapshot that exists.
    fn existing(object: &mut Value) {
        object["spec"]["source"] = json!({"groupSnapshotHandles": {"volumeGroupSnapshotHandle": "p/g", "volumeSnapshotHandles": ["p/g.1"]}});
    }

    #[test]
    fn a_content_is_claimed_made_and_labelled() {
        let step = |content: &GroupContent, expected: Step<'_>| {
            assert_eq!(content.step(DRIVER, "n1"), expected, "{content:?}");
        };
        step(&content(|_| ()), Step::ClaimByVolume("p/b"));
        let volumes = ["p/b".to_owned(), "p/a".to_owned()];
        let create = Step::Create { name: "groupsnapshot-u1".into(), volumes: &volumes };
        step(&content(claimed), create.clone());
        // After an error.
        let failed = |object: &mut Value| {
            claimed(object);
            object["status"] = json!({"readyToUse": false, "error": {"message": "m"}});
        };
        let failed = content(failed);
        step(&failed, create);
        assert_eq!(failed.error().map(String::as_str), Some("m"));
        step(&content(|object| ready(object, false)), Step::LabelMembers);
        step(&content(|object| ready(object, true)), Step::Nothing);
    }

    #[test]
    fn a_group_snapshot_that_exists_is_claimed_by_its_node_and_looked_up() {
        let (id, snapshots) = ("p/g", &["p/g.1".to_owned()][..]);
        assert_eq!(content(existing).step(DRIVER, "n1"), Step::ClaimByGroup { id, snapshots });
        let found = content(|object| {
            existing(object);
            claimed(object);
        });
        assert_eq!(found.step(DRIVER, "n1"), Step::Find { id, snapshots });
        assert_eq!(found.step(DRIVER, "n2"), Step::Nothing);
    }

    #[test]
    fn other_drivers_and_other_nodes_leave_a_content_alone() {
        for change in [
            claimed as fn(&mut Value),
            |object| ready(object, false),
            |object| {
                claimed(object);
                deleted(object);
            },
        ] {
            assert_eq!(content(change).step(DRIVER, "n2"), Step::Nothing);
            assert_ne!(content(change).step(DRIVER, "n1"), Step::Nothing);
        }
        assert_eq!(content(|_| ()).step("other.dev", "n1"), Step::Nothing);
        let unbound = content(|object| object["spec"]["volumeGroupSnapshotRef"]["uid"] = "".into());
        assert_eq!(unbound.step(DRIVER, "n1"), Step::Nothing);
    }

    #[test]
    fn a_deleted_content_is_released_when_its_group_snapshot_is_deleted() {
        let delete = |id: &str, snapshots: &[&str]| Step::Delete {
            id: id.to_owned(),
            snapshots: snapshots.iter().map(|id| (*id).to_owned()).collect(),
        };
        let retain = |object: &mut Value| object["spec"]["deletionPolicy"] = "Retain".into();
        let step = |change: &dyn Fn(&mut Value), expected: Step<'_>| {
            let content = content(|object| {
                change(object);
                deleted(object);
            });
            assert_eq!(content.step(DRIVER, "n1"), expected, "{content:?}");
        };
        // Not claimed: nothing was made.
        step(&|_| (), Step::Release);
        // Something may have been made, or is being made.
        step(&claimed, delete("p/groupsnapshot-u1", &[]));
        step(
            &|object| {
                claimed(object);
                retain(object);
            },
            delete("p/groupsnapshot-u1", &[]),
        );
        // csi-snapshotter releases the contents of the members, which therefore need its label.
        step(&|object| ready(object, false), Step::LabelMembers);
        step(&|object| ready(object, true), delete("p/g", &["p/g.1"]));
        step(
            &|object| {
                ready(object, true);
                retain(object);
            },
            Step::Release,
        );
        step(
            &|object| {
                existing(object);
                claimed(object);
            },
            Step::Release,
        );
        step(&|object| object["metadata"]["finalizers"] = json!(["other"]), Step::Nothing);
    }

    #[test]
    fn a_group_snapshot_stays_as_long_as_its_object() {
        let content = content(|object| {
            ready(object, true);
            deleted(object);
            object["metadata"]["annotations"] = json!({});
        });
        assert_eq!(content.step(DRIVER, "n1"), Step::Nothing);
    }

    /// The name that snapshot-controller 8.7.0 gave a member.
    #[test]
    fn the_content_of_a_member_has_the_name_that_the_snapshot_controller_gives_it() {
        let name = member_content("u1", "p/a");
        let digest = "snapcontent-570223d2abf17b2ee9e00f0f213b3c537a91d19f25e8c9bdb3e8bfdd7c44a54c";
        assert_eq!(name, digest);
    }
}
