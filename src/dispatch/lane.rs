//! Lanes: which calls can wait for the same disk.

use super::Dispatch;
use crate::engine::request::CreateVolume;
use crate::volume::{PoolName, VolumeId};

/// Calls that can wait for the same disks. Calls of different lanes do not wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Calls that can wait for the disk of this pool.
    Pool(PoolName),
    /// Calls that unmount volumes of this pool and do not access its disk, so that pods can end while it is dead.
    Unmount(PoolName),
    /// Calls that can wait for every pool.
    AllPools,
    /// Calls that wait for no pool.
    NoPool,
}

/// Number of lanes that each pool has.
pub(super) const LANES_OF_POOL: usize = 2;
/// Number of lanes that belong to no pool.
pub(super) const SHARED_LANES: usize = 2;

pub(super) fn of_pool(pool: &PoolName) -> [Lane; LANES_OF_POOL] {
    [Lane::Pool(pool.clone()), Lane::Unmount(pool.clone())]
}

impl Lane {
    /// The lane of a call for one volume or snapshot.
    #[must_use]
    pub fn of(id: &VolumeId) -> Self {
        Self::Pool(id.pool.clone())
    }

    /// What its calls wait for, as the subject of a message.
    pub(super) fn subject(&self) -> String {
        match self {
            Self::Pool(pool) => format!("pool {pool}"),
            Self::Unmount(pool) => format!("unmounting from pool {pool}"),
            Self::AllPools => "at least one pool (see /readyz)".to_owned(),
            Self::NoPool => "this host".to_owned(),
        }
    }
}

impl Dispatch {
    /// The lane of a call for the pool of this name, or for the default pool.
    #[must_use]
    pub fn lane_of_pool(&self, name: Option<&PoolName>) -> Lane {
        let name = name.cloned().or_else(|| self.engine.default_pool_name().ok());
        name.map_or(Lane::NoPool, Lane::Pool)
    }

    /// The lane of a request to create a volume. A copy from another pool can wait for both.
    #[must_use]
    pub fn lane_of_create(&self, request: &CreateVolume) -> Lane {
        let lane = self.lane_of_pool(request.pool.as_ref());
        match &request.source {
            Some(source) if Lane::of(source.id()) != lane => Lane::AllPools,
            _ => lane,
        }
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
