//! Brings the data of an existing copy up to date: it is compared with the source, and only what differs is written.

use std::num::NonZero;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::thread;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::{Errno, pread, pwrite};

use super::contents::{BUFFER, Contents, STEP, data_range};
use crate::error::{Context as _, Error, Kind, Result};

/// Blocks at either end of a buffer that are equal are not written.
const BLOCK: usize = 4096;
/// The most threads that compare one file.
const MAX_THREADS: usize = 4;
/// The least bytes for which a thread is started.
const MIN_SECTION: u64 = 4 << 20;

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
    /// truncated. Writers may be paused meanwhile, so several threads share a long range.
    fn patch_range(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, range: Range<u64>) -> Result<u64> {
        let Range { mut start, end } = range;
        while start < end {
            self.progress.check()?;
            let sections = sections(start..end, self.patchers.len());
            let reached = patch_sections(&mut self.patchers, from, to, &sections)?;
            self.progress.bytes.fetch_add(reached.written, Ordering::Relaxed);
            self.handled += reached.offset - start;
            self.take(reached.offset - start)?;
            start = reached.offset;
            if reached.is_end {
                break;
            }
        }
        Ok(start)
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
            write_all(to, &self.buffer[..length], at)?;
            self.progress.bytes.fetch_add(length as u64, Ordering::Relaxed);
            at += length as u64;
        }
        Ok(())
    }
}

/// The buffers of one thread that compares.
#[derive(Debug)]
pub(super) struct Patcher {
    new: Vec<u8>,
    old: Vec<u8>,
}

/// What was reached in a range.
#[derive(Debug, Clone, Copy)]
struct Reached {
    offset: u64,
    written: u64,
    /// Whether the source ends here.
    is_end: bool,
}

impl Patcher {
    /// One for each thread.
    pub(super) fn for_all_threads() -> Vec<Self> {
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        (0..cpus.min(MAX_THREADS)).map(|_| Self { new: vec![0; BUFFER], old: vec![0; BUFFER] }).collect()
    }

    fn patch(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, section: Range<u64>) -> Result<Reached> {
        let (mut offset, mut written) = (section.start, 0);
        while offset < section.end {
            let length = usize::try_from(section.end - offset).map_or(BUFFER, |left| left.min(BUFFER));
            let read = pread(from, &mut self.new[..length], offset).context(|| "read")?;
            if read == 0 {
                return Ok(Reached { offset, written, is_end: true });
            }
            let known = pread(to, &mut self.old[..read], offset).context(|| "read the copy")?;
            let differs = differing(&self.new[..read], &self.old[..known]);
            write_all(to, &self.new[differs.clone()], offset + differs.start as u64)?;
            written += differs.len() as u64;
            offset += read as u64;
        }
        Ok(Reached { offset, written, is_end: false })
    }
}

/// The next sections of a range, at most one for each thread and of at most [`STEP`] bytes: a range that is not worth a
/// second thread is one section.
fn sections(range: Range<u64>, threads: usize) -> Vec<Range<u64>> {
    let length = (range.end - range.start).div_ceil(threads.max(1) as u64);
    let length = length.next_multiple_of(BUFFER as u64).clamp(MIN_SECTION, STEP as u64);
    let start_of = |number: u64| range.end.min(range.start + number * length);
    let sections = (0..threads.max(1) as u64).map(|number| start_of(number)..start_of(number + 1));
    sections.filter(|section| !section.is_empty()).collect()
}

/// Patches consecutive sections, each by a thread of its own.
fn patch_sections(
    patchers: &mut [Patcher],
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    sections: &[Range<u64>],
) -> Result<Reached> {
    let mut work = patchers.iter_mut().zip(sections);
    let Some((own, first)) = work.next() else {
        return Err(Error::new(Kind::Internal, "no thread compares the range"));
    };
    let results: Vec<_> = thread::scope(|scope| {
        let others: Vec<_> = work
            .map(|(patcher, section)| scope.spawn(move || patcher.patch(from, to, section.clone())))
            .collect();
        let first = own.patch(from, to, first.clone());
        let others = others.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a thread that compares panicked")))
        });
        [first].into_iter().chain(others).collect()
    });
    let mut all = Reached { offset: 0, written: 0, is_end: false };
    for result in results {
        let reached = result?;
        all.written += reached.written;
        if !all.is_end {
            (all.offset, all.is_end) = (reached.offset, reached.is_end);
        }
    }
    Ok(all)
}

fn write_all(to: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<()> {
    let mut at = 0;
    while at < data.len() {
        at += pwrite(to, &data[at..], offset + at as u64).context(|| "write")?;
    }
    Ok(())
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
    fn sections_cover_a_range_without_gaps() {
        const MIB: u64 = 1 << 20;
        assert_eq!(sections(5..9, 4).first(), Some(&(5..9)), "not worth a second thread");
        assert_eq!(sections(0..10 * MIB, 4), [0..4 * MIB, 4 * MIB..8 * MIB, 8 * MIB..10 * MIB]);
        assert_eq!(sections(MIB..MIB + 64 * MIB, 2), [MIB..33 * MIB, 33 * MIB..65 * MIB]);
        assert_eq!(
            sections(0..1 << 40, 2),
            [0..STEP as u64, STEP as u64..2 * STEP as u64],
            "the rest comes later"
        );
    }

    #[test]
    fn several_threads_make_a_copy_equal_to_a_longer_or_shorter_source() {
        use std::os::fd::AsFd as _;
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let new: Vec<u8> =
            (0..21_u32 << 20).map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
        let mut old = new.clone();
        for at in [0, 4 << 20, (8 << 20) - 1, 13 << 20] {
            old[at] ^= 1;
        }
        write_all(from.as_fd(), &new, 0).unwrap();
        write_all(to.as_fd(), &old[..20 << 20], 0).unwrap();
        let progress = crate::fs::copy::Progress::default();
        let mut contents = Contents::new(None, &progress);
        contents.patchers = (0..3).map(|_| Patcher { new: vec![0; BUFFER], old: vec![0; BUFFER] }).collect();
        let mut read = vec![0; new.len()];
        for end in [new.len() as u64, 40 << 20] {
            let reached = contents.patch_range(from.as_fd(), to.as_fd(), 0..end).unwrap();
            assert_eq!(reached, new.len() as u64, "the source ends there");
            assert_eq!(pread(&to, &mut read, 0).unwrap(), new.len());
            assert!(read == new);
        }
        // Four blocks that differ, and the MiB that the copy lacked.
        assert_eq!(progress.bytes.load(Ordering::Relaxed), 4 * BLOCK as u64 + (1 << 20));
    }

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
