//! Volumes without a record, told from those that another call creates or deletes at the same time.

use std::os::fd::AsFd as _;

use super::{ObjectKind, Store};
use crate::error::{Context as _, Result};
use crate::fs::DirIdentity;
use crate::volume::{Name, Volume};

/// A volume in a pool.
#[derive(Debug)]
pub enum FoundVolume {
    /// A volume with a record.
    Managed(Box<Volume>),
    /// A directory with data and without a record, which an administrator placed in the pool.
    Unmanaged,
}

impl Store {
    /// The volume of this name, managed or not; `None` if there is none.
    ///
    /// # Errors
    /// Same as [`Store::volume`].
    pub fn find_volume(&self, name: &Name) -> Result<Option<FoundVolume>> {
        let mut earlier = None;
        loop {
            if let Some(volume) = self.volume(name)? {
                return Ok(Some(FoundVolume::Managed(Box::new(volume))));
            }
            let Some(data) = self.data(ObjectKind::Volumes, name)? else { return Ok(None) };
            let identity = DirIdentity::of(data.as_fd()).context(|| format!("stat volumes/{name}/data"))?;
            // The volume may have been created after the record was looked for. There is no record if the same data was there
            // before. It is kept open until then, so that no new directory gets its inode number.
            if earlier.replace((identity, data)).is_some_and(|(before, _open)| before == identity) {
                return Ok(Some(FoundVolume::Unmanaged));
            }
        }
    }
}
