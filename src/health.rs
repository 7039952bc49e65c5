//! The status of the pools for callers that poll and must not hang: probes, metrics, health.

mod problems;
mod servers;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use self::problems::Problems;
use self::servers::WatchedServers;
use crate::dispatch::Dispatch;
use crate::engine::request::{Activity, PoolSettings, PoolStatus};
use crate::volume::Timestamp;

pub use self::servers::ServerStatus;

/// How long reading the status of a pool may take before the pool counts as one that does not respond.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Age of a reading at which another one is begun, since the path may lead to a disk that works meanwhile.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// How often the status is read even if no caller requests it, so that changes are logged.
const WATCH_EVERY: Duration = Duration::from_secs(60);
/// Maximum number of readings of one pool at once, each on a thread. Each one waits as long as all before it, so they last
/// for half a year.
const MAX_READINGS: usize = 20;

/// The status of the pools. Each one is read by threads of its own, and by one at a time unless its disk hangs, which
/// blocks few threads and delays the status of no other pool.
#[derive(Debug)]
pub struct Health {
    dispatch: Dispatch,
    pools: Vec<Arc<Watched>>,
    servers: WatchedServers,
}

/// A pool whose status is read.
#[derive(Debug)]
struct Watched {
    settings: PoolSettings,
    state: Mutex<State>,
    /// Notified at the end of each reading.
    read: Notify,
}

#[derive(Debug)]
struct State {
    /// The last status that was read.
    last: PoolStatus,
    /// The readings in progress, in the order of their start. All but the last one hang.
    readings: Vec<Reading>,
    /// Number of readings that were begun.
    begun: u64,
    /// Whether the pool was available when this was last asked; `None` before that.
    was_available: Option<bool>,
    /// The time since which the pool has been unavailable.
    since: Option<Timestamp>,
    /// The problems that it had when it was last available.
    problems: Problems,
}

/// A reading of the status that is in progress.
#[derive(Debug, Clone, Copy)]
struct Reading {
    number: u64,
    started: Instant,
    at: Timestamp,
}

impl Health {
    /// Creates the status of an engine's pools. Until the first reading, they are unavailable.
    #[must_use]
    pub fn new(dispatch: Dispatch) -> Self {
        let pools = dispatch.pool_settings().map(|settings| Arc::new(Watched::new(settings)));
        let servers = WatchedServers::new(dispatch.pool_settings().filter_map(|pool| pool.share.as_ref()));
        Self { pools: pools.collect(), servers, dispatch }
    }

    /// The most threads that reading the status of this many pools can occupy.
    #[must_use]
    pub fn max_threads(pools: usize) -> usize {
        pools.saturating_mul(MAX_READINGS)
    }

    /// Reads the status of all pools. A pool that does not respond in time is unavailable.
    pub async fn pools(&self) -> Vec<PoolStatus> {
        self.begin();
        for pool in &self.pools {
            pool.wait().await;
        }
        self.latest()
    }

    /// Begins to read the status of all pools and logs what has changed until now. Does not wait.
    pub fn poll(&self) {
        self.begin();
        drop(self.latest());
    }

    /// Reads the status regularly, so that changes are logged even if no caller requests it.
    pub async fn watch(&self) -> Infallible {
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            self.pools().await;
        }
    }

    fn begin(&self) {
        for (pool, number) in self.pools.iter().filter_map(|pool| Some((pool, pool.begin()?))) {
            let (pool, dispatch) = (Arc::clone(pool), self.dispatch.clone());
            tokio::spawn(async move {
                let Some(status) = read(&dispatch, &pool.settings).await else { return };
                if status.unavailable.is_none() {
                    dispatch.note_response(&pool.settings.name);
                }
                pool.end(number, status);
            });
        }
    }

    /// Returns the latest status without reading it again.
    #[must_use]
    pub fn latest(&self) -> Vec<PoolStatus> {
        self.pools.iter().map(|pool| pool.status(self.dispatch.stalled_since(&pool.settings.name))).collect()
    }

    /// What this process and its workers do and did.
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.dispatch.activity()
    }

    /// For each group of pools that worker processes serve: its name, and the number of workers that were killed and do
    /// not end.
    #[must_use]
    pub fn workers_left_behind(&self) -> Vec<(String, usize)> {
        let groups = self.dispatch.groups().iter();
        groups.map(|group| (group.name().to_owned(), group.left_behind())).collect()
    }
}

/// Reads the status of a pool, in its worker or on a thread. `None` if orlop is stopping.
async fn read(dispatch: &Dispatch, settings: &PoolSettings) -> Option<PoolStatus> {
    if let Some(status) = dispatch.status_of_worker(settings).await {
        return Some(status);
    }
    let (engine, settings) = (Arc::clone(dispatch.engine()), settings.clone());
    tokio::task::spawn_blocking(move || engine.status(&settings)).await.ok()
}

impl Watched {
    fn new(settings: &PoolSettings) -> Self {
        let cause = "its status has not been read yet".to_owned();
        let last = PoolStatus { unavailable: Some(cause), ..PoolStatus::new(settings) };
        let state = State {
            last,
            readings: Vec::new(),
            begun: 0,
            was_available: None,
            since: None,
            problems: Problems::default(),
        };
        Self { settings: settings.clone(), state: Mutex::new(state), read: Notify::new() }
    }

    /// Begins a reading and returns its number; `None` if one is in progress and may still end, or too many hang.
    fn begin(&self) -> Option<u64> {
        let mut state = self.lock();
        if !state.may_begin(Instant::now()) {
            return None;
        }
        state.begun += 1;
        let reading = Reading { number: state.begun, started: Instant::now(), at: Timestamp::now() };
        state.readings.push(reading);
        Some(reading.number)
    }

    /// Ends a reading. Those that began before it are forgotten: what they read would be outdated.
    fn end(&self, number: u64, status: PoolStatus) {
        let mut state = self.lock();
        if state.readings.iter().any(|reading| reading.number == number) {
            state.readings.retain(|reading| reading.number > number);
            state.last = status;
        }
        drop(state);
        self.read.notify_waiters();
    }

    /// Waits for the end of the reading, until it has taken too long.
    async fn wait(&self) {
        let read = self.read.notified();
        let reading = self.lock().readings.first().copied();
        if let Some(reading) = reading {
            let _ = timeout_at(reading.started + TIMEOUT, read).await;
        }
    }

    /// The status, with the reason and the time if the pool is unavailable. Logs each change.
    fn status(&self, stalled_since: Option<Timestamp>) -> PoolStatus {
        let mut state = self.lock();
        let overdue = state.readings.first().filter(|reading| reading.started.elapsed() >= TIMEOUT);
        let hangs_since = overdue.map(|reading| reading.at).into_iter().chain(stalled_since).min();
        let mut status = match hangs_since {
            None => state.last.clone(),
            Some(since) => {
                let cause = format!("has not responded since {since:.0}: {}", self.settings.to_check());
                let trash_failure = state.last.trash_failure.clone();
                PoolStatus { unavailable: Some(cause), trash_failure, ..PoolStatus::new(&self.settings) }
            }
        };
        let since = state.since.take().or(hangs_since);
        if let Some(cause) = &mut status.unavailable {
            let since = since.unwrap_or_else(Timestamp::now);
            (state.since, status.since) = (Some(since), Some(since));
            if hangs_since.is_none() {
                let _ = write!(cause, " (since {since:.0})");
            }
        }
        let is_available = status.unavailable.is_none();
        if state.was_available.replace(is_available) != Some(is_available) {
            log_change(&status, since);
        }
        if is_available {
            state.problems.log_changes(&status);
        }
        status
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn may_begin(&self, now: Instant) -> bool {
        let (Some(first), Some(last)) = (self.readings.first(), self.readings.last()) else { return true };
        let pause = RETRY_AFTER.max(last.started - first.started);
        self.readings.len() < MAX_READINGS && now.duration_since(last.started) >= pause
    }
}

fn log_change(status: &PoolStatus, unavailable_since: Option<Timestamp>) {
    let (pool, path) = (status.name.as_str(), status.path.display());
    match &status.unavailable {
        Some(cause) => warn!(pool, %path, cause, "pool is unavailable"),
        None => {
            let since = unavailable_since.map(tracing::field::display);
            let (backend, volumes) = (status.backend.as_deref(), status.volumes);
            info!(pool, %path, backend, volumes, unavailable_since = since, "pool is available");
        }
    }
}

/// Reports whether this process is ready: at least one pool is available, or no pools are configured.
#[must_use]
pub fn is_ready(pools: &[PoolStatus]) -> bool {
    pools.is_empty() || pools.iter().any(|pool| pool.unavailable.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> Watched {
        Watched::new(&PoolSettings::new("p".parse().unwrap(), "/p".into()))
    }

    fn available(pool: &Watched) {
        let number = pool.begin().unwrap();
        pool.end(number, PoolStatus::new(&pool.settings));
    }

    /// Makes the last reading older.
    fn age(pool: &Watched, by: Duration) {
        let mut state = pool.lock();
        let last = state.readings.last_mut().unwrap();
        last.started = last.started.checked_sub(by).unwrap();
    }

    #[test]
    fn a_status_that_is_never_read_is_read_again_after_a_minute() {
        let pool = watched();
        let hung = pool.begin().unwrap();
        age(&pool, RETRY_AFTER - TIMEOUT);
        assert_eq!(pool.begin(), None);
        age(&pool, TIMEOUT);
        let second = pool.begin().unwrap();
        assert!(pool.status(None).unavailable.unwrap().contains("has not responded"), "until it has ended");
        pool.end(second, PoolStatus::new(&pool.settings));
        assert_eq!(pool.status(None).unavailable, None);
        pool.end(hung, PoolStatus { unavailable: Some("old".to_owned()), ..PoolStatus::new(&pool.settings) });
        assert_eq!(pool.status(None).unavailable, None, "what it read is outdated");
        assert!(pool.begin().is_some());
    }

    #[test]
    fn a_pool_is_unavailable_since_the_first_time_that_this_was_seen() {
        let pool = watched();
        available(&pool);
        assert_eq!((pool.status(None).unavailable, pool.status(None).since), (None, None));
        let missing = Some("missing".to_owned());
        let number = pool.begin().unwrap();
        pool.end(number, PoolStatus { unavailable: missing, ..PoolStatus::new(&pool.settings) });
        let first = pool.status(None);
        assert_eq!(first.unavailable.unwrap(), format!("missing (since {:.0})", first.since.unwrap()));
        assert_eq!(pool.status(None).since, first.since);
        available(&pool);
        assert_eq!((pool.status(None).unavailable, pool.status(None).since), (None, None));
    }

    #[test]
    fn a_pool_on_nfs_that_hangs_names_the_server_to_check() {
        let share = crate::remote::NfsShare::new("nas", "/pool", "", None).unwrap();
        let settings =
            PoolSettings { share: Some(share), ..PoolSettings::new("p".parse().unwrap(), "/p".into()) };
        let status = Watched::new(&settings).status(Some(Timestamp::now()));
        let cause = status.unavailable.unwrap();
        assert!(cause.ends_with(": check the server and the network"), "{cause}");
    }

    #[test]
    fn a_pool_whose_calls_or_status_hang_does_not_respond() {
        let pool = watched();
        available(&pool);
        let stalled = Timestamp::from_second(1_000_000_000).unwrap();
        let status = pool.status(Some(stalled));
        assert_eq!(status.since, Some(stalled));
        assert_eq!(
            status.unavailable.unwrap(),
            "has not responded since 2001-09-09T01:46:40Z: check its disk"
        );
        assert!(pool.begin().is_some() && pool.begin().is_none(), "one reading at a time");
        assert_eq!(pool.status(None).unavailable, None, "the reading may still end in time");
        let began = Timestamp::from_second(1_000_000_060).unwrap();
        age(&pool, TIMEOUT);
        pool.lock().readings[0].at = began;
        assert_eq!(pool.status(None).since, Some(began));
        assert_eq!(pool.status(Some(stalled)).since, Some(began), "the first cause that was seen counts");
    }
}
