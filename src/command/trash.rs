//! The output of `orlop ls --trash`.

use serde::Serialize;

use super::ls::{age, aligned};
use super::{to_json as format_json, to_yaml as format_yaml};
use crate::engine::trash::{Kept, Trashed};
use crate::error::Result;
use crate::volume::{Name, PoolName, Size, Timestamp, VolumeId};

/// A deleted volume in a listing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    id: &'a VolumeId,
    pool: &'a PoolName,
    name: &'a Name,
    size: Option<u64>,
    deleted: Option<Timestamp>,
    /// `null` if it is kept until an administrator removes it.
    kept_until: Option<Timestamp>,
    /// Whether it can be restored.
    restorable: bool,
    entry: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> From<&'a Trashed> for Row<'a> {
    fn from(Trashed { id, entry, record, deleted, kept }: &'a Trashed) -> Self {
        Self {
            id,
            pool: &id.pool,
            name: &id.name,
            size: record.as_ref().ok().map(|volume| volume.size),
            deleted: *deleted,
            kept_until: match kept {
                Kept::Until(time) => Some(*time),
                Kept::Forever | Kept::Due => None,
            },
            restorable: record.is_ok() && *kept != Kept::Due,
            entry,
            error: record.as_ref().err().map(|error| error.chain()),
        }
    }
}

/// Formats the volumes as a table.
#[must_use]
pub fn to_text(trash: &[Trashed], now: Timestamp) -> String {
    let mut table = vec![["POOL", "NAME", "SIZE", "DELETED", "KEPT", "ENTRY"].map(str::to_owned)];
    table.extend(trash.iter().map(|trashed| {
        let row = Row::from(trashed);
        let unknown = || "-".to_owned();
        let size = row.size.filter(|size| *size != 0);
        [
            row.pool.to_string(),
            row.name.to_string(),
            size.map_or_else(unknown, |size| Size(size).to_short()),
            row.deleted.map_or_else(unknown, |deleted| age(deleted, now)),
            match trashed.kept {
                _ if row.error.is_some() => "unreadable".to_owned(),
                Kept::Forever => "forever".to_owned(),
                Kept::Until(time) => age(now, time),
                Kept::Due => "no".to_owned(),
            },
            row.entry.to_owned(),
        ]
    }));
    aligned(&table)
}

/// Formats the volumes as a JSON array.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_json(trash: &[Trashed]) -> Result<String> {
    format_json(&trash.iter().map(Row::from).collect::<Vec<_>>())
}

/// Formats the volumes as YAML.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_yaml(trash: &[Trashed]) -> Result<String> {
    format_yaml(&trash.iter().map(Row::from).collect::<Vec<_>>())
}

/// Formats the ids, one for each line.
#[must_use]
pub fn to_ids(trash: &[Trashed]) -> String {
    trash.iter().map(|trashed| format!("{}\n", trashed.id)).collect()
}
