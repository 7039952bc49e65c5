//! The trash: deleted objects, kept for as long as their policy says.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::PoisonError;

use rustix::fs::{self, RenameFlags};
use rustix::path::Arg;

use super::store::{ObjectKind, Store, for_each_entry, for_each_name, nonce};
use crate::error::{Context as _, Result};
use crate::volume::Name;

/// How long the trash keeps an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retention {
    /// Until this time, in seconds since 1970.
    Until(i64),
    /// Until an administrator removes it.
    Forever,
}

/// A directory in `trash/`, named `<name>.<seconds since 1970, or "keep">.<nonce>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrashEntry {
    /// The directory's name.
    pub directory: String,
    /// How long it is kept.
    pub retention: Retention,
}

impl Store {
    /// The directory `trash/`.
    #[must_use]
    pub fn trash(&self) -> BorrowedFd<'_> {
        self.trash.as_fd()
    }

    /// Moves an object into the trash. When this returns, the object does not exist, also after a power failure.
    ///
    /// # Errors
    /// The failed call; the object still exists then.
    pub fn discard(&self, kind: ObjectKind, name: &Name, retention: Retention) -> Result<TrashEntry> {
        let from = self.directory(kind);
        let entry = self.move_to_trash(from, name.as_str(), name.as_str(), retention)?;
        // The new parent first: a power failure between the two syncs must not lose data that is to be kept.
        let synced = fs::fsync(&self.trash)
            .context(|| "sync trash/")
            .and_then(|()| fs::fsync(from).context(|| format!("sync {}", kind.directory())));
        // The rename may be lost with a power failure, and the caller is told that it failed: undo it.
        synced.inspect_err(|_| {
            let flags = RenameFlags::NOREPLACE;
            let _ = fs::renameat_with(&self.trash, &entry.directory, from, name.as_str(), flags);
        })?;
        Ok(entry)
    }

    /// Moves an unfinished object into the trash; [`Store::take_abandoned`] returns it.
    pub(super) fn trash_abandoned(&self, from: BorrowedFd<'_>, entry: &str, name: &str) {
        if let Ok(entry) = self.move_to_trash(from, entry, name, Retention::Until(0)) {
            self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        }
    }

    /// Entries of unfinished objects since the last call, to be removed from the trash at once.
    #[must_use]
    pub fn take_abandoned(&self) -> Vec<TrashEntry> {
        std::mem::take(&mut *self.abandoned.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn move_to_trash(
        &self,
        from: BorrowedFd<'_>,
        entry: impl Arg,
        name: &str,
        retention: Retention,
    ) -> Result<TrashEntry> {
        let until = match retention {
            Retention::Until(seconds) => seconds.to_string(),
            Retention::Forever => "keep".to_owned(),
        };
        let directory = format!("{name}.{until}.{}", nonce()?);
        fs::renameat_with(from, entry, &self.trash, &directory, RenameFlags::NOREPLACE)
            .context(|| format!("move {name} into trash/"))?;
        Ok(TrashEntry { directory, retention })
    }

    /// All entries of the trash. An entry that orlop did not name is kept forever.
    ///
    /// # Errors
    /// The failed call.
    pub fn trash_entries(&self) -> Result<Vec<TrashEntry>> {
        let mut all = Vec::new();
        for_each_name(self.trash.as_fd(), |name| {
            all.push(TrashEntry { directory: name.to_owned(), retention: retention_of(name) });
        })
        .context(|| "list trash/")?;
        Ok(all)
    }

    /// Moves everything that an earlier process left in `work/` into the trash, to be removed at once.
    ///
    /// # Errors
    /// The failed call.
    pub fn sweep(&self) -> Result<()> {
        let mut left = Vec::new();
        for_each_entry(self.work.as_fd(), |entry| left.push(entry.to_owned())).context(|| "list work/")?;
        for entry in &left {
            self.move_to_trash(self.work.as_fd(), entry.as_c_str(), "work", Retention::Until(0))?;
        }
        Ok(())
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
        for foreign in ["a folder", "backup.2024.tar", &format!(".1.{nonce}"), &format!("1.{nonce}")] {
            assert_eq!(retention_of(foreign), Retention::Forever, "{foreign}");
        }
    }
}
