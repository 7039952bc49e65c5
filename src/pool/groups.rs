//! Groups of snapshots. A group exists while its first snapshot does, which is committed last and deleted first, each by one
//! rename. Snapshots of a group without the first one are left by an interrupted creation or deletion: nothing shows them, and
//! they are deleted by the next start, and by the next call that creates or deletes the group.

use std::sync::Arc;

use super::OpenPool;
use super::locks::Mode;
use super::object::{ObjectKey, ObjectKind};
use super::trash::Retention;
use crate::error::{Kind, Result};
use crate::volume::{GroupMembership, Name, Snapshot, VolumeId};

impl OpenPool {
    /// Whether a snapshot is what is left of a group that does not exist.
    ///
    /// # Errors
    /// `Unreadable` when the record of the first snapshot of its group is; otherwise the error of the system call.
    pub fn is_left_of_group(&self, snapshot: &Snapshot) -> Result<bool> {
        let Some(group) = &snapshot.group else { return Ok(false) };
        let first = GroupMembership::first(&group.name);
        if first == snapshot.id.name {
            return Ok(false);
        }
        let first = self.store.snapshot(&first)?.and_then(|first| first.group);
        Ok(first.is_none_or(|first| first.uid != group.uid))
    }

    /// Deletes what is left of all groups that do not exist.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub(super) fn discard_partial_groups(&self) -> Result<()> {
        let names = self.store.names(ObjectKind::Snapshots)?;
        names.iter().try_for_each(|name| self.discard_if_left(name))
    }

    /// Deletes what is left of one group that does not exist.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn discard_partial_group(self: &Arc<Self>, group: &Name) -> Result<()> {
        let members = (2..=GroupMembership::MAX).map(|number| GroupMembership::member(group, number));
        let left: Vec<_> = {
            let index = self.index()?;
            members.filter(|name| index.snapshots().contains_key(name)).collect()
        };
        left.iter().try_for_each(|name| self.discard_if_left(name))
    }

    /// Deletes a snapshot if it is left of a group, and if no call is committing or deleting the group now.
    fn discard_if_left(&self, name: &Name) -> Result<()> {
        let is_left = || match self.store.snapshot(name) {
            Ok(Some(found)) => self.is_left_of_group(&Snapshot {
                id: VolumeId { pool: self.settings.name.clone(), name: name.clone() },
                ..found
            }),
            Ok(None) => Ok(false),
            Err(error) if error.kind() == Kind::Unreadable => Ok(false),
            Err(error) => Err(error),
        };
        if !is_left()? {
            return Ok(());
        }
        let kind = ObjectKind::Snapshots;
        let lock = |key| self.store.locks().try_lock(key, Mode::Exclusive);
        let (Some(_object), Some(_copy), Some(_data)) = (
            lock(ObjectKey::Object(kind, name.clone()))?,
            lock(ObjectKey::CopyTo(kind, name.clone()))?,
            lock(ObjectKey::Data(kind, name.clone()))?,
        ) else {
            return Ok(());
        };
        if is_left()? {
            self.reaper.add([self.discard(kind, name, Retention::seconds(0))?]);
        }
        Ok(())
    }
}
