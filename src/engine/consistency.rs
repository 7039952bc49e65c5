//! Copies that show one instant of their sources although containers use these: the containers are paused for the last
//! part of the copy.
//!
//! The order is the same for one volume and for several: all live parts, one pause of all containers, every freeze point,
//! and the containers continue. Then each copy is finished.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::request::{ConsistencySpec, PauseStats};
use crate::backend::{SourceState, TreeCopy};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::{Pass, Progress};
use crate::pause::{Pause, PauseRecord, Pauser, sees_host_processes};
use crate::pool::OpenPool;
use crate::pool::locks::LockGuard;
use crate::pool::object::{ObjectKey, ObjectKind};
use crate::pool::store::Draft;
use crate::volume::{Consistency, CopyRecord, VolumeId};

/// The most times that a copy is brought up to date before the pause.
const MAX_UPDATES: u32 = 5;
/// A further update is worth while if the last one took less than this part of the one before.
const SHRINKS: f64 = 0.7;
/// After an update that took less than this, another one is not worth while if most of what was copied is expected to have
/// changed again. A longer update is followed by another one: that writes less, so the containers are paused for less time.
const QUICK: Duration = Duration::from_millis(500);
/// An update that takes less than this is short enough.
const SHORT: Duration = Duration::from_millis(20);
/// How long a copy waits for the calls of its volume, in steps after each of which it may be cancelled. Longer than a call
/// waits, since a copy that gives up here is lost.
const LOCK_WAIT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_millis(500));

/// What the copies of an engine need to pause the users of their sources.
#[derive(Debug)]
pub(super) struct Pauses {
    pauser: Pauser,
    /// Number of volumes published so far.
    published: AtomicU64,
    stats: Mutex<PauseStats>,
}

/// One of the copies that show the same instant.
pub(super) struct Part<'a> {
    /// The pool of the source.
    pub(super) pool: &'a OpenPool,
    /// The source, a volume.
    pub(super) id: &'a VolumeId,
    /// Its data.
    pub(super) data: BorrowedFd<'a>,
    /// What is being made.
    pub(super) draft: &'a Draft<'a>,
    pub(super) progress: &'a Progress,
    pub(super) copy: Box<dyn TreeCopy + 'a>,
}

/// The end of one attempt.
enum Attempt {
    Copied(CopyRecord),
    /// The copies do not show one instant, but another attempt may succeed.
    Again(Error),
}

impl Pauses {
    pub(super) fn new(pauser: Pauser) -> Self {
        Self { pauser, published: AtomicU64::new(0), stats: Mutex::default() }
    }

    /// Notes that a volume is published. A copy that has begun before does not take its source for unused.
    pub(super) fn note_published(&self) {
        self.published.fetch_add(1, Ordering::SeqCst);
    }

    /// What became of the pauses so far.
    pub(super) fn stats(&self) -> PauseStats {
        self.lock_stats().clone()
    }

    fn lock_stats(&self) -> MutexGuard<'_, PauseStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies everything, so that the copies can be finished.
    ///
    /// # Errors
    /// `InUse` when the users of a source cannot be paused, or not within the longest pause; `Unsupported` when orlop is not
    /// shown the containers of the host; `Busy` when the copy is cancelled; otherwise the error of the copy.
    pub(super) fn copy(&self, parts: &mut [Part<'_>], spec: ConsistencySpec) -> Result<CopyRecord> {
        if spec.consistency == Consistency::None {
            live(parts)?;
            return Ok(CopyRecord::unpaused(Consistency::None));
        }
        check_sees_containers(sees_host_processes(), parts)?;
        let published = self.published.load(Ordering::SeqCst);
        let unused_at = if self.is_consumed(parts)? { None } else { Some(published) };
        let mut last = live(parts)?.duration;
        let mut failed = None;
        loop {
            let update = self.catch_up(parts, last)?;
            last = update.unwrap_or(last);
            match (self.attempt(parts, spec.max_pause, update, unused_at)?, failed) {
                (Attempt::Copied(record), _) => return Ok(record),
                (Attempt::Again(error), None) => failed = Some(error),
                (Attempt::Again(error), Some(_)) => return Err(not_kept(parts, error)),
            }
        }
    }

    fn is_consumed(&self, parts: &[Part<'_>]) -> Result<bool> {
        self.pauser.is_consumed(&dirs(parts)).context(|| format!("find the users of {}", names(parts)))
    }

    /// Brings the copies up to date as long as that takes less time from one update to the next. Returns the time of the
    /// last update, which the next one will take, too; `None` if nothing uses the sources.
    fn catch_up(&self, parts: &mut [Part<'_>], before: Duration) -> Result<Option<Duration>> {
        let mut last = before;
        for _ in 0..MAX_UPDATES {
            if !self.is_consumed(parts)? {
                return Ok(None);
            }
            let pass = live(parts)?;
            let is_last = is_last_update(pass, last);
            last = pass.duration;
            if is_last {
                break;
            }
        }
        Ok(Some(last))
    }

    /// Brings the copies up to date while nothing writes to the sources. No call publishes or changes them meanwhile.
    fn attempt(
        &self,
        parts: &mut [Part<'_>],
        max_pause: Duration,
        update: Option<Duration>,
        unused_at: Option<u64>,
    ) -> Result<Attempt> {
        let _locks = lock_volumes(parts)?;
        if let Some(expected) = update.filter(|expected| *expected > max_pause) {
            self.lock_stats().refused += 1;
            return Err(too_long(parts, expected, max_pause));
        }
        match self.pause(parts, max_pause)? {
            // It is not known how long an update takes, so that is found out first.
            Some(pause) if update.is_none() => {
                drop(pause);
                remove_record(parts)?;
                Ok(Attempt::Again(came_into_use(parts)))
            }
            Some(pause) => self.copy_paused(parts, pause),
            None => self.copy_unused(parts, unused_at),
        }
    }

    fn pause(&self, parts: &[Part<'_>], limit: Duration) -> Result<Option<Pause>> {
        let mut record = |record: &PauseRecord| match parts.first() {
            Some(part) => part.draft.write_pause(record),
            None => Ok(()),
        };
        let pause = self.pauser.pause(&dirs(parts), limit, &mut record);
        if !matches!(pause, Ok(Some(_))) {
            remove_record(parts)?;
        }
        pause.map_err(|error| {
            self.lock_stats().refused += 1;
            // The pause was tried again already, and no copy is running any more.
            let kind = if error.kind() == Kind::Busy { Kind::InUse } else { error.kind() };
            Error::caused(kind, format!("pause the users of {}", names(parts)), error)
        })
    }

    /// Brings the copies up to date while nothing uses the sources.
    fn copy_unused(&self, parts: &mut [Part<'_>], unused_at: Option<u64>) -> Result<Attempt> {
        let unused = unused_at == Some(self.published.load(Ordering::SeqCst));
        let state = if unused { SourceState::Unused } else { SourceState::Paused };
        if let Err(error) = freeze_point(parts, state) {
            return changed(parts, error);
        }
        // A pod may start whose volume was published before.
        if self.is_consumed(parts)? {
            return Ok(Attempt::Again(came_into_use(parts)));
        }
        Ok(Attempt::Copied(CopyRecord::unpaused(Consistency::Crash)))
    }

    fn copy_paused(&self, parts: &mut [Part<'_>], pause: Pause) -> Result<Attempt> {
        let copied = freeze_point(parts, SourceState::Paused);
        let resumed = pause.resume();
        remove_record(parts)?;
        let error = match (copied, resumed) {
            (Ok(()), Ok(paused)) => {
                self.lock_stats().add_kept(paused.duration);
                return Ok(Attempt::Copied(CopyRecord::paused(paused.duration, paused.containers)));
            }
            (Err(error), _) | (Ok(()), Err(error)) => error,
        };
        changed(parts, error).inspect(|_| self.lock_stats().broken += 1)
    }
}

/// Whether an update, after a pass that took `before`, is the last one before the pause.
fn is_last_update(update: Pass, before: Duration) -> bool {
    let shrinks = update.duration < before.mul_f64(SHRINKS);
    let is_in_vain = update.duration <= QUICK && update.recurring >= SHRINKS;
    !shrinks || is_in_vain || update.duration < SHORT
}

/// Whether another attempt may succeed after this error of a freeze point or of a pause.
fn changed(parts: &[Part<'_>], error: Error) -> Result<Attempt> {
    let cancelled = parts.iter().any(|part| part.progress.is_cancelled());
    if error.kind() == Kind::Busy && !cancelled { Ok(Attempt::Again(error)) } else { Err(error) }
}

fn came_into_use(parts: &[Part<'_>]) -> Error {
    Error::new(Kind::Busy, format!("{} came into use during the copy", names(parts)))
}

/// In a PID namespace of its own, orlop is not shown the processes of the host: whatever uses a volume would go unnoticed.
fn check_sees_containers(sees_host_processes: bool, parts: &[Part<'_>]) -> Result<()> {
    if sees_host_processes {
        return Ok(());
    }
    let text = format!(
        "{}: a consistent copy needs the host's PID namespace, to find the containers that use the volume: set hostPID: true, \
         or consistency: none",
        names(parts)
    );
    Err(Error::new(Kind::Unsupported, text))
}

/// Makes all copies, or brings them up to date, while the sources are in use. Returns what this took together.
fn live(parts: &mut [Part<'_>]) -> Result<Pass> {
    let mut all = Pass::default();
    for_each(parts, |copy| copy.live().map(|pass| all.add(pass)))?;
    Ok(all)
}

fn freeze_point(parts: &mut [Part<'_>], source: SourceState) -> Result<()> {
    for_each(parts, |copy| copy.freeze_point(source))
}

/// Takes a step of each copy. The error of one of several names its volume.
fn for_each(parts: &mut [Part<'_>], mut step: impl FnMut(&mut dyn TreeCopy) -> Result<()>) -> Result<()> {
    let is_one = parts.len() == 1;
    parts.iter_mut().try_for_each(|part| {
        let done = step(&mut *part.copy);
        if is_one { done } else { done.context(|| format!("copy volume {}", part.id)) }
    })
}

fn remove_record(parts: &[Part<'_>]) -> Result<()> {
    parts.first().map_or(Ok(()), |part| part.draft.remove_pause())
}

/// Locks the sources, so that no call publishes one meanwhile: in the order of their ids, as every holder of several does.
fn lock_volumes(parts: &[Part<'_>]) -> Result<Vec<LockGuard<ObjectKey>>> {
    let mut parts: Vec<_> = parts.iter().collect();
    parts.sort_by_key(|part| part.id);
    parts.into_iter().map(lock_volume).collect()
}

fn lock_volume(part: &Part<'_>) -> Result<LockGuard<ObjectKey>> {
    let (deadline, key) =
        (Instant::now() + LOCK_WAIT.0, ObjectKey::Object(ObjectKind::Volumes, part.id.name.clone()));
    loop {
        match part.pool.store.locks().lock_within(key.clone(), LOCK_WAIT.1) {
            Err(error)
                if error.kind() == Kind::Busy
                    && Instant::now() < deadline
                    && !part.progress.is_cancelled() => {}
            locked => return locked,
        }
    }
}

fn dirs<'a>(parts: &[Part<'a>]) -> Vec<BorrowedFd<'a>> {
    parts.iter().map(|part| part.data).collect()
}

fn names(parts: &[Part<'_>]) -> String {
    let ids: Vec<_> = parts.iter().map(|part| part.id.to_string()).collect();
    format!("volume {}", ids.join(", "))
}

/// Final for csi-snapshotter, as no copy is running any more, and retried with backoff.
fn too_long(parts: &[Part<'_>], expected: Duration, max_pause: Duration) -> Error {
    let text = format!(
        "{} is in use, and a consistent copy would pause its users for about {:.1} s, longer than maxPause ({:.1} s): set \
         a larger maxPause, or consistency: none, or use a filesystem that shares extents (xfs with reflink, btrfs)",
        names(parts),
        expected.as_secs_f64(),
        max_pause.as_secs_f64(),
    );
    Error::new(Kind::InUse, text)
}

fn not_kept(parts: &[Part<'_>], error: Error) -> Error {
    let text = format!(
        "{} changed while its users were paused, also in a second attempt: retry, or set a larger maxPause, or \
         consistency: none",
        names(parts)
    );
    Error::caused(Kind::InUse, text, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_the_pid_namespace_of_the_host_makes_no_consistent_copies() {
        assert!(check_sees_containers(true, &[]).is_ok());
        let error = check_sees_containers(false, &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.chain().contains("hostPID: true, or consistency: none"), "{error}");
    }

    #[test]
    fn updates_end_when_another_one_would_not_take_less() {
        let is_last = |milliseconds, recurring, before| {
            let duration = Duration::from_millis(milliseconds);
            is_last_update(Pass { duration, recurring, ..Pass::default() }, Duration::from_millis(before))
        };
        assert!(!is_last(300, 0.2, 1000), "it shrinks");
        assert!(is_last(800, 0.2, 1000) && is_last(2000, 0.0, 1000), "it does not shrink");
        assert!(is_last(10, 0.0, 1000), "it is short");
        assert!(is_last(300, 0.9, 1000), "its files keep changing");
        assert!(!is_last(3000, 0.9, 10_000), "the next one writes less");
    }

    #[test]
    fn pauses_are_counted_by_duration() {
        let mut stats = PauseStats::default();
        [1, 5, 6, 5000].into_iter().map(Duration::from_millis).for_each(|pause| stats.add_kept(pause));
        assert_eq!((stats.kept, stats.durations), (4, [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]));
    }
}
