//! Searches the volumes of one pool for files that have left their project: once a day, one volume after another, at the
//! lowest priority, and for a quarter of the time at most.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::warn;
use uuid::Uuid;

use super::object::ObjectKind;
use super::store::FoundVolume;
use super::{OpenPool, Pool};
use crate::backend::BackendKind;
use crate::error::{Context as _, Result};
use crate::fs::audit::{Audit, Strays};
use crate::volume::{Name, Timestamp, VolumeId};

/// How long a volume is read until the thread pauses.
const SLICE: Duration = Duration::from_millis(250);
/// The pause after each slice, as a multiple of the time that it took.
const PAUSES: u32 = 3;
/// The clock may be set: it is read again after this time.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The audits of a configured pool. Dropping it stops its thread.
#[derive(Debug, Default)]
pub(super) struct Auditor {
    every: Duration,
    shared: Arc<Shared>,
}

/// The result of the last audit of a pool.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LastAudit {
    /// When it ended.
    pub ended: Timestamp,
    /// Number of files outside of the projects of their volumes.
    pub strays: u64,
    /// Number of volumes in which not all files could be looked at.
    pub incomplete: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The pool, while it is open.
    pool: Weak<OpenPool>,
    started: bool,
    stopped: bool,
    last: Option<LastAudit>,
}

/// When the audits begin: a pool has its own time of the day, so that those of one host do not begin together.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    every: Duration,
    offset: Duration,
}

impl Pool {
    /// The same pool, whose volumes are audited again and again while it is served.
    #[must_use]
    pub fn with_audits(self, every: Duration) -> Self {
        Self { auditor: Auditor::new(every), ..self }
    }

    /// What the last audit of its volumes has found.
    #[must_use]
    pub fn last_audit(&self) -> Option<LastAudit> {
        self.auditor.last()
    }
}

impl OpenPool {
    /// Starts to look for files of a volume that its limits do not count; with `mend`, they are put back. `None` if there can
    /// be none.
    ///
    /// # Errors
    /// `Unreadable` when its record is; otherwise the error of the failed system call.
    pub fn audit(&self, name: &Name, mend: bool) -> Result<Option<Audit>> {
        let Some(FoundVolume::Managed(volume)) = self.store.find_volume(name)? else { return Ok(None) };
        let object = self.store.object(ObjectKind::Volumes, name)?;
        self.backend.audit(object.as_fd(), &volume.backend, mend)
    }
}

impl Auditor {
    /// Audits begin again after this time; zero: never.
    pub(super) fn new(every: Duration) -> Self {
        Self { every, shared: Arc::default() }
    }

    /// The result of the last audit; `None` if none has ended.
    pub(super) fn last(&self) -> Option<LastAudit> {
        self.shared.lock().last
    }

    /// Audits a pool that has just been opened, if its volumes have projects.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be spawned.
    pub(super) fn attach(&self, pool: &Arc<OpenPool>) -> Result<()> {
        let mut state = self.shared.lock();
        state.pool = Arc::downgrade(pool);
        if state.started || self.every.is_zero() || pool.backend.kind() != BackendKind::Quota {
            return Ok(());
        }
        let schedule = Schedule::new(self.every, &pool.marker.uuid);
        let shared = Arc::clone(&self.shared);
        let run = move || shared.run(schedule);
        thread::Builder::new().name("audit".to_owned()).spawn(run).context(|| "start the audits")?;
        state.started = true;
        Ok(())
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Schedule {
    /// Audits begin in the first quarter of each period: at night, by UTC, if the period is a day.
    fn new(every: Duration, uuid: &str) -> Self {
        let number = Uuid::parse_str(uuid).map_or(0, |uuid| uuid.as_u128());
        let quarter = (every.as_millis() / 4).max(1);
        let offset = u64::try_from(number % quarter).unwrap_or(0);
        Self { every, offset: Duration::from_millis(offset) }
    }

    /// The time until the next audit begins. `now` is the time since 1970.
    fn until_next(self, now: Duration) -> Duration {
        let period = self.every.as_millis().max(1);
        let since = (now.as_millis() + period - self.offset.as_millis()) % period;
        Duration::from_millis(u64::try_from(period - since).unwrap_or(u64::MAX))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, schedule: Schedule) {
        // Linux keeps a nice value for each thread. Without the right to change it, the priority stays as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        loop {
            let now = Timestamp::now().as_millisecond();
            let wait = schedule.until_next(Duration::from_millis(u64::try_from(now).unwrap_or(0)));
            if !self.wait(wait.min(LONGEST_WAIT)) {
                return;
            }
            if wait <= LONGEST_WAIT {
                self.audit_pool();
            }
        }
    }

    /// Waits; false if the thread is to stop.
    fn wait(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), time, |state| !state.stopped);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stopped
    }

    /// Audits the volumes of the pool. A volume that cannot be audited affects no other.
    fn audit_pool(&self) {
        let Some((pool, names)) = self.pool().and_then(|pool| {
            let names = pool.store.names(ObjectKind::Volumes).ok()?;
            Some((pool.settings.name.clone(), names))
        }) else {
            return;
        };
        let (mut strays, mut incomplete) = (0_u64, 0);
        for name in names {
            let id = VolumeId { pool: pool.clone(), name };
            match self.audit(&id) {
                Ok(Some(found)) => {
                    log(&id, &found);
                    strays = strays.saturating_add(found.count);
                    incomplete += u64::from(found.failed != 0);
                }
                Ok(None) => {}
                Err(_) if self.is_gone(&id) => {}
                Err(error) => {
                    log_incomplete(&id, &error.chain());
                    incomplete += 1;
                }
            }
        }
        if let Some(state) = Some(self.lock()).filter(|state| !state.stopped).as_mut() {
            state.last = Some(LastAudit { ended: Timestamp::now(), strays, incomplete });
        }
    }

    /// Whether a volume was deleted since the audit began.
    fn is_gone(&self, id: &VolumeId) -> bool {
        self.pool().is_some_and(|pool| matches!(pool.store.find_volume(&id.name), Ok(None)))
    }

    /// The pool, if it is open. It is kept for a moment only, since it may be closed meanwhile.
    fn pool(&self) -> Option<Arc<OpenPool>> {
        self.lock().pool.upgrade()
    }

    /// Audits a volume in slices; `None` if it has no project, or the audits are to stop.
    fn audit(&self, id: &VolumeId) -> Result<Option<Strays>> {
        let started = self.pool().map(|pool| pool.audit(&id.name, false)).transpose()?;
        let Some(mut audit) = started.flatten() else { return Ok(None) };
        loop {
            let began = Instant::now();
            let found = audit.run(SLICE)?;
            let goes_on = self.wait(began.elapsed().saturating_mul(PAUSES));
            if found.is_some() || !goes_on {
                return Ok(found);
            }
        }
    }
}

fn log_incomplete(volume: &VolumeId, reason: &str) {
    warn!(
        %volume,
        reason,
        "not all files of the volume could be looked at, so some may have left its project: run `orlop check --audit` \
         while nothing uses it"
    );
}

fn log(volume: &VolumeId, found: &Strays) {
    if let Some(failure) = &found.failure {
        log_incomplete(volume, failure);
    }
    let Some(first) = found.paths.first() else { return };
    let (files, bytes) = (found.count, found.bytes);
    warn!(
        %volume,
        files,
        bytes,
        first,
        "files have left the project of their volume, so its size does not limit them: run `orlop check --audit --fix`"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audits_begin_once_in_each_period_at_a_time_of_the_pool() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let schedule = Schedule { every: hours(24), offset: hours(5) };
        assert_eq!(schedule.until_next(hours(0)), hours(5));
        assert_eq!(schedule.until_next(hours(24 * 365 + 4)), hours(1));
        assert_eq!(schedule.until_next(hours(5)), hours(24), "the next day");
        assert_eq!(schedule.until_next(hours(23)), hours(6));
        let times: Vec<_> = (0..20)
            .map(|_| Schedule::new(hours(24), &Uuid::new_v4().to_string()).until_next(hours(0)))
            .collect();
        assert!(times.iter().all(|time| *time <= hours(6)), "{times:?}");
        assert!(times.iter().any(|time| *time != times[0]), "{times:?}");
        assert!(Schedule::new(Duration::from_nanos(1), "no uuid").until_next(hours(1)) > Duration::ZERO);
    }
}
