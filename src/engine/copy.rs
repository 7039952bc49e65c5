//! The copy that a job makes: of a snapshot as it is, of a volume as consistent as was asked for.

use std::os::fd::AsFd as _;

use tracing::{info, warn};

use super::consistency::{Part, Pauses};
use super::jobs::JobKey;
use super::request::ConsistencySpec;
use super::source::CopySource;
use crate::backend::{CopySpec, CopyStats, SourceState};
use crate::error::{Error, Kind, Result};
use crate::fs::copy::{Manifest, Progress};
use crate::pool::store::Draft;
use crate::pool::{OpenPool, UsedLock};
use crate::volume::{Consistency, CopyRecord, Size, Source, VolumeId};

/// What a job copies into a draft.
pub(super) struct CopyTask<'a> {
    pub(super) pauses: &'a Pauses,
    /// The pool of the draft.
    pub(super) pool: &'a OpenPool,
    pub(super) from: &'a CopySource,
    pub(super) draft: &'a Draft<'a>,
    pub(super) spec: &'a CopySpec,
    pub(super) consistency: ConsistencySpec,
    pub(super) progress: &'a Progress,
}

/// A finished copy.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) stats: CopyStats,
    /// How consistent it is; `None` for the copy of a snapshot, which does not change.
    pub(super) record: Option<CopyRecord>,
}

impl CopyTask<'_> {
    pub(super) fn run(&self) -> Result<Copied> {
        let (data, progress) = (self.from.open()?, self.progress);
        let in_passes = matches!(self.from.source(), Source::Volume(_))
            && self.consistency.consistency == Consistency::Crash;
        let spec = CopySpec { in_passes, ..self.spec.clone() };
        let mut copy = self.pool.backend.begin_copy(data.as_fd(), self.draft.dir(), &spec, progress)?;
        if copy.is_instant() {
            copy.freeze_point(SourceState::Paused)?;
            let is_volume = matches!(self.from.source(), Source::Volume(_));
            let record = is_volume.then(|| CopyRecord::unpaused(Consistency::Crash));
            return Ok(Copied { stats: copy.finish()?, record });
        }
        let Source::Volume(id) = self.from.source() else {
            copy.live()?;
            return Ok(Copied { stats: copy.finish()?, record: None });
        };
        let pool = self.from.pool();
        let _alone = match self.consistency.consistency {
            Consistency::Crash => exclude_other_hosts(self.from, id)?,
            Consistency::None => None,
        };
        let mut parts = [Part { pool, id, data: data.as_fd(), draft: self.draft, progress, copy }];
        let record = self.pauses.copy(&mut parts, self.consistency)?;
        let [Part { copy, .. }] = parts;
        Ok(Copied { stats: copy.finish()?, record: Some(record) })
    }
}

/// Keeps other hosts from using the source of a consistent copy, as their containers cannot be paused.
pub(super) fn exclude_other_hosts<'s>(from: &'s CopySource, id: &VolumeId) -> Result<Option<UsedLock<'s>>> {
    let Some(used) = from.pool().used() else { return Ok(None) };
    let alone = used.take_to_copy(&id.name).map(Some);
    alone.map_err(|error| {
        if error.kind() != Kind::InUse {
            return error;
        }
        let text = "a consistent copy pauses the containers of this host only: set consistency: none";
        Error::caused(Kind::InUse, text, error)
    })
}

/// The most data that a copy of this size may take. The data of a snapshot does not grow.
pub(super) fn max_bytes(from: &Source, size: u64) -> Option<u64> {
    match from {
        Source::Volume(_) => (size != 0).then_some(size),
        Source::Snapshot(_) => None,
    }
}

/// Adds what to do to the error of a copy that has reached its size.
pub(super) fn too_large(error: Error, from: &Source, size: u64, next: &str) -> Error {
    if error.kind() != Kind::OutOfRange {
        return error;
    }
    let text = format!("{from} has more data than the {} that its copy may take: {next}", Size(size));
    Error::caused(Kind::OutOfRange, text, error)
}

/// Logs the result of a copy: no call may be waiting for it.
pub(super) fn log_copy(to: &JobKey, from: &Source, result: &Result<Copied>) {
    let (to, from) = (to.to_string(), from.to_string());
    match result {
        Err(error) => warn!(from, to, error = error.chain(), "copy failed"),
        Ok(Copied { stats: CopyStats { copied: None, skipped_subvolumes, .. }, .. }) => {
            info!(from, to, skipped_subvolumes, "snapshot of a subvolume finished");
        }
        Ok(Copied { stats: CopyStats { copied: Some(copied), .. }, record }) => {
            let Manifest { entries, bytes, skipped_xattrs, vanished } = *copied;
            let Some(CopyRecord { consistency, pause_ms, paused }) = record else {
                return info!(from, to, entries, bytes, skipped_xattrs, vanished, "copy finished");
            };
            let (consistency, paused) = (consistency.as_str(), paused.join(", "));
            info!(
                from,
                to, entries, bytes, skipped_xattrs, vanished, consistency, pause_ms, paused, "copy finished"
            );
        }
    }
}
