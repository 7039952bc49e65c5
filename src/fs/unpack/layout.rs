//! Which directory of an archive is the volume.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Mode, mkdirat, renameat, unlinkat};
use rustix::io::Errno;

use super::paths::{refused, split};
use crate::error::{Context as _, Result};
use crate::fs::{Walk, open_directory};

/// Holds a prefix while its contents are moved up: no archive has this name, since it is chosen when it is not there.
const HOLDER: &str = ".orlop-prefix";

/// How an archive is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// The files of the volume are at its root.
    Root,
    /// They are in `data/`, as after `tar czf backup.tar.gz /data` in a container.
    Data,
    /// They are in `vackup-volume/`, as an early version of Docker Desktop's extension wrote them.
    Vackup,
    /// They are in `backup/NAME/`, as docker-volume-backup writes them.
    Offen(Vec<u8>),
    /// They are in the directory that was asked for.
    Prefix(Vec<u8>),
}

impl Layout {
    /// The directory in the archive that is the volume.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        match self {
            Self::Root => b"",
            Self::Data => b"data",
            Self::Vackup => b"vackup-volume",
            Self::Offen(path) | Self::Prefix(path) => path,
        }
    }

    /// Recognizes the layout of an archive without an entry for its root.
    pub(super) fn recognize(top: BorrowedFd<'_>) -> Result<Self> {
        let names = names(top)?;
        match &names[..] {
            [(name, true)] if name == b"data" => Ok(Self::Data),
            [(name, true)] if name == b"vackup-volume" => Ok(Self::Vackup),
            [(name, true)] if name == b"backup" => {
                let backup = open_directory(top, "backup").context(|| "open backup/")?;
                match &self::names(backup.as_fd())?[..] {
                    [(name, true)] => Ok(Self::Offen([b"backup/", &name[..]].concat())),
                    several if several.len() > 1 && several.iter().all(|(_, is_dir)| *is_dir) => {
                        Err(refused("backup/ has several volumes: choose one by --prefix backup/NAME"))
                    }
                    _ => Ok(Self::Root),
                }
            }
            _ => Ok(Self::Root),
        }
    }
}

/// The first names of a directory, and whether they are directories.
fn names(dir: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, bool)>> {
    let mut walk = Walk::new(dir).context(|| "open a directory")?;
    let mut names = Vec::new();
    while let Some(entry) = walk.next().context(|| "read a directory")? {
        let is_directory = match open_directory(walk.dir(), &entry.name) {
            Err(Errno::NOTDIR | Errno::LOOP) => false,
            opened => opened.context(|| "open an entry").map(|_| true)?,
        };
        names.push((entry.name.into_bytes(), is_directory));
        if names.len() > 8 {
            break;
        }
    }
    Ok(names)
}

/// Moves the contents of a directory to the top, and removes the directory.
pub(super) fn move_up(top: BorrowedFd<'_>, prefix: &[u8]) -> Result<()> {
    if prefix.is_empty() {
        return Ok(());
    }
    mkdirat(top, HOLDER, Mode::RWXU).context(|| "move the files up")?;
    let holder = open_directory(top, HOLDER).context(|| "open a directory")?;
    renameat(top, prefix, &holder, "contents").context(|| "move the files up")?;
    let (parent, _) = split(prefix);
    if !parent.is_empty() {
        unlinkat(top, parent, AtFlags::REMOVEDIR).context(|| "remove the prefix")?;
    }
    let contents = open_directory(holder.as_fd(), "contents").context(|| "open a directory")?;
    // Read again after each batch: the moves change the directory.
    loop {
        let mut walk = Walk::new(contents.as_fd()).context(|| "open a directory")?;
        let mut moved = false;
        while let Some(entry) = walk.next().context(|| "read a directory")? {
            if entry.name.as_bytes() == HOLDER.as_bytes() {
                return Err(refused(format!("{HOLDER} cannot be moved up")));
            }
            renameat(&contents, &entry.name, top, &entry.name).context(|| "move the files up")?;
            moved = true;
        }
        if !moved {
            break;
        }
    }
    unlinkat(&holder, "contents", AtFlags::REMOVEDIR).context(|| "remove the prefix")?;
    unlinkat(top, HOLDER, AtFlags::REMOVEDIR).context(|| "remove the prefix")
}
