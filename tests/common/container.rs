//! Stand-ins for containers: processes with a mount namespace and a cgroup of their own.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::wait::within_seconds;
use orlop::pause::Hierarchy;

/// Appends to `$DIR/file` until it is killed.
pub(crate) const WRITE: &str = "echo ready; while :; do echo x >> $DIR/file; done";

/// Returns the hierarchies of this machine in which cgroups can be frozen.
pub(crate) fn hierarchies() -> Vec<Hierarchy> {
    [Hierarchy::Freezer, Hierarchy::Unified].into_iter().filter(|one| root_of(*one).is_some()).collect()
}

fn root_of(hierarchy: Hierarchy) -> Option<PathBuf> {
    let (roots, file) = match hierarchy {
        Hierarchy::Freezer => (&["/sys/fs/cgroup/freezer"][..], "release_agent"),
        Hierarchy::Unified => (&["/sys/fs/cgroup/unified", "/sys/fs/cgroup"][..], "cgroup.subtree_control"),
    };
    roots.iter().map(PathBuf::from).find(|root| root.join(file).exists())
}

/// A cgroup of the test. It is thawed and removed when this is dropped, after the processes in it have ended.
pub(crate) struct TestCgroup {
    dir: PathBuf,
    hierarchy: Hierarchy,
    /// Whether to remove it.
    is_owner: bool,
}

impl TestCgroup {
    /// Makes a cgroup in the root of the hierarchy.
    pub(crate) fn new(hierarchy: Hierarchy) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("orlop-test-{}-{number}", std::process::id());
        let dir = root_of(hierarchy).unwrap().join(name);
        fs::create_dir(&dir).unwrap();
        Self { dir, hierarchy, is_owner: true }
    }

    /// Makes a cgroup in this one.
    pub(crate) fn nested(&self, name: &str) -> Self {
        let dir = self.dir.join(name);
        fs::create_dir(&dir).unwrap();
        Self { dir, hierarchy: self.hierarchy, is_owner: true }
    }

    /// Its path in the hierarchy.
    pub(crate) fn path(&self) -> String {
        let root = root_of(self.hierarchy).unwrap();
        format!("/{}", self.dir.strip_prefix(root).unwrap().display())
    }

    /// The file by which a process joins.
    pub(crate) fn procs(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    /// Freezes or thaws it, as an administrator does.
    pub(crate) fn set_frozen(&self, frozen: bool) {
        let (file, word) = match (self.hierarchy, frozen) {
            (Hierarchy::Freezer, true) => ("freezer.state", "FROZEN"),
            (Hierarchy::Freezer, false) => ("freezer.state", "THAWED"),
            (Hierarchy::Unified, true) => ("cgroup.freeze", "1"),
            (Hierarchy::Unified, false) => ("cgroup.freeze", "0"),
        };
        fs::write(self.dir.join(file), word).unwrap();
    }

    /// Reports whether anything has frozen it.
    pub(crate) fn is_frozen(&self) -> bool {
        let file = match self.hierarchy {
            Hierarchy::Freezer => "freezer.self_freezing",
            Hierarchy::Unified => "cgroup.freeze",
        };
        fs::read_to_string(self.dir.join(file)).unwrap().starts_with('1')
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        self.set_frozen(false);
        if !self.is_owner {
            return;
        }
        // A process that was killed leaves its cgroup a moment later.
        let remove = || fs::remove_dir(&self.dir).is_ok();
        if !std::thread::panicking() {
            within_seconds(60, "the cgroup of the test is empty", remove);
        } else {
            remove();
        }
    }
}

/// A process that a test starts, and kills when this is dropped.
pub(crate) struct Program {
    child: Child,
    /// The cgroup to thaw, since a frozen process of cgroup v1 does not end.
    cgroup: Option<TestCgroup>,
    _stdin: Option<ChildStdin>,
}

impl Program {
    /// Runs a script of sh in the mount namespace of the test. Returns when it has printed `ready`.
    pub(crate) fn run(script: &str) -> Self {
        Self::start("sh", &["-ec", script])
    }

    /// Runs a program. Returns when it has printed `ready`.
    #[expect(clippy::disallowed_methods, reason = "the writers of a volume are other processes")]
    pub(crate) fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let mut ready = [0; 6];
        child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        Self { child, cgroup: None, _stdin: stdin }
    }

    /// Runs a script in a cgroup and in a mount namespace of its own, in which `source` is mounted on `target`, called
    /// `$DIR`.
    pub(crate) fn in_container(cgroup: &TestCgroup, source: &Path, target: &Path, script: &str) -> Self {
        let script = format!(
            "echo $$ > {procs}; exec unshare --mount --propagation private sh -ec '
             mount --bind {source} {target}; DIR={target}; {script}'",
            procs = cgroup.procs().display(),
            source = source.display(),
            target = target.display(),
        );
        let cgroup = TestCgroup { dir: cgroup.dir.clone(), hierarchy: cgroup.hierarchy, is_owner: false };
        let mut program = Self::run(&script);
        program.cgroup = Some(cgroup);
        program
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        drop(self.cgroup.take());
        let _ = self.child.wait();
    }
}

/// Where a [`Container`] has its volume.
const INSIDE: &str = "/srv";

/// A container with a published volume; it ends when this is dropped, even if it is frozen.
pub(crate) struct Container {
    process: Child,
    cgroup: TestCgroup,
}

impl Container {
    /// Starts a program with the argument `/srv`, where the directory `target` of a mount namespace is mounted. Waits until
    /// it has printed a line. `None` if this machine has no cgroups that can be frozen.
    #[expect(clippy::disallowed_methods, reason = "the container is a process")]
    pub(crate) fn start(mounts: &Path, target: &Path, program: &Path) -> Option<Self> {
        let cgroup = TestCgroup::new(*hierarchies().first()?);
        // A process with a mount namespace of its own is a consumer, so it joins the cgroup before.
        let join = "echo $$ > \"$1\"; shift; exec \"$@\"";
        // As in a container, the volume is at one place only.
        let mount = "mount --bind \"$1\" \"$2\"; umount \"$1\"; exec \"$3\" \"$2\"";
        let mut process = Command::new("sh")
            .args(["-euc", join, "sh"])
            .arg(cgroup.procs())
            .args(["nsenter", &format!("--mount={}", mounts.display())])
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-euc", mount, "sh"])
            .args([target, Path::new(INSIDE), program])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the container has ended: {:?}", process.wait());
        Some(Self { process, cgroup })
    }

    /// Whether its cgroup is frozen.
    pub(crate) fn is_paused(&self) -> bool {
        self.cgroup.is_frozen()
    }

    /// Lets it continue, as an administrator does by hand.
    pub(crate) fn thaw(&self) {
        self.cgroup.set_frozen(false);
    }

    /// Whether its process runs: it has neither ended nor is it frozen.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none() && !self.is_paused()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.cgroup.set_frozen(false);
        let _ = self.process.wait();
    }
}

/// Size and change time of a file that containers write to.
pub(crate) fn state(dir: &Path) -> (u64, i64, i64) {
    use std::os::unix::fs::MetadataExt as _;
    let stat = File::open(dir.join("file")).and_then(|file| file.metadata()).unwrap();
    (stat.len(), stat.ctime(), stat.ctime_nsec())
}

/// Asserts that nothing writes to the file for a while.
#[track_caller]
pub(crate) fn assert_still(dir: &Path) {
    let before = state(dir);
    super::wait::sleep_ms(50);
    assert_eq!(state(dir), before, "a paused container has written");
}

/// Waits until the file has grown.
#[track_caller]
pub(crate) fn assert_growing(dir: &Path) {
    let before = state(dir).0;
    within_seconds(60, "the container writes", || state(dir).0 > before);
}
