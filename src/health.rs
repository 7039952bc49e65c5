//! What the pools are like, for those who ask often and must not hang: probes, metrics, health.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::engine::Engine;
use crate::engine::request::PoolStatus;

/// How long a look may take before the answer of the last one is given.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pools as they were when last looked at. One look at a time: a disk that does not answer holds one thread, not
/// one for each question.
#[derive(Debug)]
pub struct Health {
    engine: Arc<Engine>,
    last: watch::Sender<Arc<[PoolStatus]>>,
    turn: Arc<Semaphore>,
}

impl Health {
    /// Looks for the first time, on this thread.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Self {
        let last = watch::Sender::new(engine.pools().into());
        Self { engine, last, turn: Arc::new(Semaphore::new(1)) }
    }

    /// The pools now, or as they were at the last look that ended.
    pub async fn pools(&self) -> Arc<[PoolStatus]> {
        let mut news = self.last.subscribe();
        if let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() {
            let (engine, last) = (Arc::clone(&self.engine), self.last.clone());
            tokio::task::spawn_blocking(move || {
                last.send_replace(engine.pools().into());
                drop(turn);
            });
        }
        let _ = tokio::time::timeout(PATIENCE, news.changed()).await;
        self.last()
    }

    /// The pools as they were at the last look.
    #[must_use]
    pub fn last(&self) -> Arc<[PoolStatus]> {
        Arc::clone(&self.last.borrow())
    }

    /// Copies under way or waiting for their turn.
    #[must_use]
    pub fn jobs_running(&self) -> usize {
        self.engine.jobs_running()
    }
}

/// Whether these pools serve anybody: one of them is there, or none is to be.
#[must_use]
pub fn ready(pools: &[PoolStatus]) -> bool {
    pools.is_empty() || pools.iter().any(|pool| pool.unavailable.is_none())
}
