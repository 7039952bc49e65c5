//! Polling, and stopping threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orlop::error::{Kind, Result};

/// Sleeps between two polls of a condition.
#[expect(clippy::disallowed_methods, reason = "a test may poll")]
pub(crate) fn sleep_ms(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Polls a condition; panics if it does not hold in time.
#[track_caller]
pub(crate) fn within_seconds(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        sleep_ms(2);
    }
}

/// Repeats a call while it returns `Busy`.
pub(crate) fn retry_busy<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match call() {
            Err(error) if error.kind() == Kind::Busy && Instant::now() < deadline => sleep_ms(1),
            answer => return answer,
        }
    }
}

/// Sets a flag when dropped, so that the threads that poll the flag end even if the test panics.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
