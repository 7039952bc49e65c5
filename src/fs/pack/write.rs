//! Writes entries and the data of files into an archive.

use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::pread;

use super::data::{has_changed, parts_of};
use super::queue::{Data, Found};
use super::stillness::{changed, still};
use crate::archive::{Entry, Writer, shown};
use crate::error::{Context as _, Result};
use crate::fs::copy::Progress;
use crate::fs::copy::catalogue::{Time, time};
use crate::fs::fstat;
use crate::fs::stop::Stop;

const BUFFER: usize = 256 << 10;

pub(super) struct EntryWriter<'a, W> {
    to: &'a mut Writer<W>,
    buffer: Vec<u8>,
    /// When the archive was begun, if nothing may change.
    began: Option<Time>,
    progress: &'a Progress,
    stop: &'a Stop<'a>,
    counts: Counts,
}

/// What was written.
#[derive(Default)]
pub(super) struct Counts {
    /// Bytes of data, without holes.
    pub(super) bytes: u64,
    /// Files that changed while they were read in parts.
    pub(super) changed: u64,
}

impl<'a, W: Write> EntryWriter<'a, W> {
    pub(super) fn new(
        to: &'a mut Writer<W>,
        began: Option<Time>,
        progress: &'a Progress,
        stop: &'a Stop<'a>,
    ) -> Self {
        Self { to, buffer: vec![0; BUFFER], began, progress, stop, counts: Counts::default() }
    }

    pub(super) fn counts(self) -> Counts {
        self.counts
    }

    pub(super) fn write(&mut self, found: &Found) -> Result<()> {
        self.stop.check()?;
        let Found { entry, data } = found;
        match data {
            Data::None => self.without_data(entry),
            Data::Read(data) => self.whole(entry, data),
            Data::Open(file) => {
                self.parts(entry, file.as_fd()).context(|| format!("back up {}", shown(&entry.path)))
            }
        }
    }

    fn without_data(&mut self, entry: &Entry) -> Result<()> {
        self.to.entry(entry)?;
        self.progress.add(1, 0);
        Ok(())
    }

    fn whole(&mut self, entry: &Entry, data: &[u8]) -> Result<()> {
        self.to.entry(entry)?;
        self.to.data(data)?;
        self.counts.bytes += entry.size;
        self.progress.add(1, entry.size);
        Ok(())
    }

    fn parts(&mut self, entry: &Entry, file: BorrowedFd<'_>) -> Result<()> {
        // It was found some time ago.
        let stat = fstat(file).context(|| "stat")?;
        if let Some(began) = self.began {
            still(&stat, began)?;
        }
        let data = parts_of(file, &stat, self.stop)?;
        let (size, modified) = (stat.stx_size, time(stat.stx_mtime));
        let entry = Entry { size, modified, data, ..entry.clone() };
        self.without_data(&entry)?;
        self.counts.bytes += entry.stored();
        let whole = std::slice::from_ref(&(0..entry.size)).to_vec();
        let mut is_complete = true;
        for range in entry.data.unwrap_or(whole) {
            is_complete &= self.range(file, range)?;
        }
        if self.began.is_some() {
            // The caller looks for any other change.
            return if is_complete { Ok(()) } else { Err(changed()) };
        }
        self.counts.changed += u64::from(!is_complete || has_changed(file, &stat)?);
        Ok(())
    }

    /// Writes a part of a file: zeros if the file has become shorter. Reports whether it was as long as it should be.
    fn range(&mut self, file: BorrowedFd<'_>, range: Range<u64>) -> Result<bool> {
        let Range { mut start, end } = range;
        let mut is_complete = true;
        while start < end {
            self.stop.check()?;
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
