//! Plain directories on any filesystem: sizes are not enforced, copies are made file by file.

use super::{Backend, BackendKind, Capabilities, CopySupport, LimitSupport, UsageSupport};

/// The backend without state; uses the defaults of [`Backend`] for everything else.
#[derive(Debug)]
pub(super) struct Dir;

impl Backend for Dir {
    fn kind(&self) -> BackendKind {
        BackendKind::Dir
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { limits: LimitSupport::None, copies: CopySupport::Files, usage: UsageSupport::Walk }
    }
}
