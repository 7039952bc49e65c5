//! Trees of files: walked, copied and removed while somebody may be changing them.

pub mod copy;
pub mod remove;

pub(crate) mod walk;
