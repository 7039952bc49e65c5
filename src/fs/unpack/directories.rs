//! The directories of an archive, remembered on disk until everything else is extracted.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek as _, SeekFrom};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};

use super::paths::refused;
use crate::archive::{Entry, Reader, Writer};
use crate::error::{Context as _, Result};

/// The most bytes that are written, besides those for each entry that the archive has created. Otherwise a small archive that
/// repeats a directory with large attributes would fill the disk.
const MOST: u64 = 64 << 20;
const FOR_EACH_CREATED: u64 = 4 << 10;

/// The directories of the entries so far.
pub(super) struct Directories {
    spool: Writer<BufWriter<File>>,
    /// The path of the last one. Only what differs from it is written: the paths of a deep tree would take its square.
    last: Vec<u8>,
}

/// The same directories, in their order.
pub(super) struct Remembered {
    spool: Reader<BufReader<File>>,
    last: Vec<u8>,
}

impl Directories {
    /// Remembers nothing yet. `scratch` is a directory of the filesystem to use.
    pub(super) fn new(scratch: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self { spool: Writer::new(BufWriter::new(unnamed_file(scratch)?)), last: Vec::new() })
    }

    /// Remembers the attributes of a directory with this normalized path. `created` is the number of entries that were
    /// created so far.
    ///
    /// # Errors
    /// `Unreadable` when the attributes are too large for so few entries; otherwise the error of the failed write.
    pub(super) fn add(&mut self, path: &[u8], entry: &Entry, created: u64) -> Result<()> {
        let same = self.last.iter().zip(path).take_while(|(old, new)| old == new).count();
        let rest = [format!("{same}/").as_bytes(), &path[same..]].concat();
        self.last.truncate(same);
        self.last.extend_from_slice(&path[same..]);
        self.spool.entry(&Entry { path: rest, ..entry.clone() })?;
        if self.spool.position() <= MOST.saturating_add(created.saturating_mul(FOR_EACH_CREATED)) {
            return Ok(());
        }
        Err(refused("the archive repeats directories, or has too large attributes of directories"))
    }

    /// Ends the writing and starts the reading.
    pub(super) fn finish(self) -> Result<Remembered> {
        let (buffered, _) = self.spool.finish()?;
        let file = buffered.into_inner().map_err(std::io::IntoInnerError::into_error);
        let mut file = file.context(|| "write a temporary file")?;
        file.seek(SeekFrom::Start(0)).context(|| "read a temporary file")?;
        Ok(Remembered { spool: Reader::new(BufReader::new(file)), last: Vec::new() })
    }
}

impl Remembered {
    /// The path and the attributes of the next directory.
    pub(super) fn next(&mut self) -> Result<Option<(&[u8], Entry)>> {
        let Some(entry) = self.spool.next_entry()? else { return Ok(None) };
        let mut parts = entry.path.splitn(2, |byte| *byte == b'/');
        let same = parts.next().and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        self.last.truncate(same.unwrap_or(0));
        self.last.extend_from_slice(parts.next().unwrap_or_default());
        Ok(Some((&self.last, entry)))
    }
}

/// A file that is gone when it is closed.
fn unnamed_file(dir: BorrowedFd<'_>) -> Result<File> {
    const NAME: &str = "directories";
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(dir, NAME, flags, Mode::RUSR | Mode::WUSR).context(|| "create a temporary file")?;
    unlinkat(dir, NAME, AtFlags::empty()).context(|| "unlink the temporary file")?;
    Ok(File::from(file))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::archive::EntryKind;
    use crate::error::Kind;

    fn entry(mode: u32, attribute: usize) -> Entry {
        Entry {
            path: Vec::new(),
            kind: EntryKind::Directory,
            mode,
            uid: 0,
            gid: 0,
            modified: (0, 0),
            accessed: None,
            xattrs: vec![(b"user.x".to_vec(), vec![7; attribute])],
            size: 0,
            data: None,
        }
    }

    #[test]
    fn directories_are_remembered_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut directories = Directories::new(File::open(dir.path()).unwrap().as_fd()).unwrap();
        let paths = ["", "a", "a/b", "a/b", "a/bc", "a", "x/1/2", "x/1/20", ""];
        for (mode, path) in (0..).zip(paths) {
            directories.add(path.as_bytes(), &entry(mode, 3), 0).unwrap();
        }
        let mut remembered = directories.finish().unwrap();
        for (mode, path) in (0..).zip(paths) {
            let (found, entry) = remembered.next().unwrap().unwrap();
            assert_eq!((std::str::from_utf8(found).unwrap(), entry.mode), (path, mode));
        }
        assert!(remembered.next().unwrap().is_none());
    }

    #[test]
    fn a_deep_tree_takes_little_space() {
        let dir = tempfile::tempdir().unwrap();
        let mut directories = Directories::new(File::open(dir.path()).unwrap().as_fd()).unwrap();
        for depth in 1..=10_000 {
            directories.add(&b"d/".repeat(depth)[..2 * depth - 1], &entry(0o755, 0), 0).unwrap();
        }
        assert!(directories.spool.position() < 20 << 20, "{}", directories.spool.position());
    }

    #[test]
    fn attributes_may_take_more_space_if_the_archive_has_more_entries() {
        let dir = tempfile::tempdir().unwrap();
        let mut directories = Directories::new(File::open(dir.path()).unwrap().as_fd()).unwrap();
        let large = entry(0o755, 1 << 20);
        let first_refused = (0..100).find(|_| directories.add(b"a", &large, 0).is_err());
        assert_eq!(first_refused, Some(63));
        assert_eq!(directories.add(b"a", &large, 250).unwrap_err().kind(), Kind::Unreadable);
        directories.add(b"a", &large, 10_000).unwrap();
    }
}
