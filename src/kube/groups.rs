//! Group snapshots of volumes that are on one node each: the VolumeGroupSnapshotContents of a driver.
//!
//! The csi-snapshotter of a node handles only contents that are labelled with its node, and reads only classes that are,
//! too. The snapshot-controller (8.7.0) labels single contents, and neither contents of groups nor classes. So orlop does for the
//! contents of groups what csi-snapshotter does for single ones. The node of the volumes claims a content by a label. The
//! member snapshots get the label of csi-snapshotter, which handles them from then on.

mod content;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::pin::pin;
use std::time::Duration;

use ::kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, WatchEvent,
    WatchParams,
};
use ::kube::{Client, Config};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;

use self::content::{FINALIZER, MEMBERS_LABELLED, Object, member_content};
use super::relocate::MANAGED_BY;
use super::{failed, volume_states};
use crate::error::{Error, Kind, Result};
use crate::volume::{Snapshot, Timestamp, VolumeId};

pub use content::{GroupContent, Step};

const GROUP: &str = "groupsnapshot.storage.k8s.io";
/// Prefix of the keys of Kubernetes in the parameters of a class: the names of secrets, which orlop does not use.
const KUBERNETES: &str = "csi.storage.k8s.io/";
/// How long the API server reports changes before it ends a watch, in seconds.
const WATCH: u32 = 280;
/// How long a watch may take then. The connection has died without notice.
const WATCH_TIMEOUT: Duration = Duration::from_secs(330);
/// How long the PersistentVolumes may take to be listed.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// Contents in one response.
const PAGE: u32 = 250;
/// Maximum bytes of an error in a status.
const MAX_ERROR: usize = 1024;

/// The VolumeGroupSnapshotContents that a driver handles on a node.
pub struct GroupContents {
    driver: String,
    node: String,
    contents: Api<Object>,
    classes: Api<DynamicObject>,
    members: Api<DynamicObject>,
}

impl fmt::Debug for GroupContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupContents")
            .field("driver", &self.driver)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl GroupContents {
    /// Connects to the API server of the cluster that this process runs in.
    ///
    /// # Errors
    /// `Unavailable` if the process runs in no cluster.
    pub async fn connect(driver: String, node: String) -> Result<Self> {
        let mut config = Config::infer().await.map_err(|error| failed("find the cluster", error))?;
        // No response takes longer than a watch.
        config.read_timeout = Some(WATCH_TIMEOUT);
        let client = Client::try_from(config).map_err(|error| failed("connect to the cluster", error))?;
        let kind = |group: &str, kind: &str| ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        Ok(Self {
            driver,
            node,
            contents: Api::all_with(client.clone(), &kind(GROUP, "VolumeGroupSnapshotContent")),
            classes: Api::all_with(client.clone(), &kind(GROUP, "VolumeGroupSnapshotClass")),
            members: Api::all_with(client, &kind("snapshot.storage.k8s.io", "VolumeSnapshotContent")),
        })
    }

    /// What a content needs on this node now.
    #[must_use]
    pub fn step<'c>(&self, content: &'c GroupContent) -> Step<'c> {
        content.step(&self.driver, &self.node)
    }

    /// All contents, and the version of the list, from which a watch continues; `None` if the cluster has no group snapshots.
    ///
    /// # Errors
    /// `Unavailable` when a request to the API server fails.
    pub async fn list(&self) -> Result<Option<(Vec<GroupContent>, String)>> {
        let (mut found, mut page) = (Vec::new(), ListParams::default().limit(PAGE));
        loop {
            let list = match self.contents.list(&page).await {
                Ok(list) => list,
                Err(::kube::Error::Api(status)) if status.code == 404 => return Ok(None),
                Err(error) => return Err(failed("list the VolumeGroupSnapshotContents", error)),
            };
            found.extend(list.items.into_iter().map(GroupContent::new));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(Some((found, list.metadata.resource_version.unwrap_or_default()))),
            }
        }
    }

    /// Sends each new or changed content to a channel, until the API server ends the watch. Returns the version from which to
    /// continue; `None` if it is too old.
    ///
    /// # Errors
    /// `Unavailable` when the request fails, or the connection.
    pub async fn watch(&self, from: &str, updates: &Sender<GroupContent>) -> Result<Option<String>> {
        let watched = tokio::time::timeout(WATCH_TIMEOUT, self.watch_once(from, updates)).await;
        watched.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Unavailable,
                "the API server did not end a watch of VolumeGroupSnapshotContents",
            ))
        })
    }

    async fn watch_once(&self, from: &str, updates: &Sender<GroupContent>) -> Result<Option<String>> {
        let what = |error| failed("watch the VolumeGroupSnapshotContents", error);
        let mut version = from.to_owned();
        let parameters = WatchParams::default().timeout(WATCH);
        let mut events = pin!(self.contents.watch(&parameters, from).await.map_err(what)?);
        while let Some(event) = events.try_next().await.map_err(what)? {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let content = GroupContent::new(object);
                    content.version().clone_into(&mut version);
                    if updates.send(content).await.is_err() {
                        break;
                    }
                }
                WatchEvent::Deleted(object) => {
                    GroupContent::new(object).version().clone_into(&mut version);
                }
                WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                WatchEvent::Error(status) if status.code == 410 => return Ok(None),
                WatchEvent::Error(status) => return Err(what(::kube::Error::Api(status))),
            }
        }
        Ok(Some(version))
    }

    /// The content as it is now; `None` if it is deleted.
    ///
    /// # Errors
    /// `Unavailable` when the request fails.
    pub async fn get(&self, content: &GroupContent) -> Result<Option<GroupContent>> {
        let found = self.contents.get_opt(content.name()).await;
        let found = found.map_err(|error| failed("get the VolumeGroupSnapshotContent", error))?;
        Ok(found.map(GroupContent::new))
    }

    /// Claims a content for this node, unless it has changed.
    ///
    /// # Errors
    /// `Unavailable` when the request fails.
    pub async fn claim(&self, content: &GroupContent) -> Result<()> {
        let label = content::node_label(&self.driver);
        let change = json!({"labels": {label: self.node}});
        self.change(content, change, "claim the VolumeGroupSnapshotContent").await
    }

    /// Removes the finalizer, so that the deletion of a content completes, unless it has changed.
    ///
    /// # Errors
    /// `Unavailable` when the request fails.
    pub async fn release(&self, content: &GroupContent) -> Result<()> {
        let others: Vec<_> = content.finalizers().filter(|finalizer| *finalizer != FINALIZER).collect();
        let change = json!({"finalizers": others});
        self.change(content, change, "release the VolumeGroupSnapshotContent").await
    }

    /// Changes the metadata of a content. If it has changed meanwhile, the next update decides.
    async fn change(&self, content: &GroupContent, mut metadata: Value, what: &str) -> Result<()> {
        metadata["resourceVersion"] = content.version().into();
        let change = Patch::Merge(json!({"metadata": metadata}));
        match self.contents.patch(content.name(), &PatchParams::default(), &change).await {
            Err(::kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
            patched => patched.map(drop).map_err(|error| failed(what, error)),
        }
    }

    /// Refuses volumes that are not on this node. A volume of the same id on another node is another volume.
    ///
    /// # Errors
    /// `Unsupported` for the first such volume; `Unavailable` when a request fails.
    pub async fn require_here(&self, volumes: &[String]) -> Result<()> {
        let wanted: BTreeSet<_> = volumes.iter().cloned().collect();
        let states = volume_states(&self.driver, Some(&self.node), &wanted);
        let here = tokio::time::timeout(LIST_TIMEOUT, states).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Unavailable, "the API server did not list the PersistentVolumes in time"))
        })?;
        let Some(other) = volumes.iter().find(|volume| !here.contains_key(*volume)) else { return Ok(()) };
        let first = volumes.first().map_or("", String::as_str);
        if other == first {
            let text = format!("volume {first} has no PersistentVolume that node {} can use", self.node);
            return Err(Error::new(Kind::Unsupported, text));
        }
        let text = format!(
            "volume {other} is not on node {}, where volume {first} is: the volumes of a group snapshot must be on one \
             node, and in one pool",
            self.node
        );
        Err(Error::new(Kind::Unsupported, text))
    }

    /// The parameters for making the group snapshot of a content: those of its class, and the names of the objects.
    ///
    /// # Errors
    /// `Unavailable` when the request fails; `NotFound` when the class does not exist.
    pub async fn parameters(&self, content: &GroupContent) -> Result<HashMap<String, String>> {
        let name = content.class();
        let class = self.classes.get_opt(name).await;
        let class = class.map_err(|error| failed("get the VolumeGroupSnapshotClass", error))?;
        let class = class.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("the VolumeGroupSnapshotClass {name:?} does not exist"))
        })?;
        let of_class = class.data["parameters"].as_object().into_iter().flatten();
        let of_class = of_class.filter(|(key, _)| !key.starts_with(KUBERNETES));
        let mut parameters: HashMap<_, _> =
            of_class.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
        for (key, value) in content.names() {
            parameters.insert(format!("{KUBERNETES}{key}"), value.to_owned());
        }
        Ok(parameters)
    }

    /// Reports that the group snapshot of a content is ready.
    ///
    /// # Errors
    /// `Unavailable` when the request fails.
    pub async fn report_ready(
        &self,
        content: &GroupContent,
        id: &VolumeId,
        created: Timestamp,
        snapshots: &[Snapshot],
    ) -> Result<()> {
        self.report(content, content::ready_status(content, id, created, snapshots)).await
    }

    /// Reports why there is no group snapshot yet, or why it is not deleted. It is reported once.
    ///
    /// # Errors
    /// `Unavailable` when the request fails.
    pub async fn report_error(&self, content: &GroupContent, error: &Error) -> Result<()> {
        let mut message = error.chain();
        message.truncate(message.floor_char_boundary(MAX_ERROR));
        if content.error() == Some(&message) {
            return Ok(());
        }
        let time = content::seconds(Timestamp::now());
        let mut status = json!({"error": {"message": message, "time": time}});
        if !content.is_ready() {
            status["readyToUse"] = false.into();
        }
        self.report(content, status).await
    }

    async fn report(&self, content: &GroupContent, status: Value) -> Result<()> {
        let change = Patch::Merge(json!({"status": status}));
        let reported = self.contents.patch_status(content.name(), &PatchParams::default(), &change).await;
        super::ignore_not_found(reported, "write the status of the VolumeGroupSnapshotContent")
    }

    /// Labels the contents of the member snapshots with this node, for csi-snapshotter and for restores.
    ///
    /// # Errors
    /// `Busy` while one of them does not exist, unless the group snapshot is being deleted; `Unavailable` when a request
    /// fails.
    pub async fn label_members(&self, content: &GroupContent) -> Result<()> {
        for volume in content.member_volumes() {
            let name = member_content(content.group_uid(), volume);
            let change = Patch::Merge(json!({"metadata": {"labels": {MANAGED_BY: self.node}}}));
            match self.members.patch(&name, &PatchParams::default(), &change).await {
                Err(::kube::Error::Api(status)) if status.code == 404 => {
                    if !content.is_group_terminating() {
                        let text =
                            format!("the snapshot-controller has not made VolumeSnapshotContent {name}");
                        return Err(Error::new(Kind::Busy, text));
                    }
                }
                patched => {
                    patched.map_err(|error| failed("label a VolumeSnapshotContent of the group", error))?;
                }
            }
        }
        let change = Patch::Merge(json!({"metadata": {"labels": {MEMBERS_LABELLED: "true"}}}));
        let patched = self.contents.patch(content.name(), &PatchParams::default(), &change).await;
        super::ignore_not_found(
            patched,
            "note that the members of the VolumeGroupSnapshotContent are labelled",
        )
    }
}
