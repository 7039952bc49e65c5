//! Events about claims, for `kubectl describe pvc`.

use std::fmt;

use ::kube::Client;
use ::kube::api::{Api, ObjectMeta, PostParams};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::failed;
use crate::error::Result;
use crate::volume::Timestamp;

/// Maximum bytes of the claim's name in the name of an event: what remains of 253 beside a point and an id.
const MAX_NAME: usize = 200;

/// An event about a claim.
#[derive(Debug, Clone, Copy)]
pub struct ClaimNews<'a> {
    /// Namespace of the claim.
    pub namespace: &'a str,
    /// Name of the claim.
    pub claim: &'a str,
    /// Distinguishes this event from others of the claim: at most 32 lowercase letters and digits.
    pub id: &'a str,
    /// The reason in CamelCase.
    pub reason: &'a str,
    /// The text for people, at most 1024 bytes.
    pub message: &'a str,
}

/// Records events of one driver on one node.
pub struct Recorder {
    driver: String,
    node: String,
    client: Client,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("driver", &self.driver)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// Connects to the API server of the cluster that this process runs in.
    ///
    /// # Errors
    /// `Unavailable` if the process runs in no cluster.
    pub async fn connect(driver: String, node: String) -> Result<Self> {
        let client = Client::try_default().await.map_err(|error| failed("find the cluster", error))?;
        Ok(Self { driver, node, client })
    }

    /// Records an event. Nothing is recorded if the claim does not exist, or if the event exists.
    ///
    /// # Errors
    /// `Unavailable` when a request to the API server fails.
    pub async fn record(&self, news: ClaimNews<'_>) -> Result<()> {
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), news.namespace);
        let claim = claims.get_opt(news.claim).await.map_err(|error| failed("get the claim", error))?;
        let Some(uid) = claim.and_then(|claim| claim.metadata.uid) else { return Ok(()) };
        let events = Api::<Event>::namespaced(self.client.clone(), news.namespace);
        let event = self.event(news, uid, Time(Timestamp::now()));
        match events.create(&PostParams::default(), &event).await {
            Err(::kube::Error::Api(status)) if status.code == 409 => Ok(()),
            recorded => recorded.map(|_| ()).map_err(|error| failed("record an event of the claim", error)),
        }
    }

    /// `kubectl describe` selects the events of an object by its uid.
    fn event(&self, news: ClaimNews<'_>, uid: String, now: Time) -> Event {
        let start = &news.claim[..news.claim.floor_char_boundary(MAX_NAME)];
        // A part of a name ends with a letter or digit.
        let start = start.trim_end_matches(['-', '.']);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{start}.{}", news.id)),
                namespace: Some(news.namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: Some(news.namespace.to_owned()),
                name: Some(news.claim.to_owned()),
                uid: Some(uid),
                ..ObjectReference::default()
            },
            type_: Some("Normal".to_owned()),
            reason: Some(news.reason.to_owned()),
            message: Some(news.message.to_owned()),
            source: Some(EventSource { component: Some(self.driver.clone()), host: Some(self.node.clone()) }),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        }
    }
}
