//! The calls of one command to the engine. Each call has a deadline, so a disk that does not respond is an error.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::progress::{ProgressLine, Total};
use crate::engine::Engine;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::volume::{Name, PoolName, Source, VolumeId};

/// How long an interrupted copy may take to stop, and its remains to be removed.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// How long a transfer is waited for before the command looks whether it was interrupted, and between two looks at its pool.
const POLL: Duration = Duration::from_millis(100);
const PROBE: Duration = Duration::from_secs(2);

/// The engine of a command.
#[derive(Debug)]
pub struct Session {
    engine: Arc<Engine>,
    limit: Duration,
    interrupted: Arc<AtomicBool>,
    total: Total,
}

impl Session {
    /// Creates the session of a command, which cancels its copy when `interrupted` is set.
    #[must_use]
    pub fn new(engine: Engine, interrupted: Arc<AtomicBool>) -> Self {
        let limit = engine.tuning().call_timeout;
        Self { engine: Arc::new(engine), limit, interrupted, total: Total::Unknown }
    }

    /// Sets how much the next copy or transfer has to do. It is shown with its progress.
    pub fn set_total(&mut self, total: Total) {
        self.total = total;
    }

    /// Sets the total to the data of a snapshot, if that was counted. Any error is that of the copy.
    pub fn set_total_of(&mut self, source: &Source) {
        let Source::Snapshot(id) = source else { return };
        let asked = id.clone();
        let found = self.call(&format!("find {source}"), move |engine| engine.get_snapshot(&asked));
        let bytes = found.ok().and_then(|snapshot| snapshot.bytes).filter(|bytes| *bytes > 0);
        self.total = bytes.map_or(Total::Unknown, Total::Data);
    }

    /// Calls the engine. `what` names the operation and its object.
    ///
    /// # Errors
    /// `Unresponsive` when the call does not return within the call timeout; otherwise those of the call.
    pub fn call<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.begin(self.limit, work)?.result(what)
    }

    /// Starts a call, whose deadline begins now.
    fn begin<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<Call<T>> {
        let (sender, result) = mpsc::channel();
        let engine = Arc::clone(&self.engine);
        let run = move || drop(sender.send(work(&engine)));
        thread::Builder::new().name("call".to_owned()).spawn(run).context(|| "start a thread")?;
        Ok(Call { result, deadline: Instant::now() + limit, limit })
    }

    /// Repeats a call that starts or joins a copy until the copy has ended. Cancels it when the command is interrupted.
    ///
    /// # Errors
    /// `Busy` when the command was interrupted; otherwise same as [`Session::call`].
    pub fn copy<T: Send + 'static>(
        &self,
        what: &str,
        work: impl Fn(&Engine) -> Result<Option<T>> + Clone + Send + 'static,
    ) -> Result<T> {
        let mut line = ProgressLine::new(&self.total);
        loop {
            line.update(self.engine.copied_so_far());
            let is_running = self.engine.active_jobs() > 0;
            let result = self.call(what, work.clone());
            match result {
                Ok(Some(made)) => return Ok(made),
                Ok(None) => {}
                // The copy still runs, or has ended since: then the next call returns its result.
                Err(error) if error.kind() == Kind::Busy && is_running => {}
                Err(error) if error.kind() == Kind::Busy && self.engine.active_jobs() > 0 => {}
                Err(error) => return Err(self.cleaned_up(error)),
            }
            if self.interrupted.load(Ordering::Relaxed) {
                self.engine.shutdown();
                let text = format!("{what}: interrupted; nothing was created");
                return Err(self.cleaned_up(Error::new(Kind::Busy, text)));
            }
        }
    }

    /// Runs a call that may take long, in a thread. Cancels it when the command is interrupted, and gives it up when its pool
    /// does not respond.
    ///
    /// # Errors
    /// `Busy` when the command was interrupted; `Unresponsive`; otherwise those of the call.
    pub fn transfer<T: Send + 'static>(
        &self,
        what: &str,
        pool: &PoolName,
        progress: &Arc<Progress>,
        work: impl FnOnce(&Engine, &Progress) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(progress);
        let call = self.begin(self.limit, move |engine| work(engine, &shared))?;
        let (mut probed, mut end) = (Instant::now(), None);
        let mut line = ProgressLine::new(&self.total);
        loop {
            line.update((progress.entries(), progress.bytes()));
            match call.result.recv_timeout(POLL) {
                Ok(Ok(made)) => return Ok(made),
                Ok(Err(_)) if end.is_some() => break,
                Ok(Err(error)) => return Err(self.cleaned_up(error)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(panicked(what)),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if end.is_none() && self.interrupted.load(Ordering::Relaxed) {
                progress.cancel();
                end = Some(Instant::now() + CLEAN_UP);
            }
            if end.is_some_and(|end| Instant::now() > end) {
                break;
            }
            if probed.elapsed() > PROBE {
                let pool = pool.clone();
                self.call(what, move |engine| Ok(engine.status_of(&pool)))?;
                probed = Instant::now();
            }
        }
        Err(self.cleaned_up(Error::new(
            Kind::Busy,
            format!("{what}: interrupted; nothing was created or changed"),
        )))
    }

    /// Removes the copy that a backup was made from, or that a call has left behind, and nothing else.
    ///
    /// # Errors
    /// `Busy` when that takes too long.
    pub fn remove_copy(&self) -> Result<()> {
        let limit = CLEAN_UP + self.limit;
        self.begin(limit, |engine| engine.remove_remains(CLEAN_UP))?.result("remove the remains")
    }

    /// Removes what a failed copy has left behind, and nothing else.
    fn cleaned_up(&self, error: Error) -> Error {
        if error.kind() == Kind::Unresponsive {
            return error;
        }
        match self.remove_copy() {
            Ok(()) => error,
            Err(rest) => Error::caused(error.kind(), format!("{}; {}", error.chain(), rest.chain()), error),
        }
    }

    /// Calls the engine for each pool, in the order of their names. Pools are read side by side; one that does not respond
    /// affects no other. `what` names the operation.
    #[must_use]
    pub fn each_pool<T: Send + 'static>(
        &self,
        what: &str,
        work: impl Fn(&Engine, &PoolName) -> Result<Vec<T>> + Clone + Send + 'static,
    ) -> FromPools<T> {
        self.each_of(self.engine.pool_settings().map(|pool| pool.name.clone()).collect(), what, work)
    }

    /// Like [`Session::each_pool`], for the pools that a user names; all pools, if none is named.
    ///
    /// # Errors
    /// `Invalid` when one of them is in no settings.
    pub fn each_named_pool<T: Send + 'static>(
        &self,
        named: &[PoolName],
        what: &str,
        work: impl Fn(&Engine, &PoolName) -> Result<Vec<T>> + Clone + Send + 'static,
    ) -> Result<FromPools<T>> {
        if named.is_empty() {
            return Ok(self.each_pool(what, work));
        }
        named.iter().try_for_each(|pool| self.engine.check_pool(pool))?;
        Ok(self.each_of(named.iter().cloned().collect(), what, work))
    }

    fn each_of<T: Send + 'static>(
        &self,
        pools: BTreeSet<PoolName>,
        what: &str,
        work: impl Fn(&Engine, &PoolName) -> Result<Vec<T>> + Clone + Send + 'static,
    ) -> FromPools<T> {
        let calls: Vec<_> = pools
            .into_iter()
            .map(|pool| {
                let (work, name) = (work.clone(), pool.clone());
                (pool, self.begin(self.limit, move |engine| work(engine, &name)))
            })
            .collect();
        let mut found = FromPools { items: Vec::new(), unavailable: Vec::new() };
        for (pool, call) in calls {
            match call.and_then(|call| call.result(&format!("{what} of pool {pool}"))) {
                Ok(items) => found.items.extend(items),
                Err(error) => found.unavailable.push(error),
            }
        }
        found
    }

    /// The id of the volume that a user means: `<pool>/<name>`, or the name of a volume that exists in one pool only.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if several pools have one, or the pool is in no settings; otherwise same as [`Session::call`].
    pub fn volume(&self, text: &str) -> Result<VolumeId> {
        self.id_of(text, "volume", |engine, name| engine.find(name))
    }

    /// The id of the snapshot that a user means, as for volumes.
    ///
    /// # Errors
    /// Same as [`Session::volume`].
    pub fn snapshot(&self, text: &str) -> Result<VolumeId> {
        self.id_of(text, "snapshot", |engine, name| engine.find_snapshot(name))
    }

    /// The pool of a new volume: this one, or else the default one.
    ///
    /// # Errors
    /// `Unavailable` when there are no pools; `Invalid` when it is in no settings.
    pub fn pool(&self, pool: Option<PoolName>) -> Result<PoolName> {
        let pool = pool.map_or_else(|| self.engine.default_pool_name(), Ok)?;
        self.engine.check_pool(&pool).map(|()| pool)
    }

    /// Refuses a new volume whose name a volume in another pool has: the engine checks only pools that it has loaded. A pool
    /// that is unavailable is not checked, as in a server.
    ///
    /// # Errors
    /// `Conflict`.
    pub fn refuse_volume_name_of_other_pool(&self, id: &VolumeId) -> Result<()> {
        self.refuse_name_of_other_pool("volume", id, |engine, other| engine.get(other).map(drop))
    }

    /// Like [`Session::refuse_volume_name_of_other_pool`], for a new snapshot.
    ///
    /// # Errors
    /// `Conflict`.
    pub fn refuse_snapshot_name_of_other_pool(&self, id: &VolumeId) -> Result<()> {
        self.refuse_name_of_other_pool("snapshot", id, |engine, other| engine.get_snapshot(other).map(drop))
    }

    fn refuse_name_of_other_pool(
        &self,
        object: &str,
        id: &VolumeId,
        get: fn(&Engine, &VolumeId) -> Result<()>,
    ) -> Result<()> {
        let others = self.engine.pool_settings().filter(|pool| pool.name != id.pool);
        for pool in others.map(|pool| pool.name.clone()) {
            let other = VolumeId { pool, name: id.name.clone() };
            let asked = other.clone();
            if self.call(&format!("find {object} {other}"), move |engine| get(engine, &asked)).is_ok() {
                let text =
                    format!("{object} {} already exists in pool {}: use another name", id.name, other.pool);
                return Err(Error::new(Kind::Conflict, text));
            }
        }
        Ok(())
    }

    fn id_of(
        &self,
        text: &str,
        object: &str,
        find: impl FnOnce(&Engine, &Name) -> Result<VolumeId> + Send + 'static,
    ) -> Result<VolumeId> {
        if let Some((pool, _)) = text.split_once('/') {
            // Whether the object exists in a pool without settings is not known.
            pool.parse().ok().map_or(Ok(()), |pool| self.engine.check_pool(&pool))?;
            return text.parse();
        }
        let name = text.parse::<Name>()?;
        let what = format!("find {object} {name} (or name its pool, as <pool>/{name})");
        self.call(&what, move |engine| find(engine, &name))
    }

    /// Calls `act` for each volume that a user named, and returns the errors. A failure does not affect the other volumes.
    pub fn for_each(&self, volumes: &[String], mut act: impl FnMut(VolumeId) -> Result<()>) -> Vec<Error> {
        volumes.iter().filter_map(|text| self.volume(text).and_then(&mut act).err()).collect()
    }
}

fn panicked(what: &str) -> Error {
    Error::new(Kind::Internal, format!("{what}: the call panicked"))
}

/// What the pools have, as far as they are available.
#[derive(Debug)]
pub struct FromPools<T> {
    /// The objects of the available pools, ordered by pool.
    pub items: Vec<T>,
    /// For each unavailable pool, why it is.
    pub unavailable: Vec<Error>,
}

/// A call that runs in a thread of its own.
#[derive(Debug)]
struct Call<T> {
    result: mpsc::Receiver<Result<T>>,
    deadline: Instant,
    limit: Duration,
}

impl<T> Call<T> {
    fn result(self, what: &str) -> Result<T> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.result.recv_timeout(left).unwrap_or_else(|error| match error {
            mpsc::RecvTimeoutError::Timeout => {
                let text = format!(
                    "{what}: no answer within {} s: the disk of the pool does not respond; check it and retry",
                    self.limit.as_secs()
                );
                Err(Error::new(Kind::Unresponsive, text))
            }
            mpsc::RecvTimeoutError::Disconnected => Err(panicked(what)),
        })
    }
}
