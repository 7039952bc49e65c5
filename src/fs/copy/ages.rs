//! How recently the files that a pass copied had been changed. That tells how many of them the next pass will find changed
//! again.

use std::time::Duration;

use super::catalogue::Time;

/// Ages are counted in classes: class `n` has those below `2^n` ms that the classes before do not have.
const CLASSES: usize = 20;
/// What a file costs besides its bytes, in bytes.
const PER_FILE: u64 = 16 << 10;

/// The work of a pass by the age of the last change of each file, when it was seen.
#[derive(Debug, Default)]
pub(super) struct ChangeAges {
    /// In bytes; what is older is only part of the total.
    classes: [u64; CLASSES],
    total: u64,
}

impl ChangeAges {
    /// Counts a file of this size that the pass has copied.
    pub(super) fn add(&mut self, changed: Time, seen: Time, size: u64) {
        let work = size.saturating_add(PER_FILE);
        self.total = self.total.saturating_add(work);
        let age = milliseconds(seen).saturating_sub(milliseconds(changed));
        // A change in the future has no known age.
        let Ok(age) = u64::try_from(age) else { return };
        let class = usize::try_from(u64::BITS - age.leading_zeros()).unwrap_or(CLASSES);
        if let Some(class) = self.classes.get_mut(class) {
            *class = class.saturating_add(work);
        }
    }

    /// The part of the work, from 0 to 1, on files that had been changed less than this time before. The time is rounded down to
    /// a power of two, in milliseconds.
    pub(super) fn changed_within(&self, time: Duration) -> f64 {
        let whole = time.as_millis().max(1).ilog2() as usize;
        let recent: u64 = self.classes.iter().take(whole + 1).sum();
        #[expect(clippy::cast_precision_loss, reason = "it is an estimate")]
        let part = recent as f64 / self.total.max(1) as f64;
        part
    }
}

fn milliseconds((seconds, nanoseconds): Time) -> i64 {
    seconds.saturating_mul(1000).saturating_add(i64::from(nanoseconds / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Time = (100, 500_000_000);

    fn ages(ages: &[u32]) -> ChangeAges {
        let mut all = ChangeAges::default();
        for age in ages {
            let changed = 100_500 - i64::from(*age);
            all.add((changed / 1000, u32::try_from(changed % 1000).unwrap() * 1_000_000), SEEN, 1 << 20);
        }
        all
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn the_part_that_was_changed_recently_is_known() {
        let ages = ages(&[0, 3, 100, 127, 128, 5000, 90_000, 100_000]);
        let within = |time| ages.changed_within(Duration::from_millis(time));
        assert!(close(within(128), 0.5) && close(within(255), 0.5), "{}", within(128));
        assert!(close(within(256), 5.0 / 8.0));
        assert!(close(within(1), 1.0 / 8.0) && close(within(0), 1.0 / 8.0));
        assert!(close(within(1_000_000), 1.0));
    }

    #[test]
    fn nothing_and_changes_in_the_future_are_not_recent() {
        assert!(close(ChangeAges::default().changed_within(Duration::from_secs(1)), 0.0));
        let mut ages = ages(&[1]);
        ages.add((200, 0), SEEN, 1 << 20);
        ages.add((i64::MIN, 0), SEEN, u64::MAX);
        assert!(ages.changed_within(Duration::from_secs(1)) < 0.5);
    }
}
