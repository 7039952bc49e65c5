//! A pass over the source: what it may assume about the source, and what it has found.

use std::time::Duration;

use rustix::fs::Statx;

use super::Manifest;
use super::ages::ChangeAges;
use super::catalogue::{Record, Time, coarse_now, is_young, now, time};
use crate::error::{Error, Kind, Result};

/// What a pass of a copy had to do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pass {
    /// Number of regular files that were copied or compared.
    pub files: u64,
    /// Bytes that were copied or compared.
    pub bytes: u64,
    /// How long it took.
    pub duration: Duration,
    /// The part of its work, from 0 to 1, on files whose last change was less than `duration` ago when they were seen. At
    /// least about as much has changed again meanwhile, so another pass is not expected to take less than this part.
    pub recurring: f64,
}

impl Pass {
    /// Adds a pass of another copy that was made before or after.
    pub fn add(&mut self, other: Self) {
        let work = |pass: &Self| pass.recurring * pass.duration.as_secs_f64();
        let recurring = work(self) + work(&other);
        self.files += other.files;
        self.bytes += other.bytes;
        self.duration += other.duration;
        self.recurring = if self.duration.is_zero() { 0.0 } else { recurring / self.duration.as_secs_f64() };
    }
}

/// What is known about the writers of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    /// They are paused. A file is compared if it was last changed less than 30 s before it was copied: a write that had
    /// begun may have gone on.
    Paused,
    /// Nothing used the source when the copy was begun, and nothing is known to have used it since. The times alone tell what
    /// has changed, except for files that were changed later.
    Unused,
}

/// The pass that is running, or was the last one.
#[derive(Default)]
pub(super) struct CurrentPass {
    /// Counted from 1.
    pub(super) number: u32,
    /// `None` while the source is in use.
    pub(super) state: Option<SourceState>,
    began: Time,
    /// When the copy was begun, by the coarse clock of the times.
    copy_began: Time,
    pub(super) files: u64,
    pub(super) ages: ChangeAges,
    pub(super) manifest: Manifest,
}

impl CurrentPass {
    /// What comes before the first pass of a copy that begins now.
    pub(super) fn before_first() -> Self {
        Self { copy_began: coarse_now(), ..Self::default() }
    }

    pub(super) fn next(&self, state: Option<SourceState>) -> Result<Self> {
        let text = "the copy has had too many passes: start it again";
        let number = self.number.checked_add(1).ok_or_else(|| Error::new(Kind::Busy, text))?;
        Ok(Self { number, state, began: now(), copy_began: self.copy_began, ..Self::default() })
    }

    pub(super) fn is_first(&self) -> bool {
        self.number == 1
    }

    /// Whether a file or directory is as it was when it was last copied, as its times tell.
    pub(super) fn is_unchanged(&self, record: &Record, stat: &Statx) -> bool {
        // A later change may be the beginning of a write that went on while the file was copied.
        let may_be_young = self.state == Some(SourceState::Unused) && record.changed < self.copy_began;
        record.is_reliable && record.matches(stat) && (may_be_young || !record.is_young())
    }

    /// Whether the next pass compares a file that is seen now, whatever its times tell then. It does not if nothing uses the
    /// source and the file was changed before the copy was begun.
    pub(super) fn will_compare(&self, stat: &Statx, seen: Time) -> bool {
        let changed = time(stat.stx_ctime);
        is_young(changed, seen) && (!self.is_first() || changed >= self.copy_began)
    }

    /// Fails if nothing should write to the source, and an entry that was just seen was changed since the pass began. A change
    /// that seems to be in the future was made before the clock was set.
    pub(super) fn check_still(&self, stat: &Statx) -> Result<()> {
        let changed = time(stat.stx_ctime);
        // Not earlier: the time of a change may be that of a coarse clock, which is never ahead.
        if self.state.is_some() && changed > self.began && changed <= now() {
            let text = "the source changed although its writers were paused or absent: another process writes to it; \
                        stop that process and retry";
            return Err(Error::new(Kind::Busy, text));
        }
        Ok(())
    }
}

/// Whether each change of a file moves its times on a filesystem of this type, also one through a mapping. This is not so on
/// tmpfs.
#[must_use]
pub fn do_times_tell(filesystem: i64) -> bool {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    [EXT4, XFS, BTRFS].contains(&filesystem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_of_several_copies_are_added_by_their_time() {
        let pass = |seconds, recurring| Pass {
            files: 1,
            bytes: 2,
            duration: Duration::from_secs(seconds),
            recurring,
        };
        let mut all = Pass::default();
        all.add(pass(0, 1.0));
        assert!(all.recurring.abs() < 1e-9);
        all.add(pass(1, 1.0));
        all.add(pass(3, 0.0));
        assert_eq!((all.files, all.bytes, all.duration), (3, 6, Duration::from_secs(4)));
        assert!((all.recurring - 0.25).abs() < 1e-9, "{}", all.recurring);
    }
}
