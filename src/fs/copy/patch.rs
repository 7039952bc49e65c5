//! Brings the data of an existing copy up to date: it is compared with the source, and only what differs is written.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::{Errno, pread, pwrite};

use super::contents::{BUFFER, Contents, STEP, data_range};
use crate::error::{Context as _, Result};

/// Blocks at either end of a buffer that are equal are not written.
const BLOCK: usize = 4096;

impl Contents<'_> {
    /// Makes the copy equal to its source up to this size. Returns the size of the copy, which is less if the source was
    /// truncated since.
    pub(super) fn patch(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<u64> {
        let mut at = 0;
        while at < size {
            self.progress.check()?;
            let data = data_range(from, at..size)?.unwrap_or(size..size);
            self.clear(to, at..data.start)?;
            at = self.patch_range(from, to, data.clone())?;
            if at < data.end {
                break;
            }
        }
        ftruncate(to, at).context(|| "set the size")?;
        Ok(at)
    }

    /// Compares and patches a range. Returns the offset that was reached, which is below the end if the source was
    /// truncated.
    fn patch_range(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, range: Range<u64>) -> Result<u64> {
        let Range { mut start, end } = range;
        let mut checked_at = start;
        while start < end {
            if start - checked_at >= STEP as u64 {
                self.progress.check()?;
                checked_at = start;
            }
            let length = usize::try_from(end - start).map_or(BUFFER, |left| left.min(BUFFER));
            let read = pread(from, &mut self.buffer[..length], start).context(|| "read")?;
            if read == 0 {
                break;
            }
            let known = pread(to, &mut self.other[..read], start).context(|| "read the copy")?;
            let differs = differing(&self.buffer[..read], &self.other[..known]);
            self.write(to, differs, start)?;
            self.handled += read as u64;
            self.take(read as u64)?;
            start += read as u64;
        }
        Ok(start)
    }

    /// Writes a range of the buffer, which begins at this offset of the file.
    fn write(&mut self, to: BorrowedFd<'_>, range: Range<usize>, offset: u64) -> Result<()> {
        self.progress.bytes.fetch_add(range.len() as u64, Ordering::Relaxed);
        let mut at = range.start;
        while at < range.end {
            at += pwrite(to, &self.buffer[at..range.end], offset + at as u64).context(|| "write")?;
        }
        Ok(())
    }

    /// Makes a range of the copy a hole, or fills it with zeros where that is not possible.
    fn clear(&mut self, to: BorrowedFd<'_>, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            self.progress.check()?;
            let Some(data) = data_range(to, at..range.end)? else { return Ok(()) };
            if data.is_empty() {
                return Ok(());
            }
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(to, punch, data.start, data.end - data.start) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.fill_with_zeros(to, data.clone())?,
                punched => punched.context(|| "make a hole")?,
            }
            at = data.end;
        }
        Ok(())
    }

    fn fill_with_zeros(&mut self, to: BorrowedFd<'_>, range: Range<u64>) -> Result<()> {
        self.buffer.fill(0);
        let mut at = range.start;
        while at < range.end {
            self.progress.check()?;
            let length = usize::try_from(range.end - at).map_or(BUFFER, |left| left.min(BUFFER));
            self.write(to, 0..length, at)?;
            at += length as u64;
        }
        Ok(())
    }
}

/// The range of the new data that has to be written, in whole blocks: from the first to the last one that differs.
fn differing(new: &[u8], old: &[u8]) -> Range<usize> {
    let mut differs = new.chunks(BLOCK).zip(old.chunks(BLOCK).chain(std::iter::repeat(&[][..])));
    let Some(first) = differs.position(|(new, old)| new != old) else { return 0..0 };
    let after_last = differs.enumerate().filter(|(_, (new, old))| new != old).last();
    let last = after_last.map_or(first, |(at, _)| first + 1 + at);
    first * BLOCK..new.len().min((last + 1) * BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_blocks_that_differ_are_written() {
        let old = vec![1; 4 * BLOCK + 10];
        assert!(differing(&old, &old).is_empty());
        assert_eq!(differing(&old, &[]), 0..old.len());
        assert_eq!(differing(&old, &old[..4 * BLOCK]), 4 * BLOCK..old.len());
        let mut new = old.clone();
        new[BLOCK] = 2;
        assert_eq!(differing(&new, &old), BLOCK..2 * BLOCK);
        new[3 * BLOCK - 1] = 2;
        assert_eq!(differing(&new, &old), BLOCK..3 * BLOCK);
        new[4 * BLOCK + 9] = 2;
        assert_eq!(differing(&new, &old), BLOCK..new.len());
    }
}
