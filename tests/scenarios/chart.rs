//! The tests that the chart contains.

use std::process::Command;

use super::cluster::*;

#[test]
fn helm_test_passes_and_cleans_up() {
    let test = TestNamespace::existing("orlop");
    let output = run(Command::new("helm").args(["test", "orlop", "-n", "orlop", "--timeout", "3m"]));
    assert_eq!(output.matches("Phase:          Succeeded").count(), 4, "{output}");
    // The ephemeral volumes of the pods are deleted with them.
    test.wait("everything of the test is deleted", || {
        let left: usize = [CLAIMS, SNAPSHOTS].iter().map(|kind| test.list(kind).len()).sum();
        let pods = test.list(PODS).iter().filter(|pod| name_of(pod).contains("-test-")).count();
        (left + pods == 0).then_some(())
    });
}
