//! `orlop check`: reports what this kernel and these pools support, without changing anything unless that is asked for.

pub mod audit;
pub mod takeover;

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use crate::backend::{self, Backend, LimitSupport};
use crate::command::printable;
use crate::engine::request::PoolSettings;
use crate::fs::project;
use crate::fs::reflink::shares_blocks;
use crate::mount::users::Users;
use crate::mount::{MountInfo, mount_of};
use crate::pool::{KeptFiles, PoolRoot, check_outside_pools, check_projects, check_shareable, read_marker};
use crate::sys::probe::Call;
use crate::volume::PoolName;

/// The directory in which kubelet keeps the volumes of pods.
const KUBELET: &str = "/var/lib/kubelet";

/// What a fact means for orlop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Supported.
    Ok,
    /// Unsupported or unknown. orlop works without it.
    Note,
    /// The pool cannot be used in this state, or a volume is not limited although it should be.
    Bad,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Whether orlop can run with this result.
    pub verdict: Verdict,
    /// The object that was checked: `kernel`, `mounts`, `pool NAME` or `volume NAME`.
    pub object: String,
    /// The property that was checked.
    pub property: String,
    /// The value that was found, and what follows from it.
    pub found: String,
}

/// Checks the kernel, the mounts and these pools.
#[must_use]
pub fn inspect(pools: &[PoolSettings]) -> Vec<Fact> {
    let mut facts: Vec<_> = Call::ALL.into_iter().map(check_call).collect();
    facts.push(check_propagation());
    facts.push(check_processes());
    for pool in pools {
        check_pool(&mut facts, pool);
    }
    facts
}

/// Formats the facts as text, one line for each.
#[must_use]
pub fn to_text(facts: &[Fact]) -> String {
    let mut text = String::new();
    for fact in facts {
        let verdict = match fact.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Bad => "BAD",
        };
        let (object, found) = (printable(&fact.object), printable(&fact.found));
        let _ = writeln!(text, "{verdict:<5} {object:<12} {:<14} {found}", fact.property);
    }
    text
}

/// Formats the facts as a JSON array.
#[must_use]
pub fn to_json(facts: &[Fact]) -> String {
    serde_json::to_string_pretty(facts).map(|text| text + "\n").unwrap_or_default()
}

/// What an administrator does about a fact that is not [`Verdict::Ok`].
#[must_use]
pub fn next_step(fact: &Fact) -> &'static str {
    match (fact.object.as_str(), fact.property.as_str()) {
        ("kernel", _) => "nothing; a newer kernel, or root, makes it faster or more exact",
        ("mounts", "processes") => "run this as root, and in a container with the host's PID namespace",
        ("mounts", _) => "for Kubernetes: mount --make-rshared that path, as systemd does",
        (_, "directory") => "mount its disk or create the directory, or correct the path in the settings",
        (_, "marker") => {
            "use the name that the marker has, an empty directory, or a version of orlop that knows it"
        }
        (_, "sharing") => "set exclusive = true for the pool, and let one process use it",
        (_, "project ids") => "clear them: chattr -p 0 -P DIRECTORY",
        (_, "reflink") => "nothing; xfs and btrfs make snapshots without copying",
        _ => "nothing; see docs/limits.md",
    }
}

/// Reports whether no fact is [`Verdict::Bad`].
#[must_use]
pub fn is_usable(facts: &[Fact]) -> bool {
    facts.iter().all(|fact| fact.verdict != Verdict::Bad)
}

fn fact(verdict: Verdict, object: &str, property: &str, found: impl Into<String>) -> Fact {
    Fact { verdict, object: object.to_owned(), property: property.to_owned(), found: found.into() }
}

fn check_call(call: Call) -> Fact {
    let (verdict, found) = match call.is_supported() {
        Ok(true) => (Verdict::Ok, "yes"),
        Ok(false) => (Verdict::Note, "no: orlop uses an older call where one exists"),
        Err(_) => (Verdict::Note, "unknown: permission denied; run as root"),
    };
    fact(verdict, "kernel", call.name(), found)
}

/// The users of a volume are found by the mount tables of all processes.
fn check_processes() -> Fact {
    let (verdict, found) = match Users::new("/proc".into()).uninspectable() {
        Ok(0) => (Verdict::Ok, "all visible processes can be inspected".to_owned()),
        Ok(count) => (
            Verdict::Note,
            format!("{count} processes cannot be inspected: their mounts may go undetected (run as root)"),
        ),
        Err(error) => (Verdict::Note, error.chain()),
    };
    fact(verdict, "mounts", "processes", found)
}

/// Mounts made in a container reach kubelet only if the mount below them is shared.
fn check_propagation() -> Fact {
    let path = if Path::new(KUBELET).is_dir() { Path::new(KUBELET) } else { Path::new("/") };
    let property = path.display().to_string();
    match mount_at(path) {
        Some(mount) if mount.shared.is_some() => {
            fact(Verdict::Ok, "mounts", &property, "shared: mounts propagate")
        }
        Some(_) => fact(
            Verdict::Note,
            "mounts",
            &property,
            "private: mounts made here are visible in this mount namespace only (mountPropagation: \
             Bidirectional requires a shared mount)",
        ),
        None => fact(Verdict::Note, "mounts", &property, "unknown: its mount was not found"),
    }
}

fn check_pool(facts: &mut Vec<Fact>, settings: &PoolSettings) {
    let (name, path) = (&settings.name, settings.path.as_path());
    let pool = format!("pool {name}");
    let directory = match PoolRoot::open(settings, &KeptFiles::default()) {
        Ok(directory) => directory,
        Err(error) => {
            let text = format!("{}: {}", path.display(), error.chain());
            return facts.push(fact(Verdict::Bad, &pool, "directory", text));
        }
    };
    let (verdict, found) = check_marker(name, directory.as_fd(), path);
    facts.push(fact(verdict, &pool, "marker", found));
    let mount = mount_of(directory.as_fd()).ok().flatten();
    let kind = mount.as_ref().map_or_else(|| "unknown".to_owned(), describe);
    facts.push(fact(Verdict::Ok, &pool, "filesystem", kind));
    if let Ok(stat) = rustix::fs::fstatvfs(&directory) {
        let mib = |blocks: u64| blocks.saturating_mul(stat.f_frsize) >> 20;
        let text = format!("{} of {} MiB", mib(stat.f_bavail), mib(stat.f_blocks));
        facts.push(fact(Verdict::Ok, &pool, "free", text));
    }
    facts.push(match check_shareable(directory.as_fd()) {
        Ok(()) => fact(Verdict::Ok, &pool, "sharing", "yes: several processes may use the pool at once"),
        Err(error) => fact(Verdict::Note, &pool, "sharing", format!("no: {}", error.chain())),
    });
    facts.push(match check_projects(directory.as_fd(), path) {
        Ok(()) => fact(Verdict::Ok, &pool, "project ids", "none that forbid renames within the pool"),
        Err(error) => fact(Verdict::Bad, &pool, "project ids", error.chain()),
    });
    facts.push(match shares_blocks(directory.as_fd()) {
        Ok(true) => fact(Verdict::Ok, &pool, "reflink", "yes: snapshots and clones share blocks"),
        Ok(false) => fact(Verdict::Note, &pool, "reflink", "no: snapshots and clones are full copies"),
        Err(error) => fact(Verdict::Note, &pool, "reflink", format!("unknown: {error}")),
    });
    facts.push(match (project::kind_of(directory.as_fd()), project::is_enforced(directory.as_fd())) {
        (_, true) => {
            fact(Verdict::Ok, &pool, "project quota", "on: new pools on this filesystem enforce sizes")
        }
        (Some(_), false) => fact(Verdict::Note, &pool, "project quota", "off"),
        (None, false) => fact(Verdict::Note, &pool, "project quota", "none: only xfs and ext4 have them"),
    });
}

/// The backend, and whether it enforces sizes.
fn limits_of(backend: &dyn Backend) -> String {
    let kind = backend.kind();
    if backend.check_changes().is_err() {
        return format!("backend {kind}, changed on the NFS server only: this host uses its volumes");
    }
    match (backend.capabilities().limits, backend.how_to_limit()) {
        (LimitSupport::Bytes, _) => format!("backend {kind}, sizes are enforced"),
        (LimitSupport::BytesAndInodes, _) => {
            format!("backend {kind}, sizes and numbers of inodes are enforced")
        }
        (LimitSupport::None, Some(how)) => format!("backend {kind}, sizes are not enforced: {how}"),
        (LimitSupport::None, None) => format!("backend {kind}, sizes are not enforced"),
    }
}

/// Checks whether a directory is the pool of this name, can become it, or is neither.
fn check_marker(name: &PoolName, root: BorrowedFd<'_>, path: &Path) -> (Verdict, String) {
    let entries = match count_entries(root) {
        Ok(entries) => entries,
        Err(error) => return (Verdict::Bad, format!("{}: {error}", path.display())),
    };
    if let Err(error) = check_outside_pools(root, path) {
        return (Verdict::Bad, error.chain());
    }
    match read_marker(root) {
        Ok(Some(marker)) if marker.name == *name => match backend::open(root, &marker.backend) {
            Ok(backend) => (Verdict::Ok, format!("uuid {}, {}", marker.uuid, limits_of(backend.as_ref()))),
            Err(error) => (Verdict::Bad, error.chain()),
        },
        Ok(Some(marker)) => {
            let (found, uuid) = (marker.name.as_str(), marker.uuid);
            (Verdict::Bad, format!("this is pool {found:?}, not {:?} (uuid {uuid})", name.as_str()))
        }
        Ok(None) if entries == 0 => {
            (Verdict::Ok, "none: an empty directory becomes a pool when it is first served".into())
        }
        Ok(None) => (Verdict::Bad, "orlop.json is missing and the directory is not empty".into()),
        Err(error) => (Verdict::Bad, error.chain()),
    }
}

/// Number of entries that mkfs did not create.
fn count_entries(root: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count = 0;
    for entry in rustix::fs::Dir::read_from(root)? {
        let is_own = !matches!(entry?.file_name().to_bytes(), b"." | b".." | b"lost+found");
        count += usize::from(is_own);
    }
    Ok(count)
}

/// The mount that a path is on; `None` if it was not found.
fn mount_at(path: &Path) -> Option<MountInfo> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    mount_of(rustix::fs::open(path, flags, Mode::empty()).ok()?.as_fd()).ok()?
}

fn super_options(mount: &MountInfo) -> impl Iterator<Item = &[u8]> {
    mount.super_options.as_bytes().split(|byte| *byte == b',')
}

/// The type of a mounted filesystem, with the version of NFS.
fn describe(mount: &MountInfo) -> String {
    let version = super_options(mount).find_map(|option| option.strip_prefix(b"vers="));
    let version = version.map_or_else(String::new, |version| format!(" {}", version.escape_ascii()));
    format!("{}{version}", mount.fs_type.display())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::volume::SCHEMA;

    fn mounted(fs_type: &str, super_options: &str) -> MountInfo {
        let mount = mount_at(Path::new("/")).unwrap();
        MountInfo { fs_type: fs_type.into(), super_options: super_options.into(), ..mount }
    }

    #[test]
    fn a_filesystem_is_described_with_its_version() {
        assert_eq!(describe(&mounted("xfs", "rw,prjquota")), "xfs");
        assert_eq!(describe(&mounted("nfs4", "rw,vers=4.2,hard")), "nfs4 4.2");
    }

    fn marker(schema: u32, name: &str) -> String {
        format!(
            r#"{{"schema":{schema},"uuid":"u","name":"{name}","backend":"dir","created":"2024-05-01T12:00:00Z"}}"#
        )
    }

    #[test]
    fn only_a_pool_of_this_name_or_an_empty_directory_is_usable() {
        let directory = tempfile::tempdir().unwrap();
        let name: PoolName = "p".parse().unwrap();
        let check = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(directory.path().join("orlop.json"), text).unwrap();
            }
            let root = File::open(directory.path()).unwrap();
            check_marker(&name, root.as_fd(), directory.path()).0
        };
        assert_eq!(check(None), Verdict::Ok);
        let settings = PoolSettings::new(name.clone(), directory.path().to_owned());
        let facts = inspect(std::slice::from_ref(&settings));
        assert!(is_usable(&facts), "{}", to_text(&facts));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is changed");
        assert_eq!(check(Some(&marker(SCHEMA, "p"))), Verdict::Ok);
        assert_eq!(check(Some(&marker(SCHEMA, "q"))), Verdict::Bad, "another pool");
        assert_eq!(check(Some(&marker(SCHEMA + 1, "p"))), Verdict::Bad, "a newer schema");
        assert_eq!(check(Some("{")), Verdict::Bad, "a damaged marker");
        std::fs::remove_file(directory.path().join("orlop.json")).unwrap();
        std::fs::write(directory.path().join("stray"), "").unwrap();
        assert_eq!(check(None), Verdict::Bad, "neither empty nor a pool");
        let missing = PoolSettings { path: directory.path().join("missing"), ..settings };
        assert!(!is_usable(&inspect(&[missing])));
        assert!(to_json(&facts).starts_with('['));
    }
}
