//! The location of an open directory in its filesystem, independent of where that is mounted. Mounts are compared by
//! it.
//!
//! The path in `/proc/self/fd` leads through the mount that the descriptor was opened through. Replacing the mount
//! point in it by the root of that mount gives the path in the filesystem, which is field 4 of a mount table. The
//! device number comes from the same line: on btrfs, `st_dev` differs between subvolumes.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::mountinfo::{self, DELETED, Device};
use super::namespace;
use super::table::{self, MNT_ID_UNIQUE, STATX_LOCAL};
use crate::error::{Context as _, Error, Kind, Result};

/// The id of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MountId {
    /// Never reused (Linux 6.8).
    Unique(u64),
    /// The id in the mount table, which the kernel reuses after the mount is unmounted.
    Table(u64),
}

/// What is known about an open directory without reading a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedDir {
    /// The mount that it was opened through.
    pub mount: MountId,
    /// Its filesystem by `st_dev`, which is wrong on btrfs only.
    pub device: Device,
    /// Its path from the root of this process, or from the root of its mount if that is detached.
    path: Vec<u8>,
}

/// The mount that a directory was opened through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainingMount {
    /// Its filesystem.
    pub device: Device,
    root: Vec<u8>,
    target: Vec<u8>,
}

/// The location of a directory in a filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsLocation {
    /// The filesystem.
    pub device: Device,
    /// Path from the root of the filesystem; if `detached`, only the last part of it.
    pub path: Vec<u8>,
    /// The directory is on a detached mount. That is in no mount table, so the location of its root is unknown.
    pub detached: bool,
}

impl MountedDir {
    /// Reads the attributes of an open directory.
    ///
    /// # Errors
    /// `Internal` if a call fails or the directory has been removed.
    pub fn of(dir: BorrowedFd<'_>) -> Result<Self> {
        let mask = StatxFlags::MNT_ID | MNT_ID_UNIQUE | StatxFlags::NLINK;
        let stat = rustix::fs::statx(dir, "", STATX_LOCAL | AtFlags::EMPTY_PATH, mask)
            .context(|| "stat an open directory")?;
        let path = path_of(dir)?;
        if stat.stx_nlink == 0 {
            let text = format!("directory {} was removed while it was open", path.escape_ascii());
            return Err(Error::new(Kind::Internal, text));
        }
        let has_unique = StatxFlags::from_bits_retain(stat.stx_mask).contains(MNT_ID_UNIQUE);
        let mount = if has_unique && table::has_statmount() {
            MountId::Unique(stat.stx_mnt_id)
        } else {
            MountId::Table(table_id(dir)?)
        };
        Ok(Self { mount, device: Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor }, path })
    }

    /// Returns the location in the filesystem. `containing` is the mount that the directory was opened through; `None`:
    /// that mount is in no table.
    ///
    /// # Errors
    /// `Internal` if the directory is not below the mount.
    pub fn location(&self, containing: Option<&ContainingMount>) -> Result<FsLocation> {
        let Some(containing) = containing else {
            return Ok(FsLocation { device: self.device, path: self.path.clone(), detached: true });
        };
        let below = below(&self.path, &containing.target).ok_or_else(|| {
            let (path, target) = (self.path.escape_ascii(), containing.target.escape_ascii());
            Error::new(Kind::Internal, format!("directory {path} is not below its mount at {target}"))
        })?;
        let mut path = if containing.root == b"/" { Vec::new() } else { containing.root.clone() };
        path.extend_from_slice(below);
        if path.is_empty() {
            path.push(b'/');
        }
        Ok(FsLocation { device: containing.device, path, detached: false })
    }
}

impl ContainingMount {
    /// Looks a mount up in this mount namespace and in the private ones of this process; `None` if it is not attached there.
    ///
    /// # Errors
    /// `Internal` if the kernel does not describe the mount and the mount table cannot be read.
    pub fn find(mount: MountId) -> Result<Option<Self>> {
        namespace::first(|| Self::find_here(mount))
    }

    fn find_here(mount: MountId) -> Result<Option<Self>> {
        Ok(match mount {
            MountId::Unique(id) => table::describe(id)?.map(|mount| Self {
                device: Device::from(mount.device),
                root: without_deleted(mount.root),
                target: mount.target,
            }),
            MountId::Table(id) => mountinfo::by_id(id)?.map(|mount| Self {
                device: mount.device,
                root: mount.root.into_os_string().into_vec(),
                target: mount.target.into_os_string().into_vec(),
            }),
        })
    }
}

/// Returns the rest of `path` below `above`: empty, or a slash and more. `None` if `path` is not below `above`.
#[must_use]
pub fn below<'a>(path: &'a [u8], above: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(above.strip_suffix(b"/").unwrap_or(above))?;
    match rest {
        b"/" => Some(&[]),
        [] | [b'/', ..] => Some(rest),
        _ => None,
    }
}

/// Returns the path of an open file, as the kernel reports it.
pub(crate) fn path_of(file: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let link = fd_link(file);
    let path = rustix::fs::readlinkat(CWD, &link, Vec::new()).context(|| format!("read {link}"))?;
    Ok(path.into_bytes())
}

/// Returns a path that leads to an open file, for calls that take no descriptor.
pub(super) fn fd_link(file: BorrowedFd<'_>) -> String {
    format!("/proc/thread-self/fd/{}", file.as_raw_fd())
}

/// Returns the id in the mount table of the mount that a file was opened through.
///
/// # Errors
/// `Internal` if a call fails.
pub(super) fn table_id(file: BorrowedFd<'_>) -> Result<u64> {
    let stat = rustix::fs::statx(file, "", STATX_LOCAL | AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .context(|| "stat an open file")?;
    match StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID) {
        true => Ok(stat.stx_mnt_id),
        false => mount_id_from_proc(file),
    }
}

/// Removes the suffix that the kernel adds to the root of a mount whose directory was removed.
fn without_deleted(mut root: Vec<u8>) -> Vec<u8> {
    if root.ends_with(DELETED) {
        root.truncate(root.len() - DELETED.len());
    }
    root
}

/// Reads the mount id from `/proc`, for kernels before 5.8, which lack `STATX_MNT_ID`.
fn mount_id_from_proc(file: BorrowedFd<'_>) -> Result<u64> {
    let name = format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd());
    let text = std::fs::read_to_string(&name).context(|| format!("read {name}"))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| Error::new(Kind::Internal, format!("{name} contains no mount id")))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn location(path: &str, root: &str, target: &str) -> Option<String> {
        let device = Device { major: 1, minor: 2 };
        let containing = ContainingMount { device, root: root.into(), target: target.into() };
        let mount = MountId::Table(7);
        let dir = MountedDir { mount, device: Device { major: 0, minor: 9 }, path: path.into() };
        let location = dir.location(Some(&containing)).ok()?;
        assert_eq!((location.device, location.detached), (device, false));
        Some(String::from_utf8(location.path).unwrap())
    }

    #[test]
    fn a_path_through_a_mount_is_converted_to_a_path_in_the_filesystem() {
        let cases = [
            ("/pool/volumes/a", "/", "/pool", Some("/volumes/a")),
            ("/pool/volumes/a", "/@sub", "/pool", Some("/@sub/volumes/a")),
            ("/pool", "/@sub", "/pool", Some("/@sub")),
            ("/pool", "/", "/pool", Some("/")),
            ("/a", "/", "/", Some("/a")),
            ("/a", "/x", "/", Some("/x/a")),
            ("/", "/x", "/", Some("/x")),
            ("/pools/a", "/", "/pool", None),
        ];
        for (path, root, target, expected) in cases {
            assert_eq!(
                location(path, root, target).as_deref(),
                expected,
                "{path}: {root} mounted at {target}"
            );
        }
    }

    #[test]
    fn statx_and_proc_report_the_same_mount_id() {
        let dir = std::fs::File::open("/proc").unwrap();
        assert_eq!(table_id(dir.as_fd()).unwrap(), mount_id_from_proc(dir.as_fd()).unwrap());
    }

    #[test]
    fn a_mount_is_described_alike_by_its_unique_id_and_by_the_mount_table() {
        for path in ["/", "/proc", "/dev"] {
            let dir = std::fs::File::open(path).unwrap();
            let by_id = ContainingMount::find(MountedDir::of(dir.as_fd()).unwrap().mount).unwrap();
            let by_table = ContainingMount::find(MountId::Table(table_id(dir.as_fd()).unwrap())).unwrap();
            assert!(by_id.is_some(), "{path}");
            assert_eq!(by_id, by_table, "{path}");
        }
    }
}
