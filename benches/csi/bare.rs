//! The same work by bare system calls: what the kernel and the disk take, with nothing in front.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use orlop::sys::mount_setattr::{Change, NODEV, NOSUID, PRIVATE, mount_setattr};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, fsync, mkdirat, openat, renameat_with, unlinkat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

/// How careful the sequence is about a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syncs {
    /// Whatever the promise needs: record, folder, the shelf, and at the end shelf and trash.
    All,
    /// The record alone.
    Record,
}

/// Folders like those of a pool, and the targets beside them.
#[derive(Debug)]
pub(crate) struct Bare {
    work: OwnedFd,
    volumes: OwnedFd,
    trash: OwnedFd,
    trash_path: PathBuf,
    targets: PathBuf,
    record: Vec<u8>,
    next: AtomicU64,
}

impl Bare {
    /// Works in the pool `pool`, where another may work too, and mounts below `targets`.
    pub(crate) fn new(pool: &Path, targets: &Path, record: Vec<u8>) -> Self {
        let folder = |name: &str| {
            fs::create_dir_all(pool.join(name)).unwrap();
            OwnedFd::from(File::open(pool.join(name)).unwrap())
        };
        fs::create_dir_all(targets).unwrap();
        Self {
            work: folder("work"),
            volumes: folder("volumes"),
            trash: folder("trash"),
            trash_path: pool.join("trash"),
            targets: targets.to_owned(),
            record,
            next: AtomicU64::new(0),
        }
    }

    /// A name that nobody has.
    pub(crate) fn name(&self) -> String {
        format!("bare-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The directory is made in `work/` and moved to its place.
    pub(crate) fn create(&self, name: &str, syncs: Syncs) {
        mkdirat(&self.work, name, Mode::RWXU).unwrap();
        let dir = openat(&self.work, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        mkdirat(&dir, "data", Mode::from_raw_mode(0o777)).unwrap();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut record = File::from(openat(&dir, "volume.json", flags, Mode::RUSR | Mode::WUSR).unwrap());
        record.write_all(&self.record).unwrap();
        record.sync_all().unwrap();
        if syncs == Syncs::All {
            fsync(&dir).unwrap();
        }
        renameat_with(&self.work, name, &self.volumes, name, RenameFlags::NOREPLACE).unwrap();
        if syncs == Syncs::All {
            fsync(&self.volumes).unwrap();
        }
    }

    /// The directory is mounted on a target that is made for it.
    pub(crate) fn publish(&self, name: &str) -> PathBuf {
        let target = self.targets.join(name);
        mkdirat(CWD, &target, Mode::RWXU).unwrap();
        let how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(&self.volumes, format!("{name}/data"), how).unwrap();
        let change = Change { set: NOSUID | NODEV, clear: 0, propagation: PRIVATE };
        mount_setattr(tree.as_fd(), change).unwrap();
        move_mount(&tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
        target
    }

    /// And taken away again.
    pub(crate) fn unpublish(&self, target: &Path) {
        unmount(target, UnmountFlags::NOFOLLOW).unwrap();
        unlinkat(CWD, target, AtFlags::REMOVEDIR).unwrap();
    }

    /// The directory is moved to the trash.
    pub(crate) fn delete(&self, name: &str, syncs: Syncs) {
        renameat_with(&self.volumes, name, &self.trash, name, RenameFlags::NOREPLACE).unwrap();
        if syncs == Syncs::All {
            fsync(&self.volumes).unwrap();
            fsync(&self.trash).unwrap();
        }
    }

    /// All four.
    pub(crate) fn lifecycle(&self, syncs: Syncs) {
        let name = self.name();
        self.create(&name, syncs);
        let target = self.publish(&name);
        self.unpublish(&target);
        self.delete(&name, syncs);
    }

    /// Lifecycles a second of so many threads.
    pub(crate) fn rate(&self, callers: usize, time: Duration, syncs: Syncs) -> f64 {
        self.rate_of(callers, time, || self.lifecycle(syncs))
    }

    /// How often a second so many threads do something.
    pub(crate) fn rate_of(&self, callers: usize, time: Duration, work: impl Fn() + Sync) -> f64 {
        let (done, began) = (AtomicU64::new(0), Instant::now());
        thread::scope(|scope| {
            for _ in 0..callers {
                scope.spawn(|| {
                    while began.elapsed() < time {
                        work();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        done.into_inner() as f64 / began.elapsed().as_secs_f64()
    }

    /// Removes what the sequence left in the trash: not part of any figure.
    pub(crate) fn clean(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.trash_path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("bare-") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}
