//! The problems of an available pool, logged once when they begin and once when they end.

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::engine::request::PoolStatus;

/// The problems of a pool that were logged and have not ended.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// Whether the pool refuses new volumes.
    refuses: bool,
    /// Why an entry of the trash cannot be removed.
    trash: Option<String>,
    /// The objects whose record cannot be read, with the reason.
    unreadable: BTreeMap<String, String>,
}

/// A problem that has begun or ended.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Refuses(String),
    Accepts,
    TrashFails(String),
    TrashWorks,
    Unreadable(String, String),
    Readable(String),
}

impl Problems {
    /// Logs what has changed since the last status.
    pub(super) fn log_changes(&mut self, status: &PoolStatus) {
        let pool = status.name.as_str();
        for change in self.changes(status) {
            match change {
                Change::Refuses(cause) => warn!(pool, cause, "pool refuses new volumes"),
                Change::Accepts => info!(pool, "pool no longer refuses new volumes"),
                Change::TrashFails(cause) => warn!(pool, cause, "trash cannot be removed; retrying"),
                Change::TrashWorks => info!(pool, "trash is removed again"),
                Change::Unreadable(object, cause) => warn!(pool, object, cause, "record cannot be read"),
                Change::Readable(object) => info!(pool, object, "record can be read again, or is gone"),
            }
        }
    }

    fn changes(&mut self, status: &PoolStatus) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.refuses != status.refuses.is_some() {
            self.refuses = status.refuses.is_some();
            changes.push(status.refuses.clone().map_or(Change::Accepts, Change::Refuses));
        }
        if self.trash != status.trash_failure {
            self.trash.clone_from(&status.trash_failure);
            changes.push(self.trash.clone().map_or(Change::TrashWorks, Change::TrashFails));
        }
        for (object, cause) in &status.unreadable_objects {
            if self.unreadable.insert(object.clone(), cause.clone()).is_none() {
                changes.push(Change::Unreadable(object.clone(), cause.clone()));
            }
        }
        // With more of them than the status names, nothing is known about those that it does not name.
        if status.unreadable == status.unreadable_objects.len() as u64 {
            let is_over = |object: &String, _: &mut String| !status.unreadable_objects.contains_key(object);
            changes
                .extend(self.unreadable.extract_if(.., is_over).map(|(object, _)| Change::Readable(object)));
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::request::PoolSettings;

    fn status(trash_failure: Option<&str>, unreadable: u64, named: &[&str]) -> PoolStatus {
        PoolStatus {
            trash_failure: trash_failure.map(str::to_owned),
            unreadable,
            unreadable_objects: named.iter().map(|name| ((*name).to_owned(), "bad".to_owned())).collect(),
            ..PoolStatus::new(&PoolSettings::new("p".parse().unwrap(), "/p".into()))
        }
    }

    #[test]
    fn each_problem_is_logged_once_when_it_begins_and_once_when_it_ends() {
        let mut problems = Problems::default();
        assert_eq!(problems.changes(&status(None, 0, &[])), []);
        let refusing = PoolStatus { refuses: Some("read-only".to_owned()), ..status(None, 0, &[]) };
        assert_eq!(problems.changes(&refusing), [Change::Refuses("read-only".to_owned())]);
        assert_eq!(problems.changes(&refusing), []);
        assert_eq!(problems.changes(&status(None, 0, &[])), [Change::Accepts]);
        let bad = status(Some("mounted"), 2, &["snapshot p/s", "volume p/v"]);
        let unreadable = |object: &str| Change::Unreadable(object.to_owned(), "bad".to_owned());
        assert_eq!(
            problems.changes(&bad),
            [Change::TrashFails("mounted".to_owned()), unreadable("snapshot p/s"), unreadable("volume p/v")]
        );
        assert_eq!(problems.changes(&bad), []);
        assert_eq!(
            problems.changes(&status(None, 1, &["volume p/v"])),
            [Change::TrashWorks, Change::Readable("snapshot p/s".to_owned())]
        );
        assert_eq!(problems.changes(&status(None, 9, &["volume p/a"])), [unreadable("volume p/a")]);
        assert_eq!(problems.unreadable.len(), 2, "the status names only one of nine");
    }
}
