//! Single volumes and their pods.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use serde_json::{Value, json};

use super::cluster::*;
use super::objects::*;

#[test]
fn a_claim_is_bound_on_the_node_of_its_first_pod() {
    let test = TestNamespace::new("first-consumer");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    test.event("data", "WaitForFirstConsumer", "");
    assert_eq!(at(&test.get(CLAIMS, "data"), "/status/phase"), "Pending");

    test.create(PODS, &on_node(pod("writer", "data", "echo hello > /data/file; sync"), SECOND));
    test.output("writer");
    let bound = test.wait_bound("data");
    assert_eq!(bound.node, SECOND);
    assert_eq!(fs::read_to_string(bound.data().join("file")).unwrap(), "hello\n");

    let labels = bound.record()["labels"].clone();
    assert_eq!(labels["csi.storage.k8s.io/pvc/name"], "data");
    assert_eq!(labels["csi.storage.k8s.io/pvc/namespace"], "first-consumer");
    assert_eq!(labels["csi.storage.k8s.io/pv/name"], bound.volume);

    // A second pod without a node selector is scheduled to the volume.
    test.create(PODS, &pod("reader", "data", "cat /data/file"));
    assert_eq!(test.output("reader"), "hello\n");
    test.delete(PODS, "writer");
    test.delete(PODS, "reader");
    test.delete(CLAIMS, "data");
    bound.wait_deleted(&test);
}

#[test]
fn an_immediate_claim_is_bound_without_a_pod() {
    let test = TestNamespace::new("immediate");
    test.create(CLAIMS, &claim("data", "orlop-now", "16Mi"));
    let bound = test.wait_bound("data");
    assert!(bound.data().is_dir());
    test.create(PODS, &pod("writer", "data", "echo hello > /data/file"));
    test.output("writer");
    assert_eq!(at(&test.get(PODS, "writer"), "/spec/nodeName"), bound.node);
    test.delete(PODS, "writer");
    test.delete(CLAIMS, "data");
    bound.wait_deleted(&test);
}

#[test]
fn commands_in_the_nodes_pod_show_a_volume_with_its_pod_and_refuse_to_remove_it() {
    let test = TestNamespace::new("commands");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    test.create(PODS, &pod("user", "data", STAY));
    let user = test.wait_ready("user");
    let bound = test.wait_bound("data");
    let node = format!("spec.nodeName={}", bound.node);
    let orlop = |arguments: &[&str]| {
        let of_node = ["get", "pods", "-n", "orlop", "-o", "name", "--field-selector", &node];
        let pods = run(Command::new("kubectl").args(of_node));
        let pod = pods.lines().find(|pod| pod.starts_with("pod/orlop-node-")).unwrap();
        let exec = ["exec", "-n", "orlop", pod, "-c", "orlop", "--", "orlop"];
        Command::new("kubectl").args(exec).args(arguments).output().unwrap()
    };
    let ids = String::from_utf8(orlop(&["ls", "-q"]).stdout).unwrap();
    assert!(ids.lines().any(|id| id == bound.handle), "{ids}");
    let inspected: Value = serde_json::from_slice(&orlop(&["inspect", &bound.handle]).stdout).unwrap();
    assert_eq!(inspected[0]["labels"]["csi.storage.k8s.io/pvc/name"], "data");
    assert_eq!(at(&inspected, "/0/users/0/pod"), at(&user, "/metadata/uid"), "{inspected}");
    let refused = orlop(&["rm", &bound.handle]);
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
    test.delete(PODS, "user");
    test.delete(CLAIMS, "data");
    bound.wait_deleted(&test);
}

#[test]
fn a_volume_is_expanded_while_a_pod_uses_it() {
    let test = TestNamespace::new("grows");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    test.create(PODS, &pod("user", "data", STAY));
    let before = test.wait_ready("user");
    let bound = test.wait_bound("data");
    let request = json!({"spec": {"resources": {"requests": {"storage": "48Mi"}}}});
    test.patch(CLAIMS, "data", &request);
    test.wait("the claim has its new size", || {
        (at(&test.get(CLAIMS, "data"), "/status/capacity/storage") == "48Mi").then_some(())
    });
    assert_eq!(bound.record()["size"], 48 << 20);
    assert_eq!(at(&test.get(VOLUMES, &bound.volume), "/spec/capacity/storage"), "48Mi");
    let after = test.get(PODS, "user");
    assert_eq!(at(&after, "/metadata/uid"), at(&before, "/metadata/uid"));
    assert_eq!(at(&after, "/status/containerStatuses/0/restartCount"), "0");
    test.delete_all();
}

#[test]
fn a_generic_ephemeral_volume_is_deleted_with_its_pod() {
    let test = TestNamespace::new("generic");
    test.create(PODS, &pod_with("owner", &generic("orlop", "16Mi"), "echo x > /data/file; sleep 3600"));
    test.wait_ready("owner");
    let bound = test.wait_bound("owner-data");
    assert!(bound.data().join("file").exists());
    test.delete(PODS, "owner");
    bound.wait_deleted(&test);
}

#[test]
fn an_inline_volume_is_deleted_with_its_pod() {
    let test = TestNamespace::new("inline");
    let volume = inline(&json!({"size": "16Mi"}));
    let script = "touch /data/of-an-inline-volume; sleep 3600";
    test.create(PODS, &on_node(pod_with("owner", &volume, script), FIRST));
    test.wait_ready("owner");
    let find = || {
        let all = fs::read_dir(pool_on(FIRST, "default").join("volumes")).unwrap();
        all.flatten().map(|one| one.path()).find(|one| one.join("data/of-an-inline-volume").exists())
    };
    let directory = find().expect("the volume is in the default pool");
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(directory.join("volume.json")).unwrap()).unwrap();
    assert_eq!(record["size"], 16 << 20);
    assert_eq!(record["labels"]["csi.storage.k8s.io/pod.name"], "owner");
    assert_eq!(record["labels"]["csi.storage.k8s.io/pod.namespace"], "inline");
    test.delete_and_wait(PODS, "owner");
    test.wait("the inline volume is deleted", || (!directory.exists()).then_some(()));
}

#[test]
fn a_read_write_once_pod_claim_is_used_by_one_pod_at_a_time() {
    let test = TestNamespace::new("one-pod");
    let one_pod = with(claim("data", "orlop", "16Mi"), "/spec", "accessModes", json!(["ReadWriteOncePod"]));
    test.create(CLAIMS, &one_pod);
    test.create(PODS, &pod("first", "data", STAY));
    test.wait_ready("first");
    test.create(PODS, &pod("second", "data", "echo second"));
    test.wait_unschedulable("second", "ReadWriteOncePod");
    test.delete_and_wait(PODS, "first");
    assert_eq!(test.output("second"), "second\n");
    test.delete_all();
}

#[test]
fn files_belong_to_the_fs_group_of_the_pod() {
    let test = TestNamespace::new("group");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    let user = json!({"runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 4321, "runAsNonRoot": true});
    let script = "echo mine > /data/file; stat -c %g /data/file; stat -c %g /data";
    test.create(PODS, &with(pod("user", "data", script), "/spec", "securityContext", user));
    assert_eq!(test.output("user"), "4321\n4321\n");
    let file = fs::metadata(test.wait_bound("data").data().join("file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (1234, 4321));
    test.delete_all();
}

#[test]
fn a_class_sets_owner_mode_and_retention_of_its_volumes() {
    let test = TestNamespace::new("owner");
    test.create(CLAIMS, &claim("data", "orlop-trash", "16Mi"));
    let bound = test.wait_bound("data");
    let data = fs::metadata(bound.data()).unwrap();
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (1000, 1000, 0o750));
    // The class keeps deleted volumes for an hour.
    fs::write(bound.data().join("file"), "kept").unwrap();
    test.delete(CLAIMS, "data");
    bound.wait_deleted(&test);
    let trash = pool_on(&bound.node, "default").join("trash");
    let kept = fs::read_dir(trash).unwrap().flatten().map(|one| one.path().join("data/file"));
    let name = bound.directory().file_name().unwrap().to_str().unwrap().to_owned();
    let ours: Vec<_> = kept.filter(|path| path.to_str().unwrap().contains(&name)).collect();
    assert_eq!(ours.len(), 1);
    assert_eq!(fs::read_to_string(&ours[0]).unwrap(), "kept");
}

#[test]
fn sub_paths_and_read_only_mounts_work() {
    let test = TestNamespace::new("part");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    let part = json!([
        {"name": "data", "mountPath": "/data", "subPath": "a/part"},
        {"name": "data", "mountPath": "/all", "readOnly": true},
    ]);
    let script = "echo x > /data/file; cat /all/a/part/file; ! touch /all/no 2>&1; ls /all";
    test.create(PODS, &with(pod("part", "data", script), "/spec/containers/0", "volumeMounts", part));
    let output = test.output("part");
    assert!(output.starts_with("x\n") && output.contains("Read-only") && output.ends_with("a\n"), "{output}");

    let read_only = json!({"persistentVolumeClaim": {"claimName": "data", "readOnly": true}});
    let script = "cat /data/a/part/file; ! touch /data/no 2>&1; grep ' /data ' /proc/mounts";
    test.create(PODS, &pod_with("reader", &read_only, script));
    let output = test.output("reader");
    assert!(output.starts_with("x\n") && output.contains("Read-only") && output.contains(" ro,"), "{output}");
    test.delete_all();
}

#[test]
fn mount_options_of_the_class_apply_to_the_mount() {
    let test = TestNamespace::new("options");
    test.create(CLAIMS, &claim("data", "orlop-options", "16Mi"));
    let script = "grep ' /data ' /proc/mounts; printf '#!/bin/sh\\necho ran' > /data/x; chmod 755 /data/x; ! /data/x 2>&1";
    test.create(PODS, &pod("user", "data", script));
    let output = test.output("user");
    assert!(output.contains("noexec") && output.contains("nosuid"), "{output}");
    assert!(output.contains("Permission denied"), "{output}");
    test.delete_all();
}

#[test]
fn an_unmanaged_directory_can_be_used_as_a_volume() {
    let test = TestNamespace::new("unmanaged");
    let data = pool_on(FIRST, "default").join("volumes/unmanaged/data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("file"), "old data\n").unwrap();
    test.create(VOLUMES, &volume("unmanaged", "default/unmanaged", FIRST, "unmanaged", "data"));
    let named = with(claim("data", "static", "16Mi"), "/spec", "volumeName", "unmanaged".into());
    test.create(CLAIMS, &named);
    test.create(PODS, &pod("reader", "data", "cat /data/file; echo more >> /data/file"));
    assert_eq!(test.output("reader"), "old data\n");
    test.delete_and_wait(PODS, "reader");
    test.delete_and_wait(CLAIMS, "data");
    test.delete_and_wait(VOLUMES, "unmanaged");
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "old data\nmore\n");
    fs::remove_dir_all(data.parent().unwrap()).unwrap();
}

#[test]
fn the_kubelet_reports_the_usage_of_each_volume() {
    let test = TestNamespace::new("stats");
    for (name, megabytes) in [("small", 3), ("large", 11)] {
        test.create(CLAIMS, &claim(name, "orlop", "64Mi"));
        let script = format!(
            "dd if=/dev/urandom of=/data/file bs=1024k count={megabytes} 2>/dev/null; touch /data/a /data/b; sync; {STAY}"
        );
        test.create(PODS, &on_node(pod(name, name, &script), FIRST));
    }
    for (name, megabytes) in [("small", 3.0), ("large", 11.0)] {
        test.wait_ready(name);
        test.wait(&format!("the kubelet reports {megabytes} MiB for {name}"), || {
            let summary = test.get_url(&format!("/{NODES}/{FIRST}/proxy/stats/summary"));
            let pods = summary["pods"].as_array().unwrap().iter();
            let ours =
                pods.filter(|pod| at(pod, "/podRef/namespace") == "stats" && at(pod, "/podRef/name") == name);
            let volume = ours.flat_map(|pod| pod["volume"].as_array().cloned().unwrap_or_default());
            let volume = volume.into_iter().find(|volume| at(volume, "/pvcRef/name") == name)?;
            let used = volume["usedBytes"].as_f64()? / f64::from(1 << 20);
            let inodes = volume["inodesUsed"].as_u64()?;
            ((megabytes..megabytes + 0.5).contains(&used) && (3..6).contains(&inodes)).then_some(())
        });
    }
    test.delete_all();
}
