//! Brings files up to date that the copy has already.

use std::ffi::CStr;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, openat, readlinkat};
use rustix::io::Errno;

use super::attributes::set_times;
use super::catalogue::{Record, time};
use super::links::inode_key;
use super::{Entry, Seen, SourceState, TreeCopier, fstatat, kind_of};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::names::remove_name;
use crate::fs::remove::{Slice, remove_entry};

impl TreeCopier<'_> {
    /// Copies a file of any type except a directory, or brings its copy up to date. Returns its size, or `None` if this
    /// pass has met the name before.
    pub(super) fn copy_file(&mut self, seen: &Seen, name: &CStr) -> Result<Option<u64>> {
        if self.pass.is_first() {
            return self.create_file(seen, name);
        }
        let Some(copy) = self.stat_copy(name)? else { return self.create_file(seen, name) };
        let record = self.catalogue.get(copy.stx_ino)?;
        // Where nothing is known of the inode, its other names may be those of another file.
        if record.is_some_and(|record| record.is_of(&seen.stat)) && self.is_same_kind(&copy, seen, name)? {
            return self.update_file(seen, name, copy, record);
        }
        self.remove(name)?;
        self.create_file(seen, name)
    }

    /// Keeps the copy of a regular file of an unused source that is as it was, without opening the file, which takes most of the
    /// time of a pass that changes nothing. Returns its size, or `None` if more has to be known of it.
    pub(super) fn keep_unopened(&mut self, entry: &Entry) -> Result<Option<u64>> {
        let may_be_file = matches!(entry.kind, FileType::RegularFile | FileType::Unknown);
        if self.pass.state != Some(SourceState::Unused) || !self.times_tell || !may_be_file {
            return Ok(None);
        }
        let name = entry.name.as_c_str();
        let Ok(stat) = fstatat(self.from.dir(), name) else { return Ok(None) };
        let Some(copy) = self.stat_copy(name)? else { return Ok(None) };
        let is_single = |stat: &Statx| kind_of(stat).is_file() && stat.stx_nlink == 1;
        if !is_single(&stat) || !is_single(&copy) {
            return Ok(None);
        }
        let record = self.catalogue.get(copy.stx_ino)?;
        let is_kept =
            |record: &Record| record.pass != self.pass.number && self.pass.is_unchanged(record, &stat);
        let Some(record) = record.filter(is_kept) else { return Ok(None) };
        self.pass.check_still(&stat)?;
        self.keep(&stat, name, &copy, record).map(Some)
    }

    /// The attributes of a name of the copy, if it exists.
    pub(super) fn stat_copy(&self, name: &CStr) -> Result<Option<Statx>> {
        match fstatat(self.to.dir(), name) {
            Err(Errno::NOENT) => Ok(None),
            copy => copy.context(|| "stat the copy").map(Some),
        }
    }

    /// Whether a name of the copy agrees with the source in what cannot be changed: its type, the target of a symlink, the
    /// number of a device.
    pub(super) fn is_same_kind(&self, copy: &Statx, seen: &Seen, name: &CStr) -> Result<bool> {
        let stat = &seen.stat;
        let kind = kind_of(stat);
        if kind_of(copy) != kind {
            return Ok(false);
        }
        if kind == FileType::Symlink {
            let target = readlinkat(&seen.file, c"", Vec::new()).context(|| "read the symlink")?;
            let copied = readlinkat(self.to.dir(), name, Vec::new()).context(|| "read the copy")?;
            return Ok(target == copied);
        }
        let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
        Ok(device == (copy.stx_rdev_major, copy.stx_rdev_minor))
    }

    /// Brings an existing copy of a file up to date, given what is known of the copy. Returns as
    /// [`TreeCopier::copy_file`].
    pub(super) fn update_file(
        &mut self,
        seen: &Seen,
        name: &CStr,
        mut copy: Statx,
        mut record: Option<Record>,
    ) -> Result<Option<u64>> {
        if seen.stat.stx_nlink > 1
            && self.links.unite(&inode_key(&seen.stat), self.to.dir(), name, copy.stx_ino)?
        {
            copy = fstatat(self.to.dir(), name).context(|| "stat the copy")?;
            record = self.catalogue.get(copy.stx_ino)?;
        }
        let is_file = kind_of(&seen.stat).is_file();
        match record {
            // By another name of the same file, or the directory has returned this name twice.
            Some(record) if record.pass == self.pass.number => {
                let size = if is_file { copy.stx_size } else { 0 };
                return Ok((copy.stx_nlink > 1).then_some(size));
            }
            Some(record) if self.times_tell && self.pass.is_unchanged(&record, &seen.stat) => {
                return self.keep(&seen.stat, name, &copy, record).map(Some);
            }
            Some(_) | None => {}
        }
        if is_file {
            return self.update_regular(seen, name, &copy, record).map(Some);
        }
        self.update_special(seen, name)?;
        Ok(Some(0))
    }

    /// Leaves a file as it is. Its access time may have changed by itself.
    fn keep(&mut self, stat: &Statx, name: &CStr, copy: &Statx, record: Record) -> Result<u64> {
        self.catalogue.put(copy.stx_ino, &Record { pass: self.pass.number, ..record })?;
        self.pass.manifest.skipped_xattrs += u64::from(record.skipped_xattrs);
        if time(copy.stx_atime) != time(stat.stx_atime) {
            set_times(self.to.dir(), name, stat)?;
        }
        if !kind_of(copy).is_file() {
            return Ok(0);
        }
        self.contents.keep(copy)?;
        Ok(copy.stx_size)
    }

    fn update_regular(
        &mut self,
        seen: &Seen,
        name: &CStr,
        copy: &Statx,
        record: Option<Record>,
    ) -> Result<u64> {
        let source = self.open_source(seen)?;
        let slots = self.contents.digests.slots(seen.stat.stx_size, record.as_ref());
        if let Some(record) = record.filter(|record| record.slots.is_some()) {
            // After a failure it would not be known of which blocks they are.
            self.catalogue.put(copy.stx_ino, &Record { slots: None, ..record })?;
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = openat(self.to.dir(), name, flags, Mode::empty()).context(|| "open the copy")?;
        let is_reliable = self.write_back(seen, source.as_fd());
        let (size, slots) = self.contents.update(source.as_fd(), copy.as_fd(), &seen.stat, slots)?;
        let record = self.count_regular(seen, (is_reliable, slots));
        self.finish_regular(seen, source.as_fd(), copy.as_fd(), record)?;
        Ok(size)
    }

    /// Removes a name of the copy with everything below it.
    pub(super) fn remove(&self, name: &CStr) -> Result<()> {
        match remove_name(self.to.dir(), name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            removed => return removed.context(|| "remove the outdated copy"),
        }
        loop {
            let slice = Slice { stop: &self.progress.cancelled, length: Duration::MAX };
            if remove_entry(self.to.dir(), name.to_owned(), slice)?.complete {
                return Ok(());
            }
            if self.progress.cancelled.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Busy, "cancelled"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::fs::Walk;
    use crate::fs::copy::Progress;

    #[test]
    fn an_unchanged_file_of_an_unused_source_is_kept_without_being_opened() {
        // Not in memory, where the times do not tell what has changed.
        let program = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let [from, to] = ["from", "to"].map(|name| {
            fs::create_dir(dir.path().join(name)).unwrap();
            File::open(dir.path().join(name)).unwrap()
        });
        for name in ["kept", "changed"] {
            fs::write(dir.path().join("from").join(name), "1").unwrap();
        }
        // The clock of the times is a coarse one.
        std::thread::park_timeout(Duration::from_millis(20));
        let (top, progress) = (File::open(dir.path()).unwrap(), Progress::default());
        let mut copier = TreeCopier::new(from.as_fd(), to.as_fd(), top.as_fd(), None, &progress).unwrap();
        if !copier.times_tell {
            return;
        }
        copier.live().unwrap();
        fs::write(dir.path().join("from/changed"), "2").unwrap();
        copier.pass = copier.pass.next(Some(SourceState::Unused)).unwrap();
        copier.from = Walk::of_live_tree(from.as_fd()).unwrap();
        copier.to = Walk::new(to.as_fd()).unwrap();
        let mut keep = |name: &CStr| {
            copier.keep_unopened(&Entry { name: name.to_owned(), kind: FileType::RegularFile }).unwrap()
        };
        assert_eq!(keep(c"kept"), Some(1));
        // It was met already.
        assert_eq!(keep(c"kept"), None);
        assert_eq!(keep(c"changed"), None);
        assert_eq!(keep(c"unknown"), None);
    }
}
