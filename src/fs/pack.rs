//! Writes a tree into an archive, in constant memory. The tree may change meanwhile, possibly with hostile intent: entries are
//! opened as by a copy.
//!
//! One thread finds and opens the entries, another one reads and writes them.

mod data;
mod hard_links;
mod queue;
mod scan;
mod stillness;
mod write;

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::thread;

use self::queue::queue;
use self::scan::Scanner;
use self::stillness::check_still;
use self::write::{Counts, EntryWriter};
use super::copy::Progress;
use super::copy::catalogue::coarse_now;
use crate::archive::Writer;
use crate::error::{Context as _, Error, Kind, Result};

/// What was written into an archive, and what was left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Names below the top directory.
    pub entries: u64,
    /// Bytes of data of regular files, without holes and further names of a file.
    pub bytes: u64,
    /// Sockets, which an archive cannot hold.
    pub sockets: u64,
    /// Extended attributes that are too large or too many.
    pub skipped_xattrs: u64,
    /// Files that changed while they were read.
    pub changed: u64,
    /// Further names of a file that are stored as files of their own, since there are too many of them.
    pub separated_links: u64,
}

/// Writes the directory `from` and everything below it into an archive, at its root. If `must_be_still`, the tree must not
/// change meanwhile.
///
/// # Errors
/// `Busy` when it changes, is cancelled or has no end; `Unsupported` for a mount point inside, or a path that is too long;
/// otherwise the error of the failed system call or write.
pub fn pack<W: Write>(
    from: BorrowedFd<'_>,
    to: &mut Writer<W>,
    must_be_still: bool,
    progress: &Progress,
) -> Result<Packed> {
    let began = must_be_still.then(coarse_now);
    let (sender, receiver) = queue();
    let scanner = Scanner::new(from, sender, began, progress)?;
    let mut writer = EntryWriter::new(to, must_be_still, progress);
    let (scanned, written) = thread::scope(|scope| {
        let scan = thread::Builder::new().name("scan".to_owned()).spawn_scoped(scope, || scanner.run());
        let scan = scan.context(|| "start the thread that scans the tree")?;
        // The receiver is dropped at the first error, which ends the scan.
        let written = receiver.for_each(|found| writer.write(found));
        let scanned = scan.join().map_err(|_| Error::new(Kind::Internal, "the scan of the tree panicked"))?;
        Ok::<_, Error>((scanned, written))
    })?;
    written?;
    let (scanned, Counts { bytes, changed }) = (scanned?, writer.counts());
    if let Some(began) = began {
        check_still(from, began, progress)?;
    }
    Ok(Packed { bytes, changed: scanned.changed + changed, ..scanned })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    /// A tree whose last change is in the past of the coarse clock.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        fs::write(dir.path().join("dir/file"), "x").unwrap();
        let changed =
            time(fstat(File::open(dir.path().join("dir/file")).unwrap().as_fd()).unwrap().stx_ctime);
        while coarse_now() <= changed {
            std::thread::yield_now();
        }
        dir
    }

    #[test]
    fn a_tree_that_must_be_still_and_changes_fails_the_backup() {
        let dir = tree();
        let root = File::open(dir.path()).unwrap();
        let pack_it = |to: &mut Writer<_>| pack(root.as_fd(), to, true, &Progress::default());
        assert_eq!(pack_it(&mut Writer::new(Vec::new())).unwrap().entries, 2);
        for change in [
            (|path| fs::write(path.join("dir/file"), "y").unwrap()) as fn(&std::path::Path),
            |path| fs::write(path.join("dir/new"), "y").unwrap(),
            |path| fs::remove_file(path.join("dir/file")).unwrap(),
        ] {
            let dir = tree();
            let root = File::open(dir.path()).unwrap();
            let before = coarse_now();
            check_still(root.as_fd(), before, &Progress::default()).unwrap();
            change(dir.path());
            let error = check_still(root.as_fd(), before, &Progress::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::Busy);
        }
    }

    /// Changes a file when the archive is begun.
    struct Changing<'a>(&'a std::path::Path);

    impl Write for Changing<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            fs::write(self.0, "changed")?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_change_while_the_archive_is_written_is_noticed() {
        let dir = tree();
        let file = dir.path().join("dir/file");
        let root = File::open(dir.path()).unwrap();
        let packed = pack(root.as_fd(), &mut Writer::new(Changing(&file)), true, &Progress::default());
        assert_eq!(packed.unwrap_err().kind(), Kind::Busy);
    }
}
