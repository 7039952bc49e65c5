//! The trash: deleted objects, kept for the retention in their policy.

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, statat};
use rustix::path::Arg;

use super::clock::Clocks;
use super::dirs::{explain_rename, for_each_name, nonce, rename_new};
use super::durable_dir::DurableDir;
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{Name, OnDelete, Policy};

/// How long the trash keeps an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// For a time after its deletion.
    For {
        /// Time of the deletion by the host's clock, in seconds since 1970.
        deleted: i64,
        /// The time in seconds; 0: it is removed at once.
        seconds: i64,
    },
    /// Until an administrator removes it.
    Forever,
}

/// A directory that is to be removed: in `trash/`, named `<name>.<deleted>+<seconds>.<nonce>` or `<name>.keep.<nonce>`, or
/// elsewhere in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrashEntry {
    /// The directory's name in `trash/`; elsewhere its path in the pool, which contains a slash.
    pub directory: String,
    /// How long it is kept.
    pub retention: Retention,
}

impl Retention {
    /// The retention that a policy asks for, from now on.
    #[must_use]
    pub fn of(policy: Policy) -> Self {
        match policy.on_delete {
            OnDelete::Delete => Self::seconds(0),
            OnDelete::Trash => Self::seconds(i64::try_from(policy.trash_for.as_secs()).unwrap_or(i64::MAX)),
            OnDelete::Retain => Self::Forever,
        }
    }

    /// For this time from now on.
    #[must_use]
    pub fn seconds(seconds: i64) -> Self {
        Self::For { deleted: Clocks::now().host, seconds }
    }

    /// At least this time, from now on.
    #[must_use]
    pub fn at_least(self, seconds: i64) -> Self {
        match self {
            Self::For { deleted, seconds: asked } => Self::For { deleted, seconds: asked.max(seconds) },
            Self::Forever => Self::Forever,
        }
    }

    /// The time since the boot at which an entry that is now seen for the first time is due; `None` if that is unknown:
    /// never, or not before the host's clock is set.
    pub(super) fn due(self, now: &Clocks) -> Option<i64> {
        match self {
            Self::For { seconds: 0, .. } => Some(now.boot),
            Self::For { deleted, seconds } if now.is_set() => {
                Some(now.boot_time_of(deleted).saturating_add(seconds))
            }
            Self::For { .. } | Self::Forever => None,
        }
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For { deleted, seconds } => write!(f, "{deleted}+{seconds}"),
            Self::Forever => f.write_str("keep"),
        }
    }
}

impl TrashEntry {
    /// A new name for an object.
    pub(super) fn new(name: &str, retention: Retention) -> Result<Self> {
        Ok(Self { directory: format!("{name}.{retention}.{}", nonce()?), retention })
    }

    /// The name of the deleted object; `None` for an entry that orlop did not name.
    #[must_use]
    pub fn object(&self) -> Option<Name> {
        let mut parts = self.directory.rsplitn(3, '.');
        let (nonce, retention, name) = (parts.next()?, parts.next()?, parts.next()?);
        let is_named = is_nonce(nonce) && (retention == "keep" || parse(retention).is_some());
        if is_named { name.parse().ok() } else { None }
    }

    /// The entry with the right time of its deletion; `None` if its name has that. `due` is the time since the boot at
    /// which it is due.
    pub(super) fn corrected(&self, due: i64, now: &Clocks) -> Option<Self> {
        let Retention::For { deleted, seconds } = self.retention else { return None };
        let deleted = now.corrected(deleted, due.saturating_sub(seconds))?;
        let retention = Retention::For { deleted, seconds };
        let mut parts = self.directory.rsplitn(3, '.');
        let (nonce, _, name) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { directory: format!("{name}.{retention}.{nonce}"), retention })
    }

    /// A directory that is removed where it is, at once.
    pub(super) fn in_place(place: &str, name: &str) -> Self {
        Self { directory: format!("{place}/{name}"), retention: Retention::seconds(0) }
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

    /// When an entry was moved here, in seconds since 1970: its rename has changed its ctime.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub(super) fn added(&self, entry: &TrashEntry) -> Result<i64> {
        let stat = statat(self.dir(), entry.directory.as_str(), AtFlags::SYMLINK_NOFOLLOW);
        Ok(stat.context(|| format!("stat trash/{}", entry.directory))?.st_ctime)
    }

    /// Ends the retention of an entry that orlop has named, whose lock the caller holds; returns its new name.
    ///
    /// # Errors
    /// `Unsupported` for an entry that orlop has not named; otherwise the error of the failed system call.
    pub fn expire(&self, entry: &TrashEntry) -> Result<TrashEntry> {
        let shown = &entry.directory;
        let foreign =
            || Error::new(Kind::Unsupported, format!("trash/{shown} is not of orlop: remove it by hand"));
        let name = entry.object().ok_or_else(foreign)?;
        let expired = self.add(self.dir(), shown.as_str(), name.as_str(), Retention::seconds(0))?;
        self.sync().map(|()| expired)
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
    let until = until.filter(|_| is_nonce(nonce) && name.is_some_and(|name| !name.is_empty()));
    until.and_then(parse).unwrap_or(Retention::Forever)
}

fn is_nonce(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn parse(text: &str) -> Option<Retention> {
    let (deleted, seconds) = text.split_once('+')?;
    Some(Retention::For { deleted: deleted.parse().ok()?, seconds: seconds.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_trash_entry_holds_its_retention() {
        let nonce = "0123456789abcdef";
        assert_eq!(retention_of(&format!("a.keep.{nonce}")), Retention::Forever);
        let week = Retention::For { deleted: 1_790_000_000, seconds: 604_800 };
        assert_eq!(retention_of(&format!("pvc.1.1790000000+604800.{nonce}")), week);
        assert!(TrashEntry::new("a", week).unwrap().directory.starts_with("a.1790000000+604800."));
    }

    #[test]
    fn an_entry_that_orlop_did_not_name_is_kept_forever() {
        let nonce = "0123456789abcdef";
        for foreign in [
            "a directory",
            "backup.2024.tar",
            &format!(".1.{nonce}"),
            &format!("1.{nonce}"),
            &format!("a.1+x.{nonce}"),
            &format!("a.1700000000.{nonce}"),
        ] {
            assert_eq!(retention_of(foreign), Retention::Forever, "{foreign}");
        }
    }

    #[test]
    fn the_name_of_an_entry_is_corrected_when_the_clock_is_set() {
        let made_in_1970 = Retention::For { deleted: 50, seconds: 3600 };
        let entry =
            TrashEntry { directory: "v.1.50+3600.0123456789abcdef".to_owned(), retention: made_in_1970 };
        let unset = Clocks { host: 60, boot: 60 };
        assert_eq!(made_in_1970.due(&unset), None, "the clock is not set");
        assert_eq!(entry.corrected(3650, &unset), None);
        let set = Clocks { host: 1_790_000_000, boot: 70 };
        assert_eq!(made_in_1970.due(&set), Some(3670), "a whole hour from the first sight on");
        let corrected = entry.corrected(3650, &set).unwrap();
        assert_eq!(corrected.directory, "v.1.1789999980+3600.0123456789abcdef");
        assert_eq!(corrected.retention.due(&set), Some(3650));
        assert_eq!(corrected.corrected(3650, &set), None);
    }
}
