//! Files and processes of the nodes of `tests/cluster`, for tests in modules named `on_nodes`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cluster::*;

impl Bound {
    /// Its directory on its node, as seen from this machine.
    pub(crate) fn directory(&self) -> PathBuf {
        let (pool, name) = self.handle.split_once('/').unwrap();
        pool_on(&self.node, pool).join("volumes").join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory().join("data")
    }
}

/// The state of the cluster of `tests/cluster`, or `None` for any other cluster.
fn state_dir() -> Option<PathBuf> {
    std::env::var_os("ORLOP_CLUSTER").map(PathBuf::from)
}

/// The root of a node, through its first process; `None` in a cluster whose nodes are not processes of this machine.
pub(crate) fn reachable_root_of(node: &str) -> Option<PathBuf> {
    let file = state_dir()?.join("nodes").join(node).join("pid");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    Some(PathBuf::from(format!("/proc/{}/root", text.split(' ').next().unwrap())))
}

/// The root of a node, for tests in modules named `on_nodes`.
pub(crate) fn root_of(node: &str) -> PathBuf {
    reachable_root_of(node).expect("ORLOP_CLUSTER is set")
}

pub(crate) fn pool_on(node: &str, pool: &str) -> PathBuf {
    let path = match pool {
        "default" => "var/lib/orlop",
        "small" => "srv",
        other => panic!("the cluster has no pool {other}"),
    };
    root_of(node).join(path)
}

/// Runs a script of `tests/cluster`; returns its output.
pub(crate) fn script(name: &str, args: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster").join(name);
    run(Command::new(path).args(args))
}

/// Runs a command on a node; returns its output.
pub(crate) fn run_on(node: &str, command: &[&str]) -> String {
    script("node", &[&["-n", node], command].concat())
}

/// Kills orlop on a node, as a fault would, without a warning.
pub(crate) fn kill_orlop(node: &str) {
    // orlop may not be running: a previous kill has ended it.
    run_on(node, &["sh", "-c", "pkill -KILL -x orlop || true"]);
}

pub(crate) fn kubelet(node: &str, verb: &str) {
    run_on(node, &["--kubelet", verb]);
}
