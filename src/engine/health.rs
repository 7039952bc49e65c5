//! What is wrong with a volume, and what it takes.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::create::reopen;
use super::request::{Amounts, Severity, Symptom, Usage};
use crate::error::{Error, Kind, Result};
use crate::pool::store::ObjectKind;
use crate::pool::{OpenPool, VolumeEntry};
use crate::volume::VolumeId;

/// How long a call waits for the first measurement of a volume.
const FIRST_MEASUREMENT: Duration = Duration::from_millis(500);

impl Engine {
    /// What a published volume takes and may take.
    ///
    /// # Errors
    /// `NotFound` when the volume does not exist or is not at `path`.
    pub fn stats(&self, id: &VolumeId, path: &Path) -> Result<Usage> {
        let pool = self.pool(&id.pool)?;
        let volume = self.seen(&pool, id)?;
        self.find_published(&pool, id, path)?;
        self.usage(&pool, id, volume.size)
    }

    fn usage(&self, pool: &Arc<OpenPool>, id: &VolumeId, size: u64) -> Result<Usage> {
        let stats = pool.fs_stats()?;
        let data = pool.store.data(ObjectKind::Volumes, &id.name)?;
        let data = data.ok_or_else(|| Error::new(Kind::NotFound, format!("volume {id} has no data")))?;
        let taken = self.usage.measure(id, reopen(data.as_fd())?, FIRST_MEASUREMENT)?;
        let used = taken.map(|taken| taken.bytes);
        let left =
            if size == 0 { stats.free } else { size.saturating_sub(used.unwrap_or(0)).min(stats.free) };
        let total = if size == 0 { stats.total } else { size };
        Ok(Usage {
            bytes: Amounts { total, used, available: left },
            inodes: Amounts {
                total: stats.inodes,
                used: taken.map(|taken| taken.inodes),
                available: stats.inodes_free,
            },
        })
    }

    /// What is wrong with a volume; nothing: healthy. With a path, also what is wrong there.
    ///
    /// # Errors
    /// `NotFound` when its pool is there and the volume is not.
    pub fn health(&self, id: &VolumeId, path: Option<&Path>) -> Result<Vec<Symptom>> {
        let pool = match self.pool(&id.pool) {
            Err(error) if error.kind() == Kind::Unavailable => {
                return Ok(vec![symptom(Severity::Inaccessible, "PoolUnavailable", error.chain())]);
            }
            other => other?,
        };
        let Some(entry) = self.entry(&pool, id) else {
            return Err(Error::new(Kind::NotFound, format!("volume {id} does not exist")));
        };
        let mut symptoms = self.known_symptoms(id, &entry);
        if pool.store.data(ObjectKind::Volumes, &id.name)?.is_none() {
            let text =
                format!("the data folder of volume {id} is missing: restore it from a backup or snapshot");
            symptoms.push(symptom(Severity::DataLoss, "DataMissing", text));
        } else if let Some(path) = path
            && let Err(error) = self.find_published(&pool, id, path)
        {
            symptoms.push(symptom(Severity::Inaccessible, "NotPublished", error.chain()));
        }
        Ok(symptoms)
    }

    fn entry(&self, pool: &OpenPool, id: &VolumeId) -> Option<VolumeEntry> {
        // A record that cannot be read is a symptom, not a missing volume.
        let _ = self.glance(pool, id);
        pool.index().volumes().get(&id.name).cloned()
    }

    /// What is known without looking at the disk.
    pub(super) fn known_symptoms(&self, id: &VolumeId, entry: &VolumeEntry) -> Vec<Symptom> {
        let mut symptoms = Vec::new();
        if let Some(damage) = &entry.damage {
            let text =
                format!("the record of volume {id} cannot be read ({damage}): restore it from a backup");
            symptoms.push(symptom(Severity::DataLoss, "RecordUnreadable", text));
        }
        if let Some(taken) = self.usage.last(id)
            && entry.size != 0
            && taken.bytes > entry.size
        {
            let text = format!(
                "volume {id} holds {} bytes and was promised {}: this pool does not enforce sizes; expand it or \
                 remove data",
                taken.bytes, entry.size
            );
            symptoms.push(symptom(Severity::Degraded, "OverSize", text));
        }
        symptoms
    }
}

fn symptom(severity: Severity, reason: &'static str, message: String) -> Symptom {
    Symptom { severity, reason, message }
}
