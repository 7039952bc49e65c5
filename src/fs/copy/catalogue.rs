//! What a copy saw of its source, for the passes that bring it up to date. It is kept in a file, so that memory does not grow
//! with the tree.
//!
//! The file is sparse and has a record of fixed size for each inode of the *copy*, at the inode's number: a record is found
//! by one read, and all names of a file share it. The file has no name, so it is never part of anything.

use std::num::NonZero;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxTimestamp, openat};
use rustix::io::{Errno, pread, pwrite};
use rustix::time::{ClockId, clock_gettime};

use super::digests::Slots;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::names::remove_name;

const NAME: &str = "seen";
/// Inodes with a larger number have no record: the file could not be that long.
const MAX_INODE: u64 = 1 << 40;
/// Times are set when a write begins, and by a coarse clock. A file that was changed for less time before it was looked at
/// may be changed by the same write afterwards. In seconds.
const LONGEST_WRITE: i64 = 30;

/// Seconds since 1970, and nanoseconds.
pub(in crate::fs) type Time = (i64, u32);

pub(in crate::fs) fn time(at: StatxTimestamp) -> Time {
    (at.tv_sec, at.tv_nsec)
}

/// The time. A filesystem never sets a later one.
pub(super) fn now() -> Time {
    read_clock(ClockId::Realtime)
}

/// The time of the coarse clock. A filesystem never sets an earlier one.
pub(in crate::fs) fn coarse_now() -> Time {
    read_clock(ClockId::RealtimeCoarse)
}

fn read_clock(clock: ClockId) -> Time {
    let now = clock_gettime(clock);
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A file or directory of the source when it was last copied or compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
    pub(super) birth: Time,
    pub(super) size: u64,
    pub(super) modified: Time,
    pub(super) changed: Time,
    /// When this was seen, before the file was read.
    pub(super) seen: Time,
    /// The number of the pass that was the last to find it.
    pub(super) pass: u32,
    /// Whether a change since then moves the times.
    pub(super) is_reliable: bool,
    /// Whether this pass has found a change of the directory.
    pub(super) is_stale: bool,
    /// Number of attributes that the copy lacks.
    pub(super) skipped_xattrs: u32,
    /// Where the digests of the copy are.
    pub(super) slots: Slots,
}

impl Record {
    pub(super) fn new(stat: &Statx, seen: Time, pass: u32) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            birth: time(stat.stx_btime),
            size: stat.stx_size,
            modified: time(stat.stx_mtime),
            changed: time(stat.stx_ctime),
            seen,
            pass,
            is_reliable: true,
            is_stale: false,
            skipped_xattrs: 0,
            slots: None,
        }
    }

    /// Whether this is the same file or directory, changed or not. A file that was made again under an old inode number has
    /// another birth time.
    pub(super) fn is_of(&self, stat: &Statx) -> bool {
        let identity = (self.device, self.inode, self.birth);
        identity == ((stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino, time(stat.stx_btime))
    }

    /// Whether the file is the same and has the same size and times.
    pub(super) fn matches(&self, stat: &Statx) -> bool {
        let times = (self.size, self.modified, self.changed);
        self.is_of(stat) && times == (stat.stx_size, time(stat.stx_mtime), time(stat.stx_ctime))
    }

    /// Whether its last change was young when the file was seen.
    pub(super) fn is_young(&self) -> bool {
        is_young(self.changed, self.seen)
    }
}

/// Whether a file was changed so shortly before it was seen that the same write may have gone on. The change may also be in the
/// future, by a clock that was set back.
pub(super) fn is_young((seconds, nanoseconds): Time, seen: Time) -> bool {
    (seconds.saturating_add(LONGEST_WRITE), nanoseconds) > seen
}

const SIZE: usize = 96;

impl Record {
    fn to_bytes(self) -> [u8; SIZE] {
        let mut words = [0_u64; SIZE / 8];
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        words[0] = pair(self.device.0, self.device.1);
        words[1] = self.inode;
        words[2] = self.size;
        for (word, at) in [(3, self.birth), (4, self.modified), (5, self.changed), (6, self.seen)] {
            words[word] = at.0.cast_unsigned();
        }
        words[7] = pair(self.birth.1, self.modified.1);
        words[8] = pair(self.changed.1, self.seen.1);
        words[9] = pair(self.pass, self.skipped_xattrs);
        words[10] = u64::from(self.is_reliable) | u64::from(self.is_stale) << 1;
        words[11] = self.slots.map_or(0, NonZero::get);
        let mut bytes = [0; SIZE];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// `None` where nothing was written: passes are counted from 1.
    fn from_bytes(bytes: &[u8; SIZE]) -> Option<Self> {
        let word = |at: usize| {
            let (words, _) = bytes.as_chunks::<8>();
            u64::from_ne_bytes(words[at])
        };
        let [high, low] = [|word: u64| low_half(word >> 32), low_half];
        let time = |seconds: usize, nanoseconds| (word(seconds).cast_signed(), nanoseconds);
        let record = Self {
            device: (high(word(0)), low(word(0))),
            inode: word(1),
            size: word(2),
            birth: time(3, high(word(7))),
            modified: time(4, low(word(7))),
            changed: time(5, high(word(8))),
            seen: time(6, low(word(8))),
            pass: high(word(9)),
            skipped_xattrs: low(word(9)),
            is_reliable: word(10) & 1 != 0,
            is_stale: word(10) & 2 != 0,
            slots: NonZero::new(word(11)),
        };
        (record.pass > 0).then_some(record)
    }
}

fn low_half(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).expect("the upper half is zero")
}

/// Creates a file that loses its name at once.
pub(super) fn create_unnamed(dir: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    remove_name(dir, name, AtFlags::empty()).map(|()| file)
}

/// The file of all records. Without one, nothing is remembered, and only a first pass is possible.
pub(super) struct Catalogue(Option<OwnedFd>);

impl Catalogue {
    /// Makes the file in a directory, without a name.
    pub(super) fn new(dir: BorrowedFd<'_>) -> Result<Self> {
        create_unnamed(dir, NAME).context(|| "create the catalogue of the copy").map(|file| Self(Some(file)))
    }

    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// The record of an inode of the copy.
    pub(super) fn get(&self, inode: u64) -> Result<Option<Record>> {
        let Some(file) = self.0.as_ref().filter(|_| inode < MAX_INODE) else { return Ok(None) };
        let mut bytes = [0; SIZE];
        let read =
            pread(file, &mut bytes, inode * SIZE as u64).context(|| "read the catalogue of the copy")?;
        Ok(if read == SIZE { Record::from_bytes(&bytes) } else { None })
    }

    /// Replaces the record of an inode. Where the file cannot be long enough, the inode has none.
    pub(super) fn put(&self, inode: u64, record: &Record) -> Result<()> {
        let Some(file) = self.0.as_ref().filter(|_| inode < MAX_INODE) else { return Ok(()) };
        match pwrite(file, &record.to_bytes(), inode * SIZE as u64) {
            Ok(SIZE) | Err(Errno::FBIG) => Ok(()),
            Ok(_) => Err(Error::new(Kind::NoSpace, "the catalogue of the copy cannot grow")),
            Err(error) => Err(error).context(|| "write the catalogue of the copy"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn record() -> Record {
        Record {
            device: (1, u32::MAX),
            inode: u64::MAX,
            birth: (-5, 999_999_999),
            size: 3,
            modified: (i64::MAX, 1),
            changed: (i64::MIN, 2),
            seen: (1_700_000_000, 4),
            pass: 7,
            is_reliable: true,
            is_stale: true,
            skipped_xattrs: 9,
            slots: NonZero::new(1 << 40),
        }
    }

    #[test]
    fn a_record_is_found_by_the_inode_of_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(std::fs::File::open(dir.path()).unwrap().as_fd()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the catalogue has no name");
        let other = Record { is_reliable: false, is_stale: false, slots: None, pass: 1, ..record() };
        catalogue.put(12, &record()).unwrap();
        catalogue.put(1 << 32, &other).unwrap();
        assert_eq!(catalogue.get(12).unwrap(), Some(record()));
        assert_eq!(catalogue.get(1 << 32).unwrap(), Some(other));
        for unknown in [0, 11, 13, (1 << 32) + 1, MAX_INODE, u64::MAX] {
            assert_eq!(catalogue.get(unknown).unwrap(), None);
        }
        catalogue.put(u64::MAX, &record()).unwrap();
        assert_eq!(catalogue.get(u64::MAX).unwrap(), None);
    }

    #[test]
    fn a_change_is_young_for_thirty_seconds_and_if_it_is_in_the_future() {
        let changed = |changed| Record { changed, seen: (1000, 500), ..record() }.is_young();
        assert!(changed((1000, 500)) && changed((971, 0)) && changed((970, 501)));
        assert!(changed((2000, 0)) && changed((i64::MAX, 0)));
        assert!(!changed((970, 500)) && !changed((0, 0)) && !changed((i64::MIN, 0)));
    }
}
