//! A node that is gone for good, and its disk that comes back. Runs alone.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::objects::*;
use crate::world::*;

mod disturbing {
    use super::*;

    #[test]
    fn claims_of_a_node_that_is_gone_are_released_and_its_data_is_adopted_later() {
        let world = World::new("lost");
        let script =
            "echo $(cat /data/made 2>/dev/null || echo new) >> /data/starts; sync; ".to_owned() + STAY;
        let prefer = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "preference": {"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [SECOND]},
            ]},
        }]}});
        world.make(
            SETS,
            &with(set("db", "orlop", "16Mi", &script), "/spec/template/spec", "affinity", prefer),
        );
        world.wait_ready("db-0");
        let lost = world.wait_bound("data-db-0");
        assert_eq!(lost.node, SECOND);

        on(SECOND, &["--kill"]);
        let release = || {
            let orlop = std::env::var("ORLOP").unwrap_or_else(|_| env!("CARGO_BIN_EXE_orlop").to_owned());
            Command::new(orlop).args(["release-node", SECOND]).output().unwrap()
        };
        let refused = release();
        assert!(!refused.status.success(), "the Node object is still there");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("kubectl delete node orlop-2"));
        world.delete(NODES, SECOND);
        let released = release();
        assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));

        // The set's pod has a new claim, on the node that is left.
        world.wait_long("db-0 runs elsewhere", || {
            let pod = world.find(PODS, "db-0")?;
            (is_ready(&pod) && at(&pod, "/spec/nodeName") == FIRST).then_some(())
        });
        let new = world.wait_bound("data-db-0");
        assert_ne!(new.volume, lost.volume);
        assert_eq!(fs::read_to_string(new.data().join("starts")).unwrap(), "new\n");
        assert!(world.find(VOLUMES, &lost.volume).is_none());

        // The disk comes back: what was written is there, and a hand-made volume gives it to a pod.
        on(SECOND, &["--boot"]);
        crate::world::script("orlop", &[]);
        assert_eq!(fs::read_to_string(lost.data().join("starts")).unwrap(), "new\n");
        world.delete_and_wait(VOLUMES, "adopted");
        world.make(VOLUMES, &volume("adopted", &lost.handle, SECOND, "lost", "adopted"));
        world.make(
            CLAIMS,
            &with(claim("adopted", "by-hand", "16Mi"), "/spec", "volumeName", "adopted".into()),
        );
        world.make(PODS, &pod("reader", "adopted", "cat /data/starts"));
        assert_eq!(world.output("reader"), "new\n");
        world.empty();
        // Now orlop may delete it.
        world.patch(VOLUMES, "adopted", &json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
        world.wait("the adopted volume is deleted", || {
            (world.find(VOLUMES, "adopted").is_none() && !lost.folder().exists()).then_some(())
        });
    }
}
