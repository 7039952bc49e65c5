//! Subvolumes of btrfs: directories that the filesystem snapshots, limits and removes as a whole.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Mode, StatxFlags, fchmod, fstatfs, statx};
use rustix::io::{Errno, Result as ErrnoResult};

use super::{open_directory, remove_acls};
use crate::error::{Context as _, Result};
use crate::sys::btrfs;
pub use crate::sys::btrfs::Quotas;

/// `BTRFS_SUPER_MAGIC`.
const BTRFS: u64 = 0x9123_683E;
/// The inode number of the top directory of every subvolume.
const TOP: u64 = 256;

/// Whether a directory is on btrfs.
#[must_use]
pub fn is_btrfs(dir: BorrowedFd<'_>) -> bool {
    fstatfs(dir).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(BTRFS))
}

/// Whether a directory is the top of a subvolume.
#[must_use]
pub fn is_subvolume(dir: BorrowedFd<'_>) -> bool {
    let stat = statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::INO);
    stat.is_ok_and(|stat| stat.stx_ino == TOP) && is_btrfs(dir)
}

/// Whether `source` is a subvolume of the filesystem of `dir`, so that a snapshot of it can be made there.
#[must_use]
pub fn can_snapshot(source: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> bool {
    let uuid = |dir| btrfs::filesystem_uuid(dir).ok();
    is_subvolume(source) && is_btrfs(dir) && uuid(source).is_some() && uuid(source) == uuid(dir)
}

/// Makes an empty subvolume with mode 0700.
///
/// # Errors
/// The error of the failed system call.
pub fn create(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    btrfs::create_subvolume(parent, name).context(|| "make the data subvolume")?;
    let data = open_directory(parent, name).context(|| "open the new data subvolume")?;
    fchmod(&data, Mode::RWXU).context(|| "set the mode of the data subvolume")?;
    remove_acls(data.as_fd())
}

/// Makes a snapshot of the subvolume `source`, which survives a power failure. Returns the number of subvolumes in
/// `source`, at most 255: they are not in the snapshot.
///
/// # Errors
/// The error of the failed system call.
pub fn snapshot(source: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &CStr, read_only: bool) -> Result<u64> {
    btrfs::snapshot(source, parent, name, read_only).context(|| "snapshot the data subvolume")?;
    // Subvolumes that appear later are in neither number.
    btrfs::nested_subvolumes(source).map(u64::from).context(|| "list the subvolumes of the source")
}

/// Removes a subvolume with everything in it, if no other one is in it. A mount in it has to be ruled out by the caller.
pub(super) fn destroy(parent: BorrowedFd<'_>, name: &CStr, dir: BorrowedFd<'_>) -> bool {
    is_subvolume(dir) && btrfs::destroy_subvolume(parent, name).is_ok()
}

/// Removes a subvolume, in which there is no other one and no mount.
///
/// # Errors
/// The error of the failed system call.
pub fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    btrfs::destroy_subvolume(parent, name).context(|| "remove a snapshot of the data subvolume")
}

/// Whether the filesystem of a directory tracks and limits the sizes of subvolumes.
///
/// # Errors
/// The error of the failed system call.
pub fn quotas(dir: BorrowedFd<'_>) -> Result<Quotas> {
    btrfs::quotas(dir).context(|| "read the quota status of btrfs")
}

/// The limit of a subvolume in bytes, as the kernel reports it.
///
/// # Errors
/// The error of the failed system call.
pub fn limit(subvolume: BorrowedFd<'_>) -> Result<Option<u64>> {
    none_without_quotas(btrfs::limit(subvolume)).context(|| "read the limit of the data subvolume")
}

/// Sets or clears the limit of a subvolume.
///
/// # Errors
/// The error of the failed system call.
pub fn set_limit(subvolume: BorrowedFd<'_>, bytes: Option<u64>) -> Result<()> {
    btrfs::set_limit(subvolume, bytes).context(|| "set the limit of the data subvolume")
}

/// The bytes that a subvolume is charged with, as of the last commit of the filesystem; `None` if they are not tracked.
///
/// # Errors
/// The error of the failed system call.
pub fn charged_bytes(subvolume: BorrowedFd<'_>) -> Result<Option<u64>> {
    none_without_quotas(btrfs::referenced_bytes(subvolume)).context(|| "read the size of the data subvolume")
}

/// The quota tree is missing while quotas are switched off.
fn none_without_quotas<T>(found: ErrnoResult<Option<T>>) -> ErrnoResult<Option<T>> {
    match found {
        Err(Errno::NOENT) => Ok(None),
        found => found,
    }
}
