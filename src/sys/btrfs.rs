//! Subvolumes and quota groups of btrfs (`ioctl_btrfs`), which rustix does not have.
#![expect(unsafe_code, reason = "rustix has none of these calls, so they are called by their numbers")]

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use linux_raw_sys::btrfs::{
    self, btrfs_ioctl_get_subvol_rootref_args, btrfs_ioctl_get_subvol_rootref_args__bindgen_ty_1,
    btrfs_ioctl_qgroup_limit_args, btrfs_ioctl_search_key, btrfs_qgroup_limit,
};
use linux_raw_sys::ioctl;
use rustix::io::Errno;

use super::mount_setattr::last_errno;

/// The tree with the quota groups. It exists while quotas are switched on.
const QUOTA_TREE: u64 = 8;
/// A value that clears a limit.
const NO_LIMIT: u64 = u64::MAX;

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolumeArguments {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_search_args_v2` with room for one item.
#[repr(C)]
struct Search {
    key: btrfs_ioctl_search_key,
    size: u64,
    /// A header of 32 bytes, and the item.
    found: [u64; 32],
}

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct FilesystemInfo {
    devices: [u64; 2],
    uuid: [u8; 16],
    rest: [u64; 124],
}

const _: () = assert!(size_of::<VolumeArguments>() == 4096 && size_of::<FilesystemInfo>() == 1024);

/// What a filesystem tracks of the sizes of its subvolumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quotas {
    /// Nothing: quotas are switched off.
    Off,
    /// Their sizes; but the kernel has marked the numbers as inconsistent, or is still counting.
    Inconsistent,
    /// Their sizes.
    On,
}

/// Makes an empty subvolume.
///
/// # Errors
/// `EEXIST`; otherwise the error of the failed system call.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let mut arguments = VolumeArguments::new(name)?;
    call(parent, ioctl::BTRFS_IOC_SUBVOL_CREATE_V2, &mut arguments)
}

/// Makes a snapshot of the subvolume `source`, and writes it to stable storage.
///
/// # Errors
/// `EXDEV` for another filesystem; otherwise the error of the failed system call.
pub fn snapshot(
    source: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &CStr,
    read_only: bool,
) -> Result<(), Errno> {
    let mut arguments = VolumeArguments::new(name)?;
    arguments.fd = source.as_raw_fd().into();
    arguments.flags = if read_only { btrfs::BTRFS_SUBVOL_RDONLY.into() } else { 0 };
    call(parent, ioctl::BTRFS_IOC_SNAP_CREATE_V2, &mut arguments)
}

/// Removes a subvolume with everything in it. The kernel frees its space in the background.
///
/// # Errors
/// `ENOTEMPTY` while another subvolume is in it; otherwise the error of the failed system call.
pub fn destroy_subvolume(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let mut arguments = VolumeArguments::new(name)?;
    call(parent, ioctl::BTRFS_IOC_SNAP_DESTROY_V2, &mut arguments)
}

/// The UUID of the filesystem.
///
/// # Errors
/// The error of the failed system call.
pub fn filesystem_uuid(dir: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    let mut info = FilesystemInfo { devices: [0; 2], uuid: [0; 16], rest: [0; 124] };
    call(dir, ioctl::BTRFS_IOC_FS_INFO, &mut info).map(|()| info.uuid)
}

/// The number of subvolumes that are directly in this one, at most 255.
///
/// # Errors
/// The error of the failed system call.
pub fn nested_subvolumes(subvolume: BorrowedFd<'_>) -> Result<u8, Errno> {
    let empty = btrfs_ioctl_get_subvol_rootref_args__bindgen_ty_1 { treeid: 0, dirid: 0 };
    let mut nested = btrfs_ioctl_get_subvol_rootref_args {
        min_treeid: 0,
        rootref: [empty; 255],
        num_items: 0,
        align: [0; 7],
    };
    match call(subvolume, ioctl::BTRFS_IOC_GET_SUBVOL_ROOTREF, &mut nested) {
        Ok(()) => Ok(nested.num_items),
        Err(Errno::OVERFLOW) => Ok(u8::MAX),
        Err(error) => Err(error),
    }
}

/// Whether the filesystem tracks the sizes of its subvolumes.
///
/// # Errors
/// `EPERM` without the privilege; otherwise the error of the failed system call.
pub fn quotas(dir: BorrowedFd<'_>) -> Result<Quotas, Errno> {
    let found = find_quota_item(dir, btrfs::BTRFS_QGROUP_STATUS_KEY, 0);
    // The tree is missing while quotas are switched off.
    let status = match found {
        Err(Errno::NOENT) => None,
        found => found?,
    };
    let Some([_version, _generation, flags, ..]) = status else { return Ok(Quotas::Off) };
    let has = |flag: u32| flags & u64::from(flag) != 0;
    Ok(if !has(btrfs::BTRFS_QGROUP_STATUS_FLAG_ON) {
        Quotas::Off
    } else if has(btrfs::BTRFS_QGROUP_STATUS_FLAG_INCONSISTENT | btrfs::BTRFS_QGROUP_STATUS_FLAG_RESCAN) {
        Quotas::Inconsistent
    } else {
        Quotas::On
    })
}

/// The bytes that a subvolume refers to, as of the last commit; `None` if they are not tracked.
///
/// # Errors
/// Same as [`quotas`].
pub fn referenced_bytes(subvolume: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    let found = find_quota_item(subvolume, btrfs::BTRFS_QGROUP_INFO_KEY, subvolume_id(subvolume)?)?;
    Ok(found.map(|[_generation, referenced, ..]| referenced))
}

/// The most bytes that a subvolume may refer to; `None` if there is no limit.
///
/// # Errors
/// Same as [`quotas`].
pub fn limit(subvolume: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    let found = find_quota_item(subvolume, btrfs::BTRFS_QGROUP_LIMIT_KEY, subvolume_id(subvolume)?)?;
    Ok(found.and_then(|[flags, bytes, ..]| {
        (flags & u64::from(btrfs::BTRFS_QGROUP_LIMIT_MAX_RFER) != 0).then_some(bytes)
    }))
}

/// Sets or clears the limit of a subvolume, and writes it to stable storage.
///
/// # Errors
/// `ENOTCONN` while quotas are switched off; otherwise the error of the failed system call.
pub fn set_limit(subvolume: BorrowedFd<'_>, bytes: Option<u64>) -> Result<(), Errno> {
    let lim = btrfs_qgroup_limit {
        flags: btrfs::BTRFS_QGROUP_LIMIT_MAX_RFER.into(),
        max_rfer: bytes.unwrap_or(NO_LIMIT),
        max_excl: 0,
        rsv_rfer: 0,
        rsv_excl: 0,
    };
    // The id 0 is that of the subvolume itself.
    let mut arguments = btrfs_ioctl_qgroup_limit_args { qgroupid: 0, lim };
    call(subvolume, ioctl::BTRFS_IOC_QGROUP_LIMIT, &mut arguments)?;
    let mut transaction = 0u64;
    call(subvolume, ioctl::BTRFS_IOC_START_SYNC, &mut transaction)?;
    call(subvolume, ioctl::BTRFS_IOC_WAIT_SYNC, &mut transaction)
}

fn subvolume_id(subvolume: BorrowedFd<'_>) -> Result<u64, Errno> {
    // `struct btrfs_ioctl_ino_lookup_args` of 4096 bytes: tree 0 means that of the descriptor, which the kernel fills in.
    let mut arguments = [0u64; 512];
    let [_tree, inode, ..] = &mut arguments;
    *inode = btrfs::BTRFS_FIRST_FREE_OBJECTID.into();
    call(subvolume, ioctl::BTRFS_IOC_INO_LOOKUP, &mut arguments)?;
    let [tree, ..] = arguments;
    Ok(tree)
}

/// The first words of an item of the quota tree.
fn find_quota_item(dir: BorrowedFd<'_>, kind: u32, id: u64) -> Result<Option<[u64; 4]>, Errno> {
    let key = btrfs_ioctl_search_key {
        tree_id: QUOTA_TREE,
        min_objectid: 0,
        max_objectid: 0,
        min_offset: id,
        max_offset: id,
        min_transid: 0,
        max_transid: u64::MAX,
        min_type: kind,
        max_type: kind,
        nr_items: 1,
        unused: 0,
        unused1: 0,
        unused2: 0,
        unused3: 0,
        unused4: 0,
    };
    let mut found = [0; 32];
    let mut search = Search { key, size: size_of_val(&found) as u64, found };
    call(dir, ioctl::BTRFS_IOC_TREE_SEARCH_V2, &mut search)?;
    found = search.found;
    let [_transid, _objectid, _offset, _type_and_length, first, second, third, fourth, ..] = found;
    Ok((search.key.nr_items > 0).then(|| [first, second, third, fourth].map(u64::from_le)))
}

impl VolumeArguments {
    fn new(name: &CStr) -> Result<Self, Errno> {
        let mut arguments = Self { fd: 0, transid: 0, flags: 0, unused: [0; 4], name: [0; 4040] };
        let (name, length) = (name.to_bytes_with_nul(), name.to_bytes_with_nul().len());
        arguments.name.get_mut(..length).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name);
        Ok(arguments)
    }
}

/// The caller passes the structure of the request.
fn call<T>(fd: BorrowedFd<'_>, request: u32, arguments: &mut T) -> Result<(), Errno> {
    // SAFETY: each request of this module reads and writes at most the structure that it is called with, which is alive,
    // consists of integers, and has the layout of the kernel; the descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            fd.as_raw_fd(),
            libc::c_long::from(request),
            std::ptr::from_mut(arguments),
        )
    };
    if result >= 0 { Ok(()) } else { Err(last_errno()) }
}
