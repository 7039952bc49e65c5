//! The commands that talk to a Kubernetes API server.

mod relocate;

use std::time::Duration;

use ::kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams};
use ::kube::{Client, ResourceExt as _};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use serde_json::json;

use crate::error::{Error, Kind, Result};

pub use relocate::Relocator;

/// How long to wait for a claim to go after its pods were removed.
const CLAIM_WAIT: Duration = Duration::from_secs(60);

/// What to release.
#[derive(Debug, Clone)]
pub struct Release {
    /// The node that is gone for good.
    pub node: String,
    /// The driver whose volumes it had.
    pub driver: String,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Releases the claims of a lost node: deletes them, their PersistentVolumes and what the scheduler believes to be
/// free there, so that their owners make new ones elsewhere. The data is not touched: it is not here. Tells each step
/// to `say`.
///
/// # Errors
/// `InUse` while the Node object still exists; `Unavailable` when the API server does not answer.
pub async fn release_node(release: &Release, mut say: impl FnMut(String)) -> Result<()> {
    let client =
        Client::try_default().await.map_err(|error| failed("find the cluster (KUBECONFIG)", error))?;
    refuse_if_there(&client, &release.node).await?;
    let volumes = volumes_of(&client, release).await?;
    if volumes.is_empty() {
        say(format!("no volume of {} was on node {}", release.driver, release.node));
    }
    for volume in &volumes {
        let claim = claim_of(volume);
        let of =
            claim.as_ref().map_or("no claim".to_owned(), |(space, name)| format!("claim {space}/{name}"));
        say(format!("volume {} ({of})", volume.name_any()));
        if !release.dry_run {
            release_volume(&client, &release.node, volume, claim).await?;
        }
    }
    let capacities = forget_capacity(&client, release).await?;
    let done = if release.dry_run { "would be released" } else { "released" };
    say(format!(
        "{done}: {} volumes, {capacities} storage capacities of node {}",
        volumes.len(),
        release.node
    ));
    Ok(())
}

async fn refuse_if_there(client: &Client, node: &str) -> Result<()> {
    let found = Api::<Node>::all(client.clone()).get_opt(node).await;
    match found.map_err(|error| failed("look for the node", error))? {
        None => Ok(()),
        Some(_) => Err(Error::new(
            Kind::InUse,
            format!(
                "node {node} is still in the cluster: if it is gone for good, `kubectl delete node {node}` first"
            ),
        )),
    }
}

async fn volumes_of(client: &Client, release: &Release) -> Result<Vec<PersistentVolume>> {
    let all = Api::<PersistentVolume>::all(client.clone()).list(&ListParams::default()).await;
    let mut volumes = all.map_err(|error| failed("list the volumes", error))?.items;
    volumes.retain(|volume| is_on(volume, &release.driver, &release.node));
    Ok(volumes)
}

/// Whether a volume is this driver's and bound to this node alone.
fn is_on(volume: &PersistentVolume, driver: &str, node: &str) -> bool {
    let Some(spec) = &volume.spec else { return false };
    let key = format!("{driver}/node");
    let terms = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let terms = terms.map(|required| required.node_selector_terms.as_slice()).unwrap_or_default();
    let only_here = |term: &k8s_openapi::api::core::v1::NodeSelectorTerm| {
        let mut expressions = term.match_expressions.iter().flatten();
        expressions.any(|at| at.key == key && at.values.as_deref() == Some(&[node.to_owned()]))
    };
    spec.csi.as_ref().is_some_and(|csi| csi.driver == driver)
        && !terms.is_empty()
        && terms.iter().all(only_here)
}

/// The one node that a volume is on.
fn node_of(volume: &PersistentVolume, driver: &str) -> Option<String> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let [term] = required.node_selector_terms.as_slice() else { return None };
    let key = format!("{driver}/node");
    let at = term.match_expressions.iter().flatten().find(|at| at.key == key)?;
    match at.values.as_deref()? {
        [node] => Some(node.clone()),
        _ => None,
    }
}

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
    // First of all: should the node come back, nobody deletes its data for this volume.
    let retain = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}});
    gone_is_fine(
        volumes.patch(&name, &PatchParams::default(), &Patch::Merge(retain)).await,
        "retain the volume",
    )?;
    if let Some((space, claim)) = claim {
        release_claim(client, node, &space, &claim).await?;
    }
    gone_is_fine(volumes.delete(&name, &DeleteParams::default()).await, "delete the volume")?;
    // Only the lost node's provisioner would take its finalizer off.
    let free = json!({"metadata": {"finalizers": null}});
    gone_is_fine(volumes.patch(&name, &PatchParams::default(), &Patch::Merge(free)).await, "free the volume")
}

async fn release_claim(client: &Client, node: &str, space: &str, claim: &str) -> Result<()> {
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), space);
    let deleted = claims.delete(claim, &DeleteParams::background()).await;
    gone_is_fine(deleted, "delete the claim")?;
    remove_pods(client, node, space, claim).await?;
    let deadline = tokio::time::Instant::now() + CLAIM_WAIT;
    while let Some(found) =
        claims.get_opt(claim).await.map_err(|error| failed("look for the claim", error))?
    {
        // The owner of a StatefulSet's claim makes a new one of the same name at once.
        if found.metadata.deletion_timestamp.is_none() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            let text =
                format!("claim {space}/{claim} does not go: which pod uses it? (kubectl describe pvc)");
            return Err(Error::new(Kind::InUse, text));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// Removes the pods that were on the lost node and used the claim: no kubelet is left to say that they have ended.
async fn remove_pods(client: &Client, node: &str, space: &str, claim: &str) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), space);
    let there = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let found = pods.list(&there).await.map_err(|error| failed("list the pods of the node", error))?;
    for pod in found.items {
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        let uses = |volume: &k8s_openapi::api::core::v1::Volume| {
            volume.persistent_volume_claim.as_ref().is_some_and(|used| used.claim_name == claim)
        };
        if volumes.iter().any(uses) {
            let now = DeleteParams::default().grace_period(0);
            gone_is_fine(pods.delete(&pod.name_any(), &now).await, "remove a pod of the lost node")?;
        }
    }
    Ok(())
}

/// Deletes what the scheduler believes to be free on the node.
async fn forget_capacity(client: &Client, release: &Release) -> Result<usize> {
    let all = Api::<CSIStorageCapacity>::all(client.clone()).list(&ListParams::default()).await;
    let key = format!("{}/node", release.driver);
    let here = |capacity: &CSIStorageCapacity| {
        let labels = capacity.node_topology.as_ref().and_then(|topology| topology.match_labels.as_ref());
        labels.is_some_and(|labels| labels.get(&key) == Some(&release.node))
    };
    let mut count = 0;
    for capacity in all.map_err(|error| failed("list the storage capacities", error))?.items {
        let ObjectMeta { name: Some(name), namespace: Some(space), .. } = &capacity.metadata else {
            continue;
        };
        if !here(&capacity) {
            continue;
        }
        count += 1;
        if !release.dry_run {
            let capacities = Api::<CSIStorageCapacity>::namespaced(client.clone(), space);
            gone_is_fine(
                capacities.delete(name, &DeleteParams::default()).await,
                "delete a storage capacity",
            )?;
        }
    }
    Ok(count)
}

fn gone_is_fine<T>(result: ::kube::Result<T>, what: &str) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(::kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(failed(what, error)),
    }
}

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
    fn only_this_drivers_volumes_on_this_node_alone_are_released() {
        let (driver, key) = ("dir.orlop.dev", "dir.orlop.dev/node");
        assert!(is_on(&volume(driver, key, &["n1"]), driver, "n1"));
        assert!(!is_on(&volume(driver, key, &["n2"]), driver, "n1"));
        assert!(!is_on(&volume(driver, key, &["n1", "n2"]), driver, "n1"));
        assert!(!is_on(&volume("other.dev", key, &["n1"]), driver, "n1"));
        assert!(!is_on(&volume(driver, "other/node", &["n1"]), driver, "n1"));
        assert!(!is_on(&PersistentVolume::default(), driver, "n1"));
        assert_eq!(node_of(&volume(driver, key, &["n1"]), driver), Some("n1".into()));
        assert_eq!(node_of(&volume(driver, key, &["n1", "n2"]), driver), None);
        assert_eq!(node_of(&volume(driver, "other/node", &["n1"]), driver), None);
        assert_eq!(claim_of(&volume(driver, key, &["n1"])), Some(("s".into(), "c".into())));
    }
}
