//! Which volumes the hosts of a shared pool use: the lock "used NAME", held by a process of each host that has the volume
//! mounted. It is shared, or exclusive for a volume that one host may use at a time; a deletion asks for it alone.
//!
//! The locks belong to descriptors of their own, so that they exclude the other locks of this process, too, and can be kept
//! longer than the rest of the pool. They are taken before a volume is mounted, and at the start, before any call, for what
//! is mounted already. A thread compares them with the mounts after each unpublish and once a minute: it releases those of
//! volumes that are not mounted any more, and takes again those that this host has lost with its lease.

mod check;
mod server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::hosts::{HostRecord, HostUse, Hosts};
use super::lock_files::{LockFiles, Mode};
use crate::error::{Error, Kind, Result};
use crate::volume::{Name, PoolName, VolumeId};
use check::Wakeup;
use server::NfsServer;

/// The used-locks of a process.
#[derive(Debug)]
pub struct UsedLocks {
    pool: PoolName,
    files: LockFiles,
    hosts: Hosts,
    /// `None`: this process serves nothing, and only asks.
    host: Option<HostRecord>,
    /// The boot of this host.
    boot: String,
    /// Set if the other hosts are clients of this one.
    server: Option<NfsServer>,
    /// Locked during each change of a lock, since a second lock of a key replaces the first.
    held: Mutex<Held>,
    wakeup: Arc<Wakeup>,
}

#[derive(Debug, Default)]
struct Held {
    locks: BTreeMap<Name, Lock>,
    /// The volumes that are mounted here although another host has them alone, with the reason.
    lost: BTreeMap<Name, String>,
    /// Whether the pool was opened again, with other descriptors.
    is_closed: bool,
    /// Whether another process of this host holds the lock of a volume that is mounted here, and leaves it when it ends.
    waits: bool,
}

#[derive(Debug)]
struct Lock {
    mode: Mode,
    /// Whether it stays exclusive at the end of the copies.
    alone: bool,
    /// Number of copies that need it exclusive.
    copies: usize,
    /// Number of calls that are mounting or deleting the volume.
    pins: usize,
    /// Number of calls so far.
    calls: u64,
}

impl Lock {
    /// The mode without which a use of the volume is not excluded.
    fn needed(&self) -> Mode {
        if self.alone || self.copies > 0 { Mode::Exclusive } else { Mode::Shared }
    }
}

/// A lock that a call needs: it is not released before this is dropped.
#[derive(Debug)]
pub struct UsedLock<'u> {
    used: &'u UsedLocks,
    name: Name,
    after: After,
}

/// What becomes of a lock that a call does not need any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// It is kept: the volume may be mounted.
    Keep,
    /// It is released.
    Release,
    /// It becomes what it was before a copy.
    Downgrade,
}

impl UsedLocks {
    /// Takes the lock of a volume that is about to be mounted on this host: `alone` if no other host may use it meanwhile.
    /// The caller holds the volume's lock.
    ///
    /// # Errors
    /// `InUse` when another host excludes this one; the message names it. Otherwise the error of the failed system call.
    pub fn take(&self, name: &Name, alone: bool) -> Result<UsedLock<'_>> {
        let mode = if alone { Mode::Exclusive } else { Mode::Shared };
        let mut held = self.held();
        self.lock(&mut held, name, mode)?;
        Ok(self.pin(&mut held, name, After::Keep))
    }

    /// Takes the lock of a volume whose users on this host are paused for a copy: no other host may use it meanwhile, since
    /// its containers cannot be paused. The lock is then as it was.
    ///
    /// # Errors
    /// Same as [`UsedLocks::take`].
    pub fn take_to_copy(&self, name: &Name) -> Result<UsedLock<'_>> {
        let mut held = self.held();
        held.refuse_if_closed()?;
        self.refuse_recorded(name, Mode::Exclusive)?;
        let is_exclusive = held.locks.get(name).is_some_and(|lock| lock.mode == Mode::Exclusive);
        // No record: what the host uses does not change.
        if !is_exclusive && !self.files.try_lock(&key(name), Mode::Exclusive)? {
            return Err(self.refusal(name));
        }
        let lock = held.locks.entry(name.clone()).or_insert_with(|| Lock::new(Mode::Exclusive));
        lock.mode = Mode::Exclusive;
        lock.copies += 1;
        Ok(self.pin(&mut held, name, After::Downgrade))
    }

    /// Takes the lock of a volume that is to be deleted and is not mounted on this host. It is released with the result.
    ///
    /// # Errors
    /// Same as [`UsedLocks::take`].
    pub fn take_to_delete(&self, name: &Name) -> Result<UsedLock<'_>> {
        let mut held = self.held();
        held.refuse_if_closed()?;
        self.refuse_recorded(name, Mode::Exclusive)?;
        if !held.locks.contains_key(name) {
            // No record: the host does not use the volume.
            if !self.files.try_lock(&key(name), Mode::Exclusive)? {
                return Err(self.refusal(name));
            }
            held.locks.insert(name.clone(), Lock { alone: true, ..Lock::new(Mode::Exclusive) });
        } else {
            self.lock(&mut held, name, Mode::Exclusive)?;
        }
        Ok(self.pin(&mut held, name, After::Release))
    }

    /// The hosts that use a volume, as their records say.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn users(&self, name: &Name) -> Result<Vec<HostUse>> {
        let all = self.hosts.all()?;
        let mut users: Vec<HostUse> = all
            .iter()
            .filter_map(|host| Some((host, self.hosts.use_of(host, name)?)))
            .filter(|(host, _)| !self.is_gone(host))
            .map(|(_, found)| found)
            .collect();
        users.sort_by(|a, b| (&a.node, a.since).cmp(&(&b.node, b.since)));
        Ok(users)
    }

    /// The hosts that use volumes, by volume, as their records say.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn all_users(&self) -> Result<BTreeMap<Name, Vec<HostUse>>> {
        let mut found: BTreeMap<Name, Vec<HostUse>> = BTreeMap::new();
        for host in self.hosts.all()?.iter().filter(|host| !self.is_gone(host)) {
            for (name, used) in self.hosts.uses_of(host) {
                found.entry(name).or_default().push(used);
            }
        }
        for users in found.values_mut() {
            users.sort_by(|a, b| (&a.node, a.since).cmp(&(&b.node, b.since)));
        }
        Ok(found)
    }

    /// Why this host should not use a volume that it has mounted: another one took it while this one could not reach the
    /// pool. `None` if all is well.
    pub(crate) fn lost(&self, name: &Name) -> Option<String> {
        self.held().lost.get(name).cloned()
    }

    /// Whether this process holds the lock of a volume.
    #[must_use]
    pub fn holds(&self, name: &Name) -> bool {
        self.held().locks.contains_key(name)
    }

    /// Whether this process holds the lock of a volume so that no other host may use it.
    #[must_use]
    pub fn holds_alone(&self, name: &Name) -> bool {
        self.held().locks.get(name).is_some_and(|lock| lock.mode == Mode::Exclusive)
    }

    /// Releases the lock of a volume that is not mounted on this host, unless a call needs it. The caller holds the
    /// volume's lock.
    pub fn release_unused(&self, name: &Name) {
        let mut held = self.held();
        if held.locks.get(name).is_some_and(|lock| lock.pins == 0) {
            self.release(&mut held, name);
        }
    }

    /// Has the locks compared with the mounts soon. Does no I/O.
    pub fn check_soon(&self) {
        self.wakeup.check_soon();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin(&self, held: &mut Held, name: &Name, after: After) -> UsedLock<'_> {
        if let Some(lock) = held.locks.get_mut(name) {
            lock.pins += 1;
            lock.calls += 1;
        }
        UsedLock { used: self, name: name.clone(), after }
    }

    fn lock(&self, held: &mut Held, name: &Name, mode: Mode) -> Result<()> {
        held.refuse_if_closed()?;
        let known = held.locks.get(name).map(|lock| lock.mode);
        if let Some(lock) = held.locks.get_mut(name)
            && (lock.mode == mode || lock.mode == Mode::Exclusive)
        {
            lock.alone |= mode == Mode::Exclusive;
            // A copy has added no record.
            if let Some(host) = self.host.as_ref().filter(|_| lock.copies > 0) {
                self.hosts.add_use(host.uuid, name, if lock.alone { Mode::Exclusive } else { Mode::Shared });
            }
            return Ok(());
        }
        self.refuse_recorded(name, mode)?;
        // The record first, so that a host that is refused finds it.
        if let Some(host) = &self.host {
            self.hosts.add_use(host.uuid, name, mode);
        }
        let locked = self.files.try_lock(&key(name), mode);
        if !matches!(locked, Ok(true)) {
            if let Some(host) = &self.host {
                self.hosts.remove_use(host.uuid, name);
                if let Some(known) = known {
                    self.hosts.add_use(host.uuid, name, known);
                }
            }
            return locked.and_then(|_| Err(self.refusal(name)));
        }
        let lock = held.locks.entry(name.clone()).or_insert_with(|| Lock::new(mode));
        lock.mode = mode;
        lock.alone = mode == Mode::Exclusive;
        held.lost.remove(name);
        Ok(())
    }

    /// On an NFS server, refuses what a client excludes according to its record: its lock may be missing for a while.
    fn refuse_recorded(&self, name: &Name, mode: Mode) -> Result<()> {
        if self.server.is_none() {
            return Ok(());
        }
        let excludes = |host: &HostRecord| {
            let found = self.hosts.use_of(host, name);
            found.is_some_and(|found| found.alone || mode == Mode::Exclusive) && !self.is_gone(host)
        };
        if self.hosts.all()?.iter().any(|host| self.is_client(host) && excludes(host)) {
            return Err(self.refusal(name));
        }
        Ok(())
    }

    /// Ends a copy's need of an exclusive lock.
    fn downgrade(&self, lock: &mut Lock, name: &Name) {
        lock.copies = lock.copies.saturating_sub(1);
        if lock.copies == 0 && !lock.alone && self.files.try_lock(&key(name), Mode::Shared).unwrap_or(false) {
            lock.mode = Mode::Shared;
            // It may not be mounted at all.
            self.check_soon();
        }
    }

    fn release(&self, held: &mut Held, name: &Name) {
        if held.locks.remove(name).is_some() {
            self.files.unlock(&key(name));
        }
        held.lost.remove(name);
        if let Some(host) = &self.host {
            self.hosts.remove_use(host.uuid, name);
        }
    }

    fn refusal(&self, name: &Name) -> Error {
        let own = self.host.as_ref();
        let others = self
            .hosts
            .all()
            .unwrap_or_default()
            .into_iter()
            .filter(|host| own.is_none_or(|own| own.uuid != host.uuid));
        let users: Vec<String> = others
            .filter_map(|host| self.hosts.use_of(&host, name).filter(|_| !self.is_gone(&host)))
            .map(|found| format!("{} since {:.0}", found.node, found.since))
            .collect();
        let id = VolumeId { pool: self.pool.clone(), name: name.clone() };
        let text = match &users[..] {
            [] => format!(
                "volume {id} is in use, or being copied, on another host of its pool: stop its pods there and retry"
            ),
            users => format!("volume {id} is in use on {}: stop its pods there and retry", users.join(", ")),
        };
        Error::new(Kind::InUse, text)
    }

    /// Whether a process has ended: its lock is free. A client of this host must also have been silent for a while.
    fn is_gone(&self, host: &HostRecord) -> bool {
        if self.host.as_ref().is_some_and(|own| own.uuid == host.uuid) {
            return false;
        }
        let gone = self.files.try_lock(&host_key(host), Mode::Exclusive).unwrap_or(false);
        if gone {
            self.files.unlock(&host_key(host));
        }
        match &self.server {
            Some(server) if self.is_client(host) => {
                gone && server.has_served_long_enough() && self.hosts.is_silent(host.uuid)
            }
            _ => gone,
        }
    }

    /// Whether the locks of a process arrive through the NFS server.
    fn is_client(&self, host: &HostRecord) -> bool {
        host.has_mounted_share() || host.boot != self.boot
    }
}

impl Lock {
    fn new(mode: Mode) -> Self {
        Self { mode, alone: false, copies: 0, pins: 0, calls: 0 }
    }
}

impl Held {
    fn refuse_if_closed(&self) -> Result<()> {
        if self.is_closed {
            return Err(Error::new(Kind::Unavailable, "the pool was opened again during the call: retry"));
        }
        Ok(())
    }
}

impl Drop for UsedLocks {
    /// The records stay: the next process of this host learns from them which volumes it used alone.
    fn drop(&mut self) {
        self.wakeup.stop();
    }
}

impl Drop for UsedLock<'_> {
    fn drop(&mut self) {
        let mut held = self.used.held();
        let Some(lock) = held.locks.get_mut(&self.name) else { return };
        lock.pins = lock.pins.saturating_sub(1);
        match self.after {
            After::Keep => {}
            After::Release if lock.pins == 0 => self.used.release(&mut held, &self.name),
            After::Release => {}
            After::Downgrade => self.used.downgrade(lock, &self.name),
        }
    }
}

fn key(name: &Name) -> String {
    format!("used {name}")
}

fn host_key(host: &HostRecord) -> String {
    format!("host {}", host.uuid)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use super::*;
    use crate::pool::{OpenPool, Pool, PoolSettings, Purpose};

    fn host(node: &str, dir: &std::path::Path) -> Arc<OpenPool> {
        let settings = PoolSettings {
            shared: true,
            node: Some(node.to_owned()),
            ..PoolSettings::new("p".parse().unwrap(), dir.to_owned())
        };
        let pool = Pool::new(settings, Purpose::Serve, Duration::ZERO, Duration::ZERO).get_or_open().unwrap();
        // Nothing is mounted: the thread would release the locks that a test has taken.
        pool.used().unwrap().wakeup.stop();
        pool
    }

    fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::InUse);
        error.to_string()
    }

    #[test]
    fn hosts_use_a_volume_together_or_one_alone_and_a_deletion_needs_it_unused() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (host("node-a", dir.path()), host("node-b", dir.path()));
        let (a, b) = (a.used().unwrap(), b.used().unwrap());
        let name: Name = "v".parse().unwrap();
        let (of_a, of_b) = (a.take(&name, false).unwrap(), b.take(&name, false).unwrap());
        assert!(refusal(a.take(&name, true)).contains("in use on node-b since"));
        assert!(refusal(a.take_to_delete(&name)).contains("node-b"));
        drop((of_a, of_b));
        assert!(refusal(a.take_to_delete(&name)).contains("node-b"), "the lock outlives the call");
        b.release_unused(&name);
        let alone = a.take(&name, true).unwrap();
        assert_eq!(b.users(&name).unwrap().len(), 1);
        assert!(b.users(&name).unwrap()[0].alone);
        assert!(refusal(b.take(&name, false)).contains("node-a"));
        drop(alone);
        drop(a.take_to_delete(&name).unwrap());
        assert!(b.users(&name).unwrap().is_empty());
        b.take(&name, true).unwrap();
    }

    #[test]
    fn a_host_that_lost_a_lock_takes_it_again_or_says_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (host("node-a", dir.path()), host("node-b", dir.path()));
        let (a, b) = (a.used().unwrap(), b.used().unwrap());
        let name: Name = "v".parse().unwrap();
        drop(a.take(&name, false).unwrap());
        // As when a lease ends.
        a.files.unlock(&key(&name));
        a.take_mounted(&mut a.held(), &name, Mode::Shared);
        assert!(refusal(b.take_to_delete(&name)).contains("node-a"), "taken again");
        a.files.unlock(&key(&name));
        drop(b.take(&name, true).unwrap());
        a.take_mounted(&mut a.held(), &name, Mode::Shared);
        assert!(a.lost(&name).unwrap().contains("in use on node-b since"));
        b.release_unused(&name);
        a.take_mounted(&mut a.held(), &name, Mode::Shared);
        assert_eq!(a.lost(&name), None);
        assert!(refusal(b.take_to_delete(&name)).contains("node-a"));
    }

    #[test]
    fn a_host_that_lost_everything_is_named_again() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (host("node-a", dir.path()), host("node-b", dir.path()));
        let name: Name = "v".parse().unwrap();
        let volumes = std::fs::File::open(dir.path().join("volumes")).unwrap();
        let (of_a, of_b) = (a.used().unwrap(), b.used().unwrap());
        let _in_use = of_a.take(&name, false).unwrap();
        // As when a lease ends, and another host looks.
        of_a.files.unlock(&host_key(of_a.host.as_ref().unwrap()));
        of_b.compare(volumes.as_fd()).unwrap();
        assert!(!refusal(of_b.take_to_delete(&name)).contains("node-a"));
        of_a.compare(volumes.as_fd()).unwrap();
        assert!(refusal(of_b.take_to_delete(&name)).contains("in use on node-a since"));
    }

    #[test]
    fn a_pool_that_is_opened_again_leaves_its_locks_to_the_next_instance() {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            PoolSettings { shared: true, ..PoolSettings::new("p".parse().unwrap(), dir.path().to_owned()) };
        let pool = Pool::new(settings, Purpose::Serve, Duration::ZERO, Duration::ZERO);
        let name: Name = "v".parse().unwrap();
        // A copy may still use it.
        let before = pool.get_or_open().unwrap();
        drop(before.used().unwrap().take(&name, true).unwrap());
        std::fs::remove_dir(dir.path().join("work")).unwrap();
        let after = pool.get_or_open().unwrap();
        assert!(!Arc::ptr_eq(&before, &after));
        drop(after.used().unwrap().take(&name, true).unwrap());
        assert_eq!(before.used().unwrap().take(&name, true).unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn a_copy_excludes_other_hosts_and_leaves_the_lock_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (host("node-a", dir.path()), host("node-b", dir.path()));
        let (a, b) = (a.used().unwrap(), b.used().unwrap());
        let name: Name = "v".parse().unwrap();
        drop(a.take(&name, false).unwrap());
        let copies = [a.take_to_copy(&name).unwrap(), a.take_to_copy(&name).unwrap()];
        assert!(refusal(b.take(&name, false)).contains("node-a"));
        drop(copies);
        drop(b.take(&name, false).unwrap());
        assert!(refusal(a.take_to_copy(&name)).contains("node-b"));
        b.release_unused(&name);
        let copy = a.take_to_copy(&name).unwrap();
        drop(a.take(&name, true).unwrap());
        drop(copy);
        assert!(refusal(b.take(&name, false)).contains("node-a"), "a call has asked for it alone meanwhile");
    }

    #[test]
    fn a_host_that_is_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (host("node-a", dir.path()), host("node-b", dir.path()));
        let name: Name = "v".parse().unwrap();
        drop(a.used().unwrap().take(&name, true).unwrap());
        assert_eq!(b.used().unwrap().users(&name).unwrap().len(), 1);
        drop(a);
        assert!(b.used().unwrap().users(&name).unwrap().is_empty());
        b.used().unwrap().take(&name, true).unwrap();
        let c = host("node-c", dir.path());
        let nodes: Vec<_> =
            c.used().unwrap().hosts.all().unwrap().into_iter().map(|host| host.node).collect();
        assert_eq!(nodes.len(), 2, "{nodes:?}");
        assert!(!nodes.contains(&"node-a".to_owned()), "{nodes:?}");
    }
}
