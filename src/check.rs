//! `orlop check`: reports what this kernel and these pools support, without changing anything.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use serde::Serialize;

use crate::backend::{self, Backend, LimitSupport};
use crate::mount::users::Users;
use crate::pool::{check_outside_pools, check_projects, check_shareable, read_marker};
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
    /// The pool cannot be used in this state.
    Bad,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Whether orlop can run with this result.
    pub verdict: Verdict,
    /// The object that was checked: `kernel`, `mounts` or `pool NAME`.
    pub object: String,
    /// The property that was checked.
    pub property: String,
    /// The value that was found, and what follows from it.
    pub found: String,
}

/// Checks the kernel, the mounts and these pools.
pub fn inspect<'a>(pools: impl IntoIterator<Item = (&'a PoolName, &'a Path)>) -> Vec<Fact> {
    let mut facts: Vec<_> = Call::ALL.into_iter().map(check_call).collect();
    facts.push(check_propagation());
    facts.push(check_processes());
    for (name, path) in pools {
        check_pool(&mut facts, name, path);
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
        let _ = writeln!(text, "{verdict:<5} {:<12} {:<14} {}", fact.object, fact.property, fact.found);
    }
    text
}

/// Formats the facts as a JSON array.
#[must_use]
pub fn to_json(facts: &[Fact]) -> String {
    serde_json::to_string_pretty(facts).map(|text| text + "\n").unwrap_or_default()
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
    match Mount::at(path) {
        Some(mount) if mount.shared => fact(Verdict::Ok, "mounts", &property, "shared: mounts propagate"),
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

fn check_pool(facts: &mut Vec<Fact>, name: &PoolName, path: &Path) {
    let pool = format!("pool {name}");
    let (verdict, found) = check_marker(name, path);
    facts.push(fact(verdict, &pool, "marker", found));
    let Ok(directory) = open_directory(path) else { return };
    let mount = Mount::at(path);
    let kind = mount.as_ref().map_or("unknown", |mount| mount.filesystem.as_str());
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
    facts.push(match supports_reflink(path) {
        Ok(true) => fact(Verdict::Ok, &pool, "reflink", "yes: snapshots and clones share blocks"),
        Ok(false) => fact(Verdict::Note, &pool, "reflink", "no: snapshots and clones are full copies"),
        Err(error) => fact(Verdict::Note, &pool, "reflink", format!("unknown: {error}")),
    });
    let quota = mount.is_some_and(|mount| mount.project_quota);
    facts.push(if quota {
        fact(Verdict::Ok, &pool, "project quota", "on, but not used: this version enforces no sizes")
    } else {
        fact(Verdict::Note, &pool, "project quota", "off, and not used: this version enforces no sizes")
    });
}

/// The backend, and whether it enforces sizes.
fn limits_of(backend: &dyn Backend) -> String {
    let kind = backend.kind();
    match (backend.capabilities().limits, backend.how_to_limit()) {
        (LimitSupport::Bytes, _) => format!("backend {kind}, sizes are enforced"),
        (LimitSupport::None, Some(how)) => format!("backend {kind}, sizes are not enforced: {how}"),
        (LimitSupport::None, None) => format!("backend {kind}, sizes are not enforced"),
    }
}

/// Checks whether a directory is the pool of this name, can become it, or is neither.
fn check_marker(name: &PoolName, path: &Path) -> (Verdict, String) {
    let opened = open_directory(path).and_then(|root| Ok((root, count_entries(path)?)));
    let (root, entries) = match opened {
        Ok(opened) => opened,
        Err(error) => return (Verdict::Bad, format!("{}: {error}", path.display())),
    };
    if let Err(error) = check_outside_pools(root.as_fd(), path) {
        return (Verdict::Bad, error.chain());
    }
    match read_marker(root.as_fd()) {
        Ok(Some(marker)) if marker.name == *name => match backend::open(root.as_fd(), &marker.backend) {
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

/// Opens a directory. Opening a FIFO would block without `O_DIRECTORY`.
fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Number of entries that mkfs did not create.
fn count_entries(directory: &Path) -> io::Result<usize> {
    let entries = std::fs::read_dir(directory)?.flatten();
    Ok(entries.filter(|entry| entry.file_name() != "lost+found").count())
}

/// Reports whether files in a directory can share blocks. It tries that with two unnamed temporary files.
fn supports_reflink(directory: &Path) -> io::Result<bool> {
    let temporary = || {
        rustix::fs::open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
    };
    let (mut from, to) = (File::from(temporary()?), temporary()?);
    from.write_all(&[1; 4096])?;
    Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

/// Properties of a mount, from the mount table.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    filesystem: String,
    shared: bool,
    project_quota: bool,
}

impl Mount {
    /// The mount that a path is on; `None` if it was not found.
    fn at(path: &Path) -> Option<Self> {
        let id =
            rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?.stx_mnt_id;
        let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        table.lines().find(|line| line.starts_with(&format!("{id} "))).and_then(Self::parse)
    }

    /// Parses a line of mountinfo, proc(5): `id parent dev root target options optional… - type source superoptions`.
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let filesystem = right.next()?.to_owned();
        let is_quota = |option: &str| matches!(option, "prjquota" | "pquota" | "prjjquota");
        Some(Self {
            filesystem,
            shared: left.split(' ').skip(6).any(|field| field.starts_with("shared:")),
            project_quota: right.nth(1)?.split(',').any(is_quota),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::SCHEMA;

    #[test]
    fn mountinfo_lines_are_parsed() {
        let line = "36 35 98:0 /a /mnt rw,noatime shared:1 master:2 - xfs /dev/sda1 rw,prjquota";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount, Mount { filesystem: "xfs".into(), shared: true, project_quota: true });
        let line = "36 35 98:0 / / rw - ext4 /dev/sda1 rw";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount, Mount { filesystem: "ext4".into(), shared: false, project_quota: false });
        assert_eq!(Mount::parse("nonsense"), None);
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
            check_marker(&name, directory.path()).0
        };
        assert_eq!(check(None), Verdict::Ok);
        let facts = inspect([(&name, directory.path())]);
        assert!(is_usable(&facts), "{}", to_text(&facts));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is changed");
        assert_eq!(check(Some(&marker(SCHEMA, "p"))), Verdict::Ok);
        assert_eq!(check(Some(&marker(SCHEMA, "q"))), Verdict::Bad, "another pool");
        assert_eq!(check(Some(&marker(SCHEMA + 1, "p"))), Verdict::Bad, "a newer schema");
        assert_eq!(check(Some("{")), Verdict::Bad, "a damaged marker");
        std::fs::remove_file(directory.path().join("orlop.json")).unwrap();
        std::fs::write(directory.path().join("stray"), "").unwrap();
        assert_eq!(check(None), Verdict::Bad, "neither empty nor a pool");
        assert_eq!(check_marker(&name, &directory.path().join("missing")).0, Verdict::Bad);
        assert!(to_json(&facts).starts_with('['));
    }
}
