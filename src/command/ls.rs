//! The output of `orlop ls`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::inspect::{HostDetails, UserDetails};
use super::template::{Item, Template};
use super::{printable, to_json as format_json, to_yaml as format_yaml};
use crate::engine::request::StoredVolume;
use crate::engine::survey::Uses;
use crate::error::Result;
use crate::quantity::HumanDuration;
use crate::volume::{Claim, Labels, Name, PoolName, Size, Timestamp, Volume, VolumeId};

/// A volume with what the host says about it, as far as that was asked for.
#[derive(Debug)]
pub struct Listing {
    /// The volume.
    pub volume: StoredVolume,
    /// Its data directory.
    pub path: PathBuf,
    /// Its users; `None` if they are not known.
    pub uses: Option<Uses>,
    /// The bytes that it takes, if they were measured.
    pub used: Option<u64>,
    /// Whether the cluster has no PersistentVolume of it, although Kubernetes has made it for a claim.
    pub is_orphan: bool,
}

impl Listing {
    /// Its record, if that can be read.
    #[must_use]
    pub fn record(&self) -> Option<&Volume> {
        self.volume.record.as_ref().ok()
    }

    /// Its provisioned size, if its record can be read.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.record().map(|volume| volume.size)
    }

    /// Whether nothing uses it; `None` if that is not known.
    #[must_use]
    pub fn is_dangling(&self) -> Option<bool> {
        self.uses.as_ref().map(|uses| uses.users.is_empty() && uses.hosts.is_empty())
    }
}

/// The state of a volume, in words.
pub(super) fn state_of(record: Option<&Volume>, is_dangling: Option<bool>, is_orphan: bool) -> &'static str {
    match (record, is_dangling) {
        (None, _) => "unreadable",
        (Some(volume), _) if !volume.managed => "unmanaged",
        (Some(_), Some(false)) => "in use",
        (Some(_), _) if is_orphan => "orphan",
        (Some(_), Some(true)) => "dangling",
        (Some(_), None) => "unknown",
    }
}

/// A volume in a listing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    id: &'a VolumeId,
    pool: &'a PoolName,
    name: &'a Name,
    path: &'a Path,
    /// 0: no size was requested; `None`: unknown.
    size: Option<u64>,
    /// `None`: not measured.
    used: Option<u64>,
    /// `None`: unknown.
    used_by: Option<Vec<UserDetails<'a>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<HostDetails<'a>>,
    labels: Option<&'a Labels>,
    claim: Option<Claim<'a>>,
    created: Option<Timestamp>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> From<&'a Listing> for Row<'a> {
    fn from(listing: &'a Listing) -> Self {
        let StoredVolume { id, record } = &listing.volume;
        let (volume, uses) = (listing.record(), listing.uses.as_ref());
        Self {
            id,
            pool: &id.pool,
            name: &id.name,
            path: &listing.path,
            size: listing.size(),
            used: listing.used,
            used_by: uses.map(|uses| uses.users.iter().map(UserDetails::from).collect()),
            hosts: uses.map(|uses| uses.hosts.iter().map(HostDetails::from).collect()).unwrap_or_default(),
            labels: volume.map(|volume| &volume.labels),
            claim: volume.and_then(Volume::claim),
            created: volume.filter(|volume| volume.managed).map(|volume| volume.created),
            state: state_of(volume, listing.is_dangling(), listing.is_orphan),
            error: record.as_ref().err().map(|error| error.chain()),
        }
    }
}

/// Formats the volumes as a table; with more columns if it may be `wide`. Claims have a column if there are any.
#[must_use]
pub fn to_table(volumes: &[Listing], now: Timestamp, wide: bool) -> String {
    let has_claims = volumes.iter().any(|listing| listing.record().is_some_and(|it| it.claim().is_some()));
    let cells = |listing: &Listing| {
        let row = Row::from(listing);
        let mut cells = vec![
            row.pool.to_string(),
            row.name.to_string(),
            or_dash(row.size.filter(|size| *size != 0).map(|size| Size(size).to_short())),
            or_dash(row.used.map(|used| Size(used).to_short())),
            or_dash(listing.uses.as_ref().and_then(first_user)),
        ];
        if has_claims {
            cells.push(or_dash(row.claim.map(|claim| printable(&claim.to_string()))));
        }
        cells.push(or_dash(row.created.map(|created| age(created, now))));
        cells.push(row.state.to_owned());
        if wide {
            cells.push(printable(&row.path.display().to_string()));
        }
        cells
    };
    let mut header = vec!["POOL", "NAME", "SIZE", "USED", "USED BY"];
    header.extend(has_claims.then_some("CLAIM"));
    header.extend(["AGE", "STATE"]);
    header.extend(wide.then_some("PATH"));
    let header = header.into_iter().map(str::to_owned).collect();
    aligned(&std::iter::once(header).chain(volumes.iter().map(cells)).collect::<Vec<Vec<String>>>())
}

/// A cell of a table: `-` for what is not known, or does not exist.
pub(super) fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// The first user in a few words, and the number of the others.
fn first_user(uses: &Uses) -> Option<String> {
    let start = |id: &str| id.chars().take(12).collect::<String>();
    let of_users =
        uses.users.iter().map(|user| match (&user.pod_name, &user.pod, &user.container, user.pid) {
            (Some(name), ..) => format!("pod {name}"),
            (None, Some(pod), ..) => format!("pod {}", start(pod)),
            (None, None, Some(container), _) => format!("container {}", start(container)),
            (None, None, None, Some(pid)) => format!("process {pid}"),
            (None, None, None, None) => format!("mount {}", user.target.display()),
        });
    let mut all = of_users.chain(uses.hosts.iter().map(|host| format!("host {}", host.node)));
    let first = printable(&all.next()?);
    Some(match all.count() {
        0 => first,
        more => format!("{first} +{more}"),
    })
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
        let volume = listing.record();
        template.line(&Item { id: row.id, path: row.path, volume, state: row.state, whole: &whole })
    };
    template.join(volumes.iter().map(line))
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

/// Formats rows as lines whose columns begin at the same place.
pub(super) fn aligned(table: &[impl AsRef<[String]>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in table {
        let row = row.as_ref();
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (cell, width) in row.as_ref().iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
