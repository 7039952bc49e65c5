//! Owner, mode, extended attributes and times. The order matters: a change of owner clears the set-id bits and the
//! capabilities, an ACL changes the mode, and each of these changes the times.
//!
//! An ACL that the destination cannot store is an error. Without the ACL, its mask would remain as the mode's group
//! bits and could give access to more users. Any other attribute that the destination cannot store is skipped and
//! counted; `cp -a` skips it, too. `system.` attributes other than ACLs, and two of XFS, are not copied: the
//! filesystem derives them from other data.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Statx, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fremovexattr, fsetxattr, futimens, getxattr, listxattr, removexattr, setxattr,
    utimensat,
};
use rustix::io::{Errno, Result as ErrnoResult};

use crate::error::{Context, Error, Kind, Result};
use crate::fs::{kind_of, open_path};

/// The kernel's limit for a list of attribute names and for a value, in bytes (xattr(7)).
const XATTR_MAX: usize = 64 << 10;
const ACLS: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];

/// Removes the ACLs of the destination's top directory, so that new entries inherit none.
pub(super) fn remove_acls(top: BorrowedFd<'_>) -> Result<()> {
    for acl in ACLS {
        match fremovexattr(top, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error).context(|| "remove the ACL of the destination"),
        }
    }
    Ok(())
}

/// A file whose extended attributes are read or set.
pub(in crate::fs) enum Handle<'a> {
    /// An open file.
    Open(BorrowedFd<'a>),
    /// A path-only descriptor, by its path in `/proc`: the kernel does not accept the descriptor itself.
    ProcPath(String),
}

impl<'a> Handle<'a> {
    pub(in crate::fs) fn path_only(fd: BorrowedFd<'a>) -> Self {
        Self::ProcPath(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    fn list(&self, names: &mut [u8]) -> ErrnoResult<usize> {
        match self {
            Self::Open(fd) => flistxattr(fd, names),
            Self::ProcPath(path) => listxattr(path, names),
        }
    }

    fn get(&self, name: &CStr, value: &mut [u8]) -> ErrnoResult<usize> {
        match self {
            Self::Open(fd) => fgetxattr(fd, name, value),
            Self::ProcPath(path) => getxattr(path, name, value),
        }
    }

    fn remove(&self, name: &CStr) -> ErrnoResult<()> {
        match self {
            Self::Open(fd) => fremovexattr(fd, name),
            Self::ProcPath(path) => removexattr(path, name),
        }
    }

    fn set(&self, name: &CStr, value: &[u8]) -> ErrnoResult<()> {
        match self {
            Self::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::ProcPath(path) => setxattr(path, name, value, XattrFlags::empty()),
        }
    }
}

/// Copies attributes. Its methods return how many were not copied: the destination cannot store them, or the kernel does not
/// list them.
pub(in crate::fs) struct Attributes {
    /// Whether a copy may have attributes that its source lacks: it is brought up to date, or has inherited an ACL.
    pub(super) removes_others: bool,
    skipped: u32,
    names: Vec<u8>,
    value: Vec<u8>,
    others: Vec<u8>,
}

impl Attributes {
    pub(in crate::fs) fn new() -> Self {
        let buffer = || vec![0; XATTR_MAX];
        Self { removes_others: false, skipped: 0, names: buffer(), value: buffer(), others: Vec::new() }
    }

    /// Copies the attributes of an open file or directory to another one, which has the attributes `now`.
    pub(super) fn copy_to_open(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Statx,
        now: &Statx,
    ) -> Result<u32> {
        let is_other_owner = (now.stx_uid, now.stx_gid) != (stat.stx_uid, stat.stx_gid);
        if is_other_owner {
            let (uid, gid) = owner(stat);
            fchown(to, uid, gid).context(|| "set the owner")?;
        }
        if is_other_owner || (now.stx_mode ^ stat.stx_mode) & 0o7777 != 0 {
            fchmod(to, mode(stat)).context(|| "set the mode")?;
        }
        let length = self.list_xattrs(&Handle::Open(from))?;
        self.copy_xattrs(length, &Handle::Open(from), &Handle::Open(to))?;
        futimens(to, &times(stat)).context(|| "set the times")?;
        Ok(self.skipped)
    }

    /// Copies the attributes of a path-only descriptor to a file that cannot be opened, by its name.
    pub(in crate::fs) fn copy_to_name(
        &mut self,
        from: BorrowedFd<'_>,
        at: BorrowedFd<'_>,
        name: &CStr,
        stat: &Statx,
    ) -> Result<u32> {
        let (uid, gid) = owner(stat);
        chownat(at, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).context(|| "set the owner")?;
        if !kind_of(stat).is_symlink() {
            chmodat(at, name, mode(stat), AtFlags::empty()).context(|| "set the mode")?;
        }
        let source = Handle::path_only(from);
        let length = self.list_xattrs(&source)?;
        if length > 0 || self.removes_others {
            let copy = open_path(at, name).context(|| "open the new file")?;
            self.copy_xattrs(length, &source, &Handle::path_only(copy.as_fd()))?;
        }
        set_times(at, name, stat)?;
        Ok(self.skipped)
    }

    /// Makes the extended attributes of a copy those in the first `length` bytes of `names`.
    fn copy_xattrs(&mut self, length: usize, from: &Handle<'_>, to: &Handle<'_>) -> Result<()> {
        if self.removes_others {
            self.remove_others(length, to)?;
        }
        self.set_xattrs(length, from, to)
    }

    /// Removes the attributes of the copy that are not in the first `length` bytes of `names`. One that the filesystem does
    /// not let go, such as a label of the host, remains.
    fn remove_others(&mut self, length: usize, to: &Handle<'_>) -> Result<()> {
        self.others.resize(XATTR_MAX, 0);
        let others = match to.list(&mut self.others) {
            Err(Errno::OPNOTSUPP) => 0,
            others => others.context(|| "list the extended attributes of the copy")?,
        };
        let kept: HashSet<&CStr> = names_in(&self.names[..length]).collect();
        for name in names_in(&self.others[..others]) {
            if is_derived(name) || kept.contains(name) {
                continue;
            }
            match to.remove(name) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) if name.to_bytes().starts_with(b"security.") && is_refused(error) => {}
                removed => removed.context(|| format!("remove attribute {}", name.to_string_lossy()))?,
            }
        }
        Ok(())
    }

    /// Lists the attributes into `names` and returns the length of the list.
    fn list_xattrs(&mut self, from: &Handle<'_>) -> Result<usize> {
        self.skipped = 0;
        match from.list(&mut self.names) {
            Err(Errno::OPNOTSUPP) => Ok(0),
            // The kernel lists at most 64 KiB of names, so the rest is unknown. These names matter for access.
            Err(Errno::TOOBIG) => {
                self.skipped += 1;
                Ok(self.list_access_xattrs())
            }
            length => length.context(|| "list the extended attributes"),
        }
    }

    /// Writes the names of attributes that decide about access into `names`; returns the length of the list.
    fn list_access_xattrs(&mut self) -> usize {
        let names = ACLS.iter().chain(&[c"security.capability"]);
        let list: Vec<u8> = names.flat_map(|name| name.to_bytes_with_nul()).copied().collect();
        self.names[..list.len()].copy_from_slice(&list);
        list.len()
    }

    /// Copies the attributes in the first `length` bytes of `names`.
    fn set_xattrs(&mut self, length: usize, from: &Handle<'_>, to: &Handle<'_>) -> Result<()> {
        let Self { skipped, names, value, .. } = self;
        for name in names_in(&names[..length]) {
            if is_derived(name) {
                continue;
            }
            let shown = || name.to_string_lossy().into_owned();
            let size = match from.get(name, value) {
                // It was removed since it was listed.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
                size => size.context(|| format!("read attribute {}", shown()))?,
            };
            if !set_xattr(to, name, &value[..size])? {
                *skipped += 1;
            }
        }
        Ok(())
    }
}

/// Sets an extended attribute. Reports whether the destination can store it.
///
/// # Errors
/// `Unsupported` for an ACL that it cannot store; otherwise the error of the failed system call.
pub(in crate::fs) fn set_xattr(to: &Handle<'_>, name: &CStr, value: &[u8]) -> Result<bool> {
    match to.set(name, value) {
        Err(Errno::OPNOTSUPP) if ACLS.contains(&name) => {
            Err(Error::new(Kind::Unsupported, "the destination cannot store its ACL"))
        }
        Err(error) if !ACLS.contains(&name) && cannot_store(name, error) => Ok(false),
        result => result.context(|| format!("set attribute {}", name.to_string_lossy())).map(|()| true),
    }
}

/// Reads extended attributes.
pub(in crate::fs) struct XattrReader(Attributes);

impl XattrReader {
    pub(in crate::fs) fn new() -> Self {
        Self(Attributes::new())
    }

    /// Passes each attribute that a copy keeps to `take`, which reports whether it takes it. Returns how many are left out.
    pub(in crate::fs) fn read(
        &mut self,
        from: &Handle<'_>,
        mut take: impl FnMut(&CStr, &[u8]) -> bool,
    ) -> Result<u32> {
        let length = self.0.list_xattrs(from)?;
        let Attributes { skipped, names, value, .. } = &mut self.0;
        for name in names_in(&names[..length]).filter(|name| !is_derived(name)) {
            match from.get(name, value) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => {
                    return Err(error).context(|| format!("read attribute {}", name.to_string_lossy()));
                }
                Ok(size) => *skipped += u32::from(!take(name, &value[..size])),
            }
        }
        Ok(self.0.skipped)
    }
}

/// The names in a list of attributes, each of which ends with a NUL.
fn names_in(list: &[u8]) -> impl Iterator<Item = &CStr> {
    list.split_inclusive(|byte| *byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok())
}

fn is_refused(error: Errno) -> bool {
    matches!(error, Errno::PERM | Errno::ACCESS)
}

/// Whether the filesystem derives this attribute from other data. XFS shows each ACL a second time as a `trusted.`
/// attribute. Another filesystem would store that as an ordinary attribute, and a copy back to XFS would turn it into
/// an outdated ACL.
pub(in crate::fs) fn is_derived(name: &CStr) -> bool {
    let system = name.to_bytes().starts_with(b"system.") && !ACLS.contains(&name);
    system || name == c"trusted.SGI_ACL_FILE" || name == c"trusted.SGI_ACL_DEFAULT"
}

/// Whether the error means that the destination does not support, or does not allow, an attribute of this name.
/// `EINVAL`: the security module of this host does not know the value.
fn cannot_store(name: &CStr, error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::PERM)
        || error == Errno::INVAL && name.to_bytes().starts_with(b"security.")
}

fn owner(stat: &Statx) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.stx_uid)), Some(Gid::from_raw(stat.stx_gid)))
}

fn mode(stat: &Statx) -> Mode {
    Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o7777)
}

/// Sets the access and modification times of a name, which is not followed.
pub(super) fn set_times(at: BorrowedFd<'_>, name: &CStr, stat: &Statx) -> Result<()> {
    utimensat(at, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).context(|| "set the times")
}

pub(super) fn times(stat: &Statx) -> Timestamps {
    let time = |at: rustix::fs::StatxTimestamp| Timespec { tv_sec: at.tv_sec, tv_nsec: at.tv_nsec.into() };
    Timestamps { last_access: time(stat.stx_atime), last_modification: time(stat.stx_mtime) }
}
