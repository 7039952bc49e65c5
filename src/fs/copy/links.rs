//! Hard links, remembered by the destination instead of in memory: the first copy of a file with several names gets
//! one more name in a folder of ours, and each later name is linked from there.
//!
//! The folder stands inside the destination, under a name nobody can guess, so that it belongs to the same mount,
//! subvolume and project; it is removed before the top folder gets its attributes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, Statx, linkat, mkdirat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Context, Error, Kind, Result};
use crate::fs::{Walk, open_directory};

/// What came of the attempt to make a name by linking.
pub(super) enum Placed {
    /// The name is there.
    Done,
    /// It was there before.
    Taken,
    /// No copy of this file is known: make one.
    First,
}

/// Which file it is. The time of birth tells two files apart of which the second got the number of the first.
pub(super) fn key(stat: &Statx) -> String {
    let born = stat.stx_btime;
    format!(
        "{:x}.{:x}.{:x}.{:x}.{:x}",
        stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, born.tv_sec, born.tv_nsec
    )
}

/// The folder of names, once it is needed.
pub(super) struct Links<'a> {
    top: BorrowedFd<'a>,
    folder: Option<(CString, OwnedFd)>,
}

impl<'a> Links<'a> {
    pub(super) fn new(top: BorrowedFd<'a>) -> Self {
        Self { top, folder: None }
    }

    /// Makes `name` another name of the copy known by `key`.
    pub(super) fn place(&self, key: &str, at: BorrowedFd<'_>, name: &CStr) -> Result<Placed> {
        let Some((_, folder)) = &self.folder else { return Ok(Placed::First) };
        match linkat(folder, key, at, name, AtFlags::empty()) {
            Ok(()) => Ok(Placed::Done),
            Err(Errno::EXIST) => Ok(Placed::Taken),
            Err(Errno::NOENT) => Ok(Placed::First),
            // no further link allowed: this name takes the place of ours, and a later one starts another copy
            Err(Errno::MLINK) => {
                renameat(folder, key, at, name).context(|| "move the last hard link")?;
                Ok(Placed::Done)
            }
            Err(error) => Err(error).context(|| "make the hard link"),
        }
    }

    /// Remembers the copy just made. Where there are no hard links, each name is a file of its own.
    pub(super) fn keep(&mut self, key: &str, at: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let folder = match &self.folder {
            Some((_, folder)) => folder.as_fd(),
            None => self.folder.insert(make_folder(self.top)?).1.as_fd(),
        };
        match linkat(at, name, folder, key, AtFlags::empty()) {
            Ok(()) | Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error).context(|| "remember the hard link"),
        }
    }

    /// Removes the folder.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some((name, folder)) = self.folder.take() else { return Ok(()) };
        // removing entries while reading may hide some from a reader on a few filesystems: then read again
        for _ in 0..16 {
            match unlinkat(self.top, &name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => empty(folder.as_fd())?,
                done => return done.context(|| "remove the folder of hard links"),
            }
        }
        Err(Error::new(Kind::Internal, "the folder of hard links does not become empty"))
    }
}

fn make_folder(top: BorrowedFd<'_>) -> Result<(CString, OwnedFd)> {
    let mut nonce = [0; 16];
    getrandom(&mut nonce, GetRandomFlags::empty()).context(|| "get a random number")?;
    let name = format!(".orlop-links-{:032x}", u128::from_ne_bytes(nonce));
    let name = CString::new(name).expect("hexadecimal digits have no NUL");
    mkdirat(top, &name, Mode::RWXU).context(|| "make the folder of hard links")?;
    let folder = open_directory(top, &name).context(|| "open the folder of hard links")?;
    Ok((name, folder))
}

fn empty(folder: BorrowedFd<'_>) -> Result<()> {
    let mut walk = Walk::new(folder).context(|| "open the folder of hard links")?;
    while let Some(entry) = walk.next().context(|| "read the folder of hard links")? {
        unlinkat(walk.here(), &entry.name, AtFlags::empty()).context(|| "empty the folder of hard links")?;
    }
    Ok(())
}
