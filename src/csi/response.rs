//! Results of the engine as CSI messages.

use super::proto::{self, volume_content_source as content, volume_health::VolumeHealthEntry};
use super::status::truncated;
use super::{Identity, proto::volume_usage::Unit};
use crate::engine::request::{
    Amounts, Capacity, Listed, PoolStatus, Severity, SnapshotGroup, Symptom, Usage,
};
use crate::volume::{Snapshot, Source, Timestamp, Volume, VolumeId};

/// Maximum bytes of the message of a symptom. A page contains many of them.
const MAX_SYMPTOM: usize = 512;

/// A number in the signed type that CSI uses.
pub(super) fn saturating_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Rounds a capacity down by at most 1/256. Otherwise every small change of the free space would
/// make each node update one CSIStorageCapacity object per StorageClass.
fn round_capacity(bytes: u64) -> u64 {
    let step = 1 << bytes.checked_ilog2().unwrap_or_default().saturating_sub(8);
    bytes - bytes % step
}

fn new_volume(identity: &Identity, id: &VolumeId, size: u64, source: Option<&Source>) -> proto::Volume {
    let content_source = source.map(|source| {
        let kind = match source {
            Source::Volume(id) => content::Type::Volume(content::VolumeSource { volume_id: id.to_string() }),
            Source::Snapshot(id) => {
                content::Type::Snapshot(content::SnapshotSource { snapshot_id: id.to_string() })
            }
        };
        proto::VolumeContentSource { r#type: Some(kind) }
    });
    proto::Volume {
        capacity_bytes: saturating_i64(size),
        volume_id: id.to_string(),
        volume_context: [].into(),
        content_source,
        accessible_topology: identity.own_topology().into_iter().collect(),
    }
}

/// The message for a volume.
pub(super) fn volume(identity: &Identity, volume: &Volume) -> Option<proto::Volume> {
    Some(new_volume(identity, &volume.id, volume.size, volume.source.as_ref()))
}

/// The entry of a listing for a volume.
pub(super) fn list_entry(identity: &Identity, listed: &Listed) -> proto::list_volumes_response::Entry {
    let volume = new_volume(identity, &listed.id, listed.size, listed.source.as_ref());
    proto::list_volumes_response::Entry { volume: Some(volume), status: None }
}

/// The response for a capacity. No minimum volume size is returned: any size is possible.
pub(super) fn capacity(capacity: Capacity) -> proto::GetCapacityResponse {
    proto::GetCapacityResponse {
        available_capacity: saturating_i64(round_capacity(capacity.available)),
        maximum_volume_size: Some(saturating_i64(round_capacity(capacity.largest))),
        minimum_volume_size: None,
    }
}

/// The message for a snapshot.
pub(super) fn snapshot(snapshot: &Snapshot) -> Option<proto::Snapshot> {
    Some(proto::Snapshot {
        size_bytes: saturating_i64(snapshot.size),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.source_volume.to_string(),
        creation_time: Some(timestamp(snapshot.created)),
        ready_to_use: snapshot.ready,
        group_snapshot_id: snapshot.group_id().map(|id| id.to_string()).unwrap_or_default(),
        // Requires SNAPSHOT_ACCESSIBILITY_CONSTRAINTS, which is not advertised: docs/conformance.md.
        accessible_topology: Vec::new(),
    })
}

/// The message for a group of snapshots.
pub(super) fn group(group: &SnapshotGroup) -> Option<proto::VolumeGroupSnapshot> {
    Some(proto::VolumeGroupSnapshot {
        group_snapshot_id: group.id.to_string(),
        snapshots: group.snapshots.iter().filter_map(snapshot).collect(),
        creation_time: Some(timestamp(group.created)),
        ready_to_use: true,
    })
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// The health of a volume. The specification requires that each pair of status and reason occurs once.
pub(super) fn health(id: &VolumeId, symptoms: Vec<Symptom>) -> proto::VolumeHealth {
    let mut health_statuses: Vec<VolumeHealthEntry> = Vec::new();
    for symptom in symptoms {
        let status = match symptom.severity {
            Severity::Degraded => proto::VolumeHealthErrorType::Degraded,
            Severity::Inaccessible => proto::VolumeHealthErrorType::Inaccessible,
            Severity::DataLoss => proto::VolumeHealthErrorType::DataLoss,
        };
        let same = |entry: &VolumeHealthEntry| entry.status() == status && entry.reason == symptom.reason;
        if !health_statuses.iter().any(same) {
            health_statuses.push(VolumeHealthEntry {
                status: status.into(),
                reason: symptom.reason.into_owned(),
                message: truncated(symptom.message, MAX_SYMPTOM),
            });
        }
    }
    proto::VolumeHealth { volume_id: id.to_string(), health_statuses }
}

/// The health of the pools: one entry for all unavailable pools, one for all in which nothing can be created, and one for all
/// whose trash cannot be removed.
pub(super) fn storage_health(
    pools: &[PoolStatus],
) -> Vec<proto::node_get_storage_health_response::StorageBackendHealth> {
    let entry =
        |status: proto::StorageHealthErrorType, reason: &str, cause: fn(&PoolStatus) -> Option<&str>| {
            let causes: Vec<_> = pools
                .iter()
                .filter_map(|pool| cause(pool).map(|cause| format!("pool {}: {cause}", pool.name)))
                .collect();
            (!causes.is_empty()).then(|| proto::node_get_storage_health_response::StorageBackendHealth {
                status: status.into(),
                reason: reason.to_owned(),
                message: truncated(causes.join("; "), 1024),
                volume_capability: None,
            })
        };
    let unreachable = proto::StorageHealthErrorType::StorageUnreachable;
    let degraded = proto::StorageHealthErrorType::StorageDegraded;
    [
        entry(unreachable, "PoolUnavailable", |pool| pool.unavailable.as_deref()),
        entry(degraded, "PoolRefusesVolumes", |pool| pool.refuses.as_deref()),
        entry(degraded, "TrashRemovalFailing", |pool| pool.trash_failure.as_deref()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The usage of a volume: bytes, then inodes.
pub(super) fn usage(usage: &Usage) -> Vec<proto::VolumeUsage> {
    let entry = |unit: Unit, amounts: &Amounts| proto::VolumeUsage {
        available: saturating_i64(amounts.available),
        total: saturating_i64(amounts.total),
        used: amounts.used.map(saturating_i64).unwrap_or_default(),
        unit: unit.into(),
    };
    vec![entry(Unit::Bytes, &usage.bytes), entry(Unit::Inodes, &usage.inodes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::request::PoolSettings;

    #[test]
    fn each_pair_of_status_and_reason_is_reported_once() {
        let symptom =
            |severity, message: &str| Symptom { severity, reason: "Odd".into(), message: message.to_owned() };
        let symptoms = vec![
            symptom(Severity::Degraded, "a"),
            symptom(Severity::Degraded, "b"),
            symptom(Severity::DataLoss, &"x".repeat(5000)),
        ];
        let health = health(&"p/v".parse().unwrap(), symptoms);
        assert_eq!(health.health_statuses.len(), 2);
        assert!(health.health_statuses.iter().all(|entry| entry.message.len() <= MAX_SYMPTOM));
    }

    #[test]
    fn a_capacity_is_rounded_down_by_at_most_a_256th() {
        for bytes in [0, 1, 255, 256, 1 << 30, 40_000_000_001, u64::MAX] {
            let rounded = round_capacity(bytes);
            assert!(rounded <= bytes && bytes - rounded <= bytes / 256, "{bytes}: {rounded}");
        }
        assert_eq!(round_capacity(42_318_044 << 10), round_capacity((42_318_044 << 10) - 4096));
    }

    #[test]
    fn unavailable_pools_are_one_entry() {
        let pool = |name: &str, unavailable: Option<&str>| PoolStatus {
            unavailable: unavailable.map(str::to_owned),
            ..PoolStatus::new(&PoolSettings::new(name.parse().unwrap(), "/x".into()))
        };
        let pools = [pool("a", Some("not mounted")), pool("b", None), pool("c", Some("missing"))];
        let entries = storage_health(&pools);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].message, "pool a: not mounted; pool c: missing");
        assert!(storage_health(&pools[1..2]).is_empty());
    }
}
