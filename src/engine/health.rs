//! The health of volumes and the space that they take.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::request::{Amounts, Severity, Symptom, Usage};
use super::source::reopen;
use crate::backend::Used;
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount;
use crate::pool::object::ObjectKind;
use crate::pool::{OpenPool, VolumeEntry};
use crate::volume::{Enforced, Size, Volume, VolumeId};

/// Longest wait of a request for the first measurement of a volume.
const FIRST_MEASUREMENT: Duration = Duration::from_millis(500);

impl Engine {
    /// Returns the usage of a published volume.
    ///
    /// # Errors
    /// `NotFound` when the volume does not exist or is not published at `path`.
    pub fn stats(&self, id: &VolumeId, path: &Path) -> Result<Usage> {
        let pool = self.pool(&id.pool)?;
        let volume = self.require_without_lock(&pool, id)?;
        self.check_published_at(&pool, id, path)?;
        self.measure(&pool, &volume)
    }

    fn measure(&self, pool: &Arc<OpenPool>, volume: &Volume) -> Result<Usage> {
        let size = volume.size;
        let stats = pool.fs_stats()?;
        let (used, used_inodes) = used(pool, volume, FIRST_MEASUREMENT)?;
        let available =
            if size == 0 { stats.free } else { size.saturating_sub(used.unwrap_or(0)).min(stats.free) };
        let total = if size == 0 { stats.total } else { size };
        let inodes = match volume.policy.inodes {
            most if matches!(volume.enforced, Enforced::Inodes | Enforced::BytesAndInodes) => {
                let left = most.saturating_sub(used_inodes.unwrap_or(0));
                Amounts { total: most, used: used_inodes, available: left.min(stats.inodes_free) }
            }
            _ => Amounts { total: stats.inodes, used: used_inodes, available: stats.inodes_free },
        };
        Ok(Usage { bytes: Amounts { total, used, available }, inodes })
    }

    /// Returns the symptoms of a volume; a healthy volume has none. With a path, its mount there is checked, too.
    ///
    /// # Errors
    /// `NotFound` when its pool is available and the volume does not exist.
    pub fn health(&self, id: &VolumeId, path: Option<&Path>) -> Result<Vec<Symptom>> {
        let pool = match self.pool(&id.pool) {
            Err(error) if error.kind() == Kind::Unavailable => {
                return Ok(vec![symptom(Severity::Inaccessible, "PoolUnavailable", error.chain())]);
            }
            pool => pool?,
        };
        let Some(entry) = self.refreshed_entry(&pool, id) else {
            return Err(Error::new(Kind::NotFound, format!("volume {id} does not exist")));
        };
        let mut symptoms = known_symptoms(&pool, id, &entry);
        let stats = pool.fs_stats_after_errors()?;
        if let Some(refusal) = stats.refusal().filter(|_| stats.read_only) {
            symptoms.push(symptom(Severity::Degraded, "PoolReadOnly", refusal.chain()));
        }
        match pool.store.data(ObjectKind::Volumes, &id.name) {
            Ok(None) => {
                let text = format!(
                    "the data directory of volume {id} is missing: restore it from a backup or snapshot"
                );
                symptoms.push(symptom(Severity::DataLoss, "DataMissing", text));
            }
            Err(error) if error.kind() == Kind::Unavailable => {
                symptoms.push(symptom(Severity::Inaccessible, "DataUnavailable", error.chain()));
            }
            data => {
                data?;
                symptoms.extend(path.and_then(|path| self.symptom_of_mount(&pool, id, path)));
            }
        }
        Ok(symptoms)
    }

    /// What is wrong with the mount of a volume at a path.
    fn symptom_of_mount(&self, pool: &OpenPool, id: &VolumeId, path: &Path) -> Option<Symptom> {
        let found = match self.check_published_at(pool, id, path) {
            Err(error) => return Some(symptom(Severity::Inaccessible, "NotPublished", error.chain())),
            Ok(found) => found,
        };
        let is_stale = mount::is_stale(&found, path);
        is_stale.then(|| symptom(Severity::Inaccessible, "StaleMount", stale(id, path)))
    }

    /// Reads the record and returns the updated entry of the index.
    fn refreshed_entry(&self, pool: &Arc<OpenPool>, id: &VolumeId) -> Option<VolumeEntry> {
        // An unreadable record is no error here: the index notes it, and it becomes a symptom.
        let _ = self.peek(pool, id);
        pool.cached_index().volumes().get(&id.name).cloned()
    }
}

/// The bytes and the inodes that a volume takes, as far as they are known within `wait`.
pub(super) fn used(pool: &OpenPool, volume: &Volume, wait: Duration) -> Result<(Option<u64>, Option<u64>)> {
    let data = open_data(pool, volume)?;
    if let Some(used) = used_by_backend(pool, volume)? {
        return Ok((Some(used.bytes), used.inodes));
    }
    let measured = pool.usage.measure(&volume.id.name, data, wait)?;
    Ok((measured.map(|usage| usage.bytes), measured.map(|usage| usage.inodes)))
}

/// The space that a volume takes as its filesystem counts it; `None` if its files must be counted.
pub(super) fn used_by_backend(pool: &OpenPool, volume: &Volume) -> Result<Option<Used>> {
    let object = pool.store.object(ObjectKind::Volumes, &volume.id.name)?;
    let used = pool.backend.used(object.as_fd(), &volume.backend);
    used.context(|| format!("read the usage of volume {}", volume.id))
}

/// Opens the data of a volume for reading.
pub(super) fn open_data(pool: &OpenPool, volume: &Volume) -> Result<OwnedFd> {
    let id = &volume.id;
    let data = pool.store.data(ObjectKind::Volumes, &id.name)?;
    let data = data.ok_or_else(|| Error::new(Kind::NotFound, format!("volume {id} has no data")))?;
    reopen(data.as_fd())
}

/// The symptoms in the index and the last measurement, without access to the disk.
pub(super) fn known_symptoms(pool: &OpenPool, id: &VolumeId, entry: &VolumeEntry) -> Vec<Symptom> {
    let mut symptoms = Vec::new();
    if let Some(damage) = &entry.damage {
        let text = format!("the record of volume {id} cannot be read: {damage}");
        symptoms.push(symptom(Severity::DataLoss, "RecordUnreadable", text));
    }
    if let Some(reason) = pool.used().and_then(|used| used.lost(&id.name)) {
        let text = format!(
            "this host lost volume {id} while it could not reach the pool, and its pods go on: {reason}"
        );
        symptoms.push(symptom(Severity::Inaccessible, "LostToOtherHost", text));
    }
    if let Some(reason) = pool.usage.failure(&id.name) {
        let text = format!("the usage of volume {id} is unknown: {reason}");
        symptoms.push(symptom(Severity::Degraded, "UsageUnknown", text));
    }
    if let Some(usage) = pool.usage.last(&id.name)
        && entry.size != 0
        && usage.bytes > entry.size
    {
        let text = format!(
            "volume {id} uses {}, more than its size of {}, which this pool does not enforce: expand \
             the volume or remove data",
            Size(usage.bytes),
            Size(entry.size)
        );
        symptoms.push(symptom(Severity::Degraded, "OverSize", text));
    }
    symptoms
}

fn stale(id: &VolumeId, path: &Path) -> String {
    format!(
        "the directory of volume {id} that is mounted at {} is gone from the server (ESTALE), and another one has its place: \
         restart the pods that use it; the volume is mounted anew when it is published next",
        path.display()
    )
}

fn symptom(severity: Severity, reason: &'static str, message: String) -> Symptom {
    Symptom { severity, reason: reason.into(), message }
}
