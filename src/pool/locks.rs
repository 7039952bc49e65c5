//! One call at a time for each object. A lock is held by the work itself, so that a caller who hangs up frees nothing.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};

/// The objects that are being worked on.
#[derive(Debug, Clone)]
pub struct LockTable {
    inner: Arc<Inner>,
    wait: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: HashSet<String>,
    /// Callers that wait. To wake nobody is a system call too, and there is nearly always nobody.
    waiting: usize,
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to work on one object, until dropped.
#[derive(Debug)]
pub struct LockGuard {
    inner: Arc<Inner>,
    key: String,
}

impl LockTable {
    /// Locks whose callers wait at most so long for each other.
    #[must_use]
    pub fn new(wait: Duration) -> Self {
        Self { inner: Arc::default(), wait }
    }

    /// Takes the lock of an object if nobody has it.
    #[must_use]
    pub fn try_take(&self, key: String) -> Option<LockGuard> {
        self.inner.lock().held.insert(key.clone()).then(|| LockGuard { inner: Arc::clone(&self.inner), key })
    }

    /// Takes the lock of an object, such as "volume a".
    ///
    /// # Errors
    /// `Busy` when another call still has it after the wait.
    pub fn take(&self, key: String) -> Result<LockGuard> {
        let deadline = Instant::now() + self.wait;
        let mut state = self.inner.lock();
        while state.held.contains(&key) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(
                    Kind::Busy,
                    format!("another call for {key} is still running: try again"),
                ));
            }
            state.waiting += 1;
            state = self.inner.freed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        state.held.insert(key.clone());
        drop(state);
        Ok(LockGuard { inner: Arc::clone(&self.inner), key })
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        state.held.remove(&self.key);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.inner.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_call_waits_and_is_then_told() {
        let locks = LockTable::new(Duration::from_millis(20));
        let held = locks.try_take("volume a".into()).unwrap();
        assert!(locks.try_take("volume a".into()).is_none());
        assert_eq!(locks.take("volume a".into()).unwrap_err().kind(), Kind::Busy);
        locks.take("volume b".into()).unwrap();
        drop(held);
        locks.take("volume a".into()).unwrap();
    }

    #[test]
    fn only_one_at_a_time_gets_in() {
        let locks = LockTable::new(Duration::from_secs(20));
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _held = locks.take("volume a".into()).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
