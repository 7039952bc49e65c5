//! A process that uses a published volume as a container does: in a mount namespace and a cgroup of its own.
#![expect(clippy::disallowed_methods, reason = "the container is a process")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::container::{TestCgroup, hierarchies};

/// Where a container has its volume.
const INSIDE: &str = "/mnt";

/// The container; it ends when this is dropped, even if it is frozen.
pub(super) struct Container {
    process: Child,
    cgroup: TestCgroup,
}

impl Container {
    /// Starts a program with the argument `/mnt`, where the directory `target` of a mount namespace is mounted. Waits until
    /// it has printed a line. `None` if this machine has no cgroups that can be frozen.
    pub(super) fn start(mounts: &Path, target: &Path, program: &Path) -> Option<Self> {
        let cgroup = TestCgroup::new(hierarchies().into_iter().next()?);
        // As in a container, the volume is at one place only.
        let script = "echo $$ > \"$1\"; mount --bind \"$2\" \"$3\"; umount \"$2\"; exec \"$4\" \"$3\"";
        let mut process = Command::new("nsenter")
            .arg(format!("--mount={}", mounts.display()))
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh"])
            .args([&cgroup.procs(), target, Path::new(INSIDE), program])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the container has ended: {:?}", process.wait());
        Some(Self { process, cgroup })
    }

    /// Whether its process runs: it has neither ended nor is it frozen.
    pub(super) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none() && !self.cgroup.is_frozen()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.cgroup.set_frozen(false);
        let _ = self.process.wait();
    }
}
