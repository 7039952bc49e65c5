//! The data of one file: shared where the filesystem can, with its holes.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use rustix::fs::{SeekFrom, Statx, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

use super::Progress;
use crate::error::{Context, Result};
use crate::fs::fstat;

/// How much is copied between two looks at the request to stop.
const STEP: usize = 64 << 20;
/// One read. A file up to this size is copied by one read and one write: the cheapest where nothing is shared.
const BUFFER: usize = 128 << 10;

/// Copies data, and remembers what the two filesystems cannot do.
pub(super) struct Contents<'a> {
    clones: bool,
    ranges: bool,
    buffer: Vec<u8>,
    progress: &'a Progress,
}

impl<'a> Contents<'a> {
    pub(super) fn new(progress: &'a Progress) -> Self {
        Self { clones: true, ranges: true, buffer: vec![0; BUFFER], progress }
    }

    /// Copies into a new file and answers the size it has then: at most what `stat` says, less if the source has
    /// been cut short since. A clone alone may be longer: it is of one moment, a later one.
    pub(super) fn copy(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Statx) -> Result<u64> {
        let size = stat.stx_size;
        if size == 0 {
            return Ok(0);
        }
        if self.clones && self.clone_all(from, to)? {
            let size = fstat(to).context(|| "look at the clone")?.stx_size;
            self.count(size);
            return Ok(size);
        }
        let small = usize::try_from(size).is_ok_and(|size| size <= BUFFER);
        if small && stat.stx_blocks.saturating_mul(512) >= size && has_no_hole(from, size) {
            return self.plain(from, to, 0..size);
        }
        self.parts(from, to, size)
    }

    fn count(&self, bytes: u64) {
        self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn clone_all(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<bool> {
        match ioctl_ficlone(to, from) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::NOSYS) => {
                self.clones = false;
                Ok(false)
            }
            // this one file: a swap file, or one without checksums
            Err(Errno::INVAL | Errno::TXTBSY | Errno::PERM) => Ok(false),
            Err(error) => Err(error).context(|| "clone"),
        }
    }

    /// The parts that hold data; what lies between them stays a hole.
    fn parts(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<u64> {
        let mut at = 0;
        while at < size {
            let start = match seek(from, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                start => start.context(|| "find data")?.min(size),
            };
            let end = match seek(from, SeekFrom::Hole(start)) {
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => size,
                end => end.context(|| "find a hole")?.min(size),
            };
            let reached = self.part(from, to, start..end)?;
            if reached < end {
                return Ok(reached);
            }
            at = end;
        }
        ftruncate(to, size).context(|| "set the size")?;
        Ok(size)
    }

    /// Copies a part and answers how far it came.
    fn part(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, part: Range<u64>) -> Result<u64> {
        let Range { mut start, end } = part;
        while self.ranges && start < end {
            self.progress.check()?;
            let length = usize::try_from(end - start).map_or(STEP, |left| left.min(STEP));
            let (mut source, mut target) = (start, start);
            match copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
                // the end of the file, or a filesystem that has not learnt this: reading will tell
                Ok(0) | Err(Errno::INVAL | Errno::TXTBSY | Errno::PERM) => break,
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => self.ranges = false,
                copied => {
                    let copied = copied.context(|| "copy data")? as u64;
                    self.count(copied);
                    start += copied;
                }
            }
        }
        self.plain(from, to, start..end)
    }

    /// By read and write.
    fn plain(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, part: Range<u64>) -> Result<u64> {
        let Range { mut start, end } = part;
        let mut looked = start;
        while start < end {
            if start - looked >= STEP as u64 {
                self.progress.check()?;
                looked = start;
            }
            let length = usize::try_from(end - start).map_or(BUFFER, |left| left.min(BUFFER));
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
            self.count(read as u64);
        }
        Ok(start)
    }
}

/// The number of blocks alone does not tell: a block of attributes counts, too.
fn has_no_hole(from: BorrowedFd<'_>, size: u64) -> bool {
    seek(from, SeekFrom::Hole(0)).map_or(true, |hole| hole >= size)
}
