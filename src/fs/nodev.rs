//! A tree through which no device can be opened, so that its files can be opened in one step.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Result as ErrnoResult;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys::mount_setattr::{Change, NODEV, NOEXEC, NOSUID, PRIVATE, mount_setattr_of_tree};

/// Clones the mount of a directory, and those below it, detached and with `nodev`. `None` where the kernel does not: without
/// `CAP_SYS_ADMIN`, before Linux 5.12, and for a mount of another namespace.
pub(super) fn clone_without_devices(dir: BorrowedFd<'_>) -> Option<OwnedFd> {
    try_clone(dir).ok()
}

fn try_clone(dir: BorrowedFd<'_>) -> ErrnoResult<OwnedFd> {
    // With the mounts below: the walk must see that something is mounted.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(dir, "", flags)?;
    // Private: what is mounted later stays out of it.
    let change = Change { set: NODEV | NOEXEC | NOSUID, clear: 0, propagation: PRIVATE };
    mount_setattr_of_tree(tree.as_fd(), change)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    use rustix::io::Errno;

    use super::*;
    use crate::fs::open_file;

    /// Needs root.
    #[test]
    fn a_device_cannot_be_opened_through_the_clone_and_a_fifo_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        let make = |name, kind, device| mknodat(CWD, dir.path().join(name), kind, Mode::RUSR, device);
        make("fifo", FileType::Fifo, 0).unwrap();
        let clone = clone_without_devices(File::open(dir.path()).unwrap().as_fd());
        let Some(clone) = clone.filter(|_| make("null", FileType::CharacterDevice, makedev(1, 3)).is_ok())
        else {
            return;
        };
        let open = |name| open_file(clone.as_fd(), name).map(drop);
        assert_eq!(open(c"file"), Ok(()));
        assert_eq!(open(c"fifo"), Ok(()), "an open that blocks does not return");
        assert_eq!(open(c"link"), Err(Errno::LOOP));
        assert_eq!(open(c"null"), Err(Errno::ACCESS));
    }
}
