//! Moves of whole volumes: to another name, out of the trash, and into the pool.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{self, AtFlags, Mode};
use rustix::io::Errno;

use super::{DIRECTORY, ObjectKind, PRIVATE, Store, open_inside, parse, read_file, rename_new};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::DirIdentity;
use crate::pool::dirs::explain_rename;
use crate::pool::trash::TrashEntry;
use crate::volume::{DATA, Name, Volume};

const KIND: ObjectKind = ObjectKind::Volumes;

impl Store {
    /// Renames the directory of a volume.
    ///
    /// # Errors
    /// `Conflict` when the new name is taken; otherwise the error of the failed system call. Nothing is changed then.
    pub(in crate::pool) fn rename_volume(&self, from: &Name, to: &Name) -> Result<()> {
        let volumes = self.directory(KIND);
        let renamed = rename_new(volumes, from.as_str(), volumes, to.as_str());
        named(renamed, to).context(|| format!("rename volumes/{from} to {to}"))
    }

    /// Makes the renames of volumes survive a power failure.
    pub(in crate::pool) fn sync_volumes(&self) -> Result<()> {
        self.sync(KIND)
    }

    /// Moves an entry of the trash back, as the volume of this name. The caller has locked the entry.
    ///
    /// # Errors
    /// `Conflict` when the name is taken; otherwise the error of the failed system call. The entry is in the trash then.
    pub(in crate::pool) fn restore(&self, entry: &TrashEntry, name: &Name) -> Result<()> {
        let trash = self.trash.dir();
        let renamed = rename_new(trash, entry.directory.as_str(), self.directory(KIND), name.as_str());
        named(renamed, name).context(|| format!("move trash/{} to volumes/{name}", entry.directory))
    }

    /// Makes [`Store::restore`] survive a power failure.
    ///
    /// # Errors
    /// The error of the failed system call. The volume is in the trash again then.
    pub(in crate::pool) fn sync_restored(&self, entry: &TrashEntry, name: &Name) -> Result<()> {
        // Sync the new parent first: a power failure between the two syncs must not lose the volume.
        self.sync(KIND).and_then(|()| self.trash.sync()).inspect_err(|_| {
            let _ = rename_new(self.directory(KIND), name.as_str(), self.trash.dir(), &entry.directory);
        })
    }

    /// The record of a volume in the trash; `None` if the entry has none.
    ///
    /// # Errors
    /// Same as [`Store::volume`].
    pub fn trashed_volume(&self, entry: &TrashEntry) -> Result<Option<Volume>> {
        let path = format!("{}/{}", entry.directory, KIND.record());
        let read = read_file(self.trash.dir(), path.as_str());
        let parsed = read.and_then(|bytes| bytes.map(|bytes| parse(&bytes)).transpose());
        parsed.context(|| format!("read trash/{path}"))
    }

    /// Moves a directory of the same filesystem into the pool, where it is an unmanaged volume until it gets a record. A
    /// crash at any moment leaves the data at one of the two places, and nothing removes it.
    ///
    /// # Errors
    /// `Unsupported` when it is on another filesystem or mount; `Conflict` when the name is taken, or another directory has
    /// taken its place; otherwise the error of the failed system call. The directory is where it was then.
    pub fn take_in(
        &self,
        name: &Name,
        (parent, entry): (BorrowedFd<'_>, &str),
        expected: DirIdentity,
    ) -> Result<()> {
        let volumes = self.directory(KIND);
        match fs::mkdirat(volumes, name.as_str(), PRIVATE) {
            // An earlier attempt may have left it behind, empty.
            Ok(()) | Err(Errno::EXIST) => {}
            failed => failed.context(|| format!("create volumes/{name}"))?,
        }
        let dir =
            open_inside(volumes, name.as_str(), DIRECTORY).context(|| format!("open volumes/{name}"))?;
        let moved = self.move_in(dir.as_fd(), (parent, entry), expected).and_then(|()| {
            let synced = fs::fsync(&dir).context(|| format!("sync volumes/{name}"));
            synced.and_then(|()| self.sync(KIND)).inspect_err(|_| {
                let _ = rename_new(dir.as_fd(), DATA, parent, entry);
            })
        });
        if moved.is_err() {
            let _ = fs::unlinkat(volumes, name.as_str(), AtFlags::REMOVEDIR);
        }
        moved?;
        fs::fsync(parent).context(|| "sync the directory that it was in")
    }

    fn move_in(
        &self,
        dir: BorrowedFd<'_>,
        (parent, entry): (BorrowedFd<'_>, &str),
        expected: DirIdentity,
    ) -> Result<()> {
        match rename_new(parent, entry, dir, DATA) {
            Err(Errno::XDEV | Errno::BUSY) => {
                let text = "it is a mount point, or on another filesystem than the pool, or has another project id: \
                            create a volume and copy the files into it";
                return Err(Error::new(Kind::Unsupported, text));
            }
            Err(Errno::EXIST | Errno::NOTEMPTY) => return Err(taken()),
            moved => moved.context(|| "move the directory into the pool")?,
        }
        if DirIdentity::of_entry(dir, DATA).is_ok_and(|found| found == expected) {
            return Ok(());
        }
        let _ = rename_new(dir, DATA, parent, entry);
        let text = "another directory took its place at the same time: nothing was changed; retry";
        Err(Error::new(Kind::Conflict, text))
    }

    /// Makes the directory of a volume private, before its first record.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub(in crate::pool) fn make_private(&self, name: &Name) -> Result<()> {
        let dir = self.object(KIND, name)?;
        fs::fchmod(&dir, Mode::RWXU).context(|| format!("change the mode of volumes/{name}"))
    }
}

fn named(renamed: rustix::io::Result<()>, to: &Name) -> Result<()> {
    match renamed {
        Err(Errno::EXIST | Errno::NOTEMPTY) => {
            Err(Error::new(Kind::Conflict, format!("volumes/{to} already exists: use another name")))
        }
        renamed => explain_rename(renamed),
    }
}

fn taken() -> Error {
    Error::new(Kind::Conflict, "a volume of this name exists already: use another name")
}
