//! The records in `hosts/`: which processes serve a pool that several hosts share, and which volumes their hosts use.
//!
//! They only tell people which host holds a lock: a process without its lock is gone, whatever its record says. So one
//! that cannot be read is only missing in a message. The process that finds the
//! records of one that is gone removes them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::dirs::{DIRECTORY, for_each_name, open_inside, open_or_create};
use super::lock_files::Mode;
use super::store::{parse, read_file, write_file};
use crate::error::{Context as _, Result};
use crate::volume::{Name, SCHEMA, Timestamp};

/// The directory's name in the pool.
const HOSTS: &str = "hosts";
/// The number of records that are read. Each process that serves the pool has one.
const MOST: usize = 1000;

/// A process that serves the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostRecord {
    schema: u32,
    /// Names its lock.
    pub(super) uuid: Uuid,
    /// The name of its host.
    pub(super) node: String,
    /// The boot of its host: it has ended if this is another one.
    pub(super) boot: String,
}

/// A volume that the host of a process uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct UseRecord {
    schema: u32,
    since: Timestamp,
    alone: bool,
}

/// A host that uses a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostUse {
    /// The name of the host.
    pub node: String,
    /// Time at which its use began, or at which its process was started.
    pub since: Timestamp,
    /// Whether no other host may use the volume meanwhile.
    pub alone: bool,
}

/// The open directory `hosts/`.
#[derive(Debug)]
pub(super) struct Hosts(OwnedFd);

impl HostRecord {
    /// A process on this host; a new one without a name of its own.
    pub(super) fn new(process: Option<Uuid>, node: Option<&str>) -> Self {
        let host_name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let node = node.map_or_else(host_name, str::to_owned);
        Self {
            schema: SCHEMA,
            uuid: process.unwrap_or_else(Uuid::new_v4),
            node,
            boot: boot.trim_end().to_owned(),
        }
    }

    /// Whether the other process was started by the same boot of the same host.
    pub(super) fn is_same_host(&self, other: &Self) -> bool {
        (&self.node, &self.boot) == (&other.node, &other.boot)
    }
}

impl Hosts {
    /// Opens the directory, and makes it if it is missing.
    pub(super) fn open(root: BorrowedFd<'_>) -> Result<Self> {
        open_or_create(root, HOSTS).map(Self)
    }

    /// Whether the record of a process is there.
    pub(super) fn has(&self, host: &HostRecord) -> bool {
        let found = read_file(&self.0, file(host.uuid).as_str()).ok().flatten();
        found.is_some_and(|bytes| parse(&bytes).is_ok_and(|found: HostRecord| found == *host))
    }

    /// Adds the record of a process.
    pub(super) fn add(&self, host: &HostRecord) -> Result<()> {
        let of = || format!("record this host in {HOSTS}/");
        open_or_create(self.0.as_fd(), &host.uuid.to_string()).context(of)?;
        // A damaged one.
        let _ = fs::unlinkat(&self.0, file(host.uuid).as_str(), AtFlags::empty());
        write_file(self.0.as_fd(), &file(host.uuid), host).context(of)
    }

    /// The records of all processes, but for the unreadable ones.
    pub(super) fn all(&self) -> Result<Vec<HostRecord>> {
        let mut uuids: Vec<Uuid> = Vec::new();
        for_each_name(self.0.as_fd(), |name| {
            let uuid = name.strip_suffix(".json").and_then(|uuid| uuid.parse::<Uuid>().ok());
            if uuids.len() < MOST {
                uuids.extend(uuid);
            }
        })
        .context(|| format!("list {HOSTS}/"))?;
        let read = |uuid: Uuid| -> Option<HostRecord> {
            let bytes = read_file(&self.0, file(uuid).as_str()).ok()??;
            parse(&bytes).ok().filter(|host: &HostRecord| host.uuid == uuid)
        };
        Ok(uuids.into_iter().filter_map(read).collect())
    }

    /// Removes the records of a process that is gone.
    pub(super) fn remove(&self, host: Uuid) {
        let uuid = host.to_string();
        if let Ok(dir) = open_inside(&self.0, uuid.as_str(), DIRECTORY) {
            let mut used = Vec::new();
            let _ = for_each_name(dir.as_fd(), |name| used.push(name.to_owned()));
            for name in used {
                let _ = fs::unlinkat(&dir, name.as_str(), AtFlags::empty());
            }
        }
        let _ = fs::unlinkat(&self.0, uuid.as_str(), AtFlags::REMOVEDIR);
        let _ = fs::unlinkat(&self.0, file(host).as_str(), AtFlags::empty());
    }

    /// Notes that a process uses a volume. Without space for the note, messages do not name the process.
    pub(super) fn add_use(&self, host: Uuid, volume: &Name, mode: Mode) {
        let Ok(dir) = open_inside(&self.0, host.to_string().as_str(), DIRECTORY) else { return };
        let alone = mode == Mode::Exclusive;
        let record = UseRecord { schema: SCHEMA, since: Timestamp::now(), alone };
        let _ = fs::unlinkat(&dir, volume.as_str(), AtFlags::empty());
        let _ = write_file(dir.as_fd(), volume.as_str(), &record);
    }

    /// Removes the note that a process uses a volume.
    pub(super) fn remove_use(&self, host: Uuid, volume: &Name) {
        let _ = fs::unlinkat(&self.0, format!("{host}/{volume}"), AtFlags::empty());
    }

    /// The volumes that a process uses.
    pub(super) fn uses_of(&self, host: &HostRecord) -> Vec<(Name, HostUse)> {
        let mut names: Vec<Name> = Vec::new();
        if let Ok(dir) = open_inside(&self.0, host.uuid.to_string().as_str(), DIRECTORY) {
            let _ = for_each_name(dir.as_fd(), |name| names.extend(name.parse().ok()));
        }
        names.into_iter().filter_map(|name| Some((name.clone(), self.use_of(host, &name)?))).collect()
    }

    /// How a process uses a volume; `None` if it does not, or if its note cannot be read.
    pub(super) fn use_of(&self, host: &HostRecord, volume: &Name) -> Option<HostUse> {
        let path = format!("{}/{volume}", host.uuid);
        let bytes = read_file(&self.0, path.as_str()).ok()??;
        let UseRecord { since, alone, .. } = parse(&bytes).ok()?;
        Some(HostUse { node: host.node.clone(), since, alone })
    }
}

fn file(host: Uuid) -> String {
    format!("{host}.json")
}
