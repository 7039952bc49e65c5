//! Calls for static shares, whose servers are known only when a request names them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::calls::Calls;
use super::{Dispatch, Lane};
use crate::engine::call::{GetServerOfShare, GetUsageOfShare, MountShare, UnmountShare};
use crate::engine::request::Usage;
use crate::engine::share::PublishShare;
use crate::error::{Error, Kind, Result};
use crate::volume::VolumeId;

/// Maximum number of concurrent calls for one server. With the spare ones, it occupies at most 40 threads.
const CALLS_OF_SERVER: usize = 16;
/// Maximum number of threads that the calls for all servers occupy together. The threads of the pools are others.
pub(super) const MAX_THREADS: usize = 640;

/// The lanes of servers: a server that does not respond delays the calls for no other one.
#[derive(Debug)]
pub(super) struct ServerLanes {
    lanes: Mutex<HashMap<String, Arc<Calls>>>,
    threads: Arc<Semaphore>,
}

impl Default for ServerLanes {
    fn default() -> Self {
        Self { lanes: Mutex::default(), threads: Arc::new(Semaphore::new(MAX_THREADS)) }
    }
}

impl ServerLanes {
    pub(super) fn calls(&self, server: &str, lane: &Lane, timeout: Duration) -> Arc<Calls> {
        let new =
            || Arc::new(Calls::with_permits(lane.subject(), lane.to_check(&[]), timeout, CALLS_OF_SERVER));
        Arc::clone(self.lock().entry(server.to_owned()).or_insert_with(new))
    }

    /// A thread for a call, if its lane is that of a server: a share of all. The call keeps it to its end.
    pub(super) async fn thread(
        &self,
        lane: &Lane,
        deadline: Instant,
    ) -> Result<Option<OwnedSemaphorePermit>> {
        if !matches!(lane, Lane::Server(_)) {
            return Ok(None);
        }
        let thread = timeout_at(deadline, Arc::clone(&self.threads).acquire_owned()).await;
        thread.ok().and_then(std::result::Result::ok).map(Some).ok_or_else(|| {
            let text = format!(
                "{MAX_THREADS} calls wait for NFS servers of static shares, as many as there may be: check the servers of \
                 the static shares on this host"
            );
            Error::new(Kind::Unresponsive, text)
        })
    }

    pub(super) fn all(&self) -> Vec<Arc<Calls>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Calls>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dispatch {
    /// Mounts a directory of a share.
    ///
    /// # Errors
    /// Those of [`Engine::publish_share`]; `Invalid` for the id of a volume in a pool, which could be deleted in its place.
    ///
    /// [`Engine::publish_share`]: crate::engine::Engine::publish_share
    pub async fn publish_share(&self, request: PublishShare) -> Result<()> {
        if self.is_volume(&request.id) {
            let PublishShare { id, share, .. } = &request;
            let text =
                format!("volume id {id} of share {share} is one of a volume in a pool: use another id");
            return Err(Error::new(Kind::Invalid, text));
        }
        let lane = Lane::Server(request.share.server.clone());
        self.call(&lane, MountShare { request }).await
    }

    /// Unmounts a share, and reports whether nothing is left to do.
    pub(super) async fn unpublish_share(&self, id: &str, target: &Path) -> Result<bool> {
        if self.is_volume(id) {
            return Ok(false);
        }
        let call = UnmountShare { id: id.to_owned(), target: target.to_owned() };
        self.call(&Lane::NoPool, call).await
    }

    /// The usage of a share that is published at a path; `None` if none is.
    ///
    /// # Errors
    /// Those of [`Engine::usage_of_share`].
    ///
    /// [`Engine::usage_of_share`]: crate::engine::Engine::usage_of_share
    pub async fn usage_of_share(&self, id: &str, path: &Path) -> Result<Option<Usage>> {
        if self.is_volume(id) {
            return Ok(None);
        }
        let path: PathBuf = path.to_owned();
        let server = GetServerOfShare { id: id.to_owned(), path: path.clone() };
        let Some(server) = self.call(&Lane::NoPool, server).await? else { return Ok(None) };
        self.call(&Lane::Server(server), GetUsageOfShare { path }).await.map(Some)
    }

    /// Whether an id is that of a volume in a pool, which a worker process may serve.
    fn is_volume(&self, id: &str) -> bool {
        let id: Option<VolumeId> = id.parse().ok();
        id.is_some_and(|id| self.pools.iter().any(|pool| pool.name == id.pool))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::engine::Engine;
    use crate::engine::request::Tuning;

    #[tokio::test]
    async fn a_server_that_hangs_delays_no_other() {
        let tuning = Tuning { call_timeout: Duration::from_secs(1), ..Tuning::default() };
        let dispatch = Dispatch::new(Arc::new(Engine::open(Vec::new(), tuning).unwrap()));
        let (dead, alive) = (Lane::Server("dead".into()), Lane::Server("alive".into()));
        let (resume, resumed) = mpsc::channel::<()>();
        let hang = move |_: &Engine| {
            let _ = resumed.recv();
            Ok(())
        };
        let error = dispatch.run(&dead, hang).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unresponsive);
        assert!(error.chain().starts_with("NFS server dead does not respond"), "{}", error.chain());
        assert!(error.chain().ends_with("; check the server and the network"), "{}", error.chain());
        dispatch.run(&alive, |_| Ok(())).await.unwrap();
        dispatch.run(&Lane::NoPool, |_| Ok(())).await.unwrap();
        drop(resume);
        dispatch.wait_until_idle().await;
    }

    #[test]
    fn dead_servers_leave_threads_for_pools() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(Dispatch::max_threads(0))
            .build()
            .unwrap();
        let (resume, resumed) = mpsc::channel::<()>();
        let resumed = Arc::new(Mutex::new(resumed));
        runtime.block_on(async {
            let tuning = Tuning { call_timeout: Duration::from_secs(3), ..Tuning::default() };
            let dispatch = Dispatch::new(Arc::new(Engine::open(Vec::new(), tuning).unwrap()));
            let mut calls = tokio::task::JoinSet::new();
            let threads = Dispatch::max_threads(0);
            for number in 0..threads + 100 {
                let (dispatch, resumed) = (dispatch.clone(), Arc::clone(&resumed));
                let lane = Lane::Server(format!("dead-{}", number / CALLS_OF_SERVER));
                let hang = move |_: &Engine| {
                    let _ = resumed.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    Ok(())
                };
                calls.spawn(async move { dispatch.run(&lane, hang).await });
            }
            let refused: Vec<Error> = calls.join_all().await.into_iter().map(Result::unwrap_err).collect();
            assert!(refused.iter().all(|error| error.kind() == Kind::Unresponsive));
            let over = |error: &&Error| error.chain().contains("servers of static shares");
            assert_eq!(refused.iter().filter(over).count(), threads + 100 - MAX_THREADS);
            dispatch.run(&Lane::NoPool, |_| Ok(())).await.unwrap();
        });
        drop(resume);
    }
}
