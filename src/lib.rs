//! orlop: named, sized volumes kept as plain directories.

pub mod backend;
pub mod engine;
pub mod error;
pub mod mount;
pub mod pool;
pub mod store;
pub mod sys;
pub mod volume;
