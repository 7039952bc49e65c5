//! Which volumes have lost their PersistentVolumes, if the command runs in a cluster.

use std::collections::BTreeSet;
use std::path::Path;

use crate::command::session::Session;
use crate::config::flags::InCluster;
use crate::volume::{Volume, VolumeId};

/// The volumes that Kubernetes has made for claims and that it does not know any more, of volumes with the paths of their
/// data. Empty outside a cluster, and if the cluster cannot be asked, which is said.
#[cfg(feature = "kube")]
pub(super) fn orphans<'v>(
    session: &Session,
    cluster: &InCluster,
    volumes: impl Iterator<Item = (&'v Volume, &'v Path)>,
) -> BTreeSet<VolumeId> {
    let of_claims: Vec<_> = volumes
        .filter(|(volume, _)| volume.managed && volume.claim().is_some())
        .map(|(volume, data)| (&volume.id, data))
        .collect();
    if of_claims.is_empty() || !crate::kube::is_in_cluster() {
        return BTreeSet::new();
    }
    known::orphans(session, cluster, &of_claims).unwrap_or_else(|error| {
        super::print_error(&format!("which volumes are orphans is not known: {}", known::line(&error)));
        BTreeSet::new()
    })
}

/// Without a client of Kubernetes, no volume is known to be an orphan.
#[cfg(not(feature = "kube"))]
pub(super) fn orphans<'v>(
    _: &Session,
    _: &InCluster,
    _: impl Iterator<Item = (&'v Volume, &'v Path)>,
) -> BTreeSet<VolumeId> {
    BTreeSet::new()
}

/// What the cluster is asked.
#[cfg(feature = "kube")]
mod known {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use crate::command::printable;
    use crate::command::session::Session;
    use crate::config::flags::InCluster;
    use crate::error::{Error, Result};
    use crate::kube::ClusterState;
    use crate::pool::object::ObjectKind;
    use crate::volume::VolumeId;

    /// The age at which a volume must have its PersistentVolume. csi-provisioner makes that after the volume, and waits up to
    /// five minutes before it repeats a call for a volume that was being copied.
    const GRACE: Duration = Duration::from_mins(10);
    /// Characters of an error that are shown. The API server writes a part of it.
    const MAX_ERROR: usize = 300;

    pub(super) fn orphans(
        session: &Session,
        cluster: &InCluster,
        of_claims: &[(&VolumeId, &Path)],
    ) -> Result<BTreeSet<VolumeId>> {
        let handles = of_claims.iter().map(|(id, _)| id.to_string()).collect();
        let states = crate::run::volume_states(&cluster.driver, cluster.node_id.as_deref(), &handles)?;
        let (mut orphans, mut unknown) = (BTreeSet::new(), Vec::new());
        for &(id, data) in of_claims {
            match states.get(&id.to_string()) {
                Some(ClusterState::Kept) => {}
                Some(ClusterState::Released) => drop(orphans.insert(id.clone())),
                None => unknown.push((id.clone(), data.to_owned())),
            }
        }
        if !unknown.is_empty() {
            let is_old = |(id, data): (VolumeId, PathBuf)| has_old_record(&data).then_some(id);
            let old = move || unknown.into_iter().filter_map(is_old).collect::<Vec<_>>();
            orphans.extend(session.call("read the ages of volumes", move |_| Ok(old()))?);
        }
        Ok(orphans)
    }

    /// Whether the record of a volume was written long ago. Its time of creation is no measure: that of a copy is from before
    /// the copying.
    fn has_old_record(data: &Path) -> bool {
        let record = data.with_file_name(ObjectKind::Volumes.record());
        let written = record.symlink_metadata().and_then(|metadata| metadata.modified());
        written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > GRACE))
    }

    /// An error in one line of limited length.
    pub(super) fn line(error: &Error) -> String {
        let text = printable(&error.chain());
        let mut line: String = text.chars().take(MAX_ERROR).collect();
        if line.len() < text.len() {
            line.push('…');
        }
        line
    }
}
