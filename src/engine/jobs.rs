//! Copies in the background. Each job runs in a thread of its own, and retries of a request wait for the same job.
//! Nothing is visible before the final rename.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
}

/// A copy that is waiting or running, or has ended.
#[derive(Debug)]
pub struct Job {
    /// The object that is copied.
    pub from: Source,
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
    jobs: Mutex<HashMap<JobKey, Arc<Job>>>,
    /// Number of copies that may start now.
    free_slots: Mutex<usize>,
    slot_freed: Condvar,
}

impl Jobs {
    /// Creates a table whose jobs copy at most `at_once` at a time.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        let inner =
            Inner { jobs: Mutex::default(), free_slots: Mutex::new(at_once), slot_freed: Condvar::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Returns the job for this key if it has not ended, or if it failed and its error has not been returned yet.
    #[must_use]
    pub fn find(&self, key: &JobKey) -> Option<Arc<Job>> {
        self.lock().get(key).cloned()
    }

    /// Number of jobs that have not ended.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().values().filter(|job| !job.has_ended()).count()
    }

    /// Returns the key of a waiting or running job that copies this source.
    #[must_use]
    pub fn reader_of(&self, from: &Source) -> Option<JobKey> {
        self.lock().iter().find(|(_, job)| job.from == *from && !job.has_ended()).map(|(key, _)| key.clone())
    }

    /// Starts a job in a thread of its own.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be spawned.
    pub fn start<F>(&self, key: JobKey, from: Source, work: F) -> Result<Arc<Job>>
    where
        F: FnOnce(&Job) -> Result<()> + Send + 'static,
    {
        let job = Arc::new(Job {
            from,
            started: Timestamp::now(),
            progress: Progress::default(),
            result: Mutex::new(None),
            ended: Condvar::new(),
        });
        self.lock().insert(key.clone(), Arc::clone(&job));
        let (jobs, own, own_key) = (self.clone(), Arc::clone(&job), key.clone());
        let spawned =
            thread::Builder::new().name("copy".to_owned()).spawn(move || jobs.run(&own_key, &own, work));
        match spawned {
            Ok(_) => Ok(job),
            Err(error) => {
                self.lock().remove(&key);
                Err(error).context(|| "start the thread of a copy")
            }
        }
    }

    fn run<F: FnOnce(&Job) -> Result<()>>(&self, key: &JobKey, job: &Job, work: F) {
        let result = match self.wait_for_slot(job) {
            Some(_slot) => {
                let work = std::panic::AssertUnwindSafe(|| work(job));
                std::panic::catch_unwind(work)
                    .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the copy panicked; see the log")))
            }
            None => {
                // Release the reservation and the pool before the end is announced.
                drop(work);
                Err(Error::new(Kind::Busy, "cancelled"))
            }
        };
        // The object is on disk before its job leaves this table, so that a retry finds either the object or the job.
        if result.is_ok() {
            self.lock().remove(key);
        }
        *job.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        job.ended.notify_all();
    }

    /// Waits until another copy may start. `None` if the job was cancelled.
    fn wait_for_slot(&self, job: &Job) -> Option<Slot<'_>> {
        let mut free = self.inner.free_slots.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            if job.progress.is_cancelled() {
                return None;
            }
            free = self.inner.slot_freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Some(Slot { inner: &self.inner })
    }

    fn stop(&self, job: &Job) {
        job.progress.cancel();
        // Lock, to avoid a lost wakeup.
        drop(self.inner.free_slots.lock().unwrap_or_else(PoisonError::into_inner));
        self.inner.slot_freed.notify_all();
    }

    /// Waits for a job; `None` if it still runs. An error is returned once, and the next retry starts a new job.
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
    /// `Busy` when it has not ended in time.
    pub fn cancel(&self, key: &JobKey, wait: Duration) -> Result<()> {
        let Some(job) = self.find(key) else { return Ok(()) };
        self.stop(&job);
        match self.join(key, &job, wait) {
            Some(_) => Ok(()),
            None => Err(Error::new(Kind::Busy, "the copy that creates it is being stopped: retry later")),
        }
    }

    /// Stops all jobs and waits for their end, together at most for `wait`.
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
    fn has_ended(&self) -> bool {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).is_some()
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

/// The permission to copy. Dropping it lets another job start.
struct Slot<'j> {
    inner: &'j Inner,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.inner.free_slots.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.inner.slot_freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_copy_is_not_counted_as_running_before_its_error_is_reported() {
        let jobs = Jobs::new(1);
        let id: VolumeId = "p/v".parse().unwrap();
        let fail = |_: &Job| Err(Error::new(Kind::Internal, "injected"));
        let key = JobKey::Volume(id.clone());
        let job = jobs.start(key.clone(), Source::Volume(id), fail).unwrap();
        while !job.has_ended() {
            thread::yield_now();
        }
        assert_eq!(jobs.count(), 0);
        let result = jobs.join(&key, &jobs.find(&key).unwrap(), Duration::ZERO);
        assert_eq!(result.unwrap().unwrap_err().kind(), Kind::Internal);
        assert!(jobs.find(&key).is_none(), "an error is returned once");
    }
}
