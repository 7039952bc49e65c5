//! The output of `orlop ls`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::template::{Item, Template};
use super::{printable, to_json as format_json, to_yaml as format_yaml};
use crate::engine::request::StoredVolume;
use crate::engine::survey::Uses;
use crate::error::Result;
use crate::quantity::HumanDuration;
use crate::volume::{Labels, Name, PoolName, Size, Timestamp, VolumeId};

/// A volume with what the host says about it, as far as that was asked for.
#[derive(Debug)]
pub struct Listing {
    /// The volume.
    pub volume: StoredVolume,
    /// Its data directory.
    pub path: PathBuf,
    /// Its users.
    pub uses: Option<Uses>,
    /// The bytes that it takes, if they were measured.
    pub used: Option<u64>,
}

impl Listing {
    /// Its provisioned size, if its record can be read.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.volume.record.as_ref().ok().map(|volume| volume.size)
    }

    /// Whether nothing uses it; `None` if that was not asked for.
    #[must_use]
    pub fn is_dangling(&self) -> Option<bool> {
        self.uses.as_ref().map(|uses| uses.users.is_empty() && uses.hosts.is_empty())
    }
}

/// A volume in a listing.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a VolumeId,
    pool: &'a PoolName,
    name: &'a Name,
    path: &'a Path,
    /// 0: no size was requested; `None`: unknown.
    size: Option<u64>,
    labels: Option<&'a Labels>,
    created: Option<Timestamp>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> From<&'a Listing> for Row<'a> {
    fn from(listing: &'a Listing) -> Self {
        let StoredVolume { id, record } = &listing.volume;
        let state = match record {
            Ok(volume) if !volume.managed => "unmanaged",
            Ok(_) if listing.is_dangling() == Some(true) => "dangling",
            Ok(_) => "ok",
            Err(_) => "unreadable",
        };
        let volume = record.as_ref().ok();
        Self {
            id,
            pool: &id.pool,
            name: &id.name,
            path: &listing.path,
            size: volume.map(|volume| volume.size),
            labels: volume.map(|volume| &volume.labels),
            created: volume.filter(|volume| volume.managed).map(|volume| volume.created),
            state,
            error: record.as_ref().err().map(|error| error.chain()),
        }
    }
}

/// Formats the volumes as a table.
#[must_use]
pub fn to_text(volumes: &[Listing], now: Timestamp) -> String {
    let mut table = vec![["POOL", "NAME", "SIZE", "AGE", "STATE"].map(str::to_owned)];
    table.extend(volumes.iter().map(|listing| {
        let row = Row::from(listing);
        [row.pool.to_string(), row.name.to_string(), row.size(), row.age(now), row.state.to_owned()]
    }));
    aligned(&table)
}

/// Formats the volumes as a table with their usage and users.
#[must_use]
pub fn to_wide(volumes: &[Listing], now: Timestamp) -> String {
    let header = ["NAME", "POOL", "SIZE", "USED", "USED BY", "AGE", "STATE"];
    let mut table = vec![header.map(str::to_owned)];
    table.extend(volumes.iter().map(|listing| {
        let row = Row::from(listing);
        [
            row.name.to_string(),
            row.pool.to_string(),
            row.size(),
            listing.used.map_or("-".to_owned(), |used| Size(used).to_short()),
            listing.uses.as_ref().map_or("-".to_owned(), short),
            row.age(now),
            row.state.to_owned(),
        ]
    }));
    aligned(&table)
}

impl Row<'_> {
    fn size(&self) -> String {
        self.size.filter(|size| *size != 0).map_or("-".to_owned(), |size| Size(size).to_short())
    }

    fn age(&self, now: Timestamp) -> String {
        self.created.map_or("-".to_owned(), |created| age(created, now))
    }
}

/// The first user in a few words, and the number of the others.
fn short(uses: &Uses) -> String {
    let start = |id: &str| id.chars().take(12).collect::<String>();
    let of_users = uses.users.iter().map(|user| match (&user.pod, &user.container, user.pid) {
        (Some(pod), ..) => format!("pod {}", start(pod)),
        (None, Some(container), _) => format!("container {}", start(container)),
        (None, None, Some(pid)) => format!("process {pid}"),
        (None, None, None) => format!("mount {}", user.target.display()),
    });
    let mut all = of_users.chain(uses.hosts.iter().map(|host| format!("host {}", host.node)));
    let Some(first) = all.next() else { return "-".to_owned() };
    let first = printable(&first);
    match all.count() {
        0 => first,
        more => format!("{first} +{more}"),
    }
}

/// Formats the volumes as a JSON array.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_json(volumes: &[Listing]) -> Result<String> {
    format_json(&volumes.iter().map(Row::from).collect::<Vec<_>>())
}

/// Formats the volumes as YAML.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_yaml(volumes: &[Listing]) -> Result<String> {
    format_yaml(&volumes.iter().map(Row::from).collect::<Vec<_>>())
}

/// Formats each volume by a template.
#[must_use]
pub fn by_template(volumes: &[Listing], template: &Template) -> String {
    let line = |listing: &Listing| {
        let row = Row::from(listing);
        let whole = serde_json::to_value(&row).unwrap_or_default();
        let volume = listing.volume.record.as_ref().ok();
        template.render(&Item { id: row.id, path: row.path, volume, state: row.state, whole: &whole })
    };
    volumes.iter().map(line).collect()
}

/// Formats the ids, one for each line.
#[must_use]
pub fn to_ids(volumes: &[Listing]) -> String {
    volumes.iter().map(|listing| format!("{}\n", listing.volume.id)).collect()
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
