//! The claim of Kubernetes that a volume was made for.

use std::fmt;

use serde::Serialize;

use super::{Labels, Volume};

/// The label with the namespace of the claim. csi-provisioner gives it to a volume with `--extra-create-metadata`.
pub const CLAIM_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// The label with the name of the claim.
pub const CLAIM_NAME: &str = "csi.storage.k8s.io/pvc/name";

/// A PersistentVolumeClaim, as the labels of a volume name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Claim<'a> {
    /// Its namespace; empty if the labels do not say it.
    pub namespace: &'a str,
    /// Its name in the namespace.
    pub name: &'a str,
}

impl fmt::Display for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl<'a> Claim<'a> {
    fn of(labels: &'a Labels) -> Option<Self> {
        let namespace = labels.get(CLAIM_NAMESPACE).map_or("", String::as_str);
        labels.get(CLAIM_NAME).map(|name| Self { namespace, name })
    }
}

impl Volume {
    /// The claim that the volume belongs to, if Kubernetes has made it for one.
    #[must_use]
    pub fn claim(&self) -> Option<Claim<'_>> {
        Claim::of(&self.labels)
    }
}
