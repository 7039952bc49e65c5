//! The only bridge from the async frontends to the synchronous engine.
//!
//! Each pool has lanes of its own, so that a pool whose disk does not respond blocks its own callers and no others.

mod calls;
mod lane;
mod listing;
mod names;
mod shares;
mod workers;

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use self::calls::{Calls, MAX_THREADS};
use self::shares::ServerLanes;
use crate::engine::Engine;
use crate::engine::request::PoolSettings;
use crate::error::{Error, Kind, Result};
use crate::volume::{PoolName, Timestamp};
use crate::worker::Group;

pub use lane::Lane;

/// Runs engine calls on threads of their own.
#[derive(Debug, Clone)]
pub struct Dispatch {
    engine: Arc<Engine>,
    timeout: Duration,
    lanes: Arc<HashMap<Lane, Arc<Calls>>>,
    /// The lanes of the servers of static shares.
    servers: Arc<ServerLanes>,
    /// All pools, in the order of the settings.
    pools: Arc<[PoolSettings]>,
    /// The pools whose calls run in worker processes.
    groups: Arc<[Arc<Group>]>,
}

impl Dispatch {
    /// Creates the lanes of an engine's pools.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Self {
        let pools = engine.pool_settings().cloned().collect();
        Self::with_groups(engine, pools, Vec::new())
    }

    /// Creates the lanes of all pools, in the order of the settings: those of the engine, and those of the groups, whose
    /// calls run in worker processes.
    #[must_use]
    pub fn with_groups(engine: Arc<Engine>, pools: Vec<PoolSettings>, groups: Vec<Arc<Group>>) -> Self {
        let timeout = engine.tuning().call_timeout;
        let names: Vec<_> = pools.iter().map(|pool| pool.name.clone()).collect();
        let lanes = lane::all(&names).into_iter();
        let calls = |lane: &Lane| Arc::new(Calls::new(lane.subject(), lane.to_check(&pools), timeout));
        let lanes = lanes.map(|lane| (lane.clone(), calls(&lane)));
        let lanes = Arc::new(lanes.collect());
        let servers = Arc::default();
        Self { timeout, lanes, servers, engine, pools: pools.into(), groups: groups.into() }
    }

    /// The most threads that the calls of this many pools can occupy.
    #[must_use]
    pub fn max_threads(pools: usize) -> usize {
        lane::count(pools).saturating_mul(MAX_THREADS).saturating_add(shares::MAX_THREADS)
    }

    /// The engine whose calls are run.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Runs one engine call on a thread of its own and waits for it at most for [`Tuning::call_timeout`].
    ///
    /// The task is detached and owns everything that it needs. When the caller disconnects or its time is over, the call
    /// continues to its end and keeps its permit and its locks, where a retry finds them.
    ///
    /// # Errors
    /// The error of the call; `Unresponsive` when it does not complete in time, and at once while the lane is stalled;
    /// `Internal` when it panics.
    ///
    /// [`Tuning::call_timeout`]: crate::engine::request::Tuning::call_timeout
    pub async fn run<T: Send + 'static>(
        &self,
        lane: &Lane,
        call: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let started = Instant::now();
        let deadline = started + self.timeout;
        self.refuse_while_a_pool_is_stalled(lane)?;
        let calls = self.calls(lane)?;
        let mut running = calls.enter(deadline).await?;
        let thread = self.servers.thread(lane, deadline).await.inspect_err(|_| running.note_no_progress())?;
        let (engine, span) = (Arc::clone(&self.engine), Span::current());
        let task = tokio::task::spawn_blocking(move || {
            let result = span.in_scope(|| call(&engine));
            running.set_result(&result);
            drop(thread);
            result
        });
        match timeout_at(deadline, task).await {
            Ok(ended) => ended.unwrap_or_else(|error| Err(task_failed(error))),
            Err(_) => Err(calls.overdue(started)),
        }
    }

    /// The time since which a pool's calls have waited, if its lane or its worker is stalled.
    #[must_use]
    pub fn stalled_since(&self, pool: &PoolName) -> Option<Timestamp> {
        let of_worker = self.group_of(pool).and_then(|group| group.stalled_since());
        self.stalled_lane_since(pool).into_iter().chain(of_worker).min()
    }

    fn stalled_lane_since(&self, pool: &PoolName) -> Option<Timestamp> {
        self.lanes.get(&Lane::Pool(pool.clone()))?.stalled_since()
    }

    /// Notes that the status of a pool was read. This ends a stall of one call, which may just be slow. Several calls that
    /// hang outweigh it, since a filesystem can have its status in memory while its disk is dead.
    pub fn note_response(&self, pool: &PoolName) {
        if let Some(calls) = self.lanes.get(&Lane::Pool(pool.clone())) {
            calls.note_response();
        }
    }

    /// Waits until no call runs. Calls that do not respond in time are not waited for.
    pub async fn wait_until_idle(&self) {
        for calls in self.lanes.values().cloned().chain(self.servers.all()) {
            calls.wait_until_idle().await;
        }
    }

    /// A pool that is not configured has no lane. Its calls fail in the engine, with a better message.
    fn calls(&self, lane: &Lane) -> Result<Arc<Calls>> {
        if let Lane::Server(server) = lane {
            return Ok(self.servers.calls(server, lane, self.timeout));
        }
        let calls = self.lanes.get(lane).or_else(|| self.lanes.get(&Lane::NoPool));
        calls.cloned().ok_or_else(|| Error::new(Kind::Internal, format!("there is no lane {lane:?}")))
    }

    /// A call for several pools would only wait for the stalled one.
    fn refuse_while_a_pool_is_stalled(&self, lane: &Lane) -> Result<()> {
        let is_needed = |of: &Lane| matches!(of, Lane::Pool(pool) if lane.needs(pool));
        let mut pools = self.lanes.iter().filter(|(of, _)| is_needed(of));
        pools.try_for_each(|(_, calls)| calls.refuse_while_stalled())
    }
}

/// The error of a call that panicked, or was cancelled because orlop is stopping.
fn task_failed(error: JoinError) -> Error {
    match error.try_into_panic() {
        Ok(panic) => {
            let text = format!("a bug in orlop caused a panic: {}", panic_message(&*panic));
            Error::new(Kind::Internal, text)
        }
        Err(cancelled) => Error::caused(Kind::Unavailable, "orlop is stopping", cancelled),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::calls::MAX_CALLS;
    use super::*;
    use crate::engine::request::Tuning;

    const TIMEOUT: Duration = Duration::from_secs(1);

    /// The lanes of the pools `p`, `q` and `r`, which are not available.
    fn dispatch() -> Dispatch {
        let pool = |name: &str| PoolSettings::new(name.parse().unwrap(), "/nonexistent".into());
        let tuning = Tuning { call_timeout: TIMEOUT, ..Tuning::default() };
        Dispatch::new(Arc::new(Engine::open(["p", "q", "r"].map(pool).into(), tuning).unwrap()))
    }

    fn lane(pool: &str) -> Lane {
        Lane::Pool(pool.parse().unwrap())
    }

    fn copy(from: &str, to: &str) -> Lane {
        Lane::Copy { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    /// A call that hangs until the sender is dropped.
    fn hang() -> (mpsc::Sender<()>, impl FnOnce(&Engine) -> Result<()> + Send) {
        let (resume, resumed) = mpsc::channel();
        let call = move |_: &Engine| {
            let _ = resumed.recv();
            Ok(())
        };
        (resume, call)
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let error = dispatch().run::<()>(&lane("p"), |_| panic!("bad {}", "index")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert_eq!(error.chain(), "a bug in orlop caused a panic: bad index");
    }

    #[tokio::test]
    async fn an_engine_call_and_its_permit_outlive_the_caller() {
        let (dispatch, lane) = (dispatch(), lane("p"));
        let (resume, call) = hang();
        let (finish, finished) = mpsc::channel();
        let call = dispatch.run(&lane, move |engine| {
            call(engine)?;
            finish.send(()).map_err(|_| Error::new(Kind::Internal, "the test has ended"))
        });
        assert!(tokio::time::timeout(TIMEOUT / 20, call).await.is_err(), "the call waits");
        assert_eq!(dispatch.lanes[&lane].free(), MAX_CALLS - 1);
        drop(resume);
        finished.recv_timeout(Duration::from_secs(5)).unwrap();
    }

    #[tokio::test]
    async fn a_pool_that_hangs_refuses_its_callers_and_no_others_until_a_call_completes() {
        let dispatch = dispatch();
        let (mut resumes, mut waiting) = (Vec::new(), Vec::new());
        for _ in 0..80 {
            let ((resume, call), dispatch) = (hang(), dispatch.clone());
            resumes.push(resume);
            waiting.push(tokio::spawn(async move { dispatch.run(&lane("p"), call).await }));
        }
        for caller in waiting {
            let error = caller.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), Kind::Unresponsive);
            assert!(error.chain().starts_with("pool p does not respond: "), "{}", error.chain());
        }
        assert_eq!(dispatch.lanes[&lane("p")].free(), 0);
        assert!(dispatch.stalled_since(&"p".parse().unwrap()).is_some());
        // The trial, which hangs, too.
        tokio::time::sleep(TIMEOUT / 4).await;
        let ((resume, call), trying) = (hang(), dispatch.clone());
        resumes.push(resume);
        tokio::spawn(async move { trying.run(&lane("p"), call).await });
        tokio::task::yield_now().await;
        let refused = |lane| {
            let (dispatch, started) = (dispatch.clone(), Instant::now());
            async move {
                let result = dispatch.run(&lane, |_| Ok(())).await;
                assert!(started.elapsed() < TIMEOUT / 2, "it waited");
                result.is_err_and(|error| error.kind() == Kind::Unresponsive)
            }
        };
        assert!(refused(lane("p")).await && refused(Lane::AllPools).await);
        assert!(refused(copy("p", "q")).await && refused(copy("q", "p")).await);
        assert!(!refused(copy("q", "r")).await, "neither pool is stalled");
        assert!(!refused(lane("q")).await && !refused(Lane::Unmount("p".parse().unwrap())).await);
        dispatch.wait_until_idle().await;
        drop(resumes);
        while dispatch.lanes[&lane("p")].free() < MAX_CALLS {
            tokio::task::yield_now().await;
        }
        assert!(dispatch.stalled_since(&"p".parse().unwrap()).is_none());
        assert!(!refused(lane("p")).await && !refused(Lane::AllPools).await);
    }

    #[tokio::test]
    async fn a_pool_without_a_lane_gets_the_error_of_the_engine() {
        let id = "unknown/v".parse().unwrap();
        let error = dispatch().run(&lane("unknown"), move |engine| engine.get(&id)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
    }

    #[tokio::test]
    async fn a_copy_that_hangs_blocks_copies_between_its_two_pools_only() {
        let dispatch = dispatch();
        let (resume, call) = hang();
        assert!(dispatch.run(&copy("p", "q"), call).await.is_err());
        for lane in [lane("p"), lane("q"), copy("q", "p"), copy("r", "q"), Lane::AllPools] {
            dispatch.run(&lane, |_| Ok(())).await.unwrap();
        }
        assert!(dispatch.lanes[&copy("p", "q")].stalled_since().is_some());
        drop(resume);
    }

    #[tokio::test]
    async fn one_slow_call_does_not_stall_a_pool_whose_status_can_be_read() {
        let (dispatch, pool) = (dispatch(), "p".parse().unwrap());
        let (_resume, call) = hang();
        assert!(dispatch.run(&lane("p"), call).await.is_err());
        assert!(dispatch.stalled_since(&pool).is_some());
        dispatch.note_response(&pool);
        assert!(dispatch.stalled_since(&pool).is_none());
        dispatch.run(&Lane::AllPools, |_| Ok(())).await.unwrap();
        let (_resume, call) = hang();
        assert!(dispatch.run(&lane("p"), call).await.is_err());
        dispatch.note_response(&pool);
        assert!(dispatch.stalled_since(&pool).is_some(), "two calls that hang are no accident");
    }

    #[test]
    fn the_number_of_lanes_is_known() {
        assert_eq!(dispatch().lanes.len(), lane::count(3));
    }

    #[test]
    fn a_copy_from_another_pool_waits_for_both() {
        use crate::engine::request::CreateVolume;
        use crate::volume::Source;
        let dispatch = dispatch();
        let from = |id: &str| {
            let source = Some(Source::Volume(id.parse().unwrap()));
            dispatch.lane_of_create(&CreateVolume { source, ..CreateVolume::default() })
        };
        assert_eq!(dispatch.lane_of_create(&CreateVolume::default()), lane("p"), "the default pool");
        assert_eq!((from("p/v"), from("q/v")), (lane("p"), copy("q", "p")));
        assert_eq!(from("unknown/v"), lane("p"));
    }
}
