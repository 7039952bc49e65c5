//! Volumes that get a project id are killed at every system call, on xfs, which has ids whether the kernel has quotas or not. Needs
//! root, strace, xfsprogs and loop devices.
//!
//! With `ORLOP_TAKEOVER_DISK=DIRECTORY`, the kills are on that filesystem, which has project quotas: `tests/vm/inside-long`.
#![expect(clippy::print_stderr, reason = "reports what was killed")]

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use orlop::engine::Engine;
use orlop::engine::request::{Publish, Sharing, Tuning};
use orlop::error::{Error, Kind};
use orlop::fs::audit::Strays;
use orlop::fs::project;
use orlop::mount::MountFlags;
use serde_json::Value;

use crate::common::disk::{Disk, run};
use crate::common::held::{check_fix_killed_at, has_strace};
use crate::common::isolation::{in_own_mount_namespace, is_root};
use crate::common::pool::{
    MIB, check, contents, edit_record, id, names, open, open_with, read_record, request, volume_record,
};
use crate::common::wait::within_seconds;

/// The system calls that change something while a volume gets its project id.
const CALLS: [&str; 5] = ["ioctl", "renameat", "fsync", "mkdirat", "unlinkat"];
/// The size of the volume where the kernel enforces it.
const SIZE: u64 = 8 * MIB;
/// The most calls of a kind that one run makes.
const MOST: usize = 300;

/// A tree whose entries a program moves between directories.
fn make_tree(data: &Path) {
    for directory in ["a/b", "c"] {
        fs::create_dir_all(data.join(directory)).unwrap();
    }
    for file in ["top", "a/file", "a/b/deep", "c/other"] {
        fs::write(data.join(file), file).unwrap();
    }
    fs::hard_link(data.join("a/file"), data.join("c/second")).unwrap();
    symlink("../top", data.join("a/link")).unwrap();
    run("mkfifo", &[data.join("c/fifo").to_str().unwrap()]);
}

/// Moves each entry into each directory and back, as a program does.
fn move_everything(data: &Path) {
    let directories = [data.to_owned(), data.join("a"), data.join("a/b"), data.join("c")];
    for from in &directories {
        for name in names(from) {
            for to in &directories {
                let (old, new) = (from.join(&name), to.join("moved"));
                if to.starts_with(&old) {
                    continue;
                }
                fs::rename(&old, &new)
                    .unwrap_or_else(|error| panic!("{} -> {}: {error}", old.display(), new.display()));
                fs::rename(&new, &old).unwrap();
            }
        }
    }
}

fn audit(engine: &Engine) -> Strays {
    engine.audit(&id("v"), false).unwrap().unwrap().run(Duration::MAX).unwrap().unwrap()
}

/// The project id in a record.
fn project_of(record: &Value) -> u32 {
    u32::try_from(record["backend"]["project"].as_u64().unwrap()).unwrap()
}

/// A pool with the backend `quota` and, beside it, a volume of plain directories.
struct Case {
    pool: PathBuf,
    template: PathBuf,
    /// The size of the volume. The kernel enforces it unless it is 0.
    size: u64,
    /// The system calls that only limits need.
    own_calls: Vec<&'static str>,
}

impl Case {
    fn new(disk: &Path, size: u64) -> Self {
        let (pool, template) = (disk.join("pool"), disk.join("template"));
        fs::create_dir(&pool).unwrap();
        drop(open(&pool));
        edit_record(&pool.join("orlop.json"), |marker| marker["backend"] = "dir".into());
        let engine = open(&pool);
        engine.create(&request("v", size)).unwrap();
        make_tree(&pool.join("volumes/v/data"));
        drop(engine);
        fs::rename(pool.join("volumes/v"), &template).unwrap();
        edit_record(&pool.join("orlop.json"), |marker| marker["backend"] = "quota".into());
        let own_calls = if size == 0 { vec![] } else { vec!["quotactl_fd"] };
        Self { pool, template, size, own_calls }
    }

    fn renew(&self) {
        let volume = self.pool.join("volumes/v");
        if self.size != 0 && volume.exists() {
            let project = project_of(&read_record(&volume_record(&self.pool, "v")));
            project::limit(File::open(&self.pool).unwrap().as_fd(), project, 0, 0).unwrap();
        }
        let _ = fs::remove_dir_all(&volume);
        run("cp", &["-a", self.template.to_str().unwrap(), volume.to_str().unwrap()]);
    }

    /// A program that uses the volume after the kill can move its files, or it cannot use the volume. And the next attempt
    /// completes it.
    fn check_after(&self, what: &str) {
        let (engine, data) = (open(&self.pool), self.pool.join("volumes/v/data"));
        match engine.hold(&id("v")) {
            Ok(held) => {
                drop(held);
                move_everything(&data);
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::Unavailable, "{what}: {}", error.chain());
                assert!(error.chain().contains("orlop check --fix"), "{what}: {}", error.chain());
            }
        }
        engine.take_over(&id("v")).unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
        assert_eq!(audit(&engine), Strays::default(), "{what}");
        assert_eq!(contents(&data), contents(&self.template.join("data")), "{what}");
        move_everything(&data);
        let record = read_record(&volume_record(&self.pool, "v"));
        assert_eq!(record["backend"].as_object().unwrap().len(), 1, "{what}: {record}");
        self.check_limits(&record, what);
        drop(engine.hold(&id("v")).unwrap());
        check(&engine, &self.pool);
    }

    /// The volume has its limit, and no other project has one.
    fn check_limits(&self, record: &Value, what: &str) {
        if self.size == 0 {
            return;
        }
        let project = project_of(record);
        let root = File::open(&self.pool).unwrap();
        let limit = |id| project::quota(root.as_fd(), id).unwrap().unwrap_or_default().max_bytes;
        assert_eq!((limit(project), &record["enforced"]), (self.size, &"bytes".into()), "{what}");
        for id in project.saturating_sub(20)..project {
            assert_eq!(limit(id), 0, "{what}: a project that no volume has");
        }
    }
}

#[test]
fn a_volume_whose_takeover_is_killed_is_usable_or_refused_until_it_is_completed() {
    if !is_root() {
        return;
    }
    if !has_strace() {
        return;
    }
    in_own_mount_namespace(|| {
        if let Some(with_quotas) = std::env::var_os("ORLOP_TAKEOVER_DISK") {
            let dir = tempfile::tempdir_in(with_quotas).unwrap();
            return kill_everywhere(&Case::new(dir.path(), SIZE));
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 320, &["mkfs.xfs"]);
        kill_everywhere(&Case::new(disk.path(), 0));
    });
}

/// Kills a takeover at every call.
fn kill_everywhere(case: &Case) {
    let began = Instant::now();
    let mut all = 0;
    for call in CALLS.iter().chain(&case.own_calls) {
        let mut kills = 0;
        for at in 1..MOST {
            case.renew();
            let is_killed = check_fix_killed_at(&case.pool, call, at);
            case.check_after(&format!("{call} {at}"));
            if !is_killed {
                break;
            }
            kills = at;
        }
        assert!(kills < MOST - 1, "{call}: it never ended");
        assert!(
            kills > 0 || *call != "ioctl" && !case.own_calls.contains(call),
            "{call}: nothing was killed"
        );
        all += kills;
    }
    eprintln!("{all} kills took {} s", began.elapsed().as_secs());
}

#[test]
fn a_publish_that_waits_while_a_takeover_is_killed_is_refused() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 320, &["mkfs.xfs"]);
        let pool = disk.path().join("pool");
        fs::create_dir(&pool).unwrap();
        // A call waits for the lock as long as the test needs.
        let tuning = Tuning { lock_wait: Duration::from_secs(600), ..Tuning::default() };
        let (engine, other) = (open_with(&pool, tuning), open(&pool));
        engine.create(&request("v", 0)).unwrap();
        let lock = other.hold(&id("v")).unwrap();
        let publish = Publish {
            id: id("v"),
            target: dir.path().join("target"),
            flags: MountFlags::default(),
            sharing: Sharing::ManyTargets,
            ephemeral: None,
        };
        thread::scope(|scope| {
            let calls =
                [begin(scope, || engine.publish(&publish)), begin(scope, || engine.hold(&id("v")).map(drop))];
            // What a takeover leaves that is killed while it gives the files their project.
            let marker = pool.join("orlop.json");
            fs::copy(&marker, pool.join("new")).unwrap();
            edit_record(&pool.join("new"), |marker| marker["backend"] = "quota".into());
            fs::rename(pool.join("new"), marker).unwrap();
            edit_record(&volume_record(&pool, "v"), |record| {
                record["backend"] = serde_json::json!({"project": 7, "entering": 1});
            });
            drop(lock);
            for call in calls {
                let error = call.join().unwrap().unwrap_err();
                assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
            }
        });
        let error = engine.publish(&publish).unwrap_err();
        assert!(error.chain().contains("orlop check --fix"), "{}", error.chain());
    });
}

#[test]
fn a_volume_in_use_spends_no_project_id_when_it_is_not_taken_over() {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 320, &["mkfs.xfs"]);
        let case = Case::new(disk.path(), 0);
        case.renew();
        fs::create_dir_all(case.pool.join("volumes/unmanaged/data")).unwrap();
        let target = dir.path().join("target");
        let engine = open(&case.pool);
        engine.create(&request("w", 0)).unwrap();
        let publish = Publish {
            id: id("v"),
            target: target.clone(),
            flags: MountFlags::default(),
            sharing: Sharing::ManyTargets,
            ephemeral: None,
        };
        engine.publish(&publish).unwrap();
        let taken = || fs::read_to_string(case.pool.join("projects.json")).unwrap();
        let before = taken();
        for _ in 0..2 {
            // A process of its own, as `orlop check --fix` is.
            let engine = open(&case.pool);
            assert_eq!(engine.take_over(&id("v")).unwrap_err().kind(), Kind::InUse);
            assert!(engine.take_over(&id("unmanaged")).unwrap().is_none());
        }
        assert_eq!(taken(), before);
        engine.unpublish("p/v", &target).unwrap();
        assert!(engine.take_over(&id("v")).unwrap().is_some());
        assert_ne!(taken(), before);
    });
}

/// Begins a call that waits for a lock, and returns when it waits.
fn begin<'s>(
    scope: &'s thread::Scope<'s, '_>,
    call: impl FnOnce() -> Result<(), Error> + Send + 's,
) -> thread::ScopedJoinHandle<'s, Result<(), Error>> {
    let (started, thread) = mpsc::channel();
    let running = scope.spawn(move || {
        started.send(rustix::thread::gettid()).unwrap();
        call()
    });
    let status = format!("/proc/self/task/{}/status", thread.recv().unwrap());
    let mut asleep = 0;
    within_seconds(60, "the call waits", || {
        let sleeps = fs::read_to_string(&status).unwrap_or_default().contains("State:\tS");
        asleep = if sleeps { asleep + 1 } else { 0 };
        asleep == 10
    });
    running
}
