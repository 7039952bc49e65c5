//! Mounts that are built detached and moved into place.
//!
//! A mount is cloned detached, receives its flags, and is moved to the target in one step, so no process ever sees it
//! without them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::options::MountFlags;
use super::{legacy, mount_of, namespace};
use crate::error::{Context as _, Error, Kind, Result};
use crate::sys::mount_setattr::mount_setattr;

/// The system calls that make a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `open_tree`, `mount_setattr` and `move_mount`: Linux 5.12 and newer.
    Detached,
    /// mount(2), in a private staging directory.
    Legacy,
}

/// Clones the directory `source` as a detached bind mount, sets its flags, and moves it to `target` in one step.
/// Covers what is already mounted at `target`: check with [`super::mounted_at`] first.
///
/// # Errors
/// `Internal` if the kernel refuses a call. Nothing is mounted then.
pub fn attach(source: BorrowedFd<'_>, target: BorrowedFd<'_>, flags: MountFlags) -> Result<()> {
    // A missing call fails at once and costs next to nothing, so its absence is not cached.
    match attach_detached(source, target, flags) {
        Err((_, Errno::NOSYS)) => attach_by(Api::Legacy, source, target, flags),
        Err((step, errno)) => Err(errno).context(|| step),
        Ok(()) => Ok(()),
    }
}

/// Like [`attach`], with the given system calls.
///
/// # Errors
/// Like [`attach`]; `Internal` also if the kernel lacks the calls.
pub fn attach_by(api: Api, source: BorrowedFd<'_>, target: BorrowedFd<'_>, flags: MountFlags) -> Result<()> {
    match api {
        Api::Detached => attach_detached(source, target, flags)
            .map_err(|(step, errno)| (step, std::io::Error::from(errno)))
            .or_else(|(step, cause)| Err(cause).context(|| step)),
        Api::Legacy => legacy::attach(source, target, flags.inherit(containing_flags(source)?)),
    }
}

/// The clone of a shared mount joins its peer group, and the clone of a slave mount is a slave: a filesystem mounted in
/// the pool would appear in every volume published from it. So the clone is made private. It still propagates from the
/// target: a mount that is moved to a shared parent, such as kubelet's, gets a peer group of its own, and its mounting
/// and unmounting propagate to the parent's peers. The clone is not recursive: a volume contains no mounts.
fn attach_detached(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    flags: MountFlags,
) -> Result<(), (&'static str, Errno)> {
    let tree = detached(source, flags)?;
    move_to(&tree, target)
}

/// Makes the calling thread's own mount namespace, in which the directory `source` is mounted at `target`. The thread
/// cannot leave it. Mounts of the host still appear in it, but none of its mounts appear elsewhere.
///
/// # Errors
/// `Invalid` if `target` is not a directory; `Internal` if the kernel refuses a call, such as before Linux 5.12.
pub fn attach_in_own_namespace(source: BorrowedFd<'_>, target: &Path, flags: MountFlags) -> Result<()> {
    let tree = detached(source, flags).or_else(|(step, errno)| Err(errno).context(|| step))?;
    namespace::enter_new()?;
    let path_only = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(target, path_only, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => {
            let text = format!("{} is not a directory of this host", target.display());
            return Err(Error::new(Kind::Invalid, text));
        }
        opened => opened.context(|| format!("open {}", target.display()))?,
    };
    move_to(&tree, directory.as_fd()).or_else(|(step, errno)| Err(errno).context(|| step))
}

fn detached(source: BorrowedFd<'_>, flags: MountFlags) -> Result<OwnedFd, (&'static str, Errno)> {
    let tree = clone(source).map_err(|errno| ("clone the directory", errno))?;
    mount_setattr(tree.as_fd(), flags.attr_change())
        .map_err(|errno| ("set the flags of the mount", errno))?;
    Ok(tree)
}

fn move_to(tree: &OwnedFd, target: BorrowedFd<'_>) -> Result<(), (&'static str, Errno)> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
        .map_err(|errno| ("move the mount into place", errno))
}

/// Clones a directory as a detached mount. The kernel does that only in the namespace of its mount.
fn clone(source: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = namespace::first(|| match rustix::mount::open_tree(source, "", flags) {
        Err(Errno::INVAL) => Ok(None),
        tree => Ok(Some(tree)),
    });
    // A namespace that cannot be entered is one in which the directory was not found.
    tree.ok().flatten().unwrap_or(Err(Errno::INVAL))
}

/// Returns the flags of the mount that `source` was opened through; the defaults if it is in no table.
fn containing_flags(source: BorrowedFd<'_>) -> Result<MountFlags> {
    let mount = mount_of(source)?;
    Ok(mount.map_or_else(MountFlags::default, |mount| mount.flags))
}
