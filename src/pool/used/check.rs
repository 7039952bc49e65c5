//! The used-locks at the start of a process, and the thread that compares them with the mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use super::{Held, Lock, UsedLocks, host_key, key};
use crate::error::{Context as _, Kind, Result};
use crate::mount::users::Users;
use crate::pool::dirs::open_or_create;
use crate::pool::hosts::{HostRecord, Hosts};
use crate::pool::lock_files::{LockFiles, Mode};
use crate::pool::medium::Medium;
use crate::pool::object::ObjectKind;
use crate::pool::store::Store;
use crate::pool::{OpenPool, PoolSettings, Purpose};
use crate::volume::Name;

/// Time between two comparisons of the locks with the mounts.
const INTERVAL: Duration = Duration::from_secs(60);

/// Wakes the thread that compares the locks with the mounts.
#[derive(Debug, Default)]
pub(super) struct Wakeup {
    state: Mutex<Signal>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Signal {
    due: bool,
    stop: bool,
}

impl UsedLocks {
    /// The used-locks of a pool; `None` if no other host uses it. Opens the files of the locks. A process that serves the pool adds its record, takes the locks of the volumes that its
    /// host has mounted, and removes the records of processes that are gone.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub(in crate::pool) fn open(
        settings: &PoolSettings,
        purpose: Purpose,
        store: &Store,
    ) -> Result<Option<Self>> {
        if store.medium() == Medium::Local {
            return Ok(None);
        }
        let root = store.root();
        let mut used = Self {
            pool: settings.name.clone(),
            files: LockFiles::new(open_or_create(root, "locks")?)?,
            hosts: Hosts::open(root)?,
            host: None,
            held: Mutex::default(),
            wakeup: Arc::default(),
        };
        if purpose == Purpose::Serve {
            used.start(settings.node.as_deref(), store)?;
        }
        Ok(Some(used))
    }

    fn start(&mut self, node: Option<&str>, store: &Store) -> Result<()> {
        let host = HostRecord::new(node);
        // The lock first: a record without a lock is removed.
        let _: bool = self.files.try_lock(&host_key(&host), Mode::Exclusive)?;
        if let Err(error) = self.hosts.add(&host) {
            // On a full or read-only filesystem, volumes can still be published.
            warn!(pool = %self.pool, error = error.chain(), "other hosts cannot tell the name of this one");
        }
        self.host = Some(host.clone());
        let mounted = mounted_volumes(store.directory(ObjectKind::Volumes))?;
        let former = self.forget_gone()?;
        let was_alone = |name: &Name| {
            let of_host = former.iter().filter(|(of, _)| of.is_same_host(&host));
            of_host.flat_map(|(_, alone)| alone).any(|alone| alone == name)
        };
        let modes =
            mounted.iter().map(|name| (name, if was_alone(name) { Mode::Exclusive } else { Mode::Shared }));
        modes.for_each(|(name, mode)| self.take_mounted(&mut self.held(), name, mode));
        Ok(())
    }

    /// Removes the records of processes that have ended. Returns them, each with the volumes that its host used alone.
    fn forget_gone(&self) -> Result<Vec<(HostRecord, Vec<Name>)>> {
        let mut former = Vec::new();
        for host in self.hosts.all()?.into_iter().filter(|host| self.is_gone(host)) {
            let uses = self.hosts.uses_of(&host);
            if !uses.is_empty() && self.host.as_ref().is_none_or(|own| !own.is_same_host(&host)) {
                let (pool, node, volumes) = (&self.pool, &host.node, uses.len());
                warn!(%pool, node, volumes, "the host is gone, and its uses of volumes are forgotten");
            }
            self.hosts.remove(host.uuid);
            let alone = uses.into_iter().filter(|(_, found)| found.alone).map(|(name, _)| name);
            former.push((host, alone.collect()));
        }
        Ok(former)
    }

    /// Takes the lock of a volume that is mounted, or takes it again. If another host excludes this one, the mounts stay,
    /// and health and the log say so.
    pub(super) fn take_mounted(&self, held: &mut Held, name: &Name, mode: Mode) {
        let error = match held.locks.get(name) {
            // On NFS, this asks the server: the lock may have been lost with the lease.
            Some(lock) => match self.files.try_lock(&key(name), lock.mode) {
                Ok(true) => None,
                Ok(false) => Some(self.refusal(name)),
                Err(error) => {
                    return warn!(pool = %self.pool, volume = %name, error = error.chain(), "cannot confirm a lock");
                }
            },
            None => match self.lock(held, name, mode) {
                Err(error) if error.kind() != Kind::InUse => {
                    return warn!(pool = %self.pool, volume = %name, error = error.chain(), "cannot take a lock");
                }
                taken => taken.err(),
            },
        };
        let Some(error) = error else {
            if held.lost.remove(name).is_some() {
                info!(pool = %self.pool, volume = %name, "this host uses the volume again");
            }
            return;
        };
        held.locks.remove(name);
        // Another process of this host may use it alone: then nothing is lost.
        if self.is_used_by_this_host(name) {
            return;
        }
        if held.lost.insert(name.clone(), error.to_string()).is_none() {
            warn!(pool = %self.pool, volume = %name, error = error.chain(), "the volume is mounted on this host, which has lost it to another one");
        }
    }

    fn is_used_by_this_host(&self, name: &Name) -> bool {
        let Some(own) = &self.host else { return false };
        let all = self.hosts.all().unwrap_or_default();
        all.iter().any(|host| {
            host.is_same_host(own)
                && host.uuid != own.uuid
                && self.hosts.use_of(host, name).is_some()
                && !self.is_gone(host)
        })
    }

    /// Compares the locks with the mounts.
    fn compare(&self, volumes: BorrowedFd<'_>) -> Result<()> {
        let idle: BTreeMap<Name, u64> = {
            let held = self.held();
            let idle = held.locks.iter().filter(|(_, lock)| lock.pins == 0);
            idle.map(|(name, lock)| (name.clone(), lock.calls)).collect()
        };
        let mounted = mounted_volumes(volumes)?;
        for (name, calls) in &idle {
            let mut held = self.held();
            // A call that began meanwhile may have mounted it.
            let is_idle = |lock: &Lock| lock.pins == 0 && lock.calls == *calls;
            if !mounted.contains(name) && held.locks.get(name).is_some_and(is_idle) {
                self.release(&mut held, name);
            }
        }
        for name in &mounted {
            self.take_mounted(&mut self.held(), name, Mode::Shared);
        }
        self.held().lost.retain(|name, _| mounted.contains(name));
        self.forget_gone().map(drop)
    }
}

impl OpenPool {
    /// Starts the thread that compares the used-locks with the mounts. It ends with the pool.
    ///
    /// # Errors
    /// `Internal` when it cannot be started.
    pub(in crate::pool) fn start_used_checks(self: &Arc<Self>) -> Result<()> {
        let Some(used) = &self.used else { return Ok(()) };
        let (wakeup, pool) = (Arc::clone(&used.wakeup), Arc::downgrade(self));
        let thread = thread::Builder::new().name("used-locks".to_owned());
        thread.spawn(move || run(&wakeup, &pool)).context(|| "start the thread of the used-locks").map(drop)
    }

    /// The used-locks, if other hosts use the pool.
    #[must_use]
    pub fn used(&self) -> Option<&UsedLocks> {
        self.used.as_ref()
    }
}

fn run(wakeup: &Wakeup, pool: &Weak<OpenPool>) {
    while wakeup.wait() {
        let Some(pool) = pool.upgrade() else { return };
        let Some(used) = pool.used() else { return };
        if let Err(error) = used.compare(pool.store.directory(ObjectKind::Volumes)) {
            let name = &pool.settings.name;
            warn!(pool = %name, error = error.chain(), "cannot compare the locks of used volumes with the mounts");
        }
    }
}

impl Wakeup {
    pub(super) fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    pub(super) fn check_soon(&self) {
        self.state().due = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, Signal> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a comparison is due; `false`: no more is needed.
    fn wait(&self) -> bool {
        let is_idle = |signal: &mut Signal| !signal.due && !signal.stop;
        let waited = self.changed.wait_timeout_while(self.state(), INTERVAL, is_idle);
        let (mut signal, _) = waited.unwrap_or_else(PoisonError::into_inner);
        signal.due = false;
        !signal.stop
    }
}

/// The volumes of which something is mounted on this host, in any mount namespace.
fn mounted_volumes(volumes: BorrowedFd<'_>) -> Result<BTreeSet<Name>> {
    let entries =
        Users::new("/proc".into()).entries_mounted(volumes).context(|| "find the mounted volumes")?;
    Ok(entries.iter().filter_map(|entry| std::str::from_utf8(entry).ok()?.parse().ok()).collect())
}
