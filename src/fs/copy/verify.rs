//! Verifies a copy: counts what is on the destination and compares it with the manifest.

use std::os::fd::BorrowedFd;

use rustix::fs::FileType;

use super::{Manifest, Progress};
use crate::error::{Context, Error, Kind, Result};
use crate::fs::{TreePath, Walk, fstatat, kind_of, open_directory};

/// Fails unless the tree has the entries and bytes of the manifest.
pub(super) fn verify(top: BorrowedFd<'_>, expected: &Manifest, progress: &Progress) -> Result<()> {
    let found = count(top, progress).context(|| "verify the copy")?;
    if (found.entries, found.bytes) == (expected.entries, expected.bytes) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Internal,
        format!(
            "the copy has {} entries and {} bytes, but {} entries and {} bytes were written",
            found.entries, found.bytes, expected.entries, expected.bytes
        ),
    ))
}

fn count(top: BorrowedFd<'_>, progress: &Progress) -> Result<Manifest> {
    let mut walk = Walk::new(top).context(|| "open the top directory")?;
    let mut path = TreePath::default();
    let mut found = Manifest::default();
    loop {
        progress.check()?;
        let Some(entry) = walk.next().context(|| format!("read {}", path.current()))? else {
            if !walk.leave().context(|| path.current())? {
                return Ok(found);
            }
            path.pop();
            continue;
        };
        found.entries += 1;
        let mut kind = entry.kind;
        if matches!(kind, FileType::RegularFile | FileType::Unknown) {
            let stat = fstatat(walk.dir(), &entry.name).context(|| path.join(&entry.name))?;
            kind = kind_of(&stat);
            if kind.is_file() {
                found.bytes += stat.stx_size;
            }
        }
        if kind.is_dir() {
            let dir = open_directory(walk.dir(), &entry.name).context(|| path.join(&entry.name))?;
            walk.enter(dir).context(|| path.join(&entry.name))?;
            path.push(&entry.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_copy_that_differs_from_its_manifest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "12345").unwrap();
        let top = std::fs::File::open(dir.path()).unwrap();
        let check = |entries, bytes| {
            let expected = Manifest { entries, bytes, ..Manifest::default() };
            verify(top.as_fd(), &expected, &Progress::default())
        };
        check(2, 5).unwrap();
        for (entries, bytes) in [(3, 5), (2, 6), (1, 5)] {
            let error = check(entries, bytes).unwrap_err();
            assert_eq!(error.kind(), Kind::Internal);
            assert!(error.chain().contains("2 entries and 5 bytes"), "{}", error.chain());
        }
    }
}
