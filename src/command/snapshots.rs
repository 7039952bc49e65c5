//! The output of `orlop snapshot ls`.

use serde::Serialize;

use super::ls::{age, aligned, or_dash};
use super::{printable, to_json as format_json, to_yaml as format_yaml};
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

/// Formats the snapshots as a table; with the sizes of their volumes and their labels if it may be `wide`.
#[must_use]
pub fn to_table(snapshots: &[StoredSnapshot], now: Timestamp, wide: bool) -> String {
    let header = ["POOL", "NAME", "VOLUME", "BYTES", "AGE", "CONSISTENCY", "STATE", "SIZE", "LABELS"];
    let shown = if wide { header.len() } else { header.len() - 2 };
    let mut table = vec![header.map(str::to_owned)];
    table.extend(snapshots.iter().map(|snapshot| {
        let row = Row::from(snapshot);
        let size = |bytes: u64| Size(bytes).to_short();
        [
            row.pool.to_string(),
            row.name.to_string(),
            or_dash(row.source_volume.map(|volume| volume.name.to_string())),
            or_dash(row.bytes.map(size)),
            or_dash(row.created.map(|created| age(created, now))),
            or_dash(row.consistency.map(str::to_owned)),
            row.state.to_owned(),
            or_dash(row.size.filter(|bytes| *bytes != 0).map(size)),
            or_dash(row.labels.filter(|labels| !labels.is_empty()).map(labels_as_text)),
        ]
    }));
    aligned(&table.iter().map(|row| &row[..shown]).collect::<Vec<_>>())
}

/// Labels as `a=b,c=d`.
fn labels_as_text(labels: &Labels) -> String {
    let labels: Vec<_> = labels.iter().map(|(key, value)| printable(&format!("{key}={value}"))).collect();
    labels.join(",")
}

/// Formats the snapshots as a JSON array.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_json(snapshots: &[StoredSnapshot]) -> Result<String> {
    format_json(&snapshots.iter().map(Row::from).collect::<Vec<_>>())
}

/// Formats the snapshots as YAML.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_yaml(snapshots: &[StoredSnapshot]) -> Result<String> {
    format_yaml(&snapshots.iter().map(Row::from).collect::<Vec<_>>())
}

/// Formats the ids, one for each line.
#[must_use]
pub fn to_ids(snapshots: &[StoredSnapshot]) -> String {
    snapshots.iter().map(|snapshot| format!("{}\n", snapshot.id)).collect()
}
