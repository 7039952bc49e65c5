//! A pool on an NFS server whose backend the server only has: project quotas and subvolumes are out of reach over NFS.
//!
//! Volumes are used from here, and made, limited, copied and deleted on the server. Every method that would change an object
//! refuses to.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{StatVfs, fstatvfs};

use super::{
    Backend, BackendKind, Capabilities, CopySpec, CopySupport, LimitSupport, TreeCopy, UsageSupport, Used,
    quota,
};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::fs::open_directory;
use crate::fs::remove::{Removed, Slice};
use crate::volume::{BackendState, DATA, Enforced, Limits};

/// The pool as a client of the server sees it.
#[derive(Debug)]
pub(super) struct Remote(BackendKind);

impl Remote {
    /// The client's side of a backend; `None` if a client can do all that the backend does.
    pub(super) fn of(name: &str) -> Option<Self> {
        [BackendKind::Btrfs, BackendKind::Quota].into_iter().find(|kind| kind.as_str() == name).map(Self)
    }

    fn refusal(&self) -> Error {
        let text = format!(
            "backend {} works on the NFS server only: run this on the server, by the orlop that has `local` in the settings \
             of the pool",
            self.0
        );
        Error::new(Kind::Unsupported, text)
    }
}

impl Backend for Remote {
    fn kind(&self) -> BackendKind {
        self.0
    }

    fn capabilities(&self) -> Capabilities {
        let (limits, copies) = match self.0 {
            BackendKind::Dir => (LimitSupport::None, CopySupport::Files),
            BackendKind::Btrfs => (LimitSupport::Bytes, CopySupport::Instant),
            BackendKind::Quota => (LimitSupport::BytesAndInodes, CopySupport::Files),
        };
        Capabilities { limits, copies, usage: UsageSupport::Walk }
    }

    fn check_changes(&self) -> Result<()> {
        Err(self.refusal())
    }

    fn create(&self, _draft: BorrowedFd<'_>, _state: &BackendState, _limits: Limits) -> Result<Enforced> {
        Err(self.refusal())
    }

    fn begin_copy<'a>(
        &'a self,
        _from: BorrowedFd<'a>,
        _draft: BorrowedFd<'_>,
        _spec: &CopySpec,
        _progress: &'a Progress,
    ) -> Result<Box<dyn TreeCopy + 'a>> {
        Err(self.refusal())
    }

    fn set_limit(&self, _object: BorrowedFd<'_>, _state: &BackendState, _limits: Limits) -> Result<Enforced> {
        Err(self.refusal())
    }

    /// The server answers statfs(2) in a volume with the limit of its project, and in the directory that contains it with
    /// the numbers of the filesystem.
    fn used(&self, object: BorrowedFd<'_>, _state: &BackendState) -> Result<Option<Used>> {
        if self.0 != BackendKind::Quota {
            return Ok(None);
        }
        let data = open_directory(object, DATA).context(|| "open the data directory")?;
        let read = |dir| fstatvfs(dir).context(|| "read the statistics of the volume");
        Ok(used_of_limit(&read(data.as_fd())?, &read(object)?))
    }

    fn check_usable(&self, state: &BackendState) -> Result<()> {
        quota::check_entered(state)
    }

    fn remove(&self, _parent: BorrowedFd<'_>, _name: &str, _slice: Slice<'_>) -> Result<Removed> {
        Err(self.refusal())
    }
}

/// What a volume takes; `None` if it has no limit of bytes, since the numbers are those of the filesystem then.
fn used_of_limit(volume: &StatVfs, filesystem: &StatVfs) -> Option<Used> {
    let total = |stat: &StatVfs| stat.f_blocks.saturating_mul(stat.f_frsize);
    if total(volume) == total(filesystem) {
        return None;
    }
    let blocks = volume.f_blocks.saturating_sub(volume.f_bfree);
    let inodes = volume.f_files.saturating_sub(volume.f_ffree).saturating_sub(quota::OWN_INODES);
    let has_limit = volume.f_files != filesystem.f_files;
    Some(Used { bytes: blocks.saturating_mul(volume.f_frsize), inodes: has_limit.then_some(inodes) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::StatVfsMountFlags;

    use super::*;

    const FILESYSTEM: StatVfs = StatVfs {
        f_bsize: 1 << 20,
        f_frsize: 4096,
        f_blocks: 1000,
        f_bfree: 900,
        f_bavail: 900,
        f_files: 5000,
        f_ffree: 4000,
        f_favail: 4000,
        f_fsid: 0,
        f_flag: StatVfsMountFlags::empty(),
        f_namemax: 255,
    };

    #[test]
    fn the_usage_of_a_volume_is_known_if_its_limit_is_shown() {
        let limited = StatVfs { f_blocks: 10, f_bfree: 3, ..FILESYSTEM };
        let used = used_of_limit(&limited, &FILESYSTEM);
        assert_eq!(used, Some(Used { bytes: 7 * 4096, inodes: None }));
        let with_inodes = StatVfs { f_files: 101, f_ffree: 95, ..limited };
        let used = used_of_limit(&with_inodes, &FILESYSTEM);
        assert_eq!(used, Some(Used { bytes: 7 * 4096, inodes: Some(5) }));
        assert_eq!(used_of_limit(&FILESYSTEM, &FILESYSTEM), None);
    }

    #[test]
    fn every_change_is_refused_with_the_next_step() {
        assert!(Remote::of("dir").is_none() && Remote::of("other").is_none());
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let (root, state, limits) = (root.as_fd(), BackendState::default(), Limits::default());
        for name in ["quota", "btrfs"] {
            let remote = Remote::of(name).unwrap();
            let stop = std::sync::atomic::AtomicBool::new(false);
            let slice = Slice { stop: &stop, length: std::time::Duration::MAX };
            let refusals = [
                remote.check_changes().unwrap_err(),
                remote.create(root, &state, limits).unwrap_err(),
                remote.begin_copy(root, root, &CopySpec::default(), &Progress::default()).err().unwrap(),
                remote.set_limit(root, &state, limits).unwrap_err(),
                remote.remove(root, "x", slice).unwrap_err(),
            ];
            for refusal in refusals {
                assert_eq!(refusal.kind(), Kind::Unsupported);
                let expected = format!("backend {name} works on the NFS server only: run this on the server");
                assert!(refusal.chain().starts_with(&expected), "{}", refusal.chain());
            }
        }
    }
}
