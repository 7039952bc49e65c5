//! Single volumes and their pods.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::cluster::*;
use super::objects::*;

#[test]
fn a_claim_is_bound_on_the_node_of_its_first_pod() {
    let test = TestNamespace::new("first-consumer");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    test.event("data", "WaitForFirstConsumer", "");
    assert_eq!(at(&test.get(CLAIMS, "data"), "/status/phase"), "Pending");

    test.create(PODS, &on_node(pod("writer", "data", "echo hello > /data/file; sync"), second()));
    test.output("writer");
    let bound = test.wait_bound("data");
    assert_eq!(bound.node, second());

    let labels = test.inspect(&bound)["labels"].clone();
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
    assert!(test.inspect(&bound)["managed"] == true);
    // The pool of this cluster enforces no sizes.
    test.event("data", "SizeNotEnforced", "the size of 16Mi is not enforced");
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
    let ids = String::from_utf8(test.orlop(&bound.node, &["ls", "-q"]).stdout).unwrap();
    assert!(ids.lines().any(|id| id == bound.handle), "{ids}");
    let inspected = test.inspect(&bound);
    assert_eq!(inspected["labels"]["csi.storage.k8s.io/pvc/name"], "data");
    assert_eq!(at(&inspected, "/users/0/pod"), at(&user, "/metadata/uid"), "{inspected}");
    let refused = test.orlop(&bound.node, &["rm", &bound.handle]);
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
    test.delete(PODS, "user");
    test.delete(CLAIMS, "data");
    bound.wait_deleted(&test);
}

/// The objects and commands of README.md, in a namespace of their own.
#[test]
fn the_commands_of_the_readme_print_what_it_shows() {
    let test = TestNamespace::new("readme");
    let page = fs::read_to_string("README.md").unwrap();
    let section = page.split("Create a claim and a pod:").nth(1).unwrap();
    let section = section.split("Look at the directory").next().unwrap();
    let mut lines = section.lines().filter_map(|line| line.strip_prefix("    ")).peekable();
    let mut script = "kubectl() { command kubectl -n readme \"$@\"; }\n{\n".to_owned();
    while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
        script += &format!("{line}\n");
    }
    script += "} >/dev/null\n";
    let (mut expected, mut commands) = (String::new(), 0);
    for line in lines {
        match line.strip_prefix("$ ") {
            Some(command) => (script, commands) = (script + command + "\n", commands + 1),
            None => expected += &format!("{line}\n"),
        }
    }
    assert!(commands > 4 && script.contains("PersistentVolumeClaim"), "{script}");
    let ran = Command::new("sh").args(["-euc", &script]).output().unwrap();
    let errors = String::from_utf8(ran.stderr).unwrap();
    assert_eq!((String::from_utf8(ran.stdout).unwrap(), &*errors), (expected, ""), "{errors}");
    test.delete_all();
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
    assert_eq!(test.inspect(&bound)["size"], 48 << 20);
    assert_eq!(at(&test.get(VOLUMES, &bound.volume), "/spec/capacity/storage"), "48Mi");
    let after = test.get(PODS, "user");
    assert_eq!(at(&after, "/metadata/uid"), at(&before, "/metadata/uid"));
    assert_eq!(at(&after, "/status/containerStatuses/0/restartCount"), "0");
    test.delete_all();
}

/// The kubelet mounts a volume that it cannot expand after FAILED_PRECONDITION only.
#[test]
fn a_pod_restarts_with_the_old_size_if_its_claim_was_expanded_beyond_the_pool() {
    let test = TestNamespace::new("grows-too-much");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    test.create(PODS, &pod("user", "data", "echo hello > /data/file"));
    test.output("user");
    let bound = test.wait_bound("data");
    let request = |size: &str| {
        test.patch(CLAIMS, "data", &json!({"spec": {"resources": {"requests": {"storage": size}}}}));
    };
    request("1Pi");
    test.wait("the new size waits for the node", || {
        let claim = test.get(CLAIMS, "data");
        at(&claim, "/status/allocatedResourceStatuses/storage").starts_with("NodeResize").then_some(())
    });
    test.delete_and_wait(PODS, "user");
    test.create(PODS, &pod("user", "data", STAY));
    test.wait_ready("user");
    assert_eq!(test.exec("user", &["cat", "/data/file"]), "hello\n");
    test.wait("the claim names the cause", || {
        let conditions = test.get(CLAIMS, "data")["status"]["conditions"].clone();
        let conditions = conditions.as_array()?;
        let failed = conditions.iter().find(|one| one["type"] == "NodeResizeError")?;
        at(failed, "/message").contains("is full").then_some(())
    });
    assert_eq!(test.inspect(&bound)["size"], 16 << 20);
    test.delete_all();
}

#[test]
fn a_generic_ephemeral_volume_is_deleted_with_its_pod() {
    let test = TestNamespace::new("generic");
    test.create(PODS, &pod_with("owner", &generic("orlop", "16Mi"), "echo x > /data/file; sleep 3600"));
    test.wait_ready("owner");
    let bound = test.wait_bound("owner-data");
    assert_eq!(test.exec("owner", &["cat", "/data/file"]), "x\n");
    test.delete(PODS, "owner");
    bound.wait_deleted(&test);
}

#[test]
fn an_inline_volume_is_deleted_with_its_pod() {
    let test = TestNamespace::new("inline");
    test.create(PODS, &pod_with("owner", &inline(&json!({"size": "16Mi"})), STAY));
    test.wait_ready("owner");
    let volumes = test.volumes();
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    assert_eq!(volumes[0]["size"], 16 << 20);
    assert_eq!(volumes[0]["labels"]["csi.storage.k8s.io/pod.name"], "owner");
    test.delete_and_wait(PODS, "owner");
    test.wait("the inline volume is deleted", || test.volumes().is_empty().then_some(()));
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

/// After a forced deletion the API server has no pod any more, but its container still runs.
#[test]
fn a_read_write_once_pod_claim_has_one_writer_after_a_forced_deletion() {
    let test = TestNamespace::new("forced");
    let one_pod = with(claim("data", "orlop", "16Mi"), "/spec", "accessModes", json!(["ReadWriteOncePod"]));
    test.create(CLAIMS, &one_pod);
    let stubborn = "trap '' TERM; i=0; while :; do i=$((i+1)); echo $i > /data/beat; usleep 100000; done";
    let first = pod("first", "data", stubborn);
    test.create(PODS, &with(first, "/spec", "terminationGracePeriodSeconds", 30.into()));
    test.wait_ready("first");
    run(Command::new("kubectl").args([
        "delete",
        "pod",
        "first",
        "-n",
        "forced",
        "--force",
        "--grace-period=0",
    ]));
    let script = "before=$(cat /data/beat); sleep 2; [ \"$before\" = \"$(cat /data/beat)\" ] && echo alone";
    test.create(PODS, &pod("second", "data", script));
    assert_eq!(test.output("second"), "alone\n");
    test.delete_all();
}

#[test]
fn files_belong_to_the_fs_group_of_the_pod() {
    let test = TestNamespace::new("group");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    let user = json!({"runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 4321, "runAsNonRoot": true});
    let script = "echo mine > /data/file; stat -c '%u %g' /data/file; stat -c %g /data";
    test.create(PODS, &with(pod("user", "data", script), "/spec", "securityContext", user));
    assert_eq!(test.output("user"), "1234 4321\n4321\n");
    test.delete_all();
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
fn the_kubelet_reports_the_usage_of_each_volume() {
    let test = TestNamespace::new("stats");
    for (name, megabytes) in [("small", 3), ("large", 11)] {
        test.create(CLAIMS, &claim(name, "orlop", "64Mi"));
        let script = format!(
            "dd if=/dev/urandom of=/data/file bs=1024k count={megabytes} 2>/dev/null; touch /data/a /data/b; sync; {STAY}"
        );
        test.create(PODS, &on_node(pod(name, name, &script), first()));
    }
    for (name, megabytes) in [("small", 3.0), ("large", 11.0)] {
        test.wait_ready(name);
        test.wait(&format!("the kubelet reports {megabytes} MiB for {name}"), || {
            let summary = test.get_url(&format!("/{NODES}/{}/proxy/stats/summary", first()));
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
