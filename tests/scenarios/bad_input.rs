//! Invalid requests: an event contains the reason and the remedy, and nothing is created.

use serde_json::{Value, json};

use super::cluster::*;
use super::objects::*;

/// For each claim: parameters of its class, changes of its spec, and a part of the event.
#[test]
fn an_invalid_claim_gets_an_event_with_the_reason() {
    let test = TestNamespace::new("bad-claims");
    let table: [(&str, Value, Value, &str); 7] = [
        ("unknown-parameter", json!({"colour": "red"}), json!({}), "unknown field `colour`, expected one of"),
        ("bad-value", json!({"mode": "rwx"}), json!({}), "\"rwx\" is not an octal mode such as 0750"),
        (
            "missing-pool",
            json!({"pool": "nvme"}),
            json!({}),
            "parameter pool: pool nvme does not exist; the configured pools are: ",
        ),
        ("hard-limit", json!({"limit": "hard"}), json!({}), "cannot enforce a size; use limit=auto"),
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
        let class_name = format!("bad-{name}");
        test.delete(CLASSES, &class_name);
        test.create(CLASSES, &class(&class_name, parameters));
        let mut request = claim(name, &class_name, "16Mi");
        for (key, value) in change.as_object().unwrap() {
            request["spec"][key] = value.clone();
        }
        test.create(CLAIMS, &request);
    }
    for (name, _, _, message) in &table {
        test.event(name, "ProvisioningFailed", message);
    }
    assert_eq!(test.volumes(), Vec::<Value>::new());
    for (name, ..) in &table {
        assert_eq!(at(&test.get(CLAIMS, name), "/status/phase"), "Pending");
        test.delete_and_wait(CLAIMS, name);
        test.delete(CLASSES, &format!("bad-{name}"));
    }
}

/// The scheduler compares capacities before it lets orlop create the volume. So orlop reports one for what no node can make,
/// and the claim gets the error of CreateVolume.
#[test]
fn a_claim_that_waits_for_its_pod_gets_an_event_with_the_reason() {
    let test = TestNamespace::new("bad-waiting");
    let table = [
        ("pool", json!({"pool": "nvme"}), "parameter pool: pool nvme does not exist"),
        ("parameter", json!({"colour": "red"}), "unknown field `colour`, expected one of"),
        ("value", json!({"mode": "rwx"}), "\"rwx\" is not an octal mode such as 0750"),
    ];
    for (name, parameters, _) in &table {
        let class_name = format!("waiting-{name}");
        test.delete(CLASSES, &class_name);
        let waiting =
            with(class(&class_name, parameters), "", "volumeBindingMode", "WaitForFirstConsumer".into());
        test.create(CLASSES, &waiting);
        test.create(CLAIMS, &claim(name, &class_name, "16Mi"));
        test.create(PODS, &pod(name, name, "true"));
    }
    for (name, _, message) in &table {
        test.event(name, "ProvisioningFailed", message);
    }
    assert_eq!(test.volumes(), Vec::<Value>::new());
    test.delete_all();
    for (name, ..) in &table {
        test.delete(CLASSES, &format!("waiting-{name}"));
    }
}

/// The scheduler knows the capacities and reports the reason at the pod. A claim with immediate binding waits for space.
#[test]
fn a_claim_larger_than_any_node_keeps_its_pod_unscheduled() {
    let test = TestNamespace::new("too-large");
    for (name, class) in [("large", "orlop"), ("large-now", "orlop-now")] {
        test.create(CLAIMS, &claim(name, class, "1Ei"));
        test.create(PODS, &pod(name, name, "true"));
    }
    test.wait_unschedulable("large", "node(s) did not have enough free storage");
    test.event("large-now", "ExternalProvisioning", "");
    assert_eq!(test.volumes(), Vec::<Value>::new());
    let refused = test.try_create(CLAIMS, &claim("nothing", "orlop", "0"));
    assert!(refused.unwrap_err().contains("must be greater than zero"), "the API server refuses 0 bytes");
    test.delete_all();
}

#[test]
fn an_invalid_copy_gets_an_event_with_the_reason() {
    let test = TestNamespace::new("bad-copies");
    test.create(CLAIMS, &claim("source", "orlop-now", "32Mi"));
    test.wait_bound("source");
    test.create(SNAPSHOTS, &snapshot("snap", "source"));
    test.create(SNAPSHOTS, &snapshot("of-nothing", "missing"));
    test.wait("the snapshot is ready", || {
        (test.get(SNAPSHOTS, "snap")["status"]["readyToUse"] == true).then_some(())
    });
    test.create(CLAIMS, &copy("less", "orlop-now", "16Mi", &from_snapshot("snap")));
    test.create(CLAIMS, &copy("less-clone", "orlop-now", "16Mi", &from_claim("source")));
    test.create(CLAIMS, &copy("nothing", "orlop-now", "16Mi", &from_snapshot("no-such")));
    test.event("less", "ProvisioningFailed", "is less than");
    test.event("less-clone", "ProvisioningFailed", "must be greater than or equal");
    test.event("nothing", "ProvisioningFailed", "no-such");
    test.event("of-nothing", "SnapshotContentCreationFailed", "cannot get claim");
    assert_eq!(test.volumes().len(), 1);
    test.delete_all();
}

#[test]
fn an_invalid_inline_volume_gets_an_event_with_the_reason() {
    let test = TestNamespace::new("bad-inline");
    let table = [
        ("negative", json!({"size": "-1Mi"}), "size"),
        ("words", json!({"size": "$(rm -rf /)"}), "size"),
        ("huge", json!({"size": "16Ei"}), "size"),
        ("too-much", json!({"size": "1Ei"}), "allocatable"),
        ("path", json!({"pool": "../../etc"}), "../../etc"),
        ("no-pool", json!({"pool": "nvme"}), "pool nvme does not exist"),
        ("unknown", json!({"colour": "red"}), "unknown field `colour`"),
    ];
    for (name, attributes, _) in &table {
        test.create(PODS, &pod_with(name, &inline(attributes), "true"));
    }
    for (name, _, message) in &table {
        let text = test.event(name, "FailedMount", message);
        assert!(text.contains("InvalidArgument") || text.contains("ResourceExhausted"), "{text}");
    }
    assert_eq!(test.volumes(), Vec::<Value>::new());
    test.delete_all();
}

#[test]
fn a_volume_handle_that_is_a_path_is_not_found() {
    let test = TestNamespace::new("bad-handles");
    let table = [
        ("up", "default/../../../../../etc"),
        ("absolute", "/etc"),
        ("dots", "default/.."),
        ("missing", "default/never-created"),
        ("no-pool", "nvme/x"),
    ];
    for (name, handle) in table {
        test.delete_and_wait(VOLUMES, &format!("bad-{name}"));
        test.create(VOLUMES, &volume(&format!("bad-{name}"), handle, first(), "bad-handles", name));
        let named = with(claim(name, "static", "16Mi"), "/spec", "volumeName", format!("bad-{name}").into());
        test.create(CLAIMS, &named);
        test.create(PODS, &pod(name, name, "ls /data"));
    }
    for (name, _) in table {
        let text = test.event(name, "FailedMount", "rpc error");
        assert!(
            text.contains("code = NotFound") || text.contains("code = InvalidArgument"),
            "{name}: {text}"
        );
        test.delete_and_wait(PODS, name);
        test.delete_and_wait(CLAIMS, name);
        test.delete_and_wait(VOLUMES, &format!("bad-{name}"));
    }
}
