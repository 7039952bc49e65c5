//! What becomes of a claim whose source is on another node: somebody who knows the cluster sends it there.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::engine::request::CreateVolume;
use crate::volume::Source;

const CLAIM: &str = "csi.storage.k8s.io/pvc/name";
const SPACE: &str = "csi.storage.k8s.io/pvc/namespace";

/// A claim for a copy of something that is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingClaim {
    /// The claim's namespace.
    pub space: String,
    /// The claim's name.
    pub claim: String,
    /// What is to be copied.
    pub source: Source,
}

impl PendingClaim {
    /// The claim behind a request, if it can go to another node.
    pub(super) fn of(request: &CreateVolume) -> Option<Self> {
        let label = |key: &str| request.labels.get(key).cloned();
        let source = request.source.clone().filter(|_| request.may_go_elsewhere)?;
        Some(Self { space: label(SPACE)?, claim: label(CLAIM)?, source })
    }
}

type Sending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Sends claims to where their source is.
#[derive(Clone)]
pub struct ClaimRelocator(Arc<dyn Fn(PendingClaim) -> Sending + Send + Sync>);

impl ClaimRelocator {
    /// By this means.
    pub fn by<F: Future<Output = ()> + Send + 'static>(
        send: impl Fn(PendingClaim) -> F + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move |away| Box::pin(send(away))))
    }

    pub(super) async fn send(&self, away: PendingClaim) {
        (self.0)(away).await;
    }
}

impl fmt::Debug for ClaimRelocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimRelocator")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_copy_of_a_known_claim_that_can_go_elsewhere_is_sent() {
        let source = Source::Snapshot("p/s".parse().unwrap());
        let labels = [(CLAIM.to_owned(), "c".to_owned()), (SPACE.to_owned(), "n".to_owned())];
        let request = CreateVolume {
            source: Some(source.clone()),
            may_go_elsewhere: true,
            labels: labels.into_iter().collect(),
            ..CreateVolume::default()
        };
        assert_eq!(
            PendingClaim::of(&request),
            Some(PendingClaim { space: "n".into(), claim: "c".into(), source })
        );
        assert_eq!(PendingClaim::of(&CreateVolume { source: None, ..request.clone() }), None);
        assert_eq!(PendingClaim::of(&CreateVolume { may_go_elsewhere: false, ..request.clone() }), None);
        assert_eq!(PendingClaim::of(&CreateVolume { labels: [].into(), ..request }), None);
    }
}
