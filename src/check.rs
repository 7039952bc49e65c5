//! What this kernel and these pools can do, found by looking: nothing is changed.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use serde::Serialize;

use crate::sys::probe::Call;
use crate::volume::PoolName;

/// Where kubelet keeps the pods' volumes.
const KUBELET: &str = "/var/lib/kubelet";

/// How a fact bears on orlop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As one would have it.
    Ok,
    /// orlop works without it.
    Note,
    /// This pool or machine cannot be used so.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// How it bears on orlop.
    pub verdict: Verdict,
    /// `kernel`, `mounts`, or `pool NAME`.
    pub of: String,
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub found: String,
}

/// Looks at the kernel, the mounts and these pools.
pub fn look<'a>(pools: impl IntoIterator<Item = (&'a PoolName, &'a Path)>) -> Vec<Fact> {
    let mut facts: Vec<_> = Call::ALL.into_iter().map(call).collect();
    facts.push(propagation());
    for (name, path) in pools {
        pool(&mut facts, name, path);
    }
    facts
}

/// One line per fact.
#[must_use]
pub fn lines(facts: &[Fact]) -> String {
    let mut text = String::new();
    for fact in facts {
        let word = match fact.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Bad => "BAD",
        };
        let _ = writeln!(text, "{word:<5} {:<12} {:<14} {}", fact.of, fact.what, fact.found);
    }
    text
}

/// The same for machines.
#[must_use]
pub fn json(facts: &[Fact]) -> String {
    serde_json::to_string_pretty(facts).map(|text| text + "\n").unwrap_or_default()
}

/// Whether nothing is bad.
#[must_use]
pub fn usable(facts: &[Fact]) -> bool {
    facts.iter().all(|fact| fact.verdict != Verdict::Bad)
}

fn fact(verdict: Verdict, of: &str, what: &str, found: impl Into<String>) -> Fact {
    Fact { verdict, of: of.to_owned(), what: what.to_owned(), found: found.into() }
}

fn call(call: Call) -> Fact {
    let (verdict, found) = match call.known() {
        Ok(true) => (Verdict::Ok, "yes"),
        Ok(false) => (Verdict::Note, "no: an older way is used where there is one"),
        Err(_) => (Verdict::Note, "not allowed to this process: run as root to know"),
    };
    fact(verdict, "kernel", call.name(), found)
}

/// Mounts made in a container reach kubelet only when the folder they are made in is shared.
fn propagation() -> Fact {
    let path = if Path::new(KUBELET).is_dir() { Path::new(KUBELET) } else { Path::new("/") };
    let what = path.display().to_string();
    match Mount::of(path) {
        Some(mount) if mount.shared => fact(Verdict::Ok, "mounts", &what, "shared: mounts propagate"),
        Some(_) => fact(
            Verdict::Note,
            "mounts",
            &what,
            "private: mounts made here are seen in this mount namespace only (mountPropagation: Bidirectional \
             needs a shared one)",
        ),
        None => fact(Verdict::Note, "mounts", &what, "its mount cannot be found"),
    }
}

fn pool(facts: &mut Vec<Fact>, name: &PoolName, path: &Path) {
    let of = format!("pool {name}");
    let (verdict, found) = marker(name, path);
    facts.push(fact(verdict, &of, "marker", found));
    let Ok(folder) = File::open(path) else { return };
    let mount = Mount::of(path);
    let kind = mount.as_ref().map_or("unknown", |mount| mount.filesystem.as_str());
    facts.push(fact(Verdict::Ok, &of, "filesystem", kind));
    if let Ok(stat) = rustix::fs::fstatvfs(&folder) {
        let gib = |blocks: u64| blocks.saturating_mul(stat.f_frsize) >> 20;
        let text = format!("{} of {} MiB", gib(stat.f_bavail), gib(stat.f_blocks));
        facts.push(fact(Verdict::Ok, &of, "free", text));
    }
    facts.push(match reflink(path) {
        Ok(true) => fact(Verdict::Ok, &of, "reflink", "yes: snapshots and clones share blocks"),
        Ok(false) => fact(Verdict::Note, &of, "reflink", "no: snapshots and clones are full copies"),
        Err(error) => fact(Verdict::Note, &of, "reflink", format!("cannot be tried: {error}")),
    });
    let quota = mount.is_some_and(|mount| mount.project_quota);
    facts.push(if quota {
        fact(Verdict::Ok, &of, "project quota", "on")
    } else {
        fact(Verdict::Note, &of, "project quota", "off: sizes are provisioned, not enforced")
    });
}

/// Whether the directory is a pool, may become one, or is neither.
fn marker(name: &PoolName, path: &Path) -> (Verdict, String) {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().filter(|entry| entry.file_name() != "lost+found").count(),
        Err(error) => return (Verdict::Bad, format!("{}: {error}", path.display())),
    };
    let text = match std::fs::read_to_string(path.join("orlop.json")) {
        Ok(text) => text,
        Err(_) if entries == 0 => {
            return (Verdict::Ok, "none yet: an empty folder becomes a pool at first use".into());
        }
        Err(error) => return (Verdict::Bad, format!("orlop.json: {error}; and the folder is not empty")),
    };
    let field =
        |marker: &serde_json::Value, key: &str| marker.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    match serde_json::from_str::<serde_json::Value>(&text) {
        Err(error) => (Verdict::Bad, format!("orlop.json: {error}")),
        Ok(marker) => {
            let uuid = field(&marker, "uuid").unwrap_or_else(|| "unknown".to_owned());
            match field(&marker, "name") {
                Some(found) if found != name.as_str() => {
                    (Verdict::Bad, format!("this is pool {found:?}, not {:?} (uuid {uuid})", name.as_str()))
                }
                Some(_) | None => (Verdict::Ok, format!("uuid {uuid}")),
            }
        }
    }
}

/// Whether files here can share blocks: tried with two files that have no name and vanish when closed.
fn reflink(folder: &Path) -> std::io::Result<bool> {
    let nameless = || {
        rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
    };
    let (mut from, to) = (File::from(nameless()?), nameless()?);
    from.write_all(&[1; 4096])?;
    Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

/// What the mount table says of one mount.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    filesystem: String,
    shared: bool,
    project_quota: bool,
}

impl Mount {
    fn of(path: &Path) -> Option<Self> {
        let id =
            rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?.stx_mnt_id;
        let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        table.lines().find(|line| line.starts_with(&format!("{id} "))).and_then(Self::read)
    }

    /// `id parent dev root target options optional… - type source superoptions`
    fn read(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let filesystem = right.next()?.to_owned();
        let quota = |word: &str| matches!(word, "prjquota" | "pquota" | "prjjquota");
        Some(Self {
            filesystem,
            shared: left.split(' ').skip(6).any(|word| word.starts_with("shared:")),
            project_quota: right.nth(1)?.split(',').any(quota),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read() {
        let line = "36 35 98:0 /a /mnt rw,noatime shared:1 master:2 - xfs /dev/sda1 rw,prjquota";
        let read = Mount::read(line).unwrap();
        assert_eq!(read, Mount { filesystem: "xfs".into(), shared: true, project_quota: true });
        let line = "36 35 98:0 / / rw - ext4 /dev/sda1 rw";
        let read = Mount::read(line).unwrap();
        assert_eq!(read, Mount { filesystem: "ext4".into(), shared: false, project_quota: false });
        assert_eq!(Mount::read("nonsense"), None);
    }

    #[test]
    fn folders_are_told_apart_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let name: PoolName = "p".parse().unwrap();
        let of = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(folder.path().join("orlop.json"), text).unwrap();
            }
            marker(&name, folder.path()).0
        };
        assert_eq!(of(None), Verdict::Ok);
        let facts = look([(&name, folder.path())]);
        assert!(usable(&facts), "{}", lines(&facts));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is changed");
        assert_eq!(of(Some("{\"name\":\"p\",\"uuid\":\"u\"}")), Verdict::Ok);
        assert_eq!(of(Some("{\"name\":\"q\",\"uuid\":\"u\"}")), Verdict::Bad);
        assert_eq!(of(Some("{")), Verdict::Bad);
        std::fs::remove_file(folder.path().join("orlop.json")).unwrap();
        std::fs::write(folder.path().join("stray"), "").unwrap();
        assert_eq!(of(None), Verdict::Bad);
        assert_eq!(marker(&name, &folder.path().join("missing")).0, Verdict::Bad);
        assert!(json(&facts).starts_with('['));
    }
}
