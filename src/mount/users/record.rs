//! A mount that a scan has found.

use crate::mount::mountinfo::{DELETED, Device, Line};
use crate::sys::namespace::MountDescription;

/// A mount in some mount namespace.
///
/// The order of the first two fields matters: a scan is sorted by filesystem and root.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MountRecord {
    /// Its filesystem.
    pub(super) device: Device,
    /// Path of its root in the filesystem.
    pub(super) root: Vec<u8>,
    /// A process of the namespace; `None`: the scanner's own namespace, or no process is known.
    pub(super) pid: Option<i32>,
    /// The mount point in the namespace.
    pub(super) target: Vec<u8>,
    /// The peer group that it is a member or a slave of. The copies that propagation makes of one mount share it.
    pub(super) group: Option<u64>,
    /// The peer group that it receives events from, as a slave. A member of a group may be a slave, too.
    pub(super) master: Option<u64>,
}

impl MountRecord {
    /// Copies a line of a mount table. Returns `None` if the root of the mount was removed.
    pub(super) fn from_line(line: &Line<'_>, pid: Option<i32>) -> Option<Self> {
        let (root, false) = line.root() else { return None };
        let master = line.master();
        let group = line.shared().or(master);
        let (root, target) = (root.into_owned(), line.target().into_owned());
        Some(Self { device: line.device, root, pid, target, group, master })
    }

    /// The record of a mount in a namespace of which no process is known, or in the scanner's own. `None` if the root was removed.
    pub(super) fn from_description(mount: MountDescription) -> Option<Self> {
        if mount.root.ends_with(DELETED) {
            return None;
        }
        let master = Some(mount.master).filter(|group| *group != 0);
        let group = Some(mount.group).filter(|group| *group != 0).or(master);
        let (device, root, target) = (mount.device.into(), mount.root, mount.target);
        Some(Self { device, root, pid: None, target, group, master })
    }
}
