//! Finds an NFS server that maps root to another user before anything is made in its directory.

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::PoolRoot;
use super::dirs::{PRIVATE, nonce};
use super::marker::MARKER;
use crate::error::{Context as _, Error, Kind, Result};

/// Refuses a directory in which this process cannot set owners, since the server maps its user to another one.
///
/// # Errors
/// `Unavailable`, with the remedy; otherwise the error of the failed system call.
pub(super) fn check(root: &PoolRoot) -> Result<()> {
    let name = format!("{MARKER}.{}", nonce()?);
    match fs::mkdirat(root, &name, PRIVATE) {
        // Volumes can be published.
        Err(Errno::ROFS) => return Ok(()),
        Err(Errno::ACCESS | Errno::PERM) => {
            let text = "the server does not let root write to the directory, as with root_squash or all_squash: export it \
                        with no_root_squash and without all_squash";
            return Err(Error::new(Kind::Unavailable, text));
        }
        made => made.context(|| "create a directory")?,
    }
    let found = fs::statat(root, &name, AtFlags::SYMLINK_NOFOLLOW);
    let _ = fs::unlinkat(root, &name, AtFlags::REMOVEDIR);
    let owner = found.context(|| "stat a new directory")?.st_uid;
    if owner == geteuid().as_raw() {
        return Ok(());
    }
    let text = format!(
        "the server maps root to user {owner} (root_squash or all_squash), so the owners of volumes cannot be set: export the \
         directory with no_root_squash and without all_squash"
    );
    Err(Error::new(Kind::Unavailable, text))
}
