//! Brings the data of an existing copy up to date: it is compared with the source, and only what differs is written.

use std::num::NonZero;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::thread;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::{Errno, pread, pwrite};

use super::contents::{BUFFER, Contents, STEP, data_range};
use super::digests::{BLOCK, Digest, Digests, Slots};
use crate::error::{Context as _, Error, Kind, Result};

/// Pages at either end of a buffer that are equal are not written.
const PAGE: usize = 4096;
/// The most threads that compare one file.
const MAX_THREADS: usize = 4;
/// The least bytes for which a thread is started.
const MIN_SECTION: u64 = 4 << 20;

impl Contents<'_> {
    /// Makes the copy equal to its source up to this size. Returns the size of the copy, which is less if the source was
    /// truncated since.
    pub(super) fn patch(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        size: u64,
        slots: Slots,
    ) -> Result<u64> {
        let mut at = 0;
        while at < size {
            self.progress.check()?;
            let data = data_range(from, at..size)?.unwrap_or(size..size);
            self.clear(to, at..data.start, slots)?;
            at = self.patch_range(from, to, data.clone(), slots)?;
            if at < data.end {
                break;
            }
        }
        ftruncate(to, at).context(|| "set the size")?;
        Ok(at)
    }

    /// Compares and patches a range. Returns the offset that was reached, which is below the end if the source was
    /// truncated. Writers may be paused meanwhile, so several threads share a long range.
    fn patch_range(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        range: Range<u64>,
        slots: Slots,
    ) -> Result<u64> {
        let Range { mut start, end } = range;
        while start < end {
            self.progress.check()?;
            let sections = sections(start..self.bounded(start, end), self.patchers.len());
            let files = Files { from, to, digests: &self.digests, slots };
            let reached = patch_sections(&mut self.patchers, &files, &sections)?;
            self.progress.add(0, reached.written);
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
    fn clear(&mut self, to: BorrowedFd<'_>, range: Range<u64>, slots: Slots) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            self.progress.check()?;
            let Some(data) = data_range(to, at..range.end)? else { return Ok(()) };
            if data.is_empty() {
                return Ok(());
            }
            self.digests.forget(slots, &data)?;
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
            self.progress.add(0, length as u64);
            at += length as u64;
        }
        Ok(())
    }
}

/// A file and its copy.
struct Files<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    digests: &'a Digests,
    slots: Slots,
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
        (0..cpus.min(MAX_THREADS)).map(|_| Self::new()).collect()
    }

    fn new() -> Self {
        Self { new: vec![0; BLOCK], old: vec![0; BLOCK] }
    }

    /// Makes a section of the copy equal to the source.
    fn patch(&mut self, files: &Files<'_>, section: &Range<u64>) -> Result<Reached> {
        let mut digests = files.digests.read(files.slots, section)?;
        let known = digests.clone();
        let first = section.start / BLOCK as u64;
        let mut reached = Reached { offset: section.start, written: 0, is_end: false };
        while reached.offset < section.end && !reached.is_end {
            let block = usize::try_from(reached.offset / BLOCK as u64 - first).unwrap_or(usize::MAX);
            self.patch_block(files, section.end, digests.get_mut(block), &mut reached)?;
        }
        if digests != known {
            files.digests.write(files.slots, section, &digests)?;
        }
        Ok(reached)
    }

    /// Makes the copy equal to the source up to the end of a block. The digest is that of the beginning of the block.
    fn patch_block(
        &mut self,
        files: &Files<'_>,
        end: u64,
        digest: Option<&mut Digest>,
        reached: &mut Reached,
    ) -> Result<()> {
        let offset = reached.offset;
        let in_block = offset % BLOCK as u64;
        let length = usize::try_from((end - offset).min(BLOCK as u64 - in_block)).unwrap_or(BLOCK);
        let read = pread(files.from, &mut self.new[..length], offset).context(|| "read")?;
        let new = &self.new[..read];
        (reached.offset, reached.is_end) = (offset + read as u64, read == 0);
        if let Some(digest) = digest {
            let now = if in_block == 0 { files.digests.of(new) } else { 0 };
            if now != 0 && now == *digest {
                return Ok(());
            }
            *digest = now;
        }
        let known = pread(files.to, &mut self.old[..read], offset).context(|| "read the copy")?;
        let differs = differing(new, &self.old[..known]);
        write_all(files.to, &new[differs.clone()], offset + differs.start as u64)?;
        reached.written += differs.len() as u64;
        Ok(())
    }
}

/// The next sections of a range, at most one for each thread and of at most [`STEP`] bytes: a range that is not worth a
/// second thread is one section. No two have parts of the same block.
fn sections(range: Range<u64>, threads: usize) -> Vec<Range<u64>> {
    let aligned = range.start - range.start % BLOCK as u64;
    let length = (range.end - aligned).div_ceil(threads.max(1) as u64);
    let length = length.next_multiple_of(BLOCK as u64).clamp(MIN_SECTION, STEP as u64);
    let start_of = |number: u64| range.end.min(aligned + number * length).max(range.start);
    let sections = (0..threads.max(1) as u64).map(|number| start_of(number)..start_of(number + 1));
    sections.filter(|section| !section.is_empty()).collect()
}

/// Patches consecutive sections, each by a thread of its own as far as threads can be started.
fn patch_sections(patchers: &mut [Patcher], files: &Files<'_>, sections: &[Range<u64>]) -> Result<Reached> {
    let mut work = patchers.iter_mut().zip(sections);
    let Some((own, first)) = work.next() else {
        return Err(Error::new(Kind::Internal, "no thread compares the range"));
    };
    let results: Vec<_> = thread::scope(|scope| {
        let others: Vec<_> = work
            .map(|(patcher, section)| {
                let compare = move || patcher.patch(files, section);
                (section, thread::Builder::new().spawn_scoped(scope, compare).ok())
            })
            .collect();
        let first = own.patch(files, first);
        let others = others.into_iter().map(|(section, thread)| match thread {
            Some(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a thread that compares panicked"))),
            None => own.patch(files, section),
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

/// The range of the new data that has to be written, in whole pages: from the first to the last one that differs.
fn differing(new: &[u8], old: &[u8]) -> Range<usize> {
    let mut differs = new.chunks(PAGE).zip(old.chunks(PAGE).chain(std::iter::repeat(&[][..])));
    let Some(first) = differs.position(|(new, old)| new != old) else { return 0..0 };
    let after_last = differs.enumerate().filter(|(_, (new, old))| new != old).last();
    let last = after_last.map_or(first, |(at, _)| first + 1 + at);
    first * PAGE..new.len().min((last + 1) * PAGE)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::fs::copy::Progress;

    #[test]
    fn sections_cover_a_range_without_gaps() {
        const MIB: u64 = 1 << 20;
        assert_eq!(sections(5..9, 4).first(), Some(&(5..9)), "not worth a second thread");
        assert_eq!(sections(0..10 * MIB, 4), [0..4 * MIB, 4 * MIB..8 * MIB, 8 * MIB..10 * MIB]);
        assert_eq!(sections(MIB..MIB + 64 * MIB, 2), [MIB..33 * MIB, 33 * MIB..65 * MIB]);
        assert_eq!(sections(5..16 * MIB, 2), [5..8 * MIB, 8 * MIB..16 * MIB], "no block is divided");
        assert_eq!(
            sections(0..1 << 40, 2),
            [0..STEP as u64, STEP as u64..2 * STEP as u64],
            "the rest comes later"
        );
    }

    /// A source, a copy, and what makes one equal to the other by several threads.
    struct Pair<'a> {
        from: std::fs::File,
        to: std::fs::File,
        contents: Contents<'a>,
    }

    impl<'a> Pair<'a> {
        fn new(progress: &'a Progress, max_bytes: Option<u64>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let digests = Digests::new(std::fs::File::open(dir.path()).unwrap().as_fd()).unwrap();
            let mut contents = Contents::new(digests, max_bytes, progress);
            contents.patchers = (0..3).map(|_| Patcher::new()).collect();
            Self { from: tempfile::tempfile().unwrap(), to: tempfile::tempfile().unwrap(), contents }
        }

        fn patch(&mut self, size: u64, slots: Slots) -> Result<u64> {
            self.contents.patch(self.from.as_fd(), self.to.as_fd(), size, slots)
        }

        fn assert_equal(&self) {
            let read = |file: &std::fs::File| {
                let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
                assert_eq!(pread(file, &mut bytes, 0).unwrap(), bytes.len());
                bytes
            };
            assert!(read(&self.from) == read(&self.to));
        }
    }

    fn random(bytes: u32) -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect()
    }

    #[test]
    fn several_threads_make_a_copy_equal_to_a_longer_or_shorter_source() {
        let progress = Progress::default();
        let mut pair = Pair::new(&progress, None);
        let new = random(21 << 20);
        let mut old = new.clone();
        for at in [0, 4 << 20, (8 << 20) - 1, 13 << 20] {
            old[at] ^= 1;
        }
        write_all(pair.from.as_fd(), &new, 0).unwrap();
        write_all(pair.to.as_fd(), &old[..20 << 20], 0).unwrap();
        for end in [new.len() as u64, 40 << 20] {
            let reached =
                pair.contents.patch_range(pair.from.as_fd(), pair.to.as_fd(), 0..end, None).unwrap();
            assert_eq!(reached, new.len() as u64, "the source ends there");
            pair.assert_equal();
        }
        // Four pages that differ, and the MiB that the copy lacked.
        assert_eq!(progress.bytes(), 4 * PAGE as u64 + (1 << 20));
    }

    #[test]
    fn a_block_whose_digest_is_known_is_not_compared() {
        let progress = Progress::default();
        let mut pair = Pair::new(&progress, None);
        let (size, mut new) = (12 << 20, random(12 << 20));
        write_all(pair.from.as_fd(), &new, 0).unwrap();
        let slots = pair.contents.digests.slots(size, None);
        pair.patch(size, slots).unwrap();
        // Nothing but a pass writes to a copy. So this change shows what is compared.
        write_all(pair.to.as_fd(), b"not seen", 5 << 20).unwrap();
        new[9 << 20] ^= 1;
        write_all(pair.from.as_fd(), &new[9 << 20..=9 << 20], 9 << 20).unwrap();
        let written = progress.bytes();
        pair.patch(size, slots).unwrap();
        assert_eq!(progress.bytes() - written, PAGE as u64);
        let mut read = [0; 8];
        pread(&pair.to, &mut read, 5 << 20).unwrap();
        assert_eq!(&read, b"not seen");
        pair.patch(size, None).unwrap();
        pair.assert_equal();
    }

    #[test]
    fn a_copied_block_is_not_compared_either() {
        let progress = Progress::default();
        let mut pair = Pair::new(&progress, None);
        let size = 12 << 20;
        write_all(pair.from.as_fd(), &random(size), 0).unwrap();
        let slots = pair.contents.digests.slots(u64::from(size), None);
        let (from, to) = (pair.from.as_fd(), pair.to.as_fd());
        let stat = crate::fs::fstat(from).unwrap();
        let copied = pair.contents.copy(from, to, &stat, slots).unwrap();
        assert_eq!(copied.0, u64::from(size));
        if copied.1.is_none() {
            return; // The filesystem of temporary files shares blocks, so nothing is ever compared.
        }
        pair.assert_equal();
        write_all(pair.to.as_fd(), b"not seen", 5 << 20).unwrap();
        let written = progress.bytes();
        pair.patch(u64::from(size), slots).unwrap();
        assert_eq!(progress.bytes(), written);
    }

    #[test]
    fn a_hole_that_is_filled_again_is_compared() {
        let progress = Progress::default();
        let mut pair = Pair::new(&progress, None);
        let (size, data) = (4 << 20, random(4 << 20));
        let slots = pair.contents.digests.slots(size, None);
        for hole in [0..BLOCK, 2 * BLOCK + PAGE..5 * BLOCK + 3 * PAGE, 7 * BLOCK..7 * BLOCK + PAGE] {
            write_all(pair.from.as_fd(), &data, 0).unwrap();
            pair.patch(size, slots).unwrap();
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&pair.from, punch, hole.start as u64, hole.len() as u64).unwrap();
            pair.patch(size, slots).unwrap();
            pair.assert_equal();
            // A page of the hole has data again, so there is data with another beginning.
            let at = hole.end - PAGE;
            write_all(pair.from.as_fd(), &data[at..hole.end], at as u64).unwrap();
            pair.patch(size, slots).unwrap();
            pair.assert_equal();
        }
        write_all(pair.from.as_fd(), &data, 0).unwrap();
        pair.patch(size, slots).unwrap();
        pair.assert_equal();
    }

    #[test]
    fn a_copy_exceeds_its_bound_by_one_byte_at_most() {
        let progress = Progress::default();
        let mut pair = Pair::new(&progress, Some(5 << 20));
        write_all(pair.from.as_fd(), &random(32 << 20), 0).unwrap();
        pair.contents.begin_pass();
        let error = pair.patch(32 << 20, None).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfRange);
        assert_eq!(pair.to.metadata().unwrap().len(), (5 << 20) + 1);
    }

    #[test]
    fn only_the_pages_that_differ_are_written() {
        let old = vec![1; 4 * PAGE + 10];
        assert!(differing(&old, &old).is_empty());
        assert_eq!(differing(&old, &[]), 0..old.len());
        assert_eq!(differing(&old, &old[..4 * PAGE]), 4 * PAGE..old.len());
        let mut new = old.clone();
        new[PAGE] = 2;
        assert_eq!(differing(&new, &old), PAGE..2 * PAGE);
        new[3 * PAGE - 1] = 2;
        assert_eq!(differing(&new, &old), PAGE..3 * PAGE);
        new[4 * PAGE + 9] = 2;
        assert_eq!(differing(&new, &old), PAGE..new.len());
    }
}
