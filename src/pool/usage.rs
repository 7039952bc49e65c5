//! The disk usage of volumes, measured by a background thread, one volume at a time. A caller waits for the first
//! measurement only, and limits that wait.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context as _, Result};
use crate::fs::{DiskUsage, disk_usage};
use crate::volume::VolumeId;

/// The last measurement of each volume, and a thread that runs while the queue is not empty.
#[derive(Debug)]
pub struct UsageCache {
    age: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    measured: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: HashMap<VolumeId, (Instant, DiskUsage)>,
    /// Volumes to be measured, with their data directories.
    queue: VecDeque<(VolumeId, OwnedFd)>,
    /// The volume that is being measured.
    current: Option<VolumeId>,
    /// Whether the thread runs.
    running: bool,
}

impl UsageCache {
    /// Creates an empty cache. A measurement is repeated only when it is older than `age`.
    pub fn new(age: Duration) -> Self {
        Self { age, shared: Arc::default() }
    }

    /// Returns the last measurement of a volume and starts a new one if that is too old. Waits for the first
    /// measurement only; `None` if it was not complete in time.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be spawned.
    pub fn measure(&self, id: &VolumeId, data: OwnedFd, wait: Duration) -> Result<Option<DiskUsage>> {
        let mut state = self.shared.lock();
        let last = state.last.get(id).copied();
        if last.is_none_or(|(time, _)| time.elapsed() >= self.age) && !state.is_pending(id) {
            // Start the thread first: a volume that stays in the queue without one is never measured.
            self.start_thread(&mut state)?;
            state.queue.push_back((id.clone(), data));
        }
        if let Some((_, usage)) = last {
            return Ok(Some(usage));
        }
        let unfinished = |state: &mut State| !state.last.contains_key(id) && state.is_pending(id);
        let waited = self.shared.measured.wait_timeout_while(state, wait, unfinished);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Ok(state.last.get(id).map(|(_, usage)| *usage))
    }

    /// The last measurement of a volume, if there is one.
    pub fn last(&self, id: &VolumeId) -> Option<DiskUsage> {
        self.shared.lock().last.get(id).map(|(_, usage)| *usage)
    }

    /// Removes a deleted volume. A measurement that is running is discarded, since a new volume may get the same
    /// name.
    pub fn forget(&self, id: &VolumeId) {
        let mut state = self.shared.lock();
        state.last.remove(id);
        state.queue.retain(|(queued, _)| queued != id);
        state.current.take_if(|current| *current == *id);
        drop(state);
        self.shared.measured.notify_all();
    }

    fn start_thread(&self, state: &mut State) -> Result<()> {
        if state.running {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        thread::Builder::new()
            .name("usage".to_owned())
            .spawn(move || shared.run())
            .context(|| "start the thread that measures usage")?;
        state.running = true;
        Ok(())
    }
}

impl State {
    fn is_pending(&self, id: &VolumeId) -> bool {
        self.current.as_ref() == Some(id) || self.queue.iter().any(|(queued, _)| queued == id)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // Linux keeps a nice value for each thread. Without the right to change it, the priority stays as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while let Some((id, data)) = self.next() {
            // The walk fails when directories are moved meanwhile. The next request then starts a new measurement.
            self.store(id, disk_usage(data.as_fd()).ok());
        }
    }

    fn store(&self, id: VolumeId, usage: Option<DiskUsage>) {
        let mut state = self.lock();
        let forgotten = state.current.take().is_none_or(|current| current != id);
        if let Some(usage) = usage.filter(|_| !forgotten) {
            state.last.insert(id, (Instant::now(), usage));
        }
        drop(state);
        self.measured.notify_all();
    }

    fn next(&self) -> Option<(VolumeId, OwnedFd)> {
        let mut state = self.lock();
        let next = state.queue.pop_front();
        state.current = next.as_ref().map(|(id, _)| id.clone());
        state.running = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> VolumeId {
        "p/v".parse().unwrap()
    }

    #[test]
    fn the_measurement_of_a_deleted_volume_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let usage = UsageCache::new(Duration::from_secs(60));
        usage.shared.lock().queue.extend([(id(), open()), (id(), open())]);
        let (measured, _) = usage.shared.next().unwrap();
        usage.forget(&id());
        usage.shared.store(measured, Some(DiskUsage { bytes: 1, inodes: 1 }));
        assert_eq!(usage.last(&id()), None);
        assert!(usage.shared.next().is_none(), "the volume is no longer in the queue");
    }

    #[test]
    fn the_first_measurement_is_waited_for_and_a_recent_one_is_reused() {
        let dir = tempfile::tempdir().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let usage = UsageCache::new(Duration::from_secs(60));
        let first = usage.measure(&id(), open(), Duration::from_secs(10)).unwrap().unwrap();
        std::fs::write(dir.path().join("a"), vec![1; 1 << 20]).unwrap();
        assert_eq!(usage.measure(&id(), open(), Duration::from_secs(10)).unwrap(), Some(first));
        usage.forget(&id());
        let second = usage.measure(&id(), open(), Duration::from_secs(10)).unwrap().unwrap();
        assert!(second.bytes > first.bytes);
    }
}
