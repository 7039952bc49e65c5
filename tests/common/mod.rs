//! Code that the test binaries share.
#![allow(clippy::allow_attributes, reason = "each test binary uses another part of this module")]
#![allow(dead_code, reason = "each test binary uses another part of this module")]

pub(crate) mod backends;
pub(crate) mod child;
pub(crate) mod container;
pub(crate) mod csi;
pub(crate) mod disk;
pub(crate) mod full_volume;
pub(crate) mod held;
pub(crate) mod isolation;
pub(crate) mod mapper;
pub(crate) mod plugin;
pub(crate) mod pool;
pub(crate) mod random;
pub(crate) mod server;
pub(crate) mod wait;
