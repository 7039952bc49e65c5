//! What volumes take, measured by a walk in the background: one volume at a time, and never within a call for longer
//! than the caller wants to wait.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context as _, Result};
use crate::fs::{DiskUsage, disk_usage};
use crate::volume::VolumeId;

/// The last measurements, and the thread that makes them while there is something to measure.
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
    queue: VecDeque<(VolumeId, OwnedFd)>,
    current: Option<VolumeId>,
    working: bool,
}

impl UsageCache {
    /// Measurements younger than `age` are not made again.
    pub fn new(age: Duration) -> Self {
        Self { age, shared: Arc::default() }
    }

    /// The last measurement, if there is one; begins a new one when that is old, and waits for the first.
    ///
    /// # Errors
    /// What the kernel says when there can be no more threads.
    pub fn measure(&self, id: &VolumeId, data: OwnedFd, wait: Duration) -> Result<Option<DiskUsage>> {
        let mut state = self.shared.lock();
        let last = state.last.get(id).copied();
        if last.is_none_or(|(when, _)| when.elapsed() >= self.age) && !state.is_waiting(id) {
            state.queue.push_back((id.clone(), data));
            self.work(&mut state)?;
        }
        if let Some((_, usage)) = last {
            return Ok(Some(usage));
        }
        let missing = |state: &mut State| !state.last.contains_key(id) && state.is_waiting(id);
        let waited = self.shared.measured.wait_timeout_while(state, wait, missing);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Ok(state.last.get(id).map(|(_, usage)| *usage))
    }

    /// The last measurement of a volume.
    pub fn last(&self, id: &VolumeId) -> Option<DiskUsage> {
        self.shared.lock().last.get(id).map(|(_, usage)| *usage)
    }

    /// The volume is gone: what is measured of it just now is nobody's, or another one's of this name.
    pub fn forget(&self, id: &VolumeId) {
        let mut state = self.shared.lock();
        state.last.remove(id);
        state.queue.retain(|(queued, _)| queued != id);
        state.current.take_if(|current| *current == *id);
        drop(state);
        self.shared.measured.notify_all();
    }

    fn work(&self, state: &mut State) -> Result<()> {
        if state.working {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        thread::Builder::new()
            .name("usage".to_owned())
            .spawn(move || shared.run())
            .context(|| "start a measurement")?;
        state.working = true;
        Ok(())
    }
}

impl State {
    fn is_waiting(&self, id: &VolumeId) -> bool {
        self.current.as_ref() == Some(id) || self.queue.iter().any(|(queued, _)| queued == id)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while let Some((id, data)) = self.next() {
            // A tree that is being torn down is measured again when somebody asks again.
            self.store(id, disk_usage(data.as_fd()).ok());
        }
    }

    fn store(&self, id: VolumeId, usage: Option<DiskUsage>) {
        let mut state = self.lock();
        let is_there = state.current.take().is_some_and(|current| current == id);
        if let Some(usage) = usage.filter(|_| is_there) {
            state.last.insert(id, (Instant::now(), usage));
        }
        drop(state);
        self.measured.notify_all();
    }

    fn next(&self) -> Option<(VolumeId, OwnedFd)> {
        let mut state = self.lock();
        let next = state.queue.pop_front();
        state.current = next.as_ref().map(|(id, _)| id.clone());
        state.working = next.is_some();
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
    fn what_was_measured_of_a_volume_that_has_gone_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let usage = UsageCache::new(Duration::from_secs(60));
        usage.shared.lock().queue.extend([(id(), open()), (id(), open())]);
        let (measured, _) = usage.shared.next().unwrap();
        usage.forget(&id());
        usage.shared.store(measured, Some(DiskUsage { bytes: 1, inodes: 1 }));
        assert_eq!(usage.last(&id()), None);
        assert!(usage.shared.next().is_none(), "and it is not measured again");
    }

    #[test]
    fn the_first_is_waited_for_and_a_young_one_is_not_made_again() {
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
