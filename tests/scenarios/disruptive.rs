//! orlop, kubelets and nodes are stopped while pods use their volumes. These tests run alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::cluster::*;
use super::objects::*;

/// A script that appends increasing numbers to a file, syncs each one, and prints an error if a write fails.
const COUNT: &str =
    "i=0; while :; do i=$((i+1)); echo $i >> /data/count && sync /data/count || echo lost $i; done";

/// Pods that write continuously, one on each node, and their volumes and mounts, which must not change.
struct Writers<'t> {
    test: &'t TestNamespace,
    before: BTreeMap<String, (Bound, String)>,
}

impl<'t> Writers<'t> {
    fn start(test: &'t TestNamespace) -> Self {
        let names = [("writer-1", FIRST), ("writer-2", SECOND)];
        for (name, node) in names {
            test.create(CLAIMS, &claim(name, "orlop", "64Mi"));
            test.create(PODS, &on_node(pod(name, name, COUNT), node));
        }
        let mut before = BTreeMap::new();
        for (name, _) in names {
            test.wait_ready(name);
            let bound = test.wait_bound(name);
            before.insert(name.to_owned(), (bound.clone(), mounts(&bound)));
        }
        Self { test, before }
    }

    /// Checks that the same pods run with the same mounts, and that they write every number.
    fn check(&self) {
        for (name, (bound, mounts_before)) in &self.before {
            let pod = self.test.get(PODS, name);
            assert_eq!(at(&pod, "/status/phase"), "Running", "{name}");
            assert_eq!(at(&pod, "/status/containerStatuses/0/restartCount"), "0", "{name}");
            assert_eq!(*mounts_before, mounts(bound), "the mounts of {name}");
            let written = || fs::read_to_string(bound.data().join("count")).unwrap();
            let then = written().len();
            self.test.wait(&format!("{name} writes"), || (written().len() > then).then_some(()));
            let text = written();
            let complete = text.strip_suffix('\n').unwrap_or_else(|| text.rsplit_once('\n').unwrap().0);
            for (number, line) in complete.lines().enumerate() {
                assert_eq!(line, (number + 1).to_string(), "{name} skipped or repeated a number");
            }
            assert_eq!(self.test.log(name), "", "{name} reported a failed write");
        }
    }
}

/// The mounts of a volume on its node, with their ids: a new mount has another id.
fn mounts(bound: &Bound) -> String {
    let table = fs::read_to_string(root_of(&bound.node).join("proc/1/mountinfo")).unwrap();
    let ours = format!("/volumes/{}/data ", bound.handle.split_once('/').unwrap().1);
    table.lines().filter(|line| line.contains(&ours)).map(|line| line.to_owned() + "\n").collect()
}

/// The pods of orlop.
fn orlop_pods(test: &TestNamespace) -> Vec<Value> {
    test.other("orlop").list(PODS)
}

fn wait_until_orlop_is_ready(test: &TestNamespace) {
    test.wait("all pods of orlop are ready", || {
        let pods = orlop_pods(test);
        let set = test.other("orlop").get(DAEMONS, "orlop-node");
        let updated = set["status"]["updatedNumberScheduled"] == set["status"]["desiredNumberScheduled"]
            && set["status"]["observedGeneration"] == set["metadata"]["generation"];
        (updated && pods.len() >= 2 && pods.iter().all(is_ready)).then_some(())
    });
}

/// Checks that claims and pods can be created and deleted on both nodes.
fn check_orlop_works(test: &TestNamespace, name: &str) {
    for node in [FIRST, SECOND] {
        let name = format!("{name}-{node}");
        test.create(CLAIMS, &claim(&name, "orlop", "16Mi"));
        test.create(PODS, &on_node(pod(&name, &name, "echo hello > /data/file; cat /data/file"), node));
        assert_eq!(test.output(&name), "hello\n");
        let bound = test.wait_bound(&name);
        test.delete(PODS, &name);
        test.delete(CLAIMS, &name);
        bound.wait_deleted(test);
    }
}

#[test]
fn pods_keep_writing_during_restarts_and_an_upgrade() {
    let test = TestNamespace::new("writes-on");
    let writers = Writers::start(&test);

    for node in [FIRST, SECOND] {
        kill_orlop(node);
    }
    test.wait("orlop has ended", || (!orlop_pods(&test).iter().all(is_ready)).then_some(()));
    wait_until_orlop_is_ready(&test);
    writers.check();

    for pod in orlop_pods(&test) {
        test.other("orlop").delete(PODS, &name_of(&pod));
    }
    wait_until_orlop_is_ready(&test);
    writers.check();

    for node in [FIRST, SECOND] {
        kubelet(node, "restart");
    }
    check_orlop_works(&test, "after-kubelet");
    writers.check();

    let generation = test.other("orlop").get(DAEMONS, "orlop-node")["metadata"]["generation"].clone();
    script("orlop", &["--set-string", "node.podAnnotations.upgraded=yes"]);
    wait_until_orlop_is_ready(&test);
    assert_ne!(generation, test.other("orlop").get(DAEMONS, "orlop-node")["metadata"]["generation"]);
    writers.check();
    check_orlop_works(&test, "after-upgrade");
    writers.check();
    test.delete_all();
}

#[test]
fn a_kubelet_that_was_stopped_unmounts_and_works_again() {
    let test = TestNamespace::new("kubelet");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    test.create(PODS, &on_node(pod("user", "data", STAY), SECOND));
    test.wait_ready("user");
    let bound = test.wait_bound("data");
    kubelet(SECOND, "stop");
    // While the kubelet is stopped, its pod is deleted and orlop is killed.
    test.delete(PODS, "user");
    run_on(SECOND, &["sh", "-c", "kill -KILL $(pgrep -x orlop)"]);
    kubelet(SECOND, "start");
    test.wait("the pod is deleted", || test.find(PODS, "user").is_none().then_some(()));
    test.wait("the volume is unmounted", || mounts(&bound).is_empty().then_some(()));
    check_orlop_works(&test, "again");
    test.delete_all();
    bound.wait_deleted(&test);
}

#[test]
fn a_volume_deleted_while_orlop_is_down_is_removed_when_it_returns() {
    let test = TestNamespace::new("away");
    let names = ["a", "b", "c"];
    for name in names {
        test.create(CLAIMS, &claim(name, "orlop-now", "16Mi"));
    }
    let bound: Vec<_> = names.iter().map(|name| test.wait_bound(name)).collect();
    let orlop = test.other("orlop");
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"no": "node"}}}}});
    orlop.patch(DAEMONS, "orlop-node", &nowhere);
    test.wait("orlop is down", || {
        let pods = orlop.list(PODS);
        (!pods.iter().any(|pod| name_of(pod).starts_with("orlop-node"))).then_some(())
    });
    for name in names {
        test.delete_and_wait(CLAIMS, name);
    }
    for one in &bound {
        assert_eq!(at(&test.get(VOLUMES, &one.volume), "/status/phase"), "Released");
        assert!(one.data().is_dir());
    }
    let everywhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"no": null}}}}});
    orlop.patch(DAEMONS, "orlop-node", &everywhere);
    for one in &bound {
        one.wait_deleted(&test);
    }
    wait_until_orlop_is_ready(&test);
}

#[test]
fn helm_uninstall_keeps_data_and_running_pods() {
    let test = TestNamespace::new("uninstall");
    let writers = Writers::start(&test);
    let helm = |args: &[&str]| run(Command::new("helm").args(args).args(["-n", "orlop"]));
    let output = helm(&["uninstall", "orlop", "--wait", "--timeout", "90s"]);
    assert!(
        output.contains("orlop-volumes-of-default-stay-in-var-lib-orlop"),
        "no location of the data: {output}"
    );
    test.wait("orlop is deleted", || orlop_pods(&test).is_empty().then_some(()));
    assert!(test.other("orlop").list(CAPACITIES).is_empty(), "capacities are left");
    writers.check();
    script("orlop", &[]);
    writers.check();
    check_orlop_works(&test, "again");
    writers.check();
    test.delete_all();
}

#[test]
fn pods_keep_their_data_when_their_node_is_drained() {
    let test = TestNamespace::new("drained");
    let program = "echo $(hostname) >> /data/starts; ".to_owned() + STAY;
    let set = with(set("db", "orlop", "16Mi", &program), "/spec/template/spec", "nodeSelector", json!(null));
    test.create(SETS, &set);
    test.wait_ready("db-0");
    let bound = test.wait_bound("data-db-0");
    run(Command::new("kubectl").args([
        "drain",
        &bound.node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
    ]));
    test.wait("the volume is unmounted", || mounts(&bound).is_empty().then_some(()));
    test.wait_unschedulable("db-0", "unschedulable");
    assert!(bound.data().join("starts").exists());
    run(Command::new("kubectl").args(["uncordon", &bound.node]));
    test.wait_ready("db-0");
    assert_eq!(fs::read_to_string(bound.data().join("starts")).unwrap().lines().count(), 2);
    test.delete_all();
}

#[test]
fn volumes_survive_a_power_loss_of_their_node() {
    let test = TestNamespace::new("power");
    let program = "echo start >> /data/starts; sync; ".to_owned() + STAY;
    let second = json!({"kubernetes.io/hostname": SECOND});
    test.create(
        SETS,
        &with(set("db", "orlop", "16Mi", &program), "/spec/template/spec", "nodeSelector", second),
    );
    test.wait_ready("db-0");
    let bound = test.wait_bound("data-db-0");
    run_on(SECOND, &["--kill"]);
    run_on(SECOND, &["--boot"]);
    test.wait("the pod has started again", || {
        let starts = fs::read_to_string(bound.data().join("starts")).unwrap_or_default();
        (starts.lines().count() >= 2 && is_ready(&test.get(PODS, "db-0"))).then_some(())
    });
    assert!(Path::new(&bound.directory()).join("volume.json").exists());
    // The tmpfs is missing after the boot: its pool is unavailable until it is mounted.
    test.create(CLAIMS, &claim("small", "orlop-small", "16Mi"));
    test.create(PODS, &on_node(pod("small", "small", "true"), SECOND));
    test.wait_unschedulable("small", "enough free storage");
    script("orlop", &[]);
    test.output("small");
    test.delete_all();
    wait_until_orlop_is_ready(&test);
}
