//! Plain directories on any filesystem: sizes are not enforced, copies are made file by file.

use std::os::fd::BorrowedFd;

use super::{Backend, BackendKind, Capabilities, CopySupport, LimitSupport, UsageSupport};
use crate::fs::project::{self, Projects};

/// The backend without state; uses the defaults of [`Backend`] for everything else.
#[derive(Debug)]
pub(super) struct Dir {
    how_to_limit: Option<&'static str>,
}

impl Dir {
    pub(super) fn new(root: BorrowedFd<'_>) -> Self {
        let how_to_limit = match project::kind_of(root) {
            Some(_) if project::is_enforced(root) => Some(
                "its filesystem has project quotas: `orlop check --fix` makes the pool and its volumes use them",
            ),
            Some(Projects::Xfs) => Some(
                "a new pool enforces sizes after `umount PATH` and `mount -o prjquota DEVICE PATH`, with those of the \
                 filesystem, and this one after `orlop check --fix`",
            ),
            Some(Projects::Ext4) => Some(
                "a new pool enforces sizes after `tune2fs -O project,quota -E quotatype=prjquota DEVICE`, with the \
                 filesystem unmounted, and `mount -o prjquota DEVICE PATH`, and this one after `orlop check --fix`",
            ),
            None => None,
        };
        Self { how_to_limit }
    }
}

impl Backend for Dir {
    fn kind(&self) -> BackendKind {
        BackendKind::Dir
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { limits: LimitSupport::None, copies: CopySupport::Files, usage: UsageSupport::Walk }
    }

    fn how_to_limit(&self) -> Option<&'static str> {
        self.how_to_limit
    }
}
