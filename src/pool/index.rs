//! The index of a pool in memory: enough for listings and capacity. It is read from the pool at each opening and never
//! written.

use std::collections::BTreeMap;
use std::thread;

use super::store::{ObjectKind, Store};
use crate::error::{Context as _, Error, Result};
use crate::volume::{Name, Snapshot, Source, Volume, VolumeId};

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
    /// A copy of this volume.
    Of(VolumeId),
    /// Its record cannot be read, for this reason.
    Damaged(Box<str>),
}

impl From<&Snapshot> for SnapshotEntry {
    fn from(snapshot: &Snapshot) -> Self {
        Self::Of(snapshot.source_volume.clone())
    }
}

/// The volumes and snapshots of a pool by name, and the sum of their provisioned sizes.
#[derive(Debug, Default)]
pub struct Index {
    volumes: BTreeMap<Name, VolumeEntry>,
    snapshots: BTreeMap<Name, SnapshotEntry>,
    /// Sum of the volumes' sizes and of all reservations, in bytes. `u128`, so that sums of
    /// the largest sizes do not overflow.
    pub(super) provisioned: u128,
}

impl Index {
    /// Reads every record of a pool. A damaged record affects its own entry only.
    pub(super) fn read(store: &Store) -> Result<Self> {
        let mut index = Self::default();
        for (name, entry) in read_volumes(store)? {
            index.put_volume(name, entry);
        }
        for name in store.names(ObjectKind::Snapshots)? {
            match store.snapshot(&name) {
                Ok(Some(snapshot)) => index.put_snapshot(name, SnapshotEntry::from(&snapshot)),
                Ok(None) => {}
                Err(error) => index.put_snapshot(name, SnapshotEntry::Damaged(error.chain().into())),
            }
        }
        Ok(index)
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

    /// Number of volumes and snapshots whose record cannot be read.
    #[must_use]
    pub fn unreadable_count(&self) -> usize {
        let snapshots = self.snapshots.values().filter(|entry| matches!(entry, SnapshotEntry::Damaged(_)));
        self.volumes.values().filter(|entry| entry.damage.is_some()).count() + snapshots.count()
    }

    /// Bytes provisioned.
    #[must_use]
    pub fn provisioned(&self) -> u64 {
        u64::try_from(self.provisioned).unwrap_or(u64::MAX)
    }
}

/// Reads the volumes' records with two threads: a pool of a hundred thousand opens in about a second.
fn read_volumes(store: &Store) -> Result<Vec<(Name, VolumeEntry)>> {
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
fn read_entries(store: &Store, names: &[Name]) -> Vec<(Name, VolumeEntry)> {
    let entries = names.iter().filter_map(|name| Some((name.clone(), read_entry(store, name)?)));
    entries.collect()
}

fn read_entry(store: &Store, name: &Name) -> Option<VolumeEntry> {
    match store.volume(name) {
        Ok(Some(volume)) => Some(VolumeEntry::from(&volume)),
        // A directory without a record is an unmanaged volume if it has data.
        Ok(None) => match store.data(ObjectKind::Volumes, name) {
            Ok(Some(_)) => Some(VolumeEntry { size: 0, source: None, ephemeral: false, damage: None }),
            Ok(None) => None,
            Err(error) => Some(damaged(&error)),
        },
        Err(error) => Some(damaged(&error)),
    }
}
