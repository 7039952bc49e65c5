//! The engine's words in CSI's.

use super::proto::{self, volume_content_source as content, volume_health::VolumeHealthEntry};
use super::status::bounded;
use super::{Identity, proto::volume_usage::Unit};
use crate::engine::request::{Amounts, Listed, PoolStatus, Severity, Symptom, Usage};
use crate::volume::{Snapshot, Source, Volume, VolumeId};

/// Longest text of one symptom: a page of them must stay small.
const SYMPTOM: usize = 512;

/// A number of bytes as CSI counts them.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A capacity, less at most a 256th. The last bytes of a disk change all the time, and every change is an object that
/// each node writes to the API server for each of its classes.
pub(super) fn coarse(bytes: u64) -> u64 {
    let step = 1 << bytes.checked_ilog2().unwrap_or_default().saturating_sub(8);
    bytes - bytes % step
}

fn volume(identity: &Identity, id: &VolumeId, size: u64, source: Option<&Source>) -> proto::Volume {
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
        capacity_bytes: signed(size),
        volume_id: id.to_string(),
        volume_context: [].into(),
        content_source,
        accessible_topology: vec![identity.here()],
    }
}

/// One volume.
pub(super) fn made(identity: &Identity, found: &Volume) -> Option<proto::Volume> {
    Some(volume(identity, &found.id, found.size, found.source.as_ref()))
}

/// One volume of a listing.
pub(super) fn listed(identity: &Identity, found: &Listed) -> proto::list_volumes_response::Entry {
    let volume = volume(identity, &found.id, found.size, found.source.as_ref());
    proto::list_volumes_response::Entry { volume: Some(volume), status: None }
}

/// One snapshot.
pub(super) fn snapshot(found: &Snapshot) -> Option<proto::Snapshot> {
    Some(proto::Snapshot {
        size_bytes: signed(found.size),
        snapshot_id: found.id.to_string(),
        source_volume_id: found.source_volume.to_string(),
        creation_time: Some(prost_types::Timestamp {
            seconds: found.created.as_second(),
            nanos: found.created.subsec_nanosecond(),
        }),
        ready_to_use: found.ready,
        group_snapshot_id: String::new(),
        // Belongs to SNAPSHOT_ACCESSIBILITY_CONSTRAINTS, which is not advertised: docs/conformance.md.
        accessible_topology: Vec::new(),
    })
}

/// One volume's health. The specification wants every pair of status and reason once.
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
                reason: symptom.reason.to_owned(),
                message: bounded(symptom.message, SYMPTOM),
            });
        }
    }
    proto::VolumeHealth { volume_id: id.to_string(), health_statuses }
}

/// The health of the pools: one entry for all that are not there, one for all whose trash is not emptied.
pub(super) fn storage_health(
    pools: &[PoolStatus],
) -> Vec<proto::node_get_storage_health_response::StorageBackendHealth> {
    let entry =
        |status: proto::StorageHealthErrorType, reason: &str, cause: fn(&PoolStatus) -> Option<&str>| {
            let texts: Vec<_> = pools
                .iter()
                .filter_map(|pool| cause(pool).map(|cause| format!("pool {}: {cause}", pool.name)))
                .collect();
            (!texts.is_empty()).then(|| proto::node_get_storage_health_response::StorageBackendHealth {
                status: status.into(),
                reason: reason.to_owned(),
                message: bounded(texts.join("; "), 1024),
                volume_capability: None,
            })
        };
    let unreachable = proto::StorageHealthErrorType::StorageUnreachable;
    let degraded = proto::StorageHealthErrorType::StorageDegraded;
    [
        entry(unreachable, "PoolUnavailable", |pool| pool.unavailable.as_deref()),
        entry(degraded, "ReaperStopped", |pool| pool.reaper_stopped.as_deref()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What a volume takes: bytes, then inodes.
pub(super) fn usage(usage: &Usage) -> Vec<proto::VolumeUsage> {
    let of = |unit: Unit, amounts: &Amounts| proto::VolumeUsage {
        available: signed(amounts.available),
        total: signed(amounts.total),
        used: amounts.used.map(signed).unwrap_or_default(),
        unit: unit.into(),
    };
    vec![of(Unit::Bytes, &usage.bytes), of(Unit::Inodes, &usage.inodes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_and_reason_is_told_once() {
        let symptom =
            |severity, message: &str| Symptom { severity, reason: "Odd", message: message.to_owned() };
        let symptoms = vec![
            symptom(Severity::Degraded, "a"),
            symptom(Severity::Degraded, "b"),
            symptom(Severity::DataLoss, &"x".repeat(5000)),
        ];
        let health = health(&"p/v".parse().unwrap(), symptoms);
        assert_eq!(health.health_statuses.len(), 2);
        assert!(health.health_statuses.iter().all(|entry| entry.message.len() <= SYMPTOM));
    }

    #[test]
    fn a_capacity_is_rounded_down_a_little() {
        for bytes in [0, 1, 255, 256, 1 << 30, 40_000_000_001, u64::MAX] {
            let rounded = coarse(bytes);
            assert!(rounded <= bytes && bytes - rounded <= bytes / 256, "{bytes}: {rounded}");
        }
        assert_eq!(coarse(42_318_044 << 10), coarse((42_318_044 << 10) - 4096));
    }

    #[test]
    fn pools_that_are_not_there_are_one_entry() {
        let pool = |name: &str, unavailable: Option<&str>| PoolStatus {
            name: name.parse().unwrap(),
            path: "/x".into(),
            backend: None,
            unavailable: unavailable.map(str::to_owned),
            total: 0,
            provisioned: 0,
            allocatable: 0,
            volumes: 0,
            snapshots: 0,
            trash: 0,
            reaper_stopped: None,
            unreadable: 0,
        };
        let pools = [pool("a", Some("not mounted")), pool("b", None), pool("c", Some("gone"))];
        let entries = storage_health(&pools);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].message, "pool a: not mounted; pool c: gone");
        assert!(storage_health(&pools[1..2]).is_empty());
    }
}
