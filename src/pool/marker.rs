//! The marker `orlop.json`: it makes a directory a pool and identifies it.

use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags, FlockOperation};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::PoolSettings;
use super::dirs::nonce;
use super::known::KnownPool;
use super::store::{parse, read_file, replace_file, write_file};
use crate::backend::{BackendKind, kind_for_new_pool};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::names::rename;
use crate::fs::nfs::is_nfs;
use crate::fs::project;
use crate::volume::{PoolName, SCHEMA, Timestamp};

/// The marker's name in the pool's directory.
pub(super) const MARKER: &str = "orlop.json";

/// The contents of a marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The schema of the marker: [`SCHEMA`].
    pub schema: u32,
    /// Identifies this pool among all pools.
    pub uuid: String,
    /// The pool's name, with which the ids of its volumes begin.
    pub name: PoolName,
    /// The name of the pool's backend.
    pub backend: String,
    /// Time at which the directory became a pool.
    pub created: Timestamp,
}

/// The marker of a directory; `None` if it has none.
///
/// # Errors
/// `Unreadable` when it is damaged or too large, or a newer version wrote it; otherwise the error of the failed system call.
pub fn read_marker(root: BorrowedFd<'_>) -> Result<Option<Marker>> {
    let bytes = read_file(root, MARKER).context(|| format!("read {MARKER}"))?;
    bytes.map(|bytes| parse(&bytes).context(|| format!("read {MARKER}"))).transpose()
}

/// Records that the pool has another backend from now on: one rename, which a crash survives or undoes. Fields that this version
/// does not know are kept.
///
/// # Errors
/// Same as [`read_marker`]; otherwise the error of the failed system call.
pub(super) fn change_backend(root: BorrowedFd<'_>, kind: BackendKind) -> Result<()> {
    let shown = || format!("change {MARKER}");
    let bytes = read_file(root, MARKER).context(shown)?.unwrap_or_default();
    let _known: Marker = parse(&bytes).context(shown)?;
    let mut marker: serde_json::Value = parse(&bytes).context(shown)?;
    marker["backend"] = kind.as_str().into();
    replace_file(root, MARKER, &marker).context(shown)
}

/// The inode number of the marker, where the filesystem keeps it. A changed marker has another one.
pub(super) fn inode(root: BorrowedFd<'_>) -> Option<u64> {
    if project::kind_of(root).is_none() && !is_nfs(root) {
        return None;
    }
    fs::statat(root, MARKER, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_ino)
}

/// The marker of a pool's directory.
///
/// # Errors
/// `Unavailable` when the directory is no pool, or not the one that the settings describe; otherwise same as
/// [`read_marker`].
pub(super) fn open(root: BorrowedFd<'_>, settings: &PoolSettings) -> Result<Marker> {
    let text = format!(
        "the directory is not a pool: it has no {MARKER}. Only `orlop serve` makes an empty directory a pool"
    );
    let marker = read_marker(root)?.ok_or_else(|| Error::new(Kind::Unavailable, text))?;
    check(&marker, settings).map(|()| marker)
}

/// The marker of a pool's directory. An empty directory becomes a pool, unless its path has had one.
///
/// # Errors
/// `Unavailable` when the directory is not the pool that the settings describe; otherwise same as [`read_marker`].
pub(super) fn open_or_initialize(
    root: BorrowedFd<'_>,
    settings: &PoolSettings,
    known: &KnownPool,
) -> Result<Marker> {
    let marker = match read_marker(root)? {
        Some(marker) => marker,
        None => initialize_alone(root, settings, known)?,
    };
    check(&marker, settings)?;
    Ok(marker)
}

/// Makes an empty directory a pool, unless another process has just done so. Locks the directory: two markers with
/// different UUIDs could replace each other.
fn initialize_alone(root: BorrowedFd<'_>, settings: &PoolSettings, known: &KnownPool) -> Result<Marker> {
    match fs::flock(root, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            return Err(Error::new(Kind::Unavailable, "another process is making it a pool: retry"));
        }
        result => result.context(|| "lock the directory")?,
    }
    let marker = read_marker(root).and_then(|made| match made {
        Some(marker) => Ok(marker),
        None => known.check_unknown().and_then(|()| initialize(root, settings)),
    });
    // The descriptor stays open as long as the pool.
    let _ = fs::flock(root, FlockOperation::Unlock);
    marker
}

fn check(marker: &Marker, settings: &PoolSettings) -> Result<()> {
    let unavailable = |text: String| Err(Error::new(Kind::Unavailable, text));
    if marker.name != settings.name {
        return unavailable(format!(
            "this is pool {:?}: use this name in the settings",
            marker.name.as_str()
        ));
    }
    if let Some(uuid) = settings.uuid.as_ref().filter(|uuid| **uuid != marker.uuid) {
        return unavailable(format!(
            "this is pool {}, but the settings name pool {uuid}: check that the right disk is mounted",
            marker.uuid
        ));
    }
    Ok(())
}

/// Makes an empty directory a pool.
fn initialize(root: BorrowedFd<'_>, settings: &PoolSettings) -> Result<Marker> {
    let unavailable = |text: String| Err(Error::new(Kind::Unavailable, text));
    if let Some(uuid) = &settings.uuid {
        return unavailable(format!(
            "it has no {MARKER}, but the settings name pool {uuid}: check that the right disk is mounted"
        ));
    }
    if let Some(entry) = foreign_entry(root)? {
        // Another host may have made the pool meanwhile: the lock of the directory is known on this host only.
        if let Some(made) = read_marker(root)? {
            return Ok(made);
        }
        return unavailable(format!(
            "it has no {MARKER} and is not empty (it contains {entry:?}): name an empty directory, such as a new one \
             in it"
        ));
    }
    let marker = Marker {
        schema: SCHEMA,
        uuid: uuid::Uuid::new_v4().to_string(),
        name: settings.name.clone(),
        backend: kind_for_new_pool(root).as_str().to_owned(),
        created: Timestamp::now(),
    };
    create_marker(root, &marker)?;
    read_marker(root)?.ok_or_else(|| Error::new(Kind::Unavailable, "its new marker is gone: retry"))
}

/// Adds the marker, unless another host has just added its own: that one stays.
fn create_marker(root: BorrowedFd<'_>, marker: &Marker) -> Result<()> {
    let new = format!("{MARKER}.{}", nonce()?);
    write_file(root, &new, marker)?;
    let linked = match fs::linkat(root, &new, root, MARKER, AtFlags::empty()) {
        Err(Errno::EXIST) => Ok(()),
        // A filesystem without links, which no other host uses.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => rename(root, &new, root, MARKER),
        linked => linked,
    };
    let _ = fs::unlinkat(root, &new, AtFlags::empty());
    linked.context(|| format!("create {MARKER}"))?;
    fs::fsync(root).context(|| "sync the directory")
}

/// The name of an entry that neither orlop nor mkfs created.
fn foreign_entry(root: BorrowedFd<'_>) -> Result<Option<String>> {
    for entry in fs::Dir::read_from(root).context(|| "list the directory")? {
        let entry = entry.context(|| "list the directory")?;
        match entry.file_name().to_bytes() {
            b"." | b".." | b"lost+found" => {}
            // What was left by a process that was making the pool.
            name if name.strip_prefix(MARKER.as_bytes()).is_some_and(|rest| rest.starts_with(b".")) => {}
            other => return Ok(Some(String::from_utf8_lossy(other).into_owned())),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn hosts_that_make_a_pool_at_once_make_one_pool() {
        for _ in 0..50 {
            let dir = tempfile::tempdir().unwrap();
            let (root, start) = (File::open(dir.path()).unwrap(), Barrier::new(4));
            // Without the lock of the directory, which other hosts do not see.
            let make = || {
                let settings = PoolSettings::new("p".parse().unwrap(), dir.path().to_owned());
                start.wait();
                initialize(root.as_fd(), &settings).unwrap().uuid
            };
            let made: Vec<_> = std::thread::scope(|threads| {
                let threads: Vec<_> = (0..4).map(|_| threads.spawn(make)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let found = read_marker(root.as_fd()).unwrap().unwrap().uuid;
            assert!(made.iter().all(|uuid| *uuid == found), "{made:?}, {found}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
