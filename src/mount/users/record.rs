//! A mount that a scan has seen.

use crate::mount::mountinfo::{DELETED, Device, Line};
use crate::sys::namespace::Described;

/// A mount in some namespace.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MountRecord {
    /// Its filesystem. First, and then the root, since scans are sorted by them.
    pub(super) device: Device,
    /// Its root in the filesystem.
    pub(super) root: Vec<u8>,
    /// A process of the namespace; `None` is the scanner's own namespace.
    pub(super) pid: Option<i32>,
    /// Where it is mounted there.
    pub(super) target: Vec<u8>,
    /// The peer group that it is in or takes from: copies of one mount have the same.
    pub(super) group: Option<u64>,
}

impl MountRecord {
    /// `None` if the root was removed: then it lies in no directory that there is.
    pub(super) fn of(line: &Line<'_>, pid: Option<i32>) -> Option<Self> {
        let (root, false) = line.root() else { return None };
        let group = line.shared().or_else(|| line.master());
        let (root, target) = (root.into_owned(), line.target().into_owned());
        Some(Self { device: line.device, root, pid, target, group })
    }

    /// A mount of another namespace, of which no process is known.
    pub(super) fn elsewhere(device: Device, mount: Described) -> Option<Self> {
        if mount.root.ends_with(DELETED) {
            return None;
        }
        let group = [mount.group, mount.master].into_iter().find(|group| *group != 0);
        Some(Self { device, root: mount.root, pid: None, target: mount.target, group })
    }
}
