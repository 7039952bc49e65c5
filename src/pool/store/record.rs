//! JSON files, written so that a reader finds the old one or the new one whole.

use std::io::Write as _;
use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags, Mode, OFlags};
use serde::Serialize;

use crate::error::{Context as _, Error, Kind, Result};

/// A record is a few hundred bytes; one that is larger is not ours.
pub(super) const RECORD_MAX: u64 = 64 << 10;

/// Writes `value` as JSON to `name` in `dir`: first to a new file, synced, then renamed over the old one.
///
/// # Errors
/// What the filesystem says; an old file then still stands.
pub fn replace_file<T: Serialize>(dir: BorrowedFd<'_>, name: &str, value: &T) -> Result<()> {
    let new = format!("{name}.new");
    let _ = fs::unlinkat(dir, &new, AtFlags::empty());
    let written = write_file(dir, &new, value)
        .and_then(|()| fs::renameat(dir, &new, dir, name).context(|| format!("rename {new} to {name}")));
    if written.is_err() {
        let _ = fs::unlinkat(dir, &new, AtFlags::empty());
    }
    written?;
    fs::fsync(dir).context(|| "sync the folder")
}

pub(super) fn write_file<T: Serialize>(dir: BorrowedFd<'_>, name: &str, value: &T) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::caused(Kind::Internal, format!("put {name} into words"), error))?;
    bytes.push(b'\n');
    if bytes.len() as u64 > RECORD_MAX {
        // Or it could be written and never again be read.
        let text = format!(
            "{name} would have {} bytes, more than {RECORD_MAX}: ask with fewer or shorter labels",
            bytes.len()
        );
        return Err(Error::new(Kind::Invalid, text));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).context(|| format!("make {name}"))?;
    let mut file = std::fs::File::from(file);
    file.write_all(&bytes).context(|| format!("write {name}"))?;
    file.sync_all().context(|| format!("sync {name}"))
}
