//! Copies a tree that its tenant may go on changing, or turn against us, while it is copied.
//!
//! Each entry is first pinned without being opened, one component below a directory that is already open; what it
//! is and what is done with it then concerns the pinned file, whatever becomes of the name. So no symlink is
//! followed, no device or FIFO opened and no mount entered, and an entry that has gone is one that never was.
//! Directories are read in batches and get their attributes when they are left. Memory, apart from 48 bytes for
//! each level of depth, and open files do not grow with the tree.
//!
//! On failure the destination holds part of a copy; the caller removes it.

mod attributes;
mod contents;
mod links;
mod verify;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FileType, Mode, OFlags, Statx, mkdirat, mknodat, openat, readlinkat, symlinkat, syncfs};
use rustix::io::Errno;

use self::attributes::Attributes;
use self::contents::Contents;
use self::links::{Links, Placed};
use super::{
    Entry, Reopen, TreePath, Walk, fstat, fstatat, kind_of, mounted_here, open_directory, open_path,
};
use crate::error::{Context, Error, Kind, Result};

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Names below the top folder, of every type.
    pub entries: u64,
    /// The apparent sizes of the regular files, a hard-linked one for each of its names.
    pub bytes: u64,
    /// Extended attributes that the destination could not keep.
    pub dropped: u64,
}

/// How far a copy is, for others to read, and the request to stop it.
#[derive(Debug, Default)]
pub struct Progress {
    entries: AtomicU64,
    bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Names made so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Bytes of data copied so far; holes and hard links count nothing.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Asks the copy to stop; it does so at the next entry or the next 64 MiB.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(Kind::Busy, "cancelled"));
        }
        Ok(())
    }
}

/// Copies what is below `from`, and the attributes of `from` itself, into `to`; verifies the result and writes it to
/// stable storage. The same as [`copy_files`] followed by [`finish`].
///
/// # Errors
/// As these two.
pub fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, progress: &Progress) -> Result<Manifest> {
    let copied = copy_files(from, to, progress)?;
    finish(to, &copied, progress)?;
    Ok(copied)
}

/// Copies what is below `from`, and the attributes of `from` itself, into `to`.
///
/// `to` is an empty directory that nothing else touches, on any filesystem. Owners, modes, times, extended
/// attributes, ACLs, holes, hard links, FIFOs, sockets and device nodes are kept, as `cp -a` does. A file that
/// changes during the copy is copied up to the length it had when it was opened.
///
/// # Errors
/// `Unsupported`: something is mounted inside, or the destination cannot store an ACL. `Busy`: cancelled, or a
/// directory was moved during the copy. `NoSpace`. `Internal`: any other failed call.
pub fn copy_files(from: BorrowedFd<'_>, to: BorrowedFd<'_>, progress: &Progress) -> Result<Manifest> {
    let mut copier = Copier::new(from, to, progress)?;
    copier.run()?;
    Ok(Manifest { dropped: copier.attributes.dropped, ..copier.made })
}

/// Compares a copy with its manifest and writes it to stable storage.
///
/// # Errors
/// `Internal` when the copy does not match the manifest; otherwise the failed call.
pub fn finish(to: BorrowedFd<'_>, copied: &Manifest, progress: &Progress) -> Result<()> {
    verify::verify(to, copied, progress)?;
    // `to` may be an O_PATH descriptor, which cannot be synced.
    let top = open_directory(to, c".").context(|| "open the copy")?;
    syncfs(&top).context(|| "sync the copy")
}

struct Copier<'a> {
    from: Walk,
    to: Walk,
    path: TreePath,
    links: Links<'a>,
    contents: Contents<'a>,
    attributes: Attributes,
    reopen: Reopen,
    progress: &'a Progress,
    made: Manifest,
}

impl<'a> Copier<'a> {
    fn new(from: BorrowedFd<'_>, to: BorrowedFd<'a>, progress: &'a Progress) -> Result<Self> {
        let to_walk = Walk::new(to).context(|| "open the destination")?;
        attributes::inherit_nothing(to_walk.here())?;
        Ok(Self {
            from: Walk::new(from).context(|| "open the source")?,
            to: to_walk,
            path: TreePath::default(),
            links: Links::new(to),
            contents: Contents::new(progress),
            attributes: Attributes::new(),
            reopen: Reopen::new()?,
            progress,
            made: Manifest::default(),
        })
    }

    fn run(&mut self) -> Result<()> {
        loop {
            self.progress.check()?;
            match self.from.next().context(|| format!("read {}", self.path.here()))? {
                Some(entry) => {
                    self.entry(&entry).context(|| format!("copy {}", self.path.at(&entry.name)))?;
                }
                None => {
                    if !self.leave().context(|| format!("copy {}", self.path.here()))? {
                        return Ok(());
                    }
                    self.path.pop();
                }
            }
        }
    }

    /// Finishes the directory and goes back up; false when that was the top.
    fn leave(&mut self) -> Result<bool> {
        if self.to.is_top() {
            self.links.finish()?;
        }
        let stat = fstat(self.from.here()).context(|| "look at the source")?;
        self.attributes.of_open(self.from.here(), self.to.here(), &stat)?;
        Ok(self.from.leave()? && self.to.leave().context(|| "in the copy")?)
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let pinned = match open_path(self.from.here(), &entry.name) {
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::XDEV) => return Err(mounted_here(Kind::Unsupported)),
            pinned => pinned.context(|| "open")?,
        };
        let stat = fstat(pinned.as_fd()).context(|| "look")?;
        if stat.stx_nlink == 0 {
            return Ok(());
        }
        let kind = kind_of(&stat);
        let copied = if kind.is_dir() {
            self.directory(&pinned, &entry.name)?
        } else {
            self.leaf(&pinned, &entry.name, &stat, kind)?
        };
        if let Some(size) = copied {
            self.made.entries += 1;
            self.made.bytes += size;
            self.progress.entries.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn directory(&mut self, pinned: &OwnedFd, name: &CStr) -> Result<Option<u64>> {
        let source = match open_directory(pinned.as_fd(), c".") {
            Err(Errno::NOENT) => return Ok(None),
            source => source.context(|| "open")?,
        };
        if !fresh(mkdirat(self.to.here(), name, Mode::RWXU), "make the directory")? {
            return Ok(None);
        }
        let made = open_directory(self.to.here(), name).context(|| "open the new directory")?;
        self.from.enter(source).context(|| "look")?;
        self.to.enter(made).context(|| "look at the new directory")?;
        self.path.push(name);
        Ok(Some(0))
    }

    /// Anything but a directory. Answers its size, or none if the name was taken: a directory that changes while it
    /// is read may show one name twice.
    fn leaf(&mut self, pinned: &OwnedFd, name: &CStr, stat: &Statx, kind: FileType) -> Result<Option<u64>> {
        let key = (stat.stx_nlink > 1).then(|| links::key(stat));
        if let Some(key) = &key {
            match self.links.place(key, self.to.here(), name)? {
                Placed::Done => return self.size_of(name, kind).map(Some),
                Placed::Taken => return Ok(None),
                Placed::First => {}
            }
        }
        let copied = match kind {
            FileType::RegularFile => self.regular(pinned, name, stat)?,
            FileType::Symlink => self.symlink(pinned, name, stat)?,
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                self.special(pinned, name, stat, kind)?
            }
            FileType::Directory | FileType::Unknown => {
                return Err(Error::new(Kind::Unsupported, "this type of file cannot be copied"));
            }
        };
        if let (Some(key), Some(_)) = (&key, copied) {
            self.links.keep(key, self.to.here(), name)?;
        }
        Ok(copied)
    }

    fn size_of(&self, name: &CStr, kind: FileType) -> Result<u64> {
        if kind != FileType::RegularFile {
            return Ok(0);
        }
        Ok(fstatat(self.to.here(), name).context(|| "look at the new link")?.stx_size)
    }

    fn regular(&mut self, pinned: &OwnedFd, name: &CStr, stat: &Statx) -> Result<Option<u64>> {
        let source = self.reopen.for_reading(pinned.as_fd()).context(|| "open")?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o777);
        let made = match openat(self.to.here(), name, flags, mode) {
            Err(Errno::EXIST) => return Ok(None),
            made => made.context(|| "create")?,
        };
        let size = self.contents.copy(source.as_fd(), made.as_fd(), stat)?;
        self.attributes.of_open(source.as_fd(), made.as_fd(), stat)?;
        Ok(Some(size))
    }

    fn symlink(&mut self, pinned: &OwnedFd, name: &CStr, stat: &Statx) -> Result<Option<u64>> {
        let target = readlinkat(pinned, c"", Vec::new()).context(|| "read the symlink")?;
        if !fresh(symlinkat(target, self.to.here(), name), "make the symlink")? {
            return Ok(None);
        }
        self.attributes.of_pinned(pinned.as_fd(), self.to.here(), name, stat)?;
        Ok(Some(0))
    }

    fn special(
        &mut self,
        pinned: &OwnedFd,
        name: &CStr,
        stat: &Statx,
        kind: FileType,
    ) -> Result<Option<u64>> {
        let device = rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
        let mode = Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o777);
        if !fresh(mknodat(self.to.here(), name, kind, mode, device), "make the node")? {
            return Ok(None);
        }
        self.attributes.of_pinned(pinned.as_fd(), self.to.here(), name, stat)?;
        Ok(Some(0))
    }
}

/// Whether the name was new; any failure but that one is an error.
fn fresh(made: rustix::io::Result<()>, what: &'static str) -> Result<bool> {
    match made {
        Err(Errno::EXIST) => Ok(false),
        made => made.context(|| what).map(|()| true),
    }
}
