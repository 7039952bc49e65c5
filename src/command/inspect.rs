//! The output of `orlop inspect`.

use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use super::template::{Item, Template};
use super::{to_json as format_json, to_yaml as format_yaml};
use crate::engine::request::{HostUse, Inspected};
use crate::error::Result;
use crate::mount::users::User;
use crate::volume::{
    BackendState, Consistency, Enforced, Labels, Name, Owner, Policy, PoolName, Source, Timestamp, Volume,
    VolumeId,
};

/// A volume, with `null` for what only a managed volume has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    id: &'a VolumeId,
    pool: &'a PoolName,
    name: &'a Name,
    requested_name: &'a str,
    uid: Option<Uuid>,
    path: &'a Path,
    size: u64,
    enforced: Enforced,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_enforced: Option<&'a str>,
    /// `cheap`, or `copy`: all bytes are copied.
    snapshot_cost: Option<&'static str>,
    owner: Option<Owner>,
    policy: Policy,
    labels: &'a Labels,
    source: Option<&'a Source>,
    consistency: Option<Consistency>,
    pause_ms: Option<u64>,
    paused: &'a [String],
    created: Option<Timestamp>,
    last_backup: Option<Timestamp>,
    managed: bool,
    ephemeral: bool,
    backend: &'a BackendState,
    users: Vec<UserDetails<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<HostDetails<'a>>,
}

/// A host that uses a volume of a shared pool.
#[derive(Debug, Serialize)]
struct HostDetails<'a> {
    node: &'a str,
    since: Timestamp,
    /// Whether no other host may use it meanwhile.
    alone: bool,
}

/// A user of a volume, with `null` for what is not known.
#[derive(Debug, Serialize)]
struct UserDetails<'a> {
    pod: Option<&'a str>,
    container: Option<&'a str>,
    pid: Option<i32>,
    command: Option<&'a str>,
    target: String,
}

impl<'a> From<&'a Inspected> for Details<'a> {
    fn from(inspected: &'a Inspected) -> Self {
        let Inspected { volume, path, not_enforced, has_cheap_snapshots, users, hosts } = inspected;
        let Volume { id, managed, copied, .. } = volume;
        let copied = copied.as_ref();
        Self {
            id,
            pool: &id.pool,
            name: &id.name,
            requested_name: &volume.requested_name,
            uid: managed.then_some(volume.uid),
            path,
            size: volume.size,
            enforced: volume.enforced,
            not_enforced: not_enforced.as_deref(),
            snapshot_cost: has_cheap_snapshots.map(|cheap| if cheap { "cheap" } else { "copy" }),
            owner: managed.then_some(volume.owner),
            policy: volume.policy,
            labels: &volume.labels,
            source: volume.source.as_ref(),
            consistency: copied.map(|copied| copied.consistency),
            pause_ms: copied.map(|copied| copied.pause_ms),
            paused: copied.map_or(&[], |copied| &copied.paused[..]),
            created: managed.then_some(volume.created),
            last_backup: volume.last_backup,
            managed: *managed,
            ephemeral: volume.ephemeral,
            backend: &volume.backend,
            users: users.iter().map(UserDetails::from).collect(),
            hosts: hosts.iter().map(HostDetails::from).collect(),
        }
    }
}

impl<'a> From<&'a HostUse> for HostDetails<'a> {
    fn from(HostUse { node, since, alone }: &'a HostUse) -> Self {
        Self { node, since: *since, alone: *alone }
    }
}

impl<'a> From<&'a User> for UserDetails<'a> {
    fn from(user: &'a User) -> Self {
        Self {
            pod: user.pod.as_deref(),
            container: user.container.as_deref(),
            pid: user.pid,
            command: user.pid.map(|_| user.command.as_str()),
            target: user.target.display().to_string(),
        }
    }
}

/// Formats the volumes as a JSON array.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_json(volumes: &[Inspected]) -> Result<String> {
    format_json(&volumes.iter().map(Details::from).collect::<Vec<_>>())
}

/// Formats the volumes as YAML.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_yaml(volumes: &[Inspected]) -> Result<String> {
    format_yaml(&volumes.iter().map(Details::from).collect::<Vec<_>>())
}

/// Formats each volume by a template.
#[must_use]
pub fn by_template(volumes: &[Inspected], template: &Template) -> String {
    let line = |inspected: &Inspected| {
        let Inspected { volume, path, users, .. } = inspected;
        let whole = serde_json::to_value(Details::from(inspected)).unwrap_or_default();
        let state = match (volume.managed, users.is_empty()) {
            (false, _) => "unmanaged",
            (true, true) => "dangling",
            (true, false) => "ok",
        };
        template.render(&Item { id: &volume.id, path, volume: Some(volume), state, whole: &whole })
    };
    volumes.iter().map(line).collect()
}
