//! A pool of plain directories whose filesystem has project quotas gets the backend that uses them.

use super::OpenPool;
use super::marker::change_backend;
use super::object::ObjectKind;
use crate::backend::{BackendKind, kind_for_new_pool};
use crate::error::Result;
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
        change_backend(self.store.root(), BackendKind::Quota)
    }

    /// The state with which an existing volume is to get limits; `None` if it has them.
    ///
    /// # Errors
    /// Same as [`OpenPool::allot`].
    pub fn state_to_enter(&self, name: &Name, state: &BackendState) -> Result<Option<BackendState>> {
        use std::os::fd::AsFd as _;
        let object = self.store.object(ObjectKind::Volumes, name)?;
        let new_id = || self.project_ids.take_one(&self.store);
        self.backend.state_to_enter(object.as_fd(), state, &new_id)
    }
}
