//! Directories of a copy: entered, freed of what the source does not have any more, and given their attributes.

use std::ffi::CStr;
use std::os::fd::AsFd as _;

use rustix::fs::{Mode, futimens, mkdirat};
use rustix::io::Errno;

use super::attributes;
use super::catalogue::{Record, now, time};
use super::create::is_created;
use super::{Budget, Seen, TreeCopier, Walk, fstat, kind_of, open_directory};
use crate::error::{Context as _, Error, Kind, Result};

/// A few filesystems skip entries when others are removed while the directory is read: it is read again, so often.
const MAX_READS: u32 = 16;

impl TreeCopier<'_> {
    /// Descends into a directory, which is created if the copy does not have it. Returns 0, or `None` if it is gone or this
    /// pass has met the name before.
    pub(super) fn enter_directory(&mut self, seen: &Seen, name: &CStr) -> Result<Option<u64>> {
        Budget::check_depth(self.from.depth())?;
        let source = match open_directory(seen.file.as_fd(), c".") {
            Err(Errno::NOENT) => {
                self.pass.manifest.vanished += 1;
                return Ok(None);
            }
            source => source.context(|| "open")?,
        };
        let is_new = !self.has_directory(name)?;
        if is_new {
            if !is_created(mkdirat(self.to.dir(), name, Mode::RWXU), "create the directory")? {
                return Ok(None);
            }
            self.count_created()?;
        }
        let copy = open_directory(self.to.dir(), name).context(|| "open the directory of the copy")?;
        if !is_new {
            let inode = fstat(copy.as_fd()).context(|| "stat the copy")?.stx_ino;
            if self.catalogue.get(inode)?.is_some_and(|record| record.pass == self.pass.number) {
                return Ok(None);
            }
        }
        self.from.enter(source).context(|| "stat the directory")?;
        self.to.enter(copy).context(|| "stat the directory of the copy")?;
        self.path.push(name);
        self.begin_directory(is_new)?;
        Ok(Some(0))
    }

    /// Whether the copy has a directory of this name. A file of this name is removed.
    fn has_directory(&self, name: &CStr) -> Result<bool> {
        if self.pass.is_first() {
            return Ok(false);
        }
        match self.stat_copy(name)? {
            Some(copy) if kind_of(&copy).is_dir() => Ok(true),
            Some(_) => self.remove(name).map(|()| false),
            None => Ok(false),
        }
    }

    /// Remembers what was seen of the current directory before it is read.
    pub(super) fn begin_directory(&mut self, is_new: bool) -> Result<()> {
        if self.catalogue.is_none() {
            return Ok(());
        }
        let seen = now();
        let stat = fstat(self.from.dir()).context(|| "stat the source")?;
        self.pass.check_still(&stat)?;
        let inode = fstat(self.to.dir()).context(|| "stat the copy")?.stx_ino;
        // The record of a new directory is that of an earlier one with its inode number.
        let known = if is_new { None } else { self.catalogue.get(inode)? };
        let is_unchanged = |record: &Record| self.times_tell && self.pass.is_unchanged(record, &stat);
        let unchanged = known.filter(is_unchanged);
        let record = match unchanged {
            Some(record) => Record { pass: self.pass.number, is_stale: false, ..record },
            None => Record { is_stale: true, ..Record::new(&stat, seen, self.pass.number) },
        };
        self.catalogue.put(inode, &record)
    }

    /// Completes the current directory and returns to its parent; false at the top.
    pub(super) fn finish_directory(&mut self) -> Result<bool> {
        let stat = fstat(self.from.dir()).context(|| "stat the source")?;
        self.pass.check_still(&stat)?;
        let copy = fstat(self.to.dir()).context(|| "stat the copy")?;
        let record = self.catalogue.get(copy.stx_ino)?;
        let unchanged = record.filter(|record| !record.is_stale && record.matches(&stat));
        if let Some(record) = unchanged {
            self.pass.manifest.skipped_xattrs += u64::from(record.skipped_xattrs);
            let times = |of: &rustix::fs::Statx| (time(of.stx_atime), time(of.stx_mtime));
            // An entry was replaced.
            if times(&copy) != times(&stat) {
                futimens(self.to.dir(), &attributes::times(&stat)).context(|| "set the times")?;
            }
        } else {
            if !self.pass.is_first() {
                self.remove_others()?;
            }
            let skipped_xattrs =
                self.attributes.copy_to_open(self.from.dir(), self.to.dir(), &stat, &copy)?;
            self.pass.manifest.skipped_xattrs += u64::from(skipped_xattrs);
            if let Some(record) = record.filter(|_| skipped_xattrs > 0) {
                self.catalogue.put(copy.stx_ino, &Record { skipped_xattrs, ..record })?;
            }
        }
        Ok(self.from.leave()? && self.to.leave().context(|| "in the copy")?)
    }

    /// Removes what the current directory of the copy has and this pass has not met.
    fn remove_others(&self) -> Result<()> {
        for _ in 0..MAX_READS {
            let mut reader = Walk::new(self.to.dir()).context(|| "open the directory of the copy")?;
            let mut has_removed = false;
            while let Some(entry) = reader.next().context(|| "read the directory of the copy")? {
                self.progress.check()?;
                if !self.is_current(&entry.name)? {
                    self.remove(&entry.name)?;
                    has_removed = true;
                }
            }
            if !has_removed {
                return Ok(());
            }
        }
        Err(Error::new(Kind::Internal, "the directory of the copy cannot be freed of removed entries"))
    }

    /// Whether this pass has met a name of the current directory.
    fn is_current(&self, name: &CStr) -> Result<bool> {
        if self.to.is_at_root() && self.links.is_dir(name) {
            return Ok(true);
        }
        let Some(copy) = self.stat_copy(name)? else { return Ok(true) };
        let record = self.catalogue.get(copy.stx_ino)?;
        let is_met = record.is_none_or(|record| record.pass == self.pass.number);
        if !is_met || (record.is_some() && (copy.stx_nlink == 1 || kind_of(&copy).is_dir())) {
            return Ok(is_met);
        }
        // It may have been met by another name, or nothing is known of it.
        let source = self.open_entry(name)?;
        Ok(source.is_some_and(|seen| record.is_none_or(|record| record.is_of(&seen.stat))))
    }
}
