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
use super::stop::Stop;
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
    let (stop, (sender, receiver)) = (Stop::new(progress), queue());
    let scanner = Scanner::new(from, sender, began, progress, &stop)?;
    let mut writer = EntryWriter::new(to, began, progress, &stop);
    let scanned = thread::scope(|scope| {
        let scan = thread::Builder::new().name("scan".to_owned());
        let scan = scan.spawn_scoped(scope, || stop.or_stop(scanner.run()));
        let scan = scan.context(|| "start the thread that scans the tree")?;
        stop.or_stop(receiver.for_each(|found| writer.write(found)));
        scan.join().map_err(|_| Error::new(Kind::Internal, "the scan of the tree panicked"))
    })?;
    let Counts { bytes, changed } = writer.counts();
    stop.result()?;
    if let Some(began) = began {
        check_still(from, began, progress)?;
    }
    let scanned = scanned.unwrap_or_default();
    Ok(Packed { bytes, changed: scanned.changed + changed, ..scanned })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::io::Errno;

    use super::*;
    use crate::fs::copy::catalogue::time;
    use crate::fs::fstat;

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

    /// Fails after some bytes.
    struct Failing(usize);

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let left = self.0.checked_sub(bytes.len());
            self.0 = left.ok_or_else(|| std::io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// More entries than wait in the queue.
    fn many_files() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        (0..2000).for_each(|n| fs::write(dir.path().join(n.to_string()), "data").unwrap());
        dir
    }

    #[test]
    fn a_failed_write_ends_the_backup_with_its_error() {
        let dir = many_files();
        let root = File::open(dir.path()).unwrap();
        for room in [0, 512, 100_000] {
            let mut to = Writer::new(Failing(room));
            let error = pack(root.as_fd(), &mut to, false, &Progress::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain());
        }
    }

    #[test]
    fn a_cancelled_backup_ends() {
        let dir = many_files();
        let (root, progress) = (File::open(dir.path()).unwrap(), Progress::default());
        progress.cancel();
        let error = pack(root.as_fd(), &mut Writer::new(Vec::new()), false, &progress).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
    }

    #[test]
    fn each_name_is_in_a_half_of_the_check() {
        let dir = many_files();
        let root = File::open(dir.path()).unwrap();
        let before = coarse_now();
        while coarse_now() == before {
            std::thread::yield_now();
        }
        let began = coarse_now();
        check_still(root.as_fd(), began, &Progress::default()).unwrap();
        for name in ["0", "1", "10", "1999"] {
            let began = coarse_now();
            File::open(dir.path().join(name))
                .unwrap()
                .set_permissions(fs::Permissions::from_mode(0o600))
                .unwrap();
            let error = check_still(root.as_fd(), began, &Progress::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::Busy, "{name}");
            let past = coarse_now();
            while coarse_now() == past {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn an_error_of_the_scan_ends_the_backup_of_large_files() {
        let dir = tempfile::tempdir().unwrap();
        let (large, size) = (dir.path().join("large"), 1 << 34);
        File::create(&large).unwrap().set_len(size).unwrap();
        let progress = Progress::default();
        let stop = Stop::new(&progress);
        let mut to = Writer::new(std::io::sink());
        let mut writer = EntryWriter::new(&mut to, None, &progress, &stop);
        assert!(stop.or_stop::<()>(Err(Error::new(Kind::Busy, "changed"))).is_none());
        let entry = crate::archive::Entry {
            path: b"large".to_vec(),
            kind: crate::archive::EntryKind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
            modified: (0, 0),
            accessed: None,
            xattrs: Vec::new(),
            size,
            data: None,
        };
        let found = queue::Found { entry, data: queue::Data::Open(File::open(&large).unwrap().into()) };
        assert!(writer.write(&found).is_err(), "it is not read to its end");
        assert_eq!(stop.result().unwrap_err().to_string(), "changed", "the first error counts");
    }
}
