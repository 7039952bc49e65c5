//! Many volumes, in any order, while orlop is killed again and again. Runs alone.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::objects::*;
use crate::stop::Stop;
use crate::world::*;

mod disturbing {
    use super::*;

    /// How many volumes, and how many pods and claims at once.
    const ALL: usize = 200;
    const AT_ONCE: usize = 24;

    /// What is in a pool: volumes and what is half made or half gone.
    fn in_pool(node: &str) -> BTreeSet<String> {
        let pool = pool_on(node, "default");
        let mut found = BTreeSet::new();
        for shelf in ["volumes", "work", "trash"] {
            let Ok(entries) = fs::read_dir(pool.join(shelf)) else { continue };
            for entry in entries.flatten() {
                let record = fs::read_to_string(entry.path().join("volume.json")).unwrap_or_default();
                // What a class keeps on purpose is not left over.
                if !record.contains("\"trash\"") {
                    found.insert(format!("{node}/{shelf}/{}", entry.file_name().display()));
                }
            }
        }
        found
    }

    fn everywhere() -> BTreeSet<String> {
        in_pool(FIRST).into_iter().chain(in_pool(SECOND)).collect()
    }

    /// Mounts of volumes in a node.
    fn mounts(node: &str) -> Vec<String> {
        let table = fs::read_to_string(root_of(node).join("proc/1/mountinfo")).unwrap();
        table.lines().filter(|line| line.contains("/volumes/")).map(str::to_owned).collect()
    }

    fn capacities(world: &World) -> BTreeSet<String> {
        let all = world.beside("orlop").list(CAPACITIES);
        all.iter()
            .map(|one| format!("{} {}", one["nodeTopology"]["matchLabels"], one["storageClassName"]))
            .collect()
    }

    /// A container that a kubelet was just starting when it ended counts as failed: only a pod that may start it
    /// again lives on.
    fn user(name: &str) -> Value {
        let script = "echo hello > /data/file; cat /data/file";
        with(pod(name, name, script), "/spec", "restartPolicy", "OnFailure".into())
    }

    /// Whether its program itself ended with an error.
    fn failed(pod: &Value) -> bool {
        ["state", "lastState"]
            .iter()
            .any(|when| at(pod, &format!("/status/containerStatuses/0/{when}/terminated/reason")) == "Error")
    }

    #[test]
    fn two_hundred_volumes_come_and_go_while_orlop_is_killed_every_five_seconds() {
        let world = World::new("churn");
        let before = (everywhere(), mounts(FIRST).len(), mounts(SECOND).len(), capacities(&world));
        let begin = Instant::now();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&done);
            scope.spawn(|| trouble(&done));
            churn(&world);
        });
        eprintln!("{ALL} volumes in {:.0} s", begin.elapsed().as_secs_f64());
        world.wait_long("no volume of the test is left", || {
            let left = world.list(VOLUMES);
            let ours = left.iter().filter(|volume| at(volume, "/spec/claimRef/namespace") == "churn").count();
            (ours == 0).then_some(())
        });
        world.wait_long("pools, mounts and capacities are as they were", || {
            let now = (everywhere(), mounts(FIRST).len(), mounts(SECOND).len(), capacities(&world));
            (now == before).then_some(())
        });
    }

    /// orlop is killed on each node in turn, the kubelets restart once each.
    fn trouble(done: &AtomicBool) {
        let mut kubelets = vec![SECOND, FIRST];
        let mut round = 0;
        while !done.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(5));
            kill_orlop([FIRST, SECOND][round % 2]);
            round += 1;
            if round % 4 == 0
                && let Some(node) = kubelets.pop()
            {
                kubelet(node, "restart");
            }
        }
        assert!(round > 4, "orlop was killed {round} times only");
    }

    /// What a volume goes through, by its number: bound at once or by its pod, with a pod or without, all in another
    /// order than they began in.
    fn churn(world: &World) {
        let mut next = 0;
        let mut here: Vec<usize> = Vec::new();
        let mut seed = 0x5eed_u64;
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        let until = Instant::now() + Duration::from_secs(600);
        while next < ALL || !here.is_empty() {
            assert!(Instant::now() < until, "still {here:?} after 10 minutes");
            while next < ALL && here.len() < AT_ONCE {
                let name = format!("v{next}");
                let class = if next % 2 == 0 { "orlop" } else { "orlop-now" };
                world.make(CLAIMS, &claim(&name, class, "1Mi"));
                if next % 4 != 3 {
                    world.make(PODS, &user(&name));
                }
                here.push(next);
                next += 1;
            }
            let mut order = here.clone();
            for place in (1..order.len()).rev() {
                order.swap(place, random(place + 1));
            }
            let (claims, pods) = (world.list(CLAIMS), world.list(PODS));
            let phase = |all: &[Value], name: &str| {
                all.iter().find(|one| name_of(one) == name).map(|one| at(one, "/status/phase"))
            };
            if let Some(pod) = pods.iter().find(|pod| failed(pod)) {
                panic!("pod {}: {}, log: {}", name_of(pod), pod["status"], world.log(&name_of(pod)));
            }
            for number in order {
                let name = format!("v{number}");
                let (claim, pod) = (phase(&claims, &name), phase(&pods, &name));
                let used = number % 4 == 3 || pod.is_none() || pod.as_deref() == Some("Succeeded");
                match claim.as_deref() {
                    None => here.retain(|one| *one != number),
                    Some("Bound") if used => {
                        world.delete(PODS, &name);
                        world.delete(CLAIMS, &name);
                    }
                    Some(_) => {}
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
