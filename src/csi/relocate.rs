//! Claims whose source is on another node. This frontend knows no cluster API, so a callback moves them.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::engine::request::CreateVolume;
use crate::volume::{CLAIM_NAME, CLAIM_NAMESPACE, Source};

/// A claim for a copy of a volume or snapshot, which another node can satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingClaim {
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub claim: String,
    /// The volume or snapshot to copy.
    pub source: Source,
}

impl PendingClaim {
    /// The claim that a request is for. `None` if the request has no source, is for this node only, or names no claim.
    pub(super) fn from_request(request: &CreateVolume) -> Option<Self> {
        let label = |key: &str| request.labels.get(key).cloned();
        let source = request.source.clone().filter(|_| request.may_go_elsewhere)?;
        Some(Self { namespace: label(CLAIM_NAMESPACE)?, claim: label(CLAIM_NAME)?, source })
    }
}

type Relocation = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Moves claims to the node of their source.
#[derive(Clone)]
pub struct ClaimRelocator(Arc<dyn Fn(PendingClaim) -> Relocation + Send + Sync>);

impl ClaimRelocator {
    /// Creates a relocator that calls `relocate` for each claim.
    pub fn new<F: Future<Output = ()> + Send + 'static>(
        relocate: impl Fn(PendingClaim) -> F + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move |claim| Box::pin(relocate(claim))))
    }

    pub(super) async fn relocate(&self, claim: PendingClaim) {
        (self.0)(claim).await;
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
    fn only_a_copy_for_a_named_claim_that_another_node_can_satisfy_is_relocated() {
        let source = Source::Snapshot("p/s".parse().unwrap());
        let labels = [(CLAIM_NAME.to_owned(), "c".to_owned()), (CLAIM_NAMESPACE.to_owned(), "n".to_owned())];
        let request = CreateVolume {
            source: Some(source.clone()),
            may_go_elsewhere: true,
            labels: labels.into_iter().collect(),
            ..CreateVolume::default()
        };
        let claim = PendingClaim { namespace: "n".into(), claim: "c".into(), source };
        assert_eq!(PendingClaim::from_request(&request), Some(claim));
        for other in [
            CreateVolume { source: None, ..request.clone() },
            CreateVolume { may_go_elsewhere: false, ..request.clone() },
            CreateVolume { labels: [].into(), ..request },
        ] {
            assert_eq!(PendingClaim::from_request(&other), None);
        }
    }
}
