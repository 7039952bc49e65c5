//! The status of the pools for callers that poll and must not hang: probes, metrics, health.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::engine::Engine;
use crate::engine::request::PoolStatus;

/// How long a caller waits for a new status before it gets the latest one.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The latest status of the pools. Only one refresh runs at a time, so a disk that hangs blocks one thread and not one
/// for each call.
#[derive(Debug)]
pub struct Health {
    engine: Arc<Engine>,
    latest: watch::Sender<Arc<[PoolStatus]>>,
    refresh: Arc<Semaphore>,
}

impl Health {
    /// Reads the first status, on the calling thread.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Self {
        let latest = watch::Sender::new(engine.pools().into());
        Self { engine, latest, refresh: Arc::new(Semaphore::new(1)) }
    }

    /// Returns the current status, or the latest one when the pools do not respond in time.
    pub async fn pools(&self) -> Arc<[PoolStatus]> {
        let mut updates = self.latest.subscribe();
        if let Ok(permit) = Arc::clone(&self.refresh).try_acquire_owned() {
            let (engine, latest) = (Arc::clone(&self.engine), self.latest.clone());
            tokio::task::spawn_blocking(move || {
                latest.send_replace(engine.pools().into());
                drop(permit);
            });
        }
        let _ = tokio::time::timeout(TIMEOUT, updates.changed()).await;
        self.latest()
    }

    /// Returns the latest status without a refresh.
    #[must_use]
    pub fn latest(&self) -> Arc<[PoolStatus]> {
        Arc::clone(&self.latest.borrow())
    }

    /// Number of copies that are running or waiting.
    #[must_use]
    pub fn active_jobs(&self) -> usize {
        self.engine.active_jobs()
    }
}

/// Reports whether this process is ready: at least one pool is available, or no pools are configured.
#[must_use]
pub fn is_ready(pools: &[PoolStatus]) -> bool {
    pools.is_empty() || pools.iter().any(|pool| pool.unavailable.is_none())
}
