//! The mounts of the own mount namespace: by `listmount(2)` and `statmount(2)` (Linux 6.8), otherwise by the mount table.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt as _;
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
    let described = match namespace::describe_mount(OWN_NAMESPACE, id, &mut MountBuffer::default()) {
        Err(Errno::OPNOTSUPP) => return describe_by_table(id),
        described => described,
    };
    found(described).context(|| "describe a mount")
}

/// Like [`describe`], for filesystems whose roots only the mount table has.
fn describe_by_table(id: u64) -> Result<Option<MountDescription>> {
    let id = found(namespace::table_id(OWN_NAMESPACE, id)).context(|| "describe a mount")?;
    let Some(mount) = id.map(mountinfo::by_id).transpose()?.flatten() else { return Ok(None) };
    Ok(Some(MountDescription {
        device: (mount.device.major, mount.device.minor),
        root: mount.root.into_os_string().into_vec(),
        target: mount.target.into_os_string().into_vec(),
        group: mount.shared.unwrap_or(0),
        master: 0,
    }))
}

fn found<T>(mount: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match mount {
        Err(Errno::NOENT) => Ok(None),
        mount => mount.map(Some),
    }
}

/// Calls `visit` with the root and the mount point of each mount of a filesystem. Mounts whose root was removed are left
/// out.
///
/// # Errors
/// `Internal` if the mounts cannot be listed.
pub(super) fn each_of_device(device: Device, mut visit: impl FnMut(&[u8], &[u8])) -> Result<()> {
    if has_statmount() {
        match list_of_device(device, &mut visit) {
            Err(Errno::OPNOTSUPP) => {}
            listed => return listed.context(|| "list the mounts"),
        }
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
