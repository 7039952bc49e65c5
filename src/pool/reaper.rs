//! Removes what the trash need not keep any more: one thread, one folder after another, at the lowest priority.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use crate::error::{Context as _, Result};
use crate::fs::remove::remove_tree;
use crate::pool::OpenPool;
use crate::pool::store::{Retention, Trashed};
use crate::volume::{PoolName, Timestamp};

/// How long a folder that could not be removed is left alone.
const AGAIN_AFTER: i64 = 60;

/// The thread that removes, and what it has before it.
#[derive(Debug)]
pub struct Reaper {
    shared: Arc<Shared>,
}

/// Where others lay what is to be removed.
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
    /// By time, the next first.
    due: BinaryHeap<Reverse<Due>>,
    stopped: HashMap<PoolName, String>,
    idle: bool,
}

#[derive(Debug)]
struct Due {
    at: i64,
    pool: Weak<OpenPool>,
    folder: String,
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
        (self.at, &self.folder).cmp(&(other.at, &other.folder))
    }
}

impl Reaper {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the kernel says when there can be no more threads.
    pub fn start() -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || own.run())
            .context(|| "start the reaper")?;
        Ok(Self { shared })
    }

    /// Takes over folders of a pool's trash.
    pub fn add(&self, pool: &Arc<OpenPool>, trashed: impl IntoIterator<Item = Trashed>) {
        self.queue().add(pool, trashed);
    }

    /// A way to it for other threads.
    #[must_use]
    pub fn queue(&self) -> ReaperQueue {
        ReaperQueue { shared: Arc::clone(&self.shared) }
    }

    /// How many folders of a pool wait to be removed.
    #[must_use]
    pub fn waiting(&self, pool: &PoolName) -> usize {
        let of_pool = |due: &Due| due.pool.upgrade().is_some_and(|open| open.settings.name == *pool);
        self.shared.lock().due.iter().filter(|Reverse(due)| of_pool(due)).count()
    }

    /// Why it does not get on with a pool's trash.
    #[must_use]
    pub fn stopped(&self, pool: &PoolName) -> Option<String> {
        self.shared.lock().stopped.get(pool).cloned()
    }

    /// Waits until nothing that is due is left, or the time is over; says which.
    pub fn wait_idle(&self, wait: Duration) -> bool {
        let state = self.shared.lock();
        let busy = |state: &mut State| !state.idle || state.next_is_due();
        let (state, timeout) =
            self.shared.changed.wait_timeout_while(state, wait, busy).unwrap_or_else(PoisonError::into_inner);
        drop(state);
        !timeout.timed_out()
    }
}

impl ReaperQueue {
    /// Hands over folders of a pool's trash.
    pub fn add(&self, pool: &Arc<OpenPool>, trashed: impl IntoIterator<Item = Trashed>) {
        let mut state = self.shared.lock();
        for Trashed { folder, retention } in trashed {
            if let Retention::Until(at) = retention {
                state.due.push(Reverse(Due { at, pool: Arc::downgrade(pool), folder }));
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // Under the lock, or the thread that has just looked would sleep on.
        let state = self.shared.lock();
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl State {
    fn next_is_due(&self) -> bool {
        self.due.peek().is_some_and(|Reverse(due)| due.at <= Timestamp::now().seconds)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // Callers come first. Linux keeps a nice value for each thread; without the right to set it, it stays.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while let Some(due) = self.next() {
            let Some(pool) = due.pool.upgrade() else { continue };
            let result = remove_tree(pool.store.trash(), &due.folder, &self.stop);
            let name = &pool.settings.name;
            let mut state = self.lock();
            match result {
                Ok(_) => {
                    state.stopped.remove(name);
                }
                Err(error) => {
                    state.stopped.insert(name.clone(), format!("trash/{}: {}", due.folder, error.chain()));
                    let at = Timestamp::now().seconds.saturating_add(AGAIN_AFTER);
                    state.due.push(Reverse(Due { at, ..due }));
                }
            }
        }
    }

    /// The next folder whose time has come; `None`: stop.
    fn next(&self) -> Option<Due> {
        let mut state = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if state.next_is_due() {
                state.idle = false;
                return state.due.pop().map(|Reverse(due)| due);
            }
            state.idle = true;
            self.changed.notify_all();
            // The clock may be set while we wait, so a far time is looked at again.
            let left =
                state.due.peek().map_or(3600, |Reverse(due)| due.at.saturating_sub(Timestamp::now().seconds));
            let wait = Duration::from_secs(u64::try_from(left).unwrap_or(0).clamp(1, 60));
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
