//! Group snapshots. A cluster of users may lack their API.

use serde_json::{Value, json};

use crate::scenarios::cluster::*;
use crate::scenarios::objects::*;

/// Counts in two volumes by turns with another pod: a line is added to the own file as soon as the other file has `$1` lines
/// more than it.
fn counter(name: &str, own: &str, other: &str, ahead: u32) -> Value {
    let script = format!(
        "touch /data/{own}/log; n=0
         while :; do
             until m=$(wc -l 2>/dev/null </data/{other}/log) && [ \"$m\" -ge $((n + {ahead})) ]; do :; done
             n=$((n + 1)); echo $n >>/data/{own}/log
         done"
    );
    let mut pod = pod(name, own, &script);
    let claim = |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/data/{name}")});
    pod["spec"]["volumes"] = json!([claim(own), claim(other)]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([mount(own), mount(other)]);
    on_node(pod, first())
}

fn labelled(claim: Value, group: &str) -> Value {
    with(claim, "/metadata", "labels", json!({"group": group}))
}

fn group_snapshot(name: &str, class: &str, group: &str) -> Value {
    json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1",
        "kind": "VolumeGroupSnapshot",
        "metadata": {"name": name},
        "spec": {
            "volumeGroupSnapshotClassName": class,
            "source": {"selector": {"matchLabels": {"group": group}}},
        },
    })
}

/// A VolumeGroupSnapshotClass whose pauses a busy machine can keep.
fn create_class(test: &TestNamespace, name: &str) {
    test.delete(GROUP_CLASSES, name);
    let class = json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1",
        "kind": "VolumeGroupSnapshotClass",
        "metadata": {"name": name},
        "driver": DRIVER,
        "deletionPolicy": "Delete",
        "parameters": {"maxPause": "30s"},
    });
    test.create(GROUP_CLASSES, &class);
}

/// The lines of a file that counts from 1.
fn count(test: &TestNamespace, claim: &str) -> u32 {
    let reader = format!("read-{claim}");
    // On the node of the snapshot: a provisioner of another node that tries first protects the snapshot from its deletion, and
    // csi-provisioner 6.4 may leave it so.
    let script = "awk '$1 != NR { exit 1 } END { print NR }' /data/log";
    test.create(PODS, &on_node(pod(&reader, claim, script), first()));
    test.output(&reader).trim().parse().unwrap()
}

fn lines_of(test: &TestNamespace, pod: &str, claim: &str) -> u32 {
    test.exec(pod, &["sh", "-c", &format!("wc -l </data/{claim}/log")]).trim().parse().unwrap()
}

/// The snapshots of a group, by their claims.
fn members(test: &TestNamespace, uid: &str) -> Vec<(String, Value)> {
    let mut members: Vec<_> = test
        .list(SNAPSHOTS)
        .into_iter()
        .filter(|snapshot| at(snapshot, "/metadata/ownerReferences/0/uid") == uid)
        .map(|snapshot| (at(&snapshot, "/spec/source/persistentVolumeClaimName"), snapshot))
        .collect();
    members.sort_by(|a, b| a.0.cmp(&b.0));
    members
}

fn snapshots_on(test: &TestNamespace, node: &str) -> String {
    String::from_utf8(test.orlop(node, &["snapshot", "ls", "-q"]).stdout).unwrap()
}

fn wait_ready(test: &TestNamespace, name: &str) -> Value {
    test.wait_long("the group snapshot is ready", || {
        let group = test.get(GROUPS, name);
        (group["status"]["readyToUse"] == true).then_some(group)
    })
}

#[test]
fn a_group_snapshot_shows_its_volumes_at_one_instant() {
    let test = TestNamespace::new("group");
    create_class(&test, "orlop-group-test");
    for name in ["left", "right"] {
        test.create(CLAIMS, &labelled(claim(name, "orlop", "16Mi"), "pair"));
    }
    // The left file is never more than one line ahead, and never behind.
    test.create(PODS, &counter("first", "left", "right", 0));
    test.create(PODS, &counter("second", "right", "left", 1));
    test.wait_ready("second");
    test.wait("the pods count", || (lines_of(&test, "second", "right") > 20).then_some(()));

    test.create(GROUPS, &group_snapshot("both", "orlop-group-test", "pair"));
    let group = wait_ready(&test, "both");
    let uid = at(&group, "/metadata/uid");
    let found = test.wait("two snapshots are ready", || {
        let found = members(&test, &uid);
        let ready = found.iter().filter(|(_, snapshot)| snapshot["status"]["readyToUse"] == true).count();
        (ready == 2).then_some(found)
    });
    let then = lines_of(&test, "second", "right");
    test.wait("the pods continue", || (lines_of(&test, "second", "right") > then).then_some(()));

    // The label with which csi-snapshotter and restores find the node.
    for (_, snapshot) in &found {
        let content = at(snapshot, "/status/boundVolumeSnapshotContentName");
        test.wait("the label of the node", || {
            let content = test.get(CONTENTS, &content);
            let node = at(&content, "/metadata/labels/snapshot.storage.kubernetes.io~1managed-by");
            (node == first()).then_some(())
        });
    }
    for (claim, snapshot) in &found {
        let of = from_snapshot(&name_of(snapshot));
        test.create(CLAIMS, &copy(&format!("restored-{claim}"), "orlop", "16Mi", &of));
    }
    let (left, right) = (count(&test, "restored-left"), count(&test, "restored-right"));
    assert!(right > 20 && (right == left || right + 1 == left), "left {left}, right {right}");

    let id = format!("default/groupsnapshot-{uid}");
    let listed = snapshots_on(&test, first());
    for number in [1, 2] {
        assert!(listed.lines().any(|line| line == format!("{id}.{number}")), "{id}.{number} in {listed}");
    }
    test.delete_and_wait(GROUPS, "both");
    test.wait("the snapshots are deleted", || members(&test, &uid).is_empty().then_some(()));
    let of_group = |content: &Value, path: &str| at(content, path) == "group";
    test.wait("their contents are deleted", || {
        let single = test.list(CONTENTS).into_iter();
        let mut left = single.filter(|content| of_group(content, "/spec/volumeSnapshotRef/namespace"));
        left.next().is_none().then_some(())
    });
    let mut groups = test.list(GROUP_CONTENTS).into_iter();
    assert!(!groups.any(|content| of_group(&content, "/spec/volumeGroupSnapshotRef/namespace")));
    let listed = snapshots_on(&test, first());
    assert!(!listed.contains(&id), "{listed}");
    test.delete(GROUP_CLASSES, "orlop-group-test");
    test.delete_all();
}

#[test]
fn a_group_of_volumes_on_two_nodes_says_so_and_is_deleted_although_its_volumes_are_gone() {
    let test = TestNamespace::new("group-apart");
    create_class(&test, "orlop-group-apart");
    for (name, node) in [("here", first()), ("there", second())] {
        test.create(CLAIMS, &labelled(claim(name, "orlop", "16Mi"), "apart"));
        test.create(PODS, &on_node(pod(name, name, "echo a >/data/file"), node));
        test.output(name);
    }
    let nodes: Vec<_> = ["here", "there"].iter().map(|name| test.wait_bound(name)).collect();
    test.create(GROUPS, &group_snapshot("apart", "orlop-group-apart", "apart"));
    let text = test.wait("the error", || {
        let text = at(&test.get(GROUPS, "apart"), "/status/error/message");
        (!text.is_empty()).then_some(text)
    });
    let says = |here: &Bound, there: &Bound| {
        let expected = format!(
            "volume {} is not on node {}, where volume {} is: the volumes of a group snapshot must be on one node",
            there.handle, here.node, here.handle
        );
        text.contains(&expected)
    };
    assert!(says(&nodes[0], &nodes[1]) || says(&nodes[1], &nodes[0]), "{text}");
    assert_eq!(test.get(GROUPS, "apart")["status"]["readyToUse"], false);
    for name in ["here", "there"] {
        test.delete(PODS, name);
        test.delete(CLAIMS, name);
    }
    for bound in &nodes {
        bound.wait_deleted(&test);
    }
    test.delete_and_wait(GROUPS, "apart");
    let uid = |content: &Value| at(content, "/spec/volumeGroupSnapshotRef/namespace");
    assert!(!test.list(GROUP_CONTENTS).iter().any(|content| uid(content) == "group-apart"));
    test.delete(GROUP_CLASSES, "orlop-group-apart");
    test.delete_all();
}
