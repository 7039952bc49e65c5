//! How a test ends its other threads: also when it fails, else it would wait for them for ever.

use std::sync::atomic::{AtomicBool, Ordering};

/// Says to whoever asks the flag that it is over, when this is dropped.
pub(crate) struct Stop<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
