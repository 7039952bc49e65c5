//! Groups of snapshots. A group exists while its first snapshot does, which is committed last and deleted first, each by one
//! rename. Snapshots of a group without the first one are left by an interrupted creation or deletion: nothing shows them, and
//! they are deleted by the next start, and by the next call that creates or deletes the group.

use std::sync::Arc;

use rustix::fs::{AtFlags, statat};
use rustix::io::Errno;
use tracing::info;

use super::OpenPool;
use super::index::{Index, SnapshotEntry};
use super::locks::Mode;
use super::object::{ObjectKey, ObjectKind};
use super::trash::Retention;
use crate::error::{Context as _, Error, Kind, Result};
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
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn has_directory(&self, name: &Name) -> Result<bool> {
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
    pub(super) fn discard_partial_groups(self: &Arc<Self>) -> Result<()> {
        let left = left_of_groups(&*self.index()?);
        left.iter().try_for_each(|name| match self.discard_if_left(name) {
            // Another process commits or deletes the group.
            Err(error) if error.kind() == Kind::Busy => Ok(()),
            discarded => discarded,
        })
    }

    /// Deletes what is left of one group that does not exist.
    ///
    /// # Errors
    /// `Busy` when another call works on it; otherwise the error of the failed system call.
    pub fn discard_partial_group(self: &Arc<Self>, group: &Name) -> Result<()> {
        self.left_of_group(group)?.iter().try_for_each(|name| self.discard_if_left(name))
    }

    /// The snapshots that are left of one group that does not exist.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn left_of_group(self: &Arc<Self>, group: &Name) -> Result<Vec<Name>> {
        let mut left = Vec::new();
        for name in self.other_members(group)? {
            if self.is_left(&name)? {
                left.push(name);
            }
        }
        Ok(left)
    }

    /// What the other snapshots of a group say about it, whose first one has lost its record; `None` if it has no others.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn group_without_first(self: &Arc<Self>, group: &Name) -> Result<Option<GroupMembership>> {
        if !self.has_directory(&GroupMembership::first(group))? {
            return Ok(None);
        }
        for name in self.other_members(group)? {
            let found = self.store.snapshot(&name)?.and_then(|found| found.group);
            if let Some(found) = found.filter(|found| found.name == *group) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The snapshots that have the names of a group's, but for its first one.
    fn other_members(self: &Arc<Self>, group: &Name) -> Result<Vec<Name>> {
        let index = self.index()?;
        let members = (2..=GroupMembership::MAX).map(|number| GroupMembership::member(group, number));
        Ok(members.filter(|name| index.snapshots().contains_key(name)).collect())
    }

    /// Whether a snapshot is left of a group.
    fn is_left(&self, name: &Name) -> Result<bool> {
        match self.store.snapshot(name) {
            Ok(Some(found)) => self.is_left_of_group(&Snapshot {
                id: VolumeId { pool: self.settings.name.clone(), name: name.clone() },
                ..found
            }),
            Ok(None) => Ok(false),
            Err(error) if error.kind() == Kind::Unreadable => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a snapshot if it is left of a group.
    ///
    /// # Errors
    /// `Busy` when a call is committing or deleting the group now.
    fn discard_if_left(&self, name: &Name) -> Result<()> {
        if !self.is_left(name)? {
            return Ok(());
        }
        let kind = ObjectKind::Snapshots;
        let lock = |key| self.store.locks().try_lock(key, Mode::Exclusive);
        let (Some(_object), Some(_copy), Some(_data)) = (
            lock(ObjectKey::Object(kind, name.clone()))?,
            lock(ObjectKey::CopyTo(kind, name.clone()))?,
            lock(ObjectKey::Data(kind, name.clone()))?,
        ) else {
            let text = format!(
                "snapshot {}/{name}, which an interrupted call has left of its group, is in use by another call: retry",
                self.settings.name
            );
            return Err(Error::new(Kind::Busy, text));
        };
        if self.is_left(name)? {
            self.reaper.add([self.discard(kind, name, Retention::seconds(0))?]);
            info!(pool = %self.settings.name, snapshot = %name, "deleted what is left of a group that does not exist");
        }
        Ok(())
    }
}

/// The snapshots that may be left of groups, as far as the index knows.
fn left_of_groups(index: &Index) -> Vec<Name> {
    let snapshots = index.snapshots();
    let may_be_left = |(name, entry): &(&Name, &SnapshotEntry)| {
        group_of(entry).is_some_and(|group| {
            let first = GroupMembership::first(&group.name);
            let of_first = snapshots.get(&first).and_then(group_of);
            first != **name && of_first.is_none_or(|found| found.uid != group.uid)
        })
    };
    snapshots.iter().filter(may_be_left).map(|(name, _)| name.clone()).collect()
}

fn group_of(entry: &SnapshotEntry) -> Option<&GroupMembership> {
    match entry {
        SnapshotEntry::Of { group, .. } => group.as_deref(),
        SnapshotEntry::Damaged(_) => None,
    }
}
