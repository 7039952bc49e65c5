//! The data of one file. Blocks are shared where the filesystem can, and holes are preserved.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, Statx, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

use super::Progress;
use super::digests::{Digests, Slots};
use super::patch::Patcher;
use crate::error::{Context, Error, Kind, Result};
use crate::fs::fstat;

/// Bytes copied between two checks for cancellation.
pub(super) const STEP: usize = 64 << 20;
/// Bytes of one read. A file up to this size is copied by one read and one write, the fastest way without shared
/// blocks.
pub(super) const BUFFER: usize = 128 << 10;

/// Copies data, and remembers which calls the two filesystems do not support.
pub(super) struct Contents<'a> {
    /// Whether whole files can be cloned (`FICLONE`).
    can_clone: bool,
    /// Whether `copy_file_range` works.
    can_copy_range: bool,
    pub(super) buffer: Vec<u8>,
    /// Compare the copy with its source, one in each thread.
    pub(super) patchers: Vec<Patcher>,
    pub(super) digests: Digests,
    pub(super) progress: &'a Progress,
    /// The most bytes of data that the copy may take.
    max_bytes: Option<u64>,
    /// What it takes until now, counted anew in each pass: holes take nothing.
    taken: u64,
    /// Bytes that this pass has copied or compared.
    pub(super) handled: u64,
}

impl<'a> Contents<'a> {
    pub(super) fn new(digests: Digests, max_bytes: Option<u64>, progress: &'a Progress) -> Self {
        Self {
            can_clone: true,
            can_copy_range: true,
            buffer: vec![0; BUFFER],
            patchers: Patcher::for_all_threads(),
            digests,
            progress,
            max_bytes,
            taken: 0,
            handled: 0,
        }
    }

    pub(super) fn begin_pass(&mut self) {
        (self.taken, self.handled) = (0, 0);
    }

    /// Makes an existing copy equal to its source; `slots` is where its digests are. Returns as [`Contents::copy`].
    pub(super) fn update(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Statx,
        slots: Slots,
    ) -> Result<(u64, Slots)> {
        if !self.can_clone && stat.stx_size > 0 {
            return self.patch_file(from, to, stat, slots);
        }
        ftruncate(to, 0).context(|| "truncate the copy")?;
        self.copy(from, to, stat, None)
    }

    fn patch_file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Statx,
        slots: Slots,
    ) -> Result<(u64, Slots)> {
        let size = self.patch(from, to, stat.stx_size, slots)?;
        // The copy has lost what the digests beyond its end are of.
        Ok((size, slots.filter(|_| size == stat.stx_size)))
    }

    /// Counts the data of a file of the copy that is left as it is.
    pub(super) fn keep(&mut self, copy: &Statx) -> Result<()> {
        self.take(data_bytes(copy))
    }

    /// Copies into a new file, whose digests get a place at `slots`. Returns the size of the copy, and where the digests are if
    /// there are any. The size is that in `stat`, or less if the source was truncated since. A clone has the size that the
    /// source has at that moment, which may also be larger.
    pub(super) fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Statx,
        slots: Slots,
    ) -> Result<(u64, Slots)> {
        if stat.stx_size == 0 {
            return Ok((0, None));
        }
        if self.can_clone && self.clone_file(from, to)? {
            return self.count_clone(to).map(|size| (size, None));
        }
        if !self.can_clone && slots.is_some() {
            return self.patch_file(from, to, stat, slots);
        }
        self.copy_data(from, to, stat).map(|size| (size, None))
    }

    fn count_clone(&mut self, clone: BorrowedFd<'_>) -> Result<u64> {
        let clone = fstat(clone).context(|| "stat the clone")?;
        self.progress.add(0, clone.stx_size);
        self.handled += clone.stx_size;
        self.take(data_bytes(&clone))?;
        Ok(clone.stx_size)
    }

    fn copy_data(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Statx) -> Result<u64> {
        let size = stat.stx_size;
        let small = usize::try_from(size).is_ok_and(|size| size <= BUFFER);
        if small && stat.stx_blocks.saturating_mul(512) >= size && has_no_hole(from, size) {
            return self.read_and_write(from, to, 0..size);
        }
        self.copy_data_ranges(from, to, size)
    }

    fn add_progress(&mut self, bytes: u64) -> Result<()> {
        self.progress.add(0, bytes);
        self.handled += bytes;
        self.take(bytes)
    }

    /// Counts data that was copied: a tenant may write more, or make a file longer while it is copied.
    pub(super) fn take(&mut self, bytes: u64) -> Result<()> {
        self.taken = self.taken.saturating_add(bytes);
        match self.max_bytes {
            Some(max) if self.taken > max => {
                Err(Error::new(Kind::OutOfRange, "the limit of the copy is reached"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The end of a range, or an earlier one that just exceeds the bound for data: no more has to be written to notice that.
    pub(super) fn bounded(&self, start: u64, end: u64) -> u64 {
        let most = self.max_bytes.unwrap_or(u64::MAX).saturating_sub(self.taken).saturating_add(1);
        end.min(start.saturating_add(most))
    }

    fn clone_file(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<bool> {
        match ioctl_ficlone(to, from) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::NOSYS) => {
                self.can_clone = false;
                Ok(false)
            }
            // This file only cannot be cloned: it is a swap file, or has no checksums.
            Err(Errno::INVAL | Errno::TXTBSY | Errno::PERM) => Ok(false),
            Err(error) => Err(error).context(|| "clone"),
        }
    }

    /// Copies the ranges that contain data; the ranges between them remain holes. Returns the size of the copy.
    fn copy_data_ranges(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<u64> {
        let mut at = 0;
        while at < size {
            let Some(Range { start, end }) = data_range(from, at..size)? else { break };
            let reached = self.copy_range(from, to, start..end)?;
            if reached < end {
                // The source ends here now, and the copy may end before, in a hole.
                ftruncate(to, reached).context(|| "set the size")?;
                return Ok(reached);
            }
            at = end;
        }
        ftruncate(to, size).context(|| "set the size")?;
        Ok(size)
    }

    /// Copies a range. Returns the offset that was reached, which is below the end if the source was truncated.
    fn copy_range(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, range: Range<u64>) -> Result<u64> {
        let Range { mut start, end } = range;
        while self.can_copy_range && start < end {
            self.progress.check()?;
            let most = self.bounded(start, end) - start;
            let length = usize::try_from(most).map_or(STEP, |left| left.min(STEP));
            let (mut source, mut target) = (start, start);
            match copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
                // The end of the file, or a file that does not support the call: a read distinguishes the two.
                Ok(0) | Err(Errno::INVAL | Errno::TXTBSY | Errno::PERM) => break,
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => self.can_copy_range = false,
                copied => {
                    let copied = copied.context(|| "copy data")? as u64;
                    self.add_progress(copied)?;
                    start += copied;
                }
            }
        }
        self.read_and_write(from, to, start..end)
    }

    /// Like [`Contents::copy_range`], by `pread` and `pwrite`.
    fn read_and_write(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, range: Range<u64>) -> Result<u64> {
        let Range { mut start, end } = range;
        let mut checked_at = start;
        while start < end {
            if start - checked_at >= STEP as u64 {
                self.progress.check()?;
                checked_at = start;
            }
            let most = self.bounded(start, end) - start;
            let length = usize::try_from(most).map_or(BUFFER, |left| left.min(BUFFER));
            let read = pread(from, &mut self.buffer[..length], start).context(|| "read")?;
            if read == 0 {
                break;
            }
            let mut rest = &self.buffer[..read];
            while !rest.is_empty() {
                let written = pwrite(to, rest, start).context(|| "write")?;
                rest = &rest[written..];
                start += written as u64;
            }
            self.add_progress(read as u64)?;
        }
        Ok(start)
    }
}

/// Whether the file has no hole. The number of blocks is not sufficient: it includes blocks of extended attributes.
pub(in crate::fs) fn has_no_hole(from: BorrowedFd<'_>, size: u64) -> bool {
    seek(from, SeekFrom::Hole(0)).map_or(true, |hole| hole >= size)
}

/// The bytes that the data of a file take on the disk, without holes.
fn data_bytes(stat: &Statx) -> u64 {
    stat.stx_size.min(stat.stx_blocks.saturating_mul(512))
}

/// The first range with data within another; `None` if there is none. The whole range if the filesystem does not report
/// holes.
pub(in crate::fs) fn data_range(file: BorrowedFd<'_>, within: Range<u64>) -> Result<Option<Range<u64>>> {
    let start = match seek(file, SeekFrom::Data(within.start)) {
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => within.start,
        start => start.context(|| "find data")?.min(within.end),
    };
    let end = match seek(file, SeekFrom::Hole(start)) {
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => within.end,
        end => end.context(|| "find a hole")?.min(within.end),
    };
    Ok(Some(start..end))
}
