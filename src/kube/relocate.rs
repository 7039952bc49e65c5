//! Moves a claim to the node of its source.
//!
//! The scheduler does not know about sources. It selects a node, the provisioner there cannot satisfy the claim, and
//! the scheduler selects again by the same rules, possibly the same node forever. It obeys an annotation of the claim,
//! which this module sets.

use std::fmt;

use ::kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use ::kube::{Client, ResourceExt as _};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;
use tokio::sync::OnceCell;

use super::{failed, node_of};
use crate::error::Result;
use crate::volume::{Source, VolumeId};

/// Annotation of a claim with the node that the scheduler selected. A provisioner handles the claims of its own node.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Label of a VolumeSnapshotContent with the node of the snapshot, set by the snapshot-controller.
pub(super) const MANAGED_BY: &str = "snapshot.storage.kubernetes.io/managed-by";

/// Moves claims to the node of their source. Connects to the API server at the first claim.
pub struct Relocator {
    driver: String,
    node: String,
    client: OnceCell<Client>,
}

impl fmt::Debug for Relocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relocator")
            .field("driver", &self.driver)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Relocator {
    /// Creates a relocator for the claims of a driver that were assigned to `node`.
    #[must_use]
    pub fn new(driver: String, node: String) -> Self {
        Self { driver, node, client: OnceCell::new() }
    }

    /// Assigns a claim without a volume to the node of its source, and returns that node. `None` if nothing was changed,
    /// because the source is on this node or on no known one, or because the claim is bound or does not exist.
    ///
    /// # Errors
    /// `Unavailable` when a request to the API server fails.
    pub async fn relocate(&self, namespace: &str, claim: &str, source: &Source) -> Result<Option<String>> {
        let client = self.client.get_or_try_init(Client::try_default).await;
        let client = client.map_err(|error| failed("find the cluster", error))?;
        let node = match source {
            Source::Volume(id) => self.node_of_volume(client, id).await?,
            Source::Snapshot(id) => self.node_of_snapshot(client, id).await?,
        };
        let Some(node) = node.filter(|node| *node != self.node) else { return Ok(None) };
        let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
        let found = claims.get_opt(claim).await.map_err(|error| failed("get the claim", error))?;
        let is_unbound = |claim: &PersistentVolumeClaim| {
            claim.spec.as_ref().is_some_and(|spec| spec.volume_name.as_deref().unwrap_or_default().is_empty())
        };
        let Some(found) = found.filter(is_unbound) else { return Ok(None) };
        // The version makes the patch fail if the scheduler or a provisioner has changed the claim meanwhile. A retry
        // then sees the result.
        let change = json!({"metadata": {
            "resourceVersion": found.resource_version(),
            "annotations": {SELECTED_NODE: node},
        }});
        let patched = claims.patch(claim, &PatchParams::default(), &Patch::Merge(change)).await;
        patched.map_err(|error| failed("assign the claim to the node of its source", error))?;
        Ok(Some(node))
    }

    async fn node_of_volume(&self, client: &Client, id: &VolumeId) -> Result<Option<String>> {
        let volumes = Api::<PersistentVolume>::all(client.clone());
        let matches = |volume: &PersistentVolume| {
            let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            csi.is_some_and(|csi| csi.driver == self.driver && csi.volume_handle == id.to_string())
        };
        // A provisioned PersistentVolume is named after its handle; one that an administrator created has any name.
        let named = volumes.get_opt(&api_name(id)).await;
        let named = named.map_err(|error| failed("get the PersistentVolume of the source", error))?;
        if let Some(volume) = named.filter(matches) {
            return Ok(node_of(&volume, &self.driver));
        }
        let all = volumes.list(&ListParams::default()).await;
        let all = all.map_err(|error| failed("list the PersistentVolumes", error))?;
        Ok(all.iter().find(|volume| matches(volume)).and_then(|volume| node_of(volume, &self.driver)))
    }

    async fn node_of_snapshot(&self, client: &Client, id: &VolumeId) -> Result<Option<String>> {
        let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotContent");
        let contents = Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk(&kind));
        let matches = |content: &DynamicObject| {
            content.data["spec"]["driver"] == *self.driver
                && content.data["status"]["snapshotHandle"] == *id.to_string()
        };
        let node = |content: &DynamicObject| content.labels().get(MANAGED_BY).cloned();
        let name = api_name(id).replacen("snapshot-", "snapcontent-", 1);
        let named = contents.get_opt(&name).await;
        let named = named.map_err(|error| failed("get the VolumeSnapshotContent of the source", error))?;
        if let Some(content) = named.filter(matches) {
            return Ok(node(&content));
        }
        let all = contents.list(&ListParams::default()).await;
        let all = all.map_err(|error| failed("list the VolumeSnapshotContents", error))?;
        Ok(all.iter().find(|content| matches(content)).and_then(node))
    }
}

/// The name of a provisioned object of this id. `none` if that is not a valid object name; callers check the handle of
/// the object that they find.
fn api_name(id: &VolumeId) -> String {
    let name = id.name.as_str();
    let is_valid =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if name.bytes().all(is_valid) { name.to_owned() } else { "none".to_owned() }
}
