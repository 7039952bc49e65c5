//! A node that is lost, and its disk that returns later. Runs alone.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::scenarios::cluster::*;
use crate::scenarios::nodes::*;
use crate::scenarios::objects::*;

mod disruptive {
    use super::*;

    #[test]
    fn claims_of_a_lost_node_are_released_and_its_data_can_be_adopted() {
        let test = TestNamespace::new("lost");
        let program =
            "echo $(cat /data/made 2>/dev/null || echo new) >> /data/starts; sync; ".to_owned() + STAY;
        let prefer = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "preference": {"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [second()]},
            ]},
        }]}});
        test.create(
            SETS,
            &with(set("db", "orlop", "16Mi", &program), "/spec/template/spec", "affinity", prefer),
        );
        test.wait_ready("db-0");
        let lost = test.wait_bound("data-db-0");
        assert_eq!(lost.node, second());

        run_on(second(), &["--kill"]);
        let release = || {
            let orlop = std::env::var("ORLOP").unwrap_or_else(|_| env!("CARGO_BIN_EXE_orlop").to_owned());
            Command::new(orlop).args(["release-node", second()]).output().unwrap()
        };
        let refused = release();
        assert!(!refused.status.success(), "the Node object still exists");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("kubectl delete node orlop-2"));
        test.delete(NODES, second());
        let released = release();
        assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));

        // The StatefulSet gets a new pod and a new claim on the other node.
        test.wait_long("db-0 runs on the other node", || {
            let pod = test.find(PODS, "db-0")?;
            (is_ready(&pod) && at(&pod, "/spec/nodeName") == first()).then_some(())
        });
        let new = test.wait_bound("data-db-0");
        assert_ne!(new.volume, lost.volume);
        assert_eq!(fs::read_to_string(new.data().join("starts")).unwrap(), "new\n");
        assert!(test.find(VOLUMES, &lost.volume).is_none());

        // The disk returns with its data, and a static PersistentVolume gives it to a pod.
        run_on(second(), &["--boot"]);
        script("orlop", &[]);
        assert_eq!(fs::read_to_string(lost.data().join("starts")).unwrap(), "new\n");
        test.delete_and_wait(VOLUMES, "adopted");
        test.create(VOLUMES, &volume("adopted", &lost.handle, second(), "lost", "adopted"));
        test.create(
            CLAIMS,
            &with(claim("adopted", "static", "16Mi"), "/spec", "volumeName", "adopted".into()),
        );
        test.create(PODS, &pod("reader", "adopted", "cat /data/starts"));
        assert_eq!(test.output("reader"), "new\n");
        test.delete_all();
        // With this reclaim policy, orlop may delete it.
        test.patch(VOLUMES, "adopted", &json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
        test.wait("the adopted volume is deleted", || {
            (test.find(VOLUMES, "adopted").is_none() && !lost.directory().exists()).then_some(())
        });
    }
}
