//! What the chart brings beside the driver.

use std::process::Command;

use crate::world::*;

#[test]
fn helm_test_writes_reads_restores_and_cleans_up() {
    let world = World::in_space("orlop");
    let said = run(Command::new("helm").args(["test", "orlop", "-n", "orlop", "--timeout", "3m"]));
    assert_eq!(said.matches("Phase:          Succeeded").count(), 4, "{said}");
    // What the test's pods declared goes with them.
    world.wait("nothing of the test is left", || {
        let left: usize = [CLAIMS, SNAPSHOTS].iter().map(|kind| world.list(kind).len()).sum();
        let pods = world.list(PODS).iter().filter(|pod| name_of(pod).contains("-test-")).count();
        (left + pods == 0).then_some(())
    });
}
