//! Changes of a record that only commands make.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Engine;
use super::locked::LockedVolume;
use crate::error::{Error, Kind, Result};
use crate::volume::{Volume, VolumeId};

impl Engine {
    /// Sets the labels with a value, and removes those without.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for an unmanaged volume. On error the volume is unchanged.
    pub fn relabel(&self, id: &VolumeId, changes: &BTreeMap<String, Option<String>>) -> Result<Volume> {
        let locked = self.lock_volume(id)?;
        let mut volume = require_labels(&locked)?;
        for (key, value) in changes {
            match value {
                Some(value) => volume.labels.insert(key.clone(), value.clone()),
                None => volume.labels.remove(key),
            };
        }
        locked.pool.rewrite(&volume, None)?;
        Ok(volume)
    }

    /// Removes what copies of this process have left behind, for a command: no thread of it does that otherwise. The rest of
    /// the trash is left alone.
    ///
    /// # Errors
    /// `Busy` when it takes longer than `timeout`; the rest remains in the trash. `Unreadable` or another kind when a
    /// removal fails.
    pub fn remove_remains(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        for pool in self.pools.iter().filter_map(|pool| Some((pool, pool.loaded()?))) {
            let (pool, open) = pool;
            if !pool.reaper().remove_queued(&open, deadline)? {
                let name = &pool.settings().name;
                let text =
                    format!("what is left of it in pool {name} is not removed yet: `orlop serve` removes it");
                return Err(Error::new(Kind::Busy, text));
            }
        }
        Ok(())
    }
}

/// The record of a volume whose labels can be changed.
pub(super) fn require_labels(locked: &LockedVolume) -> Result<Volume> {
    let volume = locked.require()?;
    if volume.managed {
        return Ok(volume);
    }
    let text = format!("volume {} is unmanaged and has no labels", locked.id);
    Err(Error::new(Kind::Unsupported, text))
}
