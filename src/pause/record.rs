//! What a pause freezes, as it is recorded on disk, so that another process can thaw what an ended one has left.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::cgroups::{self, Hierarchies};
use crate::error::{Context as _, Error, Kind, Result};

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

impl FrozenCgroup {
    /// Reports whether a cgroup is this one or below it.
    pub(super) fn contains(&self, hierarchy: Hierarchy, path: &str) -> bool {
        let below = path.strip_prefix(&self.path[..]);
        hierarchy == self.hierarchy && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
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

/// How long [`thaw`] waits for a process that is pausing the same cgroup.
const LOCK_WAIT: Duration = Duration::from_secs(5);

impl PauseRecord {
    /// The record of a pause that this process begins.
    pub(super) fn new(proc: &Path, cgroups: Vec<FrozenCgroup>) -> Result<Self> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self { host, boot_id: cgroups::boot_id(proc)?, cgroups })
    }
}

/// Thaws what an ended process has left frozen, if that was in this boot of this host. A cgroup that is gone or has
/// another inode is left out. Returns the paths of the cgroups that were thawed.
///
/// # Errors
/// `Busy` if another process is pausing one of the cgroups; `Unsupported` if the hierarchies are not visible;
/// `Internal` if a file cannot be read or written. The other cgroups are thawed nevertheless.
pub fn thaw(proc: &Path, record: &PauseRecord) -> Result<Vec<String>> {
    if record.cgroups.is_empty() || record.boot_id != cgroups::boot_id(proc)? {
        return Ok(Vec::new());
    }
    // A thread, because it enters another cgroup namespace.
    std::thread::scope(|scope| scope.spawn(|| thaw_each(proc, &record.cgroups)).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn thaw_each(proc: &Path, frozen: &[FrozenCgroup]) -> Result<Vec<String>> {
    let hierarchies = Hierarchies::of_host(proc)?;
    let (mut thawed, mut failure) = (Vec::new(), Ok(()));
    for cgroup in frozen {
        match thaw_one(&hierarchies, cgroup) {
            Ok(true) => thawed.push(cgroup.path.clone()),
            Ok(false) => {}
            Err(error) => failure = Err(error),
        }
    }
    failure.map(|()| thawed)
}

/// Reports whether the cgroup was frozen.
fn thaw_one(hierarchies: &Hierarchies, frozen: &FrozenCgroup) -> Result<bool> {
    let path = &frozen.path;
    let cgroup = match hierarchies.open(frozen.hierarchy, path) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(false),
        cgroup => cgroup.context(|| format!("open cgroup {path}"))?,
    };
    if cgroup.name != *frozen {
        return Ok(false);
    }
    cgroup.lock(Instant::now() + LOCK_WAIT, |time| cgroups::poll(&mut [], time).map(drop)).map_err(
        |errno| {
            let text = format!("another process is pausing cgroup {path}: retry");
            Error::caused(Kind::Busy, text, std::io::Error::from(errno))
        },
    )?;
    let was_frozen = cgroup.is_frozen_by_itself().context(|| format!("read the state of cgroup {path}"))?;
    if was_frozen {
        cgroup.thaw().context(|| format!("thaw cgroup {path}"))?;
    }
    Ok(was_frozen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_contains_itself_and_those_below_it() {
        let cgroup =
            |path: &str| FrozenCgroup { hierarchy: Hierarchy::Unified, path: path.to_owned(), inode: 1 };
        let contains = |above, path| cgroup(above).contains(Hierarchy::Unified, path);
        assert!(contains("/a", "/a") && contains("/a", "/a/b/c"));
        assert!(!contains("/a", "/ab") && !contains("/a/b", "/a"));
        assert!(!cgroup("/a").contains(Hierarchy::Freezer, "/a"));
    }

    #[test]
    fn a_record_of_another_boot_is_left_alone() {
        let cgroup = FrozenCgroup { hierarchy: Hierarchy::Unified, path: "/".to_owned(), inode: 1 };
        let record =
            PauseRecord { host: String::new(), boot_id: "another".to_owned(), cgroups: vec![cgroup] };
        assert!(thaw(Path::new("/proc"), &record).unwrap().is_empty());
    }

    #[test]
    fn a_record_is_written_in_camel_case() {
        let cgroup = FrozenCgroup { hierarchy: Hierarchy::Freezer, path: "/a".to_owned(), inode: 7 };
        let record = PauseRecord { host: "n".to_owned(), boot_id: "b".to_owned(), cgroups: vec![cgroup] };
        let text = r#"{"host":"n","bootId":"b","cgroups":[{"hierarchy":"freezer","path":"/a","inode":7}]}"#;
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(serde_json::from_str::<PauseRecord>(text).unwrap(), record);
    }
}
