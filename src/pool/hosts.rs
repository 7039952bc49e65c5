//! The records in `hosts/`: which processes serve a pool that several hosts share, and which volumes their hosts use.
//!
//! They only tell people which host holds a lock: a process without its lock is gone, whatever its record says. So one
//! that cannot be read is only missing in a message. The process that finds the
//! records of one that is gone removes them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::PoolSettings;
use super::dirs::{DIRECTORY, explain, for_each_name, open_inside, open_or_create};
use super::lock_files::Mode;
use super::store::{parse, read_file, write_file};
use crate::error::{Context as _, Error, Kind, Result};
use crate::remote::NfsClient;
use crate::volume::{Name, SCHEMA, Timestamp};

/// The directory's name in the pool.
const HOSTS: &str = "hosts";
/// The number of records that are read. Each process that serves the pool has one.
const MOST: usize = 1000;
/// Time after which a process that has not noted its life counts as ended, in seconds. It does so once a minute.
const SILENT: i64 = 150;

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
    /// The identity of its NFS client; `None` if it has not mounted the pool itself.
    #[serde(default)]
    client: Option<String>,
    /// The number of the network of its host to which the mount belongs.
    #[serde(default)]
    network: Option<u64>,
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
    /// The process that has these settings, on this host; a new one if they do not name it.
    pub(super) fn of(settings: &PoolSettings) -> Self {
        let client = settings.share.as_ref().map(|_| NfsClient::own());
        let host_name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let node = settings.node.clone().unwrap_or_else(host_name);
        Self {
            schema: SCHEMA,
            uuid: settings.process.unwrap_or_else(Uuid::new_v4),
            node,
            boot: boot.trim_end().to_owned(),
            network: client.as_ref().map(|client| client.network),
            client: client.map(|client| client.identity),
        }
    }

    /// Whether the server takes the host of the other process for this one, although it is another one.
    fn is_twin(&self, other: &Self) -> bool {
        self.client.is_some()
            && self.client == other.client
            && (&self.boot, self.network) != (&other.boot, other.network)
    }

    /// Whether the process has mounted the pool itself.
    pub(super) fn has_mounted_share(&self) -> bool {
        self.client.is_some()
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

    /// The directory of a pool that has it already.
    pub(super) fn open_existing(root: BorrowedFd<'_>) -> Result<Option<Self>> {
        match open_inside(root, HOSTS, DIRECTORY) {
            Err(Errno::NOENT) => Ok(None),
            opened => explain(opened, HOSTS).map(|dir| Some(Self(dir))),
        }
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

    /// Refuses to use the pool beside another host that has the same NFS client identity: the server gives each the locks of the
    /// other. `now` is the time of the server, in seconds since 1970.
    ///
    /// # Errors
    /// `Unavailable` then, with the remedy; otherwise the error of the failed system call.
    pub(super) fn refuse_twin(&self, own: &HostRecord, now: i64) -> Result<()> {
        let last_seen = |host: HostRecord| {
            let noted = self.noted_life(host.uuid)?;
            Some((host, now.saturating_sub(noted)))
        };
        let twins = self.all()?.into_iter().filter(|host| own.is_twin(host)).filter_map(last_seen);
        let Some((twin, age)) = twins.min_by_key(|(_, age)| *age).filter(|(_, age)| *age < SILENT) else {
            return Ok(());
        };
        let (node, identity) = (&twin.node, twin.client.as_deref().unwrap_or_default());
        let text = format!(
            "host {node} used the pool {age} s ago and has the same NFS client identity ({identity}): write another text to \
             /sys/fs/nfs/net/nfs_client/identifier on one of the two hosts, unmount what it has mounted from the server, and \
             restart orlop there (if this host was restarted, retry in {} s)",
            SILENT - age
        );
        Err(Error::new(Kind::Unavailable, text))
    }

    /// Notes that a process is at work.
    pub(super) fn note_life(&self, host: Uuid) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let _ = fs::utimensat(&self.0, file(host).as_str(), &times, AtFlags::SYMLINK_NOFOLLOW);
    }

    /// When a process last noted its life, in seconds since 1970 by the clock of the server.
    pub(super) fn noted_life(&self, host: Uuid) -> Option<i64> {
        let stat = fs::statat(&self.0, file(host).as_str(), AtFlags::SYMLINK_NOFOLLOW);
        stat.ok().map(|stat| stat.st_mtime)
    }

    /// Whether a process has not noted its life for a while, by the clock of this host, which has the filesystem.
    pub(super) fn is_silent(&self, host: Uuid) -> bool {
        let now = Timestamp::now().as_second();
        self.noted_life(host).is_none_or(|noted| now.saturating_sub(noted) > SILENT)
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn host(node: &str, boot: &str, client: Option<(&str, u64)>) -> HostRecord {
        let (uuid, node, boot) = (Uuid::new_v4(), node.to_owned(), boot.to_owned());
        let (client, network) = client.map(|(client, network)| (client.to_owned(), network)).unzip();
        HostRecord { schema: SCHEMA, uuid, node, boot, client, network }
    }

    #[test]
    fn a_host_that_the_server_takes_for_this_one_is_refused_until_it_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = Hosts::open(File::open(dir.path()).unwrap().as_fd()).unwrap();
        let own = host("node-a", "boot-1", Some(("id/name", 1)));
        let now = || Timestamp::now().as_second();
        for harmless in [
            host("node-b", "boot-2", Some(("other/name", 1))),
            host("node-b", "boot-1", Some(("id/name", 1))),
            host("node-b", "boot-2", None),
        ] {
            hosts.add(&harmless).unwrap();
            hosts.refuse_twin(&own, now()).unwrap();
        }
        for twin in
            [host("node-b", "boot-2", Some(("id/name", 1))), host("node-b", "boot-1", Some(("id/name", 2)))]
        {
            hosts.add(&twin).unwrap();
            let error = hosts.refuse_twin(&own, now()).unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(error.chain().starts_with("host node-b used the pool "), "{}", error.chain());
            assert!(error.chain().contains("(id/name)"), "{}", error.chain());
            let record =
                File::options().write(true).open(dir.path().join("hosts").join(file(twin.uuid))).unwrap();
            record.set_modified(SystemTime::now() - Duration::from_secs(200)).unwrap();
            hosts.refuse_twin(&own, now()).unwrap();
            hosts.note_life(twin.uuid);
            hosts.refuse_twin(&own, now()).unwrap_err();
            hosts.remove(twin.uuid);
        }
    }
}
