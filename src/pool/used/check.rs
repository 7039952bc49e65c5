//! The used-locks at the start of a process, and the thread that compares them with the mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use super::server::NfsServer;
use super::{Held, Lock, UsedLocks, host_key, key};
use crate::error::{Context as _, Kind, Result};
use crate::fs::nfs::is_nfs;
use crate::mount::users::Users;
use crate::pool::dirs::open_or_create;
use crate::pool::hosts::{HostRecord, Hosts};
use crate::pool::keeper::KeptFiles;
use crate::pool::lock_files::{LockFiles, Mode};
use crate::pool::medium::Medium;
use crate::pool::object::ObjectKind;
use crate::pool::store::Store;
use crate::pool::{OpenPool, PoolSettings, Purpose};
use crate::volume::Name;

/// Time between two comparisons of the locks with the mounts.
const INTERVAL: Duration = Duration::from_secs(60);
/// The same, while another process of this host is about to leave its locks to this one.
const SHORT_INTERVAL: Duration = Duration::from_secs(1);

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
        kept: &KeptFiles,
    ) -> Result<Option<Self>> {
        if store.medium() == Medium::Local {
            return Ok(None);
        }
        let root = store.root();
        let mut used = Self {
            pool: settings.name.clone(),
            files: LockFiles::kept(open_or_create(root, "locks")?, kept, format!("{}/used/", settings.name))?,
            hosts: Hosts::open(root)?,
            host: None,
            boot: HostRecord::of(settings).boot,
            server: is_server(settings, root).then(NfsServer::of_this_host),
            held: Mutex::default(),
            wakeup: Arc::default(),
        };
        if purpose == Purpose::Serve {
            used.start(settings, store)?;
        }
        Ok(Some(used))
    }

    /// Releases everything, before the pool is opened again in this process: the next instance takes the locks of what is
    /// mounted. The records stay as at the end of a process.
    pub(in crate::pool) fn close(&self) {
        let mut held = self.held();
        self.wakeup.stop();
        held.is_closed = true;
        held.locks.clear();
        self.files.unlock_others(&[]);
    }

    fn start(&mut self, settings: &PoolSettings, store: &Store) -> Result<()> {
        let host = HostRecord::of(settings);
        self.host = Some(host.clone());
        self.confirm_host(&host)?;
        // Both may have been started at the same time.
        if let Some(now) = self.hosts.noted_life(host.uuid) {
            self.hosts.refuse_twin(&host, now).inspect_err(|_| self.hosts.remove(host.uuid))?;
        }
        let mounted = mounted_volumes(store.directory(ObjectKind::Volumes))?;
        // Of the locks that a predecessor has left, those of calls that ended with it are not needed.
        let wanted = mounted.iter().map(key).chain([host_key(&host)]);
        self.files.unlock_others(&wanted.collect::<Vec<_>>());
        let mut alone = self.forget_gone()?;
        for (name, found) in self.hosts.uses_of(&host) {
            if !mounted.contains(&name) {
                self.hosts.remove_use(host.uuid, &name);
            } else if found.alone {
                alone.insert(name);
            }
        }
        self.take_all_mounted(&mounted, &alone);
        Ok(())
    }

    /// Takes the lock of this process and adds its record, unless it has both. It may have lost them with its lease.
    fn confirm_host(&self, host: &HostRecord) -> Result<()> {
        // The lock first: a record without a lock is removed.
        let _: bool = self.files.try_lock(&host_key(host), Mode::Exclusive)?;
        if self.hosts.has(host) {
            self.hosts.note_life(host.uuid);
            return Ok(());
        }
        if let Err(error) = self.hosts.add(host) {
            // On a full or read-only filesystem, volumes can still be published.
            warn!(pool = %self.pool, error = error.chain(), "other hosts cannot tell the name of this one");
        }
        let held = self.held();
        held.locks.iter().for_each(|(name, lock)| self.hosts.add_use(host.uuid, name, lock.mode));
        Ok(())
    }

    /// Takes the locks of what is mounted: exclusive ones for what an ended process of this host has used alone.
    fn take_all_mounted(&self, mounted: &BTreeSet<Name>, alone: &BTreeSet<Name>) {
        for name in mounted {
            let mode = if alone.contains(name) { Mode::Exclusive } else { Mode::Shared };
            self.take_mounted(&mut self.held(), name, mode);
        }
        let mut held = self.held();
        held.waits =
            mounted.iter().any(|name| !held.locks.contains_key(name) && !held.lost.contains_key(name));
    }

    /// Removes the records of processes that have ended. Returns the volumes that those of this host used alone.
    fn forget_gone(&self) -> Result<BTreeSet<Name>> {
        let mut of_this_host = BTreeSet::new();
        for host in self.hosts.all()?.into_iter().filter(|host| self.is_gone(host)) {
            let uses = self.hosts.uses_of(&host);
            let is_same_host = self.host.as_ref().is_some_and(|own| own.is_same_host(&host));
            if !uses.is_empty() && !is_same_host {
                let (pool, node, volumes) = (&self.pool, &host.node, uses.len());
                warn!(%pool, node, volumes, "the host is gone, and its uses of volumes are forgotten");
            }
            self.hosts.remove(host.uuid);
            let alone = uses.into_iter().filter(|(_, found)| found.alone && is_same_host);
            of_this_host.extend(alone.map(|(name, _)| name));
        }
        Ok(of_this_host)
    }

    /// Takes the lock of a volume that is mounted, or takes it again. If another host excludes this one, the mounts stay,
    /// and health and the log say so.
    pub(super) fn take_mounted(&self, held: &mut Held, name: &Name, mode: Mode) {
        let error = match held.locks.get_mut(name) {
            // On NFS, this asks the server: the lock may have been lost with the lease.
            Some(lock) => match self.files.try_lock(&key(name), lock.needed()) {
                Ok(true) => {
                    lock.mode = lock.needed();
                    None
                }
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
    pub(super) fn compare(&self, volumes: BorrowedFd<'_>) -> Result<()> {
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
        if let Some(host) = &self.host {
            self.confirm_host(host)?;
        }
        // First, since another process of this host may have used a volume alone that it leaves to this one.
        let alone = self.forget_gone()?;
        self.take_all_mounted(&mounted, &alone);
        self.held().lost.retain(|name, _| mounted.contains(name));
        Ok(())
    }
}

impl OpenPool {
    /// Starts the thread that compares the used-locks with the mounts. It ends with the pool.
    ///
    /// # Errors
    /// `Internal` when it cannot be started.
    pub(in crate::pool) fn start_used_checks(self: &Arc<Self>) -> Result<()> {
        let Some(used) = &self.used else { return Ok(()) };
        // No call waits for this, since a server may be slow. Without space, each file is tried again when it is needed.
        let locks = self.store.locks().clone();
        let make_files = move || drop(locks.make_files());
        thread::Builder::new()
            .name("lock-files".to_owned())
            .spawn(make_files)
            .context(|| "start a thread")?;
        let (wakeup, pool) = (Arc::clone(&used.wakeup), Arc::downgrade(self));
        let thread = thread::Builder::new().name("used-locks".to_owned());
        thread.spawn(move || run(&wakeup, &pool)).context(|| "start the thread of the used-locks").map(drop)
    }

    /// The used-locks, if other hosts use the pool.
    #[must_use]
    pub fn used(&self) -> Option<&UsedLocks> {
        self.used.as_deref()
    }
}

fn run(wakeup: &Wakeup, pool: &Weak<OpenPool>) {
    let interval = || match pool.upgrade().as_ref().and_then(|pool| pool.used()) {
        Some(used) if used.held().waits => SHORT_INTERVAL,
        _ => INTERVAL,
    };
    while wakeup.wait(interval()) {
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
    fn wait(&self, interval: Duration) -> bool {
        let is_idle = |signal: &mut Signal| !signal.due && !signal.stop;
        let waited = self.changed.wait_timeout_while(self.state(), interval, is_idle);
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
/// Whether the other hosts of a shared pool are NFS clients of this one, and not members of a cluster filesystem.
fn is_server(settings: &PoolSettings, root: BorrowedFd<'_>) -> bool {
    !is_nfs(root) && (settings.exported || !settings.shared)
}
