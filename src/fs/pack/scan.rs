//! Finds the entries of a tree, opens them, and reads all but the data of files.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Statx, readlinkat};
use rustix::io::Errno;

use super::Packed;
use super::data::{has_changed, read_whole};
use super::hard_links::HardLinks;
use super::queue::{Data, Sender};
use super::stillness::{changed, still};
use crate::archive::{Entry, EntryKind, MAX_PATH, MAX_XATTRS, shown};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::fs::copy::attributes::{Handle, XattrReader};
use crate::fs::copy::catalogue::{Time, time};
use crate::fs::lease::LeaseWait;
use crate::fs::nodev::clone_without_devices;
use crate::fs::stop::Stop;
use crate::fs::walk::{self, Walk};
use crate::fs::{Budget, Reopen, fstat, kind_of, mounted_here, open_directory, open_file, open_path};

/// An open entry: a file for reading, or anything as a path.
enum Opened {
    File(OwnedFd),
    Path(OwnedFd),
}

pub(super) struct Scanner<'a> {
    walk: Walk,
    /// The tree through which no device can be opened, if the kernel made one. It exists as long as this is open.
    nodev: Option<OwnedFd>,
    /// The path of the current directory in the archive.
    path: Vec<u8>,
    to: Sender,
    budget: Budget,
    links: HardLinks,
    xattrs: XattrReader,
    reopen: Reopen,
    leases: LeaseWait,
    /// When it was begun, if nothing may change.
    began: Option<Time>,
    progress: &'a Progress,
    stop: &'a Stop<'a>,
    packed: Packed,
}

impl<'a> Scanner<'a> {
    /// Starts at the directory `from`. If `began` is given, the tree must not have changed since.
    pub(super) fn new(
        from: BorrowedFd<'_>,
        to: Sender,
        began: Option<Time>,
        progress: &'a Progress,
        stop: &'a Stop<'a>,
    ) -> Result<Self> {
        let nodev = clone_without_devices(from);
        let root = nodev.as_ref().map_or(from, OwnedFd::as_fd);
        Ok(Self {
            walk: Walk::of_live_tree(root).context(|| "open the directory")?,
            nodev,
            path: b".".to_vec(),
            to,
            budget: Budget::of_filesystem(from)?,
            links: HardLinks::default(),
            xattrs: XattrReader::new(),
            reopen: Reopen::new()?,
            leases: LeaseWait::default(),
            began,
            progress,
            stop,
            packed: Packed::default(),
        })
    }

    /// Sends all entries. Returns what it has counted of them.
    pub(super) fn run(mut self) -> Result<Packed> {
        self.scan()?;
        self.to.flush()?;
        Ok(self.packed)
    }

    fn scan(&mut self) -> Result<()> {
        let stat = fstat(self.walk.dir()).context(|| "stat the directory")?;
        self.send_directory(&stat)?;
        loop {
            self.stop.check()?;
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
            let has_entered = self.send(&entry).context(|| format!("back up {}", shown(&self.path)))?;
            if !has_entered {
                self.path.truncate(parent);
            }
        }
    }

    /// Sends the entry at the current path. Reports whether it is a directory that was entered.
    fn send(&mut self, entry: &walk::Entry) -> Result<bool> {
        let Some((file, stat)) = self.open(entry)? else { return self.vanished() };
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
        if kind.is_dir() {
            Budget::check_depth(self.walk.depth())?;
            let directory = open_directory(file.as_fd(), c".").context(|| "open the directory")?;
            self.walk.enter(directory).context(|| "stat the directory")?;
            return self.send_directory(&stat).map(|()| true);
        }
        if let Some(first) = self.links.first_name(&stat, &self.path) {
            let entry = Entry { kind: EntryKind::HardLink(first), ..self.entry(&stat, EntryKind::File) };
            return self.to.send(entry, Data::None).map(|()| false);
        }
        self.packed.separated_links = self.links.separated();
        if kind.is_file() { self.send_file(file, stat) } else { self.send_special(file.as_fd(), &stat, kind) }
            .map(|()| false)
    }

    /// Opens an entry. `None` if it is gone.
    fn open(&self, entry: &walk::Entry) -> Result<Option<(Opened, Statx)>> {
        let opened = match self.open_file(entry) {
            Some(file) => file,
            None => match open_path(self.walk.dir(), &entry.name) {
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::XDEV) => return Err(mounted_here(Kind::Unsupported)),
                path => Opened::Path(path.context(|| "open")?),
            },
        };
        let stat = fstat(opened.as_fd()).context(|| "stat")?;
        if matches!(opened, Opened::File(_)) && !kind_of(&stat).is_file() {
            // It was replaced since the directory was read. What is unknown is opened as a path.
            return self.open(&walk::Entry { name: entry.name.clone(), kind: FileType::Unknown });
        }
        Ok((stat.stx_nlink > 0).then_some((opened, stat)))
    }

    /// Opens what the directory says is a regular file for reading, if it can be no device. Otherwise, and at any error, `None`:
    /// a path shows what it is.
    fn open_file(&self, entry: &walk::Entry) -> Option<Opened> {
        let is_safe = self.nodev.is_some() && entry.kind == FileType::RegularFile;
        let opened = is_safe.then(|| open_file(self.walk.dir(), &entry.name));
        opened?.ok().map(Opened::File)
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

    /// Sends the directory that was just entered.
    fn send_directory(&mut self, stat: &Statx) -> Result<()> {
        let xattrs = {
            let directory = self.walk.dir().try_clone_to_owned().context(|| "open the directory")?;
            self.read_xattrs(&Handle::Open(directory.as_fd()))?
        };
        let entry = Entry { xattrs, ..self.entry(stat, EntryKind::Directory) };
        self.to.send(entry, Data::None)
    }

    fn send_special(&mut self, file: BorrowedFd<'_>, stat: &Statx, kind: FileType) -> Result<()> {
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
        let xattrs = self.read_xattrs(&Handle::path_only(file))?;
        let entry = Entry { xattrs, ..self.entry(stat, kind) };
        self.to.send(entry, Data::None)
    }

    fn send_file(&mut self, file: Opened, stat: Statx) -> Result<()> {
        let file = match file {
            Opened::File(file) => file,
            Opened::Path(path) => {
                self.leases.open(false, self.progress, || self.reopen.for_reading(path.as_fd()))?
            }
        };
        let xattrs = self.read_xattrs(&Handle::Open(file.as_fd()))?;
        let entry = Entry { size: stat.stx_size, xattrs, ..self.entry(&stat, EntryKind::File) };
        let data = match read_whole(file.as_fd(), &stat)? {
            Some(data) => {
                self.packed.changed += u64::from(self.began.is_none() && has_changed(file.as_fd(), &stat)?);
                Data::Read(data)
            }
            None => Data::Open(file),
        };
        self.to.send(entry, data)
    }
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(fd) | Self::Path(fd) => fd.as_fd(),
        }
    }
}
