//! Directories of NFS servers.

use std::os::fd::BorrowedFd;

use rustix::fs::fstatfs;

/// The type of NFS, of any version, as in statfs(2).
pub const NFS: u64 = 0x6969;

/// Whether a directory is on a mount of NFS.
#[must_use]
pub fn is_nfs(dir: BorrowedFd<'_>) -> bool {
    fstatfs(dir).is_ok_and(|stat| stat.f_type.cast_unsigned() == NFS)
}
