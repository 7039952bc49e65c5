//! Snapshots, restores and clones: they are where their source is.

use std::fs;

use serde_json::{Value, json};

use crate::objects::*;
use crate::world::*;

/// A claim of the first node with a file in it.
fn source(world: &World) -> Bound {
    world.make(CLAIMS, &claim("source", "orlop", "16Mi"));
    world.make(PODS, &on_node(pod("writer", "source", "echo first > /data/file; sync"), FIRST));
    world.output("writer");
    world.wait_bound("source")
}

fn take_snapshot(world: &World) {
    world.make(SNAPSHOTS, &snapshot("snap", "source"));
    world.wait("the snapshot is ready", || {
        (world.get(SNAPSHOTS, "snap")["status"]["readyToUse"] == true).then_some(())
    });
}

#[test]
fn a_snapshot_keeps_what_was_and_outlives_its_source() {
    let world = World::new("snapshot");
    let source = source(&world);
    take_snapshot(&world);
    fs::write(source.data().join("file"), "second\n").unwrap();
    world.delete(PODS, "writer");
    world.delete(CLAIMS, "source");
    source.wait_gone(&world);

    world.make(CLAIMS, &copy("restored", "orlop", "16Mi", &from_snapshot("snap")));
    world.make(PODS, &on_node(pod("reader", "restored", "cat /data/file; echo third > /data/file"), FIRST));
    assert_eq!(world.output("reader"), "first\n");
    let restored = world.wait_bound("restored");
    assert_eq!(restored.node, FIRST);
    world.empty();
    restored.wait_gone(&world);
}

#[test]
fn a_clone_is_a_volume_of_its_own() {
    let world = World::new("clone");
    let source = source(&world);
    world.make(CLAIMS, &copy("clone", "orlop", "32Mi", &from_claim("source")));
    world.make(PODS, &on_node(pod("reader", "clone", "cat /data/file; echo other > /data/file"), FIRST));
    assert_eq!(world.output("reader"), "first\n");
    assert_eq!(fs::read_to_string(source.data().join("file")).unwrap(), "first\n");
    assert_eq!(world.wait_bound("clone").record()["size"], 32 << 20);
    world.empty();
}

#[test]
fn an_immediate_copy_is_made_where_its_source_is() {
    let world = World::new("copy-now");
    source(&world);
    take_snapshot(&world);
    world.make(CLAIMS, &copy("restored", "orlop-now", "16Mi", &from_snapshot("snap")));
    world.make(CLAIMS, &copy("clone", "orlop-now", "16Mi", &from_claim("source")));
    for name in ["restored", "clone"] {
        let bound = world.wait_bound(name);
        assert_eq!(bound.node, FIRST);
        assert_eq!(fs::read_to_string(bound.data().join("file")).unwrap(), "first\n");
    }
    world.empty();
}

/// The scheduler does not know where a source is: it may send the pod to another node, and prefers it here.
#[test]
fn a_pod_that_was_sent_away_from_its_source_is_rescheduled() {
    let world = World::new("sent-away");
    source(&world);
    take_snapshot(&world);
    let elsewhere = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
        "weight": 1,
        "preference": {"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [SECOND]},
        ]},
    }]}});
    let sent = |name: &str, of: &Value| {
        world.make(CLAIMS, &copy(name, "orlop", "16Mi", of));
        world.make(PODS, &with(pod(name, name, "cat /data/file"), "/spec", "affinity", elsewhere.clone()));
    };
    sent("restored", &from_snapshot("snap"));
    sent("clone", &from_claim("source"));
    for name in ["restored", "clone"] {
        assert_eq!(world.output(name), "first\n");
        assert_eq!(world.wait_bound(name).node, FIRST);
    }
    world.empty();
}
