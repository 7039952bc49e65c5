//! The bare system calls of each operation: what the kernel and the disk need, without a server.

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

/// How much of an operation survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syncs {
    /// All of it, as orlop guarantees: syncs the record and every directory that changes.
    All,
    /// Only the contents of the record.
    Record,
}

/// The open directories of a pool.
#[derive(Debug)]
pub(crate) struct Bare {
    work: OwnedFd,
    volumes: OwnedFd,
    trash: OwnedFd,
    pool: PathBuf,
    record: Vec<u8>,
    next: AtomicU64,
}

impl Bare {
    /// Opens the directories of `pool`, where orlop may work at the same time; `record` is written to every volume.
    pub(crate) fn new(pool: &Path, record: Vec<u8>) -> Self {
        let open = |name: &str| {
            fs::create_dir_all(pool.join(name)).unwrap();
            OwnedFd::from(File::open(pool.join(name)).unwrap())
        };
        Self {
            work: open("work"),
            volumes: open("volumes"),
            trash: open("trash"),
            pool: pool.to_owned(),
            record,
            next: AtomicU64::new(0),
        }
    }

    /// Returns a name that no volume has.
    pub(crate) fn name(&self) -> String {
        format!("bare-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the target of a volume: a path beside the pool.
    pub(crate) fn target(&self, name: &str) -> PathBuf {
        self.pool.with_file_name(format!("target-{name}"))
    }

    /// Creates a volume: a draft in `work/` that is renamed into `volumes/`.
    pub(crate) fn create(&self, name: &str, syncs: Syncs) -> io::Result<()> {
        mkdirat(&self.work, name, Mode::RWXU)?;
        let draft = openat(&self.work, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        mkdirat(&draft, "data", Mode::from_raw_mode(0o777))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut record = File::from(openat(&draft, "volume.json", flags, Mode::RUSR | Mode::WUSR)?);
        record.write_all(&self.record)?;
        fsync(&record)?;
        if syncs == Syncs::All {
            fsync(&draft)?;
        }
        renameat_with(&self.work, name, &self.volumes, name, RenameFlags::NOREPLACE)?;
        if syncs == Syncs::All {
            fsync(&self.volumes)?;
        }
        Ok(())
    }

    /// Mounts the data of a volume at a target, which it makes.
    pub(crate) fn publish(&self, name: &str, target: &Path) -> io::Result<()> {
        mkdirat(CWD, target, Mode::RWXU)?;
        let how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(&self.volumes, format!("{name}/data"), how)?;
        let change = Change { set: NOSUID | NODEV, clear: 0, propagation: PRIVATE };
        mount_setattr(tree.as_fd(), change)?;
        Ok(move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }

    /// Unmounts a target and removes it.
    pub(crate) fn unpublish(&self, target: &Path) -> io::Result<()> {
        unmount(target, UnmountFlags::NOFOLLOW)?;
        Ok(unlinkat(CWD, target, AtFlags::REMOVEDIR)?)
    }

    /// Moves a volume into the trash.
    pub(crate) fn delete(&self, name: &str, syncs: Syncs) -> io::Result<()> {
        renameat_with(&self.volumes, name, &self.trash, name, RenameFlags::NOREPLACE)?;
        if syncs == Syncs::All {
            fsync(&self.trash)?;
            fsync(&self.volumes)?;
        }
        Ok(())
    }

    /// Removes an empty volume from the trash.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        unlinkat(&self.trash, format!("{name}/data"), AtFlags::REMOVEDIR)?;
        unlinkat(&self.trash, format!("{name}/volume.json"), AtFlags::empty())?;
        Ok(unlinkat(&self.trash, name, AtFlags::REMOVEDIR)?)
    }

    /// Creates, publishes, unpublishes and deletes a volume.
    fn lifecycle(&self, syncs: Syncs) -> io::Result<()> {
        let name = self.name();
        let target = self.target(&name);
        self.create(&name, syncs)?;
        self.publish(&name, &target)?;
        self.unpublish(&target)?;
        self.delete(&name, syncs)
    }

    /// Runs lifecycles on `callers` threads; returns lifecycles per second.
    pub(crate) fn lifecycles(&self, callers: usize, time: Duration, syncs: Syncs) -> f64 {
        self.rate_of(callers, time, || self.lifecycle(syncs).unwrap())
    }

    /// Creates volumes on `callers` threads; returns volumes per second.
    pub(crate) fn creates(&self, callers: usize, time: Duration) -> f64 {
        self.rate_of(callers, time, || self.create(&self.name(), Syncs::All).unwrap())
    }

    fn rate_of(&self, callers: usize, time: Duration, work: impl Fn() + Sync) -> f64 {
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

    /// Removes what these calls left in `trash/` and `volumes/`; not part of any figure.
    pub(crate) fn clean(&self) {
        for dir in ["trash", "volumes"] {
            for entry in fs::read_dir(self.pool.join(dir)).unwrap().flatten() {
                if is_bare(&entry) {
                    fs::remove_dir_all(entry.path()).unwrap();
                }
            }
        }
    }
}

/// Reports whether an entry of the pool was made by these calls.
pub(crate) fn is_bare(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("bare-")
}
