//! Trees of files: walked, copied, removed and measured while a tenant may be changing them.
//!
//! Every entry is reached by one component below an open directory. No symbolic link is followed, no mount entered, and
//! nothing is opened in a way that can block on a device or a FIFO.

pub mod audit;
pub mod copy;
pub mod names;
pub mod nfs;
pub mod pack;
pub mod project;
pub mod reflink;
pub mod remove;
pub mod subvolume;
pub mod unpack;

mod budget;
mod disk_usage;
mod lease;
mod nodev;
mod path;
mod stop;
mod walk;

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, StatxTimestamp, fremovexattr,
    openat, openat2, statx,
};
use rustix::io::{Errno, Result as ErrnoResult};
use rustix::path::{Arg, DecInt};
use rustix::time::{ClockId, clock_gettime};

use crate::error::{Context, Error, Kind, Result};

use self::budget::Budget;
pub use self::disk_usage::{DiskUsage, Measurement};
use self::path::TreePath;
use self::walk::{Entry, Walk};

/// Without `BENEATH`: a name read from a directory has no slash, so `BENEATH` would forbid nothing. It would also report
/// `EXDEV` when a concurrent rename moves the entry, and here `EXDEV` must mean a mount only.
const RESOLVE: ResolveFlags =
    ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Repeats a call that the kernel aborted because of an unrelated rename (`EAGAIN`, see openat2(2)) or a signal.
fn retry_transient<T>(mut call: impl FnMut() -> ErrnoResult<T>) -> ErrnoResult<T> {
    for _ in 0..64 {
        let result = call();
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
            return result;
        }
    }
    call()
}

/// Opens an entry of any type as a path-only descriptor: no device is opened, no FIFO blocks, no symlink is followed.
fn open_path(at: BorrowedFd<'_>, name: &CStr) -> ErrnoResult<OwnedFd> {
    retry_transient(|| {
        openat2(at, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
    })
}

/// Opens a file for reading, without following a symlink or entering a mount. What is not a file may be opened, too, but
/// does not block. A device can be opened unless `at` is of a mount with `nodev`: see [`nodev`].
///
/// # Errors
/// As [`Reopen::for_reading`]; `EXDEV` if it is a mount point, `ELOOP` for a symlink, `ENXIO` for a socket, `EACCES` for a
/// device of a mount with `nodev`; otherwise the error of the failed system call.
fn open_file(at: BorrowedFd<'_>, name: &CStr) -> ErrnoResult<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    with_noatime(|more| rustix::io::retry_on_intr(|| openat2(at, name, flags | more, Mode::empty(), RESOLVE)))
}

/// Opens a directory for reading, without following a symlink or entering a mount. The name `.` reopens a path-only
/// descriptor.
///
/// # Errors
/// `EXDEV` if it is a mount point, `ELOOP` or `ENOTDIR` if it is not a directory; otherwise the error of the failed system call.
pub fn open_directory<P: Arg + Copy>(at: BorrowedFd<'_>, name: P) -> ErrnoResult<OwnedFd> {
    with_noatime(|flags| retry_transient(|| openat2(at, name, DIRECTORY | flags, Mode::empty(), RESOLVE)))
}

/// Opens a directory any number of levels below another one. No symbolic link is followed; mounts are entered.
///
/// # Errors
/// `ELOOP` for a symbolic link, `EXDEV` for a path that leads outside; otherwise the error of the failed system call.
pub fn open_below<P: Arg + Copy>(dir: BorrowedFd<'_>, path: P) -> ErrnoResult<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::BENEATH;
    retry_transient(|| openat2(dir, path, DIRECTORY, Mode::empty(), resolve))
}

/// Opens a file with `O_NOATIME`, or without it where the kernel forbids that.
fn with_noatime(mut open: impl FnMut(OFlags) -> ErrnoResult<OwnedFd>) -> ErrnoResult<OwnedFd> {
    match open(OFlags::NOATIME) {
        Err(Errno::PERM) => open(OFlags::empty()),
        result => result,
    }
}

/// The attributes of an open file or path-only descriptor.
fn fstat(fd: BorrowedFd<'_>) -> ErrnoResult<Statx> {
    statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// The attributes of a name, which is not followed.
fn fstatat(at: BorrowedFd<'_>, name: &CStr) -> ErrnoResult<Statx> {
    statx(at, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// The project id that new entries of an open directory inherit; `None` if they inherit none, also on a filesystem without
/// project ids.
#[must_use]
pub fn inherited_project(dir: BorrowedFd<'_>) -> Option<u32> {
    project::of(dir).filter(|project| project.is_inherited).map(|project| project.id)
}

/// Identifies a directory among all filesystems of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirIdentity {
    device: (u32, u32),
    inode: u64,
}

impl DirIdentity {
    /// The identity of an open directory.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn of(dir: BorrowedFd<'_>) -> ErrnoResult<Self> {
        statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::INO).map(|stat| Self::from_stat(&stat))
    }

    /// The identity of the directory that a path leads to, following symbolic links.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn at(path: &Path) -> ErrnoResult<Self> {
        statx(CWD, path, AtFlags::empty(), StatxFlags::INO).map(|stat| Self::from_stat(&stat))
    }

    /// Like [`DirIdentity::at`], with the time at which an entry of the directory was last added, removed or renamed.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn with_change_time(path: &Path) -> ErrnoResult<(Self, ChangeTime)> {
        let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::INO | StatxFlags::CTIME)?;
        Ok((Self::from_stat(&stat), ChangeTime::from_stat(&stat)))
    }

    /// The identity of an open directory with its change time, as in [`DirIdentity::with_change_time`]. The server of a share
    /// is asked, whatever is cached here.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn of_open_with_change_time(dir: BorrowedFd<'_>) -> ErrnoResult<(Self, ChangeTime)> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let stat = statx(dir, c"", flags, StatxFlags::INO | StatxFlags::CTIME)?;
        Ok((Self::from_stat(&stat), ChangeTime::from_stat(&stat)))
    }

    /// The identity of an entry of a directory. A symbolic link is not followed, and a mount point has that of the mount.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn of_entry(dir: BorrowedFd<'_>, name: impl Arg) -> ErrnoResult<Self> {
        statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO).map(|stat| Self::from_stat(&stat))
    }

    fn from_stat(stat: &Statx) -> Self {
        Self { device: (stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino }
    }
}

/// The time of a directory's last change, by the clock of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeTime {
    seconds: i64,
    nanoseconds: u32,
}

impl ChangeTime {
    fn from_stat(stat: &Statx) -> Self {
        let StatxTimestamp { tv_sec, tv_nsec, .. } = stat.stx_ctime;
        Self { seconds: tv_sec, nanoseconds: tv_nsec }
    }

    /// Whether a change that happens now would have another time. The kernel's timestamps can be coarse: 10 ms at most.
    #[must_use]
    pub fn is_past(self) -> bool {
        self.seconds.saturating_add(1) < clock_gettime(ClockId::Realtime).tv_sec
    }
}

/// Removes the ACLs that a new directory has inherited from the default ACL of its parent, so that its mode says who has
/// access.
///
/// # Errors
/// The error of the failed system call.
pub fn remove_acls(dir: BorrowedFd<'_>) -> Result<()> {
    for name in [c"system.posix_acl_default", c"system.posix_acl_access"] {
        match fremovexattr(dir, name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error).context(|| "remove the inherited ACL"),
        }
    }
    Ok(())
}

/// The type of a file.
fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// Opens the file behind a path-only descriptor through `/proc`, even if its name has changed since.
#[derive(Debug)]
struct Reopen(OwnedFd);

impl Reopen {
    fn new() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fds =
            rustix::fs::open(c"/proc/self/fd", flags, Mode::empty()).context(|| "open /proc/self/fd")?;
        Ok(Self(fds))
    }

    /// The file must be known to be regular. Fails with `EAGAIN` while a process holds a lease on it, and asks that process
    /// to give the lease up; an open that blocks would wait for that (45 s, `fs.lease-break-time`).
    fn for_reading(&self, file: BorrowedFd<'_>) -> ErrnoResult<OwnedFd> {
        with_noatime(|flags| self.with(file, OFlags::RDONLY | flags))
    }

    /// Same as [`Reopen::for_reading`].
    fn for_writing(&self, file: BorrowedFd<'_>) -> ErrnoResult<OwnedFd> {
        self.with(file, OFlags::WRONLY)
    }

    fn with(&self, file: BorrowedFd<'_>, flags: OFlags) -> ErrnoResult<OwnedFd> {
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::io::retry_on_intr(|| openat(&self.0, DecInt::from_fd(file), flags, Mode::empty()))
    }
}

/// The error for a directory that is a mount point.
fn mounted_here(kind: Kind) -> Error {
    Error::new(kind, "something is mounted here")
}
