//! The output of `orlop snapshot ls`.

use serde::Serialize;

use super::ls::{age, aligned};
use super::to_json as format_json;
use crate::engine::request::StoredSnapshot;
use crate::error::Result;
use crate::volume::{Labels, Name, PoolName, Size, Timestamp, VolumeId};

/// A snapshot in a listing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    id: &'a VolumeId,
    pool: &'a PoolName,
    name: &'a Name,
    source_volume: Option<&'a VolumeId>,
    /// Provisioned size of the volume.
    size: Option<u64>,
    bytes: Option<u64>,
    created: Option<Timestamp>,
    consistency: Option<&'static str>,
    labels: Option<&'a Labels>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> From<&'a StoredSnapshot> for Row<'a> {
    fn from(StoredSnapshot { id, record }: &'a StoredSnapshot) -> Self {
        let found = record.as_ref().ok();
        Self {
            id,
            pool: &id.pool,
            name: &id.name,
            source_volume: found.map(|snapshot| &snapshot.source_volume),
            size: found.map(|snapshot| snapshot.size),
            bytes: found.and_then(|snapshot| snapshot.bytes),
            created: found.map(|snapshot| snapshot.created),
            consistency: found.map(|snapshot| snapshot.copied.consistency.as_str()),
            labels: found.map(|snapshot| &snapshot.labels),
            state: if found.is_some() { "ok" } else { "unreadable" },
            error: record.as_ref().err().map(|error| error.chain()),
        }
    }
}

/// Formats the snapshots as a table.
#[must_use]
pub fn to_text(snapshots: &[StoredSnapshot], now: Timestamp) -> String {
    let header = ["POOL", "NAME", "VOLUME", "BYTES", "AGE", "CONSISTENCY", "STATE"];
    let mut table = vec![header.map(str::to_owned)];
    table.extend(snapshots.iter().map(|snapshot| {
        let row = Row::from(snapshot);
        let unknown = || "-".to_owned();
        [
            row.pool.to_string(),
            row.name.to_string(),
            row.source_volume.map_or_else(unknown, |volume| volume.name.to_string()),
            row.bytes.map_or_else(unknown, |bytes| Size(bytes).to_short()),
            row.created.map_or_else(unknown, |created| age(created, now)),
            row.consistency.map_or_else(unknown, str::to_owned),
            row.state.to_owned(),
        ]
    }));
    aligned(&table)
}

/// Formats the snapshots as a JSON array.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_json(snapshots: &[StoredSnapshot]) -> Result<String> {
    format_json(&snapshots.iter().map(Row::from).collect::<Vec<_>>())
}

/// Formats the ids, one for each line.
#[must_use]
pub fn to_ids(snapshots: &[StoredSnapshot]) -> String {
    snapshots.iter().map(|snapshot| format!("{}\n", snapshot.id)).collect()
}
