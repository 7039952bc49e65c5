//! Changes of a record that only commands make.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Engine;
use crate::error::{Error, Kind, Result};
use crate::volume::{Volume, VolumeId};

impl Engine {
    /// Sets the labels with a value, and removes those without.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for an unmanaged volume. On error the volume is unchanged.
    pub fn relabel(&self, id: &VolumeId, changes: &BTreeMap<String, Option<String>>) -> Result<Volume> {
        let locked = self.lock_volume(id)?;
        let mut volume = locked.require()?;
        if !volume.managed {
            let text = format!("volume {id} is unmanaged and has no labels");
            return Err(Error::new(Kind::Unsupported, text));
        }
        for (key, value) in changes {
            match value {
                Some(value) => volume.labels.insert(key.clone(), value.clone()),
                None => volume.labels.remove(key),
            };
        }
        locked.pool.rewrite(&volume, None)?;
        Ok(volume)
    }

    /// Removes the trash that is due in the pools that are open, for a command: no thread of it does that otherwise.
    ///
    /// # Errors
    /// `Busy` when it takes longer than `timeout`; the rest remains in the trash. `Internal` if a thread cannot be spawned.
    pub fn reap(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        for pool in &self.pools {
            let Some(open) = pool.loaded() else { continue };
            pool.reaper().attach(&open)?;
            if !pool.reaper().wait_until_idle(deadline.saturating_duration_since(Instant::now())) {
                let name = &pool.settings().name;
                let text = format!("the trash of pool {name} is not removed yet: `orlop serve` removes it");
                return Err(Error::new(Kind::Busy, text));
            }
        }
        Ok(())
    }
}
