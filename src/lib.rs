//! orlop: named, sized volumes kept as plain directories.

pub mod engine;
pub mod error;
pub mod volume;
