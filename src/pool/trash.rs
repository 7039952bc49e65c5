//! The trash: deleted objects, kept for the retention in their policy.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::path::Arg;

use super::dirs::{explain_rename, for_each_name, nonce, rename_new};
use super::durable_dir::DurableDir;
use crate::error::{Context as _, Result};
use crate::volume::{OnDelete, Policy, Timestamp};

/// How long the trash keeps an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retention {
    /// Until this time, in seconds since 1970.
    Until(i64),
    /// Until an administrator removes it.
    Forever,
}

impl Retention {
    /// The retention that a policy asks for, from now on.
    #[must_use]
    pub fn of(policy: Policy) -> Self {
        let now = Timestamp::now().as_second();
        match policy.on_delete {
            OnDelete::Delete => Self::Until(now),
            OnDelete::Trash => {
                let seconds = i64::try_from(policy.trash_for.as_secs()).unwrap_or(i64::MAX);
                Self::Until(now.saturating_add(seconds))
            }
            OnDelete::Retain => Self::Forever,
        }
    }
}

/// A directory that is to be removed: in `trash/`, named `<name>.<seconds since 1970, or "keep">.<nonce>`, or elsewhere in the
/// pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrashEntry {
    /// The directory's name in `trash/`; elsewhere its path in the pool, which contains a slash.
    pub directory: String,
    /// How long it is kept.
    pub retention: Retention,
}

impl TrashEntry {
    /// A new name for an object.
    pub(super) fn new(name: &str, retention: Retention) -> Result<Self> {
        let until = match retention {
            Retention::Until(seconds) => seconds.to_string(),
            Retention::Forever => "keep".to_owned(),
        };
        Ok(Self { directory: format!("{name}.{until}.{}", nonce()?), retention })
    }

    /// A directory that is removed where it is, at once.
    pub(super) fn in_place(place: &str, name: &str) -> Self {
        Self { directory: format!("{place}/{name}"), retention: Retention::Until(0) }
    }
}

/// The directory `trash/` of a pool.
#[derive(Debug)]
pub struct Trash {
    dir: DurableDir,
    /// Abandoned drafts awaiting removal.
    abandoned: Mutex<Vec<TrashEntry>>,
}

impl Trash {
    pub(super) fn new(dir: OwnedFd) -> Self {
        Self { dir: DurableDir::new(dir), abandoned: Mutex::default() }
    }

    /// The open directory.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Moves the directory `entry` of `from` into the trash. `name` becomes a part of its name there.
    pub(super) fn add(
        &self,
        from: BorrowedFd<'_>,
        entry: impl Arg + Copy,
        name: &str,
        retention: Retention,
    ) -> Result<TrashEntry> {
        let new = TrashEntry::new(name, retention)?;
        explain_rename(self.add_as(from, entry, &new)).context(|| format!("move {name} into trash/"))?;
        Ok(new)
    }

    /// Moves the directory `entry` of `from` into the trash.
    pub(super) fn add_as(
        &self,
        from: BorrowedFd<'_>,
        entry: impl Arg + Copy,
        new: &TrashEntry,
    ) -> rustix::io::Result<()> {
        rename_new(from, entry, self.dir(), &new.directory)
    }

    /// Adds an unfinished object to those that [`Trash::take_abandoned`] returns.
    pub(super) fn add_abandoned(&self, entry: TrashEntry) {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    /// Entries of unfinished objects since the last call, to be removed at once.
    #[must_use]
    pub fn take_abandoned(&self) -> Vec<TrashEntry> {
        std::mem::take(&mut *self.abandoned.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.dir.sync().context(|| "sync trash/")
    }

    /// All entries. An entry that orlop did not name is kept forever.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn entries(&self) -> Result<Vec<TrashEntry>> {
        let mut all = Vec::new();
        for_each_name(self.dir.as_fd(), |name| {
            all.push(TrashEntry { directory: name.to_owned(), retention: retention_of(name) });
        })
        .context(|| "list trash/")?;
        Ok(all)
    }
}

/// The retention in the name of a trash entry. An administrator's own `backup.2024.tar` must not be removed.
fn retention_of(directory: &str) -> Retention {
    let mut parts = directory.rsplitn(3, '.');
    let (nonce, until, name) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let is_nonce = nonce.len() == 16 && nonce.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let until = until.filter(|_| is_nonce && name.is_some_and(|name| !name.is_empty()));
    until.and_then(|seconds| seconds.parse().ok()).map_or(Retention::Forever, Retention::Until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_trash_entry_holds_its_retention() {
        let nonce = "0123456789abcdef";
        assert_eq!(retention_of(&format!("pvc.1.2.1700000000.{nonce}")), Retention::Until(1_700_000_000));
        assert_eq!(retention_of(&format!("a.keep.{nonce}")), Retention::Forever);
    }

    #[test]
    fn an_entry_that_orlop_did_not_name_is_kept_forever() {
        let nonce = "0123456789abcdef";
        for foreign in ["a directory", "backup.2024.tar", &format!(".1.{nonce}"), &format!("1.{nonce}")] {
            assert_eq!(retention_of(foreign), Retention::Forever, "{foreign}");
        }
    }
}
