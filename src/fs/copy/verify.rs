//! Counts the copy again, from what is on the destination.

use std::os::fd::BorrowedFd;

use rustix::fs::FileType;

use super::{Manifest, Progress};
use crate::error::{Context, Error, Kind, Result};
use crate::fs::{TreePath, Walk, fstatat, kind_of, open_directory};

/// Fails unless the tree holds what the manifest says.
pub(super) fn verify(top: BorrowedFd<'_>, made: &Manifest, progress: &Progress) -> Result<()> {
    let found = count(top, progress).context(|| "verify the copy")?;
    if (found.entries, found.bytes) == (made.entries, made.bytes) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Internal,
        format!(
            "the copy has {} entries and {} bytes where {} entries and {} bytes were written",
            found.entries, found.bytes, made.entries, made.bytes
        ),
    ))
}

fn count(top: BorrowedFd<'_>, progress: &Progress) -> Result<Manifest> {
    let mut walk = Walk::new(top).context(|| "open the top folder")?;
    let mut path = TreePath::default();
    let mut found = Manifest::default();
    loop {
        progress.check()?;
        let Some(entry) = walk.next().context(|| format!("read {}", path.here()))? else {
            if !walk.leave().context(|| path.here())? {
                return Ok(found);
            }
            path.pop();
            continue;
        };
        found.entries += 1;
        let mut kind = entry.kind;
        if matches!(kind, FileType::RegularFile | FileType::Unknown) {
            let stat = fstatat(walk.here(), &entry.name).context(|| path.at(&entry.name))?;
            kind = kind_of(&stat);
            if kind.is_file() {
                found.bytes += stat.stx_size;
            }
        }
        if kind.is_dir() {
            let down = open_directory(walk.here(), &entry.name).context(|| path.at(&entry.name))?;
            walk.enter(down).context(|| path.at(&entry.name))?;
            path.push(&entry.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_copy_that_lacks_something_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "12345").unwrap();
        let top = std::fs::File::open(dir.path()).unwrap();
        let check = |entries, bytes| {
            let made = Manifest { entries, bytes, dropped: 0 };
            verify(top.as_fd(), &made, &Progress::default())
        };
        check(2, 5).unwrap();
        for (entries, bytes) in [(3, 5), (2, 6), (1, 5)] {
            let error = check(entries, bytes).unwrap_err();
            assert_eq!(error.kind(), Kind::Internal);
            assert!(error.chain().contains("2 entries and 5 bytes"), "{}", error.chain());
        }
    }
}
