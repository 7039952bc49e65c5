//! Events about claims. This frontend knows no cluster API: another module records what is sent to a channel.

use tokio::sync::mpsc::Sender;

use crate::volume::{CLAIM_NAME, CLAIM_NAMESPACE, Enforced, Limit, Size, Volume};

/// An event about the claim of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimEvent {
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub claim: String,
    /// The same for each attempt to report the same event, so that it is recorded once: lowercase letters and digits.
    pub id: String,
    /// The reason in CamelCase, for programs.
    pub reason: &'static str,
    /// The text for people.
    pub message: String,
}

impl ClaimEvent {
    /// The event for a new volume whose size is not enforced. `None` if it is, if none was requested, if the class says
    /// `limit: none`, or if the claim is unknown.
    fn size_not_enforced(volume: &Volume) -> Option<Self> {
        let is_enforced = matches!(volume.enforced, Enforced::Bytes | Enforced::BytesAndInodes);
        if is_enforced || volume.size == 0 || volume.policy.limit == Limit::None {
            return None;
        }
        let label = |key: &str| volume.labels.get(key).cloned();
        let message = format!(
            "the size of {} is not enforced: pods can write more to volume {}, up to the free space of its pool \
             (`orlop inspect` says why)",
            Size(volume.size).to_short(),
            volume.id
        );
        Some(Self {
            namespace: label(CLAIM_NAMESPACE)?,
            claim: label(CLAIM_NAME)?,
            id: volume.uid.simple().to_string(),
            reason: "SizeNotEnforced",
            message,
        })
    }
}

/// Reports what the claim of a new volume should know. An event is lost if too many wait: a call never waits for one.
pub(super) fn report_created(events: Option<&Sender<ClaimEvent>>, volume: &Volume) {
    if let Some(events) = events
        && let Some(event) = ClaimEvent::size_not_enforced(volume)
        && events.try_send(event).is_err()
    {
        tracing::debug!(volume = %volume.id, "too many events wait to be recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(enforced: &str, size: u64, limit: &str) -> Volume {
        serde_json::from_value(serde_json::json!({
            "schema": 1,
            "uid": "0b6fd0a7-5d3c-4c3e-9d7c-2a8f1d1f0a11",
            "id": "p/v",
            "requestedName": "v",
            "size": size,
            "enforced": enforced,
            "owner": {"uid": 0, "gid": 0, "mode": "0755"},
            "policy": {"limit": limit},
            "labels": {CLAIM_NAME: "c", CLAIM_NAMESPACE: "n"},
            "created": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn a_claim_is_told_once_that_its_size_is_not_enforced() {
        let event = ClaimEvent::size_not_enforced(&volume("no", 10 << 30, "auto")).unwrap();
        assert_eq!((&event.namespace[..], &event.claim[..], event.reason), ("n", "c", "SizeNotEnforced"));
        assert_eq!(event.id, "0b6fd0a75d3c4c3e9d7c2a8f1d1f0a11");
        assert!(event.message.starts_with("the size of 10Gi is not enforced: "), "{}", event.message);
        let inodes_only = ClaimEvent::size_not_enforced(&volume("inodes", 10 << 30, "auto"));
        assert_eq!(inodes_only, Some(event));
    }

    #[test]
    fn a_claim_is_told_nothing_if_its_size_is_enforced_or_need_not_be() {
        let mut without_claim = volume("no", 1, "auto");
        without_claim.labels.clear();
        for volume in
            [volume("bytes", 1, "auto"), volume("no", 0, "auto"), volume("no", 1, "none"), without_claim]
        {
            assert_eq!(ClaimEvent::size_not_enforced(&volume), None);
        }
    }
}
