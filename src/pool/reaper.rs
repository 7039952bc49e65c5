//! Removes trash whose retention has passed: one thread, one directory after another, at the lowest priority.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::OpenPool;
use super::trash::{Retention, TrashEntry};
use crate::error::{Context as _, Result};
use crate::volume::{PoolName, Timestamp};

/// Seconds until a directory that could not be removed is tried again.
const RETRY_AFTER: i64 = 60;

/// The thread and its queue. Dropping it stops the thread.
#[derive(Debug)]
pub struct Reaper {
    shared: Arc<Shared>,
}

/// A handle for threads that add trash.
#[derive(Debug, Clone)]
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
    /// Ordered by due time.
    queue: BinaryHeap<Reverse<Due>>,
    /// The last failure of each pool.
    failures: HashMap<PoolName, String>,
    idle: bool,
}

/// A directory to remove at a time in seconds since 1970.
#[derive(Debug)]
struct Due {
    at: i64,
    pool: Weak<OpenPool>,
    directory: String,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, &self.directory).cmp(&(other.at, &other.directory))
    }
}

impl Reaper {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be spawned.
    pub fn start() -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || own.run())
            .context(|| "start the reaper")?;
        Ok(Self { shared })
    }

    /// Adds entries of a pool's trash.
    pub fn add(&self, pool: &Arc<OpenPool>, entries: impl IntoIterator<Item = TrashEntry>) {
        self.queue().add(pool, entries);
    }

    /// A handle for another thread.
    #[must_use]
    pub fn queue(&self) -> ReaperQueue {
        ReaperQueue { shared: Arc::clone(&self.shared) }
    }

    /// Number of directories of a pool that are still to be removed.
    #[must_use]
    pub fn waiting(&self, pool: &PoolName) -> usize {
        let of_pool = |due: &Due| due.pool.upgrade().is_some_and(|open| open.settings.name == *pool);
        self.shared.lock().queue.iter().filter(|Reverse(due)| of_pool(due)).count()
    }

    /// The last failure to remove trash of a pool; `None` if a later removal succeeded or none failed.
    #[must_use]
    pub fn failure(&self, pool: &PoolName) -> Option<String> {
        self.shared.lock().failures.get(pool).cloned()
    }

    /// Waits until no entry is due; reports whether that happened in time. An entry whose removal failed is due again
    /// after a minute.
    pub fn wait_until_idle(&self, timeout: Duration) -> bool {
        let state = self.shared.lock();
        let busy = |state: &mut State| !state.idle || state.next_is_due();
        let waited = self.shared.changed.wait_timeout_while(state, timeout, busy);
        let (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        !result.timed_out()
    }
}

impl ReaperQueue {
    /// Adds entries of a pool's trash.
    pub fn add(&self, pool: &Arc<OpenPool>, entries: impl IntoIterator<Item = TrashEntry>) {
        let mut entries = entries.into_iter().peekable();
        if entries.peek().is_none() {
            return;
        }
        let mut state = self.shared.lock();
        for TrashEntry { directory, retention } in entries {
            if let Retention::Until(at) = retention {
                state.queue.push(Reverse(Due { at, pool: Arc::downgrade(pool), directory }));
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // Set the flag under the lock, to avoid a lost wakeup.
        let state = self.shared.lock();
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl State {
    fn next_is_due(&self) -> bool {
        self.queue.peek().is_some_and(|Reverse(due)| due.at <= now())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // Linux keeps a nice value for each thread. Without the right to change it, the priority stays as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while let Some(due) = self.next() {
            let Some(pool) = due.pool.upgrade() else { continue };
            let result = pool.backend.remove(pool.store.trash().dir(), &due.directory, &self.stop);
            let name = &pool.settings.name;
            let mut state = self.lock();
            match result {
                Ok(()) => {
                    state.failures.remove(name);
                }
                Err(error) => {
                    let text = format!("trash/{}: {}", due.directory, error.chain());
                    state.failures.insert(name.clone(), text);
                    let at = now().saturating_add(RETRY_AFTER);
                    state.queue.push(Reverse(Due { at, ..due }));
                }
            }
        }
    }

    /// Waits for the next directory that is due; `None` when the thread is to stop.
    fn next(&self) -> Option<Due> {
        let mut state = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if state.next_is_due() {
                state.idle = false;
                return state.queue.pop().map(|Reverse(due)| due);
            }
            state.idle = true;
            self.changed.notify_all();
            // The clock may be changed during the wait, so the wait is at most a minute.
            let left = state.queue.peek().map_or(3600, |Reverse(due)| due.at.saturating_sub(now()));
            let wait = Duration::from_secs(u64::try_from(left).unwrap_or(0).clamp(1, 60));
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The time in seconds since 1970.
fn now() -> i64 {
    Timestamp::now().as_second()
}
