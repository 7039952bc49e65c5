//! Extracts an archive into an empty directory that no other process changes. The archive may be hostile: each path is resolved
//! below the directory, without symbolic links, and an entry that leads elsewhere fails the whole.

mod attributes;
mod directories;
mod layout;
mod paths;

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ftruncate, linkat, makedev, mkdirat, mknodat, openat, symlinkat, syncfs,
    unlinkat,
};
use rustix::io::{Errno, Result as ErrnoResult, pwrite};

use self::attributes::Attributes;
use self::directories::Directories;
pub use self::layout::Layout;
use self::paths::Parents;
use super::copy::Progress;
use super::copy::room::Room;
use super::{open_directory, open_path};
use crate::archive::{Entry, EntryKind, Reader, shown};
use crate::error::{Context as _, Error, Kind, Result};

const BUFFER: usize = 128 << 10;

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
    let mut unpacker = Unpacker {
        parents: Parents::new(&top)?,
        directories: Directories::new(scratch)?,
        room: Room::new(to)?,
        attributes: Attributes::default(),
        buffer: vec![0; BUFFER],
        spec,
        progress,
        entries: 0,
        bytes: 0,
        has_top: false,
        top,
    };
    while let Some(entry) = from.next_entry()? {
        progress.check()?;
        unpacker.entry(from, &entry).context(|| format!("extract {}", entry.shown()))?;
    }
    unpacker.finish(from.origin().is_some())
}

struct Unpacker<'a> {
    top: OwnedFd,
    parents: Parents,
    /// The directories, which get their attributes at the end: new entries would change their times and inherit their ACLs.
    directories: Directories,
    room: Room,
    attributes: Attributes,
    buffer: Vec<u8>,
    spec: &'a UnpackSpec,
    progress: &'a Progress,
    entries: u64,
    bytes: u64,
    has_top: bool,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, from: &mut Reader<R>, entry: &Entry) -> Result<()> {
        let path = paths::normalized(&entry.path)?;
        let prefix = self.spec.prefix.as_deref().unwrap_or_default();
        let Some(path) = paths::below(&path, prefix) else { return Ok(()) };
        self.room.visit(1)?;
        if path.is_empty() {
            return self.top(entry);
        }
        let (parent, name) = paths::split(path);
        self.parents.enter(parent, &mut self.room)?;
        let name = CString::new(name).map_err(|_| paths::refused("its name has a NUL"))?;
        self.entries += 1;
        self.progress.add(1, 0);
        match &entry.kind {
            EntryKind::Directory => self.directory(&name, path, entry),
            EntryKind::File => self.file(from, &name, entry),
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
            Ok(()) => self.room.take(self.parents.dir())?,
            Err(Errno::EXIST) => drop(paths::open(self.parents.dir(), name)?),
            Err(error) => return Err(error).context(|| "create the directory"),
        }
        self.directories.add(path, entry, self.room.created())
    }

    fn file<R: Read>(&mut self, from: &mut Reader<R>, name: &CString, entry: &Entry) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.create(name, |at| openat(at, name, flags, Mode::RUSR | Mode::WUSR))?;
        let whole = std::slice::from_ref(&(0..entry.size)).to_vec();
        let mut end = 0;
        for range in entry.data.clone().unwrap_or(whole) {
            let mut at = range.start;
            while at < range.end {
                self.progress.check()?;
                let length = usize::try_from(range.end - at).map_or(BUFFER, |left| left.min(BUFFER));
                let read = from.data(&mut self.buffer[..length])?;
                self.take(read as u64)?;
                let mut rest = &self.buffer[..read];
                while !rest.is_empty() {
                    let written = pwrite(&file, rest, at).context(|| "write")?;
                    rest = &rest[written..];
                    self.progress.add(0, written as u64);
                    at += written as u64;
                }
            }
            end = range.end;
        }
        if end < entry.size {
            ftruncate(&file, entry.size).context(|| "set the size")?;
        }
        self.attributes.set(file.as_fd(), entry)
    }

    /// Counts data before it is written.
    fn take(&mut self, bytes: u64) -> Result<()> {
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

    /// Creates a name in the current directory. A file of an earlier entry of this name is replaced.
    fn create<T>(&mut self, name: &CString, make: impl Fn(BorrowedFd<'_>) -> ErrnoResult<T>) -> Result<T> {
        let made = match make(self.parents.dir()) {
            Err(Errno::EXIST) => {
                match unlinkat(self.parents.dir(), name, AtFlags::empty()) {
                    Err(Errno::ISDIR) => {
                        return Err(paths::refused("an earlier entry of this name is a directory"));
                    }
                    removed => removed.context(|| "replace an earlier entry")?,
                }
                make(self.parents.dir())
            }
            made => made,
        };
        let made = made.context(|| "create")?;
        self.room.take(self.parents.dir())?;
        Ok(made)
    }

    /// Recognizes the layout and sets the attributes of the directories.
    fn finish(mut self, is_ours: bool) -> Result<Unpacked> {
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
            self.progress.check()?;
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
        self.progress.check()?;
        Ok(Unpacked {
            entries: self.entries.saturating_sub(moved_names),
            bytes: self.bytes,
            skipped_xattrs: self.attributes.skipped,
            has_top: self.has_top,
            layout,
        })
    }
}
