//! The disk usage of a pool's volumes, measured by a background thread. A caller waits for the first measurement only, and
//! limits that wait.
//!
//! Volumes are measured in turns, so one that takes long, or whose tenant keeps changing it, delays no other. A measurement
//! that fails is repeated later and later. Only a few that are not complete are kept; the others wait for one of those to
//! end, and are not measured in vain.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::error::{Context as _, Result};
use crate::fs::{DiskUsage, Measurement};
use crate::volume::{Name, PoolName, VolumeId};

/// How long a volume is measured until it is the turn of the next one.
const SLICE: Duration = Duration::from_millis(250);
/// Number of measurements that are kept between their turns, so that open files and memory do not grow with the number of
/// volumes. Any other one that is not complete after its first slice starts again when fewer are kept.
const MAX_STARTED: usize = 4;
/// A measurement that has failed n times is repeated after 2ⁿ times the usual age. This is the largest n.
const MAX_DOUBLINGS: u32 = 6;

/// The last measurement of each volume of a pool, and a thread that runs while the queue is not empty. Clones share both.
#[derive(Debug, Clone)]
pub struct UsageCache {
    age: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pool: PoolName,
    state: Mutex<State>,
    measured: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: HashMap<Name, Last>,
    queue: VecDeque<Task>,
    /// The volume that is being measured.
    current: Option<Name>,
    /// Whether the thread runs.
    running: bool,
}

/// A volume to be measured.
#[derive(Debug)]
struct Task {
    name: Name,
    data: OwnedFd,
    /// What has been measured until now.
    started: Option<Measurement>,
    /// Whether it was not complete and could not be kept. It waits until fewer are kept.
    waits: bool,
}

/// The result of the last measurement of a volume.
#[derive(Debug, Clone)]
struct Last {
    at: Instant,
    /// How often it has failed since the last success.
    failures: u32,
    /// The usage, or why it is unknown.
    result: Result<DiskUsage, String>,
}

impl UsageCache {
    /// Creates an empty cache for the volumes of a pool. A measurement is repeated only when it is older than `age`.
    pub fn new(pool: PoolName, age: Duration) -> Self {
        Self { age, shared: Arc::new(Shared::new(pool)) }
    }

    /// Returns the last measurement of a volume and starts a new one if that is too old. Waits for the first
    /// measurement only; `None` if it was not complete in time or has failed.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be spawned.
    pub fn measure(&self, name: &Name, data: OwnedFd, wait: Duration) -> Result<Option<DiskUsage>> {
        let mut state = self.shared.lock();
        let last = state.last.get(name);
        let known = last.map(|last| last.result.clone().ok());
        if last.is_none_or(|last| last.is_older_than(self.age)) && !state.is_pending(name) {
            // Start the thread first: a volume that stays in the queue without one is never measured.
            self.start_thread(&mut state)?;
            state.queue.push_back(Task { name: name.clone(), data, started: None, waits: false });
        }
        if let Some(known) = known {
            return Ok(known);
        }
        let unfinished = |state: &mut State| !state.last.contains_key(name) && state.is_pending(name);
        let waited = self.shared.measured.wait_timeout_while(state, wait, unfinished);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Ok(state.usage(name))
    }

    /// The last measurement of a volume, if there is one.
    pub fn last(&self, name: &Name) -> Option<DiskUsage> {
        self.shared.lock().usage(name)
    }

    /// Why the usage of a volume is unknown, if its measurement has failed.
    pub fn failure(&self, name: &Name) -> Option<String> {
        self.shared.lock().last.get(name).and_then(|last| last.result.clone().err())
    }

    /// Removes a deleted volume. A measurement that is running is discarded, since a new volume may get the same
    /// name.
    pub fn forget(&self, name: &Name) {
        let mut state = self.shared.lock();
        state.last.remove(name);
        state.queue.retain(|task| task.name != *name);
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

impl Last {
    fn is_older_than(&self, age: Duration) -> bool {
        self.at.elapsed() >= age.saturating_mul(1 << self.failures.min(MAX_DOUBLINGS))
    }
}

impl State {
    fn is_pending(&self, name: &Name) -> bool {
        self.current.as_ref() == Some(name) || self.queue.iter().any(|task| task.name == *name)
    }

    fn usage(&self, name: &Name) -> Option<DiskUsage> {
        self.last.get(name).and_then(|last| last.result.as_ref().ok().copied())
    }

    /// Notes a result. Logs each change between known and unknown.
    fn note(&mut self, volume: VolumeId, result: Result<DiskUsage, String>) {
        let failures = self.last.get(&volume.name).map_or(0, |last| last.failures);
        match &result {
            Err(reason) if failures == 0 => warn!(%volume, reason, "usage is unknown"),
            Ok(_) if failures > 0 => info!(%volume, "usage is known again"),
            Ok(_) | Err(_) => {}
        }
        let failures = if result.is_ok() { 0 } else { failures.saturating_add(1) };
        self.last.insert(volume.name, Last { at: Instant::now(), failures, result });
    }

    /// Whether another measurement can be kept.
    fn has_room(&self) -> bool {
        self.queue.iter().filter(|task| task.started.is_some()).count() < MAX_STARTED
    }

    /// Takes the first volume whose turn it is. Those that wait keep their places, so the first of them is the first that
    /// goes on.
    fn pop(&mut self) -> Option<Task> {
        let has_room = self.has_room();
        let first = self.queue.iter().position(|task| has_room || !task.waits)?;
        self.queue.remove(first)
    }
}

impl Task {
    /// Measures for one slice; `None` if something is left.
    fn run(&mut self, slice: Duration) -> Result<Option<DiskUsage>> {
        let measurement = match &mut self.started {
            Some(started) => started,
            None => self.started.insert(Measurement::new(self.data.as_fd())?),
        };
        measurement.run(slice)
    }
}

impl Shared {
    fn new(pool: PoolName) -> Self {
        Self { pool, state: Mutex::default(), measured: Condvar::new() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // Linux keeps a nice value for each thread. Without the right to change it, the priority stays as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while let Some(mut task) = self.next() {
            let result = task.run(SLICE);
            self.store(task, result);
        }
    }

    /// Stores the result of a slice. A volume that is not complete waits for its next turn.
    fn store(&self, mut task: Task, result: Result<Option<DiskUsage>>) {
        let mut state = self.lock();
        if state.current.take().is_none_or(|current| current != task.name) {
            return; // The volume was forgotten.
        }
        match result.map_err(|error| error.chain()).transpose() {
            Some(result) => state.note(VolumeId { pool: self.pool.clone(), name: task.name }, result),
            None => {
                task.waits = !state.has_room();
                if task.waits {
                    task.started = None;
                }
                state.queue.push_back(task);
            }
        }
        drop(state);
        self.measured.notify_all();
    }

    fn next(&self) -> Option<Task> {
        let mut state = self.lock();
        let next = state.pop();
        state.current = next.as_ref().map(|task| task.name.clone());
        state.running = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    const USAGE: DiskUsage = DiskUsage { bytes: 1, inodes: 1 };

    fn name() -> Name {
        "v".parse().unwrap()
    }

    fn pool() -> PoolName {
        "p".parse().unwrap()
    }

    fn task(name: &str, dir: &tempfile::TempDir) -> Task {
        let data = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        Task { name: name.parse().unwrap(), data, started: None, waits: false }
    }

    #[test]
    fn the_measurement_of_a_deleted_volume_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let usage = UsageCache::new(pool(), Duration::from_secs(60));
        for unfinished in [false, true] {
            usage.shared.lock().queue.extend([task("v", &dir), task("v", &dir)]);
            let measured = usage.shared.next().unwrap();
            usage.forget(&name());
            usage.shared.store(measured, Ok((!unfinished).then_some(USAGE)));
            assert_eq!(usage.last(&name()), None);
            assert!(usage.shared.next().is_none(), "the volume is no longer in the queue");
        }
    }

    #[test]
    fn the_first_measurement_is_waited_for_and_a_recent_one_is_reused() {
        let dir = tempfile::tempdir().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let usage = UsageCache::new(pool(), Duration::from_secs(60));
        let first = usage.measure(&name(), open(), Duration::from_secs(60)).unwrap().unwrap();
        std::fs::write(dir.path().join("a"), vec![1; 1 << 20]).unwrap();
        assert_eq!(usage.measure(&name(), open(), Duration::from_secs(60)).unwrap(), Some(first));
        usage.forget(&name());
        let second = usage.measure(&name(), open(), Duration::from_secs(60)).unwrap().unwrap();
        assert!(second.bytes > first.bytes);
    }

    /// Measures one entry of the next volume, and returns its name and whether its measurement has just begun. A volume
    /// whose name begins with "endless" is never complete.
    fn turn(shared: &Shared) -> (String, bool) {
        let mut task = shared.next().unwrap();
        let (name, begins) = (task.name.as_str().to_owned(), task.started.is_none());
        let result = task.run(Duration::ZERO);
        let endless = name.starts_with("endless");
        shared.store(task, if endless { Ok(None) } else { result });
        (name, begins)
    }

    #[test]
    fn volumes_that_take_long_are_measured_in_turns_and_few_are_kept_open() {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared::new(pool());
        let names = ["1", "2", "3", "4", "5", "6"].map(|number| format!("endless{number}"));
        shared.lock().queue.extend(names.iter().map(|name| task(name, &dir)));
        let is_kept = |name: &String| (name.clone(), false);
        let first: Vec<_> = names.iter().map(|_| turn(&shared)).collect();
        assert_eq!(first, names.clone().map(|name| (name, true)));
        for round in 0..3 {
            let kept: Vec<_> = (0..MAX_STARTED).map(|_| turn(&shared)).collect();
            assert_eq!(kept, names[..MAX_STARTED].iter().map(is_kept).collect::<Vec<_>>(), "round {round}");
            assert!(!shared.lock().has_room());
        }
        shared.lock().queue.push_back(task("small", &dir));
        let round: Vec<_> = (0..=MAX_STARTED).map(|_| turn(&shared)).collect();
        assert!(round.contains(&("small".to_owned(), true)), "{round:?}");
        assert_eq!(shared.lock().usage(&"small".parse().unwrap()).unwrap().inodes, 1);
    }

    #[test]
    fn a_volume_that_was_not_kept_is_measured_when_an_endless_one_ends() {
        let (empty, large) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        (0..20).for_each(|number| std::fs::write(large.path().join(number.to_string()), "").unwrap());
        let shared = Shared::new(pool());
        let names = ["endless1", "endless2", "endless3", "endless4"];
        shared.lock().queue.extend(names.map(|name| task(name, &empty)));
        shared.lock().queue.extend(["large1", "large2"].map(|name| task(name, &large)));
        let turns: Vec<_> = (0..100).map(|_| turn(&shared)).collect();
        let begun = turns.iter().filter(|(name, _)| name.starts_with("large")).count();
        assert_eq!(begun, 2, "nothing is measured in vain");
        let ends = shared.next().unwrap();
        shared.store(ends, Err(Error::new(Kind::Busy, "endless")));
        let turns: Vec<_> = (0..400).map(|_| turn(&shared)).collect();
        let begun = turns.iter().filter(|(name, begins)| *begins && name.starts_with("large")).count();
        assert_eq!(begun, 2, "each goes on where it was");
        for name in ["large1", "large2"] {
            assert_eq!(shared.lock().usage(&name.parse().unwrap()).unwrap().inodes, 21, "{name}");
        }
    }

    #[test]
    fn a_measurement_that_fails_is_reported_and_repeated_later_and_later() {
        let dir = tempfile::tempdir().unwrap();
        let usage = UsageCache::new(pool(), Duration::from_secs(60));
        let measure = |result: Result<Option<DiskUsage>>| {
            usage.shared.lock().current = Some(name());
            usage.shared.store(task("v", &dir), result);
        };
        let is_older = |age| usage.shared.lock().last[&name()].is_older_than(age);
        measure(Ok(Some(USAGE)));
        for _ in 0..3 {
            measure(Err(Error::new(Kind::Busy, "endless")));
        }
        assert_eq!((usage.last(&name()), usage.failure(&name())), (None, Some("endless".to_owned())));
        let data = task("v", &dir).data;
        assert_eq!(usage.measure(&name(), data, Duration::from_secs(60)).unwrap(), None);
        assert!(!usage.shared.lock().is_pending(&name()), "it is not repeated at once");
        usage.shared.lock().last.get_mut(&name()).unwrap().at -= Duration::from_secs(8);
        assert!(is_older(Duration::from_secs(1)) && !is_older(Duration::from_millis(1500)));
        measure(Ok(Some(USAGE)));
        assert_eq!((usage.last(&name()), usage.failure(&name())), (Some(USAGE), None));
    }
}
