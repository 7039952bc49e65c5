//! Snapshots, restores and clones: they are on the node of their source.

use serde_json::{Value, json};

use super::cluster::*;
use super::objects::*;

/// Creates a claim on the first node, with a file in it.
fn create_source(test: &TestNamespace) -> Bound {
    test.create(CLAIMS, &claim("source", "orlop", "16Mi"));
    test.create(PODS, &on_node(pod("writer", "source", "echo first > /data/file; sync"), first()));
    test.output("writer");
    test.wait_bound("source")
}

fn take_snapshot(test: &TestNamespace) {
    test.create(SNAPSHOTS, &snapshot("snap", "source"));
    test.wait("the snapshot is ready", || {
        (test.get(SNAPSHOTS, "snap")["status"]["readyToUse"] == true).then_some(())
    });
}

#[test]
fn a_snapshot_is_independent_of_its_source_and_outlives_it() {
    let test = TestNamespace::new("snapshot");
    let source = create_source(&test);
    take_snapshot(&test);
    test.create(PODS, &pod("overwriter", "source", "echo second > /data/file"));
    test.output("overwriter");
    test.delete(PODS, "overwriter");
    test.delete(PODS, "writer");
    test.delete(CLAIMS, "source");
    source.wait_deleted(&test);

    test.create(CLAIMS, &copy("restored", "orlop", "16Mi", &from_snapshot("snap")));
    test.create(
        PODS,
        &on_node(pod("reader", "restored", "cat /data/file; echo third > /data/file"), first()),
    );
    assert_eq!(test.output("reader"), "first\n");
    let restored = test.wait_bound("restored");
    assert_eq!(restored.node, first());
    test.delete_all();
    restored.wait_deleted(&test);
}

#[test]
fn a_clone_is_independent_of_its_source() {
    let test = TestNamespace::new("clone");
    create_source(&test);
    test.create(CLAIMS, &copy("clone", "orlop", "32Mi", &from_claim("source")));
    test.create(PODS, &on_node(pod("reader", "clone", "cat /data/file; echo other > /data/file"), first()));
    assert_eq!(test.output("reader"), "first\n");
    test.create(PODS, &pod("source-reader", "source", "cat /data/file"));
    assert_eq!(test.output("source-reader"), "first\n");
    assert_eq!(test.inspect(&test.wait_bound("clone"))["size"], 32 << 20);
    test.delete_all();
}

#[test]
fn an_immediate_copy_is_on_the_node_of_its_source() {
    let test = TestNamespace::new("copy-now");
    create_source(&test);
    take_snapshot(&test);
    test.create(CLAIMS, &copy("restored", "orlop-now", "16Mi", &from_snapshot("snap")));
    test.create(CLAIMS, &copy("clone", "orlop-now", "16Mi", &from_claim("source")));
    for name in ["restored", "clone"] {
        assert_eq!(test.wait_bound(name).node, first());
        test.create(PODS, &pod(name, name, "cat /data/file"));
        assert_eq!(test.output(name), "first\n");
    }
    test.delete_all();
}

/// The scheduler does not know where a source is. These pods prefer the other node, so it is chosen first.
#[test]
fn a_pod_scheduled_away_from_its_source_is_rescheduled() {
    let test = TestNamespace::new("sent-away");
    create_source(&test);
    take_snapshot(&test);
    let elsewhere = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
        "weight": 1,
        "preference": {"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [second()]},
        ]},
    }]}});
    let create_pod = |name: &str, of: &Value| {
        test.create(CLAIMS, &copy(name, "orlop", "16Mi", of));
        test.create(PODS, &with(pod(name, name, "cat /data/file"), "/spec", "affinity", elsewhere.clone()));
    };
    create_pod("restored", &from_snapshot("snap"));
    create_pod("clone", &from_claim("source"));
    for name in ["restored", "clone"] {
        assert_eq!(test.output(name), "first\n");
        assert_eq!(test.wait_bound(name).node, first());
    }
    test.delete_all();
}
