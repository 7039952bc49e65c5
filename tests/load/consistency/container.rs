//! A process that uses a published volume as a container does: in a mount namespace and a cgroup of its own.
#![expect(clippy::disallowed_methods, reason = "the container is a process")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::wait::within_seconds;

/// Where a container has its volume.
const INSIDE: &str = "/mnt";

/// The container; it ends when this is dropped, even if it is frozen.
pub(super) struct Container {
    process: Child,
    cgroup: Cgroup,
}

impl Container {
    /// Starts a program with the argument `/mnt`, where the directory `target` of a mount namespace is mounted. Waits until
    /// it has printed a line. `None` if this machine has no cgroups that can be frozen.
    pub(super) fn start(mounts: &Path, target: &Path, program: &Path) -> Option<Self> {
        let cgroup = Cgroup::new()?;
        // As in a container, the volume is at one place only.
        let script =
            "echo $$ > \"$1/cgroup.procs\"; mount --bind \"$2\" \"$3\"; umount \"$2\"; exec \"$4\" \"$3\"";
        let mut process = Command::new("nsenter")
            .arg(format!("--mount={}", mounts.display()))
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh"])
            .args([&cgroup.0, target, Path::new(INSIDE), program])
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
        self.cgroup.thaw();
        let _ = self.process.wait();
    }
}

/// A cgroup that can be frozen, of version 1 or 2; removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("orlop-test-{}-{number}", std::process::id());
        let hierarchies =
            ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mut usable = hierarchies.into_iter().filter(|dir| dir.join("cgroup.procs").exists());
        let path = usable.next()?.join(name);
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn is_frozen(&self) -> bool {
        let read = |file: &str| fs::read_to_string(self.0.join(file)).unwrap_or_default();
        read("freezer.state").trim() == "FROZEN" || read("cgroup.events").contains("frozen 1")
    }

    fn thaw(&self) {
        for (file, thawed) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            let file = self.0.join(file);
            if file.exists() {
                let _ = fs::write(file, thawed);
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        within_seconds(60, "the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
    }
}
