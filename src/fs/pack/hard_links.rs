//! The first names of files that have several.

use std::collections::HashMap;

use rustix::fs::Statx;

use crate::fs::copy::links::inode_key;

/// The most bytes of names that are remembered. Files beyond are stored once for each name.
const MAX_BYTES: usize = 16 << 20;
/// What a name takes besides its bytes.
const OVERHEAD: usize = 128;

#[derive(Debug, Default)]
pub(super) struct HardLinks {
    /// The first name of a file, and how many of its names are still to come.
    first: HashMap<String, (Vec<u8>, u32)>,
    bytes: usize,
    separated: u64,
}

impl HardLinks {
    /// The first name of a file that was seen before. Remembers this one otherwise.
    pub(super) fn first_name(&mut self, stat: &Statx, path: &[u8]) -> Option<Vec<u8>> {
        if stat.stx_nlink <= 1 {
            return None;
        }
        let key = inode_key(stat);
        if let Some((first, left)) = self.first.get_mut(&key) {
            *left = left.saturating_sub(1);
            let found = first.clone();
            if *left == 0 {
                self.first.remove(&key);
                self.bytes -= found.len() + OVERHEAD;
            }
            return Some(found);
        }
        if self.bytes + path.len() + OVERHEAD > MAX_BYTES {
            self.separated += 1;
            return None;
        }
        self.bytes += path.len() + OVERHEAD;
        self.first.insert(key, (path.to_vec(), stat.stx_nlink - 1));
        None
    }

    /// Number of names that could not be remembered.
    pub(super) fn separated(&self) -> u64 {
        self.separated
    }
}
