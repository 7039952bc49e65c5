//! Which volumes have lost their PersistentVolumes, if the command runs in a cluster.

use std::collections::BTreeSet;

use crate::config::flags::InCluster;
use crate::volume::{Volume, VolumeId};

/// The volumes that Kubernetes has made for claims and that it does not know any more. Empty outside a cluster, and if the
/// cluster cannot be asked, which is said.
#[cfg(feature = "kube")]
pub(super) fn orphans<'v>(
    cluster: &InCluster,
    volumes: impl Iterator<Item = &'v Volume>,
) -> BTreeSet<VolumeId> {
    use super::print_error;
    use crate::command::printable;
    use crate::volume::Timestamp;

    /// Age in seconds at which a volume must have its PersistentVolume: csi-provisioner makes that after the volume.
    const GRACE: i64 = 20;

    let newest = Timestamp::now().as_second() - GRACE;
    let of_claims: Vec<_> = volumes
        .filter(|volume| volume.managed && volume.claim().is_some() && volume.created.as_second() < newest)
        .map(|volume| &volume.id)
        .collect();
    if of_claims.is_empty() || !crate::kube::is_in_cluster() {
        return BTreeSet::new();
    }
    match crate::run::kept_volumes(&cluster.driver, cluster.node_id.as_deref()) {
        Ok(kept) => of_claims.into_iter().filter(|id| !kept.contains(&id.to_string())).cloned().collect(),
        Err(error) => {
            print_error(&format!("which volumes are orphans is not known: {}", printable(&error.chain())));
            BTreeSet::new()
        }
    }
}

/// Without a client of Kubernetes, no volume is known to be an orphan.
#[cfg(not(feature = "kube"))]
pub(super) fn orphans<'v>(_: &InCluster, _: impl Iterator<Item = &'v Volume>) -> BTreeSet<VolumeId> {
    BTreeSet::new()
}
