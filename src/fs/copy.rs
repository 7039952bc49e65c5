//! Copies a tree while its tenant may change it, possibly with hostile intent.
//!
//! Each entry is first opened as a path-only descriptor, one component below an open directory. Its type and every
//! later step refer to that file, even if its name changes meanwhile. Therefore no symlink is followed, no device or
//! FIFO opened and no mount entered, and an entry that was deleted is skipped. Directories are read in batches and
//! get their attributes after their contents. Memory and open files do not grow with the tree, except for 48 bytes of
//! memory for each level of depth.
//!
//! A copy is made in passes. The first one copies everything; each further one walks the source and the copy side by side
//! and brings the copy up to date with what has changed since. The catalogue knows what was seen of each file.
//!
//! After a failure the destination contains an incomplete copy; the caller removes it.

mod ages;
pub(super) mod attributes;
pub(super) mod catalogue;
pub(super) mod contents;
mod create;
mod digests;
mod directory;
mod finish;
pub(super) mod links;
mod pass;
mod patch;
pub(super) mod room;
mod update;
mod verify;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use rustix::fs::{Statx, fstatfs, futimens, syncfs};
use rustix::io::Errno;

use self::attributes::Attributes;
use self::catalogue::{Catalogue, Time, now};
use self::contents::Contents;
use self::digests::Digests;
use self::finish::Finisher;
use self::links::Links;
use self::pass::CurrentPass;
pub use self::pass::{Pass, SourceState, do_times_tell};
use self::room::Room;
use super::lease::LeaseWait;
use super::{
    Budget, Entry, Reopen, TreePath, Walk, fstat, fstatat, kind_of, mounted_here, open_directory, open_path,
};
use crate::error::{Context, Error, Kind, Result};

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
    done: Done,
    cancelled: AtomicBool,
}

/// What was read or written. It has cache lines of its own: the threads that look whether to stop need not wait for each count.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Done {
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    /// Number of names created so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.done.entries.load(Ordering::Relaxed)
    }

    /// Bytes of data copied so far, without holes and further names of hard-linked files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.done.bytes.load(Ordering::Relaxed)
    }

    /// Requests the copy to stop, which it does at the next entry or after at most 64 MiB, and when a sync
    /// that is underway has ended.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the copy was requested to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Counts what was read or written.
    pub(super) fn add(&self, entries: u64, bytes: u64) {
        self.done.entries.fetch_add(entries, Ordering::Relaxed);
        self.done.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(Kind::Busy, "cancelled"));
        }
        Ok(())
    }
}

/// Copies the contents and attributes of the directory `from` to `to`, verifies the copy and writes it to stable
/// storage: one [`TreeCopier::live`] without a bound, followed by [`TreeCopier::finish`].
///
/// # Errors
/// Those of either function.
pub fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, progress: &Progress) -> Result<Manifest> {
    let mut copier = TreeCopier::in_one_pass(from, to, None, progress)?;
    copier.live()?;
    copier.finish()
}

/// Copies the contents and attributes of a directory to another one, in passes.
///
/// Owners, modes, times, extended attributes, ACLs, holes, hard links, FIFOs, sockets and device nodes are preserved as by
/// `cp -a`. A file that changes during a pass is copied up to the length that it had when it was opened.
#[expect(missing_debug_implementations, reason = "it is used by a trait object")]
pub struct TreeCopier<'a> {
    source: BorrowedFd<'a>,
    top: OwnedFd,
    from: Walk,
    to: Walk,
    path: TreePath,
    links: Links,
    contents: Contents<'a>,
    attributes: Attributes,
    catalogue: Arc<Catalogue>,
    /// Sets the attributes of files during the first pass.
    finisher: Option<Finisher>,
    reopen: Reopen,
    progress: &'a Progress,
    room: Room,
    /// Whether the times of a file of this filesystem tell that it has changed.
    times_tell: bool,
    pass: CurrentPass,
    /// How long the copy has waited for leases, in all passes.
    leases: LeaseWait,
}

/// An entry of the source that was opened as a path-only descriptor.
struct Seen {
    file: OwnedFd,
    stat: Statx,
    /// When it was seen, or shortly before.
    at: Time,
}

impl<'a> TreeCopier<'a> {
    /// Prepares a copy of `from` to `to`, an empty directory on any filesystem that no other process changes. What is seen
    /// of the source is remembered in unnamed files of the directory `scratch`.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn new(
        from: BorrowedFd<'a>,
        to: BorrowedFd<'_>,
        scratch: BorrowedFd<'_>,
        max_bytes: Option<u64>,
        progress: &'a Progress,
    ) -> Result<Self> {
        let contents = Contents::new(Digests::new(scratch)?, max_bytes, progress);
        Self::with_catalogue(from, to, Catalogue::new(scratch)?, contents, progress)
    }

    /// Like [`TreeCopier::new`], for a copy that [`TreeCopier::live`] is called for once.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn in_one_pass(
        from: BorrowedFd<'a>,
        to: BorrowedFd<'_>,
        max_bytes: Option<u64>,
        progress: &'a Progress,
    ) -> Result<Self> {
        let contents = Contents::new(Digests::none(), max_bytes, progress);
        Self::with_catalogue(from, to, Catalogue::none(), contents, progress)
    }

    fn with_catalogue(
        from: BorrowedFd<'a>,
        to: BorrowedFd<'_>,
        catalogue: Catalogue,
        contents: Contents<'a>,
        progress: &'a Progress,
    ) -> Result<Self> {
        // `to` may be an O_PATH descriptor, which cannot be synced.
        let open_top = || open_directory(to, c".").context(|| "open the destination");
        let top = open_top()?;
        attributes::remove_acls(top.as_fd())?;
        let filesystem = fstatfs(from).context(|| "read the filesystem's statistics")?;
        Ok(Self {
            source: from,
            from: Walk::of_live_tree(from).context(|| "open the source")?,
            to: Walk::new(to).context(|| "open the destination")?,
            path: TreePath::default(),
            links: Links::new(open_top()?),
            contents,
            attributes: Attributes::new(),
            catalogue: Arc::new(catalogue),
            finisher: None,
            reopen: Reopen::new()?,
            progress,
            room: Room::new(to)?,
            times_tell: do_times_tell(filesystem.f_type),
            pass: CurrentPass::before_first(),
            leases: LeaseWait::default(),
            top,
        })
    }

    /// Copies everything, or brings the copy up to date with what has changed since the pass before, while the source is in
    /// use.
    ///
    /// # Errors
    /// `Unsupported` when there is a mount point inside, or when the destination cannot store an ACL; `Busy` when the
    /// copy is cancelled, when the tree keeps changing so that the copy finds no end or no way back, or when a
    /// process keeps a lease on a file; `OutOfRange` when the data takes more than `max_bytes`; `NoSpace`, also when few
    /// inodes are left; `Internal` for any other failed call.
    pub fn live(&mut self) -> Result<Pass> {
        self.run_pass(None)
    }

    /// Brings the copy up to date while nothing changes the source: then the copy is that of one moment.
    ///
    /// # Errors
    /// As [`TreeCopier::live`]; `Busy` also when a file was changed since the call began, although the writers are paused.
    pub fn freeze_point(&mut self, source: SourceState) -> Result<Pass> {
        self.run_pass(Some(source))
    }

    /// Compares the copy with what the last pass found and writes it to stable storage.
    ///
    /// # Errors
    /// `Internal` when the copy does not match; otherwise the error of the failed system call.
    pub fn finish(mut self) -> Result<Manifest> {
        let stat = fstat(self.top.as_fd()).context(|| "stat the copy")?;
        self.links.remove_dir()?;
        futimens(&self.top, &attributes::times(&stat)).context(|| "set the times of the copy")?;
        let copied = self.pass.manifest;
        // Its data must not be written to the disk only to be freed.
        drop((self.catalogue, self.contents));
        let top = self.top.as_fd();
        thread::scope(|scope| {
            let sync = thread::Builder::new().name("sync-copy".to_owned());
            let sync = sync.spawn_scoped(scope, || syncfs(top)).ok();
            verify::verify(top, &copied, self.progress)?;
            let panicked = |_| Error::new(Kind::Internal, "the thread that syncs the copy panicked");
            let synced = match sync {
                Some(thread) => thread.join().map_err(panicked)?,
                None => syncfs(top),
            };
            synced.context(|| "sync the copy")
        })?;
        Ok(copied)
    }

    fn run_pass(&mut self, state: Option<SourceState>) -> Result<Pass> {
        let began = Instant::now();
        self.pass = self.pass.next(state)?;
        if self.pass.is_first() && !self.catalogue.is_none() {
            // Each file is written back before it is read, which is much faster for all of them together. If this fails, it
            // fails again for the file.
            let _ = syncfs(self.from.dir());
        } else if !self.pass.is_first() {
            if self.catalogue.is_none() {
                return Err(Error::new(Kind::Internal, "a copy without a catalogue has one pass"));
            }
            self.from = Walk::of_live_tree(self.source).context(|| "open the source")?;
            self.to = Walk::new(self.top.as_fd()).context(|| "open the destination")?;
            self.path = TreePath::default();
            // Directories of the copy have their default ACLs now, which new entries inherit.
            self.attributes.removes_others = true;
            self.room.begin_pass(self.top.as_fd())?;
        }
        self.contents.begin_pass();
        self.run_with_finisher()?;
        let duration = began.elapsed();
        let recurring = self.pass.ages.changed_within(duration);
        Ok(Pass { files: self.pass.files, bytes: self.contents.handled, duration, recurring })
    }

    fn run_with_finisher(&mut self) -> Result<()> {
        if self.pass.is_first() && self.pass.state.is_none() {
            self.finisher = Finisher::start(&self.catalogue);
        }
        let ran = self.run();
        // Its error comes first: the other one may follow from it.
        let skipped = self.finisher.take().map_or(Ok(0), Finisher::wait)?;
        self.pass.manifest.skipped_xattrs += skipped;
        ran
    }

    fn run(&mut self) -> Result<()> {
        self.begin_directory(false).context(|| "copy the top directory")?;
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

    fn copy_entry(&mut self, entry: &Entry) -> Result<()> {
        if let Some(size) = self.keep_unopened(entry)? {
            return self.count_entry(size, 1);
        }
        let Some(seen) = self.open_entry(&entry.name)? else {
            self.pass.manifest.vanished += 1;
            return Ok(());
        };
        self.pass.check_still(&seen.stat)?;
        let is_dir = kind_of(&seen.stat).is_dir();
        let links = if is_dir { 1 } else { u64::from(seen.stat.stx_nlink) };
        let copied = if is_dir {
            self.enter_directory(&seen, &entry.name)?
        } else {
            self.copy_file(&seen, &entry.name)?
        };
        copied.map_or(Ok(()), |size| self.count_entry(size, links))
    }

    /// Counts an entry of the source, of this size, and one of this number of links.
    fn count_entry(&mut self, size: u64, links: u64) -> Result<()> {
        self.pass.manifest.entries += 1;
        self.pass.manifest.bytes += size;
        self.room.visit(links)
    }

    /// Opens an entry of the source as a path-only descriptor; `None` if it was deleted.
    fn open_entry(&self, name: &CStr) -> Result<Option<Seen>> {
        let at = now();
        let file = match open_path(self.from.dir(), name) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) => return Err(mounted_here(Kind::Unsupported)),
            file => file.context(|| "open")?,
        };
        let stat = fstat(file.as_fd()).context(|| "stat")?;
        Ok((stat.stx_nlink > 0).then(|| Seen { file, stat, at }))
    }

    /// Counts an entry that was created in the current directory of the copy.
    fn count_created(&mut self) -> Result<()> {
        self.progress.add(1, 0);
        self.room.take(self.to.dir(), 0)
    }
}
