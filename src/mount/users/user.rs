//! Identifies the user of a directory: its process, and the pod or container of the process.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::pods::{self, PodName};
use super::record::MountRecord;

/// A mount that uses a directory, with the process, pod or container that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// A process that sees the mount; `None` if the mount is in orlop's own mount namespace, where the target is more
    /// useful.
    pub pid: Option<i32>,
    /// The name of the process; empty if it has ended.
    pub command: String,
    /// The mount point, as the process sees it.
    pub target: PathBuf,
    /// The UID of the pod, from the target or the cgroup.
    pub pod: Option<String>,
    /// The name of the pod, if kubelet's directory of logs tells it.
    pub pod_name: Option<PodName>,
    /// The id of the container, from the cgroup.
    pub container: Option<String>,
    /// The peer group that the copies of the mount, which propagation has made, originate from.
    pub group: Option<u64>,
}

impl fmt::Display for User {
    /// For example `pod shop/web-0 (process 77, nginx) at /data`. A pod whose name is not known is shown by its UID.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process = self.pid.map(|pid| format!("process {pid}, {}", self.command));
        let pod = self.pod_name.as_ref().map(ToString::to_string).or_else(|| self.pod.clone());
        match (&pod, &self.container, process) {
            (Some(pod), _, Some(process)) => write!(f, "pod {pod} ({process}) at ")?,
            (Some(pod), _, None) => write!(f, "pod {pod} at ")?,
            (None, Some(container), Some(process)) => write!(f, "container {container} ({process}) at ")?,
            (None, _, Some(process)) => write!(f, "{process} at ")?,
            (None, _, None) => write!(f, "a mount at ")?,
        }
        write!(f, "{}", self.target.display())
    }
}

/// Identifies the users of these mounts: pods and containers first, since errors name the first user only, and mounts
/// without a process last. Copies of a mount that propagation made in other namespaces are left out.
pub(super) fn identify(proc: &Path, mut records: Vec<&MountRecord>) -> Vec<User> {
    records.sort_by(|a, b| (&a.target, a.pid).cmp(&(&b.target, b.pid)));
    let origin = origins(&records);
    let mut known = BTreeSet::new();
    records.retain(|record| record.group.is_none() || known.insert((&record.target, origin(record))));
    let mut users: Vec<User> = records.into_iter().map(|record| user(proc, record, origin(record))).collect();
    users.sort_by_key(|user| (user.pod.is_none() && user.container.is_none(), user.pid.is_none()));
    users
}

/// The peer group whose events reach a mount. A namespace of a service has mounts that are slaves of the host's, and
/// members of groups of their own.
fn origins(records: &[&MountRecord]) -> impl Fn(&MountRecord) -> Option<u64> + use<> {
    let slaves = records.iter().filter(|record| record.group != record.master);
    let masters: BTreeMap<u64, u64> = slaves.filter_map(|record| record.group.zip(record.master)).collect();
    move |record| {
        let mut group = record.group?;
        // A chain is not longer than the number of groups, unless the table has changed meanwhile.
        for _ in 0..masters.len() {
            let Some(master) = masters.get(&group) else { break };
            group = *master;
        }
        Some(group)
    }
}

fn user(proc: &Path, record: &MountRecord, group: Option<u64>) -> User {
    let read = |file: &str| match record.pid {
        Some(pid) => std::fs::read_to_string(proc.join(format!("{pid}/{file}"))).unwrap_or_default(),
        None => String::new(),
    };
    let cgroup = read("cgroup");
    let pod = pod_of_target(&record.target).or_else(|| pod_of_cgroup(&cgroup));
    User {
        pid: record.pid,
        command: read("comm").trim_end().to_owned(),
        target: PathBuf::from(OsString::from_vec(record.target.clone())),
        pod,
        pod_name: None,
        container: container_of_cgroup(&cgroup),
        group,
    }
}

/// Finds the names of the pods among these users. The host is asked only if there are any.
pub(super) fn name_pods<'u>(proc: &Path, users: impl Iterator<Item = &'u mut User>) {
    let mut of_pods = users.filter(|user| user.pod.is_some()).peekable();
    if of_pods.peek().is_none() {
        return;
    }
    let names = pods::names_soon(proc);
    for user in of_pods {
        user.pod_name = user.pod.as_ref().and_then(|uid| names.get(uid)).cloned();
    }
}

/// Finds the pod's UID in kubelet's `…/pods/<uid>/volumes/…` or `…/pods/<uid>/volume-subpaths/…`.
fn pod_of_target(target: &[u8]) -> Option<String> {
    let mut parts = target.split(|byte| *byte == b'/').skip_while(|part| *part != b"pods").skip(1);
    let uid = std::str::from_utf8(parts.next()?).ok()?;
    parts.next().filter(|part| part.starts_with(b"volume"))?;
    Some(uid.to_owned())
}

/// Finds the pod's UID in the text of a `cgroup` file: `…/pod<uid>/…` or, with the systemd driver,
/// `…-pod<uid with underscores>.slice/…`.
#[must_use]
pub fn pod_of_cgroup(cgroup: &str) -> Option<String> {
    let is_uid = |text: &&str| {
        let mut bytes = text.bytes().enumerate();
        bytes.all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => matches!(byte, b'-' | b'_'),
            _ => byte.is_ascii_hexdigit(),
        })
    };
    let uid = cgroup.match_indices("pod").find_map(|(at, _)| cgroup.get(at + 3..at + 39).filter(is_uid))?;
    Some(uid.replace('_', "-"))
}

/// Finds the id of the container in the text of a `cgroup` file: the last run of exactly 64 hexadecimal digits.
#[must_use]
pub fn container_of_cgroup(cgroup: &str) -> Option<String> {
    let mut words = cgroup.rsplit(|char: char| !char.is_ascii_hexdigit());
    words.find(|word| word.len() == 64).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b6fd0a7-5d3c-4c3e-9d7c-2a8f1d1f0a11";

    #[test]
    fn a_pod_is_found_by_its_target() {
        let path = format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/pvc-1/mount");
        assert_eq!(pod_of_target(path.as_bytes()).as_deref(), Some(UID));
        let path = format!("/var/lib/kubelet/pods/{UID}/volume-subpaths/pvc-1/main/0");
        assert_eq!(pod_of_target(path.as_bytes()).as_deref(), Some(UID));
        for path in ["/data", "/pods", "/pods/a", "/pods/a/b"] {
            assert_eq!(pod_of_target(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn pod_and_container_are_found_in_the_cgroup() {
        let id = "3f".repeat(32);
        let slice = format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_"));
        let cases = [
            (format!("0::/kubepods.slice/{slice}/cri-containerd-{id}.scope\n"), true, true),
            (format!("0::/../../kubepods/besteffort/pod{UID}/{id}\n"), true, true),
            (format!("12:cpu:/docker/{id}\n0::/system.slice/docker-{id}.scope\n"), false, true),
            ("0::/system.slice/podman.service\n".to_owned(), false, false),
            ("0::/podé\n".to_owned(), false, false),
            (String::new(), false, false),
        ];
        for (cgroup, pod, container) in cases {
            assert_eq!(pod_of_cgroup(&cgroup).as_deref(), pod.then_some(UID), "{cgroup}");
            assert_eq!(container_of_cgroup(&cgroup).as_deref(), container.then_some(&id[..]), "{cgroup}");
        }
    }

    #[test]
    fn a_user_is_displayed_with_pod_container_and_process() {
        let user = |pid, pod: Option<&str>, container: Option<&str>| {
            let (pod, container) = (pod.map(str::to_owned), container.map(str::to_owned));
            let (command, target) = ("nginx".to_owned(), "/data".into());
            User { pid, command, target, pod, pod_name: None, container, group: None }
        };
        let named = User {
            pod_name: Some(PodName { namespace: "shop".to_owned(), name: "web-0".to_owned() }),
            ..user(Some(7), Some("u"), Some("c"))
        };
        assert_eq!(named.to_string(), "pod shop/web-0 (process 7, nginx) at /data");
        let user = |pid, pod, container| user(pid, pod, container).to_string();
        assert_eq!(user(Some(7), Some("u"), Some("c")), "pod u (process 7, nginx) at /data");
        assert_eq!(user(None, Some("u"), None), "pod u at /data");
        assert_eq!(user(Some(7), None, Some("c")), "container c (process 7, nginx) at /data");
        assert_eq!(user(Some(7), None, None), "process 7, nginx at /data");
        assert_eq!(user(None, None, None), "a mount at /data");
    }

    #[test]
    fn users_get_the_names_of_their_pods() {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(proc.path().join(format!("1/root/var/log/pods/shop_web-0_{UID}"))).unwrap();
        let target = format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/pvc-1/mount");
        let record = |target: &str| {
            let (device, root) = (crate::mount::mountinfo::Device { major: 0, minor: 1 }, b"/data".to_vec());
            MountRecord { device, root, pid: None, target: target.into(), group: None, master: None }
        };
        let (known, other) = (record(&target), record("/var/lib/kubelet/pods/unknown/volumes/x/mount"));
        let mut users = identify(proc.path(), vec![&known, &other]);
        name_pods(proc.path(), users.iter_mut());
        let shown: Vec<_> = users.iter().map(ToString::to_string).collect();
        assert!(
            shown[0].starts_with("pod shop/web-0 at /") && shown[1].starts_with("pod unknown at /"),
            "{shown:?}"
        );
    }

    #[test]
    fn pods_and_containers_come_before_mounts_without_a_process() {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc.path().join("7")).unwrap();
        std::fs::write(proc.path().join("7/cgroup"), format!("0::/docker/{}\n", "3f".repeat(32))).unwrap();
        let record = |pid, target: &str| {
            let (device, root) = (crate::mount::mountinfo::Device { major: 0, minor: 1 }, b"/data".to_vec());
            MountRecord { device, root, pid, target: target.into(), group: None, master: None }
        };
        let (mount, process, container) =
            (record(None, "/a"), record(Some(8), "/b"), record(Some(7), "/data"));
        let users = identify(proc.path(), vec![&mount, &process, &container]);
        let pids: Vec<_> = users.iter().map(|user| user.pid).collect();
        assert_eq!(pids, [Some(7), Some(8), None]);
    }
}
