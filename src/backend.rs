//! What a pool's filesystem can do for volumes. One file and one arm of [`open`] for each kind.

mod dir;

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::volume::{Enforced, Limit};

/// A pool's way to make, limit and copy data folders.
///
/// Every method is synchronous and idempotent: after a crash the engine calls it again.
pub trait Backend: Debug + Send + Sync {
    /// The word for it in the marker, in metrics and in `orlop check`.
    fn name(&self) -> &'static str;

    /// Makes the empty folder `data` in a draft, private to root.
    ///
    /// # Errors
    /// What the filesystem says.
    fn make(&self, draft: BorrowedFd<'_>) -> Result<()>;

    /// Sets the limit of a data folder and reads it back; says what the kernel then enforces.
    ///
    /// # Errors
    /// `Unsupported` for a hard limit that this backend cannot set.
    fn limit(&self, data: BorrowedFd<'_>, bytes: u64, request: Limit) -> Result<Enforced>;

    /// Whether a hard limit can be set at all.
    ///
    /// # Errors
    /// `Unsupported`, with the reason.
    fn check_limit(&self, request: Limit) -> Result<()>;
}

/// The backend for a pool's folder, found from its filesystem.
///
/// # Errors
/// What the filesystem says.
pub fn open(_root: BorrowedFd<'_>) -> Result<Box<dyn Backend>> {
    Ok(Box::new(dir::Dir))
}
