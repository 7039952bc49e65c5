//! The commands of docs/operations.md in the pod of a node.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::cluster::*;
use super::objects::*;

/// The output of a command that succeeds.
fn printed(test: &TestNamespace, bound: &Bound, arguments: &[&str]) -> Vec<u8> {
    let output = test.orlop(&bound.node, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    output.stdout
}

fn text(test: &TestNamespace, bound: &Bound, arguments: &[&str]) -> String {
    String::from_utf8(printed(test, bound, arguments)).unwrap()
}

/// A volume as `orlop ls -o json` lists it.
fn listed(test: &TestNamespace, bound: &Bound) -> Value {
    let filter = format!("name={}", bound.volume);
    let listed = printed(test, bound, &["ls", "-o", "json", "-f", &filter]);
    serde_json::from_slice::<Value>(&listed).unwrap()[0].clone()
}

/// The names in a tar archive.
fn names_in(archive: &[u8]) -> String {
    let mut tar = Command::new("tar");
    let mut tar = tar.arg("t").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    tar.stdin.take().unwrap().write_all(archive).unwrap();
    String::from_utf8(tar.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn commands_show_the_claim_and_the_pods_of_a_volume() {
    let test = TestNamespace::new("verbs");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    test.create(PODS, &pod("user", "data", &format!("echo hello > /data/greeting; sync; {STAY}")));
    let user = test.wait_ready("user");
    let bound = test.wait_bound("data");

    let table = text(&test, &bound, &["ls"]);
    let row = table.lines().find(|line| line.contains(&bound.volume));
    let row = row.unwrap_or_else(|| panic!("no {} in\n{table}", bound.volume));
    assert!(row.contains("  pod verbs/user"), "{table}");
    assert!(row.contains("  verbs/data  ") && row.ends_with("  in use"), "{table}");
    let inspected = test.inspect(&bound);
    assert_eq!(inspected["claim"], json!({"namespace": "verbs", "name": "data"}));
    let first = &inspected["users"][0];
    assert_eq!((&first["podNamespace"], &first["podName"]), (&json!("verbs"), &json!("user")), "{inspected}");
    assert_eq!(first["pod"], user["metadata"]["uid"]);

    let pools: Value = serde_json::from_slice(&printed(&test, &bound, &["df", "-o", "json"])).unwrap();
    let is_there = |pool: &Value| bound.handle.starts_with(&format!("{}/", at(pool, "/pool")));
    let pool = pools.as_array().unwrap().iter().find(|pool| is_there(pool)).unwrap();
    assert!(pool["volumes"].as_u64().unwrap() >= 1 && pool["total"].as_u64().unwrap() > 0, "{pool}");

    let snapshot = text(&test, &bound, &["snapshot", "create", &bound.handle, "verbs-before"]);
    assert!(snapshot.ends_with("/verbs-before\n"), "{snapshot}");
    assert!(text(&test, &bound, &["snapshot", "ls", "-q"]).contains(&snapshot));
    assert_eq!(text(&test, &bound, &["snapshot", "rm", snapshot.trim()]), snapshot);

    let archive = printed(&test, &bound, &["backup", &bound.handle, "--format", "tar"]);
    let names = names_in(&archive);
    assert!(names.lines().any(|name| name.ends_with("/greeting")), "{names}");

    let refused = test.orlop(&bound.node, &["rm", &bound.handle]);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{errors}");
    assert!(errors.contains("is in use by pod verbs/user"), "{errors}");
    test.delete_all();
}

#[test]
fn a_volume_whose_persistent_volume_is_released_is_an_orphan_with_its_data() {
    let test = TestNamespace::new("orphan");
    test.create(CLAIMS, &claim("data", "orlop", "16Mi"));
    test.create(PODS, &pod("writer", "data", "echo hello > /data/greeting; sync"));
    test.output("writer");
    let bound = test.wait_bound("data");
    assert_ne!(listed(&test, &bound)["state"], "orphan");
    test.patch(VOLUMES, &bound.volume, &json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}));
    test.delete_and_wait(PODS, "writer");
    test.delete_and_wait(CLAIMS, "data");
    test.wait("the volume is an orphan", || (listed(&test, &bound)["state"] == "orphan").then_some(()));
    let phase = at(&test.get(VOLUMES, &bound.volume), "/status/phase");
    assert_eq!(phase, "Released", "its PersistentVolume exists");
    test.delete_and_wait(VOLUMES, &bound.volume);
    let found = listed(&test, &bound);
    // A young volume may still get its PersistentVolume.
    assert_eq!((&found["state"], &found["usedBy"]), (&json!("dangling"), &json!([])), "{found}");
    assert_eq!(found["claim"], json!({"namespace": "orphan", "name": "data"}));
    let names = names_in(&printed(&test, &bound, &["backup", &bound.handle, "--format", "tar"]));
    assert!(names.lines().any(|name| name.ends_with("/greeting")), "{names}");
    assert_eq!(text(&test, &bound, &["rm", &bound.handle]), format!("{}\n", bound.handle));
    assert_eq!(test.orlop(&bound.node, &["inspect", &bound.handle]).status.code(), Some(3));
}
