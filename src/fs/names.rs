//! Makes, moves and removes names, also on a server that may do so and lose its reply.
//!
//! An NFS client repeats a call without a reply. A server that has restarted meanwhile, or any server of NFS 4.0, does not
//! know that it has done it: the name exists already, or is gone. So each such answer is checked against what is there.

use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, Dir, Mode, RenameFlags, StatxFlags, mkdirat, renameat, renameat_with, statx, unlinkat,
};
use rustix::io::{Errno, Result as ErrnoResult};
use rustix::path::Arg;

use super::{DirIdentity, open_directory};

/// Makes a directory whose name no other process uses. An empty one that exists is the one that was made.
///
/// # Errors
/// The error of the failed system call.
pub fn make_directory(at: BorrowedFd<'_>, name: impl Arg + Copy, mode: Mode) -> ErrnoResult<()> {
    match mkdirat(at, name, mode) {
        Err(Errno::EXIST) if is_empty_directory(at, name) => Ok(()),
        made => made,
    }
}

/// Renames an entry, and replaces a file of the new name. Succeeds also if an error is answered although the entry has the
/// new name.
///
/// # Errors
/// The error of the failed system call.
pub fn rename(
    from: BorrowedFd<'_>,
    entry: impl Arg + Copy,
    to: BorrowedFd<'_>,
    name: impl Arg + Copy,
) -> ErrnoResult<()> {
    let moved = DirIdentity::of_entry(from, entry);
    let renamed = renameat(from, entry, to, name);
    let is_moved = |moved| refreshed(to, name).is_ok_and(|found| found == moved);
    if renamed.is_err() && moved.is_ok_and(is_moved) { Ok(()) } else { renamed }
}

/// Renames an entry to a name that does not exist. NFS, some FUSE filesystems and 9p know no `RENAME_NOREPLACE`. There a
/// plain rename has the same effect on objects: a directory that is not empty is never replaced, and names in the trash are
/// random.
///
/// # Errors
/// The error of the failed system call.
pub fn rename_new(
    from: BorrowedFd<'_>,
    entry: impl Arg + Copy,
    to: BorrowedFd<'_>,
    name: impl Arg + Copy,
) -> ErrnoResult<()> {
    match renameat_with(from, entry, to, name, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL) => rename(from, entry, to, name),
        renamed => renamed,
    }
}

/// Removes a name. Succeeds if it does not exist.
///
/// # Errors
/// The error of the failed system call.
pub fn remove_name(at: BorrowedFd<'_>, name: impl Arg + Copy, flags: AtFlags) -> ErrnoResult<()> {
    match unlinkat(at, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

/// The identity of an entry as the server knows it: an NFS client remembers for a while that a name does not exist.
fn refreshed(at: BorrowedFd<'_>, name: impl Arg + Copy) -> ErrnoResult<DirIdentity> {
    statx(at, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    DirIdentity::of_entry(at, name)
}

fn is_empty_directory(at: BorrowedFd<'_>, name: impl Arg + Copy) -> bool {
    let Ok(mut entries) = open_directory(at, name).and_then(Dir::new) else { return false };
    let is_own = |entry: &rustix::fs::DirEntry| matches!(entry.file_name().to_bytes(), b"." | b"..");
    entries.all(|entry| entry.is_ok_and(|entry| is_own(&entry)))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn an_empty_directory_counts_as_made_and_no_other_entry_does() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap();
        let make = || make_directory(open.as_fd(), "d", Mode::RWXU);
        make().unwrap();
        make().unwrap();
        fs::write(dir.path().join("d/file"), "").unwrap();
        assert_eq!(make(), Err(Errno::EXIST));
        fs::remove_dir_all(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d"), "").unwrap();
        assert_eq!(make(), Err(Errno::EXIST));
    }

    #[test]
    fn a_rename_that_fails_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap();
        let rename = || rename(open.as_fd(), "a", open.as_fd(), "b");
        assert_eq!(rename(), Err(Errno::NOENT));
        fs::create_dir_all(dir.path().join("b/full")).unwrap();
        assert_eq!(rename(), Err(Errno::NOENT));
        fs::create_dir(dir.path().join("a")).unwrap();
        assert!(matches!(rename(), Err(Errno::NOTEMPTY | Errno::EXIST)));
        fs::remove_dir(dir.path().join("b/full")).unwrap();
        rename().unwrap();
    }
}
