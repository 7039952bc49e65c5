//! Writes a tree into an archive, in constant memory. The tree may change meanwhile, possibly with hostile intent: entries are
//! opened as by a copy.

mod hard_links;

use std::ffi::CStr;
use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Statx, readlinkat};
use rustix::io::{Errno, pread};

use self::hard_links::HardLinks;
use super::copy::Progress;
use super::copy::attributes::{Handle, XattrReader};
use super::copy::catalogue::{Time, coarse_now, time};
use super::copy::contents::{data_range, has_no_hole};
use super::lease::LeaseWait;
use super::{Budget, Reopen, Walk, fstat, fstatat, kind_of, mounted_here, open_directory, open_path};
use crate::archive::{Entry, EntryKind, MAX_PATH, MAX_XATTRS, Parts, Writer, shown};
use crate::error::{Context as _, Error, Kind, Result};

const BUFFER: usize = 256 << 10;

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
    let mut packer = Packer {
        walk: Walk::of_live_tree(from).context(|| "open the directory")?,
        path: b".".to_vec(),
        to,
        budget: Budget::of_filesystem(from)?,
        links: HardLinks::default(),
        xattrs: XattrReader::new(),
        reopen: Reopen::new()?,
        leases: LeaseWait::default(),
        buffer: vec![0; BUFFER],
        began,
        progress,
        packed: Packed::default(),
    };
    packer.run()?;
    let packed = packer.packed;
    if let Some(began) = began {
        check_still(from, began, progress)?;
    }
    Ok(packed)
}

/// Checks that nothing in a tree has changed since a time of the coarse clock.
fn check_still(root: BorrowedFd<'_>, began: Time, progress: &Progress) -> Result<()> {
    let mut walk = Walk::of_live_tree(root).context(|| "open the directory")?;
    let mut budget = Budget::of_filesystem(root)?;
    still(&fstat(root).context(|| "stat the directory")?, began)?;
    loop {
        progress.check()?;
        let Some(entry) = walk.next().context(|| "read a directory")? else {
            if walk.leave()? {
                continue;
            }
            return Ok(());
        };
        let stat = match fstatat(walk.dir(), &entry.name) {
            Err(Errno::NOENT) => return Err(changed()),
            stat => stat.context(|| "stat an entry")?,
        };
        still(&stat, began)?;
        budget.take(u64::from(stat.stx_nlink.max(1)))?;
        if kind_of(&stat).is_dir() {
            Budget::check_depth(walk.depth())?;
            let directory = open_directory(walk.dir(), &entry.name).context(|| "open a directory")?;
            walk.enter(directory).context(|| "stat a directory")?;
        }
    }
}

fn still(stat: &Statx, began: Time) -> Result<()> {
    // The coarse clock may not have moved since.
    if time(stat.stx_ctime) >= began { Err(changed()) } else { Ok(()) }
}

fn changed() -> Error {
    Error::new(Kind::Busy, "the data changed during the backup: retry")
}

struct Packer<'a, W> {
    walk: Walk,
    /// The path of the current directory in the archive.
    path: Vec<u8>,
    to: &'a mut Writer<W>,
    budget: Budget,
    links: HardLinks,
    xattrs: XattrReader,
    reopen: Reopen,
    leases: LeaseWait,
    buffer: Vec<u8>,
    /// When it was begun, if nothing may change.
    began: Option<Time>,
    progress: &'a Progress,
    packed: Packed,
}

impl<W: Write> Packer<'_, W> {
    fn run(&mut self) -> Result<()> {
        let stat = fstat(self.walk.dir()).context(|| "stat the directory")?;
        self.directory(&stat)?;
        loop {
            self.progress.check()?;
            let Some(entry) = self.walk.next().context(|| format!("read {}", shown(&self.path)))? else {
                if !self.walk.leave().context(|| format!("read {}", shown(&self.path)))? {
                    return Ok(());
                }
                let end = self.path.iter().rposition(|byte| *byte == b'/').unwrap_or(self.path.len());
                self.path.truncate(end);
                continue;
            };
            let parent = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(entry.name.to_bytes());
            let has_entered = self.pack(&entry.name).context(|| format!("back up {}", shown(&self.path)))?;
            if !has_entered {
                self.path.truncate(parent);
            }
        }
    }

    /// Writes the entry at the current path. Reports whether it is a directory that was entered.
    fn pack(&mut self, name: &CStr) -> Result<bool> {
        let file = match open_path(self.walk.dir(), name) {
            Err(Errno::NOENT) => return self.vanished(),
            Err(Errno::XDEV) => return Err(mounted_here(Kind::Unsupported)),
            file => file.context(|| "open")?,
        };
        let stat = fstat(file.as_fd()).context(|| "stat")?;
        if stat.stx_nlink == 0 {
            return self.vanished();
        }
        if let Some(began) = self.began {
            still(&stat, began)?;
        }
        if self.path.len() > MAX_PATH {
            let text = format!("its path is longer than {MAX_PATH} bytes: move it up, or leave it out");
            return Err(Error::new(Kind::Unsupported, text));
        }
        let kind = kind_of(&stat);
        self.budget.take(if kind.is_dir() { 1 } else { u64::from(stat.stx_nlink) })?;
        if kind == FileType::Socket {
            self.packed.sockets += 1;
            return Ok(false);
        }
        self.packed.entries += 1;
        self.progress.add(1, 0);
        if kind.is_dir() {
            Budget::check_depth(self.walk.depth())?;
            let directory = open_directory(file.as_fd(), c".").context(|| "open the directory")?;
            self.walk.enter(directory).context(|| "stat the directory")?;
            return self.directory(&stat).map(|()| true);
        }
        if let Some(first) = self.links.first_name(&stat, &self.path) {
            let entry = Entry { kind: EntryKind::HardLink(first), ..self.entry(&stat, EntryKind::File) };
            return self.to.entry(&entry).map(|()| false);
        }
        self.packed.separated_links = self.links.separated();
        if kind.is_file() { self.file(&file, &stat) } else { self.special(&file, &stat, kind) }
            .map(|()| false)
    }

    fn vanished(&self) -> Result<bool> {
        if self.began.is_some() { Err(changed()) } else { Ok(false) }
    }

    fn entry(&self, stat: &Statx, kind: EntryKind) -> Entry {
        Entry {
            path: self.path.clone(),
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            modified: time(stat.stx_mtime),
            accessed: Some(time(stat.stx_atime)),
            xattrs: Vec::new(),
            size: 0,
            data: None,
        }
    }

    fn read_xattrs(&mut self, file: &Handle<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (mut xattrs, mut bytes) = (Vec::new(), 0);
        let skipped = self.xattrs.read(file, |name, value| {
            bytes += name.count_bytes() + value.len();
            let fits = bytes <= MAX_XATTRS;
            if fits {
                xattrs.push((name.to_bytes().to_vec(), value.to_vec()));
            }
            fits
        })?;
        self.packed.skipped_xattrs += u64::from(skipped);
        Ok(xattrs)
    }

    /// Writes the directory that was just entered.
    fn directory(&mut self, stat: &Statx) -> Result<()> {
        let xattrs = {
            let directory = self.walk.dir().try_clone_to_owned().context(|| "open the directory")?;
            self.read_xattrs(&Handle::Open(directory.as_fd()))?
        };
        let entry = Entry { xattrs, ..self.entry(stat, EntryKind::Directory) };
        self.to.entry(&entry)
    }

    fn special(&mut self, file: &OwnedFd, stat: &Statx, kind: FileType) -> Result<()> {
        let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let kind = match kind {
            FileType::Symlink => {
                let target = readlinkat(file, c"", Vec::new()).context(|| "read the symlink")?;
                EntryKind::Symlink(target.into_bytes())
            }
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice => EntryKind::CharacterDevice(device.0, device.1),
            FileType::BlockDevice => EntryKind::BlockDevice(device.0, device.1),
            FileType::RegularFile | FileType::Directory | FileType::Socket | FileType::Unknown => {
                return Err(Error::new(Kind::Unsupported, "an archive cannot hold this type of file"));
            }
        };
        let xattrs = self.read_xattrs(&Handle::path_only(file.as_fd()))?;
        let entry = Entry { xattrs, ..self.entry(stat, kind) };
        self.to.entry(&entry)
    }

    fn file(&mut self, file: &OwnedFd, stat: &Statx) -> Result<()> {
        let file = self.leases.open(false, self.progress, || self.reopen.for_reading(file.as_fd()))?;
        let size = stat.stx_size;
        let data = parts_of(file.as_fd(), stat)?;
        let xattrs = self.read_xattrs(&Handle::Open(file.as_fd()))?;
        let entry = Entry { size, xattrs, data, ..self.entry(stat, EntryKind::File) };
        self.to.entry(&entry)?;
        self.packed.bytes += entry.stored();
        let whole = std::slice::from_ref(&(0..size)).to_vec();
        let mut is_complete = true;
        for range in entry.data.unwrap_or(whole) {
            is_complete &= self.range(file.as_fd(), range)?;
        }
        match self.began {
            Some(_) if !is_complete => return Err(changed()),
            // Everything is looked at once more in the end.
            Some(_) => {}
            None => {
                let now = fstat(file.as_fd()).context(|| "stat")?;
                let facts = |stat: &Statx| (stat.stx_size, time(stat.stx_mtime), time(stat.stx_ctime));
                self.packed.changed += u64::from(!is_complete || facts(&now) != facts(stat));
            }
        }
        Ok(())
    }

    /// Writes a part of a file: zeros if the file has become shorter. Reports whether it was as long as it should be.
    fn range(&mut self, file: BorrowedFd<'_>, range: Range<u64>) -> Result<bool> {
        let Range { mut start, end } = range;
        let mut is_complete = true;
        while start < end {
            self.progress.check()?;
            let length = usize::try_from(end - start).map_or(BUFFER, |left| left.min(BUFFER));
            let mut read = pread(file, &mut self.buffer[..length], start).context(|| "read")?;
            if read == 0 {
                is_complete = false;
                self.buffer[..length].fill(0);
                read = length;
            }
            self.to.data(&self.buffer[..read])?;
            self.progress.add(0, read as u64);
            start += read as u64;
        }
        Ok(is_complete)
    }
}

/// The parts of a file that have data; `None` if that is the whole file.
fn parts_of(file: BorrowedFd<'_>, stat: &Statx) -> Result<Option<Vec<Range<u64>>>> {
    let size = stat.stx_size;
    let may_be_whole = stat.stx_blocks.saturating_mul(512) >= size;
    // A small file that has all its blocks is taken for whole without another call. A hole in it is stored as zeros.
    let is_small = size <= BUFFER as u64;
    if may_be_whole && (is_small || has_no_hole(file, size)) {
        return Ok(None);
    }
    let (mut parts, mut at) = (Parts::default(), 0);
    while at < size {
        let Some(range) = data_range(file, at..size)?.filter(|range| !range.is_empty()) else { break };
        at = range.end;
        parts.add(range);
    }
    let ranges = parts.into_ranges();
    let is_whole = matches!(&ranges[..], [range] if *range == (0..size));
    Ok((!is_whole).then_some(ranges))
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
