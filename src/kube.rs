//! The parts of orlop that use the Kubernetes API: `release-node`, moving claims to the node of their source, events about
//! claims, group snapshots, and which volumes of a listing the cluster keeps.

mod events;
mod groups;
mod kept;
mod relocate;

use std::time::Duration;

use ::kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams};
use ::kube::{Client, ResourceExt as _};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use serde_json::json;

use crate::error::{Error, Kind, Result};

pub use events::{ClaimNews, Recorder};
pub use groups::{GroupContent, GroupContents, Step};
pub use kept::{ClusterState, is_in_cluster, volume_states};
pub use relocate::Relocator;

/// How long to wait for the deletion of a claim after its pods were deleted.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(60);

/// A request to release the claims of a lost node.
#[derive(Debug, Clone)]
pub struct Release {
    /// The node that is lost permanently.
    pub node: String,
    /// The driver whose volumes are released.
    pub driver: String,
    /// Whether to change nothing and only report what would be released.
    pub dry_run: bool,
}

/// Releases the claims of a lost node, so that their owners create new ones on other nodes: deletes the claims, their
/// PersistentVolumes and the CSIStorageCapacity objects of the node. The data, which is on the node, is not touched.
/// Passes a line of text about each step to `report`.
///
/// # Errors
/// `InUse` while the Node object still exists, or while a pod on another node uses a claim; `Unavailable` when a
/// request to the API server fails.
pub async fn release_node(release: &Release, mut report: impl FnMut(String)) -> Result<()> {
    let client = Client::try_default().await;
    let client = client.map_err(|error| {
        failed("find the cluster (set KUBECONFIG to the file of an administrator)", error)
    })?;
    refuse_existing_node(&client, &release.node).await?;
    let volumes = volumes_of(&client, release).await?;
    if volumes.is_empty() {
        report(format!("node {} has no volumes of {}", release.node, release.driver));
    }
    for volume in &volumes {
        let claim = claim_of(volume);
        let claim_text = claim
            .as_ref()
            .map_or_else(|| "no claim".to_owned(), |(namespace, name)| format!("claim {namespace}/{name}"));
        let verb = if release.dry_run { "would release" } else { "releasing" };
        report(format!("{verb} volume {} ({claim_text})", volume.name_any()));
        if !release.dry_run {
            release_volume(&client, &release.node, volume, claim).await?;
        }
    }
    let capacities = delete_capacities(&client, release).await?;
    let done = if release.dry_run { "would release" } else { "released" };
    let (count, node) = (volumes.len(), &release.node);
    report(format!("{done} {count} volumes and {capacities} CSIStorageCapacity objects of node {node}"));
    Ok(())
}

async fn refuse_existing_node(client: &Client, node: &str) -> Result<()> {
    let found = Api::<Node>::all(client.clone()).get_opt(node).await;
    if found.map_err(|error| failed("get the node", error))?.is_none() {
        return Ok(());
    }
    let text = format!(
        "node {node} is still in the cluster: if it is lost permanently, run `kubectl delete node {node}` and retry"
    );
    Err(Error::new(Kind::InUse, text))
}

async fn volumes_of(client: &Client, release: &Release) -> Result<Vec<PersistentVolume>> {
    let all = Api::<PersistentVolume>::all(client.clone()).list(&ListParams::default()).await;
    let mut volumes = all.map_err(|error| failed("list the PersistentVolumes", error))?.items;
    volumes.retain(|volume| is_only_on(volume, &release.driver, &release.node));
    Ok(volumes)
}

/// Reports whether a volume belongs to this driver and can be used on this node only.
fn is_only_on(volume: &PersistentVolume, driver: &str, node: &str) -> bool {
    let Some(spec) = &volume.spec else { return false };
    let key = format!("{driver}/node");
    let terms = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let terms = terms.map(|required| required.node_selector_terms.as_slice()).unwrap_or_default();
    let is_for_node = |term: &k8s_openapi::api::core::v1::NodeSelectorTerm| {
        let mut expressions = term.match_expressions.iter().flatten();
        expressions.any(|expression| {
            expression.key == key && expression.values.as_deref() == Some(&[node.to_owned()])
        })
    };
    spec.csi.as_ref().is_some_and(|csi| csi.driver == driver)
        && !terms.is_empty()
        && terms.iter().all(is_for_node)
}

/// The node of a volume; `None` if there is not exactly one.
fn node_of(volume: &PersistentVolume, driver: &str) -> Option<String> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let [term] = required.node_selector_terms.as_slice() else { return None };
    let key = format!("{driver}/node");
    let expression = term.match_expressions.iter().flatten().find(|expression| expression.key == key)?;
    match expression.values.as_deref()? {
        [node] => Some(node.clone()),
        _ => None,
    }
}

/// Namespace and name of the claim of a volume.
fn claim_of(volume: &PersistentVolume) -> Option<(String, String)> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some((claim.namespace.clone()?, claim.name.clone()?))
}

async fn release_volume(
    client: &Client,
    node: &str,
    volume: &PersistentVolume,
    claim: Option<(String, String)>,
) -> Result<()> {
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let name = volume.name_any();
    // First, so that the data is not deleted if the node returns.
    let retain = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}});
    let patched = volumes.patch(&name, &PatchParams::default(), &Patch::Merge(retain)).await;
    ignore_not_found(patched, "set the reclaim policy of the PersistentVolume")?;
    if let Some((namespace, claim)) = claim {
        release_claim(client, node, &namespace, &claim).await?;
    }
    let deleted = volumes.delete(&name, &DeleteParams::default()).await;
    ignore_not_found(deleted, "delete the PersistentVolume")?;
    // Only the external-provisioner of the lost node would remove its finalizer, so all finalizers are removed here.
    let no_finalizers = json!({"metadata": {"finalizers": null}});
    let patched = volumes.patch(&name, &PatchParams::default(), &Patch::Merge(no_finalizers)).await;
    ignore_not_found(patched, "remove the finalizers of the PersistentVolume")
}

async fn release_claim(client: &Client, node: &str, namespace: &str, claim: &str) -> Result<()> {
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
    let deleted = claims.delete(claim, &DeleteParams::background()).await;
    ignore_not_found(deleted, "delete the claim")?;
    delete_pods(client, node, namespace, claim).await?;
    let deadline = tokio::time::Instant::now() + CLAIM_TIMEOUT;
    while let Some(found) = claims.get_opt(claim).await.map_err(|error| failed("get the claim", error))? {
        // The owner of the claim, such as a StatefulSet, has created a new one of the same name.
        if found.metadata.deletion_timestamp.is_none() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            let text = format!(
                "claim {namespace}/{claim} is still in use: delete the pods that `kubectl describe pvc` names and retry"
            );
            return Err(Error::new(Kind::InUse, text));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// Deletes the pods of the lost node that use the claim, at once: no kubelet is left to report that they have ended.
async fn delete_pods(client: &Client, node: &str, namespace: &str, claim: &str) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let found = pods.list(&on_node).await.map_err(|error| failed("list the pods of the node", error))?;
    for pod in found.items {
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        let uses_claim = |volume: &k8s_openapi::api::core::v1::Volume| {
            volume.persistent_volume_claim.as_ref().is_some_and(|used| used.claim_name == claim)
        };
        if volumes.iter().any(uses_claim) {
            let at_once = DeleteParams::default().grace_period(0);
            let deleted = pods.delete(&pod.name_any(), &at_once).await;
            ignore_not_found(deleted, "delete a pod of the lost node")?;
        }
    }
    Ok(())
}

/// Deletes the CSIStorageCapacity objects of the node, which tell the scheduler its capacity. Returns their number.
async fn delete_capacities(client: &Client, release: &Release) -> Result<usize> {
    let all = Api::<CSIStorageCapacity>::all(client.clone()).list(&ListParams::default()).await;
    let key = format!("{}/node", release.driver);
    let is_of_node = |capacity: &CSIStorageCapacity| {
        let labels = capacity.node_topology.as_ref().and_then(|topology| topology.match_labels.as_ref());
        labels.is_some_and(|labels| labels.get(&key) == Some(&release.node))
    };
    let mut count = 0;
    for capacity in all.map_err(|error| failed("list the storage capacities", error))?.items {
        let ObjectMeta { name: Some(name), namespace: Some(namespace), .. } = &capacity.metadata else {
            continue;
        };
        if !is_of_node(&capacity) {
            continue;
        }
        count += 1;
        if !release.dry_run {
            let capacities = Api::<CSIStorageCapacity>::namespaced(client.clone(), namespace);
            let deleted = capacities.delete(name, &DeleteParams::default()).await;
            ignore_not_found(deleted, "delete a storage capacity")?;
        }
    }
    Ok(count)
}

/// Succeeds also if the object does not exist.
fn ignore_not_found<T>(result: ::kube::Result<T>, what: &str) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(::kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(failed(what, error)),
    }
}

/// The error of a failed request to the API server.
fn failed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::caused(Kind::Unavailable, what, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(driver: &str, key: &str, nodes: &[&str]) -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {"name": "v"},
            "spec": {
                "csi": {"driver": driver, "volumeHandle": "default/v"},
                "claimRef": {"namespace": "s", "name": "c"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": key, "operator": "In", "values": nodes}]}
                ]}},
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_node_and_claim_of_a_volume_are_read_from_its_spec() {
        let (driver, key) = ("dir.orlop.dev", "dir.orlop.dev/node");
        assert!(is_only_on(&volume(driver, key, &["n1"]), driver, "n1"));
        assert!(!is_only_on(&volume(driver, key, &["n2"]), driver, "n1"));
        assert!(!is_only_on(&volume(driver, key, &["n1", "n2"]), driver, "n1"));
        assert!(!is_only_on(&volume("other.dev", key, &["n1"]), driver, "n1"));
        assert!(!is_only_on(&volume(driver, "other/node", &["n1"]), driver, "n1"));
        assert!(!is_only_on(&PersistentVolume::default(), driver, "n1"));
        assert_eq!(node_of(&volume(driver, key, &["n1"]), driver), Some("n1".into()));
        assert_eq!(node_of(&volume(driver, key, &["n1", "n2"]), driver), None);
        assert_eq!(node_of(&volume(driver, "other/node", &["n1"]), driver), None);
        assert_eq!(claim_of(&volume(driver, key, &["n1"])), Some(("s".into(), "c".into())));
    }
}
