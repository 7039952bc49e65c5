//! What is in a pool, in memory: enough to list, to count and to keep the ledger. Rebuilt at every opening by reading
//! the pool; never written.

use std::collections::BTreeMap;
use std::thread;

use crate::error::{Context as _, Error, Result};
use crate::pool::store::{ObjectKind, Store};
use crate::volume::{Name, Source, Timestamp, Volume, VolumeId};

/// What a listing needs of a volume. Small: a pool may have a hundred thousand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Promised bytes; 0: none asked for.
    pub size: u64,
    /// What it was copied from.
    pub source: Option<Box<Source>>,
    /// Why its record cannot be read, if it cannot.
    pub damage: Option<Box<str>>,
}

impl From<&Volume> for VolumeEntry {
    fn from(volume: &Volume) -> Self {
        Self { size: volume.size, source: volume.source.clone().map(Box::new), damage: None }
    }
}

/// What a listing needs of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// The volume it was taken of.
    pub of: VolumeId,
    /// When.
    pub created: Timestamp,
}

/// The volumes and snapshots of a pool by name, and the sum of what is promised.
#[derive(Debug, Default)]
pub struct Index {
    volumes: BTreeMap<Name, VolumeEntry>,
    snapshots: BTreeMap<Name, SnapshotEntry>,
    /// Sum of the volumes' sizes and of what is reserved for those being made.
    /// Wide, so that records that say the largest size each are still added and taken off right.
    pub(super) provisioned: u128,
}

impl Index {
    /// Reads every record of a pool.
    pub(super) fn read(store: &Store) -> Result<Self> {
        let mut index = Self::default();
        for (name, entry) in read_volumes(store)? {
            index.put_volume(name, entry);
        }
        for name in store.names(ObjectKind::Snapshots)? {
            // A snapshot without a readable record is not offered; its folder stays for whoever looks.
            if let Ok(Some(snapshot)) = store.snapshot(&name) {
                index.put_snapshot(name, SnapshotEntry { of: snapshot.of, created: snapshot.created });
            }
        }
        Ok(index)
    }

    /// Adds or replaces a volume, and its promise.
    pub fn put_volume(&mut self, name: Name, entry: VolumeEntry) {
        self.provisioned = self.provisioned.saturating_add(entry.size.into());
        if let Some(old) = self.volumes.insert(name, entry) {
            self.provisioned = self.provisioned.saturating_sub(old.size.into());
        }
    }

    /// Forgets a volume and its promise.
    pub fn take_volume(&mut self, name: &Name) {
        if let Some(old) = self.volumes.remove(name) {
            self.provisioned = self.provisioned.saturating_sub(old.size.into());
        }
    }

    /// Adds or replaces a snapshot.
    pub fn put_snapshot(&mut self, name: Name, entry: SnapshotEntry) {
        self.snapshots.insert(name, entry);
    }

    /// Forgets a snapshot.
    pub fn take_snapshot(&mut self, name: &Name) {
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

    /// Bytes promised.
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
        let mut entries = read_entries(store, left)?;
        match other.join() {
            Ok(more) => entries.extend(more?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(entries)
    })
}

/// One damaged volume is one symptom: the others of its pool are served.
fn damaged(error: &Error) -> VolumeEntry {
    VolumeEntry { size: 0, source: None, damage: Some(error.chain().into()) }
}

fn read_entries(store: &Store, names: &[Name]) -> Result<Vec<(Name, VolumeEntry)>> {
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        let entry = match store.volume(name) {
            Ok(Some(volume)) => VolumeEntry::from(&volume),
            // Somebody put a folder there by hand: a volume without a promise, if it has data.
            Ok(None) => match store.data(ObjectKind::Volumes, name) {
                Ok(Some(_)) => VolumeEntry { size: 0, source: None, damage: None },
                Ok(None) => continue,
                Err(error) => damaged(&error),
            },
            Err(error) => damaged(&error),
        };
        entries.push((name.clone(), entry));
    }
    Ok(entries)
}
