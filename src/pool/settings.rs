//! The settings of a pool.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::remote::NfsShare;
use crate::volume::PoolName;

/// The configuration of a pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PoolSettings {
    /// The pool's name.
    pub name: PoolName,
    /// An existing directory. orlop never creates it. For a share: its server and its path there, as they are shown.
    pub path: PathBuf,
    /// The share that has the pool; `None` if it is on this host.
    pub share: Option<NfsShare>,
    /// Whether the directory must be a mount point.
    pub mounted: bool,
    /// The UUID that its marker must have.
    pub uuid: Option<String>,
    /// The size that may be provisioned, in percent of the filesystem's size.
    pub overcommit_percent: u32,
    /// Bytes that are never provisioned.
    pub reserve: u64,
    /// Whether this process has the pool for itself. Required on filesystems that are not known to let processes exclude
    /// each other.
    pub exclusive: bool,
    /// The group of the pool, if a worker process serves it: the pools of one group share a worker.
    pub worker: Option<String>,
    /// Whether other hosts use the directory, too, through a cluster filesystem. NFS is recognized without it.
    pub shared: bool,
    /// Whether this host is the NFS server that exports the directory to the other hosts. Then `shared` is set, too.
    pub exported: bool,
    /// The name of this host for the other hosts of a shared pool; `None`: its host name.
    pub node: Option<String>,
    /// Names the process that serves the pool, among those of a shared pool: the same for all workers that succeed each
    /// other. `None`: a new one each time.
    pub process: Option<Uuid>,
}

impl PoolSettings {
    /// What to do when a server does not respond.
    pub const CHECK_SERVER: &str = "check the server and the network";

    /// What to do when the pool does not respond.
    #[must_use]
    pub fn to_check(&self) -> &'static str {
        if self.share.is_some() { Self::CHECK_SERVER } else { "check its disk" }
    }

    /// A pool without overcommit, reserve or checks of its directory.
    #[must_use]
    pub fn new(name: PoolName, path: PathBuf) -> Self {
        Self {
            name,
            path,
            share: None,
            mounted: false,
            uuid: None,
            overcommit_percent: 100,
            reserve: 0,
            exclusive: false,
            worker: None,
            shared: false,
            exported: false,
            node: None,
            process: None,
        }
    }
}
