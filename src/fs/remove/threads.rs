//! Additional threads that remove directories of a tree.

use std::ffi::CStr;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::Ordering;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::{Removed, Remover};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::Walk;
use crate::fs::nfs::is_nfs;

/// The most threads that remove a tree on a server in addition to the first one.
const ON_SERVER: usize = 11;

/// How many threads may remove a tree in this directory in addition to the first one.
pub(super) fn more_for(parent: BorrowedFd<'_>) -> usize {
    if is_nfs(parent) { ON_SERVER } else { 0 }
}

/// The removal of a directory by another thread.
pub(super) struct Spawned<'scope> {
    /// Depth of the directory that contains it.
    depth: usize,
    thread: ScopedJoinHandle<'scope, Result<Removed>>,
}

impl Spawned<'_> {
    /// Whether the directory is in the current directory of a walk, given that it is there or in one above.
    pub(super) fn is_in(&self, walk: &Walk) -> bool {
        self.depth == walk.depth()
    }
}

impl<'a> Remover<'a> {
    /// Has another thread remove an entry of the current directory of a walk; `None` if no thread is free.
    pub(super) fn spawn_removal<'scope>(
        &self,
        scope: &'scope Scope<'scope, 'a>,
        walk: &Walk,
        name: &CStr,
    ) -> Option<Spawned<'scope>> {
        let (free, slice) = (self.free_threads, self.slice);
        let (started, first_removal) = (self.started, self.first_removal);
        let take = |free: usize| free.checked_sub(1);
        free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        let (at, name) = (walk.dir().try_clone_to_owned(), name.to_owned());
        let remove = move || {
            let at = at.context(|| "duplicate the descriptor of a directory");
            let removed = at.and_then(|at| {
                let remover = Self { started, first_removal, ..Self::new(slice, free)? };
                remover.remove(at.as_fd(), name)
            });
            free.fetch_add(1, Ordering::Relaxed);
            removed
        };
        let Ok(thread) = Builder::new().name("remove".to_owned()).spawn_scoped(scope, remove) else {
            free.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        Some(Spawned { depth: walk.depth(), thread })
    }

    /// Joins the threads that have ended: each keeps its stack until then. Breaks if the slice is over.
    pub(super) fn join_finished(&mut self, spawned: &mut Vec<Spawned<'_>>) -> Result<ControlFlow<()>> {
        for removal in spawned.extract_if(.., |removal| removal.thread.is_finished()) {
            if self.join(removal)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Waits for another thread; breaks if the slice is over.
    pub(super) fn join(&mut self, removal: Spawned<'_>) -> Result<ControlFlow<()>> {
        let panicked = |_| Error::new(Kind::Internal, "a thread that removes files panicked");
        let removed = removal.thread.join().map_err(panicked)??;
        self.removed.entries += removed.entries;
        if removed.entries > 0 {
            self.note_progress();
            self.retries = 0;
        }
        Ok(if removed.complete { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::{self, File};
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::time::Duration;

    use super::*;
    use crate::fs::remove::Slice;

    /// Makes directories in directories, with files, and returns the number of entries.
    fn make_tree(top: &Path, levels: u32) -> u64 {
        fs::create_dir(top).unwrap();
        for number in 0..5 {
            fs::write(top.join(format!("file-{number}")), "x").unwrap();
        }
        let below = (0..if levels == 0 { 0 } else { 4 })
            .map(|number| make_tree(&top.join(format!("dir-{number}")), levels - 1));
        6 + below.sum::<u64>()
    }

    fn remove(parent: &Path, slice: Slice<'_>, free: &AtomicUsize) -> Result<Removed> {
        let parent = File::open(parent).unwrap();
        Remover::new(slice, free)?.remove(parent.as_fd(), CString::from(c"top"))
    }

    #[test]
    fn several_threads_remove_a_tree_once() {
        let dir = tempfile::tempdir().unwrap();
        let entries = make_tree(&dir.path().join("top"), 5);
        let (stop, free) = (AtomicBool::new(false), AtomicUsize::new(3));
        let removed = remove(dir.path(), Slice { stop: &stop, length: Duration::MAX }, &free).unwrap();
        assert_eq!(removed, Removed { entries, complete: true });
        assert_eq!(free.load(Ordering::Relaxed), 3);
        assert!(!dir.path().join("top").exists());
    }

    #[test]
    fn a_thread_that_has_ended_is_joined_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let entries = make_tree(&dir.path().join("top"), 2);
        let parent = File::open(dir.path()).unwrap();
        let (stop, free) = (AtomicBool::new(false), AtomicUsize::new(1));
        let slice = Slice { stop: &stop, length: Duration::MAX };
        std::thread::scope(|scope| {
            let mut remover = Remover::new(slice, &free).unwrap();
            let walk = Walk::new(parent.as_fd()).unwrap();
            let removal = remover.spawn_removal(scope, &walk, c"top").unwrap();
            while !removal.thread.is_finished() {
                std::thread::yield_now();
            }
            let mut spawned = vec![removal];
            assert!(remover.join_finished(&mut spawned).unwrap().is_continue());
            assert!(spawned.is_empty());
            assert_eq!(remover.removed.entries, entries);
            assert_eq!(free.swap(0, Ordering::Relaxed), 1);
            assert!(remover.spawn_removal(scope, &walk, c"top").is_none());
        });
        assert!(!dir.path().join("top").exists());
    }

    #[test]
    fn each_slice_of_several_threads_removes_something() {
        let dir = tempfile::tempdir().unwrap();
        let entries = make_tree(&dir.path().join("top"), 3);
        let (stop, free) = (AtomicBool::new(false), AtomicUsize::new(3));
        let mut sum = 0;
        for _ in 0..=entries {
            let removed = remove(dir.path(), Slice { stop: &stop, length: Duration::ZERO }, &free).unwrap();
            sum += removed.entries;
            if removed.complete {
                break;
            }
            assert!(removed.entries > 0);
        }
        assert_eq!(sum, entries);
        assert!(!dir.path().join("top").exists());
    }

    #[test]
    fn an_error_of_another_thread_is_that_of_the_removal() {
        let dir = tempfile::tempdir().unwrap();
        make_tree(&dir.path().join("top"), 2);
        let (stop, free) = (AtomicBool::new(false), AtomicUsize::new(3));
        let slice = Slice { stop: &stop, length: Duration::MAX };
        let busy = dir.path().join("top/dir-1/dir-2");
        if rustix::mount::mount_bind(&busy, &busy).is_err() {
            return;
        }
        let refused = remove(dir.path(), slice, &free).unwrap_err();
        rustix::mount::unmount(&busy, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(refused.kind(), Kind::InUse);
        assert!(refused.chain().contains("dir-2"), "{}", refused.chain());
        assert!(remove(dir.path(), slice, &free).unwrap().complete);
    }
}
