//! A tree that must not change while it is written into an archive.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::thread;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::fs::copy::catalogue::{Time, time};
use crate::fs::stop::Stop;
use crate::fs::{Budget, Walk, fstat, fstatat, kind_of, open_directory};

/// Checks that nothing in a tree has changed since a time of the coarse clock, in two threads.
pub(super) fn check_still(root: BorrowedFd<'_>, began: Time, progress: &Progress) -> Result<()> {
    let stop = Stop::new(progress);
    thread::scope(|scope| {
        let other = thread::Builder::new().name("check".to_owned());
        let other = other.spawn_scoped(scope, || stop.or_stop(check_half(root, 1, began, &stop)));
        let other = other.context(|| "start the thread that checks the tree")?;
        stop.or_stop(check_half(root, 0, began, &stop));
        other.join().map_err(|_| Error::new(Kind::Internal, "the check of the tree panicked"))
    })?;
    stop.result()
}

/// Checks the directories, and of all else the names of one half.
fn check_half(root: BorrowedFd<'_>, half: u8, began: Time, stop: &Stop<'_>) -> Result<()> {
    let mut walk = Walk::of_live_tree(root).context(|| "open the directory")?;
    let mut budget = Budget::of_filesystem(root)?;
    loop {
        stop.check()?;
        let Some(entry) = walk.next().context(|| "read a directory")? else {
            // After it was read: a name may have moved to the other half.
            still(&fstat(walk.dir()).context(|| "stat a directory")?, began)?;
            if walk.leave()? {
                continue;
            }
            return Ok(());
        };
        // What has become a directory since it was read has changed its parent.
        let may_be_directory = matches!(entry.kind, FileType::Directory | FileType::Unknown);
        if !may_be_directory && half_of(&entry.name) != half {
            budget.take(u64::MAX)?; // the number of its links is unknown
            continue;
        }
        let stat = match fstatat(walk.dir(), &entry.name) {
            Err(Errno::NOENT) => return Err(changed()),
            stat => stat.context(|| "stat an entry")?,
        };
        still(&stat, began)?;
        budget.take(u64::from(stat.stx_nlink.max(1)))?;
        if kind_of(&stat).is_dir() {
            Budget::check_depth(walk.depth())?;
            let directory = open_directory(walk.dir(), &entry.name).context(|| "open a directory")?;
            walk.enter(directory).context(|| "stat a directory")?;
        }
    }
}

/// The half that a name belongs to, wherever it is in its directory.
fn half_of(name: &CStr) -> u8 {
    name.to_bytes().iter().fold(0, |bits, byte| bits ^ byte) & 1
}

pub(super) fn still(stat: &Statx, began: Time) -> Result<()> {
    // The coarse clock may not have moved since.
    if time(stat.stx_ctime) >= began { Err(changed()) } else { Ok(()) }
}

pub(super) fn changed() -> Error {
    Error::new(Kind::Busy, "the data changed during the backup: retry")
}
