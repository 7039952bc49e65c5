//! The index of a pool in memory: enough for listings and capacity. It is never written;
//! [`cache`](super::cache) keeps it up to date.

use std::collections::BTreeMap;
use std::thread;

use super::object::ObjectKind;
use super::store::{FoundVolume, Store};
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{GroupMembership, Name, Snapshot, Source, Volume, VolumeId};

/// A volume in the index. Small, since a pool may have a hundred thousand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Provisioned size in bytes; 0: no size was requested.
    pub size: u64,
    /// The volume or snapshot that it was copied from.
    pub source: Option<Box<Source>>,
    /// Whether it is deleted with the pod that it was published for.
    pub ephemeral: bool,
    /// Why its record cannot be read; `None` if it can, or if the volume is unmanaged.
    pub damage: Option<Box<str>>,
}

impl From<&Volume> for VolumeEntry {
    fn from(volume: &Volume) -> Self {
        let source = volume.source.clone().map(Box::new);
        Self { size: volume.size, source, ephemeral: volume.ephemeral, damage: None }
    }
}

/// A snapshot in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotEntry {
    /// Its record can be read.
    Of {
        /// The volume that it is a copy of.
        volume: VolumeId,
        /// The group that it belongs to.
        group: Option<Box<GroupMembership>>,
    },
    /// Its record cannot be read, for this reason.
    Damaged(Box<str>),
}

impl From<&Snapshot> for SnapshotEntry {
    fn from(snapshot: &Snapshot) -> Self {
        Self::Of { volume: snapshot.source_volume.clone(), group: snapshot.group.clone().map(Box::new) }
    }
}

/// The volumes and snapshots of a pool by name, and the sum of their provisioned sizes.
#[derive(Debug, Default)]
pub struct Index {
    volumes: BTreeMap<Name, VolumeEntry>,
    snapshots: BTreeMap<Name, SnapshotEntry>,
    /// Sum of the volumes' sizes in bytes. `u128`, so that sums of the largest sizes do not overflow.
    provisioned: u128,
    /// Sum of all reservations of this process.
    pub(super) reserved: u128,
}

impl Index {
    /// Reads every record of a pool. A record that cannot be read affects its own entry only. Returns also the names of
    /// volumes for which a call failed, so that nothing is known about them.
    pub(super) fn read(store: &Store) -> Result<(Self, Vec<Name>)> {
        let (mut index, mut failed) = (Self::default(), Vec::new());
        for (name, entry) in read_volumes(store)? {
            match entry {
                Ok(entry) => index.put_volume(name, entry),
                Err(error) => {
                    failed.push(name.clone());
                    index.put_volume(name, damaged(&error));
                }
            }
        }
        for name in store.names(ObjectKind::Snapshots)? {
            let entry = read_snapshot(store, &name)
                .unwrap_or_else(|error| Some(SnapshotEntry::Damaged(error.chain().into())));
            index.update_snapshot(name, entry);
        }
        Ok((index, failed))
    }

    /// Replaces the entries by those that were just read. Keeps the reservations, and the last known size of a volume whose
    /// record cannot be read.
    pub(super) fn replace(&mut self, read: Self) {
        let old = std::mem::replace(self, Self { reserved: self.reserved, ..Self::default() });
        self.snapshots = read.snapshots;
        for (name, mut entry) in read.volumes {
            if let (Some(_), Some(old)) = (&entry.damage, old.volumes.get(&name)) {
                entry.size = old.size;
            }
            self.put_volume(name, entry);
        }
    }

    /// Adds, replaces or removes a volume whose record was just read. The last known size of a damaged one stays
    /// provisioned.
    pub(super) fn update_volume(&mut self, name: Name, read: Option<VolumeEntry>) {
        match read {
            None => self.remove_volume(&name),
            Some(entry) => {
                let known =
                    self.volumes.get(&name).filter(|_| entry.damage.is_some()).map(|known| known.size);
                self.put_volume(name, VolumeEntry { size: known.unwrap_or(entry.size), ..entry });
            }
        }
    }

    /// Adds, replaces or removes a snapshot whose record was just read.
    pub(super) fn update_snapshot(&mut self, name: Name, read: Option<SnapshotEntry>) {
        match read {
            None => self.remove_snapshot(&name),
            Some(entry) => self.put_snapshot(name, entry),
        }
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, kind: ObjectKind, name: &Name) {
        match kind {
            ObjectKind::Volumes => self.remove_volume(name),
            ObjectKind::Snapshots => self.remove_snapshot(name),
        }
    }

    /// Adds or replaces a volume and its provisioned size.
    pub fn put_volume(&mut self, name: Name, entry: VolumeEntry) {
        self.provisioned = self.provisioned.saturating_add(entry.size.into());
        if let Some(old) = self.volumes.insert(name, entry) {
            self.provisioned = self.provisioned.saturating_sub(old.size.into());
        }
    }

    /// Removes a volume and its provisioned size.
    pub fn remove_volume(&mut self, name: &Name) {
        if let Some(old) = self.volumes.remove(name) {
            self.provisioned = self.provisioned.saturating_sub(old.size.into());
        }
    }

    /// Notes that the record of a volume cannot be read. Its last known size stays provisioned.
    pub fn mark_volume_damaged(&mut self, name: &Name, error: &Error) {
        match self.volumes.get_mut(name) {
            Some(entry) => entry.damage = Some(error.chain().into()),
            None => self.put_volume(name.clone(), damaged(error)),
        }
    }

    /// Adds or replaces a snapshot.
    pub fn put_snapshot(&mut self, name: Name, entry: SnapshotEntry) {
        self.snapshots.insert(name, entry);
    }

    /// Removes a snapshot.
    pub fn remove_snapshot(&mut self, name: &Name) {
        self.snapshots.remove(name);
    }

    /// The volumes by name.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<Name, VolumeEntry> {
        &self.volumes
    }

    /// The snapshots by name.
    #[must_use]
    pub fn snapshots(&self) -> &BTreeMap<Name, SnapshotEntry> {
        &self.snapshots
    }

    /// The volumes and snapshots whose record cannot be read: kind, name and reason.
    pub fn unreadable(&self) -> impl Iterator<Item = (ObjectKind, &Name, &str)> {
        let volumes = self.volumes.iter().filter_map(|(name, entry)| {
            let why = entry.damage.as_deref()?;
            Some((ObjectKind::Volumes, name, why))
        });
        let snapshots = self.snapshots.iter().filter_map(|(name, entry)| match entry {
            SnapshotEntry::Damaged(why) => Some((ObjectKind::Snapshots, name, &**why)),
            SnapshotEntry::Of { .. } => None,
        });
        volumes.chain(snapshots)
    }

    /// Sum of the volumes' sizes in bytes.
    #[must_use]
    pub fn sum_of_sizes(&self) -> u64 {
        u64::try_from(self.provisioned).unwrap_or(u64::MAX)
    }

    /// Bytes provisioned, and reserved by this process.
    #[must_use]
    pub fn provisioned(&self) -> u64 {
        u64::try_from(self.provisioned + self.reserved).unwrap_or(u64::MAX)
    }
}

/// Reads the volumes' records with two threads: a pool of a hundred thousand opens in about a second.
fn read_volumes(store: &Store) -> Result<Vec<(Name, Result<VolumeEntry>)>> {
    let names = store.names(ObjectKind::Volumes)?;
    let (left, right) = names.split_at(names.len() / 2);
    thread::scope(|scope| {
        let other = thread::Builder::new()
            .name("read-pool".to_owned())
            .spawn_scoped(scope, || read_entries(store, right))
            .context(|| "start a thread")?;
        let mut entries = read_entries(store, left);
        match other.join() {
            Ok(more) => entries.extend(more),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(entries)
    })
}

fn damaged(error: &Error) -> VolumeEntry {
    VolumeEntry { size: 0, source: None, ephemeral: false, damage: Some(error.chain().into()) }
}

/// Reads the entries of these volumes. A directory with neither record nor data has none.
fn read_entries(store: &Store, names: &[Name]) -> Vec<(Name, Result<VolumeEntry>)> {
    let entry = |name| Some((Name::clone(name), read_volume(store, name).transpose()?));
    names.iter().filter_map(entry).collect()
}

/// Reads the entry of a volume; `None` if there is no such volume.
///
/// # Errors
/// The error of a failed system call, which says nothing about the volume.
pub(super) fn read_volume(store: &Store, name: &Name) -> Result<Option<VolumeEntry>> {
    match store.find_volume(name) {
        Ok(found) => Ok(found.map(|found| match found {
            FoundVolume::Managed(volume) => VolumeEntry::from(&*volume),
            FoundVolume::Unmanaged => VolumeEntry { size: 0, source: None, ephemeral: false, damage: None },
        })),
        Err(error) if error.kind() == Kind::Unreadable => Ok(Some(damaged(&error))),
        Err(error) => Err(error),
    }
}

/// Reads the entry of a snapshot; `None` if there is no such snapshot.
///
/// # Errors
/// Same as [`read_volume`].
pub(super) fn read_snapshot(store: &Store, name: &Name) -> Result<Option<SnapshotEntry>> {
    match store.snapshot(name) {
        Ok(found) => Ok(found.as_ref().map(SnapshotEntry::from)),
        Err(error) if error.kind() == Kind::Unreadable => {
            Ok(Some(SnapshotEntry::Damaged(error.chain().into())))
        }
        Err(error) => Err(error),
    }
}
