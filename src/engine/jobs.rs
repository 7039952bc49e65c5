//! Long copies: each runs in a thread of its own, a retry joins it, and only its last rename makes anything visible.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::volume::{Source, Timestamp, VolumeId};

/// What a job makes: the key by which a retry finds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum JobKey {
    /// A volume of this id.
    Volume(VolumeId),
    /// A snapshot of this id.
    Snapshot(VolumeId),
}

/// A copy that runs or has ended.
#[derive(Debug)]
pub struct Job {
    /// What is copied.
    pub from: Source,
    /// When it was asked for.
    pub started: Timestamp,
    /// How far it is.
    pub progress: Progress,
    ended: Mutex<Option<Result<()>>>,
    end: Condvar,
}

/// The jobs of this process.
#[derive(Debug, Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    jobs: Mutex<HashMap<JobKey, Arc<Job>>>,
    /// How many may still start to copy.
    turns: Mutex<usize>,
    turn: Condvar,
}

impl Jobs {
    /// At most so many copy at once.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        let inner = Inner { jobs: Mutex::default(), turns: Mutex::new(at_once), turn: Condvar::new() };
        Self { inner: Arc::new(inner) }
    }

    /// The job that makes this, running or ended with an error that nobody has been told yet.
    #[must_use]
    pub fn find(&self, key: &JobKey) -> Option<Arc<Job>> {
        self.lock().get(key).cloned()
    }

    /// How many run or wait for their turn.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().values().filter(|job| !job.is_over()).count()
    }

    /// What is being made of this source, if anything.
    #[must_use]
    pub fn reader_of(&self, from: &Source) -> Option<JobKey> {
        self.lock().iter().find(|(_, job)| job.from == *from && !job.is_over()).map(|(key, _)| key.clone())
    }

    /// Starts a job in a thread of its own.
    ///
    /// # Errors
    /// What the kernel says when there can be no more threads.
    pub fn start<F>(&self, key: JobKey, from: Source, work: F) -> Result<Arc<Job>>
    where
        F: FnOnce(&Job) -> Result<()> + Send + 'static,
    {
        let job = Arc::new(Job {
            from,
            started: Timestamp::now(),
            progress: Progress::default(),
            ended: Mutex::new(None),
            end: Condvar::new(),
        });
        self.lock().insert(key.clone(), Arc::clone(&job));
        let (jobs, own) = (self.clone(), Arc::clone(&job));
        let own_key = key.clone();
        let spawned =
            thread::Builder::new().name("copy".to_owned()).spawn(move || jobs.work(&own_key, &own, work));
        match spawned {
            Ok(_) => Ok(job),
            Err(error) => {
                self.lock().remove(&key);
                Err(error).context(|| "start a copy")
            }
        }
    }

    fn work<F: FnOnce(&Job) -> Result<()>>(&self, key: &JobKey, job: &Job, work: F) {
        let turn = self.wait_for_turn(job);
        let work = std::panic::AssertUnwindSafe(|| work(job));
        let result = std::panic::catch_unwind(work)
            .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the copy panicked; see the log")));
        drop(turn);
        // What was made stands on disk before its job leaves this table, so that a retry always finds one of them.
        if result.is_ok() {
            self.lock().remove(key);
        }
        *job.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        job.end.notify_all();
    }

    /// Waits until another copy may begin, or this one need not.
    fn wait_for_turn(&self, job: &Job) -> Option<Turn<'_>> {
        let mut turns = self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner);
        while *turns == 0 {
            if job.progress.is_cancelled() {
                return None;
            }
            turns = self.inner.turn.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        *turns -= 1;
        Some(Turn { inner: &self.inner })
    }

    fn stop(&self, job: &Job) {
        job.progress.cancel();
        // Taken so that the request to stop is not made between a waiter's look and its wait.
        drop(self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner));
        self.inner.turn.notify_all();
    }

    /// Waits for a job; `None`: it still runs. An error is told once, and the next retry starts afresh.
    pub fn join(&self, key: &JobKey, job: &Arc<Job>, wait: Duration) -> Option<Result<()>> {
        let result = job.wait(wait)?;
        let mut jobs = self.lock();
        if jobs.get(key).is_some_and(|found| Arc::ptr_eq(found, job)) {
            jobs.remove(key);
        }
        Some(result)
    }

    /// Stops a job and waits for its end.
    ///
    /// # Errors
    /// `Busy` when it has not ended by then.
    pub fn cancel(&self, key: &JobKey, wait: Duration) -> Result<()> {
        let Some(job) = self.find(key) else { return Ok(()) };
        self.stop(&job);
        match self.join(key, &job, wait) {
            Some(_) => Ok(()),
            None => Err(Error::new(Kind::Busy, "the copy that makes it is being stopped: try again")),
        }
    }

    /// Stops all, and waits a little.
    pub fn shutdown(&self, wait: Duration) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        all.iter().for_each(|job| self.stop(job));
        let deadline = Instant::now() + wait;
        for job in all {
            job.wait(deadline.saturating_duration_since(Instant::now()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobKey, Arc<Job>>> {
        self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    fn is_over(&self) -> bool {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The result, when there is one in time; the first to ask gets the error itself.
    fn wait(&self, wait: Duration) -> Option<Result<()>> {
        let deadline = Instant::now() + wait;
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match ended.as_mut() {
                Some(Ok(())) => return Some(Ok(())),
                Some(failed) => {
                    let told =
                        Error::new(Kind::Busy, "the copy failed, and another caller was told why: try again");
                    return Some(std::mem::replace(failed, Err(told)));
                }
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            ended = self.end.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One of the places for a running copy.
struct Turn<'j> {
    inner: &'j Inner,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.inner.turn.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_failed_runs_no_more_although_nobody_was_told() {
        let jobs = Jobs::new(1);
        let id: VolumeId = "p/v".parse().unwrap();
        let fail = |_: &Job| Err(Error::new(Kind::Internal, "no luck"));
        let key = JobKey::Volume(id.clone());
        let job = jobs.start(key.clone(), Source::Volume(id), fail).unwrap();
        while !job.is_over() {
            thread::yield_now();
        }
        assert_eq!(jobs.count(), 0);
        let told = jobs.join(&key, &jobs.find(&key).unwrap(), Duration::ZERO);
        assert_eq!(told.unwrap().unwrap_err().kind(), Kind::Internal);
        assert!(jobs.find(&key).is_none(), "an error is told once");
    }
}
