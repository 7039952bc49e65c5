//! The mounts of all namespaces on the filesystems of volumes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::process::Process;
use crate::mount::location::{FsLocation, below};
use crate::mount::mountinfo::{Device, Line, Reader};

/// A mount of a filesystem that has a volume.
#[derive(Debug)]
struct Mount {
    namespace: Vec<u8>,
    id: u64,
    device: Device,
    /// Path of its root in the filesystem.
    root: Vec<u8>,
    /// The mount point in the namespace.
    target: Vec<u8>,
    /// The peer groups that it is a member and a slave of.
    groups: Vec<u64>,
}

/// The mounts of the namespaces that were read.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    reader: Reader,
    devices: Vec<Device>,
    /// Namespaces whose whole table was read.
    complete: BTreeSet<Vec<u8>>,
    /// Other namespaces, with the roots of the processes whose tables were read. Each table shows a part.
    partial: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
    mounts: Vec<Mount>,
    /// The filesystem of every mount, by its id.
    all: HashMap<u64, Device>,
}

impl Mounts {
    /// Prepares to read the mounts of these filesystems.
    pub(super) fn of(devices: Vec<Device>) -> Self {
        Self { devices, ..Self::default() }
    }

    /// Reads the table of a process, unless its namespace was read.
    pub(super) fn read(&mut self, process: &Process, namespace: &[u8]) -> Result<(), Errno> {
        if self.complete.contains(namespace) {
            return Ok(());
        }
        let root = process.link("root")?;
        if root != b"/" && self.partial.get(namespace).is_some_and(|roots| roots.contains(&root)) {
            return Ok(());
        }
        let table = process.file("mountinfo", OFlags::RDONLY)?;
        let Self { reader, devices, mounts, all, .. } = self;
        reader.each(table, |line| {
            all.insert(line.id, line.device);
            if devices.contains(&line.device) {
                mounts.extend(Mount::from_line(&line, namespace));
            }
            ControlFlow::Continue(())
        })?;
        if root == b"/" {
            self.complete.insert(namespace.to_vec());
        } else {
            self.partial.entry(namespace.to_vec()).or_default().insert(root);
        }
        Ok(())
    }

    /// Returns the namespaces in which one of the volumes is mounted, other than those of the host. A mount that has
    /// propagated from one of the host does not count.
    pub(super) fn consuming(&self, volumes: &[FsLocation], host: &BTreeSet<Vec<u8>>) -> BTreeSet<&[u8]> {
        let of_volumes = self.mounts.iter().filter(|mount| volumes.iter().any(|volume| mount.is_in(volume)));
        let (targets, others): (Vec<&Mount>, Vec<&Mount>) =
            of_volumes.partition(|mount| host.contains(&mount.namespace));
        let groups = descendants(&targets, &others);
        let has_propagated = |mount: &Mount| {
            let is_copy =
                |target: &&Mount| target.root == mount.root && mount.target.ends_with(&target.target);
            mount.groups.iter().any(|group| groups.contains(group)) && targets.iter().any(is_copy)
        };
        others.into_iter().filter(|mount| !has_propagated(mount)).map(|mount| &mount.namespace[..]).collect()
    }

    /// Returns the filesystem of a mount; `None` if it is in no table.
    pub(super) fn device(&self, mount: u64) -> Option<Device> {
        self.all.get(&mount).copied()
    }

    /// Returns whether a file is in one of the volumes, from its path in the namespace of its mount. `None`: that is
    /// unknown, because the mount is in no table.
    pub(super) fn is_in(&self, volumes: &[FsLocation], mount: u64, path: &[u8]) -> Option<bool> {
        let mounts = self.mounts.iter().filter(|known| known.id == mount);
        let mut paths = mounts.filter_map(|mount| {
            let mut in_filesystem = mount.root.strip_suffix(b"/").unwrap_or(&mount.root).to_vec();
            in_filesystem.extend_from_slice(below(path, &mount.target)?);
            Some((mount.device, in_filesystem))
        });
        paths.next().map(|(device, path)| {
            volumes.iter().any(|volume| volume.device == device && below(&path, &volume.path).is_some())
        })
    }

    /// Returns whether a mount shows a part of one of the volumes. `None`: that is unknown, because the mount is in no table.
    pub(super) fn may_show(&self, volumes: &[FsLocation], mount: u64) -> Option<bool> {
        let mut roots = self.mounts.iter().filter(|known| known.id == mount);
        let shows = |mount: &Mount, volume: &FsLocation| {
            mount.is_in(volume)
                || (mount.device == volume.device && below(&volume.path, &mount.root).is_some())
        };
        roots.next().map(|mount| volumes.iter().any(|volume| shows(mount, volume)))
    }
}

impl Mount {
    fn from_line(line: &Line<'_>, namespace: &[u8]) -> Option<Self> {
        let (root, false) = line.root() else { return None };
        Some(Self {
            namespace: namespace.to_vec(),
            id: line.id,
            device: line.device,
            root: root.into_owned(),
            target: line.target().into_owned(),
            groups: line.shared().into_iter().chain(line.master()).collect(),
        })
    }

    fn is_in(&self, volume: &FsLocation) -> bool {
        self.device == volume.device && below(&self.root, &volume.path).is_some()
    }
}

/// Returns the peer groups of `targets`, and those of the mounts that receive events from them, directly or through
/// others.
fn descendants(targets: &[&Mount], others: &[&Mount]) -> BTreeSet<u64> {
    let mut groups: BTreeSet<u64> = targets.iter().flat_map(|mount| mount.groups.iter().copied()).collect();
    loop {
        let known = groups.len();
        for mount in others {
            if mount.groups.iter().any(|group| groups.contains(group)) {
                groups.extend(&mount.groups);
            }
        }
        if groups.len() == known {
            return groups;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Device = Device { major: 8, minor: 1 };

    fn mount(namespace: &str, root: &str, target: &str, groups: &[u64]) -> Mount {
        let groups = groups.to_vec();
        Mount {
            namespace: namespace.into(),
            id: 0,
            device: DEVICE,
            root: root.into(),
            target: target.into(),
            groups,
        }
    }

    fn consuming(mounts: Vec<Mount>) -> Vec<String> {
        let volume = FsLocation { device: DEVICE, path: b"/pool/a/data".to_vec(), detached: false };
        let mounts = Mounts { mounts, ..Mounts::default() };
        let found = mounts.consuming(&[volume], &BTreeSet::from([b"host".to_vec()]));
        found.into_iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    #[test]
    fn a_mount_in_another_namespace_is_a_consumer() {
        let mounts = vec![
            mount("host", "/pool", "/pool", &[1]),
            mount("host", "/pool/a/data", "/kubelet/a", &[1]),
            mount("a", "/pool/a/data", "/data", &[1]),
            mount("b", "/pool/a/data/sub", "/sub", &[]),
            mount("c", "/pool/b/data", "/data", &[]),
            mount("d", "/pool", "/host/pool", &[1]),
        ];
        assert_eq!(consuming(mounts), ["a", "b"]);
    }

    #[test]
    fn copies_that_propagation_made_are_no_consumers() {
        let mounts = vec![
            mount("host", "/pool/a/data", "/kubelet/a", &[7]),
            mount("peer", "/pool/a/data", "/kubelet/a", &[7]),
            mount("agent", "/pool/a/data", "/host/kubelet/a", &[9, 7]),
            mount("nested", "/pool/a/data", "/host/kubelet/a", &[9]),
            mount("private", "/pool/a/data", "/kubelet/a", &[]),
            mount("other name", "/pool/a/data", "/kubelet/aa", &[7]),
            mount("other root", "/pool/a/data/b", "/kubelet/a", &[7]),
        ];
        assert_eq!(consuming(mounts), ["other name", "other root", "private"]);
    }

    #[test]
    fn a_file_of_unknown_path_is_in_no_volume_that_its_mount_does_not_show() {
        let volume = FsLocation { device: DEVICE, path: b"/pool/a/data".to_vec(), detached: false };
        let may_show = |root: &str| {
            let mounts = Mounts { mounts: vec![mount("a", root, "/data", &[])], ..Mounts::default() };
            let volumes = std::slice::from_ref(&volume);
            assert_eq!(mounts.may_show(volumes, 1), None, "an unknown mount");
            mounts.may_show(volumes, 0)
        };
        for root in ["/", "/pool", "/pool/a/data", "/pool/a/data/sub"] {
            assert_eq!(may_show(root), Some(true), "{root}");
        }
        for root in ["/pool/b/data", "/pool/a/datas", "/other"] {
            assert_eq!(may_show(root), Some(false), "{root}");
        }
    }

    #[test]
    fn a_file_is_located_through_its_mount() {
        let volume = FsLocation { device: DEVICE, path: b"/pool/a/data".to_vec(), detached: false };
        let mut sub = mount("a", "/pool/a/data", "/data", &[]);
        sub.id = 5;
        let mounts = Mounts { mounts: vec![mount("host", "/", "/", &[]), sub], ..Mounts::default() };
        let is_in = |id, path: &str| mounts.is_in(std::slice::from_ref(&volume), id, path.as_bytes());
        assert_eq!(is_in(0, "/pool/a/data/file"), Some(true));
        assert_eq!(is_in(0, "/pool/a/volume.json"), Some(false));
        assert_eq!(is_in(5, "/data/file"), Some(true));
        assert_eq!(is_in(6, "/data/file"), None);
        assert_eq!(is_in(5, "/elsewhere"), None);
    }
}
