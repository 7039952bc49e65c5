//! The mounts of the own mount namespace: by `listmount(2)` and `statmount(2)` (Linux 6.8), otherwise by the mount table.

use std::ops::ControlFlow;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::mountinfo::{self, DELETED, Device};
use crate::error::{Context as _, Result};
use crate::sys::namespace::{self, MountBuffer, MountDescription, OWN_NAMESPACE};

/// `statx` flags for calls that neither trigger an automount nor contact a server that may be dead.
pub(super) const STATX_LOCAL: AtFlags =
    AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT).union(AtFlags::STATX_DONT_SYNC);

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): a mount id that is never reused.
pub(super) const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Whether the kernel has `statmount(2)` and allows this process to call it. Container runtimes may forbid it.
pub(super) fn has_statmount() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        let stat = rustix::fs::statx(rustix::fs::CWD, "/", STATX_LOCAL, MNT_ID_UNIQUE);
        stat.is_ok_and(|stat| {
            StatxFlags::from_bits_retain(stat.stx_mask).contains(MNT_ID_UNIQUE)
                && namespace::describe_mount(OWN_NAMESPACE, stat.stx_mnt_id, &mut MountBuffer::default())
                    .is_ok()
        })
    })
}

/// Describes a mount of the own namespace by its unique id; `None` if it is not attached there.
pub(super) fn describe(id: u64) -> Result<Option<MountDescription>> {
    match namespace::describe_mount(OWN_NAMESPACE, id, &mut MountBuffer::default()) {
        Err(Errno::NOENT) => Ok(None),
        mount => mount.map(Some).context(|| "describe a mount"),
    }
}

/// Calls `visit` with the root and the mount point of each mount of a filesystem. Mounts whose root was removed are left
/// out.
///
/// # Errors
/// `Internal` if the mounts cannot be listed.
pub(super) fn each_of_device(device: Device, visit: impl FnMut(&[u8], &[u8])) -> Result<()> {
    if has_statmount() {
        return list_of_device(device, visit).context(|| "list the mounts");
    }
    each_in_table(device, visit)
}

fn each_in_table(device: Device, mut visit: impl FnMut(&[u8], &[u8])) -> Result<()> {
    mountinfo::each_own(|line| {
        if line.device == device
            && let (root, false) = line.root()
        {
            visit(&root, &line.target());
        }
        ControlFlow::Continue(())
    })
}

fn list_of_device(device: Device, mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), Errno> {
    let (mut ids, mut buffer) = (Vec::new(), MountBuffer::default());
    namespace::list_mounts(OWN_NAMESPACE, &mut ids)?;
    for id in ids {
        let described = match namespace::mounted_filesystem(OWN_NAMESPACE, id, &mut buffer) {
            Ok(of_mount) if Device::from(of_mount.device) != device => continue,
            Ok(_) => namespace::describe_mount(OWN_NAMESPACE, id, &mut buffer),
            Err(error) => Err(error),
        };
        match described {
            // Unmounted meanwhile.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
            Ok(mount) if mount.root.ends_with(DELETED) => {}
            Ok(mount) => visit(&mount.root, &mount.target),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::mount::location::{ContainingMount, MountedDir};

    #[test]
    fn statmount_and_the_mount_table_list_the_same_mounts() {
        let proc = std::fs::File::open("/proc").unwrap();
        let mount = MountedDir::of(proc.as_fd()).unwrap().mount;
        let device = ContainingMount::find(mount).unwrap().unwrap().device;
        let mut by_id = Vec::new();
        if list_of_device(device, |root, target| by_id.push((root.to_vec(), target.to_vec()))).is_err() {
            return; // before Linux 6.8
        }
        let mut by_table = Vec::new();
        each_in_table(device, |root, target| by_table.push((root.to_vec(), target.to_vec()))).unwrap();
        by_id.sort();
        by_table.sort();
        assert!(!by_id.is_empty());
        assert_eq!(by_id, by_table);
    }
}
