//! Capacity on two nodes. The pool `small` has 64 MiB on each node, so the steps share one test.

use serde_json::json;

use crate::scenarios::cluster::*;
use crate::scenarios::objects::*;

const MIB: i64 = 1 << 20;

/// The capacity that is published to the scheduler for a class on a node, in MiB.
fn published_capacity(test: &TestNamespace, class: &str, node: &str) -> Option<i64> {
    let all = test.other("orlop").list(CAPACITIES);
    let ours = all.iter().find(|one| {
        one["storageClassName"] == class && one["nodeTopology"]["matchLabels"]["dir.orlop.dev/node"] == node
    })?;
    let text = at(ours, "/capacity");
    let units = [("Ki", 1 << 10), ("Mi", MIB), ("Gi", 1 << 30)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .unwrap_or((text.as_str(), 1));
    Some(number.parse::<i64>().unwrap() * unit / MIB)
}

#[test]
fn full_nodes_are_avoided_and_a_refused_claim_goes_to_another_node() {
    let test = TestNamespace::new("full");
    test.wait("both nodes have space", || {
        let empty = |node| published_capacity(&test, "orlop-small", node).is_some_and(|free| free > 56);
        (empty(first()) && empty(second())).then_some(())
    });
    claims_at_the_same_time(&test);
    one_node_full(&test);
    both_nodes_full(&test);
}

/// The scheduler may choose one node for both pods, since it does not know about the volumes yet. One claim is then refused
/// and goes to the other node.
fn claims_at_the_same_time(test: &TestNamespace) {
    for name in ["one", "two"] {
        test.create(CLAIMS, &claim(name, "orlop-small", "40Mi"));
        let prefer_first = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "preference": {"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [first()]},
            ]},
        }]}});
        test.create(
            PODS,
            &with(pod(name, name, "echo hello > /data/file"), "/spec", "affinity", prefer_first),
        );
    }
    test.output("one");
    test.output("two");
    let mut nodes = [test.wait_bound("one").node, test.wait_bound("two").node];
    nodes.sort();
    assert_eq!(nodes, [first(), second()]);
    test.delete_all();
}

fn one_node_full(test: &TestNamespace) {
    test.create(CLAIMS, &claim("big", "orlop-small", "48Mi"));
    test.create(PODS, &on_node(pod("big", "big", "true"), first()));
    test.output("big");
    test.wait("the new capacity is published", || {
        published_capacity(test, "orlop-small", first()).is_some_and(|free| free < 32).then_some(())
    });
    for name in ["a", "b", "c"] {
        test.create(CLAIMS, &claim(name, "orlop-small", "17Mi"));
        test.create(PODS, &pod(name, name, "true"));
        test.output(name);
        assert_eq!(test.wait_bound(name).node, second(), "claim {name}");
    }
}

fn both_nodes_full(test: &TestNamespace) {
    test.wait("the new capacity is published", || {
        published_capacity(test, "orlop-small", second()).is_some_and(|free| free < 32).then_some(())
    });
    test.create(CLAIMS, &claim("none", "orlop-small", "32Mi"));
    test.create(PODS, &pod("none", "none", "true"));
    test.wait_unschedulable("none", "did not have enough free storage");
    // The pod is scheduled when there is space again.
    test.delete(PODS, "big");
    test.delete(CLAIMS, "big");
    test.output("none");
    assert_eq!(test.wait_bound("none").node, first());
    test.delete_all();
}
