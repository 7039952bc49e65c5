//! What cannot be had: the event says why and what to do, and nothing is made.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::objects::*;
use crate::world::*;

/// All folders of a kind in all pools, of the claims of a namespace.
fn folders(space: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (node, pool) in [(FIRST, "default"), (SECOND, "default"), (FIRST, "small"), (SECOND, "small")] {
        for folder in fs::read_dir(pool_on(node, pool).join("volumes")).unwrap().flatten() {
            let Ok(record) = fs::read_to_string(folder.path().join("volume.json")) else { continue };
            if record.contains(&format!("\"{space}\"")) {
                found.insert(folder.path().display().to_string());
            }
        }
    }
    found
}

/// Claims that orlop refuses: the class's parameters, what differs from a plain claim, what the event says.
#[test]
fn a_claim_that_cannot_be_filled_is_told_why() {
    let world = World::new("bad-claims");
    let table: [(&str, Value, Value, &str); 7] = [
        ("unknown-parameter", json!({"colour": "red"}), json!({}), "unknown field `colour`, expected one of"),
        ("bad-value", json!({"mode": "rwx"}), json!({}), "\"rwx\" is not an octal mode such as 0750"),
        (
            "missing-pool",
            json!({"pool": "nvme"}),
            json!({}),
            "there is no pool nvme here; there is default, small",
        ),
        (
            "hard-limit",
            json!({"limit": "hard", "pool": "small"}),
            json!({}),
            "cannot enforce a size; use limit=auto",
        ),
        ("block", json!({}), json!({"volumeMode": "Block"}), "set volumeMode: Filesystem"),
        (
            "fs-type",
            json!({"csi.storage.k8s.io/fstype": "ext4"}),
            json!({}),
            "remove csi.storage.k8s.io/fstype",
        ),
        ("trash", json!({"trashFor": "7d"}), json!({}), "trashFor needs onDelete: trash"),
    ];
    for (name, parameters, change, _) in &table {
        let own = format!("bad-{name}");
        world.delete(CLASSES, &own);
        world.make(CLASSES, &class(&own, parameters));
        let mut request = claim(name, &own, "16Mi");
        for (key, value) in change.as_object().unwrap() {
            request["spec"][key] = value.clone();
        }
        world.make(CLAIMS, &request);
    }
    for (name, _, _, said) in &table {
        world.event(name, "ProvisioningFailed", said);
    }
    assert_eq!(folders("bad-claims"), BTreeSet::new());
    for (name, ..) in &table {
        assert_eq!(at(&world.get(CLAIMS, name), "/status/phase"), "Pending");
        world.delete_and_wait(CLAIMS, name);
        world.delete(CLASSES, &format!("bad-{name}"));
    }
}

/// The scheduler has the numbers, so it says so; a claim without a pod waits for room without a word of its own.
#[test]
fn a_claim_larger_than_any_node_is_told_so_at_its_pod() {
    let world = World::new("too-large");
    for (name, class) in [("large", "orlop"), ("large-now", "orlop-now")] {
        world.make(CLAIMS, &claim(name, class, "1Ei"));
        world.make(PODS, &pod(name, name, "true"));
    }
    world.wait_unschedulable("large", "2 node(s) did not have enough free storage");
    world.event("large-now", "ExternalProvisioning", "");
    assert_eq!(folders("too-large"), BTreeSet::new());
    let refused = world.try_make(CLAIMS, &claim("nothing", "orlop", "0"));
    assert!(refused.unwrap_err().contains("must be greater than zero"), "the API server knows of 0 bytes");
    world.empty();
}

#[test]
fn a_copy_smaller_than_its_source_or_of_nothing_is_told_why() {
    let world = World::new("bad-copies");
    world.make(CLAIMS, &claim("source", "orlop-now", "32Mi"));
    world.wait_bound("source");
    world.make(SNAPSHOTS, &snapshot("snap", "source"));
    world.make(SNAPSHOTS, &snapshot("of-nothing", "missing"));
    world.wait("the snapshot is ready", || {
        (world.get(SNAPSHOTS, "snap")["status"]["readyToUse"] == true).then_some(())
    });
    world.make(CLAIMS, &copy("less", "orlop-now", "16Mi", &from_snapshot("snap")));
    world.make(CLAIMS, &copy("less-clone", "orlop-now", "16Mi", &from_claim("source")));
    world.make(CLAIMS, &copy("nothing", "orlop-now", "16Mi", &from_snapshot("no-such")));
    world.event("less", "ProvisioningFailed", "is less than");
    world.event("less-clone", "ProvisioningFailed", "must be greater than or equal");
    world.event("nothing", "ProvisioningFailed", "no-such");
    world.event("of-nothing", "SnapshotContentCreationFailed", "cannot get claim");
    assert_eq!(folders("bad-copies").len(), 1);
    world.empty();
}

#[test]
fn an_inline_volume_that_cannot_be_had_is_told_why() {
    let world = World::new("bad-inline");
    let table = [
        ("negative", json!({"size": "-1Mi"}), "size"),
        ("words", json!({"size": "$(rm -rf /)"}), "size"),
        ("huge", json!({"size": "16Ei"}), "size"),
        ("too-much", json!({"size": "1Ei"}), "left to promise"),
        ("path", json!({"pool": "../../etc"}), "../../etc"),
        ("no-pool", json!({"pool": "nvme"}), "there is no pool nvme here"),
        ("unknown", json!({"colour": "red"}), "unknown field `colour`"),
    ];
    for (name, attributes, _) in &table {
        world.make(PODS, &pod_with(name, &inline(attributes), "true"));
    }
    for (name, _, said) in &table {
        let text = world.event(name, "FailedMount", said);
        assert!(text.contains("InvalidArgument") || text.contains("ResourceExhausted"), "{text}");
    }
    assert_eq!(folders("bad-inline"), BTreeSet::new());
    world.empty();
}

#[test]
fn a_handle_that_is_a_path_leads_nowhere() {
    let world = World::new("bad-handles");
    let table = [
        ("up", "default/../../../../../etc"),
        ("absolute", "/etc"),
        ("dots", "default/.."),
        ("missing", "default/never-made"),
        ("no-pool", "nvme/x"),
    ];
    for (name, handle) in table {
        world.delete_and_wait(VOLUMES, &format!("bad-{name}"));
        world.make(VOLUMES, &volume(&format!("bad-{name}"), handle, FIRST, "bad-handles", name));
        let named = with(claim(name, "by-hand", "16Mi"), "/spec", "volumeName", format!("bad-{name}").into());
        world.make(CLAIMS, &named);
        world.make(PODS, &pod(name, name, "ls /data"));
    }
    for (name, _) in table {
        let text = world.event(name, "FailedMount", "rpc error");
        assert!(
            text.contains("code = NotFound") || text.contains("code = InvalidArgument"),
            "{name}: {text}"
        );
        world.delete_and_wait(PODS, name);
        world.delete_and_wait(CLAIMS, name);
        world.delete_and_wait(VOLUMES, &format!("bad-{name}"));
    }
}
