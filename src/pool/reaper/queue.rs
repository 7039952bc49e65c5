//! The entries of a pool's trash that are to be removed, by the time at which they are due. Without I/O.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::pool::trash::TrashEntry;

/// A position in the queue: the due time in seconds since the boot, and a number that grows with each entry that is queued.
type Position = (i64, u64);

/// The queue, and the failures of its entries. An entry that was taken stays known until it is removed.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: BTreeMap<Position, Arc<str>>,
    /// Every entry with its last position, including the one that was taken.
    known: HashMap<Arc<str>, Position>,
    /// Those that have been due. Their position is the time of the next attempt.
    attempted: HashSet<Arc<str>>,
    /// Why entries could not be removed.
    failures: BTreeMap<Arc<str>, String>,
    taken: Option<Arc<str>>,
    last_number: u64,
}

impl Queue {
    /// Adds an entry that is not known yet, due at a time since the boot.
    pub(super) fn add(&mut self, directory: &str, due: i64) {
        if !self.known.contains_key(directory) {
            self.push(directory.into(), due);
        }
    }

    /// When an entry is due for the first time; `None` if it is not known, or has been due.
    pub(super) fn due_later(&self, directory: &str, now: i64) -> Option<i64> {
        let due = self.known.get(directory).map(|position| position.0);
        due.filter(|due| *due > now && !self.attempted.contains(directory))
    }

    fn push(&mut self, directory: Arc<str>, at: i64) {
        self.last_number += 1;
        let position = (at, self.last_number);
        if let Some(old) = self.known.insert(Arc::clone(&directory), position) {
            self.order.remove(&old);
        }
        self.order.insert(position, directory);
    }

    /// Takes the first entry that is due. The next call for it is one of [`Queue::removed`], [`Queue::put_back`] and
    /// [`Queue::failed`].
    pub(super) fn take_due(&mut self, now: i64) -> Option<Arc<str>> {
        let first = self.order.first_entry().filter(|first| first.key().0 <= now)?;
        let directory = first.remove();
        self.attempted.insert(Arc::clone(&directory));
        self.taken = Some(directory);
        self.taken.clone()
    }

    /// Forgets an entry that does not exist any more.
    pub(super) fn removed(&mut self, directory: &str) {
        self.taken.take_if(|taken| **taken == *directory);
        self.failures.remove(directory);
        self.attempted.remove(directory);
        if let Some(position) = self.known.remove(directory) {
            self.order.remove(&position);
        }
    }

    /// Puts an entry behind all others that are due at this time.
    pub(super) fn put_back(&mut self, directory: Arc<str>, at: i64) {
        self.taken = None;
        self.failures.remove(&directory);
        self.push(directory, at);
    }

    /// Notes a failure and tries the entry again at `retry_at`.
    pub(super) fn failed(&mut self, directory: Arc<str>, why: String, retry_at: i64) {
        self.taken = None;
        self.failures.insert(Arc::clone(&directory), why);
        self.push(directory, retry_at);
    }

    /// A mark for [`Queue::forget_unlisted`], taken before the trash is listed.
    pub(super) fn mark(&self) -> u64 {
        self.last_number
    }

    /// Forgets the entries that another process or an administrator has removed: those that were queued before the mark
    /// and are not in the listing.
    pub(super) fn forget_unlisted(&mut self, listing: &[TrashEntry], mark: u64) {
        let listed: HashSet<_> = listing.iter().map(|entry| entry.directory.as_str()).collect();
        let is_gone = |(directory, position): &(&Arc<str>, &Position)| {
            position.1 <= mark && !listed.contains(&***directory) && self.taken.as_ref() != Some(*directory)
        };
        let gone: Vec<_> =
            self.known.iter().filter(is_gone).map(|(directory, _)| Arc::clone(directory)).collect();
        for directory in gone {
            self.removed(&directory);
        }
    }

    /// When the first entry is due.
    pub(super) fn next_at(&self) -> Option<i64> {
        self.order.first_key_value().map(|(position, _)| position.0)
    }

    /// Number of entries, including the one that was taken.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// The failure of one of the entries that could not be removed.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failures.first_key_value().map(|(_, why)| why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::trash::Retention;

    fn entry(directory: &str) -> TrashEntry {
        TrashEntry { directory: directory.to_owned(), retention: Retention::Forever }
    }

    fn queue(entries: &[(&str, i64)]) -> Queue {
        let mut queue = Queue::default();
        entries.iter().for_each(|(directory, due)| queue.add(directory, *due));
        queue
    }

    #[test]
    fn entries_are_taken_when_due_and_a_continued_one_comes_last() {
        let mut queue = queue(&[("later", 9), ("b", 2), ("a", 1)]);
        assert_eq!(queue.next_at(), Some(1));
        assert_eq!(queue.take_due(0), None);
        let first = queue.take_due(5).unwrap();
        assert_eq!((&*first, queue.len()), ("a", 3), "the taken entry counts");
        queue.put_back(first, 5);
        for expected in ["b", "a"] {
            let next = queue.take_due(5).unwrap();
            queue.removed(&next);
            assert_eq!(&*next, expected);
        }
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn a_failure_is_reported_until_its_own_entry_is_gone() {
        let mut queue = queue(&[("a", 1), ("b", 1)]);
        assert_eq!(queue.due_later("a", 0), Some(1));
        let failing = queue.take_due(1).unwrap();
        queue.failed(failing, "mounted".to_owned(), 61);
        assert_eq!(
            queue.due_later("a", 1),
            None,
            "the time of the next attempt is not that of its retention"
        );
        let other = queue.take_due(1).unwrap();
        queue.removed(&other);
        assert_eq!(queue.failure(), Some("mounted"), "the removal of another entry does not clear it");
        assert_eq!((queue.take_due(60), queue.len()), (None, 1));
        queue.forget_unlisted(&[], queue.mark());
        assert_eq!((queue.failure(), queue.len()), (None, 0));
    }

    #[test]
    fn a_listing_adds_unknown_entries_and_forgets_missing_ones() {
        let mut queue = queue(&[("known", 1), ("gone", 1), ("taken", 0)]);
        let taken = queue.take_due(0).unwrap();
        let mark = queue.mark();
        queue.add("deleted meanwhile", 1);
        let listing = [entry("known"), entry("unknown")];
        queue.forget_unlisted(&listing, mark);
        listing.iter().for_each(|entry| queue.add(&entry.directory, 1));
        let mut known: Vec<_> = queue.known.keys().map(|directory| &**directory).collect();
        known.sort_unstable();
        assert_eq!(known, ["deleted meanwhile", "known", "taken", "unknown"]);
        queue.removed(&taken);
        assert_eq!(queue.order.len(), queue.known.len());
    }
}
