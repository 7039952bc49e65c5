//! Requests for group snapshots, and their results.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::ConsistencySpec;
use crate::volume::{Labels, Name, PoolName, Snapshot, Timestamp, VolumeId};

/// A request to create snapshots of several volumes that show the same instant, or to return those that an earlier request
/// created.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateGroup {
    /// The requested name.
    pub name: String,
    /// The pool of all volumes.
    pub pool: PoolName,
    /// The volumes to copy, in any order.
    pub source_volumes: BTreeSet<VolumeId>,
    /// What the snapshots may cost, and how long the containers that use the volumes may be paused. The snapshots show one
    /// instant, whatever it says.
    pub consistency: ConsistencySpec,
    /// Labels for the records.
    pub labels: Labels,
}

impl CreateGroup {
    /// The id of the group.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        VolumeId { pool: self.pool.clone(), name: Name::of(&self.name) }
    }
}

/// Snapshots that show the same instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotGroup {
    /// `<pool>/<name>`.
    pub id: VolumeId,
    /// The snapshots, in the order of their volumes' ids; at least one.
    pub snapshots: Vec<Snapshot>,
    /// Time at which the copies started.
    pub created: Timestamp,
}
