//! Groups of snapshots. A group exists while its first snapshot does, which is committed last and deleted first, each by one
//! rename. Snapshots of a group without the first one are left by an interrupted creation or deletion: nothing shows them, and
//! they are deleted by the next start, and by the next call that creates or deletes the group.

use std::sync::Arc;

use rustix::fs::{AtFlags, statat};
use rustix::io::Errno;
use tracing::info;

use super::OpenPool;
use super::locks::Mode;
use super::object::{ObjectKey, ObjectKind};
use super::trash::Retention;
use crate::error::{Context as _, Kind, Result};
use crate::volume::{GroupMembership, Name, Snapshot, VolumeId};

impl OpenPool {
    /// Whether a snapshot is what is left of a group that does not exist. A group whose first snapshot has lost its record, or has
    /// one that cannot be read, exists: the others can be used.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn is_left_of_group(&self, snapshot: &Snapshot) -> Result<bool> {
        let Some(group) = &snapshot.group else { return Ok(false) };
        let first = GroupMembership::first(&group.name);
        if first == snapshot.id.name {
            return Ok(false);
        }
        match self.store.snapshot(&first) {
            Ok(Some(first)) => Ok(first.group.is_none_or(|first| first.uid != group.uid)),
            Ok(None) => Ok(!self.has_directory(&first)?),
            Err(error) if error.kind() == Kind::Unreadable => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a snapshot has a directory, and was not deleted in place.
    fn has_directory(&self, name: &Name) -> Result<bool> {
        let kind = ObjectKind::Snapshots;
        match statat(self.store.directory(kind), name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(!self.store.is_deleted(kind, name)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error).context(|| format!("stat {}/{name}", kind.directory())),
        }
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
            info!(pool = %self.settings.name, snapshot = %name, "deleted what is left of a group that does not exist");
        }
        Ok(())
    }
}
