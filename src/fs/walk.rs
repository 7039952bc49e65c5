//! Walks a tree while other processes may change it, with few open files and little memory at any depth and size.
//!
//! Every step is one path component. [`Walk`] keeps 24 bytes for each level and only a few of the deepest levels open. It
//! returns to a level that is not open through `..`, and checks that this is the same directory that it descended from. A
//! level that is open is found even if directories were moved meanwhile. Directories are read in batches of
//! [`BUFFER_SIZE`] bytes, never whole.

use std::collections::VecDeque;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, openat2, seek};
use rustix::io::{Errno, Result as ErrnoResult};

use super::{DIRECTORY, DirIdentity, RESOLVE, open_directory, retry_transient, with_noatime};
use crate::error::{Context, Error, Kind, Result};

/// Number of levels, counted from the deepest, that are kept open.
const OPEN_LEVELS: usize = 8;
/// The same for a tree that its tenant may be changing.
const OPEN_LEVELS_OF_LIVE_TREE: usize = 32;
const BUFFER_SIZE: usize = 32 << 10;

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: CString,
    /// The type that the directory reports. It may be unknown or out of date.
    pub(super) kind: FileType,
}

/// An open directory and those entries that were read from it but not returned yet.
#[derive(Debug)]
struct DirReader {
    fd: OwnedFd,
    /// Each entry with the cookie of the position after it (`d_off`, see getdents(2)).
    batch: VecDeque<(Entry, u64)>,
    /// The position after the last entry that was returned.
    cookie: u64,
    /// The position of that entry.
    previous_cookie: u64,
}

impl DirReader {
    fn new(fd: OwnedFd, cookie: u64) -> Self {
        Self { fd, batch: VecDeque::new(), cookie, previous_cookie: cookie }
    }

    fn next(&mut self, buffer: &mut [MaybeUninit<u8>]) -> ErrnoResult<Option<Entry>> {
        if self.batch.is_empty() {
            self.fill(buffer)?;
        }
        let Some((entry, cookie)) = self.batch.pop_front() else { return Ok(None) };
        self.previous_cookie = std::mem::replace(&mut self.cookie, cookie);
        Ok(Some(entry))
    }

    /// Reads one batch, without `.` and `..`. The batch stays empty at the end of the directory.
    fn fill(&mut self, buffer: &mut [MaybeUninit<u8>]) -> ErrnoResult<()> {
        let mut raw = RawDir::new(&self.fd, buffer);
        while let Some(entry) = raw.next() {
            let entry = match entry {
                // The directory itself was deleted.
                Err(Errno::NOENT) => return Ok(()),
                entry => entry?,
            };
            if entry.file_name() != c"." && entry.file_name() != c".." {
                let found = Entry { name: entry.file_name().to_owned(), kind: entry.file_type() };
                self.batch.push_back((found, entry.next_entry_cookie()));
            }
            if raw.is_buffer_empty() && !self.batch.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

/// A directory above the current one.
#[derive(Debug)]
struct Ancestor {
    identity: DirIdentity,
    cookie: u64,
}

/// A position in a tree, and the way back to its root.
#[derive(Debug)]
pub(super) struct Walk {
    current: DirReader,
    identity: DirIdentity,
    ancestors: Vec<Ancestor>,
    /// The deepest ancestors, still open.
    open: VecDeque<DirReader>,
    max_open: usize,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Walk {
    /// Starts at a directory. The walk opens it again for itself.
    pub(super) fn new(root: BorrowedFd<'_>) -> ErrnoResult<Self> {
        Self::with_open_levels(root, OPEN_LEVELS)
    }

    /// Like [`Walk::new`], for a tree whose directories may be moved: the walk keeps more of them open.
    pub(super) fn of_live_tree(root: BorrowedFd<'_>) -> ErrnoResult<Self> {
        Self::with_open_levels(root, OPEN_LEVELS_OF_LIVE_TREE)
    }

    fn with_open_levels(root: BorrowedFd<'_>, max_open: usize) -> ErrnoResult<Self> {
        let fd = open_directory(root, c".")?;
        let identity = DirIdentity::of(fd.as_fd())?;
        let buffer = vec![MaybeUninit::uninit(); BUFFER_SIZE];
        Ok(Self {
            current: DirReader::new(fd, 0),
            identity,
            ancestors: Vec::new(),
            open: VecDeque::new(),
            max_open,
            buffer,
        })
    }

    /// The current directory.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.current.fd.as_fd()
    }

    /// Whether the current directory is the root of the walk.
    pub(super) fn is_at_root(&self) -> bool {
        self.ancestors.is_empty()
    }

    /// Number of levels above the current directory.
    pub(super) fn depth(&self) -> usize {
        self.ancestors.len()
    }

    /// The next entry of the current directory; `None` if there are no more.
    pub(super) fn next(&mut self) -> ErrnoResult<Option<Entry>> {
        self.current.next(&mut self.buffer)
    }

    /// Puts back the entry that [`Walk::next`] has just returned: it is returned again.
    pub(super) fn put_back(&mut self, entry: Entry) {
        let cookie = std::mem::replace(&mut self.current.cookie, self.current.previous_cookie);
        self.current.batch.push_front((entry, cookie));
    }

    /// Descends into a directory that was opened from the current one.
    pub(super) fn enter(&mut self, fd: OwnedFd) -> ErrnoResult<()> {
        let identity = DirIdentity::of(fd.as_fd())?;
        let parent = std::mem::replace(&mut self.current, DirReader::new(fd, 0));
        let identity = std::mem::replace(&mut self.identity, identity);
        self.ancestors.push(Ancestor { identity, cookie: parent.cookie });
        self.open.push_back(parent);
        if self.open.len() >= self.max_open {
            self.open.pop_front();
        }
        Ok(())
    }

    /// Returns to the parent directory; false at the root.
    ///
    /// # Errors
    /// `Busy` when the current directory was moved to another parent; otherwise the error of the failed system call.
    pub(super) fn leave(&mut self) -> Result<bool> {
        let Some(parent) = self.ancestors.pop() else { return Ok(false) };
        self.current = match self.open.pop_back() {
            Some(reader) => reader,
            None => DirReader::new(self.open_parent(&parent)?, parent.cookie),
        };
        self.identity = parent.identity;
        Ok(true)
    }

    /// Opens the parent directory through `..` and continues to read it where the walk left it.
    fn open_parent(&self, parent: &Ancestor) -> Result<OwnedFd> {
        let moved = || Error::new(Kind::Busy, "the directory was moved during the walk: retry");
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let open =
            |more| retry_transient(|| openat2(self.dir(), c"..", flags | more, Mode::empty(), RESOLVE));
        let fd = match with_noatime(open) {
            Err(Errno::NOENT | Errno::XDEV) => return Err(moved()),
            fd => fd.context(|| "open the parent directory")?,
        };
        if DirIdentity::of(fd.as_fd()).context(|| "stat the parent directory")? != parent.identity {
            return Err(moved());
        }
        seek(&fd, SeekFrom::Start(parent.cookie)).context(|| "seek in the parent directory")?;
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of directories, deeper than the levels that are kept open.
    fn deep_tree() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 0..3 * OPEN_LEVELS {
            path.push("d");
            std::fs::create_dir(&path).unwrap();
        }
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        (dir, fd)
    }

    #[test]
    fn a_walk_returns_to_its_root_and_returns_each_entry_once() {
        let (_dir, root) = deep_tree();
        let mut walk = Walk::new(root.as_fd()).unwrap();
        let mut depth = 0;
        while let Some(entry) = walk.next().unwrap() {
            walk.enter(open_directory(walk.dir(), &entry.name).unwrap()).unwrap();
            assert!(walk.open.len() < OPEN_LEVELS);
            depth += 1;
        }
        assert_eq!(depth, 3 * OPEN_LEVELS);
        while walk.leave().unwrap() {
            assert!(walk.next().unwrap().is_none(), "each entry is returned once");
            depth -= 1;
        }
        assert_eq!(depth, 0);
    }

    #[test]
    fn a_walk_fails_when_its_directory_was_moved() {
        let (dir, root) = deep_tree();
        let elsewhere = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
        let mut walk = Walk::new(root.as_fd()).unwrap();
        for _ in 0..2 * OPEN_LEVELS {
            let entry = walk.next().unwrap().unwrap();
            walk.enter(open_directory(walk.dir(), &entry.name).unwrap()).unwrap();
        }
        std::fs::rename(dir.path().join("d/d"), elsewhere.path().join("moved")).unwrap();
        let error = loop {
            match walk.leave() {
                Ok(true) => {}
                Ok(false) => panic!("the walk reached a root through another tree"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), Kind::Busy);
    }

    #[test]
    fn an_entry_that_is_put_back_is_returned_again() {
        let (_dir, root) = deep_tree();
        let mut walk = Walk::new(root.as_fd()).unwrap();
        let first = walk.next().unwrap().unwrap();
        walk.put_back(first);
        assert_eq!(walk.next().unwrap().unwrap().name.as_c_str(), c"d");
        assert!(walk.next().unwrap().is_none());
    }
}
