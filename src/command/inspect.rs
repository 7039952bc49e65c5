//! The output of `orlop inspect`.

use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use super::ls::state_of;
use super::template::{Item, Template};
use super::{to_json as format_json, to_yaml as format_yaml};
use crate::engine::request::{HostUse, Inspected};
use crate::error::Result;
use crate::mount::users::User;
use crate::volume::{
    BackendState, Claim, Consistency, Enforced, Labels, Name, Owner, Policy, PoolName, Source, Timestamp,
    Volume, VolumeId,
};

/// A volume to be shown.
#[derive(Debug)]
pub struct Shown {
    /// The volume.
    pub inspected: Inspected,
    /// Whether the cluster has no PersistentVolume of it, although Kubernetes has made it for a claim.
    pub is_orphan: bool,
}

impl Shown {
    fn state(&self) -> &'static str {
        let Inspected { volume, users, hosts, .. } = &self.inspected;
        state_of(Some(volume), Some(users.is_empty() && hosts.is_empty()), self.is_orphan)
    }
}

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
    claim: Option<Claim<'a>>,
    source: Option<&'a Source>,
    consistency: Option<Consistency>,
    pause_ms: Option<u64>,
    paused: &'a [String],
    created: Option<Timestamp>,
    last_backup: Option<Timestamp>,
    managed: bool,
    ephemeral: bool,
    backend: &'a BackendState,
    state: &'static str,
    users: Vec<UserDetails<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<HostDetails<'a>>,
}

/// A host that uses a volume of a shared pool.
#[derive(Debug, Serialize)]
pub(super) struct HostDetails<'a> {
    node: &'a str,
    since: Timestamp,
    /// Whether no other host may use it meanwhile.
    alone: bool,
}

/// A user of a volume, with `null` for what is not known.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UserDetails<'a> {
    /// Its UID.
    pod: Option<&'a str>,
    pod_namespace: Option<&'a str>,
    pod_name: Option<&'a str>,
    container: Option<&'a str>,
    pid: Option<i32>,
    command: Option<&'a str>,
    target: String,
}

impl<'a> From<&'a Shown> for Details<'a> {
    fn from(shown: &'a Shown) -> Self {
        let Inspected { volume, path, not_enforced, has_cheap_snapshots, users, hosts } = &shown.inspected;
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
            claim: volume.claim(),
            source: volume.source.as_ref(),
            consistency: copied.map(|copied| copied.consistency),
            pause_ms: copied.map(|copied| copied.pause_ms),
            paused: copied.map_or(&[], |copied| &copied.paused[..]),
            created: managed.then_some(volume.created),
            last_backup: volume.last_backup,
            managed: *managed,
            ephemeral: volume.ephemeral,
            backend: &volume.backend,
            state: shown.state(),
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
        let name = user.pod_name.as_ref();
        Self {
            pod: user.pod.as_deref(),
            pod_namespace: name.map(|pod| pod.namespace.as_str()),
            pod_name: name.map(|pod| pod.name.as_str()),
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
pub fn to_json(volumes: &[Shown]) -> Result<String> {
    format_json(&volumes.iter().map(Details::from).collect::<Vec<_>>())
}

/// Formats the volumes as YAML.
///
/// # Errors
/// `Internal` when they cannot be represented.
pub fn to_yaml(volumes: &[Shown]) -> Result<String> {
    format_yaml(&volumes.iter().map(Details::from).collect::<Vec<_>>())
}

/// Formats each volume by a template.
#[must_use]
pub fn by_template(volumes: &[Shown], template: &Template) -> String {
    let line = |shown: &Shown| {
        let Inspected { volume, path, .. } = &shown.inspected;
        let whole = serde_json::to_value(Details::from(shown)).unwrap_or_default();
        template.line(&Item {
            id: &volume.id,
            path,
            volume: Some(volume),
            state: shown.state(),
            whole: &whole,
        })
    };
    template.join(volumes.iter().map(line))
}

/// Formats the ids, one for each line.
#[must_use]
pub fn to_ids(volumes: &[Shown]) -> String {
    volumes.iter().map(|shown| format!("{}\n", shown.inspected.volume.id)).collect()
}
