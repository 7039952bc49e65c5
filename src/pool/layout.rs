//! The directories of a pool's root, and whether they are still those that were opened.
//!
//! `volumes/`, `snapshots/` and `locks/` must stay the same as long as a process uses the pool: in other ones, existing
//! objects would count as deleted, or locks would exclude nothing. `work/` and `trash/` are made again.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags};

use super::dirs::open_or_create;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::DirIdentity;

/// The directories in the order in which they are made. A pool that has one of the last three has had the first two.
const NAMES: [&str; 5] = ["volumes", "snapshots", "work", "trash", "locks"];
/// Those with objects.
const OBJECTS: [&str; 2] = ["volumes", "snapshots"];
/// Those that a process does not replace.
const LASTING: [&str; 3] = ["volumes", "snapshots", "locks"];

/// The identities of a pool's root and of its directories.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    root: DirIdentity,
    directories: [DirIdentity; 5],
}

/// The open directories.
pub(super) struct Directories {
    pub(super) volumes: OwnedFd,
    pub(super) snapshots: OwnedFd,
    pub(super) work: OwnedFd,
    pub(super) trash: OwnedFd,
    pub(super) locks: OwnedFd,
}

impl Layout {
    /// Opens the directories of a pool, and makes the missing ones. `last` are those that this process has used before.
    ///
    /// # Errors
    /// `Unavailable` when one that must not be replaced is missing or is another one than before; otherwise the error of
    /// the failed system call.
    pub(super) fn open(root: BorrowedFd<'_>, last: Option<&Self>) -> Result<(Directories, Self)> {
        let identity = DirIdentity::of(root).context(|| "stat the directory")?;
        let last = last.filter(|last| last.root == identity);
        check_missing(root, last.is_some())?;
        // In this order, and not one after a failure: a missing one before others counts as lost.
        let directory = |name| open_or_create(root, name);
        let open = Directories {
            volumes: directory("volumes")?,
            snapshots: directory("snapshots")?,
            work: directory("work")?,
            trash: directory("trash")?,
            locks: directory("locks")?,
        };
        let layout = Self { root: identity, directories: open.identities()? };
        if let Some(last) = last {
            layout.check_lasting(last)?;
        }
        Ok((open, layout))
    }

    /// Whether the names in the root still lead to these directories.
    pub(super) fn is_in_place(&self, root: BorrowedFd<'_>) -> bool {
        let is_same =
            |(name, known)| DirIdentity::of_entry(root, name).is_ok_and(|found: DirIdentity| found == known);
        NAMES.into_iter().zip(self.directories).all(is_same)
    }

    fn check_lasting(&self, last: &Self) -> Result<()> {
        for ((name, now), before) in NAMES.iter().zip(self.directories).zip(last.directories) {
            if LASTING.contains(name) && now != before {
                let text = format!(
                    "{name}/ is not the directory that it was: put that one back, or restart orlop to use this one"
                );
                return Err(Error::new(Kind::Unavailable, text));
            }
        }
        Ok(())
    }
}

impl Directories {
    fn identities(&self) -> Result<[DirIdentity; 5]> {
        let identity =
            |dir: &OwnedFd| DirIdentity::of(dir.as_fd()).context(|| "stat a directory of the pool");
        let Self { volumes, snapshots, work, trash, locks } = self;
        Ok([identity(volumes)?, identity(snapshots)?, identity(work)?, identity(trash)?, identity(locks)?])
    }
}

/// Refuses a pool that has lost a directory. A pool whose creation was interrupted has lost none.
fn check_missing(root: BorrowedFd<'_>, was_open: bool) -> Result<()> {
    let exists = |name: &str| fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    // Those that are made last first: another process may be making them now.
    let had_objects = NAMES.iter().any(|name| !OBJECTS.contains(name) && exists(name));
    let needed: &[&str] = match (was_open, had_objects) {
        (true, _) => &LASTING,
        (false, true) => &OBJECTS,
        (false, false) => &[],
    };
    match needed.iter().find(|name| !exists(name)) {
        None => Ok(()),
        Some(name) => {
            let text = format!(
                "{name}/ is missing: put it back; if it is lost, make an empty one and restart orlop"
            );
            Err(Error::new(Kind::Unavailable, text))
        }
    }
}
