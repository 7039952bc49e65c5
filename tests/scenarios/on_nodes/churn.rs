//! Many volumes, created and deleted in any order while orlop is killed repeatedly. Runs alone.

use std::collections::BTreeSet;
use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scenarios::cluster::*;
use crate::scenarios::nodes::*;
use crate::scenarios::objects::*;

mod disruptive {
    use super::*;

    /// The number of volumes, and the number of claims that exist at the same time.
    const ALL: usize = 200;
    const AT_ONCE: usize = 24;

    /// The volumes, drafts and trash of a pool.
    fn in_pool(node: &str) -> BTreeSet<String> {
        let pool = pool_on(node, "default");
        let mut found = BTreeSet::new();
        for directory in ["volumes", "work", "trash"] {
            let Ok(entries) = fs::read_dir(pool.join(directory)) else { continue };
            for entry in entries.flatten() {
                let record = fs::read_to_string(entry.path().join("volume.json")).unwrap_or_default();
                // Volumes that their class keeps in the trash are expected.
                if !record.contains("\"trash\"") {
                    found.insert(format!("{node}/{directory}/{}", entry.file_name().display()));
                }
            }
        }
        found
    }

    fn in_all_pools() -> BTreeSet<String> {
        in_pool(first()).into_iter().chain(in_pool(second())).collect()
    }

    /// The mounts of volumes on a node.
    fn mounts(node: &str) -> Vec<String> {
        let table = fs::read_to_string(root_of(node).join("proc/1/mountinfo")).unwrap();
        table.lines().filter(|line| line.contains("/volumes/")).map(str::to_owned).collect()
    }

    fn capacities(test: &TestNamespace) -> BTreeSet<String> {
        let all = test.other("orlop").list(CAPACITIES);
        all.iter()
            .map(|one| format!("{} {}", one["nodeTopology"]["matchLabels"], one["storageClassName"]))
            .collect()
    }

    /// A pod that uses a claim. If the kubelet ends while it starts the container, the container counts as failed, so the
    /// pod needs a restart policy.
    fn user_pod(name: &str) -> Value {
        let script = "echo hello > /data/file; cat /data/file";
        with(pod(name, name, script), "/spec", "restartPolicy", "OnFailure".into())
    }

    /// Reports whether the program of the pod ended with an error.
    fn failed(pod: &Value) -> bool {
        ["state", "lastState"]
            .iter()
            .any(|when| at(pod, &format!("/status/containerStatuses/0/{when}/terminated/reason")) == "Error")
    }

    #[test]
    fn volumes_are_created_and_deleted_while_orlop_is_killed_repeatedly() {
        let test = TestNamespace::new("churn");
        let before = (in_all_pools(), mounts(first()).len(), mounts(second()).len(), capacities(&test));
        let begin = Instant::now();
        std::thread::scope(|scope| {
            // Dropping the sender, also by a panic, ends the thread.
            let (_running, stopped) = channel::<()>();
            scope.spawn(move || disrupt(&stopped));
            churn(&test);
        });
        eprintln!("{ALL} volumes in {:.0} s", begin.elapsed().as_secs_f64());
        test.wait_long("all volumes of the test are deleted", || {
            let left = test.list(VOLUMES);
            let ours = left.iter().filter(|volume| at(volume, "/spec/claimRef/namespace") == "churn").count();
            (ours == 0).then_some(())
        });
        test.wait_long("pools, mounts and capacities are as before", || {
            let now = (in_all_pools(), mounts(first()).len(), mounts(second()).len(), capacities(&test));
            (now == before).then_some(())
        });
    }

    /// Kills orlop on each node in turn, and restarts each kubelet once.
    fn disrupt(stopped: &Receiver<()>) {
        let mut kubelets = vec![second(), first()];
        let mut round = 0;
        while stopped.recv_timeout(Duration::from_secs(5)) == Err(RecvTimeoutError::Timeout) {
            kill_orlop([first(), second()][round % 2]);
            round += 1;
            if round % 4 == 0
                && let Some(node) = kubelets.pop()
            {
                kubelet(node, "restart");
            }
        }
        assert!(round > 4, "orlop was killed {round} times only");
    }

    /// Creates the volumes, with a pod or without and with either binding mode, and deletes them in random order.
    fn churn(test: &TestNamespace) {
        let mut next = 0;
        let mut present: Vec<usize> = Vec::new();
        let mut seed = 0x5eed_u64;
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        let deadline = Instant::now() + Duration::from_secs(600);
        while next < ALL || !present.is_empty() {
            assert!(Instant::now() < deadline, "still {present:?} after 10 minutes");
            while next < ALL && present.len() < AT_ONCE {
                let name = format!("v{next}");
                let class = if next % 2 == 0 { "orlop" } else { "orlop-now" };
                test.create(CLAIMS, &claim(&name, class, "1Mi"));
                if next % 4 != 3 {
                    test.create(PODS, &user_pod(&name));
                }
                present.push(next);
                next += 1;
            }
            let mut order = present.clone();
            for at in (1..order.len()).rev() {
                order.swap(at, random(at + 1));
            }
            let (claims, pods) = (test.list(CLAIMS), test.list(PODS));
            let phase = |all: &[Value], name: &str| {
                all.iter().find(|one| name_of(one) == name).map(|one| at(one, "/status/phase"))
            };
            if let Some(pod) = pods.iter().find(|pod| failed(pod)) {
                panic!("pod {}: {}, log: {}", name_of(pod), pod["status"], test.log(&name_of(pod)));
            }
            for number in order {
                let name = format!("v{number}");
                let (claim, pod) = (phase(&claims, &name), phase(&pods, &name));
                let used = number % 4 == 3 || pod.is_none() || pod.as_deref() == Some("Succeeded");
                match claim.as_deref() {
                    None => present.retain(|one| *one != number),
                    Some("Bound") if used => {
                        test.delete(PODS, &name);
                        test.delete(CLAIMS, &name);
                    }
                    Some(_) => {}
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
