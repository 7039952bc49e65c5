//! Private mount namespaces: each keeps one mount that no other process sees, such as that of a share.
//!
//! Files of the mount are used through descriptors from everywhere. But the kernel clones a directory of it only for a thread
//! in the namespace, and describes the mount only there. `first` looks in the own namespace, and then in these.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::{Context as _, Result};

/// Where the mount is in its namespace.
const PLACE: &str = "/pool";

/// The namespaces that this process keeps.
static KEPT: Mutex<Vec<Weak<OwnedFd>>> = Mutex::new(Vec::new());

/// A mount namespace with one mount. Both exist as long as this value, the mount also as long as files in it are open.
#[derive(Debug)]
pub struct MountNamespace(Arc<OwnedFd>);

impl MountNamespace {
    /// Makes a namespace with this mount, which must be detached.
    ///
    /// # Errors
    /// The error of the failed system call, such as `Internal` without the privilege to make mounts.
    pub fn new(mount: BorrowedFd<'_>) -> Result<Self> {
        in_thread(|| make(mount))?.map(Self::from_fd)
    }

    /// Uses a namespace that [`MountNamespace::new`] made, here or in another process.
    #[must_use]
    pub fn from_fd(namespace: OwnedFd) -> Self {
        let namespace = Arc::new(namespace);
        let mut kept = kept();
        kept.retain(|kept| kept.strong_count() > 0);
        kept.push(Arc::downgrade(&namespace));
        Self(namespace)
    }

    /// Opens the root directory of the mount.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn root(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::open(PLACE, flags, Mode::empty());
        within(self.as_fd(), open)?.context(|| "open the root of the mount")
    }
}

impl AsFd for MountNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Moves the calling thread to a new mount namespace. Mounts of the host still appear in it, but not the other way round.
///
/// # Errors
/// The error of the failed system call, such as `Internal` without the privilege to make mounts.
pub(super) fn enter_new() -> Result<()> {
    unshare(UnshareFlags::NEWNS | UnshareFlags::FS).context(|| "make a mount namespace")?;
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", downstream).context(|| "keep the mounts from the host")
}

fn kept() -> MutexGuard<'static, Vec<Weak<OwnedFd>>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first result of `find` in the namespace of the calling thread and in those that this process keeps.
pub(super) fn first<T: Send>(find: impl Fn() -> Result<Option<T>> + Sync) -> Result<Option<T>> {
    if let Some(found) = find()? {
        return Ok(Some(found));
    }
    let namespaces: Vec<_> = kept().iter().filter_map(Weak::upgrade).collect();
    for namespace in namespaces {
        if let Some(found) = within(namespace.as_fd(), &find)?? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Calls `call` in a thread of its own, since a thread cannot leave the namespace that it has made or entered.
fn in_thread<T: Send>(call: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let spawned = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, call);
        let thread = spawned.context(|| "start a thread")?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Calls `call` in a namespace.
fn within<T: Send>(namespace: BorrowedFd<'_>, call: impl FnOnce() -> T + Send) -> Result<T> {
    in_thread(|| {
        // The kernel moves no thread whose root directory is shared with others.
        unshare(UnshareFlags::FS)
            .and_then(|()| move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount)))
            .context(|| "enter a mount namespace")?;
        Ok(call())
    })?
}

#[expect(deprecated, reason = "unshare is unsafe only for descriptors, which are not unshared here")]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    rustix::thread::unshare(flags)
}

/// Makes the namespace of the calling thread. It has `/proc`, as functions of this module need, and the mount. What the
/// host has mounted is detached in it: disks could not be unmounted otherwise.
fn make(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    unshare(UnshareFlags::NEWNS | UnshareFlags::FS).context(|| "make a mount namespace")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).context(|| "make the mounts private")?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let proc = rustix::mount::open_tree(CWD, "/proc", clone).context(|| "clone the mount of /proc")?;
    replace_root().context(|| "replace the root of the mount namespace")?;
    let attach = |mount: BorrowedFd<'_>, at: &str| {
        rustix::fs::mkdir(at, Mode::RWXU)?;
        rustix::mount::move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    };
    attach(proc.as_fd(), "/proc").context(|| "attach /proc")?;
    attach(mount, PLACE).context(|| "attach the mount")?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty()).context(|| "open the mount namespace")
}

fn replace_root() -> Result<(), Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Any directory will do, and this one exists everywhere.
    rustix::mount::mount("tmpfs", "/proc", "tmpfs", flags, c"size=64k,nr_inodes=16,mode=0700")?;
    rustix::process::chdir("/proc")?;
    // The old root is now mounted over the new one.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}
