//! Copies a tree while its tenant may change it, possibly with hostile intent.
//!
//! Each entry is first opened as a path-only descriptor, one component below an open directory. Its type and every
//! later step refer to that file, even if its name changes meanwhile. Therefore no symlink is followed, no device or
//! FIFO opened and no mount entered, and an entry that was deleted is skipped. Directories are read in batches and
//! get their attributes after their contents. Memory and open files do not grow with the tree, except for 48 bytes of
//! memory for each level of depth.
//!
//! After a failure the destination contains an incomplete copy; the caller removes it.

mod attributes;
mod contents;
mod links;
mod room;
mod verify;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, Statx, mkdirat, mknodat, openat, readlinkat, symlinkat, syncfs};
use rustix::io::Errno;

use self::attributes::Attributes;
use self::contents::Contents;
use self::links::{LinkResult, Links};
use self::room::Room;
use super::{
    Budget, Entry, Reopen, TreePath, Walk, fstat, fstatat, kind_of, mounted_here, open_directory, open_path,
};
use crate::error::{Context, Error, Kind, Result};

/// How long a copy waits for leases that processes hold on its files. A file server gives one up in milliseconds.
const LEASE_WAIT: Duration = Duration::from_secs(5);
const LEASE_POLL: Duration = Duration::from_millis(5);

/// What a copy contains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Names below the top directory, of every type.
    pub entries: u64,
    /// Apparent sizes of the regular files in bytes; a hard-linked file counts once for each name.
    pub bytes: u64,
    /// Number of extended attributes that the destination could not store, and of files with more attributes than the
    /// kernel lists.
    pub skipped_xattrs: u64,
    /// Number of names that were deleted or replaced between reading the directory and opening them.
    pub vanished: u64,
}

/// The progress of a copy, and the request to cancel it. Shared between threads.
#[derive(Debug, Default)]
pub struct Progress {
    entries: AtomicU64,
    bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Number of names created so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Bytes of data copied so far, without holes and further names of hard-linked files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests the copy to stop, which it does at the next entry or after at most 64 MiB.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the copy was requested to stop.
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

/// Copies the contents and attributes of the directory `from` to `to`, verifies the copy and writes it to stable
/// storage: [`copy_files`] without a bound, followed by [`finish`].
///
/// # Errors
/// Those of either function.
pub fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, progress: &Progress) -> Result<Manifest> {
    let copied = copy_files(from, to, None, progress)?;
    finish(to, &copied, progress)?;
    Ok(copied)
}

/// Copies the contents and attributes of the directory `from` to `to`.
///
/// `to` is an empty directory, on any filesystem, that no other process changes. Owners, modes, times, extended
/// attributes, ACLs, holes, hard links, FIFOs, sockets and device nodes are preserved as by `cp -a`. A file that
/// changes during the copy is copied up to the length that it had when it was opened.
///
/// # Errors
/// `Unsupported` when there is a mount point inside, or when the destination cannot store an ACL; `Busy` when the
/// copy is cancelled, when the tree keeps changing so that the copy finds no end or no way back, or when a
/// process keeps a lease on a file; `OutOfRange` when the data takes more than `max_bytes`; `NoSpace`, also when few
/// inodes are left; `Internal` for any other failed call.
pub fn copy_files(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    max_bytes: Option<u64>,
    progress: &Progress,
) -> Result<Manifest> {
    let mut copier = Copier::new(from, to, max_bytes, progress)?;
    copier.run()?;
    Ok(Manifest { skipped_xattrs: copier.attributes.skipped_xattrs, ..copier.manifest })
}

/// Compares a copy with its manifest and writes it to stable storage.
///
/// # Errors
/// `Internal` when the copy does not match the manifest; otherwise the error of the failed system call.
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
    room: Room,
    manifest: Manifest,
    /// How long the copy has waited for leases.
    lease_wait: Duration,
}

impl<'a> Copier<'a> {
    fn new(
        from: BorrowedFd<'_>,
        to: BorrowedFd<'a>,
        max_bytes: Option<u64>,
        progress: &'a Progress,
    ) -> Result<Self> {
        let to_walk = Walk::new(to).context(|| "open the destination")?;
        attributes::remove_acls(to_walk.dir())?;
        Ok(Self {
            from: Walk::of_live_tree(from).context(|| "open the source")?,
            to: to_walk,
            path: TreePath::default(),
            links: Links::new(to),
            contents: Contents::new(max_bytes, progress),
            attributes: Attributes::new(),
            reopen: Reopen::new()?,
            progress,
            room: Room::new(to)?,
            manifest: Manifest::default(),
            lease_wait: Duration::ZERO,
        })
    }

    fn run(&mut self) -> Result<()> {
        loop {
            self.progress.check()?;
            match self.from.next().context(|| format!("read {}", self.path.current()))? {
                Some(entry) => {
                    self.copy_entry(&entry).context(|| format!("copy {}", self.path.join(&entry.name)))?;
                }
                None => {
                    if !self.finish_directory().context(|| format!("copy {}", self.path.current()))? {
                        return Ok(());
                    }
                    self.path.pop();
                }
            }
        }
    }

    /// Copies the attributes of the current directory and returns to its parent; false at the top.
    fn finish_directory(&mut self) -> Result<bool> {
        if self.to.is_at_root() {
            self.links.remove_dir()?;
        }
        let stat = fstat(self.from.dir()).context(|| "stat the source")?;
        self.attributes.copy_to_open(self.from.dir(), self.to.dir(), &stat)?;
        Ok(self.from.leave()? && self.to.leave().context(|| "in the copy")?)
    }

    fn copy_entry(&mut self, entry: &Entry) -> Result<()> {
        let Some((file, stat)) = self.open_entry(&entry.name)? else {
            self.manifest.vanished += 1;
            return Ok(());
        };
        let kind = kind_of(&stat);
        let copied = if kind.is_dir() {
            self.enter_directory(&file, &entry.name)?
        } else {
            self.copy_file(&file, &entry.name, &stat, kind)?
        };
        if let Some(size) = copied {
            self.manifest.entries += 1;
            self.manifest.bytes += size;
            self.progress.entries.fetch_add(1, Ordering::Relaxed);
            let links = if kind.is_dir() { 1 } else { u64::from(stat.stx_nlink) };
            self.room.take(self.to.dir(), links)?;
        }
        Ok(())
    }

    /// Opens an entry of the source as a path-only descriptor; `None` if it was deleted.
    fn open_entry(&self, name: &CStr) -> Result<Option<(OwnedFd, Statx)>> {
        let file = match open_path(self.from.dir(), name) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) => return Err(mounted_here(Kind::Unsupported)),
            file => file.context(|| "open")?,
        };
        let stat = fstat(file.as_fd()).context(|| "stat")?;
        Ok((stat.stx_nlink > 0).then_some((file, stat)))
    }

    /// Creates a directory and descends into it. Returns as [`Copier::copy_file`].
    fn enter_directory(&mut self, file: &OwnedFd, name: &CStr) -> Result<Option<u64>> {
        Budget::check_depth(self.from.depth())?;
        let source = match open_directory(file.as_fd(), c".") {
            Err(Errno::NOENT) => {
                self.manifest.vanished += 1;
                return Ok(None);
            }
            source => source.context(|| "open")?,
        };
        if !is_created(mkdirat(self.to.dir(), name, Mode::RWXU), "create the directory")? {
            return Ok(None);
        }
        let copy = open_directory(self.to.dir(), name).context(|| "open the new directory")?;
        self.from.enter(source).context(|| "stat the directory")?;
        self.to.enter(copy).context(|| "stat the new directory")?;
        self.path.push(name);
        Ok(Some(0))
    }

    /// Copies a file of any type except a directory. Returns its size, or `None` if the name exists in the copy: a
    /// directory that changes while it is read may return a name twice.
    fn copy_file(
        &mut self,
        file: &OwnedFd,
        name: &CStr,
        stat: &Statx,
        kind: FileType,
    ) -> Result<Option<u64>> {
        let key = (stat.stx_nlink > 1).then(|| links::inode_key(stat));
        if let Some(key) = &key {
            match self.links.link(key, self.to.dir(), name)? {
                LinkResult::Linked => return self.size_of_link(name, kind).map(Some),
                LinkResult::NameExists => return Ok(None),
                LinkResult::NotCopied => {}
            }
        }
        let copied = match kind {
            FileType::RegularFile => self.copy_regular(file, name, stat)?,
            FileType::Symlink => self.copy_symlink(file, name, stat)?,
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                self.copy_node(file, name, stat, kind)?
            }
            FileType::Directory | FileType::Unknown => {
                return Err(Error::new(Kind::Unsupported, "this type of file cannot be copied"));
            }
        };
        if let (Some(key), Some(_)) = (&key, copied) {
            self.links.add(key, self.to.dir(), name)?;
        }
        Ok(copied)
    }

    fn size_of_link(&self, name: &CStr, kind: FileType) -> Result<u64> {
        if kind != FileType::RegularFile {
            return Ok(0);
        }
        Ok(fstatat(self.to.dir(), name).context(|| "stat the new hard link")?.stx_size)
    }

    fn copy_regular(&mut self, file: &OwnedFd, name: &CStr, stat: &Statx) -> Result<Option<u64>> {
        let source = self.open_source(file)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o777);
        let copy = match openat(self.to.dir(), name, flags, mode) {
            Err(Errno::EXIST) => return Ok(None),
            copy => copy.context(|| "create")?,
        };
        let size = self.contents.copy(source.as_fd(), copy.as_fd(), stat)?;
        self.attributes.copy_to_open(source.as_fd(), copy.as_fd(), stat)?;
        Ok(Some(size))
    }

    /// Opens a regular file for reading. Waits for leases on the files of the source, for all of them together at most
    /// [`LEASE_WAIT`]: a tenant must not keep the copy from its end.
    #[expect(clippy::disallowed_methods, reason = "the kernel does not report the end of a lease")]
    fn open_source(&mut self, file: &OwnedFd) -> Result<OwnedFd> {
        loop {
            match self.reopen.for_reading(file.as_fd()) {
                Err(Errno::AGAIN) if self.lease_wait < LEASE_WAIT => {
                    self.progress.check()?;
                    std::thread::sleep(LEASE_POLL);
                    self.lease_wait += LEASE_POLL;
                }
                Err(Errno::AGAIN) => {
                    let text =
                        "a process holds a lease on the file (fcntl(2), F_SETLEASE): stop it and retry";
                    return Err(Error::new(Kind::Busy, text));
                }
                opened => return opened.context(|| "open"),
            }
        }
    }

    fn copy_symlink(&mut self, file: &OwnedFd, name: &CStr, stat: &Statx) -> Result<Option<u64>> {
        let target = readlinkat(file, c"", Vec::new()).context(|| "read the symlink")?;
        if !is_created(symlinkat(target, self.to.dir(), name), "create the symlink")? {
            return Ok(None);
        }
        self.attributes.copy_to_name(file.as_fd(), self.to.dir(), name, stat)?;
        Ok(Some(0))
    }

    fn copy_node(
        &mut self,
        file: &OwnedFd,
        name: &CStr,
        stat: &Statx,
        kind: FileType,
    ) -> Result<Option<u64>> {
        let device = rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
        let mode = Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o777);
        if !is_created(mknodat(self.to.dir(), name, kind, mode, device), "create the node")? {
            return Ok(None);
        }
        self.attributes.copy_to_name(file.as_fd(), self.to.dir(), name, stat)?;
        Ok(Some(0))
    }
}

/// Whether a call created the name; false: the name exists. Any other failure is an error.
fn is_created(result: rustix::io::Result<()>, what: &'static str) -> Result<bool> {
    match result {
        Err(Errno::EXIST) => Ok(false),
        result => result.context(|| what).map(|()| true),
    }
}
