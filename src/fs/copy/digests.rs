//! Digests of the blocks of large files of a copy. A block of the source with the digest that the copy has there is the same,
//! so a pass over a file that has changed a little does not read the copy, too.
//!
//! They are in a file of the draft, so that memory does not grow with the tree, one slot after the other for each file. The
//! record of the file in the catalogue tells where they begin. A slot of zeros is of a block whose digest is not known. The
//! hash has 128 bits and a random seed, which a tenant does not know.

use std::num::NonZero;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, pread, pwrite};
use rustix::rand::{GetRandomFlags, getrandom};
use twox_hash::XxHash3_128;

use super::catalogue::{Record, create_unnamed};
use crate::error::{Context as _, Error, Kind, Result};

/// Bytes of a block: little, so that a change of a database page spoils little.
pub(super) const BLOCK: usize = 64 << 10;
/// A smaller file is read as quickly as its digests.
const MIN_FILE: u64 = 1 << 20;
const SIZE: usize = size_of::<Digest>();
const NAME: &str = "digests";
/// Slots that are cleared by one call.
const CLEARED: u64 = 4096;

/// The digest of the first bytes of a block; 0 if it is not known.
pub(super) type Digest = u128;
/// Where the digests of a file begin; `None` if it has none.
pub(super) type Slots = Option<NonZero<u64>>;

/// The file of all digests.
pub(super) struct Digests {
    file: Option<OwnedFd>,
    seed: u64,
    /// Where the next file's digests begin.
    end: u64,
}

impl Digests {
    /// Makes the file in a directory, without a name.
    pub(super) fn new(dir: BorrowedFd<'_>) -> Result<Self> {
        let file = create_unnamed(dir, NAME).context(|| "create the digests of the copy")?;
        let mut seed = [0; 8];
        getrandom(&mut seed, GetRandomFlags::empty()).context(|| "get random bytes")?;
        Ok(Self { file: Some(file), seed: u64::from_ne_bytes(seed), end: SIZE as u64 })
    }

    /// Knows no digest.
    pub(super) fn none() -> Self {
        Self { file: None, seed: 0, end: 0 }
    }

    /// The slots of a file of this size: those of its record if there are as many, or new ones.
    pub(super) fn slots(&mut self, size: u64, record: Option<&Record>) -> Slots {
        if self.file.is_none() || size < MIN_FILE {
            return None;
        }
        let blocks = size.div_ceil(BLOCK as u64);
        // A file that has shrunk may have lost data of its last block, whose digest is that of what was there.
        let known =
            record.filter(|record| record.size <= size && record.size.div_ceil(BLOCK as u64) == blocks);
        known.and_then(|record| record.slots).or_else(|| {
            let start = self.end;
            self.end = start.saturating_add(blocks * SIZE as u64);
            NonZero::new(start)
        })
    }

    /// The digest of the first bytes of a block.
    pub(super) fn of(&self, data: &[u8]) -> Digest {
        XxHash3_128::oneshot_with_seed(self.seed, data)
    }

    /// The known digests of the blocks that contain this range of the file.
    pub(super) fn read(&self, slots: Slots, range: &Range<u64>) -> Result<Vec<Digest>> {
        let Some((file, at)) = self.place(slots, range) else { return Ok(Vec::new()) };
        let count = blocks(range).count();
        let mut bytes = vec![0; count * SIZE];
        // What was never written is beyond the end of the file.
        match pread(file, &mut bytes[..], at) {
            Ok(_) | Err(Errno::INVAL | Errno::OVERFLOW) => {}
            Err(error) => return Err(error).context(|| "read the digests of the copy"),
        }
        let (digests, _) = bytes.as_chunks();
        Ok(digests.iter().copied().map(Digest::from_ne_bytes).collect())
    }

    /// Replaces the digests of the blocks that contain this range. Where the file cannot be long enough, none is known.
    pub(super) fn write(&self, slots: Slots, range: &Range<u64>, digests: &[Digest]) -> Result<()> {
        let Some((file, mut at)) = self.place(slots, range) else { return Ok(()) };
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.to_ne_bytes()).collect();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match pwrite(file, rest, at) {
                Ok(0) => return Err(Error::new(Kind::NoSpace, "the digests of the copy cannot grow")),
                Ok(written) => (rest, at) = (&rest[written..], at + written as u64),
                Err(Errno::FBIG | Errno::INVAL | Errno::OVERFLOW) => return Ok(()),
                Err(error) => return Err(error).context(|| "write the digests of the copy"),
            }
        }
        Ok(())
    }

    /// Forgets the digests of the blocks that contain this range.
    pub(super) fn forget(&self, slots: Slots, range: &Range<u64>) -> Result<()> {
        let mut at = range.start;
        while slots.is_some() && at < range.end {
            let part = at..range.end.min((at / BLOCK as u64 + CLEARED) * BLOCK as u64);
            self.write(slots, &part, &vec![0; blocks(&part).count()])?;
            at = part.end;
        }
        Ok(())
    }

    /// The file, and where the digests of a range begin in it.
    fn place(&self, slots: Slots, range: &Range<u64>) -> Option<(&OwnedFd, u64)> {
        let at = slots?.get().saturating_add(blocks(range).start * SIZE as u64);
        Some((self.file.as_ref()?, at))
    }
}

/// The numbers of the blocks that contain a range.
fn blocks(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK as u64..range.end.div_ceil(BLOCK as u64)
}
