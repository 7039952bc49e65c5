//! Directories below a pool's root: opened, created and listed by descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::error::{Context as _, Error, Kind, Result};
pub(super) use crate::fs::names::rename_new;
use crate::fs::remove_acls;

/// Resolution stays inside the directory and crosses neither a link nor a mount.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// How long a file of the pool is waited for on which another host has a lease. Without an answer of that host, the server
/// takes the lease back after its lease time, 90 s by default, and calls are answered with UNAVAILABLE until then.
const LEASE_WAIT: Duration = Duration::from_secs(5);
const LEASE_POLL: Duration = Duration::from_millis(5);

/// Opens a directory for reading.
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Everything but a volume's data is accessible to root only.
pub(super) const PRIVATE: Mode = Mode::RWXU;

/// Opens a path inside a directory, never outside of it, through a link or across a mount.
///
/// The kernel answers EXDEV or EAGAIN when a component is renamed during the walk (openat2(2)). The call is repeated;
/// a real mount gives the same answer each time.
pub(super) fn open_inside<P: Arg + Copy>(
    dir: impl AsFd,
    path: P,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    open_file_inside(dir, path, flags, Mode::empty())
}

/// Like [`open_inside`]; a file that is created gets this mode.
pub(super) fn open_file_inside<P: Arg + Copy>(
    dir: impl AsFd,
    path: P,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let open = || fs::openat2(&dir, path, flags, mode, INSIDE);
    let mut opened = open();
    for _ in 0..64 {
        match opened {
            Err(Errno::XDEV | Errno::AGAIN | Errno::INTR) => opened = open(),
            _ => break,
        }
    }
    match opened {
        Err(Errno::AGAIN) if flags.contains(OFlags::NONBLOCK) => wait_for_lease(LEASE_WAIT, open),
        opened => opened,
    }
}

/// Repeats the opening of a file on which a lease is held. On an NFS server, this is a delegation: a client that has the file
/// open gives it up within milliseconds.
#[expect(clippy::disallowed_methods, reason = "the kernel does not report the end of a lease")]
fn wait_for_lease(
    longest: Duration,
    open: impl Fn() -> rustix::io::Result<OwnedFd>,
) -> rustix::io::Result<OwnedFd> {
    let deadline = Instant::now() + longest;
    loop {
        match open() {
            Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(LEASE_POLL),
            Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
            opened => return opened,
        }
    }
}

/// Adds the likely cause to a rename within a pool that failed because the directories are on different devices.
pub(super) fn explain_rename<T>(renamed: rustix::io::Result<T>) -> Result<T> {
    match renamed {
        Err(Errno::XDEV) => renamed.context(|| {
            "the two directories have different project ids, or are in different layers of an overlay: clear the \
             project id and its inheritance (`chattr -p 0 -P DIRECTORY`), or use the upper filesystem"
        }),
        renamed => renamed.context(|| "rename"),
    }
}

/// Names the path that was opened, and what an administrator must change if it is no plain directory or file.
pub(super) fn explain(opened: rustix::io::Result<OwnedFd>, path: &str) -> Result<OwnedFd> {
    let what = match opened {
        Err(Errno::XDEV) => "something is mounted there: unmount it",
        Err(Errno::LOOP | Errno::NOTDIR) => "it is not a directory: put the real one in its place",
        opened => return opened.context(|| format!("open {path}")),
    };
    Err(Error::new(Kind::Unavailable, format!("open {path}: {what}")))
}

/// Opens a private directory in `parent`; creates it if it is missing.
pub(super) fn open_or_create(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let created = match fs::mkdirat(parent, name, PRIVATE) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error).context(|| format!("create {name}/")),
    };
    let dir = explain(open_inside(parent, name, DIRECTORY), &format!("{name}/"))?;
    if created {
        remove_acls(dir.as_fd())?;
    }
    Ok(dir)
}

/// Calls `with` for each UTF-8 entry of a directory except `.` and `..`. All names that orlop gives are UTF-8.
pub(super) fn for_each_name(dir: BorrowedFd<'_>, mut with: impl FnMut(&str)) -> Result<()> {
    for_each_entry(dir, |entry| {
        let _ = entry.to_str().map(&mut with);
    })
}

/// Calls `with` for each entry of a directory except `.` and `..`.
pub(super) fn for_each_entry(dir: BorrowedFd<'_>, mut with: impl FnMut(&CStr)) -> Result<()> {
    for entry in fs::Dir::read_from(dir).context(|| "open the directory")? {
        let entry = entry.context(|| "read the directory")?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            _ => with(entry.file_name()),
        }
    }
    Ok(())
}

/// A random name of 16 hexadecimal digits.
pub(super) fn nonce() -> Result<String> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .context(|| "get random bytes")?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_that_a_lease_keeps_is_opened_when_the_lease_ends() {
        let mut answers =
            [Err(Errno::AGAIN), Err(Errno::AGAIN), Ok(File::open("/").unwrap().into())].into_iter();
        let answers = std::cell::RefCell::new(&mut answers);
        wait_for_lease(LEASE_WAIT, || answers.borrow_mut().next().unwrap()).unwrap();
        assert!(answers.borrow_mut().next().is_none());
        assert_eq!(wait_for_lease(LEASE_POLL, || Err(Errno::AGAIN)).unwrap_err(), Errno::TIMEDOUT);
    }
}
