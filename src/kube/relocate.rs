//! Sends a claim to the node of its source.
//!
//! The scheduler knows nothing of sources. It picks a node for the pod, this node refuses the claim, and the scheduler
//! picks again by the same rules: perhaps the same node, for ever. The claim's own annotation is what it obeys.

use std::fmt;

use ::kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use ::kube::{Client, ResourceExt as _};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;
use tokio::sync::OnceCell;

use super::{failed, node_of};
use crate::error::Result;
use crate::volume::{Source, VolumeId};

/// Where the scheduler says which node it picked; every provisioner acts on its own node's claims.
const SELECTED: &str = "volume.kubernetes.io/selected-node";
/// Where the snapshot-controller says which node a snapshot is on.
const MANAGED_BY: &str = "snapshot.storage.kubernetes.io/managed-by";

/// Looks for sources of other nodes. Talks to nobody before the first one.
pub struct Relocator {
    driver: String,
    node: String,
    client: OnceCell<Client>,
}

impl fmt::Debug for Relocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Relocator of {} on {}", self.driver, self.node)
    }
}

impl Relocator {
    /// For a driver on a node.
    #[must_use]
    pub fn new(driver: String, node: String) -> Self {
        Self { driver, node, client: OnceCell::new() }
    }

    /// Gives a claim that waits for a volume to the node of its source. The answer is that node; none: it is this one, or
    /// nobody knows, or the claim needs nothing any more.
    ///
    /// # Errors
    /// `Unavailable` when the API server does not answer or refuses.
    pub async fn send(&self, space: &str, claim: &str, source: &Source) -> Result<Option<String>> {
        let client = self.client.get_or_try_init(Client::try_default).await;
        let client = client.map_err(|error| failed("find the cluster", error))?;
        let there = match source {
            Source::Volume(id) => self.of_volume(client, id).await?,
            Source::Snapshot(id) => self.of_snapshot(client, id).await?,
        };
        let Some(there) = there.filter(|node| *node != self.node) else { return Ok(None) };
        let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), space);
        let found = claims.get_opt(claim).await.map_err(|error| failed("look at the claim", error))?;
        let waits = |claim: &PersistentVolumeClaim| {
            claim.spec.as_ref().is_some_and(|spec| spec.volume_name.as_deref().unwrap_or_default().is_empty())
        };
        let Some(found) = found.filter(waits) else { return Ok(None) };
        // With the version: if the scheduler or a provisioner was faster, the next call sees what came of it.
        let change = json!({"metadata": {
            "resourceVersion": found.resource_version(),
            "annotations": {SELECTED: there},
        }});
        let sent = claims.patch(claim, &PatchParams::default(), &Patch::Merge(change)).await;
        sent.map_err(|error| failed("give the claim to the node of its source", error))?;
        Ok(Some(there))
    }

    async fn of_volume(&self, client: &Client, id: &VolumeId) -> Result<Option<String>> {
        let volumes = Api::<PersistentVolume>::all(client.clone());
        let ours = |volume: &PersistentVolume| {
            let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            csi.is_some_and(|csi| csi.driver == self.driver && csi.volume_handle == id.to_string())
        };
        // The provisioner's volumes have the name of their handle; one made by hand has any.
        let named =
            volumes.get_opt(&api_name(id)).await.map_err(|error| failed("look at the source", error))?;
        if let Some(volume) = named.filter(ours) {
            return Ok(node_of(&volume, &self.driver));
        }
        let all = volumes.list(&ListParams::default()).await;
        let all = all.map_err(|error| failed("look for the source", error))?;
        Ok(all.iter().find(|volume| ours(volume)).and_then(|volume| node_of(volume, &self.driver)))
    }

    async fn of_snapshot(&self, client: &Client, id: &VolumeId) -> Result<Option<String>> {
        let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotContent");
        let contents = Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk(&kind));
        let ours = |content: &DynamicObject| {
            content.data["spec"]["driver"] == *self.driver
                && content.data["status"]["snapshotHandle"] == *id.to_string()
        };
        let node = |content: &DynamicObject| content.labels().get(MANAGED_BY).cloned();
        let named = api_name(id).replacen("snapshot-", "snapcontent-", 1);
        let named = contents.get_opt(&named).await.map_err(|error| failed("look at the source", error))?;
        if let Some(content) = named.filter(ours) {
            return Ok(node(&content));
        }
        let all = contents.list(&ListParams::default()).await;
        let all = all.map_err(|error| failed("look for the source", error))?;
        Ok(all.iter().find(|content| ours(content)).and_then(node))
    }
}

/// What an object of this id is called, if the API server could have such a name.
fn api_name(id: &VolumeId) -> String {
    let name = id.name.as_str();
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if name.bytes().all(fits) { name.to_owned() } else { "none".to_owned() }
}
