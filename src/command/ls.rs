//! The output of `orlop ls`.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::to_json as format_json;
use crate::engine::request::StoredVolume;
use crate::error::Result;
use crate::quantity::HumanDuration;
use crate::volume::{Name, PoolName, Size, Timestamp, VolumeId};

/// A volume in a listing.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a VolumeId,
    pool: &'a PoolName,
    name: &'a Name,
    /// 0: no size was requested; `None`: unknown.
    size: Option<u64>,
    created: Option<Timestamp>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> From<&'a StoredVolume> for Row<'a> {
    fn from(StoredVolume { id, record }: &'a StoredVolume) -> Self {
        let (size, created, state, error) = match record {
            Ok(volume) if volume.managed => (Some(volume.size), Some(volume.created), "ok", None),
            Ok(volume) => (Some(volume.size), None, "unmanaged", None),
            Err(error) => (None, None, "unreadable", Some(error.chain())),
        };
        Self { id, pool: &id.pool, name: &id.name, size, created, state, error }
    }
}

/// Formats the volumes as a table.
#[must_use]
pub fn to_text(volumes: &[StoredVolume], now: Timestamp) -> String {
    let mut table = vec![["POOL", "NAME", "SIZE", "AGE", "STATE"].map(str::to_owned)];
    table.extend(volumes.iter().map(|volume| {
        let row = Row::from(volume);
        let size = row.size.filter(|size| *size != 0).map(|size| Size(size).to_short());
        let unknown = || "-".to_owned();
        [
            row.pool.to_string(),
            row.name.to_string(),
            size.unwrap_or_else(unknown),
            row.created.map_or_else(unknown, |created| age(created, now)),
            row.state.to_owned(),
        ]
    }));
    aligned(&table)
}

/// Formats the volumes as a JSON array.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_json(volumes: &[StoredVolume]) -> Result<String> {
    format_json(&volumes.iter().map(Row::from).collect::<Vec<_>>())
}

/// Formats the ids, one for each line.
#[must_use]
pub fn to_ids(volumes: &[StoredVolume]) -> String {
    volumes.iter().map(|volume| format!("{}\n", volume.id)).collect()
}

/// The age of an object. A clock that was set back makes it new, not old.
pub(super) fn age(created: Timestamp, now: Timestamp) -> String {
    HumanDuration(Duration::try_from(now.duration_since(created)).unwrap_or_default()).to_short()
}

/// Formats rows as lines whose columns begin at the same place. The cells are ASCII.
pub(super) fn aligned<const N: usize>(table: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        table.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
