//! The output of `orlop df`.

use serde::Serialize;

use super::ls::{Listing, aligned, or_dash};
use super::{printable, to_json as format_json, to_yaml as format_yaml};
use crate::engine::survey::Space;
use crate::error::Result;
use crate::volume::{Size, VolumeId};

/// A pool with its space in bytes.
#[derive(Debug, Serialize)]
struct Row<'a> {
    pool: &'a str,
    path: String,
    backend: &'a str,
    total: u64,
    free: u64,
    provisioned: u64,
    allocatable: u64,
    volumes: usize,
    snapshots: usize,
    trash: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Vec<Used<'a>>>,
}

/// The space of a volume.
#[derive(Debug, Serialize)]
struct Used<'a> {
    id: &'a VolumeId,
    size: Option<u64>,
    used: Option<u64>,
}

/// Formats the pools as a table, with their directories if it may be `wide`; and then their volumes, if these are given.
#[must_use]
pub fn to_table(pools: &[Space], volumes: Option<&[Listing]>, wide: bool) -> String {
    let header =
        ["POOL", "BACKEND", "TOTAL", "FREE", "PROVISIONED", "ALLOCATABLE", "VOLUMES", "SNAPSHOTS", "TRASH"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    table.extend(pools.iter().map(|space| {
        let size = |bytes| Size(bytes).to_short();
        vec![
            space.pool.to_string(),
            space.backend.to_owned(),
            size(space.total),
            size(space.free),
            size(space.provisioned),
            size(space.allocatable),
            space.volumes.to_string(),
            space.snapshots.to_string(),
            space.trash.to_string(),
        ]
    }));
    if wide {
        let paths = pools.iter().map(|space| printable(&space.path.display().to_string()));
        let paths = std::iter::once("PATH".to_owned()).chain(paths);
        table.iter_mut().zip(paths).for_each(|(row, path)| row.push(path));
    }
    let mut text = aligned(&table);
    if let Some(volumes) = volumes {
        let mut table = vec![["VOLUME", "SIZE", "USED"].map(str::to_owned)];
        table.extend(volumes.iter().map(|listing| {
            let size = |bytes: Option<u64>| or_dash(bytes.map(|bytes| Size(bytes).to_short()));
            let provisioned = listing.size().filter(|size| *size != 0);
            [listing.volume.id.to_string(), size(provisioned), size(listing.used)]
        }));
        text.push('\n');
        text.push_str(&aligned(&table));
    }
    text
}

/// Formats the pools as a JSON array.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_json(pools: &[Space], volumes: Option<&[Listing]>) -> Result<String> {
    format_json(&rows(pools, volumes))
}

/// Formats the pools as YAML.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_yaml(pools: &[Space], volumes: Option<&[Listing]>) -> Result<String> {
    format_yaml(&rows(pools, volumes))
}

/// Formats the names of the pools, one for each line.
#[must_use]
pub fn to_names(pools: &[Space]) -> String {
    pools.iter().map(|space| format!("{}\n", space.pool)).collect()
}

fn rows<'a>(pools: &'a [Space], volumes: Option<&'a [Listing]>) -> Vec<Row<'a>> {
    let usage = |space: &Space| {
        let of_pool = volumes?.iter().filter(|listing| listing.volume.id.pool == space.pool);
        let used =
            |listing: &'a Listing| Used { id: &listing.volume.id, size: listing.size(), used: listing.used };
        Some(of_pool.map(used).collect())
    };
    let row = |space: &'a Space| Row {
        pool: space.pool.as_str(),
        path: space.path.display().to_string(),
        backend: space.backend,
        total: space.total,
        free: space.free,
        provisioned: space.provisioned,
        allocatable: space.allocatable,
        volumes: space.volumes,
        snapshots: space.snapshots,
        trash: space.trash,
        usage: usage(space),
    };
    pools.iter().map(row).collect()
}
