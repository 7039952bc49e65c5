//! What would make a directory of an NFS server useless or dangerous as a pool, found before it becomes one, and before its
//! locks are taken.

use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::PoolSettings;
use super::dirs::{PRIVATE, nonce};
use super::hosts::{HostRecord, Hosts};
use super::marker::MARKER;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::names::make_directory;
use crate::fs::nfs::is_nfs;

/// Refuses a directory of an NFS server that maps root to another user, or that takes this host and another one that uses the
/// pool for the same client.
///
/// # Errors
/// `Unavailable`, with the remedy; otherwise the error of the failed system call.
pub(super) fn check(root: BorrowedFd<'_>, settings: &PoolSettings) -> Result<()> {
    if !is_nfs(root) {
        return Ok(());
    }
    let Some(now) = check_owner(root)? else { return Ok(()) };
    match Hosts::open_existing(root)? {
        Some(hosts) => hosts.refuse_twin(&HostRecord::of(settings), now),
        None => Ok(()),
    }
}

/// Refuses a directory in which this process cannot set owners, since the server maps its user to another one. Makes a
/// directory there for a moment, and returns its time in seconds since 1970, by the clock of the server; `None` where nothing
/// can be changed: volumes can still be published.
///
/// # Errors
/// `Unavailable`, with the remedy; otherwise the error of the failed system call.
fn check_owner(root: BorrowedFd<'_>) -> Result<Option<i64>> {
    let name = format!("{MARKER}.{}", nonce()?);
    match make_directory(root, &name, PRIVATE) {
        Err(Errno::ROFS | Errno::NOSPC | Errno::DQUOT) => return Ok(None),
        Err(Errno::ACCESS | Errno::PERM) => return Err(refusal("does not let root write to the directory")),
        made => made.context(|| "make a directory")?,
    }
    let found = fs::statat(root, &name, AtFlags::SYMLINK_NOFOLLOW);
    let _ = fs::unlinkat(root, &name, AtFlags::REMOVEDIR);
    let found = found.context(|| "stat a new directory")?;
    if found.st_uid == geteuid().as_raw() {
        return Ok(Some(found.st_ctime));
    }
    Err(refusal(&format!("maps root to user {}, so the owners of volumes cannot be set", found.st_uid)))
}

fn refusal(what: &str) -> Error {
    let text = format!(
        "the server {what} (root_squash or all_squash): export the directory with no_root_squash and without all_squash"
    );
    Error::new(Kind::Unavailable, text)
}
