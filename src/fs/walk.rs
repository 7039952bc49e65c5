//! Walking a tree that somebody else may be changing: one component at a time, with few open files and little
//! memory at any depth and size.
//!
//! [`Walk`] keeps 24 bytes for each level, and only the last [`WINDOW`] levels open. The way back beyond those is
//! `..`, believed only if it leads to the very directory that the walk came from. Directories are read in batches
//! of [`BATCH`] bytes, never whole.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, Statx, openat2, seek};
use rustix::io::{Errno, Result as ErrnoResult};

use super::{DIRECTORY, RESOLVE, fstat, open_directory, retry_transient, with_noatime};
use crate::error::{Context, Error, Kind, Result};

/// How many levels, counted from the deepest, are kept open.
pub(super) const WINDOW: usize = 8;
const BATCH: usize = 32 << 10;

/// Which file it is, among all of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(stat: &Statx) -> Self {
        let device = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
        Self { device, inode: stat.stx_ino }
    }
}

/// One name in a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: CString,
    /// As the directory says it: possibly unknown, possibly no longer true.
    pub(super) kind: FileType,
}

/// An open directory and the part of it that was read but not yet taken.
#[derive(Debug)]
struct Reader {
    fd: OwnedFd,
    /// Each entry with the place where the directory goes on after it.
    batch: VecDeque<(Entry, u64)>,
    /// Where the directory goes on after the last entry taken, and where that entry stood.
    cookie: u64,
    before: u64,
}

impl Reader {
    fn new(fd: OwnedFd, cookie: u64) -> Self {
        Self { fd, batch: VecDeque::new(), cookie, before: cookie }
    }

    fn next(&mut self, buffer: &mut [MaybeUninit<u8>]) -> ErrnoResult<Option<Entry>> {
        if self.batch.is_empty() {
            self.fill(buffer)?;
        }
        let Some((entry, cookie)) = self.batch.pop_front() else { return Ok(None) };
        self.before = std::mem::replace(&mut self.cookie, cookie);
        Ok(Some(entry))
    }

    /// One batch from the kernel, without `.` and `..`; none when the directory ends here.
    fn fill(&mut self, buffer: &mut [MaybeUninit<u8>]) -> ErrnoResult<()> {
        let mut raw = RawDir::new(&self.fd, buffer);
        while let Some(entry) = raw.next() {
            let entry = match entry {
                Err(Errno::NOENT) => return Ok(()), // the directory itself is gone
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

/// A level above the current one.
#[derive(Debug)]
struct Level {
    identity: Identity,
    cookie: u64,
}

/// A place in a tree, and the way back to its root.
#[derive(Debug)]
pub(super) struct Walk {
    current: Reader,
    identity: Identity,
    levels: Vec<Level>,
    /// The deepest of the levels above, still open.
    window: VecDeque<Reader>,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Walk {
    /// Starts at a directory, with an open file of its own.
    pub(super) fn new(root: BorrowedFd<'_>) -> ErrnoResult<Self> {
        let fd = open_directory(root, c".")?;
        let identity = Identity::of(&fstat(fd.as_fd())?);
        let buffer = vec![MaybeUninit::uninit(); BATCH];
        Ok(Self {
            current: Reader::new(fd, 0),
            identity,
            levels: Vec::new(),
            window: VecDeque::new(),
            buffer,
        })
    }

    /// The directory where the walk is.
    pub(super) fn here(&self) -> BorrowedFd<'_> {
        self.current.fd.as_fd()
    }

    /// Whether the walk is where it began.
    pub(super) fn is_top(&self) -> bool {
        self.levels.is_empty()
    }

    /// The next name here.
    pub(super) fn next(&mut self) -> ErrnoResult<Option<Entry>> {
        self.current.next(&mut self.buffer)
    }

    /// The last entry taken comes again.
    pub(super) fn put_back(&mut self, entry: Entry) {
        let cookie = std::mem::replace(&mut self.current.cookie, self.current.before);
        self.current.batch.push_front((entry, cookie));
    }

    /// Goes down into a directory opened from here.
    pub(super) fn enter(&mut self, fd: OwnedFd) -> ErrnoResult<()> {
        let identity = Identity::of(&fstat(fd.as_fd())?);
        let above = std::mem::replace(&mut self.current, Reader::new(fd, 0));
        let identity = std::mem::replace(&mut self.identity, identity);
        self.levels.push(Level { identity, cookie: above.cookie });
        self.window.push_back(above);
        if self.window.len() >= WINDOW {
            self.window.pop_front();
        }
        Ok(())
    }

    /// Goes back up; false at the root.
    pub(super) fn leave(&mut self) -> Result<bool> {
        let Some(level) = self.levels.pop() else { return Ok(false) };
        self.current = match self.window.pop_back() {
            Some(reader) => reader,
            None => Reader::new(self.climb(&level)?, level.cookie),
        };
        self.identity = level.identity;
        Ok(true)
    }

    fn climb(&self, level: &Level) -> Result<OwnedFd> {
        let moved = || Error::new(Kind::Busy, "the directory was moved meanwhile");
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let up = |more| retry_transient(|| openat2(self.here(), c"..", flags | more, Mode::empty(), RESOLVE));
        let fd = match with_noatime(up) {
            Err(Errno::NOENT | Errno::XDEV) => return Err(moved()),
            fd => fd.context(|| "go back up")?,
        };
        if Identity::of(&fstat(fd.as_fd()).context(|| "look at the parent")?) != level.identity {
            return Err(moved());
        }
        seek(&fd, SeekFrom::Start(level.cookie)).context(|| "go on reading the directory")?;
        Ok(fd)
    }
}

/// The names from the root of a tree to the place where a walk is, for messages: what is too long is left out.
#[derive(Debug, Default)]
pub(super) struct TreePath {
    path: Vec<u8>,
    beyond: usize,
}

impl TreePath {
    const KEPT: usize = 1024;
    const SHOWN: usize = 100;

    pub(super) fn push(&mut self, name: &CStr) {
        if self.beyond > 0 || self.path.len() + name.count_bytes() >= Self::KEPT {
            self.beyond += 1;
            return;
        }
        self.path.push(b'/');
        self.path.extend_from_slice(name.to_bytes());
    }

    pub(super) fn pop(&mut self) {
        if self.beyond > 0 {
            self.beyond -= 1;
        } else {
            let end = self.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            self.path.truncate(end);
        }
    }

    /// The path of a name here, at most some 300 characters, without control characters.
    pub(super) fn at(&self, name: &CStr) -> String {
        let mut path = self.path.clone();
        if self.beyond > 0 {
            path.extend_from_slice(format!("/({} deeper)", self.beyond).as_bytes());
        }
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
        Self::show(path.get(1..).unwrap_or_default())
    }

    /// The path of the directory where the walk is.
    pub(super) fn here(&self) -> String {
        if self.path.is_empty() { "the top folder".to_owned() } else { Self::show(&self.path[1..]) }
    }

    fn show(path: &[u8]) -> String {
        let text: Vec<char> = String::from_utf8_lossy(path)
            .chars()
            .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
            .collect();
        if text.len() <= 2 * Self::SHOWN {
            return text.into_iter().collect();
        }
        let (head, tail) = (&text[..Self::SHOWN], &text[text.len() - Self::SHOWN..]);
        head.iter().chain(&['…']).chain(tail).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_is_short_and_printable() {
        let mut path = TreePath::default();
        assert_eq!(path.here(), "the top folder");
        assert_eq!(path.at(c"a"), "a");
        path.push(c"dir");
        path.push(c"new\nline");
        assert_eq!(path.at(c"f"), "dir/new\u{fffd}line/f");
        for _ in 0..5000 {
            path.push(c"deep-deep-deep");
        }
        assert!(path.at(c"f").chars().count() <= 201);
        assert!(path.at(c"f").ends_with("deeper)/f"));
        for _ in 0..5001 {
            path.pop();
        }
        assert_eq!(path.here(), "dir");
        path.pop();
        assert_eq!(path.here(), "the top folder");
    }

    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 0..3 * WINDOW {
            path.push("d");
            std::fs::create_dir(&path).unwrap();
        }
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        (dir, fd)
    }

    #[test]
    fn a_walk_finds_its_way_back() {
        let (_dir, root) = tree();
        let mut walk = Walk::new(root.as_fd()).unwrap();
        let mut depth = 0;
        while let Some(entry) = walk.next().unwrap() {
            walk.enter(open_directory(walk.here(), &entry.name).unwrap()).unwrap();
            assert!(walk.window.len() < WINDOW);
            depth += 1;
        }
        assert_eq!(depth, 3 * WINDOW);
        while walk.leave().unwrap() {
            assert!(walk.next().unwrap().is_none(), "each name comes once");
            depth -= 1;
        }
        assert_eq!(depth, 0);
    }

    #[test]
    fn a_walk_notices_that_it_was_moved() {
        let (dir, root) = tree();
        let elsewhere = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
        let mut walk = Walk::new(root.as_fd()).unwrap();
        for _ in 0..2 * WINDOW {
            let entry = walk.next().unwrap().unwrap();
            walk.enter(open_directory(walk.here(), &entry.name).unwrap()).unwrap();
        }
        std::fs::rename(dir.path().join("d/d"), elsewhere.path().join("moved")).unwrap();
        let error = loop {
            match walk.leave() {
                Ok(true) => {}
                Ok(false) => panic!("came back to the root of another tree"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), Kind::Busy);
    }

    #[test]
    fn an_entry_put_back_comes_again() {
        let (_dir, root) = tree();
        let mut walk = Walk::new(root.as_fd()).unwrap();
        let first = walk.next().unwrap().unwrap();
        walk.put_back(first);
        assert_eq!(walk.next().unwrap().unwrap().name.as_c_str(), c"d");
        assert!(walk.next().unwrap().is_none());
    }
}
