//! What the CSI frontend asks of the Kubernetes API.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::groups;
use crate::csi::{ClaimEvent, ClaimRelocator, Driver, Identity, PendingClaim};
use crate::error::{Error, Kind, Result};
use crate::kube::{ClaimNews, Recorder, Relocator};

/// Timeout of the requests to the API server that record one event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many events may wait. More are lost, so that a cluster that does not respond costs no memory.
const WAITING_EVENTS: usize = 256;

/// Timeout of all requests to the API server that relocate one claim. After a timeout, the caller's retry tries again.
const RELOCATE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a driver does with the Kubernetes API.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Moves claims to the node of their source.
    pub(super) relocations: bool,
    /// Records events about claims.
    pub(super) events: bool,
    /// Makes group snapshots.
    pub(super) groups: bool,
}

impl Wanted {
    /// Lets the driver do it, until `stop`.
    pub(super) fn connect(self, driver: Driver, identity: &Identity, stop: &CancellationToken) -> Driver {
        if self.groups {
            let serving = groups::serve(driver.clone(), identity.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        }
        let relocator = self.relocations.then(|| claim_relocator(identity));
        let events = self.events.then(|| claim_events(identity));
        driver.with_relocator(relocator).with_events(events)
    }
}

/// Moves claims to the node of their source.
fn claim_relocator(identity: &Identity) -> ClaimRelocator {
    let relocator = Arc::new(Relocator::new(identity.driver.clone(), identity.node.clone()));
    ClaimRelocator::new(move |PendingClaim { namespace, claim, source }| {
        let relocator = Arc::clone(&relocator);
        async move {
            let sent =
                tokio::time::timeout(RELOCATE_TIMEOUT, relocator.relocate(&namespace, &claim, &source)).await;
            match sent {
                Ok(Ok(Some(node))) => {
                    info!(claim, namespace, %source, node, "relocated the claim to the node of its source")
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    warn!(
                        claim,
                        namespace,
                        error = error.chain(),
                        "cannot relocate the claim to the node of its source"
                    );
                }
                Err(_) => warn!(
                    claim,
                    namespace,
                    "cannot relocate the claim to the node of its source: the API server did not respond in time"
                ),
            }
        }
    })
}

/// Records the events that are sent to the returned channel.
fn claim_events(identity: &Identity) -> Sender<ClaimEvent> {
    let (sender, receiver) = mpsc::channel(WAITING_EVENTS);
    tokio::spawn(record_events(identity.clone(), receiver));
    sender
}

async fn record_events(identity: Identity, mut events: Receiver<ClaimEvent>) {
    while let Some(first) = events.recv().await {
        // A connection takes memory, so it lasts as long as events wait.
        let mut recorder = None;
        let mut next = Some(first);
        while let Some(event) = next {
            if let Err(error) = record(&identity, &mut recorder, &event).await {
                let (claim, namespace) = (event.claim, event.namespace);
                warn!(claim, namespace, error = error.chain(), "cannot record an event of the claim");
            }
            next = events.try_recv().ok();
        }
    }
}

async fn record(identity: &Identity, recorder: &mut Option<Recorder>, event: &ClaimEvent) -> Result<()> {
    let recorded = async {
        let recorder = match recorder {
            Some(recorder) => recorder,
            None => recorder.insert(Recorder::connect(identity.driver.clone(), identity.node.clone()).await?),
        };
        let ClaimEvent { namespace, claim, id, reason, message } = event;
        recorder.record(ClaimNews { namespace, claim, id, reason, message }).await
    };
    tokio::time::timeout(EVENT_TIMEOUT, recorded)
        .await
        .unwrap_or_else(|_| Err(Error::new(Kind::Unavailable, "the API server did not respond in time")))
}
