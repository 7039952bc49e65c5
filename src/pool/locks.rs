//! Locks of volumes, snapshots and targets within this process.
//!
//! The task that does the work holds the guard, so a caller that disconnects does not release it early.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::volume::Name;

/// The object that a lock protects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LockKey {
    /// The volume of this name, in any pool: a name is unique across the pools of a process.
    Volume(Name),
    /// The snapshot of this name, in any pool.
    Snapshot(Name),
    /// A path that volumes are published at.
    Target(PathBuf),
}

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume {name}"),
            Self::Snapshot(name) => write!(f, "snapshot {name}"),
            Self::Target(path) => write!(f, "target {}", path.display()),
        }
    }
}

/// The locks of this process.
#[derive(Debug, Clone)]
pub struct LockTable {
    inner: Arc<Inner>,
    wait: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: HashSet<LockKey>,
    /// Number of waiting callers. Without any, a release needs no wake-up, which would be a system call.
    waiting: usize,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A held lock, released on drop.
#[derive(Debug)]
pub struct LockGuard {
    inner: Arc<Inner>,
    key: LockKey,
}

impl LockTable {
    /// Creates a table whose callers wait at most `wait` for a lock.
    #[must_use]
    pub fn new(wait: Duration) -> Self {
        Self { inner: Arc::default(), wait }
    }

    /// Acquires the lock if it is free.
    #[must_use]
    pub fn try_lock(&self, key: LockKey) -> Option<LockGuard> {
        self.inner.state().held.insert(key.clone()).then(|| self.guard(key))
    }

    /// Acquires the lock, waiting for another call to release it.
    ///
    /// # Errors
    /// `Busy` when another call still holds it at the end of the wait.
    pub fn lock(&self, key: LockKey) -> Result<LockGuard> {
        let deadline = Instant::now() + self.wait;
        let mut state = self.inner.state();
        while state.held.contains(&key) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = format!("another call for {key} is still running: retry later");
                return Err(Error::new(Kind::Busy, text));
            }
            state.waiting += 1;
            state = self.inner.released.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        state.held.insert(key.clone());
        drop(state);
        Ok(self.guard(key))
    }

    fn guard(&self, key: LockKey) -> LockGuard {
        LockGuard { inner: Arc::clone(&self.inner), key }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.held.remove(&self.key);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.inner.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str) -> LockKey {
        LockKey::Volume(Name::of(name))
    }

    #[test]
    fn a_second_call_waits_and_then_fails_as_busy() {
        let locks = LockTable::new(Duration::from_millis(20));
        let guard = locks.try_lock(volume("a")).unwrap();
        assert!(locks.try_lock(volume("a")).is_none());
        assert_eq!(locks.lock(volume("a")).unwrap_err().kind(), Kind::Busy);
        locks.lock(volume("b")).unwrap();
        drop(guard);
        locks.lock(volume("a")).unwrap();
    }

    #[test]
    fn two_calls_never_hold_the_same_lock() {
        let locks = LockTable::new(Duration::from_secs(20));
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _guard = locks.lock(volume("a")).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
