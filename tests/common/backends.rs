//! The filesystems on which the same tests of pools run, one line for each: a new backend is a line of [`ALL`].
//!
//! `ORLOP_TEST_BACKENDS` chooses some by name, such as `tmpfs,btrfs`. Without it, those run that any machine with loop
//! devices has. `virtual` stands for all others: `tests/vm/inside` chooses them.
#![expect(clippy::print_stderr, reason = "says which backend a test has reached")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use orlop::engine::Engine;
use orlop::engine::request::Tuning;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use tempfile::TempDir;

use super::disk::{Disk, QUOTA_GROUPS, SIMPLE_QUOTAS, enable_quotas, run};
use super::isolation::{CHILD, in_own_process};
use super::pool::{MIB, long_waits, memory_dir, open_with};

pub(crate) const ALL: &[Backend] = &[
    Backend { name: "tmpfs", kind: "dir", place: Place::Memory, calls: &[] },
    Backend { name: "ext4", kind: "dir", place: Place::Disk(&["mkfs.ext4"]), calls: &[] },
    Backend { name: "xfs", kind: "dir", place: Place::Disk(&["mkfs.xfs"]), calls: &["ioctl"] },
    Backend { name: "btrfs", kind: "btrfs", place: Place::Disk(&["mkfs.btrfs"]), calls: &["ioctl"] },
    Backend { name: "btrfs-quota", kind: "btrfs", place: Place::BtrfsWithQuotas, calls: &["ioctl"] },
    Backend { name: "xfs-quota", kind: "quota", place: Place::Virtual("xfs"), calls: QUOTA_CALLS },
    Backend { name: "ext4-quota", kind: "quota", place: Place::Virtual("ext4"), calls: QUOTA_CALLS },
];

/// A size of volumes that holds what a test of all backends writes to one: some backends enforce it.
pub(crate) const ROOM: u64 = 4 * MIB;

/// What stands for all backends of the virtual machine.
const VIRTUAL: &str = "virtual";

/// System calls of project quotas.
const QUOTA_CALLS: &[&str] = &["ioctl", "quotactl_fd"];

/// A kind of filesystem, and the backend that a new pool gets there.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    /// In the marker of a pool.
    pub(crate) kind: &'static str,
    place: Place,
    /// The system calls that only this backend makes to change something.
    pub(crate) calls: &'static [&'static str],
}

/// Where its pools are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the memory of this machine.
    Memory,
    /// On a new filesystem, which this command makes.
    Disk(&'static [&'static str]),
    /// On a new btrfs that enforces sizes.
    BtrfsWithQuotas,
    /// On a filesystem that the command `fs` of the virtual machine makes, with the name of its kind in `/mnt`.
    Virtual(&'static str),
}

/// A filesystem for the pools of a backend.
pub(crate) struct Ground {
    pub(crate) backend: &'static Backend,
    dir: PathBuf,
    _disk: Option<Disk>,
    /// Removed after the filesystem was unmounted.
    _temporary: Option<TempDir>,
}

impl Ground {
    pub(crate) fn new(backend: &'static Backend) -> Self {
        let on_disk = |mkfs: &[&str]| {
            let image = memory_dir();
            let disk = Disk::new(&image.path().join("disk"), 16 << 10, mkfs);
            Self { backend, dir: disk.path().to_owned(), _disk: Some(disk), _temporary: Some(image) }
        };
        let at = |dir: &Path| Self { backend, dir: dir.to_owned(), _disk: None, _temporary: None };
        match backend.place {
            Place::Memory => {
                let dir = memory_dir();
                let ground = at(dir.path());
                Self { _temporary: Some(dir), ..ground }
            }
            Place::Disk(mkfs) => on_disk(mkfs),
            Place::BtrfsWithQuotas => {
                let ground = on_disk(&["mkfs.btrfs"]);
                let is_on =
                    [SIMPLE_QUOTAS, QUOTA_GROUPS].iter().any(|kind| enable_quotas(&ground.dir, *kind));
                assert!(is_on, "btrfs has no quotas");
                ground
            }
            Place::Virtual(kind) => {
                let dir = Path::new("/mnt").join(kind);
                // The other tests there use it, too. A filesystem that is made here ends with the mount namespace of the test.
                if !is_mount_point(&dir) {
                    run("fs", &[kind, "1G", dir.to_str().unwrap()]);
                }
                at(&dir)
            }
        }
    }

    /// A new directory on it.
    pub(crate) fn new_dir(&self) -> TempDir {
        tempfile::tempdir_in(&self.dir).unwrap()
    }
}

impl Backend {
    /// The backend with this name.
    pub(crate) fn named(name: &str) -> &'static Self {
        ALL.iter()
            .find(|backend| backend.name == name)
            .unwrap_or_else(|| panic!("no backend is named {name}"))
    }

    /// Whether a sync of it costs nothing.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.place == Place::Memory
    }

    /// Whether a copy is made by one call of the kernel, without a pause of the writers.
    pub(crate) fn copies_at_once(&self) -> bool {
        self.kind == "btrfs"
    }

    /// Opens the pool `p`, and waits until it is available.
    pub(crate) fn open(&self, pool: &Path, tuning: Tuning) -> Engine {
        open_with(pool, tuning)
    }

    /// Opens the pool `p` with [`long_waits`].
    pub(crate) fn open_patiently(&self, pool: &Path) -> Engine {
        self.open(pool, long_waits())
    }

    fn is_virtual(&self) -> bool {
        matches!(self.place, Place::Virtual(_))
    }
}

/// The backends on which the tests run.
pub(crate) fn chosen() -> Vec<&'static Backend> {
    let all = |is_virtual| ALL.iter().filter(move |backend| backend.is_virtual() == is_virtual).collect();
    match std::env::var("ORLOP_TEST_BACKENDS").as_deref() {
        Ok(VIRTUAL) => all(true),
        Ok(names) => names.split(',').map(Backend::named).collect(),
        Err(_) => all(false),
    }
}

fn is_mount_point(dir: &Path) -> bool {
    // One that does not exist is none.
    let device = |path: &Path| std::fs::metadata(path).ok().map(|stat| stat.dev());
    device(dir).is_some_and(|its| device(dir.parent().unwrap()) != Some(its))
}

/// Runs the body of a test for each backend, in a process and a mount namespace of its own. `test` is its full name.
pub(crate) fn on_each_backend(test: &str, body: impl Fn(&Ground)) {
    in_own_process(test, || {
        for backend in chosen() {
            eprintln!("{test}: {}", backend.name);
            body(&Ground::new(backend));
        }
    });
}

/// Runs tests of this program again with their temporary directories on each backend, where a pool is a directory: those
/// whose names begin with `prefix`, except for `test`, which calls this, and those whose names contain one of `others`.
#[expect(clippy::disallowed_methods, reason = "the process is this program again")]
pub(crate) fn rerun_on_each_backend(test: &str, prefix: &str, others: &[&str]) {
    on_each_backend(test, |ground| {
        // There, they run by themselves.
        if ground.backend.is_in_memory() {
            return;
        }
        let dir = ground.new_dir();
        set_mode(dir.path(), 0o1777);
        mount_bind(dir.path(), "/dev/shm").unwrap();
        let mut tests = Command::new(std::env::current_exe().unwrap());
        tests.args([prefix, "--test-threads=2", "--skip", test]);
        tests.args(others.iter().flat_map(|other| ["--skip", *other]));
        // The virtual machine is slower still.
        let fewer = if ground.backend.is_virtual() { "100" } else { "20" };
        let status = tests.env(FEWER_CASES, fewer).env_remove(CHILD).status().unwrap();
        unmount("/dev/shm", UnmountFlags::DETACH).unwrap();
        assert!(status.success(), "{prefix} on {}: {status}", ground.backend.name);
    });
}

fn set_mode(dir: &Path, mode: u32) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The environment variable of such a run: a divisor.
const FEWER_CASES: &str = "ORLOP_FEWER_CASES";

/// How many random cases a test tries: fewer where a sync takes its time.
pub(crate) fn random_cases(in_memory: u32) -> u32 {
    in_memory / std::env::var(FEWER_CASES).map_or(1, |text| text.parse().unwrap())
}
