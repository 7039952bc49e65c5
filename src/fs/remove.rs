//! Removes a tree of any size and depth, while other processes may still write to it.
//!
//! A directory is first removed as if it were empty, and entered only if it is not. After its contents are removed,
//! the walk returns its entry again and removes it. Thus nothing has to be remembered, and a call after an
//! interruption continues. A directory at a great depth is moved up first, so that each call finds something to remove
//! soon. No symlink is followed, and a mount point inside stops the removal.
//!
//! On a server, each call waits for an answer. So several threads remove there, each another directory: the kernel does one
//! removal in a directory at a time.

mod threads;

use std::ffi::{CStr, CString};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Scope, scope};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, IFlags, ftruncate, ioctl_getflags, ioctl_setflags, renameat, unlinkat};
use rustix::io::{Errno, Result as ErrnoResult};

use self::threads::Spawned;
use super::{
    Entry, Reopen, TreePath, Walk, fstat, fstatat, kind_of, mounted_here, open_directory, open_path,
    subvolume,
};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::file_flags;

/// A file with more bytes of data is truncated in steps of about this size, so that no single call blocks the
/// filesystem for long.
const STEP: u64 = 1 << 30;
/// How often a directory may be found not empty after it was read to its end, with nothing removed in between.
const MAX_RETRIES: u32 = 16;

/// A directory at this level is moved to the top directory. Otherwise the way down to the first name grows with the tree,
/// and has no end while a process moves directories below the walk.
const MAX_DEPTH: usize = 2048;

/// Longest time until a call removes its first name. See [`Slice::length`].
const LONGEST_DESCENT: Duration = Duration::from_secs(60);

/// When a removal ends although something is left.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a> {
    /// Set by another thread to end it soon.
    pub stop: &'a AtomicBool,
    /// Its longest duration, counted from the first removed name: the way down to that name is repeated by each call,
    /// and a deep tree must become smaller in each.
    pub length: Duration,
}

/// What a call removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Number of names of every type, including the top directory.
    pub entries: u64,
    /// Whether nothing is left. Otherwise the slice is over, and another call continues.
    pub complete: bool,
}

/// Removes the entry `name` of the directory `parent` with everything below it, or as much as the slice allows.
/// Succeeds if it does not exist.
///
/// # Errors
/// `InUse` when there is a mount point inside, or the filesystem is using a file; `Busy` when another process keeps
/// moving or creating files inside; `Internal` for any other failed call. What was removed stays removed.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &str, slice: Slice<'_>) -> Result<Removed> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(Error::new(Kind::Invalid, format!("{name:?} is not the name of an entry")));
    }
    let top =
        CString::new(name).map_err(|_| Error::new(Kind::Invalid, format!("{name:?} contains a NUL")))?;
    let free_threads = AtomicUsize::new(threads::more_for(parent));
    Remover::new(slice, &free_threads)?.remove(parent, top)
}

/// Like [`remove_tree`], for a name that was read from a directory, and in this thread only.
pub(super) fn remove_entry(parent: BorrowedFd<'_>, name: CString, slice: Slice<'_>) -> Result<Removed> {
    Remover::new(slice, &AtomicUsize::new(0))?.remove(parent, name)
}

/// Result of an attempt to remove an entry.
enum Unlinked {
    /// The entry does not exist any more.
    Done,
    /// The entry is this directory, which is not empty.
    NotEmpty(OwnedFd),
    /// The entry is left for another call.
    SliceOver,
}

struct Remover<'a> {
    reopen: Reopen,
    slice: Slice<'a>,
    started: Instant,
    /// When the tree first became smaller.
    first_removal: Option<Instant>,
    removed: Removed,
    /// Whether the directory that is to be removed next has just been read to its end.
    directory_was_read: bool,
    retries: u32,
    /// How many more threads may remove directories of this tree.
    free_threads: &'a AtomicUsize,
}

impl<'a> Remover<'a> {
    fn new(slice: Slice<'a>, free_threads: &'a AtomicUsize) -> Result<Self> {
        Ok(Self {
            reopen: Reopen::new()?,
            slice,
            started: Instant::now(),
            first_removal: None,
            removed: Removed::default(),
            directory_was_read: false,
            retries: 0,
            free_threads,
        })
    }

    fn remove(mut self, parent: BorrowedFd<'_>, name: CString) -> Result<Removed> {
        let shown = TreePath::default().join(&name);
        let what = || format!("remove {shown}");
        let top = Entry { name, kind: FileType::Unknown };
        loop {
            match self.remove_entry(parent, &top).context(what)? {
                Unlinked::Done => return Ok(Removed { complete: true, ..self.removed }),
                Unlinked::NotEmpty(dir) => {
                    let removed = scope(|scope| self.remove_contents(scope, dir.as_fd()));
                    if removed.context(what)?.is_break() {
                        return Ok(self.removed);
                    }
                }
                Unlinked::SliceOver => return Ok(self.removed),
            }
        }
    }

    /// Whether the call has to end. It never ends before the tree has become smaller, unless that takes too long.
    fn is_over(&self) -> bool {
        let is_late = match self.first_removal {
            Some(first) => first.elapsed() >= self.slice.length,
            None => self.started.elapsed() >= LONGEST_DESCENT,
        };
        is_late || self.slice.stop.load(Ordering::Relaxed)
    }

    fn note_progress(&mut self) {
        self.first_removal.get_or_insert_with(Instant::now);
    }

    /// Removes everything in a directory; breaks at the end of the slice.
    fn remove_contents<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, 'a>,
        dir: BorrowedFd<'_>,
    ) -> Result<ControlFlow<()>> {
        let mut spawned = Vec::new();
        let end = self.walk(scope, dir, &mut spawned)?;
        for removal in spawned {
            let _ = self.join(removal)?;
        }
        Ok(end)
    }

    fn walk<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, 'a>,
        dir: BorrowedFd<'_>,
        spawned: &mut Vec<Spawned<'scope>>,
    ) -> Result<ControlFlow<()>> {
        let mut walk = Walk::new(dir).context(|| "open the top directory")?;
        let mut path = TreePath::default();
        loop {
            let Some(entry) = walk.next().context(|| format!("read {}", path.current()))? else {
                while let Some(removal) = spawned.pop_if(|removal| removal.is_in(&walk)) {
                    if self.join(removal).context(|| path.current())?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                self.directory_was_read = true;
                if !walk.leave().context(|| path.current())? {
                    return Ok(ControlFlow::Continue(()));
                }
                path.pop();
                continue;
            };
            let unlinked = self.remove_entry(walk.dir(), &entry).context(|| path.join(&entry.name))?;
            match unlinked {
                Unlinked::Done => {}
                Unlinked::SliceOver => return Ok(ControlFlow::Break(())),
                Unlinked::NotEmpty(deep) if self.is_moved_up(&walk, &entry.name, &deep, dir) => {}
                Unlinked::NotEmpty(dir) => {
                    if self.join_finished(spawned).context(|| path.current())?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    if let Some(removal) = self.spawn_removal(scope, &walk, &entry.name) {
                        spawned.push(removal);
                        continue;
                    }
                    path.push(&entry.name);
                    walk.put_back(entry);
                    walk.enter(dir).context(|| path.current())?;
                }
            }
        }
    }

    /// Moves a directory that is too deep to the top directory, which is read again in the end. False if it is not deep, or
    /// cannot be moved: then it is entered.
    fn is_moved_up(&mut self, walk: &Walk, name: &CStr, deep: &OwnedFd, top: BorrowedFd<'_>) -> bool {
        if walk.depth() < MAX_DEPTH {
            return false;
        }
        let Ok(stat) = fstat(deep.as_fd()) else { return false };
        let is_moved = renameat(walk.dir(), name, top, format!(".orlop-deep-{}", stat.stx_ino)).is_ok();
        if is_moved {
            self.note_progress();
            self.directory_was_read = false;
        }
        is_moved
    }

    fn remove_entry(&mut self, at: BorrowedFd<'_>, entry: &Entry) -> Result<Unlinked> {
        if self.is_over() {
            return Ok(Unlinked::SliceOver);
        }
        let name = &entry.name;
        let mut result = self.unlink(at, name, entry.kind);
        let is_cleared = match result {
            Err(Errno::PERM) => self.make_mutable(at, name),
            // The walk enters a subvolume at its top, so a subvolume becomes writable at its first entry.
            Err(Errno::ROFS) => file_flags::make_subvolume_writable(at).unwrap_or(false),
            Ok(()) | Err(_) => false,
        };
        if is_cleared {
            result = self.unlink(at, name, entry.kind);
        }
        match result {
            Ok(()) => Ok(self.note_removed()),
            Err(Errno::NOENT) => Ok(Unlinked::Done),
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.open_not_empty(at, name),
            Err(Errno::BUSY) => Err(Error::new(
                Kind::InUse,
                "it is a mount point or in use by the filesystem: unmount it and retry",
            )),
            Err(Errno::INTR) => Ok(Unlinked::SliceOver),
            Err(error) => Err(error).context(|| "unlink"),
        }
    }

    fn note_removed(&mut self) -> Unlinked {
        self.note_progress();
        self.removed.entries += 1;
        (self.directory_was_read, self.retries) = (false, 0);
        Unlinked::Done
    }

    /// Unlinks a file or an empty directory. `kind` is a hint: the entry may have been replaced. `INTR` at the end of the
    /// slice.
    fn unlink(&mut self, at: BorrowedFd<'_>, name: &CStr, kind: FileType) -> ErrnoResult<()> {
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

    fn unlink_file(&mut self, at: BorrowedFd<'_>, name: &CStr, kind: FileType) -> ErrnoResult<()> {
        if matches!(kind, FileType::RegularFile | FileType::Unknown)
            && fstatat(at, name).is_ok_and(|stat| stat.stx_blocks > STEP / 512)
        {
            self.truncate_in_steps(at, name)?;
        }
        unlinkat(at, name, AtFlags::empty())
    }

    /// Truncates a large file in steps, if it has no other name. A file that cannot be truncated is left to `unlink`.
    /// The number of steps depends on the allocated blocks: the size of a sparse file can be any number.
    fn truncate_in_steps(&mut self, at: BorrowedFd<'_>, name: &CStr) -> ErrnoResult<()> {
        let file = open_path(at, name)?;
        let stat = fstat(file.as_fd())?;
        if !kind_of(&stat).is_file() || stat.stx_nlink != 1 {
            return Ok(());
        }
        let Ok(file) = self.reopen.for_writing(file.as_fd()) else { return Ok(()) };
        let steps = stat.stx_blocks / (STEP / 512) + 1;
        for left in (1..steps).rev() {
            if self.is_over() {
                return Err(Errno::INTR);
            }
            if ftruncate(&file, stat.stx_size / steps * left).is_err() {
                break;
            }
            self.note_progress();
        }
        Ok(())
    }

    /// Clears the immutable and append-only flags; reports whether any was set. The flags of the parent directory
    /// were cleared when the attempt to remove that directory failed.
    fn make_mutable(&self, at: BorrowedFd<'_>, name: &CStr) -> bool {
        let Ok(file) = open_path(at, name) else { return false };
        let kind = fstat(file.as_fd()).map_or(FileType::Unknown, |stat| kind_of(&stat));
        let open = if kind.is_dir() {
            open_directory(file.as_fd(), c".")
        } else if kind.is_file() {
            self.reopen.for_reading(file.as_fd())
        } else {
            // It cannot be opened, so its flags could be set only by a call that needs no open file.
            return file_flags::make_mutable(at, name).unwrap_or(false);
        };
        open.is_ok_and(|file| clear_flags(file.as_fd()))
    }

    fn open_not_empty(&mut self, at: BorrowedFd<'_>, name: &CStr) -> Result<Unlinked> {
        if std::mem::take(&mut self.directory_was_read) {
            self.retries += 1;
        }
        if self.retries > MAX_RETRIES {
            let text = "another process keeps creating files here: stop it and retry";
            return Err(Error::new(Kind::Busy, text));
        }
        match open_directory(at, name) {
            // One call instead of a walk. A subvolume that contains others is entered until these are gone.
            Ok(dir) if subvolume::destroy(at, name, dir.as_fd()) => Ok(self.note_removed()),
            Ok(dir) => Ok(Unlinked::NotEmpty(dir)),
            Err(Errno::NOENT) => Ok(Unlinked::Done),
            Err(Errno::XDEV) => Err(mounted_here(Kind::InUse)),
            Err(error) => Err(error).context(|| "open"),
        }
    }
}

fn clear_flags(fd: BorrowedFd<'_>) -> bool {
    let immutable = IFlags::IMMUTABLE | IFlags::APPEND;
    let Ok(flags) = ioctl_getflags(fd) else { return false };
    flags.intersects(immutable) && ioctl_setflags(fd, flags.difference(immutable)).is_ok()
}
