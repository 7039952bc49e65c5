//! Removes the trash of one pool when its retention has passed: one thread, one directory after another, at the lowest
//! priority.
//!
//! Each pool has its own reaper, so a disk that does not respond delays no other pool. A directory is removed in slices,
//! so one that takes long, or into which a process still writes, delays no other directory.

mod queue;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use self::queue::Queue;
use super::OpenPool;
use super::clock::{Clocks, boot_seconds};
use super::locks::Mode;
use super::object::{ObjectKey, ObjectKind};
use super::store::InPlace;
use super::trash::{Retention, TrashEntry};
use crate::error::{Context as _, Result};
use crate::fs::remove::{Removed, Slice};
use crate::volume::Name;

/// Seconds until a directory that could not be removed is tried again.
const RETRY_AFTER: i64 = 60;
/// How long a directory is removed until it is the turn of the next one.
const SLICE: Duration = Duration::from_secs(2);
/// How often the trash is listed, to find the entries of other processes.
const LIST_EVERY: Duration = Duration::from_secs(60);
/// Seconds until an entry that another process holds is tried again.
const HELD_AGAIN_AFTER: i64 = 1;

/// The reaper of a configured pool. Dropping it stops its thread.
#[derive(Debug, Default)]
pub struct Reaper {
    queue: ReaperQueue,
}

/// A handle of a pool's reaper, to add trash.
#[derive(Debug, Clone, Default)]
pub struct ReaperQueue {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// The pool, while it is open.
    pool: Weak<OpenPool>,
    queue: Queue,
    /// When the trash was last listed.
    listed: Option<Instant>,
    /// Why that failed.
    list_failure: Option<String>,
    /// Whether the thread exists.
    started: bool,
    /// Whether the thread waits.
    idle: bool,
}

/// What the thread does next.
enum Task {
    List(Arc<OpenPool>),
    Remove(Arc<OpenPool>, Arc<str>),
}

impl Reaper {
    /// Starts to remove the trash of the pool, which has just been opened. What is known of entries that are still there
    /// is kept: their age has been read from the clock, which may have been set since.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be spawned; otherwise the error of the failed system call.
    pub fn attach(&self, pool: &Arc<OpenPool>) -> Result<()> {
        let mark = self.queue.shared.lock().queue.mark();
        let listing = pool.store.entries_to_remove()?;
        let mut state = self.queue.shared.lock();
        state.pool = Arc::downgrade(pool);
        (state.listed, state.list_failure) = (Some(Instant::now()), None);
        state.queue.forget_unlisted(&listing, mark);
        state.add_listed(&listing);
        self.start_thread(&mut state)?;
        drop(state);
        self.queue.shared.changed.notify_all();
        Ok(())
    }

    fn start_thread(&self, state: &mut State) -> Result<()> {
        if state.started {
            return Ok(());
        }
        let shared = Arc::clone(&self.queue.shared);
        thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || shared.run())
            .context(|| "start the reaper")?;
        state.started = true;
        Ok(())
    }

    /// A handle for other threads.
    #[must_use]
    pub fn queue(&self) -> ReaperQueue {
        self.queue.clone()
    }

    /// Number of directories that are still to be removed, including the one that is being removed.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.shared.lock().queue.len()
    }

    /// Why trash is not removed: the failure of one of its entries, or of listing it; `None` if neither failed.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let state = self.queue.shared.lock();
        state.queue.failure().map(str::to_owned).or_else(|| state.list_failure.clone())
    }

    /// Removes in the calling thread what this process has put into the queue and is due; reports whether that was complete
    /// at the deadline. For a process without the reaper's thread.
    ///
    /// # Errors
    /// The error of a removal that failed.
    pub fn remove_queued(&self, pool: &OpenPool, deadline: Instant) -> Result<bool> {
        let shared = &self.queue.shared;
        loop {
            let Some(directory) = shared.lock().queue.take_due(boot_seconds()) else { return Ok(true) };
            let removed = shared.remove_slice(pool, &directory)?;
            let mut state = shared.lock();
            // Another process may be removing it.
            if removed.is_none_or(|removed| removed.complete) {
                state.queue.removed(&directory);
            } else {
                state.queue.put_back(directory, boot_seconds());
            }
            if Instant::now() >= deadline {
                return Ok(state.queue.len() == 0);
            }
        }
    }

    /// Waits until no entry is due; reports whether that happened in time. An entry whose removal failed is due again
    /// after a minute.
    #[must_use]
    pub fn wait_until_idle(&self, timeout: Duration) -> bool {
        let shared = &self.queue.shared;
        let busy = |state: &mut State| state.started && (!state.idle || state.is_due());
        let waited = shared.changed.wait_timeout_while(shared.lock(), timeout, busy);
        let (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        !result.timed_out()
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // Set the flag under the lock, to avoid a lost wakeup.
        let state = self.queue.shared.lock();
        self.queue.shared.stop.store(true, Ordering::Relaxed);
        drop(state);
        self.queue.shared.changed.notify_all();
    }
}

impl ReaperQueue {
    /// Adds entries of the trash that this process has moved there.
    pub fn add(&self, entries: impl IntoIterator<Item = TrashEntry>) {
        let mut entries = entries.into_iter().peekable();
        if entries.peek().is_none() {
            return;
        }
        let (mut state, now) = (self.shared.lock(), boot_seconds());
        entries.for_each(|entry| state.add_new(&entry, now));
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl State {
    /// Adds an entry that this process has just moved into the trash.
    fn add_new(&mut self, entry: &TrashEntry, now: i64) {
        if let Retention::For { seconds, .. } = entry.retention {
            self.queue.add(&entry.directory, now.saturating_add(seconds));
        }
    }

    /// Adds the entries of a listing that are not known yet. Those whose age is unknown are left to a later listing.
    fn add_listed(&mut self, listing: &[TrashEntry]) {
        let now = Clocks::now();
        for entry in listing {
            if let Some(due) = entry.retention.due(&now) {
                self.queue.add(&entry.directory, due);
            }
        }
    }

    fn is_due(&self) -> bool {
        self.pool.strong_count() > 0 && self.queue.next_at().is_some_and(|at| at <= boot_seconds())
    }

    /// The next task, if there is one now.
    fn next_task(&mut self) -> Option<Task> {
        // The next opening of the pool lists the trash.
        let pool = self.pool.upgrade()?;
        if self.until_listing().is_zero() {
            self.listed = Some(Instant::now());
            return Some(Task::List(pool));
        }
        self.queue.take_due(boot_seconds()).map(|directory| Task::Remove(pool, directory))
    }

    fn until_listing(&self) -> Duration {
        self.listed.map_or(Duration::ZERO, |listed| LIST_EVERY.saturating_sub(listed.elapsed()))
    }

    /// How long the thread may wait: at most until the next listing, or until the pool is opened again.
    fn wait(&self) -> Duration {
        if self.pool.strong_count() == 0 {
            return LIST_EVERY;
        }
        let until_due = self.queue.next_at().map_or(60, |at| at.saturating_sub(boot_seconds()));
        let until_due = Duration::from_secs(u64::try_from(until_due).unwrap_or(0));
        until_due.min(self.until_listing()).clamp(Duration::from_secs(1), LIST_EVERY)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // Linux keeps a nice value for each thread. Without the right to change it, the priority stays as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while let Some(task) = self.next() {
            match task {
                Task::List(pool) => self.list(&pool),
                Task::Remove(pool, directory) => self.remove(&pool, directory),
            }
        }
    }

    /// Waits for the next task; `None` when the thread is to stop.
    fn next(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(task) = state.next_task() {
                state.idle = false;
                return Some(task);
            }
            state.idle = true;
            self.changed.notify_all();
            let wait = state.wait();
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lists the trash: adds the entries of other processes, and forgets those that are gone.
    fn list(&self, pool: &OpenPool) {
        let mark = self.lock().queue.mark();
        let listing = pool.store.entries_to_remove();
        let mut state = self.lock();
        if !std::ptr::eq(state.pool.as_ptr(), pool) {
            return; // The pool was opened again meanwhile, and its trash was listed.
        }
        match listing {
            Ok(listing) => {
                state.queue.forget_unlisted(&listing, mark);
                state.add_listed(&listing);
                state.list_failure = None;
                drop(state);
                self.correct_names(pool, listing);
            }
            Err(error) => state.list_failure = Some(error.chain()),
        }
    }

    /// Renames the entries whose name contradicts the time that has passed: the clock was wrong when they were deleted, or
    /// has been set since. A later start judges by the name.
    fn correct_names(&self, pool: &OpenPool, listing: Vec<TrashEntry>) {
        let now = Clocks::now();
        for entry in listing {
            let due = self.lock().queue.due_later(&entry.directory, now.boot);
            let Some((due, right)) = due.and_then(|due| Some((due, entry.corrected(due, &now)?))) else {
                continue;
            };
            // An entry that is locked, or that is gone, is left to a later listing.
            let key = ObjectKey::Trash(entry.directory.clone());
            let Ok(Some(_lock)) = pool.store.locks().try_lock(key, Mode::Exclusive) else { continue };
            let trash = pool.store.trash();
            if trash.add_as(trash.dir(), entry.directory.as_str(), &right).is_ok() {
                let mut state = self.lock();
                state.queue.removed(&entry.directory);
                state.queue.add(&right.directory, due);
            }
        }
    }

    /// Removes an entry for one slice, and notes the result.
    fn remove(&self, pool: &OpenPool, directory: Arc<str>) {
        let result = self.remove_slice(pool, &directory);
        let mut state = self.lock();
        match result {
            Ok(Some(Removed { complete: true, .. })) => state.queue.removed(&directory),
            Ok(Some(_)) => state.queue.put_back(directory, boot_seconds()),
            Ok(None) => state.queue.put_back(directory, boot_seconds().saturating_add(HELD_AGAIN_AFTER)),
            Err(error) => {
                let place = if directory.contains('/') { "" } else { "trash/" };
                let why = format!("{place}{directory}: {}", error.chain());
                state.queue.failed(directory, why, boot_seconds().saturating_add(RETRY_AFTER));
            }
        }
    }

    /// The only call that removes what was deleted. An entry that does not exist any more is complete. `None` if another
    /// process removes the entry, or may still undo its deletion.
    fn remove_slice(&self, pool: &OpenPool, directory: &str) -> Result<Option<Removed>> {
        let store = &pool.store;
        let place = InPlace::parse(directory);
        let key = match &place {
            Some(InPlace::Draft(nonce)) => ObjectKey::Draft(nonce.clone()),
            Some(InPlace::Deleted(..)) | None => ObjectKey::Trash(directory.to_owned()),
        };
        let Some(_lock) = store.locks().try_lock(key, Mode::Exclusive)? else { return Ok(None) };
        let slice = Slice { stop: &self.stop, length: SLICE };
        let removed = match &place {
            None => pool.backend.remove(store.trash().dir(), directory, slice)?,
            Some(InPlace::Draft(nonce)) => pool.backend.remove(store.work(), nonce, slice)?,
            Some(InPlace::Deleted(kind, name)) => self.remove_deleted(pool, *kind, name, slice)?,
        };
        Ok(Some(removed))
    }

    /// Removes an object that was deleted in place. One that its policy keeps is moved into the trash.
    fn remove_deleted(
        &self,
        pool: &OpenPool,
        kind: ObjectKind,
        name: &Name,
        slice: Slice<'_>,
    ) -> Result<Removed> {
        let store = &pool.store;
        if !store.is_deleted(kind, name) {
            return Ok(Removed { complete: true, ..Removed::default() });
        }
        match store.retention_of_deleted(kind, name)? {
            None => store.remove_deleted(kind, name, |dir, name| pool.backend.remove(dir, name, slice)),
            Some(retention) => {
                let entry = store.bury(kind, name, retention)?;
                self.lock().add_new(&entry, boot_seconds());
                Ok(Removed { complete: true, ..Removed::default() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pool::{Pool, PoolSettings, Purpose};

    fn pool(path: &Path) -> Pool {
        Pool::new(
            PoolSettings::new("p".parse().unwrap(), path.to_owned()),
            Purpose::Serve,
            Duration::ZERO,
            Duration::ZERO,
        )
    }

    #[test]
    fn the_thread_serves_a_pool_that_is_opened_again_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("pool"), dir.path().join("elsewhere"));
        std::fs::create_dir(&path).unwrap();
        let pool = pool(&path);
        pool.get_or_open().unwrap();
        std::fs::rename(&path, &elsewhere).unwrap();
        assert!(pool.get_or_open().is_err());
        std::fs::create_dir(elsewhere.join("trash/due.0+0.0123456789abcdef")).unwrap();
        std::fs::rename(&elsewhere, &path).unwrap();
        pool.get_or_open().unwrap();
        assert!(pool.reaper.wait_until_idle(Duration::from_secs(10)));
        assert_eq!(std::fs::read_dir(path.join("trash")).unwrap().count(), 0);
        let shared = Arc::downgrade(&pool.reaper.queue.shared);
        drop(pool);
        let deadline = Instant::now() + Duration::from_secs(10);
        while shared.strong_count() > 0 {
            assert!(Instant::now() < deadline, "the thread still runs");
            thread::yield_now();
        }
    }

    #[test]
    fn the_age_of_an_entry_is_kept_when_the_pool_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        let open = pool.get_or_open().unwrap();
        // By its name it is due. It was moved into the trash before the clock was set.
        let name = format!("v.{}+5.0123456789abcdef", Clocks::now().host - 100);
        std::fs::create_dir(dir.path().join("trash").join(&name)).unwrap();
        let due = boot_seconds() + 3600;
        pool.reaper.queue.shared.lock().queue.add(&name, due);
        pool.reaper.attach(&open).unwrap();
        let known = pool.reaper.queue.shared.lock().queue.due_later(&name, boot_seconds());
        assert_eq!(known, Some(due));
    }

    #[test]
    fn entries_of_other_processes_are_removed_when_their_locks_are_free() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        let open = pool.get_or_open().unwrap();
        let trash = dir.path().join("trash");
        for entry in ["due.0+0.0123456789abcdef", "kept.keep.0123456789abcdef", "foreign"] {
            std::fs::create_dir(trash.join(entry)).unwrap();
        }
        let key = ObjectKey::Trash("due.0+0.0123456789abcdef".to_owned());
        let held = open.store.locks().try_lock(key, Mode::Exclusive).unwrap();
        pool.reaper.queue.shared.list(&open);
        pool.reaper.queue.shared.changed.notify_all();
        assert_eq!(pool.reaper.waiting(), 1);
        assert!(pool.reaper.wait_until_idle(Duration::from_secs(10)));
        let count = || std::fs::read_dir(&trash).unwrap().count();
        assert_eq!(count(), 3, "the other process may still undo its deletion");
        drop(held);
        let deadline = Instant::now() + Duration::from_secs(10);
        while count() > 2 {
            assert!(Instant::now() < deadline, "the entry is removed when its lock is free");
            thread::yield_now();
        }
    }

    #[test]
    fn trash_of_a_wrong_clock_is_neither_removed_early_nor_kept_forever() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        let open = pool.get_or_open().unwrap();
        let trash = dir.path().join("trash");
        let host = Clocks::now().host;
        let year = 365 * 86400;
        for (name, deleted, seconds) in [
            ("old", host - 10, 5),
            ("unset", 5, 3600),
            ("ahead", host + 10 * year, 3600),
            ("new", host - 10, 3600),
        ] {
            std::fs::create_dir(trash.join(format!("{name}.{deleted}+{seconds}.0123456789abcdef"))).unwrap();
        }
        pool.reaper.queue.shared.list(&open);
        pool.reaper.queue.shared.changed.notify_all();
        assert!(pool.reaper.wait_until_idle(Duration::from_secs(60)));
        let mut entries = open.store.trash().entries().unwrap();
        entries.sort_unstable_by(|a, b| a.directory.cmp(&b.directory));
        let names: Vec<_> = entries.iter().filter_map(|entry| entry.directory.split('.').next()).collect();
        assert_eq!(names, ["ahead", "new", "unset"]);
        for (entry, at) in entries.iter().zip([host, host - 10, host]) {
            let Retention::For { deleted, seconds: 3600 } = entry.retention else { panic!("{entry:?}") };
            assert!((at..at + 60).contains(&deleted), "{entry:?}");
        }
        assert_eq!(pool.reaper.waiting(), 3);
    }
}
