//! Which cgroups to freeze, and which never.

use super::cgroups::{Cgroup, Hierarchies, path_in};
use super::record::FrozenCgroup;
use super::scan::{Scan, Seen};
use crate::error::{Error, Kind, Result};
use crate::mount::users::{container_of_cgroup, pod_of_cgroup};

/// Processes that keep containers or the host running. A cgroup with one of them is never frozen.
const RUNTIMES: [&str; 11] = [
    "kubelet",
    "containerd",
    "dockerd",
    "docker-proxy",
    "crio",
    "conmon",
    "conmonrs",
    "podman",
    "runc",
    "crun",
    "orlop",
];

/// How the names of the shims of containerd begin, such as `containerd-shim-runc-v2`. A name in `/proc` has 15 bytes.
const SHIM: &str = "containerd-shim";

/// The cgroups to freeze. None is below another.
#[derive(Debug)]
pub(super) struct Plan {
    /// The cgroups, in the order in which they are locked.
    cgroups: Vec<FrozenCgroup>,
    /// The same, open.
    pub(super) open: Vec<Cgroup>,
    /// The containers in them, for the record of the copy.
    pub(super) containers: Vec<String>,
}

impl Plan {
    /// Plans to freeze the cgroups of these processes.
    ///
    /// # Errors
    /// `InUse` if one of them cannot be frozen; `Busy` if a cgroup has gone meanwhile.
    pub(super) fn make(scan: &Scan, hierarchies: &Hierarchies, consumers: &[&Seen]) -> Result<Self> {
        let mut plan = Self { cgroups: Vec::new(), open: Vec::new(), containers: Vec::new() };
        for consumer in consumers {
            if plan.contains(&consumer.cgroup) {
                continue;
            }
            let Some((hierarchy, path)) = hierarchies.locate(&consumer.cgroup) else {
                if scan.open(consumer).is_none_or(|process| process.is_ending()) {
                    continue;
                }
                let why = "in a cgroup of its own";
                return Err(refusal(scan, consumer, &format!("consumes the volume and is not {why}")));
            };
            let cgroup = hierarchies.open(hierarchy, &path).map_err(|errno| {
                let text =
                    format!("cgroup {path} of process {} cannot be frozen, or is gone: retry", consumer.pid);
                Error::caused(Kind::Busy, text, std::io::Error::from(errno))
            })?;
            plan.cgroups.retain(|below| !cgroup.name.contains(below.hierarchy, &below.path));
            plan.open.retain(|below| !cgroup.name.contains(below.name.hierarchy, &below.name.path));
            plan.cgroups.push(cgroup.name.clone());
            plan.open.push(cgroup);
        }
        plan.cgroups.sort_unstable();
        plan.open.sort_by(|a, b| a.name.cmp(&b.name));
        let paused = consumers.iter().filter(|consumer| plan.contains(&consumer.cgroup));
        plan.containers = paused.map(|consumer| container(&plan, consumer)).collect();
        plan.containers.sort_unstable();
        plan.containers.dedup();
        plan.refuse_host(scan)?;
        Ok(plan)
    }

    /// Reports whether a process with this `/proc/PID/cgroup` will be frozen.
    pub(super) fn contains(&self, cgroup: &str) -> bool {
        self.cgroups.iter().any(|frozen| {
            path_in(cgroup, frozen.hierarchy).is_some_and(|path| frozen.contains(frozen.hierarchy, path))
        })
    }

    /// Reports whether each cgroup is one of this plan or below one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let is_covered = |wanted: &FrozenCgroup| {
            self.cgroups.iter().any(|frozen| frozen.contains(wanted.hierarchy, &wanted.path))
        };
        other.cgroups.iter().all(is_covered)
    }

    /// Fails if one of the cgroups holds what the host depends on.
    fn refuse_host(&self, scan: &Scan) -> Result<()> {
        for seen in scan.processes().iter().filter(|seen| self.contains(&seen.cgroup)) {
            let Some(process) = scan.open(seen) else { continue };
            if process.has_no_program() {
                continue;
            }
            if scan.is_of_host(seen) {
                return Err(refusal(scan, seen, "belongs to the host and shares a cgroup with the consumer"));
            }
            let command = process.command();
            if RUNTIMES.contains(&&command[..]) || command.starts_with(SHIM) {
                return Err(refusal(scan, seen, "runs containers and shares a cgroup with the consumer"));
            }
        }
        Ok(())
    }
}

fn refusal(scan: &Scan, seen: &Seen, why: &str) -> Error {
    let command = scan.open(seen).map(|process| process.command()).unwrap_or_default();
    let container = match (pod_of_cgroup(&seen.cgroup), container_of_cgroup(&seen.cgroup)) {
        (Some(pod), _) => format!(" of pod {pod}"),
        (None, Some(container)) => format!(" of container {container}"),
        (None, None) => String::new(),
    };
    let text = format!(
        "process {} ({command}){container} {why}, so it cannot be paused: stop it, or use consistency: none",
        seen.pid
    );
    Error::new(Kind::InUse, text)
}

/// The id of the container of a process, or the path of its cgroup.
fn container(plan: &Plan, consumer: &Seen) -> String {
    container_of_cgroup(&consumer.cgroup).unwrap_or_else(|| {
        let paths = plan.cgroups.iter().filter_map(|frozen| path_in(&consumer.cgroup, frozen.hierarchy));
        paths.map(str::to_owned).next().unwrap_or_default()
    })
}
