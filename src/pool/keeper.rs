//! Descriptors that outlive the process that uses a pool: the mount of its share, and its used-locks.
//!
//! A worker process may be killed at any time. Its parent keeps copies of these descriptors, so that the kernel releases
//! neither, and passes them to the next worker, which takes them before it opens anything itself.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;

/// A process that keeps descriptors for the successors of this one.
pub trait Keeper: Debug + Send + Sync {
    /// Keeps a descriptor in place of an earlier one of this name.
    ///
    /// # Errors
    /// `Internal` if it cannot be sent.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()>;

    /// Closes the descriptor of this name.
    ///
    /// # Errors
    /// `Internal` if the request cannot be sent.
    fn close(&self, name: &str) -> Result<()>;
}

/// The descriptors that the predecessors of this process have left, and where this one leaves its own. Without a keeper,
/// they end with the process.
#[derive(Debug, Clone, Default)]
pub struct KeptFiles {
    keeper: Option<Arc<dyn Keeper>>,
    left: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
}

impl KeptFiles {
    /// The descriptors that predecessors have left with this keeper.
    #[must_use]
    pub fn new(keeper: Arc<dyn Keeper>, left: BTreeMap<String, OwnedFd>) -> Self {
        Self { keeper: Some(keeper), left: Arc::new(Mutex::new(left)) }
    }

    /// Takes the descriptor that a predecessor has left, if there is one. It stays with the keeper.
    pub(super) fn take(&self, name: &str) -> Option<OwnedFd> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// Leaves a descriptor with the keeper.
    ///
    /// # Errors
    /// `Internal` if it cannot be sent: the keeper has ended.
    pub(super) fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        self.keeper.as_ref().map_or(Ok(()), |keeper| keeper.keep(name, descriptor))
    }

    /// Closes the descriptor of the keeper, which is of no more use.
    ///
    /// # Errors
    /// Same as [`KeptFiles::keep`].
    pub(super) fn close(&self, name: &str) -> Result<()> {
        self.keeper.as_ref().map_or(Ok(()), |keeper| keeper.close(name))
    }
}
