//! The output of `orlop snapshot ls`.

use super::ls::{age, aligned};
use crate::volume::{Size, Snapshot, Timestamp};

/// Formats the snapshots as a table.
#[must_use]
pub fn to_text(snapshots: &[Snapshot], now: Timestamp) -> String {
    let mut table = vec![["POOL", "NAME", "VOLUME", "BYTES", "AGE", "CONSISTENCY"].map(str::to_owned)];
    table.extend(snapshots.iter().map(|snapshot| {
        [
            snapshot.id.pool.to_string(),
            snapshot.id.name.to_string(),
            snapshot.source_volume.name.to_string(),
            snapshot.bytes.map_or("-".to_owned(), |bytes| Size(bytes).to_short()),
            age(snapshot.created, now),
            snapshot.copied.consistency.as_str().to_owned(),
        ]
    }));
    aligned(&table)
}

/// Formats the ids, one for each line.
#[must_use]
pub fn to_ids(snapshots: &[Snapshot]) -> String {
    snapshots.iter().map(|snapshot| format!("{}\n", snapshot.id)).collect()
}
