//! Tests with many concurrent callers and with long random sequences of operations. They use all cores.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

mod load {
    mod concurrency;
    mod consistency;
    mod model;
    mod storm;
    mod waiting_copies;
}
