//! FsStats on two nodes. Both pools `small` have 64 MiB, so these tests follow each other in one.

use serde_json::json;

use crate::objects::*;
use crate::world::*;

const MIB: i64 = 1 << 20;

/// What the scheduler believes to be free for a class on a node, in MiB.
fn free(world: &World, class: &str, node: &str) -> Option<i64> {
    let all = world.beside("orlop").list(CAPACITIES);
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
fn a_full_node_is_avoided_and_what_was_promised_twice_goes_elsewhere() {
    let world = World::new("full");
    world.wait("both nodes have room", || {
        let empty = |node| free(&world, "orlop-small", node).is_some_and(|free| free > 56);
        (empty(FIRST) && empty(SECOND)).then_some(())
    });
    at_once(&world);
    one_full(&world);
    all_full(&world);
}

/// The scheduler may send both to one node, as it knows of neither's volume yet; one of them has to go on.
fn at_once(world: &World) {
    for name in ["one", "two"] {
        world.make(CLAIMS, &claim(name, "orlop-small", "40Mi"));
        let elsewhere = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "preference": {"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [FIRST]},
            ]},
        }]}});
        world.make(PODS, &with(pod(name, name, "echo hello > /data/file"), "/spec", "affinity", elsewhere));
    }
    world.output("one");
    world.output("two");
    let mut nodes = [world.wait_bound("one").node, world.wait_bound("two").node];
    nodes.sort();
    assert_eq!(nodes, [FIRST, SECOND]);
    world.empty();
}

fn one_full(world: &World) {
    world.make(CLAIMS, &claim("big", "orlop-small", "48Mi"));
    world.make(PODS, &on_node(pod("big", "big", "true"), FIRST));
    world.output("big");
    world.wait("the scheduler knows", || {
        free(world, "orlop-small", FIRST).is_some_and(|free| free < 32).then_some(())
    });
    for name in ["a", "b", "c"] {
        world.make(CLAIMS, &claim(name, "orlop-small", "17Mi"));
        world.make(PODS, &pod(name, name, "true"));
        world.output(name);
        assert_eq!(world.wait_bound(name).node, SECOND, "claim {name}");
    }
}

fn all_full(world: &World) {
    world.wait("the scheduler knows", || {
        free(world, "orlop-small", SECOND).is_some_and(|free| free < 32).then_some(())
    });
    world.make(CLAIMS, &claim("none", "orlop-small", "32Mi"));
    world.make(PODS, &pod("none", "none", "true"));
    world.wait_unschedulable("none", "did not have enough free storage");
    // FsStats is made, and the pod goes on.
    world.delete(PODS, "big");
    world.delete(CLAIMS, "big");
    world.output("none");
    assert_eq!(world.wait_bound("none").node, FIRST);
    world.empty();
}
