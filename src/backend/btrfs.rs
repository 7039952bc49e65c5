//! Subvolumes of btrfs: a copy is a snapshot, made by one call whatever its size, and sizes are enforced by quota groups if
//! the administrator has switched quotas on.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;

use super::{
    Backend, BackendKind, Capabilities, CopySpec, CopyStats, CopySupport, LimitSupport, Pass, SourceState,
    TreeCopy, UsageSupport, Used, begin_file_copy,
};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::fs::open_directory;
use crate::fs::subvolume::{self, Quotas, can_snapshot, is_subvolume};
use crate::volume::{BackendState, DATA, Enforced, Limit, Limits};

/// `data` of each object is a subvolume, except for what an administrator or another version has placed in the pool.
#[derive(Debug)]
pub(super) struct Btrfs {
    root: OwnedFd,
}

/// A copy that one call makes.
struct SnapshotCopy<'a> {
    backend: &'a Btrfs,
    source: BorrowedFd<'a>,
    draft: OwnedFd,
    spec: CopySpec,
    /// The subvolumes that were left out, and what the kernel enforces; `None` until the copy is made.
    made: Option<(u64, Enforced)>,
}

/// A copy of files into a volume, which may have a limit.
struct LimitedCopy<'a>(Box<dyn TreeCopy + 'a>);

impl Btrfs {
    pub(super) fn new(root: BorrowedFd<'_>) -> Result<Self> {
        let root = root.try_clone_to_owned().context(|| "duplicate a descriptor")?;
        Ok(Self { root })
    }

    fn quotas(&self) -> Result<Quotas> {
        subvolume::quotas(self.root.as_fd())
    }
}

impl Backend for Btrfs {
    fn kind(&self) -> BackendKind {
        BackendKind::Btrfs
    }

    fn capabilities(&self) -> Capabilities {
        let (limits, usage) = match self.quotas() {
            Ok(Quotas::On) => (LimitSupport::Bytes, UsageSupport::Counter),
            Ok(Quotas::Inconsistent) => (LimitSupport::Bytes, UsageSupport::Walk),
            Ok(Quotas::Off) | Err(_) => (LimitSupport::None, UsageSupport::Walk),
        };
        Capabilities { limits, copies: CopySupport::Instant, usage }
    }

    /// Each subvolume has a log of its own.
    fn sync_data_directory(&self, data: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::fsync(data).context(|| "sync the data directory")
    }

    fn how_to_limit(&self) -> Option<&'static str> {
        Some(
            "btrfs quotas are off: run `btrfs quota enable --simple PATH` (Linux 6.7), or `btrfs quota enable PATH`, with \
             the path of the pool",
        )
    }

    fn create(&self, draft: BorrowedFd<'_>, state: &BackendState, limits: Limits) -> Result<Enforced> {
        subvolume::create(draft, c"data")?;
        self.set_limit(draft, state, limits)
    }

    fn begin_copy<'a>(
        &'a self,
        from: BorrowedFd<'a>,
        draft: BorrowedFd<'_>,
        spec: &CopySpec,
        progress: &'a Progress,
    ) -> Result<Box<dyn TreeCopy + 'a>> {
        if !can_snapshot(from, draft) {
            return Ok(Box::new(LimitedCopy(begin_file_copy(self, from, draft, spec, progress)?)));
        }
        let draft = draft.try_clone_to_owned().context(|| "duplicate a descriptor")?;
        Ok(Box::new(SnapshotCopy { backend: self, source: from, draft, spec: spec.clone(), made: None }))
    }

    fn within_limits(
        &self,
        _object: BorrowedFd<'_>,
        _state: &BackendState,
        part: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        part().map_err(explain_full)
    }

    fn set_limit(&self, object: BorrowedFd<'_>, _state: &BackendState, limits: Limits) -> Result<Enforced> {
        let data = open_directory(object, DATA).context(|| "open the data directory")?;
        let wanted = (limits.mode != Limit::None && limits.bytes != 0).then_some(limits.bytes);
        let is_possible = is_subvolume(data.as_fd()) && self.quotas()? != Quotas::Off;
        if is_possible && subvolume::limit(data.as_fd())? != wanted {
            subvolume::set_limit(data.as_fd(), wanted)?;
        }
        let is_enforced = is_possible && subvolume::limit(data.as_fd())? == wanted;
        match (wanted, limits.mode) {
            (None, _) => Ok(Enforced::No),
            (Some(_), _) if is_enforced => Ok(Enforced::Bytes),
            (Some(_), Limit::Hard) => {
                let text = "limit=hard: the kernel does not enforce the size of the volume: it is no subvolume, or quotas \
                            were switched off; use limit=auto";
                Err(Error::new(Kind::Unsupported, text))
            }
            (Some(_), Limit::Auto | Limit::None) => Ok(Enforced::No),
        }
    }

    fn used(&self, object: BorrowedFd<'_>, _state: &BackendState) -> Result<Option<Used>> {
        let data = open_directory(object, DATA).context(|| "open the data directory")?;
        if !is_subvolume(data.as_fd()) || self.quotas()? != Quotas::On {
            return Ok(None);
        }
        let bytes = subvolume::charged_bytes(data.as_fd())?;
        Ok(bytes.map(|bytes| Used { bytes, inodes: None }))
    }
}

impl TreeCopy for SnapshotCopy<'_> {
    fn is_instant(&self) -> bool {
        true
    }

    /// Writes back what the filesystem would write for the snapshot, during a pause.
    fn live(&mut self) -> Result<Pass> {
        let started = Instant::now();
        rustix::fs::syncfs(self.source).context(|| "write the filesystem back")?;
        Ok(Pass { duration: started.elapsed(), ..Pass::default() })
    }

    fn freeze_point(&mut self, _source: SourceState) -> Result<()> {
        let draft = self.draft.as_fd();
        // Of an attempt whose pause was not kept.
        if self.made.take().is_some() {
            subvolume::remove(draft, c"data")?;
        }
        let skipped = subvolume::snapshot(self.source, draft, c"data", self.spec.read_only)?;
        let enforced = self.backend.set_limit(draft, &self.spec.state, self.spec.limits)?;
        self.made = Some((skipped, enforced));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<CopyStats> {
        let (skipped_subvolumes, enforced) =
            self.made.ok_or_else(|| Error::new(Kind::Internal, "the snapshot was not made"))?;
        Ok(CopyStats { copied: None, skipped_subvolumes, enforced })
    }
}

impl TreeCopy for LimitedCopy<'_> {
    fn live(&mut self) -> Result<Pass> {
        self.0.live().map_err(explain_full)
    }

    fn freeze_point(&mut self, source: SourceState) -> Result<()> {
        self.0.freeze_point(source).map_err(explain_full)
    }

    fn finish(self: Box<Self>) -> Result<CopyStats> {
        self.0.finish().map_err(explain_full)
    }
}

/// Tells a volume that is full from a filesystem that is: nothing but the limit of a subvolume gives EDQUOT.
fn explain_full(error: Error) -> Error {
    if !error.has_errno(Errno::DQUOT) {
        return error;
    }
    Error::caused(
        Kind::OutOfRange,
        "the limit of the new volume is reached, which needs a larger size",
        error,
    )
}
