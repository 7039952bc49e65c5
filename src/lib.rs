//! orlop: named, sized volumes kept as plain directories.
#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that panics has failed"))]

pub mod engine;
pub mod error;
pub mod volume;
