//! Deletes a tree that may be of any size and depth, and that somebody may still be writing to.
//!
//! A directory is first removed as if it were empty, and entered only if it is not; on the way back it comes up
//! again and is empty. So nothing needs to be remembered, and after an interruption the next call goes on. No
//! symlink is followed; whatever is mounted inside stops the deletion.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, IFlags, ftruncate, ioctl_getflags, ioctl_setflags, unlinkat};
use rustix::io::{Errno, Result as ErrnoResult};

use super::{
    Entry, Reopen, TreePath, Walk, fstat, fstatat, kind_of, mounted_here, open_directory, open_path,
};
use crate::error::{Context, Error, Kind, Result};

/// A file with more data is cut shorter in steps of about this size, so that no single call holds up the filesystem.
const STEP: u64 = 1 << 30;
/// How often a directory may be found not empty after its end was reached, with nothing removed in between.
const PATIENCE: u32 = 16;

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names of every type, the top one included.
    pub entries: u64,
}

/// Deletes `name` in the directory `parent`, with all that is below it; if it is not there, that is well too.
///
/// # Errors
/// `InUse`: something is mounted inside, or a file is held by the filesystem. `Busy`: `stop` was set, or somebody
/// moves or makes files inside all the while. `Internal`: any other failed call. What was deleted stays deleted.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &str, stop: &AtomicBool) -> Result<Removed> {
    let failed = || format!("remove {name}");
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(Error::new(Kind::Invalid, format!("{name:?} is not the name of an entry")));
    }
    let top =
        CString::new(name).map_err(|_| Error::new(Kind::Invalid, format!("{name:?} contains a NUL")))?;
    let mut remover =
        Remover { reopen: Reopen::new()?, stop, removed: Removed::default(), came_up: false, futile: 0 };
    let top = Entry { name: top, kind: FileType::Unknown };
    loop {
        match remover.take(parent, &top).context(failed)? {
            Taken::Gone => return Ok(remover.removed),
            Taken::Full(folder) => remover.clear(folder.as_fd()).context(failed)?,
        }
    }
}

enum Taken {
    /// The name is no longer there.
    Gone,
    /// It is this directory, and not empty.
    Full(OwnedFd),
}

struct Remover<'a> {
    reopen: Reopen,
    stop: &'a AtomicBool,
    removed: Removed,
    /// The directory that comes next has just been read to its end.
    came_up: bool,
    futile: u32,
}

impl Remover<'_> {
    /// Empties a directory.
    fn clear(&mut self, folder: BorrowedFd<'_>) -> Result<()> {
        let mut walk = Walk::new(folder).context(|| "open the top folder")?;
        let mut path = TreePath::default();
        loop {
            let Some(entry) = walk.next().context(|| format!("read {}", path.here()))? else {
                self.came_up = true;
                if !walk.leave().context(|| path.here())? {
                    return Ok(());
                }
                path.pop();
                continue;
            };
            if let Taken::Full(folder) = self.take(walk.here(), &entry).context(|| path.at(&entry.name))? {
                path.push(&entry.name);
                walk.put_back(entry);
                walk.enter(folder).context(|| path.here())?;
            }
        }
    }

    /// Removes one entry.
    fn take(&mut self, at: BorrowedFd<'_>, entry: &Entry) -> Result<Taken> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        let name = &entry.name;
        let mut result = self.unlink(at, name, entry.kind);
        if matches!(result, Err(Errno::PERM)) && self.unlock(at, name) {
            result = self.unlink(at, name, entry.kind);
        }
        match result {
            Ok(()) => {
                self.removed.entries += 1;
                (self.came_up, self.futile) = (false, 0);
                Ok(Taken::Gone)
            }
            Err(Errno::NOENT) => Ok(Taken::Gone),
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.open(at, name),
            Err(Errno::BUSY) => {
                Err(Error::new(Kind::InUse, "something is mounted here, or the filesystem still holds it"))
            }
            Err(Errno::INTR) => Err(stopped()),
            Err(error) => Err(error).context(|| "unlink"),
        }
    }

    /// Unlinks a file or an empty directory, whatever the name is now.
    fn unlink(&self, at: BorrowedFd<'_>, name: &CStr, kind: FileType) -> ErrnoResult<()> {
        if !matches!(kind, FileType::Directory | FileType::Unknown) {
            match self.unlink_file(at, name, kind) {
                Err(Errno::ISDIR) => {}
                result => return result,
            }
        }
        match unlinkat(at, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => self.unlink_file(at, name, FileType::Unknown),
            result => result,
        }
    }

    fn unlink_file(&self, at: BorrowedFd<'_>, name: &CStr, kind: FileType) -> ErrnoResult<()> {
        if matches!(kind, FileType::RegularFile | FileType::Unknown)
            && fstatat(at, name).is_ok_and(|stat| stat.stx_blocks > STEP / 512)
        {
            self.shorten(at, name)?;
        }
        unlinkat(at, name, AtFlags::empty())
    }

    /// Cuts a big file shorter, if this is its only name. What cannot be cut is left to the unlinking. The number
    /// of steps follows from the data, not from the size: that may be anything.
    fn shorten(&self, at: BorrowedFd<'_>, name: &CStr) -> ErrnoResult<()> {
        let pinned = open_path(at, name)?;
        let stat = fstat(pinned.as_fd())?;
        if !kind_of(&stat).is_file() || stat.stx_nlink != 1 {
            return Ok(());
        }
        let Ok(file) = self.reopen.for_writing(pinned.as_fd()) else { return Ok(()) };
        let steps = stat.stx_blocks / (STEP / 512) + 1;
        for left in (1..steps).rev() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Errno::INTR);
            }
            if ftruncate(&file, stat.stx_size / steps * left).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Clears the flags that forbid changes; true if there were any. Those of the directory need no thought: it was
    /// an entry itself before it was entered.
    fn unlock(&self, at: BorrowedFd<'_>, name: &CStr) -> bool {
        let Ok(pinned) = open_path(at, name) else { return false };
        let kind = fstat(pinned.as_fd()).map_or(FileType::Unknown, |stat| kind_of(&stat));
        let open = if kind.is_dir() {
            open_directory(pinned.as_fd(), c".")
        } else if kind.is_file() {
            self.reopen.for_reading(pinned.as_fd())
        } else {
            return false; // what cannot be opened cannot have got such flags
        };
        open.is_ok_and(|file| clear_flags(file.as_fd()))
    }

    fn open(&mut self, at: BorrowedFd<'_>, name: &CStr) -> Result<Taken> {
        if std::mem::take(&mut self.came_up) {
            self.futile += 1;
        }
        if self.futile > PATIENCE {
            return Err(Error::new(Kind::Busy, "somebody makes files here meanwhile"));
        }
        match open_directory(at, name) {
            Ok(folder) => Ok(Taken::Full(folder)),
            Err(Errno::NOENT) => Ok(Taken::Gone),
            Err(Errno::XDEV) => Err(mounted_here(Kind::InUse)),
            Err(error) => Err(error).context(|| "open"),
        }
    }
}

fn stopped() -> Error {
    Error::new(Kind::Busy, "stopped")
}

fn clear_flags(fd: BorrowedFd<'_>) -> bool {
    let locks = IFlags::IMMUTABLE | IFlags::APPEND;
    let Ok(flags) = ioctl_getflags(fd) else { return false };
    flags.intersects(locks) && ioctl_setflags(fd, flags.difference(locks)).is_ok()
}
