//! Lanes: which calls can wait for the same disk.

use super::Dispatch;
use crate::engine::request::{CreateVolume, PoolSettings};
use crate::volume::{PoolName, VolumeId};

/// Calls that can wait for the same disks. Calls of different lanes do not wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Calls that can wait for the disk of this pool.
    Pool(PoolName),
    /// Calls that unmount volumes of this pool and do not access its disk, so that pods can end while it is dead.
    Unmount(PoolName),
    /// Copies from one pool to another, which can wait for both. They have a lane of their own, so that a pool that does
    /// not respond neither delays copies between others nor makes the other one look dead.
    Copy {
        /// The pool of the source.
        from: PoolName,
        /// The pool of the copy.
        to: PoolName,
    },
    /// Calls that can wait for this server of static shares.
    Server(String),
    /// Calls that can wait for every pool.
    AllPools,
    /// Calls that wait for no pool.
    NoPool,
}

/// All lanes of a process with these pools.
pub(super) fn all(pools: &[PoolName]) -> Vec<Lane> {
    let of_pools = pools.iter().flat_map(|pool| [Lane::Pool(pool.clone()), Lane::Unmount(pool.clone())]);
    let to_others = |from: &PoolName| {
        let others = pools.iter().filter(|to| *to != from).cloned().collect::<Vec<_>>();
        let from = from.clone();
        others.into_iter().map(move |to| Lane::Copy { from: from.clone(), to })
    };
    let copies = pools.iter().flat_map(to_others);
    of_pools.chain(copies).chain([Lane::AllPools, Lane::NoPool]).collect()
}

/// Number of lanes of a process with this many pools: two for each pool, one for each ordered pair, and two others.
pub(super) fn count(pools: usize) -> usize {
    pools.saturating_mul(pools.saturating_add(1)).saturating_add(2)
}

impl Lane {
    /// The lane of a call for one volume or snapshot.
    #[must_use]
    pub fn of(id: &VolumeId) -> Self {
        Self::Pool(id.pool.clone())
    }

    /// Whether its calls would only wait while this pool is stalled. The lane of a pool decides by itself, since it lets
    /// trials in.
    pub(super) fn needs(&self, pool: &PoolName) -> bool {
        match self {
            Self::AllPools => true,
            Self::Copy { from, to } => from == pool || to == pool,
            Self::Pool(_) | Self::Unmount(_) | Self::Server(_) | Self::NoPool => false,
        }
    }

    /// What its calls wait for, as the subject of a message.
    pub(super) fn subject(&self) -> String {
        match self {
            Self::Pool(pool) => format!("pool {pool}"),
            Self::Unmount(pool) => format!("unmounting from pool {pool}"),
            Self::Copy { from, to } => format!("copying from pool {from} to pool {to}"),
            Self::Server(server) => format!("NFS server {server}"),
            Self::AllPools => "at least one pool (see /readyz)".to_owned(),
            Self::NoPool => "this host".to_owned(),
        }
    }

    /// What to do when that does not respond.
    pub(super) fn to_check(&self, pools: &[PoolSettings]) -> &'static str {
        let pool = match self {
            Self::Server(_) => return PoolSettings::CHECK_SERVER,
            Self::Pool(pool) | Self::Unmount(pool) | Self::Copy { from: pool, .. } => Some(pool),
            Self::AllPools | Self::NoPool => None,
        };
        let settings = pools.iter().find(|settings| Some(&settings.name) == pool);
        settings.map_or("check its disk", PoolSettings::to_check)
    }
}

impl Dispatch {
    /// The lane of a call for the pool of this name, or for the default pool.
    #[must_use]
    pub fn lane_of_pool(&self, name: Option<&PoolName>) -> Lane {
        let name = name.cloned().or_else(|| self.default_pool_name().ok());
        name.map_or(Lane::NoPool, Lane::Pool)
    }

    /// The lane of a request to create a volume. A copy from another pool can wait for both.
    #[must_use]
    pub fn lane_of_create(&self, request: &CreateVolume) -> Lane {
        let lane = self.lane_of_pool(request.pool.as_ref());
        let (Some(source), Lane::Pool(to)) = (&request.source, &lane) else { return lane };
        let copy = Lane::Copy { from: source.id().pool.clone(), to: to.clone() };
        // There is none within one pool, nor from a pool that is not configured, whose disk is not accessed.
        if self.lanes.contains_key(&copy) { copy } else { lane }
    }

    /// The lane of a request to unpublish the volume with this id, which names no pool for an inline volume.
    #[must_use]
    pub fn lane_of_unpublish(&self, id: &str) -> Lane {
        match id.parse() {
            Ok(id) if self.engine.is_known_persistent(&id) => Lane::Unmount(id.pool),
            Ok(id) => Lane::Pool(id.pool),
            Err(_) => self.engine.pool_of_inline_volume(id).map_or(Lane::AllPools, Lane::Pool),
        }
    }
}
