//! Copies files that the copy does not have yet.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, mknodat, openat, readlinkat, symlinkat};
use rustix::io::Errno;

use super::catalogue::{Record, is_young, time};
use super::digests::Slots;
use super::finish::{Unfinished, finish};
use super::links::{LinkResult, inode_key};
use super::{Seen, SourceState, TreeCopier, kind_of};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::{fstat, fstatat};
use crate::sys::write_back::{start_write_back, write_back};

/// Copies of at least this many bytes are sent to the disk at once, so that the sync of the whole tree takes less time. Only the
/// first pass does that: the time of later ones predicts that of the pause, in which nothing waits for the disk.
const MIN_SENT_EARLY: u64 = 1 << 20;

impl TreeCopier<'_> {
    /// Copies a file of any type except a directory whose name the copy does not have. Returns its size, or `None` if the
    /// name exists now: a directory that changes while it is read may return a name twice.
    pub(super) fn create_file(&mut self, seen: &Seen, name: &CStr) -> Result<Option<u64>> {
        let key = (seen.stat.stx_nlink > 1).then(|| inode_key(&seen.stat));
        if let Some(key) = &key {
            match self.links.link(key, self.to.dir(), name)? {
                LinkResult::Linked => {
                    let copy = fstatat(self.to.dir(), name).context(|| "stat the new hard link")?;
                    if self.pass.is_first() {
                        self.count_created()?;
                        return Ok(Some(if kind_of(&copy).is_file() { copy.stx_size } else { 0 }));
                    }
                    if self.is_same_kind(&copy, seen, name)? {
                        self.count_created()?;
                        let record = self.catalogue.get(copy.stx_ino)?;
                        return self.update_file(seen, name, copy, record);
                    }
                    self.remove(name)?;
                    self.links.forget(key)?;
                }
                LinkResult::NameExists => return Ok(None),
                LinkResult::NotCopied => {}
            }
        }
        let created = self.create_inode(seen, name)?;
        if created.is_some() {
            self.count_created()?;
            if let Some(key) = &key {
                self.links.add(key, self.to.dir(), name)?;
            }
        }
        Ok(created)
    }

    fn create_inode(&mut self, seen: &Seen, name: &CStr) -> Result<Option<u64>> {
        match kind_of(&seen.stat) {
            FileType::RegularFile => self.create_regular(seen, name),
            FileType::Symlink => {
                let target = readlinkat(&seen.file, c"", Vec::new()).context(|| "read the symlink")?;
                let created = symlinkat(target, self.to.dir(), name);
                self.finish_special(created, "create the symlink", seen, name)
            }
            kind
            @ (FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice) => {
                let device = rustix::fs::makedev(seen.stat.stx_rdev_major, seen.stat.stx_rdev_minor);
                let mode = Mode::from_raw_mode(u32::from(seen.stat.stx_mode) & 0o777);
                let created = mknodat(self.to.dir(), name, kind, mode, device);
                self.finish_special(created, "create the node", seen, name)
            }
            FileType::Directory | FileType::Unknown => {
                Err(Error::new(Kind::Unsupported, "this type of file cannot be copied"))
            }
        }
    }

    fn create_regular(&mut self, seen: &Seen, name: &CStr) -> Result<Option<u64>> {
        let source = self.open_source(seen)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(u32::from(seen.stat.stx_mode) & 0o777);
        let copy = match openat(self.to.dir(), name, flags, mode) {
            Err(Errno::EXIST) => return Ok(None),
            copy => copy.context(|| "create")?,
        };
        let is_reliable = self.write_back(seen, source.as_fd());
        // Digests cost a read. They pay only if the next pass compares the file; on a server they never do.
        let takes_digests =
            self.times_tell && self.pass.state.is_none() && is_young(time(seen.stat.stx_ctime), seen.at);
        let slots = if takes_digests { self.contents.digests.slots(seen.stat.stx_size, None) } else { None };
        if let Some(finisher) = self.finisher.as_mut().filter(|_| seen.stat.stx_size >= MIN_SENT_EARLY) {
            // The files before it do not wait, open, for a long copy.
            finisher.pass_on()?;
        }
        let (size, slots) = self.contents.copy(source.as_fd(), copy.as_fd(), &seen.stat, slots)?;
        if self.pass.is_first() && seen.stat.stx_size >= MIN_SENT_EARLY {
            start_write_back(copy.as_fd());
        }
        let record = self.count_regular(seen, (is_reliable, slots));
        match &mut self.finisher {
            Some(finisher) => {
                let file = Unfinished { name: name.to_owned(), source, copy, stat: seen.stat, record };
                finisher.add(&self.path, file)?;
            }
            None => self.finish_regular(seen, source.as_fd(), copy.as_fd(), record)?,
        }
        Ok(Some(size))
    }

    /// Counts a regular file whose data is copied. Returns what is remembered of it: whether later changes will move its times,
    /// and where the digests of the copy are.
    pub(super) fn count_regular(&mut self, seen: &Seen, (is_reliable, slots): (bool, Slots)) -> Record {
        self.pass.files += 1;
        self.pass.ages.add(time(seen.stat.stx_ctime), seen.at, seen.stat.stx_size);
        Record { is_reliable, slots, ..Record::new(&seen.stat, seen.at, self.pass.number) }
    }

    /// Copies the attributes of a regular file whose data is copied, and remembers what was seen of it.
    pub(super) fn finish_regular(
        &mut self,
        seen: &Seen,
        source: BorrowedFd<'_>,
        copy: BorrowedFd<'_>,
        record: Record,
    ) -> Result<()> {
        let skipped = finish(&mut self.attributes, &self.catalogue, source, copy, &seen.stat, record)?;
        self.pass.manifest.skipped_xattrs += u64::from(skipped);
        if self.pass.state.is_some() {
            // It may have been changed while it was read. An earlier record would be of what the copy was before.
            self.pass.check_still(&fstat(source).context(|| "stat")?)?;
        }
        Ok(())
    }

    fn finish_special(
        &mut self,
        created: rustix::io::Result<()>,
        what: &'static str,
        seen: &Seen,
        name: &CStr,
    ) -> Result<Option<u64>> {
        if !is_created(created, what)? {
            return Ok(None);
        }
        self.update_special(seen, name)?;
        Ok(Some(0))
    }

    /// Copies the attributes of a file that cannot be opened, and remembers what was seen of it.
    pub(super) fn update_special(&mut self, seen: &Seen, name: &CStr) -> Result<()> {
        let skipped_xattrs =
            self.attributes.copy_to_name(seen.file.as_fd(), self.to.dir(), name, &seen.stat)?;
        self.pass.manifest.skipped_xattrs += u64::from(skipped_xattrs);
        if self.catalogue.is_none() {
            return Ok(());
        }
        let inode = fstatat(self.to.dir(), name).context(|| "stat the copy")?.stx_ino;
        let record = Record::new(&seen.stat, seen.at, self.pass.number);
        self.catalogue.put(inode, &Record { skipped_xattrs, ..record })
    }

    /// Writes what was changed through mappings to the disk, so that the next such change moves the times of the file. This
    /// comes after the file was looked at and before it is read. Reports whether later changes will move the times.
    ///
    /// It is not done while the writers are paused, as they would have to wait, nor for a file that the next pass compares
    /// anyway. Later changes are found by comparing then.
    pub(super) fn write_back(&self, seen: &Seen, source: BorrowedFd<'_>) -> bool {
        !self.catalogue.is_none()
            && self.pass.state != Some(SourceState::Paused)
            && !self.pass.will_compare(&seen.stat, seen.at)
            && write_back(source).is_ok()
    }

    /// Opens a regular file for reading.
    pub(super) fn open_source(&mut self, seen: &Seen) -> Result<OwnedFd> {
        let is_paused = self.pass.state == Some(SourceState::Paused);
        self.leases.open(is_paused, self.progress, || self.reopen.for_reading(seen.file.as_fd()))
    }
}

/// Whether a call created the name; false: the name exists. Any other failure is an error.
pub(super) fn is_created(result: rustix::io::Result<()>, what: &'static str) -> Result<bool> {
    match result {
        Err(Errno::EXIST) => Ok(false),
        result => result.context(|| what).map(|()| true),
    }
}
