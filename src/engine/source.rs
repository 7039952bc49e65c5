//! The source of a copy.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, Mode, OFlags};

use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::OpenPool;
use crate::pool::object::ObjectKind;
use crate::volume::Source;

/// A volume or snapshot that is to be copied. Its data is opened when the copy starts, so a waiting copy holds no
/// descriptor. It is not deleted meanwhile: the copy holds the shared lock of its data.
#[derive(Debug)]
pub(super) struct CopySource {
    pool: Arc<OpenPool>,
    source: Source,
}

impl CopySource {
    pub(super) fn new(pool: &Arc<OpenPool>, source: Source) -> Self {
        Self { pool: Arc::clone(pool), source }
    }

    pub(super) fn pool(&self) -> &OpenPool {
        &self.pool
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Opens the data for reading.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let source = &self.source;
        let kind = match source {
            Source::Volume(_) => ObjectKind::Volumes,
            Source::Snapshot(_) => ObjectKind::Snapshots,
        };
        let data = self.pool.store.data(kind, &source.id().name)?;
        let data = data.ok_or_else(|| Error::new(Kind::Internal, format!("{source} has no data")))?;
        reopen(data.as_fd()).context(|| format!("copy {source}"))
    }
}

/// Opens a path-only directory descriptor for reading.
pub(super) fn reopen(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(dir, ".", flags, Mode::empty()).context(|| "open the data directory")
}
