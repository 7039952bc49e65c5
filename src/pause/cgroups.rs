//! The host's cgroups: finding those of processes, and freezing them.
//!
//! Paths in `/proc/PID/cgroup` are relative to the cgroup namespace of the thread that reads them. So the host's cgroups
//! are used in threads and processes of their own, which enter the namespace of process 1.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::thread::LinkNameSpaceType;

use super::record::{FrozenCgroup, Hierarchy};
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::mountinfo::{Line, Reader};

/// The mounted hierarchies of the host.
#[derive(Debug)]
pub(super) struct Hierarchies {
    freezer: Option<OwnedFd>,
    unified: Option<OwnedFd>,
    /// The root of every hierarchy, including the two above.
    roots: Vec<OwnedFd>,
}

/// An open cgroup.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// Where it is.
    pub(super) name: FrozenCgroup,
    dir: OwnedFd,
    /// `freezer.state`, or `cgroup.freeze` of cgroup v2.
    control: OwnedFd,
    /// Tells whether all processes are frozen: `freezer.state`, or `cgroup.events` of cgroup v2.
    state: OwnedFd,
    /// Tells whether the cgroup is frozen by itself, not through one above it: `freezer.self_freezing`, or
    /// `cgroup.freeze` of cgroup v2.
    own_state: OwnedFd,
}

impl Hierarchies {
    /// Moves the calling thread to the cgroup namespace of process 1, and opens the hierarchies that this process has
    /// mounted. Parts of a hierarchy do not count.
    ///
    /// # Errors
    /// `Unsupported` if process 1 cannot be inspected.
    pub(super) fn of_host(proc: &Path) -> Result<Self> {
        let hint = "cgroups of the host cannot be reached: run orlop on the host, or in a privileged pod with hostPID";
        enter_namespace(proc).and_then(|of| Self::open_mounted(&proc.join(of))).map_err(|errno| {
            let cause = std::io::Error::from(errno);
            Error::caused(Kind::Unsupported, hint, cause)
        })
    }

    fn open_mounted(process: &Path) -> Result<Self, Errno> {
        let open_dir = |path: &Path| {
            rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        };
        let table = open(CWD, process.join("mountinfo"), OFlags::RDONLY)?;
        let mut mounts = Vec::new();
        Reader::default().each(table, |line: Line<'_>| {
            mounts.extend(hierarchy_of(&line));
            std::ops::ControlFlow::Continue(())
        })?;
        let mut found = Self { freezer: None, unified: None, roots: Vec::new() };
        for (hierarchy, target) in mounts {
            let Ok(root) = open_dir(&process.join("root").join(target)) else { continue };
            match hierarchy {
                Some(Hierarchy::Freezer) if found.freezer.is_none() => found.freezer = root.try_clone().ok(),
                Some(Hierarchy::Unified) if found.unified.is_none() => found.unified = root.try_clone().ok(),
                Some(Hierarchy::Freezer | Hierarchy::Unified) | None => {}
            }
            found.roots.push(root);
        }
        Ok(found)
    }

    /// Returns the cgroup in which a process can be frozen, from its `/proc/PID/cgroup`: its freezer of cgroup v1, or
    /// else its cgroup of cgroup v2. `None`: it is in the root of both.
    pub(super) fn locate(&self, cgroup: &str) -> Option<(Hierarchy, String)> {
        let v1 = self.freezer.as_ref().and_then(|_| path_in(cgroup, Hierarchy::Freezer));
        let v2 = self.unified.as_ref().and_then(|_| path_in(cgroup, Hierarchy::Unified));
        let v1 = v1.map(|path| (Hierarchy::Freezer, path.to_owned()));
        v1.or_else(|| v2.map(|path| (Hierarchy::Unified, path.to_owned())))
    }

    /// Opens a cgroup. A threaded one is replaced by the one above it that contains whole processes.
    ///
    /// # Errors
    /// `ENOENT` if the cgroup is gone or cannot be frozen; another error of a system call.
    pub(super) fn open(&self, hierarchy: Hierarchy, path: &str) -> Result<Cgroup, Errno> {
        let root = match hierarchy {
            Hierarchy::Freezer => &self.freezer,
            Hierarchy::Unified => &self.unified,
        };
        let root = root.as_ref().ok_or(Errno::NOENT)?.as_fd();
        let mut path = path;
        loop {
            let cgroup = Cgroup::open(root, hierarchy, path)?;
            let kind = open(&cgroup.dir, "cgroup.type", OFlags::RDONLY).and_then(|file| read(&file));
            if hierarchy == Hierarchy::Freezer || kind.is_ok_and(|kind| !kind.starts_with("threaded")) {
                return Ok(cgroup);
            }
            path = path
                .rsplit_once('/')
                .map(|(above, _)| above)
                .filter(|above| !above.is_empty())
                .ok_or(Errno::NOENT)?;
        }
    }

    /// Moves the calling process to the root of each hierarchy, as far as it may, so that it is neither frozen nor
    /// killed with the container that it was started in.
    pub(super) fn move_to_roots(&self) {
        for root in &self.roots {
            let procs = open(root, "cgroup.procs", OFlags::WRONLY);
            let _best_effort = procs.and_then(|procs| rustix::io::write(procs, b"0"));
        }
    }
}

impl Cgroup {
    fn open(root: BorrowedFd<'_>, hierarchy: Hierarchy, path: &str) -> Result<Self, Errno> {
        let below_root = path.strip_prefix('/').ok_or(Errno::NOENT)?;
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat2(root, below_root, flags, Mode::empty(), resolve)?;
        let stat = rustix::fs::statx(&dir, "", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
        let (control, state, own_state) = match hierarchy {
            Hierarchy::Freezer => ("freezer.state", "freezer.state", "freezer.self_freezing"),
            Hierarchy::Unified => ("cgroup.freeze", "cgroup.events", "cgroup.freeze"),
        };
        Ok(Self {
            name: FrozenCgroup { hierarchy, path: path.to_owned(), inode: stat.stx_ino },
            control: open(&dir, control, OFlags::WRONLY)?,
            state: open(&dir, state, OFlags::RDONLY)?,
            own_state: open(&dir, own_state, OFlags::RDONLY)?,
            dir,
        })
    }

    /// Reports whether something has frozen this very cgroup.
    pub(super) fn is_frozen_by_itself(&self) -> Result<bool, Errno> {
        Ok(read(&self.own_state)?.starts_with('1'))
    }

    /// Reports whether every process of the cgroup and of those below it is frozen. In a cgroup that was removed, none
    /// can run.
    pub(super) fn is_frozen(&self) -> Result<bool, Errno> {
        match read(&self.state) {
            Err(Errno::NODEV) => Ok(true),
            text => Ok(text?.lines().any(|line| line == "FROZEN" || line == "frozen 1")),
        }
    }

    /// Begins to freeze.
    pub(super) fn freeze(&self) -> Result<(), Errno> {
        self.write("FROZEN", "1")
    }

    /// Thaws. Succeeds if the cgroup was removed.
    pub(super) fn thaw(&self) -> Result<(), Errno> {
        match self.write("THAWED", "0") {
            Err(Errno::NODEV) => Ok(()),
            result => result,
        }
    }

    fn write(&self, freezer: &str, unified: &str) -> Result<(), Errno> {
        let word = match self.name.hierarchy {
            Hierarchy::Freezer => freezer,
            Hierarchy::Unified => unified,
        };
        rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.control, word.as_bytes(), 0)).map(|_| ())
    }

    /// Locks the cgroup, so that it is paused by one process at a time. The lock ends with the descriptor. `pause` waits
    /// between two attempts.
    ///
    /// # Errors
    /// `EWOULDBLOCK` at the deadline; the error of `pause`.
    pub(super) fn lock(
        &self,
        deadline: Instant,
        mut pause: impl FnMut(Duration) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        loop {
            match rustix::fs::flock(&self.dir, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => pause(Duration::from_millis(2))?,
                result => return result,
            }
        }
    }
}

/// Returns the path in a hierarchy from the text of `/proc/PID/cgroup`. `None`: its root, or the hierarchy does not exist.
pub(super) fn path_in(cgroup: &str, hierarchy: Hierarchy) -> Option<&str> {
    let path = cgroup.lines().find_map(|line| {
        let (_, controllers, path) = split_line(line)?;
        let is_wanted = match hierarchy {
            Hierarchy::Freezer => controllers.split(',').any(|name| name == "freezer"),
            Hierarchy::Unified => controllers.is_empty(),
        };
        is_wanted.then_some(path)
    });
    path.filter(|path| *path != "/")
}

/// Splits `5:freezer:/docker/ab`.
fn split_line(line: &str) -> Option<(&str, &str, &str)> {
    let (id, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    Some((id, controllers, path))
}

/// Returns what a mount is, and its mount point relative to the root, if it shows a whole hierarchy.
fn hierarchy_of(line: &Line<'_>) -> Option<(Option<Hierarchy>, std::path::PathBuf)> {
    let mount = line.to_info();
    if mount.root != Path::new("/") {
        return None;
    }
    let has_freezer = || mount.super_options.to_string_lossy().split(',').any(|word| word == "freezer");
    let hierarchy = match mount.fs_type.to_str()? {
        "cgroup2" => Some(Hierarchy::Unified),
        "cgroup" => has_freezer().then_some(Hierarchy::Freezer),
        _ => return None,
    };
    Some((hierarchy, mount.target.strip_prefix("/").ok()?.to_owned()))
}

/// Moves the calling thread to the cgroup namespace of process 1, unless it is there. Returns the process whose mounts
/// show the cgroups: process 1, or the thread itself where that may not be inspected.
fn enter_namespace(proc: &Path) -> Result<&'static str, Errno> {
    let link = |of: &str| rustix::fs::readlink(proc.join(of).join("ns/cgroup"), Vec::new());
    let host = match link("1") {
        // In the namespace of a container, the paths of others lead out of it, and their cgroups are not opened.
        Err(Errno::ACCESS | Errno::PERM) => return Ok("thread-self"),
        host => host?,
    };
    if host != link("thread-self")? {
        let namespace = open(CWD, proc.join("1/ns/cgroup"), OFlags::RDONLY)?;
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ControlGroup))?;
    }
    Ok("1")
}

fn open(dir: impl std::os::fd::AsFd, path: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// Reads a short file of a cgroup from its start.
fn read(file: &OwnedFd) -> Result<String, Errno> {
    let mut buffer = [0; 256];
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut buffer, 0))?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Waits for one of these descriptors, or for this time. Reports whether one is ready.
pub(super) fn poll(fds: &mut [PollFd<'_>], time: Duration) -> Result<bool, Errno> {
    let timeout = Timespec::try_from(time).map_err(|_| Errno::INVAL)?;
    match rustix::event::poll(fds, Some(&timeout)) {
        Err(Errno::INTR) => Ok(false),
        ready => Ok(ready? > 0),
    }
}

/// Reads the id of the boot.
///
/// # Errors
/// `Internal` if it cannot be read.
pub(super) fn boot_id(proc: &Path) -> Result<String> {
    let path = proc.join("sys/kernel/random/boot_id");
    let id = std::fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_in_a_hierarchy_is_found() {
        let text = "7:cpu,freezer:/docker/a:b\n1:name=systemd:/s\n0::/system.slice/x.scope\n";
        assert_eq!(path_in(text, Hierarchy::Freezer), Some("/docker/a:b"));
        assert_eq!(path_in(text, Hierarchy::Unified), Some("/system.slice/x.scope"));
        assert_eq!(path_in("6:freezer:/\n0::/\n", Hierarchy::Freezer), None);
        assert_eq!(path_in("6:freezer:/\n0::/\n", Hierarchy::Unified), None);
        assert_eq!(path_in("", Hierarchy::Unified), None);
    }
}
