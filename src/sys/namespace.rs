//! Mount namespaces and their mounts, without `/proc`: iterates over the namespaces of the host (`ioctl_nsfs(2)`, Linux
//! 6.12), lists the ids of their mounts (`listmount(2)`), and describes a mount (`statmount(2)`).
#![expect(unsafe_code, reason = "rustix has none of these calls, so they are called by their numbers")]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use linux_raw_sys::general as kernel;
use rustix::io::Errno;

use super::mount_setattr::last_errno;

/// Id and size of a mount namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its unique id, which is never reused.
    pub id: u64,
    /// Number of mounts in it.
    pub mounts: usize,
}

/// Direction of an iteration over the namespaces, which the kernel orders by creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards newer namespaces.
    Next,
    /// Towards older namespaces.
    Previous,
}

/// Filesystem, root, mount point and peer groups of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountDescription {
    /// The device number (major, minor) of its filesystem.
    pub device: (u32, u32),
    /// The directory of its filesystem that is mounted, as in the mount table.
    pub root: Vec<u8>,
    /// The mount point, relative to the root of the namespace.
    pub target: Vec<u8>,
    /// The peer group that it is a member of; 0: none.
    pub group: u64,
    /// The peer group that it receives events from, as a slave; 0: none.
    pub master: u64,
}

/// `struct mnt_ns_info`.
#[repr(C)]
struct MntNsInfo {
    size: u32,
    nr_mounts: u32,
    mnt_ns_id: u64,
}

/// `_IOR(0xb7, number, struct mnt_ns_info)`, in the encoding of most architectures.
const fn ioctl_request(number: u32) -> u32 {
    2 << 30 | 16 << 16 | 0xb7 << 8 | number
}

const GET_INFO: u32 = ioctl_request(10);
const GET_NEXT: u32 = ioctl_request(11);
const GET_PREVIOUS: u32 = ioctl_request(12);

/// A reusable buffer for the result of `statmount(2)`, with space for two paths.
#[derive(Debug)]
pub struct MountBuffer(Vec<u64>);

impl Default for MountBuffer {
    fn default() -> Self {
        Self(vec![0; (size_of::<kernel::statmount>() + 3 * 4096) / 8])
    }
}

/// Stands for the caller's own namespace where a call takes the id of a namespace.
pub const OWN_NAMESPACE: u64 = 0;

/// Describes the namespace of an open file such as `/proc/1/ns/mnt`.
///
/// # Errors
/// `ENOTTY` before Linux 6.12.
pub fn info(namespace: BorrowedFd<'_>) -> Result<NamespaceInfo, Errno> {
    namespace_ioctl(namespace, GET_INFO).map(|(_, info)| info)
}

/// Returns the next namespace in a direction. The kernel skips namespaces in which the caller lacks `CAP_SYS_ADMIN`.
/// `None` if there are no more.
///
/// # Errors
/// `ENOTTY` before Linux 6.12; `EPERM` without the privilege.
pub fn neighbor(
    namespace: BorrowedFd<'_>,
    direction: Direction,
) -> Result<Option<(OwnedFd, NamespaceInfo)>, Errno> {
    let request = match direction {
        Direction::Next => GET_NEXT,
        Direction::Previous => GET_PREVIOUS,
    };
    match namespace_ioctl(namespace, request) {
        Err(Errno::NOENT) => Ok(None),
        Err(other) => Err(other),
        Ok((descriptor, info)) => {
            // SAFETY: the kernel returned a new descriptor for this request, so it has no other owner.
            Ok(Some((unsafe { OwnedFd::from_raw_fd(descriptor) }, info)))
        }
    }
}

fn namespace_ioctl(namespace: BorrowedFd<'_>, request: u32) -> Result<(i32, NamespaceInfo), Errno> {
    let mut raw = MntNsInfo { size: 16, nr_mounts: 0, mnt_ns_id: 0 };
    // SAFETY: the request reads and writes one `struct mnt_ns_info`, which `raw` is, and the descriptor is open.
    let result = unsafe {
        libc::syscall(libc::SYS_ioctl, namespace.as_raw_fd(), libc::c_long::from(request), &raw mut raw)
    };
    let descriptor = i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(last_errno)?;
    Ok((descriptor, NamespaceInfo { id: raw.mnt_ns_id, mounts: raw.nr_mounts as usize }))
}

fn mnt_id_request(namespace: u64, mount: u64, param: u64) -> kernel::mnt_id_req {
    let size = u32::try_from(size_of::<kernel::mnt_id_req>()).unwrap_or(32);
    kernel::mnt_id_req { size, spare: 0, mnt_id: mount, param, mnt_ns_id: namespace }
}

/// Lists the unique ids of all mounts of a namespace into `ids`. The ids are never reused.
///
/// # Errors
/// `ENOENT` if the namespace no longer exists or is empty; `EPERM` without the privilege.
pub fn list_mounts(namespace: u64, ids: &mut Vec<u64>) -> Result<(), Errno> {
    const BATCH: usize = 512;
    const ROOT: u64 = (kernel::LSMT_ROOT as i64).cast_unsigned();
    ids.clear();
    loop {
        let request = mnt_id_request(namespace, ROOT, ids.last().copied().unwrap_or(0));
        ids.reserve(BATCH);
        let spare: &mut [MaybeUninit<u64>] = &mut ids.spare_capacity_mut()[..BATCH];
        // SAFETY: `request` is a live `struct mnt_id_req` of the size that it contains, and `spare` has space for the
        // number of ids that is passed.
        let result = unsafe {
            libc::syscall(
                libc::c_long::from(kernel::__NR_listmount),
                &raw const request,
                spare.as_mut_ptr(),
                BATCH,
                0,
            )
        };
        let count = usize::try_from(result).map_err(|_| last_errno())?.min(BATCH);
        // SAFETY: the kernel has initialized `count` ids after the existing ones.
        unsafe { ids.set_len(ids.len() + count) };
        if count < BATCH {
            return Ok(());
        }
    }
}

/// The filesystem of a mount, which never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountedFilesystem {
    /// Its device number (major, minor).
    pub device: (u32, u32),
    /// Its type, as in `statfs(2)`.
    pub magic: u64,
}

/// Returns the filesystem of a mount.
///
/// # Errors
/// `ENOENT` if the mount no longer exists.
pub fn mounted_filesystem(
    namespace: u64,
    mount: u64,
    buffer: &mut MountBuffer,
) -> Result<MountedFilesystem, Errno> {
    let stat = statmount(namespace, mount, kernel::STATMOUNT_SB_BASIC.into(), buffer)?;
    Ok(MountedFilesystem { device: (stat.sb_dev_major, stat.sb_dev_minor), magic: stat.sb_magic })
}

/// The type of NFS, as in `statfs(2)`.
const NFS: u64 = 0x6969;

/// Returns the id of a mount in the mount table.
///
/// # Errors
/// `ENOENT` if the mount no longer exists.
pub fn table_id(namespace: u64, mount: u64) -> Result<u64, Errno> {
    let mut buffer = MountBuffer::default();
    statmount(namespace, mount, kernel::STATMOUNT_MNT_BASIC.into(), &mut buffer)
        .map(|stat| stat.mnt_id_old.into())
}

/// Returns the filesystem, the root, the mount point and the peer groups of a mount.
///
/// # Errors
/// `ENOENT` if the mount no longer exists; `EOPNOTSUPP` for NFS, whose root the kernel does not show; `EOVERFLOW` if its paths do not fit into the buffer.
pub fn describe_mount(
    namespace: u64,
    mount: u64,
    buffer: &mut MountBuffer,
) -> Result<MountDescription, Errno> {
    let mask = kernel::STATMOUNT_SB_BASIC
        | kernel::STATMOUNT_MNT_BASIC
        | kernel::STATMOUNT_MNT_ROOT
        | kernel::STATMOUNT_MNT_POINT;
    let stat = statmount(namespace, mount, mask.into(), buffer)?;
    if stat.sb_magic == NFS {
        return Err(Errno::OPNOTSUPP);
    }
    let device = (stat.sb_dev_major, stat.sb_dev_minor);
    let (root, target, group, master) = (stat.mnt_root, stat.mnt_point, stat.mnt_peer_group, stat.mnt_master);
    let string_at = |offset: u32| {
        let start = size_of::<kernel::statmount>() + offset as usize;
        let bytes = bytes_of(&buffer.0).get(start..).ok_or(Errno::IO)?;
        Ok(CStr::from_bytes_until_nul(bytes).map_err(|_| Errno::IO)?.to_bytes().to_vec())
    };
    Ok(MountDescription { device, root: string_at(root)?, target: string_at(target)?, group, master })
}

fn statmount(
    namespace: u64,
    mount: u64,
    mask: u64,
    buffer: &mut MountBuffer,
) -> Result<&kernel::statmount, Errno> {
    let request = mnt_id_request(namespace, mount, mask);
    let words = &mut buffer.0;
    // SAFETY: `request` is a live `struct mnt_id_req` of the size that it contains, and the kernel writes at most as
    // many bytes as `words` has.
    let result = unsafe {
        libc::syscall(
            libc::c_long::from(kernel::__NR_statmount),
            &raw const request,
            words.as_mut_ptr(),
            words.len() * 8,
            0,
        )
    };
    if result != 0 {
        return Err(last_errno());
    }
    // SAFETY: `words` is larger than a `struct statmount` and as aligned as its widest field, and every bit pattern is
    // valid.
    let stat = unsafe { &*words.as_ptr().cast::<kernel::statmount>() };
    if stat.mask & mask == mask { Ok(stat) } else { Err(Errno::NOSYS) }
}

fn bytes_of(words: &[u64]) -> &[u8] {
    // SAFETY: the same initialized memory, viewed as bytes.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn the_mounts_of_the_own_namespace_agree_with_its_mount_table() {
        let own = std::fs::File::open("/proc/self/ns/mnt").unwrap();
        let Ok(info) = info(own.as_fd()) else { return };
        let mut ids = Vec::new();
        // Skip the test without the privilege.
        let Ok(()) = list_mounts(info.id, &mut ids) else { return };
        assert!(info.mounts > 0 && ids.windows(2).all(|pair| pair[0] < pair[1]));
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut buffer = MountBuffer::default();
        let mut found = 0;
        for id in &ids {
            let Ok(filesystem) = mounted_filesystem(info.id, *id, &mut buffer) else { continue };
            let (major, minor) = filesystem.device;
            let Ok(mount) = describe_mount(info.id, *id, &mut buffer) else { continue };
            let target = String::from_utf8_lossy(&mount.target).into_owned();
            found += usize::from(table.contains(&format!(" {major}:{minor} ")) && table.contains(&target));
        }
        // Mounts that other processes make or remove meanwhile may be missing on one side.
        assert!(found * 10 >= ids.len() * 9, "{found} of {}", ids.len());
    }
}
