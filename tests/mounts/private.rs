//! Volumes published from a mount in a private mount namespace, as that of a share is. A tmpfs stands in for the share.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use orlop::mount::namespace::MountNamespace;
use orlop::mount::users::Users;
use orlop::mount::{self, MountFlags, attach, detach, is_below, is_same, mounted_at, targets_of};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::isolation::{in_own_mount_namespace, in_own_process, is_root};

/// A new tmpfs that is mounted nowhere.
fn detached_tmpfs() -> OwnedFd {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_create(&tmpfs).unwrap();
    fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC).unwrap()
}

fn directory(at: &OwnedFd, name: &str) -> OwnedFd {
    mkdirat(at, name, Mode::RWXU).unwrap();
    openat(at, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn a_directory_of_a_private_namespace_is_published_found_and_compared() {
    in_own_process(
        "mounts::private::a_directory_of_a_private_namespace_is_published_found_and_compared",
        || {
            let share = MountNamespace::new(detached_tmpfs().as_fd()).unwrap();
            let root = share.root().unwrap();
            let (data, other) = (directory(&root, "data"), directory(&root, "data-2"));
            let targets = tempfile::tempdir().unwrap();
            let target = targets.path().canonicalize().unwrap().join("t");
            fs::create_dir(&target).unwrap();
            let flags = MountFlags { read_only: true, ..MountFlags::default() };
            let open = mount::open_target(&target).unwrap();
            attach(data.as_fd(), open.as_fd(), flags).unwrap();

            let found = mounted_at(&target).unwrap().unwrap();
            assert!(is_same(&found, data.as_fd(), flags).unwrap());
            assert!(!is_same(&found, data.as_fd(), MountFlags::default()).unwrap(), "other flags");
            assert!(!is_same(&found, other.as_fd(), flags).unwrap(), "another directory");
            assert!(found.flags.noexec, "the flags of the share are inherited");
            assert!(is_below(&found, root.as_fd()).unwrap());
            assert_eq!(targets_of(data.as_fd()).unwrap(), std::slice::from_ref(&target));
            assert_eq!(targets_of(other.as_fd()).unwrap().len(), 0);
            let users = Users::new("/proc".into());
            assert_eq!(users.of(data.as_fd()).unwrap().len(), 1);
            assert_eq!(users.of(other.as_fd()).unwrap().len(), 0, "the share itself is no use");
            assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" /pool "));

            // The volume remains when the share is given up, as when orlop ends.
            drop((share, root, open));
            assert!(fs::write(target.join("file"), "").is_err(), "read-only");
            assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
            detach(&target).unwrap();
        },
    );
}

#[test]
fn a_namespace_is_taken_over_by_its_descriptor() {
    in_own_process("mounts::private::a_namespace_is_taken_over_by_its_descriptor", || {
        let share = MountNamespace::new(detached_tmpfs().as_fd()).unwrap();
        let data = directory(&share.root().unwrap(), "data");
        let kept = share.as_fd().try_clone_to_owned().unwrap();
        drop(share);
        let share = MountNamespace::from_fd(kept);
        assert!(openat(share.root().unwrap(), "data", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).is_ok());
        let targets = tempfile::tempdir().unwrap();
        let target = mount::open_target(targets.path()).unwrap();
        attach(data.as_fd(), target.as_fd(), MountFlags::default()).unwrap();
        detach(targets.path()).unwrap();
    });
}

#[test]
fn what_the_host_has_mounted_is_not_kept_by_a_private_namespace() {
    if !is_root() {
        return;
    }
    let share = MountNamespace::new(detached_tmpfs().as_fd()).unwrap();
    let table = table_of(&share);
    let mut places: Vec<_> = table.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    places.sort_unstable();
    assert_eq!(places, ["/", "/pool", "/proc"]);
}

/// The mount table of a private namespace.
fn table_of(share: &MountNamespace) -> String {
    let mut table = String::new();
    in_own_mount_namespace(|| {
        move_into_link_name_space(share.as_fd(), Some(LinkNameSpaceType::Mount)).unwrap();
        table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    });
    table
}
