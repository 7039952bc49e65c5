//! A group of pools that one worker at a time serves: starts workers, ends them, and counts those that do not end.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::process::{DEATH_WAIT, Kept, Process, lock};
use super::stall::Stall;
use super::{Setup, WORKER_COMMAND, parse};
use crate::engine::call::{EngineCall, GetActivity, GetCapacity, GetStatus};
use crate::engine::request::{Activity, PoolSettings, PoolStatus};
use crate::error::{Error, Kind, Result};
use crate::volume::{PoolName, Timestamp};

/// Maximum number of workers that are left behind. Each one is held by the kernel until its disk responds.
const MAX_LEFT_BEHIND: usize = 4;

/// How a worker is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for Launch {
    /// This program again.
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: vec![WORKER_COMMAND.into()],
            environment: Vec::new(),
        }
    }
}

/// Decides before a worker is started whether its disk may respond. It runs on a thread and must end by itself.
#[derive(Clone)]
pub struct Probe(Arc<dyn Fn() -> Result<()> + Send + Sync>);

impl Probe {
    /// Creates a probe, which fails with the reason for which no worker is to be started.
    pub fn new(probe: impl Fn() -> Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(probe))
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

/// A group of pools and its worker.
#[derive(Debug)]
pub struct Group {
    launch: Launch,
    setup: Setup,
    probe: Option<Probe>,
    kept: Kept,
    /// Those that the kernel has not ended; the last one may be in use.
    processes: Mutex<Vec<Arc<Process>>>,
    /// Locked while a worker is started.
    starting: tokio::sync::Mutex<()>,
    stall: Stall,
    activity: Mutex<Activity>,
}

impl Group {
    /// Creates a group, whose worker is started by the first call.
    #[must_use]
    pub fn new(launch: Launch, setup: Setup, probe: Option<Probe>) -> Self {
        Self {
            launch,
            setup,
            probe,
            kept: Kept::default(),
            processes: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            stall: Stall::default(),
            activity: Mutex::default(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.setup.group
    }

    /// Its pools.
    #[must_use]
    pub fn pools(&self) -> &[PoolSettings] {
        &self.setup.pools
    }

    /// The time since which its calls have not been completed, if a worker was killed for that.
    #[must_use]
    pub fn stalled_since(&self) -> Option<Timestamp> {
        self.stall.since()
    }

    /// Runs a call in the worker, which is started if there is none. A worker that has completed no call between the start
    /// of this one and its deadline is killed.
    ///
    /// # Errors
    /// Those of the call; `Unresponsive` when the worker ends before it answers, and while the group does not respond;
    /// `Unavailable` when no worker can be started.
    pub async fn call<C: EngineCall>(&self, call: C, deadline: Instant) -> Result<C::Answer> {
        let _trial = self.stall.enter(self.setup.subject())?;
        let process = self.process().await?;
        let answer = process.call(call.into(), deadline, true).await;
        match &answer {
            Err(_) if process.was_killed() => self.stall.begin(),
            Err(_) if process.ended_at().is_some() => {}
            Err(error) if error.kind() == Kind::Busy => {}
            _ => self.stall.end(),
        }
        parse(&answer?)
    }

    /// Asks the worker what it has in memory, if one is running. `None` if it does not answer in time.
    pub async fn ask_running<C: EngineCall>(&self, call: C, timeout: Duration) -> Option<Result<C::Answer>> {
        let process = lock(&self.processes).last().filter(|process| process.ended_at().is_none()).cloned()?;
        let asked = process.call(call.into(), Instant::now() + timeout, false);
        let answer = tokio::time::timeout(timeout, asked).await.ok()?;
        Some(answer.and_then(|answer| parse(&answer)))
    }

    /// Tells the worker to do something, if one is running. Does not wait for it.
    pub fn tell_running<C: EngineCall>(self: &Arc<Self>, call: C) {
        let running = lock(&self.processes).last().filter(|process| process.ended_at().is_none()).cloned();
        let Some(process) = running else { return };
        tokio::spawn(async move { process.call(call.into(), far(), false).await.map(drop) });
    }

    /// Whether the disk does not respond, as far as is known without it: its calls are stalled, and the probe fails, too. The
    /// probe alone proves nothing: it also fails when the name of a server cannot be looked up, while its mounts work.
    pub async fn is_dead(&self) -> bool {
        if self.stalled_since().is_none() {
            return false;
        }
        let Some(probe) = self.probe.clone() else { return true };
        let probed = tokio::task::spawn_blocking(move || (probe.0)()).await;
        probed.is_ok_and(|probed| probed.is_err())
    }

    /// Names the server in an error that says that the pools do not respond.
    #[must_use]
    pub fn explain(&self, error: Error) -> Error {
        let (subject, _) = self.setup.subject();
        if error.kind() != Kind::Unresponsive || error.chain().contains(&subject) {
            return error;
        }
        Error::caused(Kind::Unresponsive, subject, error)
    }

    /// Reads the status of a pool. While the group is stalled, one call that needs the disk is tried first: a status may be
    /// in memory, and says nothing about calls that hang.
    ///
    /// # Errors
    /// As for [`Group::call`].
    pub async fn status(&self, pool: &PoolName) -> Result<PoolStatus> {
        if self.stalled_since().is_some() {
            let deadline = Instant::now() + self.setup.tuning.call_timeout;
            match self.call(GetCapacity { pool: Some(pool.clone()) }, deadline).await {
                Err(error) if self.stalled_since().is_some() => return Err(error),
                _ => {}
            }
        }
        let process = self.process().await?;
        let activity = process.call(GetActivity {}.into(), far(), false).await?;
        *lock(&self.activity) = parse(&activity)?;
        let status = process.call(GetStatus { pool: pool.clone() }.into(), far(), false).await?;
        let status: Option<PoolStatus> = parse(&status)?;
        status.ok_or_else(|| Error::new(Kind::Internal, "the worker does not know the pool"))
    }

    /// What the worker did, as it said last.
    #[must_use]
    pub fn activity(&self) -> Activity {
        lock(&self.activity).clone()
    }

    /// Number of workers that were killed and that the kernel does not end.
    #[must_use]
    pub fn left_behind(&self) -> usize {
        let is_left = |process: &&Arc<Process>| {
            !process.is_reaped() && process.ended_at().is_some_and(|ended| ended.elapsed() >= DEATH_WAIT)
        };
        lock(&self.processes).iter().filter(is_left).count()
    }

    /// Lets the worker stop its copies, and kills it if it does not end in time.
    pub async fn shutdown(&self, timeout: Duration) {
        let _starting = self.starting.lock().await;
        let Some(process) = lock(&self.processes).last().cloned() else { return };
        process.stop();
        if !process.wait_until_reaped(Instant::now() + timeout).await {
            process.kill();
        }
    }

    async fn process(&self) -> Result<Arc<Process>> {
        let _starting = self.starting.lock().await;
        let last = lock(&self.processes).last().cloned();
        if let Some(process) = last {
            match process.ended_at() {
                None => return Ok(process),
                // It may hold locks until it ends.
                Some(ended) => drop(process.wait_until_reaped(ended + DEATH_WAIT).await),
            }
        }
        self.refuse_if_many_are_left()?;
        let (launch, setup, kept) = (self.launch.clone(), self.setup.clone(), Arc::clone(&self.kept));
        let probe = self.probe.clone();
        let start = move || {
            probe.map_or(Ok(()), |probe| (probe.0)())?;
            Process::start(&launch, &setup, &kept)
        };
        let started = tokio::task::spawn_blocking(start).await;
        let process =
            started.map_err(|error| Error::caused(Kind::Unavailable, "orlop is stopping", error))??;
        lock(&self.processes).push(Arc::clone(&process));
        Ok(process)
    }

    fn refuse_if_many_are_left(&self) -> Result<()> {
        let mut processes = lock(&self.processes);
        processes.retain(|process| !process.is_reaped());
        let count = processes.len();
        drop(processes);
        if count < MAX_LEFT_BEHIND {
            return Ok(());
        }
        let (subject, remedy) = self.setup.subject();
        let text = format!(
            "{subject} does not respond: {count} worker processes wait for it and cannot be ended; {remedy}, or restart the \
             host"
        );
        Err(Error::new(Kind::Unavailable, text))
    }
}

/// The deadline of a call that may take any time.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(1 << 30)
}
