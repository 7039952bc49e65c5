//! The disk usage of a pool's volumes, measured by a background thread, one volume at a time. A caller waits for the
//! first measurement only, and limits that wait.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context as _, Result};
use crate::fs::{DiskUsage, disk_usage};
use crate::volume::Name;

/// The last measurement of each volume of a pool, and a thread that runs while the queue is not empty. Clones share both.
#[derive(Debug, Clone)]
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
    last: HashMap<Name, (Instant, DiskUsage)>,
    /// Volumes to be measured, with their data directories.
    queue: VecDeque<(Name, OwnedFd)>,
    /// The volume that is being measured.
    current: Option<Name>,
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
    pub fn measure(&self, name: &Name, data: OwnedFd, wait: Duration) -> Result<Option<DiskUsage>> {
        let mut state = self.shared.lock();
        let last = state.last.get(name).copied();
        if last.is_none_or(|(time, _)| time.elapsed() >= self.age) && !state.is_pending(name) {
            // Start the thread first: a volume that stays in the queue without one is never measured.
            self.start_thread(&mut state)?;
            state.queue.push_back((name.clone(), data));
        }
        if let Some((_, usage)) = last {
            return Ok(Some(usage));
        }
        let unfinished = |state: &mut State| !state.last.contains_key(name) && state.is_pending(name);
        let waited = self.shared.measured.wait_timeout_while(state, wait, unfinished);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Ok(state.last.get(name).map(|(_, usage)| *usage))
    }

    /// The last measurement of a volume, if there is one.
    pub fn last(&self, name: &Name) -> Option<DiskUsage> {
        self.shared.lock().last.get(name).map(|(_, usage)| *usage)
    }

    /// Removes a deleted volume. A measurement that is running is discarded, since a new volume may get the same
    /// name.
    pub fn forget(&self, name: &Name) {
        let mut state = self.shared.lock();
        state.last.remove(name);
        state.queue.retain(|(queued, _)| queued != name);
        state.current.take_if(|current| *current == *name);
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
    fn is_pending(&self, name: &Name) -> bool {
        self.current.as_ref() == Some(name) || self.queue.iter().any(|(queued, _)| queued == name)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // Linux keeps a nice value for each thread. Without the right to change it, the priority stays as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while let Some((name, data)) = self.next() {
            // The walk fails when directories are moved meanwhile. The next request then starts a new measurement.
            self.store(name, disk_usage(data.as_fd()).ok());
        }
    }

    fn store(&self, name: Name, usage: Option<DiskUsage>) {
        let mut state = self.lock();
        let forgotten = state.current.take().is_none_or(|current| current != name);
        if let Some(usage) = usage.filter(|_| !forgotten) {
            state.last.insert(name, (Instant::now(), usage));
        }
        drop(state);
        self.measured.notify_all();
    }

    fn next(&self) -> Option<(Name, OwnedFd)> {
        let mut state = self.lock();
        let next = state.queue.pop_front();
        state.current = next.as_ref().map(|(name, _)| name.clone());
        state.running = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        "v".parse().unwrap()
    }

    #[test]
    fn the_measurement_of_a_deleted_volume_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let usage = UsageCache::new(Duration::from_secs(60));
        usage.shared.lock().queue.extend([(name(), open()), (name(), open())]);
        let (measured, _) = usage.shared.next().unwrap();
        usage.forget(&name());
        usage.shared.store(measured, Some(DiskUsage { bytes: 1, inodes: 1 }));
        assert_eq!(usage.last(&name()), None);
        assert!(usage.shared.next().is_none(), "the volume is no longer in the queue");
    }

    #[test]
    fn the_first_measurement_is_waited_for_and_a_recent_one_is_reused() {
        let dir = tempfile::tempdir().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let usage = UsageCache::new(Duration::from_secs(60));
        let first = usage.measure(&name(), open(), Duration::from_secs(10)).unwrap().unwrap();
        std::fs::write(dir.path().join("a"), vec![1; 1 << 20]).unwrap();
        assert_eq!(usage.measure(&name(), open(), Duration::from_secs(10)).unwrap(), Some(first));
        usage.forget(&name());
        let second = usage.measure(&name(), open(), Duration::from_secs(10)).unwrap().unwrap();
        assert!(second.bytes > first.bytes);
    }
}
