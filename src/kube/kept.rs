//! Which volumes of a driver the cluster keeps, for `orlop ls`.

use std::collections::BTreeSet;
use std::path::Path;

use ::kube::api::{Api, ListParams};
use ::kube::{Client, Config};
use k8s_openapi::api::core::v1::PersistentVolume;

use super::failed;
use crate::error::Result;

/// The variable and the file that each pod with a service account has.
const HOST: &str = "KUBERNETES_SERVICE_HOST";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// PersistentVolumes in one response. The API server reads them in pieces, too.
const PAGE: u32 = 500;

/// Whether this process runs in a pod that has a token for the API server.
#[must_use]
pub fn is_in_cluster() -> bool {
    std::env::var_os(HOST).is_some() && Path::new(TOKEN).exists()
}

/// The handles of the PersistentVolumes of a driver that are not released. With a node, those that only other nodes can use
/// are left out.
///
/// # Errors
/// `Unavailable` when this process runs in no cluster, or a request to the API server fails.
pub async fn kept_handles(driver: &str, node: Option<&str>) -> Result<BTreeSet<String>> {
    let config = Config::incluster().map_err(|error| failed("find the cluster", error))?;
    let client = Client::try_from(config).map_err(|error| failed("connect to the cluster", error))?;
    let volumes = Api::<PersistentVolume>::all(client);
    let (mut found, mut page) = (BTreeSet::new(), ListParams::default().limit(PAGE));
    loop {
        let list = volumes.list(&page).await;
        let list = list.map_err(|error| failed("list the PersistentVolumes", error))?;
        found.extend(list.items.iter().filter_map(|volume| kept_handle(volume, driver, node)));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn kept_handle(volume: &PersistentVolume, driver: &str, node: Option<&str>) -> Option<String> {
    let csi = volume.spec.as_ref()?.csi.as_ref().filter(|csi| csi.driver == driver)?;
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_kept = !matches!(phase, Some("Released" | "Failed"));
    let is_here = node.is_none_or(|node| !is_elsewhere(volume, driver, node));
    (is_kept && is_here).then(|| csi.volume_handle.clone())
}

/// Whether the node affinity of a volume names nodes, and this one is not among them. Each node has pools of its own, so the
/// same handle may be that of another volume there.
fn is_elsewhere(volume: &PersistentVolume, driver: &str, node: &str) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let terms = affinity.and_then(|affinity| affinity.required.as_ref()).map(|it| &it.node_selector_terms);
    let key = format!("{driver}/node");
    let mut nodes = terms
        .into_iter()
        .flatten()
        .flat_map(|term| term.match_expressions.iter().flatten())
        .filter(|expression| expression.key == key)
        .flat_map(|expression| expression.values.iter().flatten())
        .peekable();
    nodes.peek().is_some() && nodes.all(|found| found != node)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DRIVER: &str = "dir.orlop.dev";

    fn volume(driver: &str, phase: &str, nodes: &[&str]) -> PersistentVolume {
        let affinity = json!({"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "dir.orlop.dev/node", "operator": "In", "values": nodes}]}
        ]}});
        serde_json::from_value(json!({
            "metadata": {"name": "v"},
            "spec": {
                "csi": {"driver": driver, "volumeHandle": "default/v"},
                "nodeAffinity": if nodes.is_empty() { json!(null) } else { affinity },
            },
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn a_volume_is_kept_until_it_is_released_and_only_on_its_nodes() {
        for (driver, phase, nodes, node, is_kept) in [
            (DRIVER, "Bound", &["n1"][..], Some("n1"), true),
            (DRIVER, "Available", &["n1"], Some("n1"), true),
            (DRIVER, "Bound", &["n1", "n2"], Some("n2"), true),
            (DRIVER, "Bound", &[], Some("n1"), true),
            (DRIVER, "Bound", &["n2"], None, true),
            (DRIVER, "Bound", &["n2"], Some("n1"), false),
            (DRIVER, "Released", &["n1"], Some("n1"), false),
            (DRIVER, "Failed", &["n1"], Some("n1"), false),
            ("other.dev", "Bound", &["n1"], Some("n1"), false),
        ] {
            let found = kept_handle(&volume(driver, phase, nodes), DRIVER, node);
            let expected = is_kept.then(|| "default/v".to_owned());
            assert_eq!(found, expected, "{driver} {phase} {nodes:?} {node:?}");
        }
    }
}
