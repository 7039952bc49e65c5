//! The project ids of a pool's volumes: from a counter that all processes share, never twice.
//!
//! A process takes blocks of ids, each larger than the last: a command that makes one volume takes one. The counter is synced
//! before an id of the block is used, so that neither a kill nor a power failure gives an id to two volumes. Ids are those of
//! the filesystem: one that has limits or files already, as those of another pool there, is left out.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use super::OpenPool;
use super::object::ObjectKey;
use super::store::{Store, parse, read_file, replace_file};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::project::{OWN_IDS, first_used};
use crate::volume::{BackendState, SCHEMA};

/// The counter's name in the pool's directory.
const FILE: &str = "projects.json";
const FIRST: u32 = OWN_IDS.start;
const END: u32 = OWN_IDS.end;
/// The largest block.
const LARGEST_BLOCK: u32 = 1024;
/// How often a search for unused ids meets used ones.
const MOST_STEPS: u32 = 1 << 20;

/// The contents of the counter.
#[derive(Debug, Serialize, Deserialize)]
struct Counter {
    schema: u32,
    /// The first id that no process has taken.
    next: u32,
}

/// The ids that this process has taken.
#[derive(Debug, Default)]
pub(super) struct ProjectIds {
    block: Mutex<Block>,
}

#[derive(Debug, Default)]
struct Block {
    next: u32,
    end: u32,
    /// How many ids it had.
    size: u32,
}

impl OpenPool {
    /// Reserves the backend's state for a new volume.
    ///
    /// # Errors
    /// `NoSpace` when no id is left; `Unreadable` when the counter is damaged; otherwise the error of the failed system call.
    pub fn allot(&self) -> Result<BackendState> {
        self.backend.allot(&|| self.project_ids.take_one(&self.store))
    }
}

impl ProjectIds {
    pub(super) fn take_one(&self, store: &Store) -> Result<u32> {
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        if block.next == block.end {
            let size = (block.size * 2).clamp(1, LARGEST_BLOCK);
            *block = take_block(store, size).context(|| "take project ids")?;
        }
        let id = block.next;
        block.next += 1;
        Ok(id)
    }
}

fn take_block(store: &Store, size: u32) -> Result<Block> {
    let _lock = store.locks().lock(ObjectKey::ProjectIds)?;
    let stored = read_file(store.root(), FILE).and_then(|bytes| bytes.map(|bytes| parse(&bytes)).transpose());
    let stored: Option<Counter> =
        stored.context(|| format!("read {FILE}: remove it if it is damaged, and a new one is made"))?;
    let from = match stored {
        Some(Counter { next, .. }) => next,
        None => random_start()?,
    };
    let start = unused(from, size, |ids| first_used(store.root(), ids))?;
    let end = start + size;
    replace_file(store.root(), FILE, &Counter { schema: SCHEMA, next: end })?;
    Ok(Block { next: start, end, size })
}

/// Pools on one filesystem begin at different ids.
fn random_start() -> Result<u32> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes[..], GetRandomFlags::empty()).context(|| "get random bytes")?;
    Ok(FIRST + u32::from_ne_bytes(bytes) % (END - FIRST))
}

/// The first of `size` ids that no file and no limit has, from `from` on. After the last id, the search goes on with the
/// first one.
fn unused(from: u32, size: u32, first_used: impl Fn(Range<u32>) -> Result<Option<u32>>) -> Result<u32> {
    let mut start = if (FIRST..END).contains(&from) { from } else { FIRST };
    for _ in 0..MOST_STEPS {
        if start > END - size {
            start = FIRST;
        }
        match first_used(start..start + size)? {
            Some(used) => start = used + 1,
            None => return Ok(start),
        }
    }
    let text =
        "the filesystem has no unused project ids: remove volumes, or the quotas of projects without files";
    Err(Error::new(Kind::NoSpace, text))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    fn unused_beside(from: u32, size: u32, used: &[u32]) -> u32 {
        unused(from, size, |ids| Ok(used.iter().copied().find(|id| ids.contains(id)))).unwrap()
    }

    #[test]
    fn ids_with_files_or_limits_are_left_out() {
        assert_eq!(unused_beside(FIRST + 7, 4, &[]), FIRST + 7);
        assert_eq!(unused_beside(FIRST, 4, &[FIRST + 4]), FIRST, "the id after the block");
        assert_eq!(unused_beside(FIRST, 4, &[FIRST, FIRST + 3, FIRST + 9]), FIRST + 4);
        assert_eq!(unused_beside(0, 4, &[5]), FIRST, "a counter below the range");
        assert_eq!(unused_beside(END - 4, 4, &[]), END - 4);
        assert_eq!(unused_beside(END - 3, 4, &[FIRST]), FIRST + 1, "after the last id");
        assert_eq!(unused_beside(END - 4, 4, &[END - 1]), FIRST);
        let none = unused(FIRST, 1, |ids| Ok(Some(ids.start))).unwrap_err();
        assert_eq!(none.kind(), Kind::NoSpace);
    }

    fn store(dir: &std::path::Path) -> Store {
        Store::open(File::open(dir).unwrap().into(), false, Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn no_id_is_given_twice_also_by_several_processes_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut all = BTreeSet::new();
        for _ in 0..3 {
            let (a, b) = (store(dir.path()), store(dir.path()));
            let (ids_a, ids_b) = (ProjectIds::default(), ProjectIds::default());
            for _ in 0..1500 {
                assert!(all.insert(ids_a.take_one(&a).unwrap()) && all.insert(ids_b.take_one(&b).unwrap()));
            }
        }
        assert!(all.iter().all(|id| (FIRST..END).contains(id)));
    }

    #[test]
    fn a_command_that_makes_one_volume_takes_one_id() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let first = ProjectIds::default().take_one(&store).unwrap();
        assert_eq!(unused_beside(first + 1, 1, &[]), ProjectIds::default().take_one(&store).unwrap());
    }

    #[test]
    fn a_damaged_counter_is_refused_and_a_missing_one_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let error = ProjectIds::default().take_one(&store).unwrap_err();
        assert!(error.kind() == Kind::Unreadable && error.chain().contains("remove it"), "{}", error.chain());
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        ProjectIds::default().take_one(&store).unwrap();
    }
}
