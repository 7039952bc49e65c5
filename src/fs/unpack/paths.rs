//! Paths of an archive, resolved below the top directory.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::room::Room;
use crate::fs::{DIRECTORY, RESOLVE, open_directory, retry_transient};

const BELOW: ResolveFlags = RESOLVE.union(ResolveFlags::BENEATH);
/// The most bytes of a path that the kernel resolves at once.
const MAX_RESOLVED: usize = 4000;
/// Permissions of directories that have no entry of their own.
const MISSING: Mode = Mode::RWXU.union(Mode::RGRP).union(Mode::XGRP).union(Mode::ROTH).union(Mode::XOTH);

/// An entry that is refused, since the archive is wrong or hostile.
pub(super) fn refused(text: impl Into<String>) -> Error {
    Error::new(Kind::Unreadable, text)
}

/// A path without empty components and `.`.
pub(super) fn normalized(path: &[u8]) -> Result<Vec<u8>> {
    if path.starts_with(b"/") {
        return Err(refused("its name is absolute: make the archive with names that are not"));
    }
    let components: Vec<_> =
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if components.contains(&&b".."[..]) {
        return Err(refused("its name has a `..`, which could lead outside"));
    }
    Ok(components.join(&b'/'))
}

/// The rest of a path below a directory; `None` if it is elsewhere.
pub(super) fn below<'a>(path: &'a [u8], dir: &[u8]) -> Option<&'a [u8]> {
    if dir.is_empty() {
        return Some(path);
    }
    match path.strip_prefix(dir)? {
        [] => Some(&[]),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// The directory of a path, and the last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Opens a directory below another one.
pub(super) fn open(at: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    open_below(at, path).map_err(explain)
}

fn open_below(at: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    // Without NOFOLLOW: a symbolic link is an error of its own.
    let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
    retry_transient(|| openat2(at, path, flags, Mode::empty(), BELOW))
}

fn explain(error: Errno) -> Error {
    match error {
        Errno::LOOP => refused("its path leads through a symbolic link"),
        Errno::NOTDIR => refused("its path leads through an entry that is no directory"),
        Errno::XDEV => refused("its path leads outside"),
        error => Error::of_system_call(error, "open its directory"),
    }
}

/// The directory of the current entry: most entries have the one of the entry before.
pub(super) struct Parents {
    top: OwnedFd,
    path: Vec<u8>,
    dir: Arc<OwnedFd>,
}

impl Parents {
    pub(super) fn new(top: &OwnedFd) -> Result<Self> {
        let open = || open_directory(top.as_fd(), c".").context(|| "open the new directory");
        Ok(Self { top: open()?, path: Vec::new(), dir: Arc::new(open()?) })
    }

    /// The current directory.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The current directory, for another thread.
    pub(super) fn shared_dir(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.dir)
    }

    /// Its path.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Makes a directory the current one; `false` if it does not exist, unless it is a file that is not created yet.
    pub(super) fn enter(&mut self, path: &[u8]) -> Result<bool> {
        if path == self.path {
            return Ok(true);
        }
        let Some(dir) = self.open(path)? else { return Ok(false) };
        (self.path, self.dir) = (path.to_vec(), Arc::new(dir));
        Ok(true)
    }

    /// Opens a directory; `None` if it does not exist.
    pub(super) fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        let mut dir = open_directory(self.top.as_fd(), c".").context(|| "open the new directory")?;
        for part in parts(path) {
            match open_below(dir.as_fd(), &part?) {
                Err(Errno::NOENT) => return Ok(None),
                opened => dir = opened.map_err(explain)?,
            }
        }
        Ok(Some(dir))
    }

    /// Creates a directory with its parents as far as they are missing, and makes it the current one.
    pub(super) fn create(&mut self, path: &[u8], room: &mut Room) -> Result<()> {
        let mut dir = open_directory(self.top.as_fd(), c".").context(|| "open the new directory")?;
        for name in path.split(|byte| *byte == b'/') {
            let name = CString::new(name).map_err(|_| refused("its name has a NUL"))?;
            match mkdirat(&dir, &name, MISSING) {
                Ok(()) => room.take(dir.as_fd(), 0)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error).context(|| "create its directory"),
            }
            dir = open(dir.as_fd(), &name)?;
        }
        (self.path, self.dir) = (path.to_vec(), Arc::new(dir));
        Ok(())
    }
}

/// The parts of a path that are short enough for the kernel.
fn parts(path: &[u8]) -> impl Iterator<Item = Result<CString>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = rest.get(..MAX_RESOLVED).and_then(|start| start.iter().rposition(|byte| *byte == b'/'));
        let (part, more) = match cut {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = more;
        Some(CString::new(part).map_err(|_| refused("its name has a NUL")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_normalized_or_refused() {
        for (path, expected) in [("./a//b/.", "a/b"), (".", ""), ("a", "a"), ("..a/b..", "..a/b..")] {
            assert_eq!(normalized(path.as_bytes()).unwrap(), expected.as_bytes(), "{path}");
        }
        for path in ["/a", "..", "a/../b", "./..", "//"] {
            assert!(normalized(path.as_bytes()).is_err(), "{path}");
        }
    }

    #[test]
    fn a_path_is_below_a_directory_by_whole_components() {
        assert_eq!(below(b"data/a", b"data"), Some(&b"a"[..]));
        assert_eq!(below(b"data", b"data"), Some(&b""[..]));
        assert_eq!(below(b"database", b"data"), None);
        assert_eq!(below(b"a", b""), Some(&b"a"[..]));
    }

    #[test]
    fn a_long_path_is_resolved_in_parts() {
        let path = [&b"d/".repeat(5000)[..], b"e"].concat();
        let parts: Vec<_> = parts(&path).map(Result::unwrap).collect();
        assert!(parts.len() == 3 && parts.iter().all(|part| part.count_bytes() <= MAX_RESOLVED));
        assert_eq!(parts.iter().map(|part| part.to_bytes()).collect::<Vec<_>>().join(&b'/'), path);
    }
}
