//! orlop is stopped or uninstalled, or a node is drained, while pods use their volumes. These tests run alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::cluster::*;
use super::nodes::reachable_root_of;
use super::objects::*;

/// A script that appends increasing numbers to a file, syncs each one, and prints an error if a write fails.
const COUNT: &str =
    "i=0; while :; do i=$((i+1)); echo $i >> /data/count && sync /data/count || echo lost $i; done";

/// Pods that write continuously, one on each node, and their volumes and mounts, which must not change.
pub(crate) struct Writers<'t> {
    test: &'t TestNamespace,
    before: BTreeMap<String, (Bound, Option<String>)>,
}

impl<'t> Writers<'t> {
    pub(crate) fn start(test: &'t TestNamespace) -> Self {
        let names = [("writer-1", first()), ("writer-2", second())];
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
    pub(crate) fn check(&self) {
        for (name, (bound, mounts_before)) in &self.before {
            let pod = self.test.get(PODS, name);
            assert_eq!(at(&pod, "/status/phase"), "Running", "{name}");
            assert_eq!(at(&pod, "/status/containerStatuses/0/restartCount"), "0", "{name}");
            assert_eq!(*mounts_before, mounts(bound), "the mounts of {name}");
            let written = || self.test.exec(name, &["cat", "/data/count"]);
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

/// The mounts of a volume on its node, with their ids: a new mount has another id. `None` if the node is not a process of
/// this machine.
pub(crate) fn mounts(bound: &Bound) -> Option<String> {
    let table = fs::read_to_string(reachable_root_of(&bound.node)?.join("proc/1/mountinfo")).unwrap();
    let ours = format!("/volumes/{}/data ", bound.handle.split_once('/').unwrap().1);
    Some(table.lines().filter(|line| line.contains(&ours)).map(|line| line.to_owned() + "\n").collect())
}

/// The pods of orlop.
pub(crate) fn orlop_pods(test: &TestNamespace) -> Vec<Value> {
    test.other("orlop").list(PODS)
}

pub(crate) fn wait_until_orlop_is_ready(test: &TestNamespace) {
    test.wait("all pods of orlop are ready", || {
        let pods = orlop_pods(test);
        let set = test.other("orlop").get(DAEMONS, "orlop-node");
        let updated = set["status"]["updatedNumberScheduled"] == set["status"]["desiredNumberScheduled"]
            && set["status"]["observedGeneration"] == set["metadata"]["generation"];
        (updated && pods.len() >= 2 && pods.iter().all(is_ready)).then_some(())
    });
}

/// Checks that claims and pods can be created and deleted on both nodes.
pub(crate) fn check_orlop_works(test: &TestNamespace, name: &str) {
    for node in [first(), second()] {
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
    }
    let everywhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"no": null}}}}});
    orlop.patch(DAEMONS, "orlop-node", &everywhere);
    for one in &bound {
        one.wait_deleted(&test);
    }
    wait_until_orlop_is_ready(&test);
}

/// Runs Helm in the namespace of orlop; returns its output.
fn helm(arguments: &[&str]) -> String {
    run(Command::new("helm").args(arguments).args(["-n", "orlop"]))
}

/// Uninstalls orlop. Dropping the result installs it again with the same values, also if the test fails.
struct Uninstalled {
    values: tempfile::NamedTempFile,
}

impl Uninstalled {
    fn new(test: &TestNamespace) -> Self {
        let values = tempfile::NamedTempFile::new().unwrap();
        fs::write(values.path(), helm(&["get", "values", "orlop", "-o", "yaml"])).unwrap();
        let output = helm(&["uninstall", "orlop", "--wait", "--timeout", "3m"]);
        let uninstalled = Self { values };
        assert!(output.contains("-stay-in-"), "no location of the data: {output}");
        test.wait("orlop is deleted", || orlop_pods(test).is_empty().then_some(()));
        assert!(test.other("orlop").list(CAPACITIES).is_empty(), "capacities are left");
        uninstalled
    }
}

impl Drop for Uninstalled {
    fn drop(&mut self) {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/orlop");
        let (chart, values) = (chart.to_str().unwrap(), self.values.path().to_str().unwrap());
        helm(&["install", "orlop", chart, "-f", values, "--wait", "--timeout", "3m"]);
    }
}

#[test]
fn helm_uninstall_keeps_data_and_running_pods() {
    let test = TestNamespace::new("uninstall");
    let writers = Writers::start(&test);
    let uninstalled = Uninstalled::new(&test);
    writers.check();
    drop(uninstalled);
    writers.check();
    check_orlop_works(&test, "again");
    writers.check();
    test.delete_all();
}

#[test]
fn pods_that_restart_while_orlop_is_uninstalled_run_after_the_next_installation() {
    let test = TestNamespace::new("reinstall");
    test.create(SETS, &set("db", "orlop", "16Mi", STAY));
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    test.create(PODS, &pod("old", "data", STAY));
    for pod in ["old", "db-0"] {
        test.wait_ready(pod);
    }
    let uid_before = at(&test.get(PODS, "db-0"), "/metadata/uid");

    let uninstalled = Uninstalled::new(&test);
    assert!(test.find(DRIVERS, DRIVER).is_some(), "the CSIDriver is deleted");
    test.delete(PODS, "db-0");
    test.delete(PODS, "old");
    test.create(PODS, &pod("new", "data", STAY));
    test.event("new", "FailedMount", "not found in the list of registered CSI drivers");

    drop(uninstalled);
    test.wait_ready("new");
    test.wait("the pod of the set has restarted", || {
        let pod = test.find(PODS, "db-0").filter(is_ready)?;
        (at(&pod, "/metadata/uid") != uid_before).then_some(())
    });
    test.wait("the old pod is deleted", || test.find(PODS, "old").is_none().then_some(()));
    let volumes = ["data", "data-db-0"].map(|claim| test.wait_bound(claim).volume);
    let attached: Vec<_> =
        test.list(ATTACHMENTS).iter().map(|one| at(one, "/spec/source/persistentVolumeName")).collect();
    assert!(
        !volumes.iter().any(|volume| attached.contains(volume)),
        "no VolumeAttachment is made for the driver: {attached:?}"
    );
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
    let is_unmounted = || mounts(&bound).is_none_or(|mounts| mounts.is_empty());
    test.wait("the volume is unmounted", || is_unmounted().then_some(()));
    test.wait_unschedulable("db-0", "unschedulable");
    run(Command::new("kubectl").args(["uncordon", &bound.node]));
    test.wait_ready("db-0");
    assert_eq!(test.exec("db-0", &["cat", "/data/starts"]).lines().count(), 2);
    test.delete_all();
}
