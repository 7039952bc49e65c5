//! Pausing the consumers of a volume: stand-ins for containers write to a directory, and are frozen.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop::error::{Kind, Result};
use orlop::pause::{Hierarchy, Pause, PauseRecord, Pauser};
use rustix::mount::{MountPropagationFlags as Propagation, mount_bind, mount_change};
use rustix::process::Signal;

use super::hanging_pool::{Fuse, is_installed};
use crate::common::container::{
    Program, TestCgroup, WRITE, assert_growing, assert_still, hierarchies, state,
};
use crate::common::isolation::{is_root, on_own_tmpfs, skip};
use crate::common::server::ORLOP;
use crate::common::wait::within_seconds;

/// Long enough for a slow machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn pauser() -> Pauser {
    Pauser::new("/proc".into()).with_helper(ORLOP.into())
}

/// A directory that containers write to, and where they mount it.
pub(crate) struct Volume {
    pub(crate) base: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) mount: PathBuf,
}

impl Volume {
    pub(crate) fn in_dir(base: &Path) -> Self {
        let volume = Self { base: base.into(), data: base.join("pool/a/data"), mount: base.join("mnt") };
        fs::create_dir_all(&volume.data).unwrap();
        fs::create_dir_all(&volume.mount).unwrap();
        fs::write(volume.data.join("file"), "").unwrap();
        volume
    }

    pub(crate) fn container(&self, cgroup: &TestCgroup, script: &str) -> Program {
        Program::in_container(cgroup, &self.data, &self.mount, script)
    }

    fn pause_with(&self, record: &mut dyn FnMut(&PauseRecord) -> Result<()>) -> Result<Option<Pause>> {
        let dir = File::open(&self.data).unwrap();
        pauser().pause(&[dir.as_fd()], LIMIT, record)
    }

    fn pause(&self) -> Result<Option<Pause>> {
        self.pause_with(&mut |_| Ok(()))
    }

    fn is_consumed(&self) -> bool {
        pauser().is_consumed(&[File::open(&self.data).unwrap().as_fd()]).unwrap()
    }

    /// Asserts that a pause is refused with an error that has all these words.
    #[track_caller]
    fn assert_refused(&self, words: &[&str]) {
        let error = self.pause().unwrap_err();
        assert_eq!(error.kind(), Kind::InUse, "{}", error.chain());
        for word in words.iter().chain(&["consistency: none"]) {
            assert!(error.chain().contains(word), "{word}: {}", error.chain());
        }
    }
}

/// Runs `test` with a volume for each hierarchy of this machine.
fn in_each_hierarchy(test: impl Fn(&Volume, Hierarchy) + Send + Sync) {
    if !is_root() {
        return;
    }
    for hierarchy in hierarchies() {
        on_own_tmpfs(c"mode=755", |base| test(&Volume::in_dir(base), hierarchy));
    }
}

#[test]
fn a_paused_container_changes_nothing_and_continues_afterwards() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroup = TestCgroup::new(hierarchy);
        let container = volume.container(&cgroup, WRITE);
        assert!(volume.is_consumed());
        assert_growing(&volume.data);
        let mut recorded = Vec::new();
        let record = &mut |record: &PauseRecord| {
            assert!(!cgroup.is_frozen(), "the record comes first");
            recorded = record.cgroups.clone();
            Ok(())
        };
        let pause = volume.pause_with(record).unwrap().unwrap();
        assert!(cgroup.is_frozen());
        assert_still(&volume.data);
        let paused = pause.resume().unwrap();
        println!("paused for {:?}", paused.duration);
        assert!(paused.duration >= Duration::from_millis(50));
        assert_eq!(paused.containers, [cgroup.path()]);
        assert_eq!((recorded.len(), &recorded[0].path), (1, &cgroup.path()));
        assert_eq!(recorded[0].hierarchy, hierarchy);
        assert_growing(&volume.data);
        // Dropping a pause ends it, too.
        drop(volume.pause().unwrap().unwrap());
        assert!(!cgroup.is_frozen());
        assert_growing(&volume.data);
        drop(container);
        assert!(!volume.is_consumed());
        assert!(volume.pause().unwrap().is_none());
    });
}

#[test]
fn several_containers_are_paused_and_nested_cgroups_with_the_one_above() {
    in_each_hierarchy(|volume, hierarchy| {
        let (one, other) = (TestCgroup::new(hierarchy), TestCgroup::new(hierarchy));
        let nested = other.nested("nested");
        let containers = [&one, &nested, &other].map(|cgroup| volume.container(cgroup, WRITE));
        let mut paths = Vec::new();
        let record = &mut |record: &PauseRecord| {
            paths = record.cgroups.iter().map(|cgroup| cgroup.path.clone()).collect();
            Ok(())
        };
        let pause = volume.pause_with(record).unwrap().unwrap();
        assert_still(&volume.data);
        assert!(!nested.is_frozen(), "it is frozen by the one above");
        pause.resume().unwrap();
        assert_eq!(paths, [one.path(), other.path()]);
        assert_growing(&volume.data);
        drop(containers);
    });
}

#[test]
fn a_cgroup_that_was_frozen_before_stays_frozen() {
    in_each_hierarchy(|volume, hierarchy| {
        let (frozen, running) = (TestCgroup::new(hierarchy), TestCgroup::new(hierarchy));
        let containers = [&frozen, &running].map(|cgroup| volume.container(cgroup, WRITE));
        frozen.set_frozen(true);
        let mut paths = Vec::new();
        let record = &mut |record: &PauseRecord| {
            paths = record.cgroups.iter().map(|cgroup| cgroup.path.clone()).collect();
            Ok(())
        };
        let pause = volume.pause_with(record).unwrap().unwrap();
        assert_still(&volume.data);
        assert_eq!(pause.resume().unwrap().containers.len(), 2);
        assert_eq!(paths, [running.path()]);
        assert!(frozen.is_frozen() && !running.is_frozen());
        // Nothing is left to freeze: nothing is recorded.
        running.set_frozen(true);
        let pause = volume.pause_with(&mut |_| panic!("recorded")).unwrap().unwrap();
        pause.resume().unwrap();
        assert!(frozen.is_frozen() && running.is_frozen());
        // Thawed by something else meanwhile: this was no pause.
        let pause = volume.pause().unwrap().unwrap();
        running.set_frozen(false);
        assert_eq!(pause.resume().unwrap_err().kind(), Kind::Busy);
        assert!(frozen.is_frozen());
        drop(containers);
    });
}

#[test]
fn a_process_of_the_host_that_can_write_is_refused_by_name() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroup = TestCgroup::new(hierarchy);
        let container = volume.container(&cgroup, WRITE);
        let path = volume.data.join("held");
        fs::write(&path, vec![0; 8192]).unwrap();
        let held = path.display();
        for open in ["5>>", "5<>"] {
            let writer = Program::run(&format!("exec {open} {held}; echo ready; read end"));
            let pid = format!("process {}", writer.pid());
            volume.assert_refused(&[&pid, "held", "open for writing (descriptor 5)"]);
            assert!(!cgroup.is_frozen());
        }
        let map = format!(
            "import mmap,sys\nf = open('{held}', 'r+b')\nm = mmap.mmap(f.fileno(), 4096)\nf.close()\n\
             m.close if False else print('ready', flush=True)\nsys.stdin.read()"
        );
        let writer = Program::start("python3", &["-c", &map]);
        volume.assert_refused(&[&format!("process {}", writer.pid()), "held"]);
        drop(writer);
        let harmless = [
            Program::run(&format!("exec 5< {held}; echo ready; read end")),
            Program::run(&format!("exec 5>> {held}-deleted; rm {held}-deleted; echo ready; read end")),
            Program::run(&format!("exec 5>> {}; echo ready; read end", volume.base.join("else").display())),
        ];
        volume.pause().unwrap().unwrap().resume().unwrap();
        drop((container, harmless));
    });
}

#[test]
fn a_writer_through_a_mount_that_is_gone_is_refused_only_for_its_own_volume() {
    in_each_hierarchy(|volume, _| {
        let other = volume.base.join("other");
        fs::create_dir_all(&other).unwrap();
        let through_lost_mount = |dir: &Path| {
            let at = volume.base.join("lost");
            fs::create_dir_all(&at).unwrap();
            let (dir, at) = (dir.display(), at.display());
            let script =
                format!("mount --bind {dir} {at}; exec 5>> {at}/held; umount -l {at}; echo ready; read end");
            Program::start("unshare", &["--mount", "--propagation", "private", "sh", "-ec", &script])
        };
        let harmless = through_lost_mount(&other);
        assert!(volume.pause().unwrap().is_none(), "nothing consumes the volume");
        let writer = through_lost_mount(&volume.data);
        volume.assert_refused(&[&format!("process {}", writer.pid()), "open for writing (descriptor 5)"]);
        drop((harmless, writer));
    });
}

#[test]
fn a_writer_is_found_through_a_mapping_alone() {
    in_each_hierarchy(|volume, _| {
        let path = volume.data.join("mapped");
        fs::write(&path, vec![0; 8192]).unwrap();
        // A mapping of Python keeps a copy of the descriptor, so the library of C is called.
        let map = format!(
            "import ctypes,os,sys\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n\
             f = os.open('{}', os.O_RDWR)\n\
             assert libc.mmap(None, ctypes.c_size_t(4096), 3, 1, f, ctypes.c_long(0))\nos.close(f)\n\
             print('ready', flush=True)\nsys.stdin.read()",
            path.display()
        );
        let writer = Program::start("python3", &["-c", &map]);
        volume.assert_refused(&[&format!("process {}", writer.pid()), "mapped", "for shared writing"]);
        fs::remove_file(&path).unwrap();
        assert!(volume.pause().unwrap().is_none(), "a deleted file is not copied");
    });
}

#[test]
fn mounts_that_propagated_from_a_target_are_no_consumers() {
    in_each_hierarchy(|volume, hierarchy| {
        let base = &volume.base;
        mount_change(base, Propagation::SHARED).unwrap();
        let target = base.join("kubelet/mount");
        fs::create_dir_all(&target).unwrap();
        fs::create_dir(base.join("host")).unwrap();
        let start = |cgroup: &TestCgroup, script: &str| {
            let procs = cgroup.procs();
            let enter = format!("echo $$ > {}; exec unshare --mount --propagation slave", procs.display());
            Program::run(&format!("{enter} sh -ec '{script}; echo ready; read end'"))
        };
        let cgroup = TestCgroup::new(hierarchy);
        let host = base.join("host");
        let agents = [
            start(&cgroup, "true"),
            start(&cgroup, &format!("mount --rbind / {0}", host.display())),
            start(
                &cgroup,
                &format!("mount --make-rshared {}; unshare --mount --propagation slave true", base.display()),
            ),
        ];
        mount_bind(&volume.data, &target).unwrap();
        for agent in &agents {
            let table = fs::read_to_string(format!("/proc/{}/mountinfo", agent.pid())).unwrap();
            assert!(table.contains("kubelet/mount"), "{table}");
        }
        assert!(!volume.is_consumed());
        assert!(volume.pause().unwrap().is_none());
        // A container mounts the target elsewhere.
        let container = Program::in_container(&cgroup, &target, &volume.mount, WRITE);
        assert!(volume.is_consumed());
        drop((agents, container));
    });
}

#[test]
fn more_copies_at_once_than_scans_that_may_run_wait_for_their_turn() {
    let dir = tempfile::tempdir().unwrap();
    let (data, pauser) = (fs::File::open(dir.path()).unwrap(), pauser());
    std::thread::scope(|scope| {
        let scans: Vec<_> = (0..24).map(|_| scope.spawn(|| pauser.is_consumed(&[data.as_fd()]))).collect();
        for scan in scans {
            assert!(!scan.join().unwrap().unwrap());
        }
    });
}

#[test]
fn a_consumer_that_shares_its_cgroup_with_the_host_is_refused() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroup = TestCgroup::new(hierarchy);
        let container = volume.container(&cgroup, WRITE);
        let procs = cgroup.procs();
        let of_host = Program::run(&format!("echo $$ > {}; echo ready; read end", procs.display()));
        volume.assert_refused(&[&format!("process {}", of_host.pid()), "belongs to the host"]);
        assert!(!cgroup.is_frozen());
        drop(of_host);
        let shim = volume.base.join("containerd-shim-runc-v2");
        fs::copy("/bin/sleep", &shim).unwrap();
        let start = format!(
            "echo $$ > {}; echo ready; exec unshare --mount {} 1000",
            procs.display(),
            shim.display()
        );
        let shim = Program::run(&start);
        let comm = format!("/proc/{}/comm", shim.pid());
        within_seconds(60, "the shim runs", || {
            fs::read_to_string(&comm).unwrap().starts_with("containerd-shim")
        });
        volume.assert_refused(&[&format!("process {}", shim.pid()), "runs containers"]);
        drop(shim);
        volume.pause().unwrap().unwrap().resume().unwrap();
        drop(container);
    });
}

#[test]
fn a_consumer_in_the_root_cgroup_is_refused() {
    in_each_hierarchy(|volume, _| {
        if own_cgroup_is_root() {
            let mount = format!("mount --bind {} {}", volume.data.display(), volume.mount.display());
            let consumer = Program::run(&format!(
                "exec unshare --mount --propagation private sh -ec '{mount}; echo ready; read end'"
            ));
            volume.assert_refused(&[&format!("process {}", consumer.pid()), "not in a cgroup of its own"]);
        }
    });
}

/// Reports whether this process is in the root of the hierarchies in which it could be frozen.
fn own_cgroup_is_root() -> bool {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let freezing = |line: &&str| line.contains("freezer") || line.starts_with("0::");
    text.lines().filter(freezing).all(|line| line.ends_with(":/"))
}

#[test]
fn a_consumer_in_the_cgroup_of_orlop_is_refused() {
    in_each_hierarchy(|volume, _| {
        if !own_cgroup_is_root() {
            let mount = format!("mount --bind {} {}", volume.data.display(), volume.mount.display());
            let _consumer = Program::run(&format!(
                "exec unshare --mount --propagation private sh -ec '{mount}; echo ready; read end'"
            ));
            volume.assert_refused(&["belongs to the host"]);
        }
    });
}

#[test]
fn a_consumer_that_appears_before_the_freeze_is_paused_too() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroups = [TestCgroup::new(hierarchy), TestCgroup::new(hierarchy)];
        let first = volume.container(&cgroups[0], WRITE);
        let mut second = None;
        let record = &mut |_: &PauseRecord| {
            second.get_or_insert_with(|| volume.container(&cgroups[1], WRITE));
            Ok(())
        };
        let pause = volume.pause_with(record).unwrap().unwrap();
        assert!(cgroups[0].is_frozen() && cgroups[1].is_frozen());
        assert_still(&volume.data);
        assert_eq!(pause.resume().unwrap().containers.len(), 2);
        drop((first, second));
    });
}

#[test]
fn consumers_that_keep_appearing_are_not_paused() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroups = [(); 3].map(|()| TestCgroup::new(hierarchy));
        let mut containers = vec![volume.container(&cgroups[0], WRITE)];
        let calls = Cell::new(0);
        let record = &mut |_: &PauseRecord| {
            calls.set(calls.get() + 1);
            containers.push(volume.container(&cgroups[calls.get()], WRITE));
            Ok(())
        };
        let error = volume.pause_with(record).unwrap_err();
        assert_eq!((error.kind(), calls.get()), (Kind::Busy, 2), "{}", error.chain());
        assert!(cgroups.iter().all(|cgroup| !cgroup.is_frozen()));
        assert_growing(&volume.data);
        drop(containers);
    });
}

#[test]
fn a_consumer_that_appears_during_the_pause_spoils_it() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroups = [TestCgroup::new(hierarchy), TestCgroup::new(hierarchy)];
        let first = volume.container(&cgroups[0], WRITE);
        let pause = volume.pause().unwrap().unwrap();
        let second = volume.container(&cgroups[1], WRITE);
        assert_eq!(pause.resume().unwrap_err().kind(), Kind::Busy);
        assert!(!cgroups[0].is_frozen());
        drop((first, second));
    });
}

#[test]
fn a_container_that_forks_all_the_time_is_paused() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroup = TestCgroup::new(hierarchy);
        let forks = "echo ready; while :; do (echo x >> $DIR/file) & (echo y >> $DIR/file) & wait; done";
        // Its processes end with their parent's cgroup: the shell is killed, and the others end by themselves.
        let container = volume.container(&cgroup, forks);
        for _ in 0..5 {
            assert_growing(&volume.data);
            let pause = volume.pause().unwrap().unwrap();
            let before = state(&volume.data);
            assert_eq!(state(&volume.data), before);
            pause.resume().unwrap();
        }
        drop(container);
    });
}

/// Writes to its argument in a second thread, after the first one has ended by `exit(2)`.
const WRITING_THREAD: &str = "
import ctypes, os, platform, sys, threading, time
def write():
    while open('/proc/self/stat').read().rsplit(')')[-1].split()[0] != 'Z':
        time.sleep(0.01)
    print('ready', flush=True)
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    while True:
        os.write(file, b'x')
threading.Thread(target=write).start()
ctypes.CDLL(None).syscall(60 if platform.machine() == 'x86_64' else 93, 0)
";

#[test]
fn a_consumer_whose_first_thread_has_ended_is_paused() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroup = TestCgroup::new(hierarchy);
        let program = volume.base.join("program.py");
        fs::write(&program, WRITING_THREAD).unwrap();
        let container = volume.container(&cgroup, &format!("exec python3 {} $DIR/file", program.display()));
        assert_growing(&volume.data);
        let pause = volume.pause().unwrap().unwrap();
        assert_still(&volume.data);
        assert_eq!(pause.resume().unwrap().containers, [cgroup.path()]);
        drop(container);
    });
}

#[test]
fn a_failed_record_freezes_nothing() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroup = TestCgroup::new(hierarchy);
        let container = volume.container(&cgroup, WRITE);
        let full = || orlop::error::Error::new(Kind::NoSpace, "full");
        assert_eq!(volume.pause_with(&mut |_| Err(full())).unwrap_err().kind(), Kind::NoSpace);
        assert!(!cgroup.is_frozen());
        assert_growing(&volume.data);
        drop(container);
    });
}

#[test]
fn a_container_that_waits_for_a_disk_is_not_paused() {
    in_each_hierarchy(|volume, hierarchy| {
        if !is_installed() {
            return skip("bindfs is not installed");
        }
        let disk = Fuse::start(&volume.base, &[]);
        let cgroup = TestCgroup::new(hierarchy);
        let other = volume.base.join("mount/other");
        let write_to_both =
            format!("echo ready; while :; do echo x >> $DIR/file; echo x >> {}; done", other.display());
        let container = volume.container(&cgroup, &write_to_both);
        assert_growing(&volume.data);
        disk.send(Signal::STOP);
        let mut refused = None;
        within_seconds(60, "the container waits for the disk", || {
            refused = volume.pause().err();
            refused.is_some()
        });
        let error = refused.unwrap();
        assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
        for word in [&cgroup.path()[..], "did not freeze in time", "consistency: none"] {
            assert!(error.chain().contains(word), "{word}: {}", error.chain());
        }
        assert!(!cgroup.is_frozen(), "it continues when the disk responds");
        disk.send(Signal::CONT);
        assert_growing(&volume.data);
        volume.pause().unwrap().unwrap().resume().unwrap();
        drop((container, disk));
    });
}

#[test]
fn two_pauses_of_one_container_take_turns() {
    in_each_hierarchy(|volume, hierarchy| {
        let cgroup = TestCgroup::new(hierarchy);
        let container = volume.container(&cgroup, WRITE);
        let dir = File::open(&volume.data).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let pause = pauser().pause(&[dir.as_fd()], LIMIT, &mut |_| Ok(())).unwrap().unwrap();
                        assert_still(&volume.data);
                        pause.resume().unwrap();
                    }
                });
            }
        });
        assert!(!cgroup.is_frozen());
        drop(container);
    });
}
