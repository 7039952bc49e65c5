//! orlop, kubelets and nodes are taken away while pods use their volumes. These tests run alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::objects::*;
use crate::world::*;

/// Counts up into a file, a line each time, written through to the disk; and says if that ever fails.
const COUNT: &str =
    "i=0; while :; do i=$((i+1)); echo $i >> /data/count && sync /data/count || echo lost $i; done";

/// Pods that write all the time, on both nodes, and what must not change of them.
struct Writers<'w> {
    world: &'w World,
    before: BTreeMap<String, (Bound, String)>,
}

impl<'w> Writers<'w> {
    fn start(world: &'w World) -> Self {
        let names = [("writer-1", FIRST), ("writer-2", SECOND)];
        for (name, node) in names {
            world.make(CLAIMS, &claim(name, "orlop", "64Mi"));
            world.make(PODS, &on_node(pod(name, name, COUNT), node));
        }
        let mut before = BTreeMap::new();
        for (name, _) in names {
            world.wait_ready(name);
            let bound = world.wait_bound(name);
            before.insert(name.to_owned(), (bound.clone(), mounts(&bound)));
        }
        Self { world, before }
    }

    /// Nothing was lost: the pods are those they were, with the mounts they had, and they still write, every number.
    fn check(&self) {
        for (name, (bound, mounts_before)) in &self.before {
            let pod = self.world.get(PODS, name);
            assert_eq!(at(&pod, "/status/phase"), "Running", "{name}");
            assert_eq!(at(&pod, "/status/containerStatuses/0/restartCount"), "0", "{name}");
            assert_eq!(*mounts_before, mounts(bound), "the mounts of {name}");
            let written = || fs::read_to_string(bound.data().join("count")).unwrap();
            let then = written().len();
            self.world.wait(&format!("{name} goes on writing"), || (written().len() > then).then_some(()));
            let text = written();
            let complete = text.strip_suffix('\n').unwrap_or_else(|| text.rsplit_once('\n').unwrap().0);
            for (number, line) in complete.lines().enumerate() {
                assert_eq!(line, (number + 1).to_string(), "{name} wrote every number once");
            }
            assert_eq!(self.world.log(name), "", "{name} said that a write failed");
        }
    }
}

/// The mounts of a volume in its node, with their ids: a mount that was made anew has another.
fn mounts(bound: &Bound) -> String {
    let table = fs::read_to_string(root_of(&bound.node).join("proc/1/mountinfo")).unwrap();
    let ours = format!("/volumes/{}/data ", bound.handle.split_once('/').unwrap().1);
    table.lines().filter(|line| line.contains(&ours)).map(|line| line.to_owned() + "\n").collect()
}

/// The pods of orlop, by name.
fn orlop_pods(world: &World) -> Vec<Value> {
    world.beside("orlop").list(PODS)
}

fn all_ready(world: &World) {
    world.wait("all of orlop is ready", || {
        let pods = orlop_pods(world);
        let set = world.beside("orlop").get(DAEMONS, "orlop-node");
        let updated = set["status"]["updatedNumberScheduled"] == set["status"]["desiredNumberScheduled"]
            && set["status"]["observedGeneration"] == set["metadata"]["generation"];
        (updated && pods.len() >= 2 && pods.iter().all(is_ready)).then_some(())
    });
}

/// A claim and a pod, from nothing to nothing: all is well again.
fn works(world: &World, name: &str) {
    for node in [FIRST, SECOND] {
        let name = format!("{name}-{node}");
        world.make(CLAIMS, &claim(&name, "orlop", "16Mi"));
        world.make(PODS, &on_node(pod(&name, &name, "echo hello > /data/file; cat /data/file"), node));
        assert_eq!(world.output(&name), "hello\n");
        let bound = world.wait_bound(&name);
        world.delete(PODS, &name);
        world.delete(CLAIMS, &name);
        bound.wait_gone(world);
    }
}

#[test]
fn a_pod_writes_on_while_orlop_and_the_kubelet_restart_and_orlop_is_upgraded() {
    let world = World::new("writes-on");
    let writers = Writers::start(&world);

    for node in [FIRST, SECOND] {
        kill_orlop(node);
    }
    world.wait("orlop ends", || (!orlop_pods(&world).iter().all(is_ready)).then_some(()));
    all_ready(&world);
    writers.check();

    for pod in orlop_pods(&world) {
        world.beside("orlop").delete(PODS, &name_of(&pod));
    }
    all_ready(&world);
    writers.check();

    for node in [FIRST, SECOND] {
        kubelet(node, "restart");
    }
    works(&world, "after-kubelet");
    writers.check();

    let generation = world.beside("orlop").get(DAEMONS, "orlop-node")["metadata"]["generation"].clone();
    script("orlop", &["--set-string", "node.podAnnotations.upgraded=yes"]);
    all_ready(&world);
    assert_ne!(generation, world.beside("orlop").get(DAEMONS, "orlop-node")["metadata"]["generation"]);
    writers.check();
    works(&world, "after-upgrade");
    writers.check();
    world.empty();
}

#[test]
fn a_kubelet_that_was_away_finds_orlop_and_its_pods_again() {
    let world = World::new("kubelet");
    world.make(CLAIMS, &claim("data", "orlop", "16Mi"));
    world.make(PODS, &on_node(pod("user", "data", STAY), SECOND));
    world.wait_ready("user");
    let bound = world.wait_bound("data");
    kubelet(SECOND, "stop");
    // Its pods are deleted and orlop is killed while it is away.
    world.delete(PODS, "user");
    on(SECOND, &["sh", "-c", "kill -KILL $(pgrep -x orlop)"]);
    kubelet(SECOND, "start");
    world.wait("the pod is gone", || world.find(PODS, "user").is_none().then_some(()));
    world.wait("its mount is gone", || mounts(&bound).is_empty().then_some(()));
    works(&world, "again");
    world.empty();
    bound.wait_gone(&world);
}

#[test]
fn a_volume_deleted_while_orlop_is_away_goes_when_it_is_back() {
    let world = World::new("away");
    let names = ["a", "b", "c"];
    for name in names {
        world.make(CLAIMS, &claim(name, "orlop-now", "16Mi"));
    }
    let bound: Vec<_> = names.iter().map(|name| world.wait_bound(name)).collect();
    let orlop = world.beside("orlop");
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"no": "node"}}}}});
    orlop.patch(DAEMONS, "orlop-node", &nowhere);
    world.wait("orlop is away", || {
        let pods = orlop.list(PODS);
        (!pods.iter().any(|pod| name_of(pod).starts_with("orlop-node"))).then_some(())
    });
    for name in names {
        world.delete_and_wait(CLAIMS, name);
    }
    for one in &bound {
        assert_eq!(at(&world.get(VOLUMES, &one.volume), "/status/phase"), "Released");
        assert!(one.data().is_dir());
    }
    let everywhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"no": null}}}}});
    orlop.patch(DAEMONS, "orlop-node", &everywhere);
    for one in &bound {
        one.wait_gone(&world);
    }
    all_ready(&world);
}

#[test]
fn helm_uninstall_leaves_data_and_running_pods_alone() {
    let world = World::new("uninstall");
    let writers = Writers::start(&world);
    let helm = |args: &[&str]| run(Command::new("helm").args(args).args(["-n", "orlop"]));
    let said = helm(&["uninstall", "orlop", "--wait", "--timeout", "90s"]);
    assert!(said.contains("orlop-volumes-of-default-stay-in-var-lib-orlop"), "where the data is: {said}");
    world.wait("orlop is gone", || orlop_pods(&world).is_empty().then_some(()));
    assert!(world.beside("orlop").list(CAPACITIES).is_empty(), "the scheduler believes nothing any more");
    writers.check();
    script("orlop", &[]);
    writers.check();
    works(&world, "again");
    writers.check();
    world.empty();
}

#[test]
fn a_drained_node_gives_its_pods_back_with_their_data() {
    let world = World::new("drained");
    let script = "echo $(hostname) >> /data/starts; ".to_owned() + STAY;
    let set = with(set("db", "orlop", "16Mi", &script), "/spec/template/spec", "nodeSelector", json!(null));
    world.make(SETS, &set);
    world.wait_ready("db-0");
    let bound = world.wait_bound("data-db-0");
    run(Command::new("kubectl").args([
        "drain",
        &bound.node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
    ]));
    world.wait("the volume is unmounted", || mounts(&bound).is_empty().then_some(()));
    world.wait_unschedulable("db-0", "unschedulable");
    assert!(bound.data().join("starts").exists());
    run(Command::new("kubectl").args(["uncordon", &bound.node]));
    world.wait_ready("db-0");
    assert_eq!(fs::read_to_string(bound.data().join("starts")).unwrap().lines().count(), 2);
    world.empty();
}

#[test]
fn a_node_that_lost_its_power_comes_back_with_its_volumes() {
    let world = World::new("power");
    let script = "echo start >> /data/starts; sync; ".to_owned() + STAY;
    let second = json!({"kubernetes.io/hostname": SECOND});
    world.make(
        SETS,
        &with(set("db", "orlop", "16Mi", &script), "/spec/template/spec", "nodeSelector", second),
    );
    world.wait_ready("db-0");
    let bound = world.wait_bound("data-db-0");
    on(SECOND, &["--kill"]);
    on(SECOND, &["--boot"]);
    world.wait("the pod has started again", || {
        let starts = fs::read_to_string(bound.data().join("starts")).unwrap_or_default();
        (starts.lines().count() >= 2 && is_ready(&world.get(PODS, "db-0"))).then_some(())
    });
    assert!(Path::new(&bound.folder()).join("volume.json").exists());
    // The tmpfs did not come back: its pool is unavailable and says so, until it is mounted.
    world.make(CLAIMS, &claim("small", "orlop-small", "16Mi"));
    world.make(PODS, &on_node(pod("small", "small", "true"), SECOND));
    world.wait_unschedulable("small", "enough free storage");
    crate::world::script("orlop", &[]);
    world.output("small");
    world.empty();
    all_ready(&world);
}
