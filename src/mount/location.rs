//! Where an open directory lies in its filesystem, whatever it is mounted as: what mounts are compared by.
//!
//! The path that `/proc/self/fd` shows leads through the mount that the descriptor was opened by. Take the point of
//! that mount off, put its root in front, and what is left is the path in the filesystem, as field 4 of a mount table
//! has it. The number of the filesystem comes from the same line: on btrfs `st_dev` differs in every subvolume.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::mountinfo::{Device, Line, MountInfo};
use crate::error::{Context as _, Error, Kind, Result};

/// How `statx` asks about a mount: without waking an automount or asking a server that may be dead.
pub(super) const LOCAL: AtFlags =
    AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT).union(AtFlags::STATX_DONT_SYNC);

/// An open directory, as it is found without a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// The number of the mount that it was opened by.
    pub mount: u64,
    /// The filesystem by `st_dev`; right but for btrfs.
    pub device: Device,
    /// Its path from the root of this process, or of its mount if that is detached.
    path: Vec<u8>,
}

/// A mount that handles lie on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The number of the mount.
    pub mount: u64,
    /// The filesystem.
    pub device: Device,
    root: Vec<u8>,
    target: Vec<u8>,
}

/// A directory of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsLocation {
    /// The filesystem.
    pub device: Device,
    /// Its path from the root of the filesystem; of one that is `loose` only the end of it.
    pub path: Vec<u8>,
    /// The mount is detached, so it stands in no table, and where its root lies is not known.
    pub loose: bool,
}

impl Handle {
    /// Looks at an open directory.
    ///
    /// # Errors
    /// `Internal` if the kernel does not say, or the directory has been removed.
    pub fn of(dir: BorrowedFd<'_>) -> Result<Self> {
        let what = StatxFlags::MNT_ID | StatxFlags::NLINK;
        let stat = rustix::fs::statx(dir, "", LOCAL | AtFlags::EMPTY_PATH, what)
            .context(|| "look at an open directory")?;
        let path = path_of(dir)?;
        if stat.stx_nlink == 0 {
            let text = format!("directory {} has been removed while it was open", path.escape_ascii());
            return Err(Error::new(Kind::Internal, text));
        }
        let mount = if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID) {
            stat.stx_mnt_id
        } else {
            mount_id_before_5_8(dir)?
        };
        Ok(Self { mount, device: Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor }, path })
    }

    /// Where the directory lies; `anchor` is the mount it was opened by, `None` if that is in no table.
    ///
    /// # Errors
    /// `Internal` if the anchor is not above the directory.
    pub fn place(&self, anchor: Option<&Anchor>) -> Result<FsLocation> {
        let Some(anchor) = anchor else {
            return Ok(FsLocation { device: self.device, path: self.path.clone(), loose: true });
        };
        let below = below(&self.path, &anchor.target).ok_or_else(|| {
            let (path, target) = (self.path.escape_ascii(), anchor.target.escape_ascii());
            Error::new(Kind::Internal, format!("directory {path} is not below its mount at {target}"))
        })?;
        let mut path = if anchor.root == b"/" { Vec::new() } else { anchor.root.clone() };
        path.extend_from_slice(below);
        if path.is_empty() {
            path.push(b'/');
        }
        Ok(FsLocation { device: anchor.device, path, loose: false })
    }
}

impl Anchor {
    /// The anchor that a line of the table describes.
    #[must_use]
    pub fn of(line: &Line<'_>) -> Self {
        let (root, target) = (line.root().0.into_owned(), line.target().into_owned());
        Self { mount: line.id, device: line.device, root, target }
    }

    pub(super) fn of_info(info: &MountInfo) -> Self {
        use std::os::unix::ffi::OsStrExt as _;
        let (root, target) = (info.root.as_os_str().as_bytes(), info.target.as_os_str().as_bytes());
        Self { mount: info.id, device: info.device, root: root.to_vec(), target: target.to_vec() }
    }
}

/// What follows `above` in `path`: nothing, or a slash and more; `None` if `path` does not lie there.
#[must_use]
pub fn below<'a>(path: &'a [u8], above: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(above.strip_suffix(b"/").unwrap_or(above))?;
    match rest {
        b"/" => Some(&[]),
        [] | [b'/', ..] => Some(rest),
        _ => None,
    }
}

/// The path of an open file, as the kernel names it.
pub(super) fn path_of(file: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let link = link_to(file);
    let path = rustix::fs::readlinkat(CWD, &link, Vec::new()).context(|| format!("read {link}"))?;
    Ok(path.into_bytes())
}

/// A path that leads to an open file, for the calls that take no descriptor.
pub(super) fn link_to(file: BorrowedFd<'_>) -> String {
    format!("/proc/thread-self/fd/{}", file.as_raw_fd())
}

/// `STATX_MNT_ID` is of Linux 5.8; before, only `/proc` knows.
fn mount_id_before_5_8(file: BorrowedFd<'_>) -> Result<u64> {
    let name = format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd());
    let text = std::fs::read_to_string(&name).context(|| format!("read {name}"))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| Error::new(Kind::Internal, format!("{name} names no mount")))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn place(path: &str, root: &str, target: &str) -> Option<String> {
        let device = Device { major: 1, minor: 2 };
        let anchor = Anchor { mount: 7, device, root: root.into(), target: target.into() };
        let handle = Handle { mount: 7, device: Device { major: 0, minor: 9 }, path: path.into() };
        let place = handle.place(Some(&anchor)).ok()?;
        assert_eq!((place.device, place.loose), (device, false));
        Some(String::from_utf8(place.path).unwrap())
    }

    #[test]
    fn a_path_through_mounts_becomes_one_in_the_filesystem() {
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
        for (path, root, target, found) in cases {
            assert_eq!(place(path, root, target).as_deref(), found, "{path} by {root} at {target}");
        }
    }

    #[test]
    fn both_ways_to_the_number_of_a_mount_agree() {
        let dir = std::fs::File::open("/proc").unwrap();
        assert_eq!(Handle::of(dir.as_fd()).unwrap().mount, mount_id_before_5_8(dir.as_fd()).unwrap());
    }
}
