//! Hard links. The first copy of a file that has several names is linked into a temporary directory, and each further
//! name is linked from there. Thus memory does not grow with the number of such files.
//!
//! The temporary directory is inside the destination, so that it is on the same mount, subvolume and project. Its
//! name cannot be guessed. It is removed before the top directory gets its attributes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, Statx, linkat, mkdirat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Context, Error, Kind, Result};
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
pub(super) fn inode_key(stat: &Statx) -> String {
    let birth = stat.stx_btime;
    format!(
        "{:x}.{:x}.{:x}.{:x}.{:x}",
        stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, birth.tv_sec, birth.tv_nsec
    )
}

/// The temporary directory, created when it is first needed.
pub(super) struct Links<'a> {
    top: BorrowedFd<'a>,
    dir: Option<(CString, OwnedFd)>,
}

impl<'a> Links<'a> {
    pub(super) fn new(top: BorrowedFd<'a>) -> Self {
        Self { top, dir: None }
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
                renameat(dir, key, at, name).context(|| "move the last hard link")?;
                Ok(LinkResult::Linked)
            }
            Err(error) => Err(error).context(|| "create the hard link"),
        }
    }

    /// Adds a new copy. On a filesystem without hard links nothing is added, and each name becomes a file of its own.
    pub(super) fn add(&mut self, key: &str, at: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let dir = match &self.dir {
            Some((_, dir)) => dir.as_fd(),
            None => self.dir.insert(create_dir(self.top)?).1.as_fd(),
        };
        match linkat(at, name, dir, key, AtFlags::empty()) {
            Ok(()) | Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error).context(|| "create the temporary hard link"),
        }
    }

    /// Removes the temporary directory.
    pub(super) fn remove_dir(&mut self) -> Result<()> {
        let Some((name, dir)) = self.dir.take() else { return Ok(()) };
        // A few filesystems skip entries when others are removed while the directory is read: read it again.
        for _ in 0..16 {
            match unlinkat(self.top, &name, AtFlags::REMOVEDIR) {
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
    mkdirat(top, &name, Mode::RWXU).context(|| "create the directory of hard links")?;
    let dir = open_directory(top, &name).context(|| "open the directory of hard links")?;
    Ok((name, dir))
}

fn remove_entries(dir: BorrowedFd<'_>) -> Result<()> {
    let mut walk = Walk::new(dir).context(|| "open the directory of hard links")?;
    while let Some(entry) = walk.next().context(|| "read the directory of hard links")? {
        unlinkat(walk.dir(), &entry.name, AtFlags::empty())
            .context(|| "empty the directory of hard links")?;
    }
    Ok(())
}
