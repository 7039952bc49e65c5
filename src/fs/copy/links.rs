//! Hard links. The first copy of a file that has several names is linked into a temporary directory, and each further
//! name is linked from there. Thus memory does not grow with the number of such files.
//!
//! The temporary directory is inside the destination, so that it is on the same mount, subvolume and project. Its
//! name cannot be guessed. It remains until the copy is finished, since files may become linked between two passes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, Statx, StatxFlags, linkat, statx};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Context, Error, Kind, Result};
use crate::fs::names::{make_directory, remove_name, rename};
use crate::fs::{Walk, open_directory};

/// Result of [`Links::link`].
pub(super) enum LinkResult {
    /// The name is now a hard link to the copy.
    Linked,
    /// The name exists already.
    NameExists,
    /// There is no copy of this file to link to: copy the file.
    NotCopied,
}

/// Identifies a file of the source. The birth time distinguishes a file from a later one that reuses its inode
/// number.
pub(in crate::fs) fn inode_key(stat: &Statx) -> String {
    let birth = stat.stx_btime;
    format!(
        "{:x}.{:x}.{:x}.{:x}.{:x}",
        stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, birth.tv_sec, birth.tv_nsec
    )
}

/// The temporary directory, created when it is first needed.
pub(super) struct Links {
    top: OwnedFd,
    dir: Option<(CString, OwnedFd)>,
}

impl Links {
    pub(super) fn new(top: OwnedFd) -> Self {
        Self { top, dir: None }
    }

    /// Whether this name of the top directory is that of the temporary directory.
    pub(super) fn is_dir(&self, name: &CStr) -> bool {
        self.dir.as_ref().is_some_and(|(dir, _)| dir.as_c_str() == name)
    }

    /// Creates `name` as a hard link to the copy that was added with this key.
    pub(super) fn link(&self, key: &str, at: BorrowedFd<'_>, name: &CStr) -> Result<LinkResult> {
        let Some((_, dir)) = &self.dir else { return Ok(LinkResult::NotCopied) };
        match linkat(dir, key, at, name, AtFlags::empty()) {
            Ok(()) => Ok(LinkResult::Linked),
            Err(Errno::EXIST) => Ok(LinkResult::NameExists),
            Err(Errno::NOENT) => Ok(LinkResult::NotCopied),
            // The file has as many links as the filesystem allows: move the temporary link to this name. The next name gets a new
            // copy.
            Err(Errno::MLINK) => {
                rename(dir.as_fd(), key, at, name).context(|| "move the last hard link")?;
                Ok(LinkResult::Linked)
            }
            Err(error) => Err(error).context(|| "create the hard link"),
        }
    }

    /// Adds a new copy. On a filesystem without hard links nothing is added, and each name becomes a file of its own.
    pub(super) fn add(&mut self, key: &str, at: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let dir = match &self.dir {
            Some((_, dir)) => dir.as_fd(),
            None => self.dir.insert(create_dir(self.top.as_fd())?).1.as_fd(),
        };
        match linkat(at, name, dir, key, AtFlags::empty()) {
            Ok(()) | Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error).context(|| "create the temporary hard link"),
        }
    }

    /// Makes an existing name, whose inode has this number, a hard link to the copy that was added with this key; adds the
    /// name if there is none. Reports whether the name was replaced.
    pub(super) fn unite(&mut self, key: &str, at: BorrowedFd<'_>, name: &CStr, inode: u64) -> Result<bool> {
        let added = match &self.dir {
            Some((_, dir)) => statx(dir, key, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO),
            None => Err(Errno::NOENT),
        };
        match added {
            Err(Errno::NOENT) => self.add(key, at, name).map(|()| false),
            Ok(added) if added.stx_ino == inode => Ok(false),
            Ok(_) => {
                remove_name(at, name, AtFlags::empty()).context(|| "replace by a hard link")?;
                self.link(key, at, name).map(|_| true)
            }
            Err(error) => Err(error).context(|| "stat the temporary hard link"),
        }
    }

    /// Removes what was added with this key, if anything.
    pub(super) fn forget(&self, key: &str) -> Result<()> {
        let Some((_, dir)) = &self.dir else { return Ok(()) };
        let removed = remove_name(dir.as_fd(), key, AtFlags::empty());
        removed.context(|| "remove the temporary hard link")
    }

    /// Removes the temporary directory.
    pub(super) fn remove_dir(&mut self) -> Result<()> {
        let Some((name, dir)) = self.dir.take() else { return Ok(()) };
        // A few filesystems skip entries when others are removed while the directory is read: read it again.
        for _ in 0..16 {
            match remove_name(self.top.as_fd(), &name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => remove_entries(dir.as_fd())?,
                result => return result.context(|| "remove the directory of hard links"),
            }
        }
        Err(Error::new(Kind::Internal, "the directory of hard links cannot be emptied"))
    }
}

fn create_dir(top: BorrowedFd<'_>) -> Result<(CString, OwnedFd)> {
    let mut nonce = [0; 16];
    getrandom(&mut nonce, GetRandomFlags::empty()).context(|| "get random bytes")?;
    let name = format!(".orlop-links-{:032x}", u128::from_ne_bytes(nonce));
    let name = CString::new(name).expect("hexadecimal digits contain no NUL");
    make_directory(top, &name, Mode::RWXU).context(|| "create the directory of hard links")?;
    let dir = open_directory(top, &name).context(|| "open the directory of hard links")?;
    Ok((name, dir))
}

fn remove_entries(dir: BorrowedFd<'_>) -> Result<()> {
    let mut walk = Walk::new(dir).context(|| "open the directory of hard links")?;
    while let Some(entry) = walk.next().context(|| "read the directory of hard links")? {
        remove_name(walk.dir(), &entry.name, AtFlags::empty())
            .context(|| "empty the directory of hard links")?;
    }
    Ok(())
}
