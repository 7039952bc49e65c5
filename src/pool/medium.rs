//! Which filesystems several processes may use as one pool, and whether those may be on several hosts.

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::fstatfs;

use super::PoolSettings;
use super::hosts::Hosts;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::nfs::NFS;
use crate::mount::mount_of;

/// Who may use a pool besides this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Processes of this host only: inotify reports every change, and the mount tables show every use.
    Local,
    /// Other hosts, too. The locks exclude them, but neither their changes nor their mounts can be seen.
    Shared,
}

impl Medium {
    /// The medium of a pool's directory, as its filesystem or the settings say.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn of(root: BorrowedFd<'_>, settings: &PoolSettings) -> Result<Self> {
        // The records of other hosts: this one may be their NFS server.
        let has_hosts = || Ok::<bool, Error>(Hosts::open_existing(root)?.is_some());
        let is_shared = !settings.exclusive && (settings.shared || fs_type(root)? == NFS || has_hosts()?);
        Ok(if is_shared { Self::Shared } else { Self::Local })
    }
}

/// The types of local filesystems, as in statfs(2), by name: byte-range locks exclude all processes that use them, and
/// inotify reports every change.
const LOCAL: [(u64, &str); 11] = [
    (0xEF53, "ext2, ext3 and ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0xF2F5_2010, "f2fs"),
    (0x2FC1_2FC1, "zfs"),
    (0xCA45_1A4E, "bcachefs"),
    (0x794C_7630, "overlay"),
    (0x3153_464A, "jfs"),
    (0x3434, "nilfs2"),
    (0x8584_58F6, "ramfs"),
];

/// Refuses a filesystem that is not known to let processes exclude each other: on 9p, virtiofs, FUSE, and NFS without
/// locks, two locks may conflict within one host and not between two.
///
/// # Errors
/// `Unavailable`, with the remedy; otherwise the error of the failed system call.
pub fn check_shareable(root: BorrowedFd<'_>) -> Result<()> {
    let found = fs_type(root)?;
    // NFS 3 has no locks among clients that do not run a lock daemon.
    if found == NFS && is_without_locks(root)? {
        let text = "it is on a mount of NFS 3, whose locks other hosts do not see: mount it with version 4, or set \
                    `exclusive = true` in its settings if no other process and no other host uses this pool";
        return Err(Error::new(Kind::Unavailable, text));
    }
    if found == NFS || LOCAL.iter().any(|(known, _)| *known == found) {
        return Ok(());
    }
    let text = format!(
        "its filesystem (type {found:#x} of statfs(2)) is not known to let processes exclude each other: use a local \
         filesystem, or set `exclusive = true` in its settings if no other process and no other host uses this pool"
    );
    Err(Error::new(Kind::Unavailable, text))
}

/// Whether a directory is on a mount of NFS 3 or older.
fn is_without_locks(root: BorrowedFd<'_>) -> Result<bool> {
    let is_old = |word: &[u8]| matches!(word, b"vers=2" | b"vers=3");
    let mount = mount_of(root)?;
    Ok(mount.is_some_and(|mount| mount.super_options.as_bytes().split(|byte| *byte == b',').any(is_old)))
}

fn fs_type(root: BorrowedFd<'_>) -> Result<u64> {
    let stat = fstatfs(root).context(|| "read the type of the filesystem")?;
    Ok(stat.f_type.cast_unsigned())
}
