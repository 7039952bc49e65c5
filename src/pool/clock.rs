//! How much time has passed since an object was deleted, on hosts whose clock may be wrong.
//!
//! The clock of a host may start in 1970, because it has no battery, or jump when it is set. The time since the boot cannot.
//! So the age of an entry is read from the clock once, when this process first sees the entry, and from the time since the
//! boot from then on.

use rustix::time::{ClockId, clock_gettime};

use crate::volume::Timestamp;

/// 2025-01-01: no version of orlop has deleted anything before.
const EARLIEST: i64 = 1_735_689_600;
/// Seconds by which the clock may differ from the time that has passed, for example because it is adjusted slowly.
const TOLERANCE: i64 = 60;

/// The clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clocks {
    /// The time of the host, in seconds since 1970.
    pub(super) host: i64,
    /// Seconds since the boot, including those in which the host was suspended.
    pub(super) boot: i64,
}

impl Clocks {
    pub(super) fn now() -> Self {
        Self { host: Timestamp::now().as_second(), boot: boot_seconds() }
    }

    /// Whether the clock of the host has been set.
    pub(super) fn is_set(&self) -> bool {
        self.host >= EARLIEST
    }

    /// The time since the boot at which the host's clock showed `time`. A time that cannot be right counts as now.
    pub(super) fn boot_time_of(&self, time: i64) -> i64 {
        let passed = self.host.saturating_sub(time);
        if time < EARLIEST || passed < 0 { self.boot } else { self.boot.saturating_sub(passed) }
    }

    /// What the host's clock should have shown at a time since the boot, if it showed something else then.
    pub(super) fn corrected(&self, time: i64, boot_time: i64) -> Option<i64> {
        let right = self.host.saturating_sub(self.boot.saturating_sub(boot_time));
        (self.is_set() && right.abs_diff(time) > TOLERANCE.unsigned_abs()).then_some(right)
    }
}

/// Seconds since the boot.
pub(super) fn boot_seconds() -> i64 {
    clock_gettime(ClockId::Boottime).tv_sec
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A deletion at `deleted` on the host's clock, first seen by these clocks.
    fn first_seen(deleted: i64, host: i64) -> i64 {
        Clocks { host, boot: 1000 }.boot_time_of(deleted)
    }

    #[test]
    fn an_age_that_cannot_be_right_counts_from_the_first_sight() {
        let now = EARLIEST + 100_000;
        assert_eq!(first_seen(now - 700, now), 300);
        assert_eq!(first_seen(now - 7000, now), -6000, "deleted before the boot");
        assert_eq!(first_seen(5, now), 1000, "deleted by a clock in 1970");
        assert_eq!(first_seen(now + 315_000_000, now), 1000, "deleted by a clock ten years ahead");
        assert_eq!(first_seen(now, 5), 1000, "read by a clock in 1970");
    }

    #[test]
    fn a_time_that_contradicts_the_time_since_the_boot_is_corrected() {
        let now = Clocks { host: EARLIEST + 1000, boot: 500 };
        assert_eq!(now.corrected(EARLIEST + 900, 400), None);
        assert_eq!(now.corrected(EARLIEST + 870, 400), None, "within the tolerance");
        assert_eq!(now.corrected(5, 400), Some(EARLIEST + 900));
        assert_eq!(now.corrected(EARLIEST + 315_000_000, 500), Some(EARLIEST + 1000));
        assert_eq!(Clocks { host: 7, boot: 500 }.corrected(EARLIEST, 500), None, "the clock is not set");
    }
}
