//! orlop, kubelets and nodes are stopped while pods use their volumes. These tests run alone.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::scenarios::cluster::*;
use crate::scenarios::disruptive::*;
use crate::scenarios::nodes::*;
use crate::scenarios::objects::*;

#[test]
fn pods_keep_writing_during_restarts_and_an_upgrade() {
    let test = TestNamespace::new("writes-on");
    let writers = Writers::start(&test);

    for node in [first(), second()] {
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

    for node in [first(), second()] {
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
    test.create(PODS, &on_node(pod("user", "data", STAY), second()));
    test.wait_ready("user");
    let bound = test.wait_bound("data");
    kubelet(second(), "stop");
    // While the kubelet is stopped, its pod is deleted and orlop is killed.
    test.delete(PODS, "user");
    run_on(second(), &["sh", "-c", "kill -KILL $(pgrep -x orlop)"]);
    kubelet(second(), "start");
    test.wait("the pod is deleted", || test.find(PODS, "user").is_none().then_some(()));
    test.wait("the volume is unmounted", || (mounts(&bound).unwrap() == "").then_some(()));
    check_orlop_works(&test, "again");
    test.delete_all();
    bound.wait_deleted(&test);
}

#[test]
fn volumes_survive_a_power_loss_of_their_node() {
    let test = TestNamespace::new("power");
    let program = "echo start >> /data/starts; sync; ".to_owned() + STAY;
    let on_second = json!({"kubernetes.io/hostname": second()});
    test.create(
        SETS,
        &with(set("db", "orlop", "16Mi", &program), "/spec/template/spec", "nodeSelector", on_second),
    );
    test.wait_ready("db-0");
    let bound = test.wait_bound("data-db-0");
    run_on(second(), &["--kill"]);
    run_on(second(), &["--boot"]);
    test.wait("the pod has started again", || {
        let starts = fs::read_to_string(bound.data().join("starts")).unwrap_or_default();
        (starts.lines().count() >= 2 && is_ready(&test.get(PODS, "db-0"))).then_some(())
    });
    assert!(Path::new(&bound.directory()).join("volume.json").exists());
    // The tmpfs is missing after the boot: its pool is unavailable until it is mounted.
    test.create(CLAIMS, &claim("small", "orlop-small", "16Mi"));
    test.create(PODS, &on_node(pod("small", "small", "true"), second()));
    test.wait_unschedulable("small", "enough free storage");
    script("orlop", &[]);
    test.output("small");
    test.delete_all();
    wait_until_orlop_is_ready(&test);
}
