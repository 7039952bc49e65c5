//! Extracts an archive into an empty directory that no other process changes. The archive may be hostile: each path is resolved
//! below the directory, without symbolic links, and an entry that leads elsewhere fails the whole.

mod attributes;
mod directories;
mod early_sync;
mod files;

mod layout;
mod paths;

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::thread;

use rustix::fs::{AtFlags, FileType, Mode, ftruncate, linkat, makedev, mkdirat, mknodat, symlinkat, syncfs};
use rustix::io::{Errno, Result as ErrnoResult};

use self::attributes::Attributes;
use self::directories::Directories;
use self::early_sync::EarlySync;
use self::files::Files;
pub use self::layout::Layout;
use self::paths::Parents;
use super::copy::Progress;
use super::copy::room::Room;
use super::stop::Stop;
use super::{open_directory, open_path};
use crate::archive::{Entry, EntryKind, Reader, shown};
use crate::error::{Context as _, Error, Kind, Result};

const BUFFER: usize = 128 << 10;
/// The most memory that a small file takes.
const SMALL: u64 = BUFFER as u64;
/// The bytes on disk that an entry takes besides its data.
const PER_ENTRY: u64 = 4 << 10;

/// What to extract.
#[derive(Debug, Clone, Default)]
pub struct UnpackSpec {
    /// The most bytes of data.
    pub max_bytes: Option<u64>,
    /// Whether device nodes are made. Otherwise they are refused.
    pub devices: bool,
    /// The directory of the archive whose contents are extracted, without `.` and `..`; empty for everything. `None`: it is
    /// recognized.
    pub prefix: Option<Vec<u8>>,
}

/// What was extracted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Names below the top directory, of every type.
    pub entries: u64,
    /// Bytes of data.
    pub bytes: u64,
    /// Extended attributes that the filesystem cannot store.
    pub skipped_xattrs: u64,
    /// Whether the archive says who owns the top directory.
    pub has_top: bool,
    /// How the archive is laid out.
    pub layout: Layout,
}

/// Extracts an archive into the empty directory `to` and writes it to stable storage. `scratch`, a directory of the same
/// filesystem, holds what must be remembered.
///
/// # Errors
/// `Unreadable` for an archive that is damaged or hostile; `Unsupported` for one with devices; `OutOfRange` when it has more
/// data than `max_bytes`; `NoSpace`; `Busy` when cancelled.
pub fn unpack<R: Read>(
    from: &mut Reader<R>,
    to: BorrowedFd<'_>,
    scratch: BorrowedFd<'_>,
    spec: &UnpackSpec,
    progress: &Progress,
) -> Result<Unpacked> {
    let top = open_directory(to, c".").context(|| "open the new directory")?;
    let stop = Stop::new(progress);
    let unpacked = thread::scope(|scope| {
        let run = || {
            let unpacker = Unpacker {
                parents: Parents::new(&top)?,
                directories: Directories::new(scratch)?,
                files: Files::start(scope, &stop)?,
                early_sync: EarlySync::start(scope, to, &stop)?,
                room: Room::new(to)?,
                attributes: Attributes::default(),
                buffer: vec![0; BUFFER],
                spec,
                stop: &stop,
                entries: 0,
                bytes: 0,
                has_top: false,
                top,
            };
            unpacker.run(from)
        };
        stop.or_stop(run())
    });
    stop.result()?;
    // Without an error, there is a result.
    unpacked.ok_or_else(|| Error::new(Kind::Internal, "the archive is not extracted"))
}

/// Whether a thread of [`Files`] creates it. Until then, its entry and its data are in memory.
fn is_small_file(entry: &Entry) -> bool {
    let memory = entry.size.saturating_add(entry.memory() as u64);
    entry.kind == EntryKind::File && entry.data.is_none() && memory <= SMALL
}

struct Unpacker<'a, 'scope> {
    top: OwnedFd,
    parents: Parents,
    /// The directories, which get their attributes at the end: new entries would change their times and inherit their ACLs.
    directories: Directories,
    /// Creates small files. Other entries are created by this thread, when the files before them exist; only directories do not
    /// wait, as files of other directories have no effect on them.
    files: Files<'scope>,
    early_sync: EarlySync<'scope>,
    room: Room,
    attributes: Attributes,
    buffer: Vec<u8>,
    spec: &'a UnpackSpec,
    stop: &'a Stop<'a>,
    entries: u64,
    bytes: u64,
    has_top: bool,
}

impl Unpacker<'_, '_> {
    fn run<R: Read>(mut self, from: &mut Reader<R>) -> Result<Unpacked> {
        while let Some(entry) = from.next_entry()? {
            self.stop.check()?;
            self.entry(from, &entry).context(|| format!("extract {}", entry.shown()))?;
        }
        self.finish(from.origin().is_some())
    }

    fn entry<R: Read>(&mut self, from: &mut Reader<R>, entry: &Entry) -> Result<()> {
        let path = paths::normalized(&entry.path)?;
        let prefix = self.spec.prefix.as_deref().unwrap_or_default();
        let Some(path) = paths::below(&path, prefix) else { return Ok(()) };
        self.room.visit(1)?;
        if path.is_empty() {
            return self.top(entry);
        }
        let (parent, name) = paths::split(path);
        if !self.parents.enter(parent)? {
            self.files.wait()?;
            self.parents.create(parent, &mut self.room)?;
        }
        let name = CString::new(name).map_err(|_| paths::refused("its name has a NUL"))?;
        self.entries += 1;
        self.stop.progress().add(1, 0);
        self.early_sync.count(PER_ENTRY);
        if is_small_file(entry) {
            return self.queue_file(from, name, entry);
        }
        // It may replace a file that is not created yet, or be a link to it.
        if entry.kind != EntryKind::Directory {
            self.files.wait()?;
        }
        match &entry.kind {
            EntryKind::Directory => self.directory(&name, path, entry),
            EntryKind::File => self.large_file(from, &name, entry),
            EntryKind::HardLink(target) => self.hard_link(target, prefix, &name),
            EntryKind::Symlink(target) => {
                let target = CString::new(&target[..]).map_err(|_| paths::refused("its target has a NUL"))?;
                self.create(&name, |at| symlinkat(&target, at, &name))?;
                self.attributes.set_by_name(self.parents.dir(), &name, entry)
            }
            EntryKind::Fifo => self.node(&name, FileType::Fifo, (0, 0), entry),
            EntryKind::CharacterDevice(major, minor) => {
                self.node(&name, FileType::CharacterDevice, (*major, *minor), entry)
            }
            EntryKind::BlockDevice(major, minor) => {
                self.node(&name, FileType::BlockDevice, (*major, *minor), entry)
            }
        }
    }

    fn top(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(paths::refused("it stands for the top directory, and is none"));
        }
        self.has_top = true;
        self.directories.add(b"", entry, self.room.created())
    }

    fn directory(&mut self, name: &CString, path: &[u8], entry: &Entry) -> Result<()> {
        match mkdirat(self.parents.dir(), name, Mode::RWXU) {
            Ok(()) => self.take_inode()?,
            Err(Errno::EXIST) => {
                self.files.wait()?;
                drop(paths::open(self.parents.dir(), name)?);
            }
            Err(error) => return Err(error).context(|| "create the directory"),
        }
        self.directories.add(path, entry, self.room.created())
    }

    fn queue_file<R: Read>(&mut self, from: &mut Reader<R>, name: CString, entry: &Entry) -> Result<()> {
        let mut data = vec![0; usize::try_from(entry.size).unwrap_or(BUFFER)];
        let mut read = 0;
        while read < data.len() {
            read += from.data(&mut data[read..])?;
        }
        self.take_bytes(entry.size)?;
        self.take_inode()?;
        self.files.add(&self.parents, name, entry, data)
    }

    fn large_file<R: Read>(&mut self, from: &mut Reader<R>, name: &CString, entry: &Entry) -> Result<()> {
        let file = files::create_file(self.parents.dir(), name)?;
        self.take_inode()?;
        let whole = std::slice::from_ref(&(0..entry.size)).to_vec();
        let mut end = 0;
        for range in entry.data.clone().unwrap_or(whole) {
            let mut at = range.start;
            while at < range.end {
                self.stop.check()?;
                let length = usize::try_from(range.end - at).map_or(BUFFER, |left| left.min(BUFFER));
                let read = from.data(&mut self.buffer[..length])?;
                self.take_bytes(read as u64)?;
                files::write(file.as_fd(), &self.buffer[..read], at, self.stop.progress())?;
                at += read as u64;
            }
            end = range.end;
        }
        if end < entry.size {
            ftruncate(&file, entry.size).context(|| "set the size")?;
        }
        self.attributes.set(file.as_fd(), entry)
    }

    /// Counts data before it is written.
    fn take_bytes(&mut self, bytes: u64) -> Result<()> {
        self.early_sync.count(bytes);
        self.bytes = self.bytes.saturating_add(bytes);
        match self.spec.max_bytes {
            Some(max) if self.bytes > max => {
                let text = "the archive has more data than the size of the volume: use a larger one (-o size=…), or expand the one \
                     that is to be replaced";
                Err(Error::new(Kind::OutOfRange, text))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn hard_link(&mut self, target: &[u8], prefix: &[u8], name: &CString) -> Result<()> {
        let missing = || paths::refused(format!("it is a link to {}, which is not there", shown(target)));
        let target = paths::normalized(target)?;
        let target = paths::below(&target, prefix).filter(|target| !target.is_empty()).ok_or_else(missing)?;
        let (parent, target_name) = paths::split(target);
        let dir = self.parents.open(parent)?.ok_or_else(missing)?;
        if target_name == name.to_bytes() && parent == self.parents.path() {
            return Err(paths::refused("it is a link to itself"));
        }
        let target_name = CString::new(target_name).map_err(|_| missing())?;
        // A path-only descriptor: a symbolic link itself is linked.
        match open_path(dir.as_fd(), &target_name) {
            Err(Errno::NOENT) => return Err(missing()),
            opened => drop(opened.context(|| "open the file that it links to")?),
        }
        self.create(name, |at| linkat(&dir, &target_name, at, name, AtFlags::empty()))
    }

    fn node(&mut self, name: &CString, kind: FileType, device: (u32, u32), entry: &Entry) -> Result<()> {
        if kind != FileType::Fifo && !self.spec.devices {
            let text =
                "it is a device, through which a container may access this host: pass --devices to create it";
            return Err(Error::new(Kind::Unsupported, text));
        }
        let number = makedev(device.0, device.1);
        self.create(name, |at| mknodat(at, name, kind, Mode::RUSR | Mode::WUSR, number))?;
        self.attributes.set_by_name(self.parents.dir(), name, entry)
    }

    fn create<T>(&mut self, name: &CString, make: impl Fn(BorrowedFd<'_>) -> ErrnoResult<T>) -> Result<()> {
        let dir = self.parents.dir();
        files::create(dir, name, || make(dir))?;
        self.take_inode()
    }

    /// Counts an entry of the current directory that is created.
    fn take_inode(&mut self) -> Result<()> {
        let underway = self.files.underway();
        match self.room.take(self.parents.dir(), underway) {
            Err(error) if error.kind() == Kind::NoSpace && underway > 0 => {
                self.files.wait()?;
                self.room.take(self.parents.dir(), 0)
            }
            taken => taken,
        }
    }

    /// Recognizes the layout and sets the attributes of the directories.
    fn finish(mut self, is_ours: bool) -> Result<Unpacked> {
        self.attributes.skipped += self.files.finish()?;
        self.early_sync.finish()?;
        let layout = match &self.spec.prefix {
            Some(prefix) if !prefix.is_empty() => Layout::Prefix(prefix.clone()),
            Some(_) => Layout::Root,
            None if is_ours || self.has_top => Layout::Root,
            None => Layout::recognize(self.top.as_fd())?,
        };
        // The descriptor of a directory would outlive its move.
        drop(self.parents);
        let moved = if self.spec.prefix.is_some() { b"" } else { layout.prefix() };
        layout::move_up(self.top.as_fd(), moved)?;
        self.parents = Parents::new(&self.top)?;
        let mut directories = self.directories.finish()?;
        while let Some((path, entry)) = directories.next()? {
            self.stop.check()?;
            let Some(path) = paths::below(path, moved) else { continue };
            self.has_top |= path.is_empty();
            let set = self.parents.open(path).and_then(|dir| {
                let missing = || paths::refused("a later entry has replaced the directory");
                self.attributes.set(dir.ok_or_else(missing)?.as_fd(), &entry)
            });
            set.context(|| format!("extract {}", shown(path)))?;
        }
        let moved_names = if moved.is_empty() { 0 } else { moved.split(|byte| *byte == b'/').count() as u64 };
        syncfs(&self.top).context(|| "sync the new files")?;
        self.stop.check()?;
        Ok(Unpacked {
            entries: self.entries.saturating_sub(moved_names),
            bytes: self.bytes,
            skipped_xattrs: self.attributes.skipped,
            has_top: self.has_top,
            layout,
        })
    }
}
