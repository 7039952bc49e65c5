//! orlop: named, sized volumes kept as plain directories.

pub mod engine;
pub mod error;
pub mod mount;
pub mod sys;
pub mod volume;
