//! The attributes of an entry, in the order that a copy sets them in.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, chmodat, chownat, fchmod, fchown, futimens, utimensat,
};

use crate::archive::{Entry, EntryKind};
use crate::error::{Context as _, Result};
use crate::fs::copy::attributes::{Handle, is_derived, set_xattr};
use crate::fs::open_path;

/// Sets attributes, and counts those that the filesystem cannot store.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    pub(super) skipped: u64,
}

impl Attributes {
    /// Sets the attributes of an open file or directory.
    pub(super) fn set(&mut self, file: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
        let (uid, gid) = owner(entry);
        fchown(file, uid, gid).context(|| "set the owner")?;
        fchmod(file, Mode::from_raw_mode(entry.mode)).context(|| "set the mode")?;
        self.set_xattrs(&Handle::Open(file), entry)?;
        futimens(file, &times(entry)).context(|| "set the times")
    }

    /// Sets the attributes of a file that cannot be opened, by its name.
    pub(super) fn set_by_name(&mut self, at: BorrowedFd<'_>, name: &CStr, entry: &Entry) -> Result<()> {
        let (uid, gid) = owner(entry);
        chownat(at, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).context(|| "set the owner")?;
        if !matches!(entry.kind, EntryKind::Symlink(_)) {
            chmodat(at, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .context(|| "set the mode")?;
        }
        if !entry.xattrs.is_empty() {
            let file = open_path(at, name).context(|| "open the new file")?;
            self.set_xattrs(&Handle::path_only(file.as_fd()), entry)?;
        }
        utimensat(at, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).context(|| "set the times")
    }

    fn set_xattrs(&mut self, file: &Handle<'_>, entry: &Entry) -> Result<()> {
        for (name, value) in &entry.xattrs {
            let name = CString::new(&name[..])
                .map_err(|_| super::paths::refused("the name of an attribute has a NUL"))?;
            if !is_derived(&name) && !set_xattr(file, &name, value)? {
                self.skipped += 1;
            }
        }
        Ok(())
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// The times of an entry. Without a recorded access, that is the time of the change.
fn times(entry: &Entry) -> Timestamps {
    let time = |(seconds, nanoseconds): (i64, u32)| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    let accessed = entry.accessed.unwrap_or(entry.modified);
    Timestamps { last_access: time(accessed), last_modification: time(entry.modified) }
}
