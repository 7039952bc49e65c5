//! The output of `orlop ls --trash`.

use serde::Serialize;

use super::ls::{age, aligned, or_dash};
use super::{printable, to_json as format_json, to_yaml as format_yaml};
use crate::engine::trash::{Kept, Trashed};
use crate::error::Result;
use crate::volume::{Claim, Labels, Name, PoolName, Size, Timestamp, Volume, VolumeId};

/// A deleted volume in a listing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    id: &'a VolumeId,
    pool: &'a PoolName,
    name: &'a Name,
    size: Option<u64>,
    labels: Option<&'a Labels>,
    claim: Option<Claim<'a>>,
    created: Option<Timestamp>,
    deleted: Option<Timestamp>,
    /// `null` if it is kept until an administrator removes it.
    kept_until: Option<Timestamp>,
    /// Whether it can be restored.
    restorable: bool,
    entry: &'a str,
    /// `trashed` or `unreadable`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> From<&'a Trashed> for Row<'a> {
    fn from(Trashed { id, entry, record, deleted, kept }: &'a Trashed) -> Self {
        let volume = record.as_ref().ok();
        Self {
            id,
            pool: &id.pool,
            name: &id.name,
            size: volume.map(|volume| volume.size),
            labels: volume.map(|volume| &volume.labels),
            claim: volume.and_then(Volume::claim),
            created: volume.map(|volume| volume.created),
            deleted: *deleted,
            kept_until: match kept {
                Kept::Until(time) => Some(*time),
                Kept::Forever | Kept::Due => None,
            },
            restorable: record.is_ok() && *kept != Kept::Due,
            entry,
            state: if volume.is_some() { "trashed" } else { "unreadable" },
            error: record.as_ref().err().map(|error| error.chain()),
        }
    }
}

/// Formats the volumes as a table; with their claims and their ages if it may be `wide`.
#[must_use]
pub fn to_table(trash: &[Trashed], now: Timestamp, wide: bool) -> String {
    let header = ["POOL", "NAME", "SIZE", "DELETED", "KEPT", "STATE", "ENTRY", "CLAIM", "AGE"];
    let shown = if wide { header.len() } else { header.len() - 2 };
    let mut table = vec![header.map(str::to_owned)];
    table.extend(trash.iter().map(|trashed| {
        let row = Row::from(trashed);
        [
            row.pool.to_string(),
            row.name.to_string(),
            or_dash(row.size.filter(|size| *size != 0).map(|size| Size(size).to_short())),
            or_dash(row.deleted.map(|deleted| age(deleted, now))),
            match trashed.kept {
                Kept::Forever => "forever".to_owned(),
                Kept::Until(time) => age(now, time),
                Kept::Due => "no".to_owned(),
            },
            row.state.to_owned(),
            row.entry.to_owned(),
            or_dash(row.claim.map(|claim| printable(&claim.to_string()))),
            or_dash(row.created.map(|created| age(created, now))),
        ]
    }));
    aligned(&table.iter().map(|row| &row[..shown]).collect::<Vec<_>>())
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
