//! Locks of volumes, snapshots, drafts and trash, which exclude the other calls of this process and all other processes
//! that use the pool; and in-process locks of targets.
//!
//! A key is locked in this process first, then in the kernel, as one byte of one of the pool's lock files.
//! The kernel drops the locks of a process that ends. The task that does the work holds the guard, so a caller that
//! disconnects does not release it early.
//!
//! Order: the object, its target, the copy to it, the data of its source, a draft or an entry of the trash, the commit.
//! Every wait ends.

use std::collections::HashMap;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::lock_files::LockFiles;
pub use super::lock_files::Mode;
use crate::error::{Context as _, Error, Kind, Result};

/// The first and the longest pause between two attempts to get a lock that another process holds.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));

/// How long a caller waits for another one in the middle of a system call before it looks again.
const CHANGE_WAIT: Duration = Duration::from_secs(1);

/// What a lock is acquired for.
pub trait LockKey: Clone + Eq + Hash + Display {
    /// The name that the kernel's lock is derived from. Processes of different versions exclude each other by it, so it
    /// never changes.
    fn lock_name(&self) -> String {
        self.to_string()
    }
}

/// A table of locks.
#[derive(Debug)]
pub struct LockTable<K: Eq + Hash> {
    inner: Arc<Inner<K>>,
    wait: Duration,
}

#[derive(Debug)]
struct Inner<K: Eq + Hash> {
    state: Mutex<State<K>>,
    /// The locks of the kernel; `None` if the keys concern this process only.
    files: Option<LockFiles>,
}

#[derive(Debug)]
struct State<K: Eq + Hash> {
    held: HashMap<K, Holders>,
    /// The keys that callers wait for.
    waiting: HashMap<K, Waiting>,
}

/// The callers that wait for one key. The release of another key does not wake them.
#[derive(Debug, Default)]
struct Waiting {
    callers: usize,
    /// Whether one of them wants to share the key. All are woken then, since several can continue.
    shared: bool,
    released: Arc<Condvar>,
}

/// The holders of a key in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holders {
    /// One, which holds it exclusively or is about to.
    One,
    /// The first of several that share it, while it acquires the lock of the kernel, or the last one while it releases it.
    Changing,
    /// A number of holders that share it.
    Shared(usize),
}

/// A held lock, released on drop.
#[derive(Debug)]
pub struct LockGuard<K: LockKey> {
    inner: Arc<Inner<K>>,
    key: K,
    /// Whether the kernel's lock is held, too.
    in_kernel: bool,
}

impl<K: Eq + Hash> Clone for LockTable<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), wait: self.wait }
    }
}

impl<K: LockKey> LockTable<K> {
    /// Creates a table for this process. Its callers wait at most `wait` for a lock.
    #[must_use]
    pub fn new(wait: Duration) -> Self {
        Self::with_files(None, wait)
    }

    pub(super) fn with_files(files: Option<LockFiles>, wait: Duration) -> Self {
        let state = Mutex::new(State { held: HashMap::new(), waiting: HashMap::new() });
        Self { inner: Arc::new(Inner { state, files }), wait }
    }

    /// Makes the files of the kernel's locks that are missing.
    pub(super) fn make_files(&self) -> Result<()> {
        self.inner.files.as_ref().map_or(Ok(()), LockFiles::make_all)
    }

    /// How long its callers wait for a lock.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// Acquires an exclusive lock, waiting for its holder.
    ///
    /// # Errors
    /// `Busy` when it is still held at the end of the wait; otherwise the error of the failed system call.
    pub fn lock(&self, key: K) -> Result<LockGuard<K>> {
        self.lock_within(key, self.wait)
    }

    /// Like [`LockTable::lock`], with another longest wait.
    ///
    /// # Errors
    /// Same as [`LockTable::lock`].
    pub fn lock_within(&self, key: K, wait: Duration) -> Result<LockGuard<K>> {
        let deadline = Instant::now() + wait;
        let text = key.to_string();
        let busy =
            |by: &str| Error::new(Kind::Busy, format!("another {by} is working on {text}: retry later"));
        self.acquire(key, Mode::Exclusive, deadline)?.map_err(|holder| busy(holder.noun()))
    }

    /// Acquires a lock if no other holder excludes it; `None` otherwise.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn try_lock(&self, key: K, mode: Mode) -> Result<Option<LockGuard<K>>> {
        Ok(self.acquire(key, mode, Instant::now())?.ok())
    }

    fn acquire(
        &self,
        key: K,
        mode: Mode,
        deadline: Instant,
    ) -> Result<std::result::Result<LockGuard<K>, Holder>> {
        let mut state = self.inner.state();
        loop {
            let left = match state.held.get_mut(&key) {
                None => break,
                Some(Holders::Shared(count)) if mode == Mode::Shared => {
                    *count += 1;
                    drop(state);
                    return Ok(Ok(self.guard(key, true)));
                }
                // Not a reason to fail: it ends after one system call.
                Some(Holders::Changing) if mode == Mode::Shared => CHANGE_WAIT,
                Some(_) => deadline.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                return Ok(Err(Holder::Call));
            }
            state = State::wait(state, &key, mode, left);
        }
        let holder = if mode == Mode::Shared { Holders::Changing } else { Holders::One };
        state.held.insert(key.clone(), holder);
        drop(state);
        let mut guard = self.guard(key, false);
        guard.in_kernel = self.inner.lock_in_kernel(&guard.key, mode, deadline)?;
        if !guard.in_kernel {
            return Ok(Err(Holder::Process));
        }
        if mode == Mode::Shared {
            self.inner.update(&guard.key, |held| held.insert(guard.key.clone(), Holders::Shared(1)));
        }
        Ok(Ok(guard))
    }

    fn guard(&self, key: K, in_kernel: bool) -> LockGuard<K> {
        LockGuard { inner: Arc::clone(&self.inner), key, in_kernel }
    }
}

/// The holder that excludes a caller.
#[derive(Debug, Clone, Copy)]
enum Holder {
    Call,
    Process,
}

impl Holder {
    fn noun(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Process => "process",
        }
    }
}

impl<K: Eq + Hash> Inner<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the holders of a key and wakes the callers that wait for it.
    fn update<T>(&self, key: &K, change: impl FnOnce(&mut HashMap<K, Holders>) -> T) {
        let mut state = self.state();
        change(&mut state.held);
        let Some(waiting) = state.waiting.get(key) else { return };
        let (shared, released) = (waiting.shared, Arc::clone(&waiting.released));
        drop(state);
        if shared { released.notify_all() } else { released.notify_one() }
    }
}

impl<K: LockKey> State<K> {
    /// Waits until the holders of a key change, at most for `left`.
    fn wait<'s>(
        mut state: MutexGuard<'s, Self>,
        key: &K,
        mode: Mode,
        left: Duration,
    ) -> MutexGuard<'s, Self> {
        let waiting = state.waiting.entry(key.clone()).or_default();
        waiting.callers += 1;
        waiting.shared |= mode == Mode::Shared;
        let released = Arc::clone(&waiting.released);
        let mut state = released.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        if let Some(waiting) = state.waiting.get_mut(key) {
            waiting.callers -= 1;
            if waiting.callers == 0 {
                state.waiting.remove(key);
            }
        }
        state
    }
}

impl<K: LockKey> Inner<K> {
    /// Acquires the lock of the kernel; reports whether that happened in time. Never uses the call that waits, which has no
    /// deadline.
    #[expect(
        clippy::disallowed_methods,
        reason = "the kernel does not report that another process released a lock"
    )]
    fn lock_in_kernel(&self, key: &K, mode: Mode, deadline: Instant) -> Result<bool> {
        let Some(files) = &self.files else { return Ok(true) };
        let (mut pause, longest, name) = (RETRY_PAUSE.0, RETRY_PAUSE.1, key.lock_name());
        while !files.try_lock(&name, mode).context(|| format!("lock {key}"))? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(longest);
        }
        Ok(true)
    }

    /// Takes one holder of a key away; reports whether it was the last one. The last one keeps the key until the kernel's
    /// lock is released.
    fn leave(&self, key: &K) -> bool {
        match self.state().held.get_mut(key) {
            Some(Holders::Shared(count)) if *count > 1 => {
                *count -= 1;
                false
            }
            Some(holders @ Holders::Shared(_)) => {
                *holders = Holders::Changing;
                true
            }
            Some(Holders::One | Holders::Changing) | None => true,
        }
    }
}

impl<K: LockKey> Drop for LockGuard<K> {
    fn drop(&mut self) {
        if !self.inner.leave(&self.key) {
            return;
        }
        if let Some(files) = self.inner.files.as_ref().filter(|_| self.in_kernel) {
            files.unlock(&self.key.lock_name());
        }
        self.inner.update(&self.key, |held| held.remove(&self.key));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::pool::object::{ObjectKey, ObjectKind};
    use crate::volume::Name;

    fn files(dir: &std::path::Path) -> LockFiles {
        LockFiles::new(OwnedFd::from(std::fs::File::open(dir).unwrap()))
    }

    /// Two tables on one directory, as in two processes: the kernel's locks belong to open file descriptions.
    fn two(wait: Duration) -> (tempfile::TempDir, LockTable<ObjectKey>, LockTable<ObjectKey>) {
        let dir = tempfile::tempdir().unwrap();
        let table = || LockTable::with_files(Some(files(dir.path())), wait);
        let (one, other) = (table(), table());
        (dir, one, other)
    }

    fn volume(name: &str) -> ObjectKey {
        ObjectKey::Object(ObjectKind::Volumes, Name::of(name))
    }

    #[test]
    fn a_second_call_waits_and_then_fails_as_busy() {
        let (_dir, one, other) = two(Duration::from_millis(20));
        let guard = one.try_lock(volume("a"), Mode::Exclusive).unwrap().unwrap();
        for table in [&one, &other] {
            assert!(table.try_lock(volume("a"), Mode::Exclusive).unwrap().is_none());
            assert!(table.try_lock(volume("a"), Mode::Shared).unwrap().is_none());
            assert_eq!(table.lock(volume("a")).unwrap_err().kind(), Kind::Busy);
            table.lock(volume("b")).unwrap();
        }
        drop(guard);
        other.lock(volume("a")).unwrap();
        one.lock(volume("a")).unwrap();
    }

    #[test]
    fn a_shared_lock_ends_with_its_last_holder() {
        let (_dir, one, other) = two(Duration::from_millis(20));
        let shared = |table: &LockTable<_>| table.try_lock(volume("a"), Mode::Shared).unwrap();
        let exclusive = |table: &LockTable<_>| table.try_lock(volume("a"), Mode::Exclusive).unwrap();
        let (first, second) = (shared(&one).unwrap(), shared(&one).unwrap());
        let third = shared(&other).unwrap();
        drop(first);
        assert!(exclusive(&one).is_none() && exclusive(&other).is_none());
        drop(third);
        assert!(exclusive(&other).is_none(), "one still has a holder");
        drop(second);
        assert!(exclusive(&other).is_some() && exclusive(&one).is_some());
    }

    #[test]
    fn two_calls_never_hold_the_same_lock() {
        let (_dir, one, other) = two(Duration::from_secs(20));
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for table in [&one, &other].repeat(4) {
                let inside = &inside;
                scope.spawn(move || {
                    for _ in 0..100 {
                        let _guard = table.lock(volume("a")).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }

    #[test]
    fn shared_locks_never_exclude_each_other() {
        let (_dir, one, other) = two(Duration::ZERO);
        thread::scope(|scope| {
            for table in [&one, &other].repeat(2) {
                scope.spawn(move || {
                    for _ in 0..2000 {
                        assert!(table.try_lock(volume("a"), Mode::Shared).unwrap().is_some());
                    }
                });
            }
        });
    }

    impl LockKey for &str {}

    #[test]
    fn a_lock_without_files_excludes_the_calls_of_this_process() {
        let table = LockTable::new(Duration::from_millis(1));
        let guard = table.lock("a").unwrap();
        assert_eq!(table.lock("a").unwrap_err().kind(), Kind::Busy);
        drop(guard);
        table.lock("a").unwrap();
    }
}
