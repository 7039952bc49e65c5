//! Calls for static shares, whose servers are known only when a request names them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::calls::Calls;
use super::{Dispatch, Lane};
use crate::engine::call::{GetServerOfShare, GetUsageOfShare, MountShare, UnmountShare};
use crate::engine::request::Usage;
use crate::engine::share::PublishShare;
use crate::error::{Error, Kind, Result};
use crate::volume::VolumeId;

/// Number of servers that may fail to respond before their calls use up the threads of others.
pub(super) const DEAD_SERVERS: usize = 8;

/// The lanes of servers: a server that does not respond delays the calls for no other one.
#[derive(Debug, Default)]
pub(super) struct Servers(Mutex<HashMap<String, Arc<Calls>>>);

impl Servers {
    pub(super) fn calls(&self, server: &str, lane: &Lane, timeout: Duration) -> Arc<Calls> {
        let new = || Arc::new(Calls::new(lane.subject(), lane.to_check(&[]), timeout));
        Arc::clone(self.lock().entry(server.to_owned()).or_insert_with(new))
    }

    pub(super) fn all(&self) -> Vec<Arc<Calls>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Calls>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
}
