//! The calls of one lane: how many run, and whether they still make progress.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Kind, Result};
use crate::volume::Timestamp;

/// Maximum number of concurrent calls of a lane.
pub(super) const MAX_CALLS: usize = 64;
/// Number of calls beyond those, for a lane whose calls are all overdue: a pool that works again must be noticed, and must
/// be usable, even if the calls that hang never end. While it is stalled, these are trials at growing intervals, and there
/// are enough for a year.
const SPARE_CALLS: usize = 24;
/// Maximum number of threads that a lane occupies.
pub(super) const MAX_THREADS: usize = MAX_CALLS + SPARE_CALLS;

/// The calls of a lane.
#[derive(Debug)]
pub(super) struct Calls {
    /// What they wait for.
    subject: String,
    /// What to do when it does not respond.
    to_check: &'static str,
    /// Time after which a running call is overdue.
    timeout: Duration,
    /// Number of permits.
    most: usize,
    permits: Arc<Semaphore>,
    /// Used only while overdue calls hold all the permits.
    spares: Arc<Semaphore>,
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug)]
struct State {
    /// Number of permits of the lane.
    most: usize,
    /// The running calls, in the order of their start and so of their deadlines.
    running: BTreeMap<u64, Started>,
    next: u64,
    /// When a call last completed.
    completed: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Started {
    at: Timestamp,
    deadline: Instant,
}

/// A call that was let in; dropped at its end.
#[derive(Debug)]
pub(super) struct Running {
    calls: Arc<Calls>,
    number: u64,
    is_progress: bool,
    _permit: OwnedSemaphorePermit,
}

impl Calls {
    pub(super) fn new(subject: String, to_check: &'static str, timeout: Duration) -> Self {
        Self::with_permits(subject, to_check, timeout, MAX_CALLS)
    }

    /// The calls of a lane with this number of permits.
    pub(super) fn with_permits(
        subject: String,
        to_check: &'static str,
        timeout: Duration,
        most: usize,
    ) -> Self {
        Self {
            subject,
            to_check,
            timeout,
            most,
            permits: Arc::new(Semaphore::new(most)),
            spares: Arc::new(Semaphore::new(SPARE_CALLS)),
            state: Mutex::new(State::new(most)),
            ended: Notify::new(),
        }
    }

    /// Lets a call in, when there is a permit. While the lane is stalled, the call is refused at once unless it is the
    /// trial.
    pub(super) async fn enter(self: &Arc<Self>, deadline: Instant) -> Result<Running> {
        let asked = Instant::now();
        let all_overdue = self.lock().overdue(asked) >= self.most;
        let permits = if all_overdue { &self.spares } else { &self.permits };
        let permit = match Arc::clone(permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.refuse_while_stalled()?;
                let permit = timeout_at(deadline, Arc::clone(permits).acquire_owned()).await;
                permit.ok().and_then(std::result::Result::ok).ok_or_else(|| self.overdue(asked))?
            }
        };
        let now = Instant::now();
        // In a statement of its own: the error locks the state again.
        let number = self.lock().start(now, now + self.timeout);
        let number = number.ok_or_else(|| self.unresponsive())?;
        Ok(Running { calls: Arc::clone(self), number, is_progress: true, _permit: permit })
    }

    /// Fails while the lane is stalled.
    pub(super) fn refuse_while_stalled(&self) -> Result<()> {
        if self.stalled_since().is_some() { Err(self.unresponsive()) } else { Ok(()) }
    }

    /// The start of the first call that stalls the lane, if one does.
    pub(super) fn stalled_since(&self) -> Option<Timestamp> {
        self.lock().stall(Instant::now()).map(|started| started.at)
    }

    /// Notes a sign of life other than a call, which outweighs one overdue call.
    pub(super) fn note_response(&self) {
        let (mut state, now) = (self.lock(), Instant::now());
        if state.overdue(now) == 1 {
            state.completed = Some(now);
        }
    }

    /// The error for a call that was requested at this time and is not complete at its deadline.
    pub(super) fn overdue(&self, requested: Instant) -> Error {
        if self.lock().completed.is_none_or(|completed| completed < requested) {
            return self.unresponsive();
        }
        let text = format!(
            "{} did not complete the call within {} s; if it was started, it continues: retry",
            self.subject,
            self.timeout.as_secs(),
        );
        Error::new(Kind::Unresponsive, text)
    }

    fn unresponsive(&self) -> Error {
        let state = self.lock();
        let waiting = match state.running.len() {
            1 => "1 call has".to_owned(),
            number => format!("{number} calls have"),
        };
        let since = state.running.values().next().map_or_else(Timestamp::now, |started| started.at);
        drop(state);
        let Self { subject, to_check, .. } = self;
        let text = format!("{subject} does not respond: {waiting} waited since {since:.0}; {to_check}");
        Error::new(Kind::Unresponsive, text)
    }

    /// Waits until no call runs that is not overdue.
    pub(super) async fn wait_until_idle(&self) {
        loop {
            let ended = self.ended.notified();
            let last = self.lock().running.values().next_back().map(|started| started.deadline);
            match last {
                Some(deadline) if deadline > Instant::now() => {
                    let _ = timeout_at(deadline, ended).await;
                }
                _ => return,
            }
        }
    }

    /// Number of calls that could be let in now.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.permits.available_permits()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(most: usize) -> Self {
        Self { most, running: BTreeMap::new(), next: 0, completed: None }
    }

    /// Registers a call. `None` if the lane is stalled and another call is being tried: the first one that completes
    /// ends the stall.
    fn start(&mut self, now: Instant, deadline: Instant) -> Option<u64> {
        let is_tried =
            self.running.values().next_back().is_some_and(|last| now < last.deadline + self.pause(*last));
        if is_tried && self.stall(now).is_some() {
            return None;
        }
        self.next += 1;
        self.running.insert(self.next, Started { at: Timestamp::now(), deadline });
        Some(self.next)
    }

    /// How long no call is tried after the last one became overdue. Each trial on a spare permit occupies a thread, perhaps
    /// for ever, so it waits as long as all calls before it.
    fn pause(&self, last: Started) -> Duration {
        let first = self.running.values().next().filter(|_| self.running.len() >= self.most);
        first.map_or(Duration::ZERO, |first| last.deadline - first.deadline)
    }

    /// Number of calls that are overdue.
    fn overdue(&self, now: Instant) -> usize {
        self.running.values().filter(|started| started.deadline <= now).count()
    }

    /// The first call that is overdue and since whose deadline no call has completed.
    fn stall(&self, now: Instant) -> Option<Started> {
        let is_unanswered =
            |started: &Started| self.completed.is_none_or(|completed| completed < started.deadline);
        let first = self.running.values().copied().find(is_unanswered);
        first.filter(|started| started.deadline <= now)
    }

    fn end(&mut self, number: u64, now: Instant, is_progress: bool) {
        self.running.remove(&number);
        if is_progress {
            self.completed = Some(now);
        }
    }
}

impl Running {
    /// Notes the result. A call that only waited for the lock of another one says nothing about the disk.
    pub(super) fn set_result<T>(&mut self, result: &Result<T>) {
        self.is_progress = !result.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
    }

    /// Notes that the call was not made.
    pub(super) fn note_no_progress(&mut self) {
        self.is_progress = false;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.calls.lock().end(self.number, Instant::now(), self.is_progress);
        self.calls.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_lane_is_stalled_from_the_deadline_of_a_call_until_another_completes() {
        let (mut state, start) = (State::new(MAX_CALLS), Instant::now());
        let slow = state.start(start, start + SECOND).unwrap();
        let other = state.start(start, start + SECOND * 2).unwrap();
        assert!(state.stall(start).is_none() && state.stall(start + SECOND).is_some());
        state.end(other, start + SECOND * 3, true);
        assert!(state.stall(start + SECOND * 4).is_none(), "one slow call does not stall a lane that works");
        state.end(slow, start + SECOND * 5, true);
        assert!(state.stall(start + SECOND * 6).is_none());
    }

    #[test]
    fn a_call_that_only_waited_for_a_lock_does_not_end_a_stall() {
        let (mut state, start) = (State::new(MAX_CALLS), Instant::now());
        state.start(start, start + SECOND).unwrap();
        let busy = state.start(start, start + SECOND).unwrap();
        state.end(busy, start + SECOND * 2, false);
        assert!(state.stall(start + SECOND * 2).is_some());
    }

    #[test]
    fn one_call_at_a_time_is_tried_while_the_lane_is_stalled() {
        let (mut state, start) = (State::new(MAX_CALLS), Instant::now());
        state.start(start, start + SECOND).unwrap();
        let stalled = start + SECOND * 2;
        let trial = state.start(stalled, stalled + SECOND).unwrap();
        assert_eq!(state.start(stalled, stalled + SECOND), None);
        assert!(state.start(stalled + SECOND, stalled + SECOND * 2).is_some(), "the trial is overdue, too");
        state.end(trial, stalled + SECOND, true);
        assert!(state.start(stalled + SECOND, stalled + SECOND * 2).is_some());
    }
    #[tokio::test]
    async fn a_second_trial_is_refused_at_once() {
        let calls = Arc::new(Calls::new("pool p".to_owned(), "check its disk", SECOND / 10));
        let enter = || calls.enter(Instant::now() + SECOND);
        let _hung = enter().await.unwrap();
        tokio::time::sleep(SECOND / 10).await;
        let _trial = enter().await.unwrap();
        assert_eq!(enter().await.unwrap_err().kind(), Kind::Unresponsive);
    }

    #[test]
    fn trials_beyond_the_permits_wait_longer_each_time() {
        let (mut state, start) = (State::new(MAX_CALLS), Instant::now());
        for _ in 0..MAX_CALLS {
            state.start(start, start + SECOND).unwrap();
        }
        let mut tried = Vec::new();
        for second in 1..100 {
            let now = start + SECOND * second;
            if state.start(now, now + SECOND).is_some() {
                tried.push(second);
            }
        }
        assert_eq!(tried, [1, 3, 7, 15, 31, 63]);
    }

    #[tokio::test]
    async fn a_lane_whose_calls_never_end_is_used_again_when_the_pool_works() {
        let timeout = SECOND / 5;
        let calls = Arc::new(Calls::new("pool p".to_owned(), "check its disk", timeout));
        let enter = || calls.enter(Instant::now() + timeout / 10);
        let mut hung = Vec::new();
        for _ in 0..MAX_CALLS {
            hung.push(enter().await.unwrap());
        }
        assert!(enter().await.is_err(), "there is no permit, and the calls are not overdue yet");
        tokio::time::sleep(timeout).await;
        hung.push(enter().await.unwrap());
        assert!(enter().await.is_err(), "one trial at a time");
        tokio::time::sleep(timeout * 4).await;
        drop(enter().await.unwrap());
        assert_eq!(calls.stalled_since(), None, "a trial has completed");
        let used = [enter().await.unwrap(), enter().await.unwrap()];
        drop((used, hung));
        assert_eq!((calls.free(), calls.spares.available_permits()), (MAX_CALLS, SPARE_CALLS));
    }
}
