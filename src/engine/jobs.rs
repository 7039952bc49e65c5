//! Copies in the background. A job waits for its turn without a thread, and retries of a request wait for the same job.
//! Nothing is visible before the final rename.

mod lanes;

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::lanes::{LaneKey, Lanes, Waiting};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::volume::{Source, Timestamp, VolumeId};

/// The object that a job creates: the key by which a retry finds the job.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum JobKey {
    /// The volume of this id.
    Volume(VolumeId),
    /// The snapshot of this id.
    Snapshot(VolumeId),
    /// The group of snapshots of this id.
    Group(VolumeId),
}

impl JobKey {
    /// The id of the object.
    pub(super) fn id(&self) -> &VolumeId {
        match self {
            Self::Volume(id) | Self::Snapshot(id) | Self::Group(id) => id,
        }
    }
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(id) => write!(f, "volume {id}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Group(id) => write!(f, "group snapshot {id}"),
        }
    }
}

/// A copy that is waiting or running, or has ended.
#[derive(Debug)]
pub struct Job {
    /// The object that is copied.
    pub from: Source,
    /// The other volumes of a group.
    pub others: Vec<Source>,
    /// Time of the request.
    pub started: Timestamp,
    /// Its progress.
    pub progress: Progress,
    result: Mutex<Option<Result<()>>>,
    ended: Condvar,
}

/// The jobs of this process.
#[derive(Debug, Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Number of turns in each lane.
    turns: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<JobKey, Arc<Job>>,
    lanes: Lanes,
}

impl Jobs {
    /// Creates a table of jobs. Between the same two pools, or within one, at most `turns` copy at a time.
    #[must_use]
    pub fn new(turns: usize) -> Self {
        Self { inner: Arc::new(Inner { turns, state: Mutex::default() }) }
    }

    /// Returns the job for this key if it has not ended, or if it failed and its error has not been returned yet.
    #[must_use]
    pub fn find(&self, key: &JobKey) -> Option<Arc<Job>> {
        self.lock().jobs.get(key).cloned()
    }

    /// Like [`Jobs::find`], for a request to copy `from`. A failed job of another source is forgotten: its request has been
    /// given up, and its error would keep the name from being used.
    #[must_use]
    pub fn find_for(&self, key: &JobKey, from: Option<&Source>) -> Option<Arc<Job>> {
        self.find_for_all(key, from)
    }

    /// Like [`Jobs::find_for`], for a request to copy several volumes.
    #[must_use]
    pub fn find_for_all<'s>(
        &self,
        key: &JobKey,
        from: impl IntoIterator<Item = &'s Source>,
    ) -> Option<Arc<Job>> {
        let mut state = self.lock();
        let job = state.jobs.get(key)?;
        if !job.sources().eq(from) && job.has_ended() {
            state.jobs.remove(key);
            return None;
        }
        Some(Arc::clone(job))
    }

    /// Number of jobs that have not ended.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().jobs.values().filter(|job| !job.has_ended()).count()
    }

    /// Entries and bytes that the jobs have copied so far.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let state = self.lock();
        let progress = state.jobs.values().map(|job| (job.progress.entries(), job.progress.bytes()));
        progress.fold((0, 0), |sum, job| (sum.0 + job.0, sum.1 + job.1))
    }

    /// Returns the key of a waiting or running job that copies this source.
    #[must_use]
    pub fn reader_of(&self, from: &Source) -> Option<JobKey> {
        let state = self.lock();
        let reads = |job: &Job| job.sources().any(|source| source == from) && !job.has_ended();
        let reader = state.jobs.iter().find(|(_, job)| reads(job));
        reader.map(|(key, _)| key.clone())
    }

    /// Adds a job. A thread of its lane calls `work` when it is the job's turn.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be spawned.
    pub fn start<F>(&self, key: JobKey, from: Source, work: F) -> Result<Arc<Job>>
    where
        F: FnOnce(&Job) -> Result<()> + Send + 'static,
    {
        self.start_for_all(key, (from, Vec::new()), work)
    }

    /// Like [`Jobs::start`], for a job that copies several volumes.
    ///
    /// # Errors
    /// Same as [`Jobs::start`].
    pub fn start_for_all<F>(
        &self,
        key: JobKey,
        (from, others): (Source, Vec<Source>),
        work: F,
    ) -> Result<Arc<Job>>
    where
        F: FnOnce(&Job) -> Result<()> + Send + 'static,
    {
        let job = Arc::new(Job {
            from,
            others,
            started: Timestamp::now(),
            progress: Progress::default(),
            result: Mutex::new(None),
            ended: Condvar::new(),
        });
        let waiting = Waiting { key: key.clone(), job: Arc::clone(&job), work: Box::new(work) };
        let lane = LaneKey::new(&job.from, &key);
        let mut state = self.lock();
        let threads = state.lanes.push(waiting);
        if threads < self.inner.turns {
            match self.spawn(lane.clone()) {
                Ok(()) => state.lanes.add_thread(lane),
                Err(error) if threads == 0 => {
                    let waiting = state.lanes.remove(&job, &key);
                    drop(state);
                    // Not under the lock, since it releases a reservation and perhaps a pool.
                    drop(waiting);
                    return Err(error);
                }
                // The lane's other threads will run the job.
                Err(_) => {}
            }
        }
        state.jobs.insert(key, Arc::clone(&job));
        Ok(job)
    }

    fn spawn(&self, lane: LaneKey) -> Result<()> {
        let jobs = self.clone();
        let spawned = thread::Builder::new().name("copy".to_owned()).spawn(move || jobs.run(&lane));
        spawned.map(drop).context(|| "start the thread of a copy")
    }

    /// Runs the jobs of a lane one after another, until none waits.
    fn run(&self, lane: &LaneKey) {
        while let Some(Waiting { key, job, work }) = self.next(lane) {
            let result = catch_unwind(AssertUnwindSafe(|| work(&job)))
                .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the copy panicked; see the log")));
            let mut state = self.lock();
            state.lanes.ended(lane, &job.from);
            // The object is on disk before its job leaves this table, so that a retry finds either the object or the job.
            if result.is_ok() {
                state.jobs.remove(&key);
            }
            drop(state);
            job.end(result);
        }
    }

    fn next(&self, lane: &LaneKey) -> Option<Waiting> {
        self.lock().lanes.next(lane)
    }

    /// Waits for a job; `None` if it still runs. An error is returned once, and the next retry starts a new job.
    pub fn join(&self, key: &JobKey, job: &Arc<Job>, wait: Duration) -> Option<Result<()>> {
        let result = job.wait(wait)?;
        let jobs = &mut self.lock().jobs;
        if jobs.get(key).is_some_and(|found| Arc::ptr_eq(found, job)) {
            jobs.remove(key);
        }
        Some(result)
    }

    /// Stops a job and waits for its end. One that still waits for its turn ends at once.
    ///
    /// # Errors
    /// `Busy` when it has not ended in time.
    pub fn cancel(&self, key: &JobKey, wait: Duration) -> Result<()> {
        let Some(job) = self.find(key) else { return Ok(()) };
        job.progress.cancel();
        let waiting = self.lock().lanes.remove(&job, key);
        waiting.into_iter().for_each(Waiting::cancel);
        match self.join(key, &job, wait) {
            Some(_) => Ok(()),
            None => {
                Err(Error::new(Kind::Busy, "the copy that creates the object is being stopped: retry later"))
            }
        }
    }

    /// Stops all jobs and waits for their end, together at most for `wait`.
    pub fn shutdown(&self, wait: Duration) {
        let mut state = self.lock();
        let all: Vec<_> = state.jobs.values().cloned().collect();
        let waiting = state.lanes.clear();
        drop(state);
        waiting.into_iter().for_each(Waiting::cancel);
        all.iter().for_each(|job| job.progress.cancel());
        let deadline = Instant::now() + wait;
        for job in all {
            job.wait(deadline.saturating_duration_since(Instant::now()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    /// All objects that are copied.
    pub(super) fn sources(&self) -> impl Iterator<Item = &Source> {
        std::iter::once(&self.from).chain(&self.others)
    }

    /// Whether it is neither waiting nor running.
    pub(super) fn has_ended(&self) -> bool {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn end(&self, result: Result<()>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.ended.notify_all();
    }

    /// Waits for the end of the job and returns its result; `None` if it still runs. The first caller gets the error
    /// itself, later ones get `Busy`.
    fn wait(&self, wait: Duration) -> Option<Result<()>> {
        let deadline = Instant::now() + wait;
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match result.as_mut() {
                Some(Ok(())) => return Some(Ok(())),
                Some(failed) => {
                    let later = Error::new(
                        Kind::Busy,
                        "the copy failed, and the error was returned to another request: retry",
                    );
                    return Some(std::mem::replace(failed, Err(later)));
                }
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            result = self.ended.wait_timeout(result, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn id(text: &str) -> VolumeId {
        text.parse().unwrap()
    }

    /// Adds a copy of `from`. It sends its name when it gets its turn, and keeps that until the returned sender is dropped.
    fn start(jobs: &Jobs, from: &str, to: &str, started: &Sender<String>) -> Sender<()> {
        let (keep, kept) = channel::<()>();
        let (started, name) = (started.clone(), to.to_owned());
        let work = move |_: &Job| {
            started.send(name).unwrap();
            let _ = kept.recv();
            Ok(())
        };
        jobs.start(JobKey::Snapshot(id(to)), Source::Volume(id(from)), work).unwrap();
        keep
    }

    /// The copies that have started since, of which there must be `number`.
    fn next(started: &Receiver<String>, number: usize) -> Vec<String> {
        let mut names: Vec<_> = (0..number).map(|_| started.recv_timeout(SOON).unwrap()).collect();
        names.sort();
        assert!(started.recv_timeout(Duration::from_millis(50)).is_err(), "another copy started");
        names
    }

    #[test]
    fn a_failed_copy_is_not_counted_as_running_before_its_error_is_reported() {
        let jobs = Jobs::new(1);
        let fail = |_: &Job| Err(Error::new(Kind::Internal, "injected"));
        let key = JobKey::Volume(id("p/v"));
        let job = jobs.start(key.clone(), Source::Volume(id("p/v")), fail).unwrap();
        while !job.has_ended() {
            thread::yield_now();
        }
        assert_eq!(jobs.count(), 0);
        let result = jobs.join(&key, &jobs.find(&key).unwrap(), Duration::ZERO);
        assert_eq!(result.unwrap().unwrap_err().kind(), Kind::Internal);
        assert!(jobs.find(&key).is_none(), "an error is returned once");
    }

    #[test]
    fn a_failed_copy_of_another_source_is_forgotten() {
        let jobs = Jobs::new(1);
        let fail = |_: &Job| Err(Error::new(Kind::Internal, "injected"));
        let (key, [a, b]) = (JobKey::Volume(id("p/v")), ["p/a", "p/b"].map(|from| Source::Volume(id(from))));
        let job = jobs.start(key.clone(), a.clone(), fail).unwrap();
        while !job.has_ended() {
            thread::yield_now();
        }
        assert!(jobs.find_for(&key, Some(&a)).is_some(), "its own request gets the error");
        assert!(jobs.find_for(&key, Some(&b)).is_none() && jobs.find(&key).is_none());
    }

    #[test]
    fn a_source_has_one_turn_while_copies_of_others_wait() {
        let (jobs, (sender, started)) = (Jobs::new(2), channel());
        let mut of_a: Vec<_> =
            (0..10).map(|copy| start(&jobs, "p/a", &format!("p/a{copy}"), &sender)).collect();
        assert_eq!(next(&started, 2), ["p/a0", "p/a1"], "no other source waits");
        let of_b = start(&jobs, "p/b", "p/b0", &sender);
        drop(of_a.remove(0));
        assert_eq!(next(&started, 1), ["p/b0"], "before the older copies of a");
        drop(of_b);
        assert_eq!(next(&started, 1), ["p/a2"]);
        let of_b = [start(&jobs, "p/b", "p/b1", &sender), start(&jobs, "p/b", "p/b2", &sender)];
        drop(of_a.remove(0));
        assert_eq!(next(&started, 1), ["p/b1"]);
        drop(of_a.remove(0));
        assert_eq!(next(&started, 1), ["p/a3"], "first come, first served, and b has a turn");
        drop((of_a, of_b));
        let key = JobKey::Snapshot(id("p/a9"));
        while jobs.find(&key).is_some() || jobs.count() > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn a_copy_that_hangs_takes_no_turn_of_other_pools() {
        let (jobs, (sender, started)) = (Jobs::new(1), channel());
        let _hanging = start(&jobs, "dead/a", "p/a", &sender);
        assert_eq!(next(&started, 1), ["p/a"]);
        let _waiting = start(&jobs, "dead/b", "p/b", &sender);
        let _within = start(&jobs, "p/c", "p/c", &sender);
        assert_eq!(next(&started, 1), ["p/c"], "the other copy of the dead pool waits");
    }

    #[test]
    fn a_waiting_copy_that_is_cancelled_releases_what_it_holds_at_once() {
        let (jobs, (sender, started)) = (Jobs::new(1), channel());
        let running = start(&jobs, "p/a", "p/a", &sender);
        assert_eq!(next(&started, 1), ["p/a"]);
        let held = Arc::new(());
        let add = |to: &str| {
            let holds = Arc::clone(&held);
            let work = move |_: &Job| {
                drop(holds);
                Ok(())
            };
            jobs.start(JobKey::Volume(id(to)), Source::Volume(id("p/a")), work).unwrap()
        };
        let job = add("p/cancelled");
        jobs.cancel(&JobKey::Volume(id("p/cancelled")), Duration::ZERO).unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(job.has_ended() && jobs.find(&JobKey::Volume(id("p/cancelled"))).is_none());
        let job = add("p/shut-down");
        jobs.shutdown(Duration::ZERO);
        assert!(job.has_ended());
        assert_eq!((Arc::strong_count(&held), jobs.count()), (1, 1), "the first copy still runs");
        drop(running);
    }
}
