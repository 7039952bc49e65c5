//! The order in which waiting copies get their turns. Without threads.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::{Job, JobKey};
use crate::error::{Error, Kind, Result};
use crate::volume::{PoolName, Source};

/// The copies from one pool to another one, or within one. A copy that hangs takes turns of its own lane only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LaneKey {
    from: PoolName,
    to: PoolName,
}

impl LaneKey {
    pub(super) fn new(from: &Source, key: &JobKey) -> Self {
        Self { from: from.id().pool.clone(), to: key.id().pool.clone() }
    }
}

type Work = Box<dyn FnOnce(&Job) -> Result<()> + Send>;

/// A copy that waits for its turn: a closure, without a thread.
pub(super) struct Waiting {
    pub(super) key: JobKey,
    pub(super) job: Arc<Job>,
    pub(super) work: Work,
}

impl Waiting {
    /// Ends the job without running it.
    pub(super) fn cancel(self) {
        // Release what the closure holds before the end is announced.
        drop(self.work);
        self.job.end(Err(Error::new(
            Kind::Busy,
            "cancelled, because its object was deleted or orlop stops: retry",
        )));
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("key", &self.key).field("job", &self.job).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Lane {
    /// First come, first served, except for the sources that have turns.
    waiting: VecDeque<Waiting>,
    /// The source of each running copy.
    running: Vec<Source>,
    threads: usize,
}

/// All lanes with copies that wait or run.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<LaneKey, Lane>,
}

impl Lanes {
    /// Adds a copy; reports the number of threads that its lane has.
    pub(super) fn push(&mut self, waiting: Waiting) -> usize {
        let key = LaneKey::new(&waiting.job.from, &waiting.key);
        let lane = self.lanes.entry(key).or_default();
        lane.waiting.push_back(waiting);
        lane.threads
    }

    /// Counts a thread that was started for a lane. It calls [`Lanes::next`] until that returns `None`.
    pub(super) fn add_thread(&mut self, key: LaneKey) {
        self.lanes.entry(key).or_default().threads += 1;
    }

    /// Gives the turn of a thread to the next copy: to one whose source has the fewest turns, and of these to the one that
    /// has waited longest. `None` ends the thread.
    pub(super) fn next(&mut self, key: &LaneKey) -> Option<Waiting> {
        let lane = self.lanes.get_mut(key)?;
        let turns = |source: &Source| lane.running.iter().filter(|running| *running == source).count();
        let first = lane.waiting.iter().enumerate().min_by_key(|(_, waiting)| turns(&waiting.job.from));
        let first = first.map(|(at, _)| at);
        let next = first.and_then(|at| lane.waiting.remove(at));
        match &next {
            Some(next) => lane.running.push(next.job.from.clone()),
            None => lane.threads -= 1,
        }
        self.drop_if_empty(key);
        next
    }

    /// Returns the turn of a copy that has ended.
    pub(super) fn ended(&mut self, key: &LaneKey, source: &Source) {
        if let Some(lane) = self.lanes.get_mut(key)
            && let Some(at) = lane.running.iter().position(|running| running == source)
        {
            lane.running.swap_remove(at);
        }
    }

    /// Removes a copy if it still waits.
    pub(super) fn remove(&mut self, job: &Arc<Job>, key: &JobKey) -> Option<Waiting> {
        let lane_key = LaneKey::new(&job.from, key);
        let lane = self.lanes.get_mut(&lane_key)?;
        let at = lane.waiting.iter().position(|waiting| Arc::ptr_eq(&waiting.job, job))?;
        let removed = lane.waiting.remove(at);
        self.drop_if_empty(&lane_key);
        removed
    }

    /// Removes all copies that still wait.
    pub(super) fn clear(&mut self) -> Vec<Waiting> {
        let all = self.lanes.values_mut().flat_map(|lane| lane.waiting.drain(..)).collect();
        self.lanes.retain(|_, lane| lane.threads > 0);
        all
    }

    fn drop_if_empty(&mut self, key: &LaneKey) {
        if self.lanes.get(key).is_some_and(|lane| lane.waiting.is_empty() && lane.threads == 0) {
            self.lanes.remove(key);
        }
    }
}
