//! What tests that make mounts need: root, and a mount namespace.
#![allow(clippy::allow_attributes, reason = "each test that has this module uses another part of it")]
#![allow(dead_code, reason = "each test that has this module uses another part of it")]
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::process::Command;

use rustix::mount::MountPropagationFlags as Propagation;

/// Whether mounts can be made; where they cannot, says so, and fails where nothing may be skipped.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) fn possible() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "mounts need root, and with CI set nothing is skipped");
    eprintln!("skipped: mounts need root");
    false
}

/// Runs this test again as a process in a mount namespace of its own; false: this is it.
#[expect(clippy::disallowed_methods, reason = "users of a volume are found by process, so this must be one")]
pub(crate) fn in_a_process_of_its_own(test: &str) -> bool {
    const INSIDE: &str = "ORLOP_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    if !possible() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    let status = command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "{status}");
    true
}

/// Gives the calling thread a mount namespace of its own, which ends with it.
#[expect(deprecated, reason = "only descriptors make unshare unsafe, and they are not unshared")]
pub(crate) fn enter_new_namespace(propagation: Propagation) {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    rustix::mount::mount_change("/", propagation | Propagation::REC).unwrap();
}
