//! One volume and its pods.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use crate::objects::*;
use crate::world::*;

#[test]
fn a_claim_waits_for_its_pod_and_is_made_where_the_pod_runs() {
    let world = World::new("first-consumer");
    world.make(CLAIMS, &claim("data", "orlop", "16Mi"));
    world.event("data", "WaitForFirstConsumer", "");
    assert_eq!(at(&world.get(CLAIMS, "data"), "/status/phase"), "Pending");

    world.make(PODS, &on_node(pod("writer", "data", "echo hello > /data/file; sync"), SECOND));
    world.output("writer");
    let bound = world.wait_bound("data");
    assert_eq!(bound.node, SECOND);
    assert_eq!(fs::read_to_string(bound.data().join("file")).unwrap(), "hello\n");

    let labels = bound.record()["labels"].clone();
    assert_eq!(labels["csi.storage.k8s.io/pvc/name"], "data");
    assert_eq!(labels["csi.storage.k8s.io/pvc/namespace"], "first-consumer");
    assert_eq!(labels["csi.storage.k8s.io/pv/name"], bound.volume);

    // A second pod finds what the first one wrote, without being told where to run.
    world.make(PODS, &pod("reader", "data", "cat /data/file"));
    assert_eq!(world.output("reader"), "hello\n");
    world.delete(PODS, "writer");
    world.delete(PODS, "reader");
    world.delete(CLAIMS, "data");
    bound.wait_gone(&world);
}

#[test]
fn an_immediate_claim_is_bound_before_any_pod() {
    let world = World::new("immediate");
    world.make(CLAIMS, &claim("data", "orlop-now", "16Mi"));
    let bound = world.wait_bound("data");
    assert!(bound.data().is_dir());
    world.make(PODS, &pod("writer", "data", "echo hello > /data/file"));
    world.output("writer");
    assert_eq!(at(&world.get(PODS, "writer"), "/spec/nodeName"), bound.node);
    world.delete(PODS, "writer");
    world.delete(CLAIMS, "data");
    bound.wait_gone(&world);
}

#[test]
fn a_volume_grows_while_a_pod_uses_it() {
    let world = World::new("grows");
    world.make(CLAIMS, &claim("data", "orlop", "16Mi"));
    world.make(PODS, &pod("user", "data", STAY));
    let before = world.wait_ready("user");
    let bound = world.wait_bound("data");
    let request = json!({"spec": {"resources": {"requests": {"storage": "48Mi"}}}});
    world.patch(CLAIMS, "data", &request);
    world.wait("the claim has its new size", || {
        (at(&world.get(CLAIMS, "data"), "/status/capacity/storage") == "48Mi").then_some(())
    });
    assert_eq!(bound.record()["size"], 48 << 20);
    assert_eq!(at(&world.get(VOLUMES, &bound.volume), "/spec/capacity/storage"), "48Mi");
    let after = world.get(PODS, "user");
    assert_eq!(at(&after, "/metadata/uid"), at(&before, "/metadata/uid"));
    assert_eq!(at(&after, "/status/containerStatuses/0/restartCount"), "0");
    world.empty();
}

#[test]
fn a_generic_ephemeral_volume_goes_with_its_pod() {
    let world = World::new("generic");
    world.make(PODS, &pod_with("owner", &generic("orlop", "16Mi"), "echo x > /data/file; sleep 3600"));
    world.wait_ready("owner");
    let bound = world.wait_bound("owner-data");
    assert!(bound.data().join("file").exists());
    world.delete(PODS, "owner");
    bound.wait_gone(&world);
}

#[test]
fn an_inline_volume_goes_with_its_pod() {
    let world = World::new("inline");
    let volume = inline(&json!({"size": "16Mi"}));
    let script = "touch /data/of-an-inline-volume; sleep 3600";
    world.make(PODS, &on_node(pod_with("owner", &volume, script), FIRST));
    world.wait_ready("owner");
    let ours = || {
        let all = fs::read_dir(pool_on(FIRST, "default").join("volumes")).unwrap();
        all.flatten().map(|one| one.path()).find(|one| one.join("data/of-an-inline-volume").exists())
    };
    let folder = ours().expect("the volume is in the default pool");
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("volume.json")).unwrap()).unwrap();
    assert_eq!(record["size"], 16 << 20);
    assert_eq!(record["labels"]["csi.storage.k8s.io/pod.name"], "owner");
    assert_eq!(record["labels"]["csi.storage.k8s.io/pod.namespace"], "inline");
    world.delete_and_wait(PODS, "owner");
    world.wait("the inline volume is gone", || (!folder.exists()).then_some(()));
}

#[test]
fn a_claim_for_one_pod_is_given_to_one_pod() {
    let world = World::new("one-pod");
    let alone = with(claim("data", "orlop", "16Mi"), "/spec", "accessModes", json!(["ReadWriteOncePod"]));
    world.make(CLAIMS, &alone);
    world.make(PODS, &pod("first", "data", STAY));
    world.wait_ready("first");
    world.make(PODS, &pod("second", "data", "echo second"));
    world.wait_unschedulable("second", "ReadWriteOncePod");
    world.delete_and_wait(PODS, "first");
    assert_eq!(world.output("second"), "second\n");
    world.empty();
}

#[test]
fn files_belong_to_the_pods_group() {
    let world = World::new("group");
    world.make(CLAIMS, &claim("data", "orlop", "16Mi"));
    let user = json!({"runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 4321, "runAsNonRoot": true});
    let script = "echo mine > /data/file; stat -c %g /data/file; stat -c %g /data";
    world.make(PODS, &with(pod("user", "data", script), "/spec", "securityContext", user));
    assert_eq!(world.output("user"), "4321\n4321\n");
    let file = fs::metadata(world.wait_bound("data").data().join("file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (1234, 4321));
    world.empty();
}

#[test]
fn a_class_names_owner_and_mode_of_its_volumes() {
    let world = World::new("owner");
    world.make(CLAIMS, &claim("data", "orlop-trash", "16Mi"));
    let bound = world.wait_bound("data");
    let data = fs::metadata(bound.data()).unwrap();
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (1000, 1000, 0o750));
    // The class keeps deleted volumes for an hour.
    fs::write(bound.data().join("file"), "kept").unwrap();
    world.delete(CLAIMS, "data");
    bound.wait_gone(&world);
    let trash = pool_on(&bound.node, "default").join("trash");
    let kept = fs::read_dir(trash).unwrap().flatten().map(|one| one.path().join("data/file"));
    let name = bound.folder().file_name().unwrap().to_str().unwrap().to_owned();
    let ours: Vec<_> = kept.filter(|path| path.to_str().unwrap().contains(&name)).collect();
    assert_eq!(ours.len(), 1);
    assert_eq!(fs::read_to_string(&ours[0]).unwrap(), "kept");
}

#[test]
fn a_pod_sees_a_folder_of_its_volume_or_all_of_it_read_only() {
    let world = World::new("part");
    world.make(CLAIMS, &claim("data", "orlop", "16Mi"));
    let part = json!([
        {"name": "data", "mountPath": "/data", "subPath": "a/part"},
        {"name": "data", "mountPath": "/all", "readOnly": true},
    ]);
    let script = "echo x > /data/file; cat /all/a/part/file; ! touch /all/no 2>&1; ls /all";
    world.make(PODS, &with(pod("part", "data", script), "/spec/containers/0", "volumeMounts", part));
    let output = world.output("part");
    assert!(output.starts_with("x\n") && output.contains("Read-only") && output.ends_with("a\n"), "{output}");

    let read_only = json!({"persistentVolumeClaim": {"claimName": "data", "readOnly": true}});
    let script = "cat /data/a/part/file; ! touch /data/no 2>&1; grep ' /data ' /proc/mounts";
    world.make(PODS, &pod_with("reader", &read_only, script));
    let output = world.output("reader");
    assert!(output.starts_with("x\n") && output.contains("Read-only") && output.contains(" ro,"), "{output}");
    world.empty();
}

#[test]
fn mount_options_of_the_class_are_those_of_the_mount() {
    let world = World::new("options");
    world.make(CLAIMS, &claim("data", "orlop-options", "16Mi"));
    let script = "grep ' /data ' /proc/mounts; printf '#!/bin/sh\\necho ran' > /data/x; chmod 755 /data/x; ! /data/x 2>&1";
    world.make(PODS, &pod("user", "data", script));
    let output = world.output("user");
    assert!(output.contains("noexec") && output.contains("nosuid"), "{output}");
    assert!(output.contains("Permission denied"), "{output}");
    world.empty();
}

#[test]
fn a_directory_made_by_hand_is_a_volume() {
    let world = World::new("by-hand");
    let data = pool_on(FIRST, "default").join("volumes/made-by-hand/data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("file"), "old data\n").unwrap();
    world.make(VOLUMES, &volume("made-by-hand", "default/made-by-hand", FIRST, "by-hand", "data"));
    let named = with(claim("data", "by-hand", "16Mi"), "/spec", "volumeName", "made-by-hand".into());
    world.make(CLAIMS, &named);
    world.make(PODS, &pod("reader", "data", "cat /data/file; echo more >> /data/file"));
    assert_eq!(world.output("reader"), "old data\n");
    world.delete_and_wait(PODS, "reader");
    world.delete_and_wait(CLAIMS, "data");
    world.delete_and_wait(VOLUMES, "made-by-hand");
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "old data\nmore\n");
    fs::remove_dir_all(data.parent().unwrap()).unwrap();
}

#[test]
fn the_kubelet_knows_what_is_in_each_volume() {
    let world = World::new("stats");
    for (name, megabytes) in [("small", 3), ("large", 11)] {
        world.make(CLAIMS, &claim(name, "orlop", "64Mi"));
        let script = format!(
            "dd if=/dev/urandom of=/data/file bs=1024k count={megabytes} 2>/dev/null; touch /data/a /data/b; sync; {STAY}"
        );
        world.make(PODS, &on_node(pod(name, name, &script), FIRST));
    }
    for (name, megabytes) in [("small", 3.0), ("large", 11.0)] {
        world.wait_ready(name);
        world.wait(&format!("the kubelet says that {name} has {megabytes} MiB"), || {
            let summary = world.page(&format!("/{NODES}/{FIRST}/proxy/stats/summary"));
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
    world.empty();
}
