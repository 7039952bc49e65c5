//! A pool of plain directories whose filesystem has project quotas gets the backend that uses them.

use super::OpenPool;
use super::marker::{self, change_backend};
use super::object::{ObjectKey, ObjectKind};
use crate::backend::{BackendKind, kind_for_new_pool};
use crate::error::{Error, Kind, Result};
use crate::volume::{BackendState, Name};

impl OpenPool {
    /// Whether its volumes could have limits that the kernel enforces, if the pool had another backend.
    #[must_use]
    pub fn can_be_taken_over(&self) -> bool {
        self.backend.kind() == BackendKind::Dir && kind_for_new_pool(self.store.root()) == BackendKind::Quota
    }

    /// Records the backend with project quotas in the marker. Each process opens the pool again before its next change.
    ///
    /// # Errors
    /// `Unavailable` when the directories of the pool pass on a project id; otherwise the error of the failed system call.
    pub fn take_over(&self) -> Result<()> {
        self.store.projects().check_none(&self.settings.path)?;
        // No host commits anything for the old backend meanwhile.
        let _commit = self.store.locks().lock(ObjectKey::Commit)?;
        change_backend(self.store.root(), BackendKind::Quota)
    }

    /// Refuses to use a volume when another process has changed the backend of the pool since the call began.
    ///
    /// # Errors
    /// `Unavailable` then.
    pub fn check_same_backend(&self) -> Result<()> {
        if self.marker_inode.is_none() || marker::inode(self.store.root()) == self.marker_inode {
            return Ok(());
        }
        let text =
            format!("the backend of pool {} has changed since the call began: retry", self.settings.name);
        Err(Error::new(Kind::Unavailable, text))
    }

    /// Whether an existing volume has limits, as far as it can have them.
    ///
    /// # Errors
    /// `Unavailable` or `Internal` when its directory cannot be opened.
    pub fn has_entered(&self, name: &Name, state: &BackendState) -> Result<bool> {
        use std::os::fd::AsFd as _;
        let object = self.store.object(ObjectKind::Volumes, name)?;
        Ok(self.backend.has_entered(object.as_fd(), state))
    }

    /// The state with which an existing volume is to get limits.
    ///
    /// # Errors
    /// Same as [`OpenPool::allot`].
    pub fn state_to_enter(&self, state: &BackendState) -> Result<BackendState> {
        self.backend.state_to_enter(state, &|| self.project_ids.take_one(&self.store))
    }
}
