//! The copy that works on every filesystem: file by file.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::{CopyStats, Pass, SourceState, TreeCopy};
use crate::error::Result;
use crate::fs::copy::{Manifest, Progress, copy_files, finish};
use crate::volume::Enforced;

/// Copies each file once. The copy of a source that is being written to is not consistent to one point in time.
pub(super) struct FileCopy<'a> {
    from: BorrowedFd<'a>,
    to: OwnedFd,
    enforced: Enforced,
    max_bytes: Option<u64>,
    progress: &'a Progress,
    copied: Manifest,
}

impl<'a> FileCopy<'a> {
    pub(super) fn new(
        from: BorrowedFd<'a>,
        to: OwnedFd,
        enforced: Enforced,
        max_bytes: Option<u64>,
        progress: &'a Progress,
    ) -> Self {
        Self { from, to, enforced, max_bytes, progress, copied: Manifest::default() }
    }
}

impl TreeCopy for FileCopy<'_> {
    fn live(&mut self) -> Result<Pass> {
        self.copied = copy_files(self.from, self.to.as_fd(), self.max_bytes, self.progress)?;
        Ok(Pass::default())
    }

    fn freeze_point(&mut self, _source: SourceState) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<CopyStats> {
        finish(self.to.as_fd(), &self.copied, self.progress)?;
        Ok(CopyStats { copied: self.copied, enforced: self.enforced })
    }
}
