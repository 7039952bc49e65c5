//! Owner, mode, extended attributes and times, in the order in which none undoes another: a new owner clears the
//! set-id bits and the capabilities, an ACL is laid over the mode, and everything else touches the times.
//!
//! What the destination cannot keep: an ACL is an error, since without it the mode's group bits, which then were
//! the ACL's mask, would open the file to more people than before. Any other attribute is dropped and counted, as
//! `cp -a` drops it without a word. `system.` attributes other than ACLs, and a few more, are views that a
//! filesystem makes of what it stores elsewhere; they are not copied.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Statx, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fremovexattr, fsetxattr, futimens, getxattr, listxattr, setxattr, utimensat,
};
use rustix::io::{Errno, Result as ErrnoResult};

use crate::error::{Context, Error, Kind, Result};
use crate::fs::{fstat, kind_of, open_path};

/// The kernel's limit of a list of names, and of a value.
const LIMIT: usize = 64 << 10;
const ACLS: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];

/// The destination's top folder shall give nothing to those made in it.
pub(super) fn inherit_nothing(top: BorrowedFd<'_>) -> Result<()> {
    for acl in ACLS {
        match fremovexattr(top, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error).context(|| "clear the ACL of the destination"),
        }
    }
    Ok(())
}

/// A file whose extended attributes are read or set.
enum Handle<'a> {
    Open(BorrowedFd<'a>),
    /// One that was pinned, not opened, by its path in `/proc`.
    Pinned(String),
}

impl<'a> Handle<'a> {
    fn pinned(fd: BorrowedFd<'a>) -> Self {
        Self::Pinned(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    fn list(&self, names: &mut [u8]) -> ErrnoResult<usize> {
        match self {
            Self::Open(fd) => flistxattr(fd, names),
            Self::Pinned(path) => listxattr(path, names),
        }
    }

    fn get(&self, name: &CStr, value: &mut [u8]) -> ErrnoResult<usize> {
        match self {
            Self::Open(fd) => fgetxattr(fd, name, value),
            Self::Pinned(path) => getxattr(path, name, value),
        }
    }

    fn set(&self, name: &CStr, value: &[u8]) -> ErrnoResult<()> {
        match self {
            Self::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Pinned(path) => setxattr(path, name, value, XattrFlags::empty()),
        }
    }
}

/// Copies attributes, and counts those that were dropped.
pub(super) struct Attributes {
    pub(super) dropped: u64,
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Attributes {
    pub(super) fn new() -> Self {
        Self { dropped: 0, names: vec![0; LIMIT], value: vec![0; LIMIT] }
    }

    /// From one open file or directory to another.
    pub(super) fn of_open(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Statx) -> Result<()> {
        let now = fstat(to).context(|| "look at the new file")?;
        if (now.stx_uid, now.stx_gid) != (stat.stx_uid, stat.stx_gid) {
            let (uid, gid) = owner(stat);
            fchown(to, uid, gid).context(|| "set the owner")?;
        }
        if (now.stx_mode ^ stat.stx_mode) & 0o7777 != 0 {
            fchmod(to, mode(stat)).context(|| "set the mode")?;
        }
        let length = self.list(&Handle::Open(from))?;
        self.copy_listed(length, &Handle::Open(from), &Handle::Open(to))?;
        futimens(to, &times(stat)).context(|| "set the times")
    }

    /// From what was pinned to what has just been made under a name.
    pub(super) fn of_pinned(
        &mut self,
        from: BorrowedFd<'_>,
        at: BorrowedFd<'_>,
        name: &CStr,
        stat: &Statx,
    ) -> Result<()> {
        let (uid, gid) = owner(stat);
        chownat(at, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).context(|| "set the owner")?;
        if !kind_of(stat).is_symlink() {
            chmodat(at, name, mode(stat), AtFlags::empty()).context(|| "set the mode")?;
        }
        let source = Handle::pinned(from);
        let length = self.list(&source)?;
        if length > 0 {
            let made = open_path(at, name).context(|| "open the new file")?;
            self.copy_listed(length, &source, &Handle::pinned(made.as_fd()))?;
        }
        utimensat(at, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).context(|| "set the times")
    }

    fn list(&mut self, from: &Handle<'_>) -> Result<usize> {
        match from.list(&mut self.names) {
            Err(Errno::OPNOTSUPP) => Ok(0),
            length => length.context(|| "list the extended attributes"),
        }
    }

    fn copy_listed(&mut self, length: usize, from: &Handle<'_>, to: &Handle<'_>) -> Result<()> {
        let Self { dropped, names, value } = self;
        let mut rest = &names[..length];
        while let Ok(name) = CStr::from_bytes_until_nul(rest) {
            rest = &rest[name.count_bytes() + 1..];
            if is_view(name) {
                continue;
            }
            let shown = || name.to_string_lossy().into_owned();
            let size = match from.get(name, value) {
                Err(Errno::NODATA) => continue, // gone since it was listed
                size => size.context(|| format!("read attribute {}", shown()))?,
            };
            match to.set(name, &value[..size]) {
                Err(error) if ACLS.contains(&name) && error == Errno::OPNOTSUPP => {
                    return Err(Error::new(Kind::Unsupported, "the destination cannot keep its ACL"));
                }
                Err(error) if !ACLS.contains(&name) && refused(name, error) => *dropped += 1,
                set => set.context(|| format!("set attribute {}", shown()))?,
            }
        }
        Ok(())
    }
}

/// Whether the filesystem makes this attribute of what it stores elsewhere. XFS shows each ACL a second time: laid
/// down on another filesystem as an attribute of its own, that would come back as an ACL long out of date.
fn is_view(name: &CStr) -> bool {
    let system = name.to_bytes().starts_with(b"system.") && !ACLS.contains(&name);
    system || name == c"trusted.SGI_ACL_FILE" || name == c"trusted.SGI_ACL_DEFAULT"
}

/// Whether the destination does not know, or does not allow, an attribute of this name. What a security module of
/// this machine does not know it finds invalid.
fn refused(name: &CStr, error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::PERM)
        || error == Errno::INVAL && name.to_bytes().starts_with(b"security.")
}

fn owner(stat: &Statx) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.stx_uid)), Some(Gid::from_raw(stat.stx_gid)))
}

fn mode(stat: &Statx) -> Mode {
    Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o7777)
}

fn times(stat: &Statx) -> Timestamps {
    let time = |at: rustix::fs::StatxTimestamp| Timespec { tv_sec: at.tv_sec, tv_nsec: at.tv_nsec.into() };
    Timestamps { last_access: time(stat.stx_atime), last_modification: time(stat.stx_mtime) }
}
