//! The copy that works on every filesystem: file by file.

use super::{CopyStats, Pass, SourceState, TreeCopy};
use crate::error::Result;
use crate::fs::copy::TreeCopier;
use crate::volume::Enforced;

/// Copies each file, and again what has changed since.
pub(super) struct FileCopy<'a> {
    pub(super) copier: TreeCopier<'a>,
    pub(super) enforced: Enforced,
}

impl TreeCopy for FileCopy<'_> {
    fn live(&mut self) -> Result<Pass> {
        self.copier.live()
    }

    fn freeze_point(&mut self, source: SourceState) -> Result<()> {
        self.copier.freeze_point(source).map(drop)
    }

    fn finish(self: Box<Self>) -> Result<CopyStats> {
        let copied = Some(self.copier.finish()?);
        Ok(CopyStats { copied, skipped_subvolumes: 0, enforced: self.enforced })
    }
}
