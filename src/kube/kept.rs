//! What the cluster knows about volumes of a driver, for `orlop ls`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ::kube::api::ListParams;
use ::kube::client::Body;
use ::kube::core::Request;
use ::kube::{Client, Config};
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, VolumeNodeAffinity};
use serde::Deserialize;

use super::failed;
use crate::error::{Error, Kind, Result};

/// The variable and the file that each pod with a service account has.
const HOST: &str = "KUBERNETES_SERVICE_HOST";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const PATH: &str = "/api/v1/persistentvolumes";
/// PersistentVolumes in one response. The API server reads them in pieces, too.
const PAGE: u32 = 500;
/// Responses that are read: more PersistentVolumes than any cluster has.
const MAX_PAGES: u32 = 400;
/// Maximum size of a response in bytes. It is in the memory of the pod of orlop.
const MAX_BODY: usize = 16 << 20;

/// What a cluster says about a volume for which it has a PersistentVolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterState {
    /// Its claim is deleted.
    Released,
    /// It belongs to a claim, or waits for one.
    Kept,
}

/// A page of PersistentVolumes, with only the fields that are needed.
#[derive(Debug, Deserialize)]
struct List {
    metadata: ListMeta,
    items: Vec<Item>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    r#continue: Option<String>,
    remaining_item_count: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Item {
    spec: Spec,
    status: Option<Status>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    csi: Option<Csi>,
    node_affinity: Option<VolumeNodeAffinity>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Csi {
    driver: String,
    volume_handle: String,
}

#[derive(Debug, Deserialize)]
struct Status {
    phase: Option<String>,
}

/// The response of a request that failed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Failure {
    message: String,
}

/// Whether this process runs in a pod that has a token for the API server.
#[must_use]
pub fn is_in_cluster() -> bool {
    std::env::var_os(HOST).is_some() && Path::new(TOKEN).exists()
}

/// What the cluster says about the volumes of a driver with these handles. A volume without a PersistentVolume is left out.
/// With a node, PersistentVolumes that only other nodes can use do not count.
///
/// # Errors
/// `Unavailable` when this process runs in no cluster, a request to the API server fails, or the list is not complete.
pub async fn volume_states(
    driver: &str,
    node: Option<&str>,
    handles: &BTreeSet<String>,
) -> Result<BTreeMap<String, ClusterState>> {
    let config = Config::incluster().map_err(|error| failed("find the cluster", error))?;
    let client = Client::try_from(config).map_err(|error| failed("connect to the cluster", error))?;
    let (mut found, mut page) = (BTreeMap::new(), ListParams::default().limit(PAGE));
    for _ in 0..MAX_PAGES {
        let list = read_page(&client, &page).await?;
        let states = list.items.into_iter().filter_map(|item| state_of(item, driver, node));
        for (handle, state) in states.filter(|(handle, _)| handles.contains(handle)) {
            let known = found.entry(handle).or_insert(state);
            *known = state.max(*known);
        }
        match next_page(list.metadata)? {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
    Err(unusable(format!("the API server sent more than {MAX_PAGES} pages")))
}

async fn read_page(client: &Client, page: &ListParams) -> Result<List> {
    let what = "list the PersistentVolumes";
    let request = Request::new(PATH).list(page).map_err(|error| failed(what, error))?;
    let response = client.send(request.map(Body::from)).await.map_err(|error| failed(what, error))?;
    let (head, body) = response.into_parts();
    let body = axum::body::to_bytes(axum::body::Body::new(body), MAX_BODY).await.map_err(|error| {
        let text = format!("{what}: the response is incomplete, or larger than {MAX_BODY} bytes");
        failed(&text, error)
    })?;
    if head.status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| failed(what, error));
    }
    let Failure { message } = serde_json::from_slice(&body).unwrap_or_default();
    Err(unusable(format!("the API server answered {}: {message}", head.status)))
}

/// The token of the next page; `None` after the last one.
fn next_page(list: ListMeta) -> Result<Option<String>> {
    let token = list.r#continue.filter(|token| !token.is_empty());
    match list.remaining_item_count {
        // An incomplete list would show volumes as orphans, and so invite to delete them.
        Some(count) if count > 0 && token.is_none() => {
            Err(unusable(format!("the list is incomplete: {count} are missing")))
        }
        Some(_) | None => Ok(token),
    }
}

fn unusable(why: String) -> Error {
    let why = Error::new(Kind::Unavailable, why);
    Error::caused(Kind::Unavailable, "list the PersistentVolumes", why)
}

/// The handle of a PersistentVolume of this driver that this node can use, with its state.
fn state_of(item: Item, driver: &str, node: Option<&str>) -> Option<(String, ClusterState)> {
    let Item { spec, status } = item;
    if node.is_some_and(|node| is_elsewhere(spec.node_affinity.as_ref(), driver, node)) {
        return None;
    }
    let csi = spec.csi.filter(|csi| csi.driver == driver)?;
    let phase = status.and_then(|status| status.phase);
    let is_released = matches!(phase.as_deref(), Some("Released" | "Failed"));
    Some((csi.volume_handle, if is_released { ClusterState::Released } else { ClusterState::Kept }))
}

/// Whether a node affinity names nodes, and this one is not among them. Each node has pools of its own, so the same handle
/// may be that of another volume there. One term suffices, all of whose expressions must match. Only `In` names nodes.
fn is_elsewhere(affinity: Option<&VolumeNodeAffinity>, driver: &str, node: &str) -> bool {
    let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return false };
    let key = format!("{driver}/node");
    let names_others = |expression: &NodeSelectorRequirement| {
        let nodes = expression.values.as_deref().unwrap_or_default();
        let is_named = nodes.is_empty() || nodes.iter().any(|name| name == node);
        expression.key == key && expression.operator == "In" && !is_named
    };
    let terms = &required.node_selector_terms;
    !terms.is_empty() && terms.iter().all(|term| term.match_expressions.iter().flatten().any(names_others))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DRIVER: &str = "dir.orlop.dev";

    /// A PersistentVolume whose node affinity has these terms.
    fn volume(driver: &str, phase: &str, terms: &Value) -> Item {
        let affinity = json!({"required": {"nodeSelectorTerms": terms}});
        serde_json::from_value(json!({
            "metadata": {"name": "v"},
            "spec": {
                "csi": {"driver": driver, "volumeHandle": "default/v"},
                "nodeAffinity": if terms.is_null() { &Value::Null } else { &affinity },
            },
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    fn expression(operator: &str, nodes: &[&str]) -> Value {
        json!({"key": "dir.orlop.dev/node", "operator": operator, "values": nodes})
    }

    fn term(expressions: &[Value]) -> Value {
        json!({ "matchExpressions": expressions })
    }

    #[test]
    fn a_volume_is_kept_until_it_is_released_and_only_on_its_nodes() {
        use ClusterState::{Kept, Released};
        for (driver, phase, nodes, node, expected) in [
            (DRIVER, "Bound", &["n1"][..], Some("n1"), Some(Kept)),
            (DRIVER, "Available", &["n1"], Some("n1"), Some(Kept)),
            (DRIVER, "Bound", &["n1", "n2"], Some("n2"), Some(Kept)),
            (DRIVER, "Bound", &[], Some("n1"), Some(Kept)),
            (DRIVER, "Bound", &["n2"], None, Some(Kept)),
            (DRIVER, "Bound", &["n2"], Some("n1"), None),
            (DRIVER, "Released", &["n1"], Some("n1"), Some(Released)),
            (DRIVER, "Failed", &["n1"], Some("n1"), Some(Released)),
            ("other.dev", "Bound", &["n1"], Some("n1"), None),
        ] {
            let terms = json!([term(&[expression("In", nodes)])]);
            let terms = if nodes.is_empty() { Value::Null } else { terms };
            let found = state_of(volume(driver, phase, &terms), DRIVER, node);
            let expected = expected.map(|state| ("default/v".to_owned(), state));
            assert_eq!(found, expected, "{driver} {phase} {nodes:?} {node:?}");
        }
    }

    #[test]
    fn a_volume_is_elsewhere_only_if_each_term_names_other_nodes() {
        let others = || expression("In", &["n2", "n3"]);
        let zone = || json!({"key": "zone", "operator": "In", "values": ["a"]});
        for (terms, is_elsewhere) in [
            (vec![term(&[others()])], true),
            (vec![term(&[zone(), others()])], true),
            (vec![term(&[others()]), term(&[expression("In", &["n4"])])], true),
            (vec![term(&[expression("In", &["n1", "n2"]), others()])], true),
            (vec![], false),
            (vec![term(&[])], false),
            (vec![json!({})], false),
            (vec![term(&[zone()])], false),
            (vec![term(&[expression("NotIn", &["n2"])])], false),
            (vec![term(&[expression("Exists", &[])])], false),
            (vec![term(&[expression("In", &[])])], false),
            (vec![term(&[others()]), term(&[zone()])], false),
            (vec![term(&[others()]), term(&[expression("In", &["n1"])])], false),
        ] {
            let terms = json!(terms);
            let found = state_of(volume(DRIVER, "Bound", &terms), DRIVER, Some("n1"));
            assert_eq!(found.is_none(), is_elsewhere, "{terms}");
        }
    }

    #[test]
    fn a_list_ends_only_when_nothing_remains() {
        let next = |metadata: Value| next_page(serde_json::from_value(metadata).unwrap());
        assert_eq!(next(json!({"continue": "t", "remainingItemCount": 7})).unwrap().as_deref(), Some("t"));
        for complete in [json!({}), json!({"continue": ""}), json!({"continue": "", "remainingItemCount": 0})]
        {
            assert_eq!(next(complete).unwrap(), None);
        }
        for incomplete in [json!({"continue": "", "remainingItemCount": 7}), json!({"remainingItemCount": 7})]
        {
            let error = next(incomplete).unwrap_err().chain();
            assert_eq!(error, "list the PersistentVolumes: the list is incomplete: 7 are missing");
        }
        serde_json::from_value::<List>(json!({"metadata": {}})).unwrap_err();
    }
}
