//! Filesystem backends, one file for each kind.
//!
//! The default methods work on every filesystem: they use [`crate::fs`], enforce no limit and keep no state.

mod dir;
mod file_copy;

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{Mode, mkdirat};

use self::file_copy::FileCopy;
use crate::error::{Context as _, Result};
use crate::fs::copy::{Manifest, Progress, TreeCopier};
pub use crate::fs::copy::{Pass, SourceState};
use crate::fs::remove::{Removed, Slice, remove_tree};
use crate::fs::{DiskUsage, open_directory, remove_acls};
use crate::volume::{BackendState, DATA, Enforced, Limits};

/// The kinds of backend. A pool's marker records the kind of its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// Plain directories on any filesystem.
    Dir,
}

impl BackendKind {
    /// The name in markers, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The size limits that a backend can enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitSupport {
    /// Sizes are provisioned, not enforced.
    None,
    /// The size in bytes.
    Bytes,
}

/// How a backend copies a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopySupport {
    /// File by file; blocks are shared if the filesystem supports it.
    Files,
}

/// How a backend measures the space that a volume takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageSupport {
    /// By walking the tree.
    Walk,
}

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Supported limits.
    pub limits: LimitSupport,
    /// Copy method.
    pub copies: CopySupport,
    /// Usage measurement method.
    pub usage: UsageSupport,
}

/// Parameters of the new object that a copy creates.
#[derive(Debug, Clone, Default)]
pub struct CopySpec {
    /// State from [`Backend::allot`].
    pub state: BackendState,
    /// Limits of the new object, set before the first byte is copied.
    pub limits: Limits,
    /// The most bytes of data that the copy may take.
    pub max_bytes: Option<u64>,
    /// Whether further passes follow the first one. A copy in one pass need not remember what it has seen.
    pub in_passes: bool,
}

/// A copy in passes. The writers of the source need to be paused during the last one only.
///
/// The engine calls `live` at least once, then `freeze_point` unless the copy need not be that of one moment, then `finish`.
/// After a `freeze_point` that failed or was in vain, it may call `live` and `freeze_point` again. Dropping a copy cancels
/// it; the caller removes the draft.
pub trait TreeCopy {
    /// Copies everything while the source is in use. Later calls bring the copy up to date with what has changed since.
    /// Reports what this call had to copy.
    ///
    /// # Errors
    /// Same as [`TreeCopier::live`].
    fn live(&mut self) -> Result<Pass>;

    /// Brings the copy up to date while no writer changes the source, so that the copy shows one instant of it.
    ///
    /// # Errors
    /// Same as [`TreeCopier::freeze_point`].
    fn freeze_point(&mut self, source: SourceState) -> Result<()>;

    /// Verifies the copy and writes it to stable storage.
    ///
    /// # Errors
    /// `Internal` when the copy is not complete; otherwise the error of the failed system call.
    fn finish(self: Box<Self>) -> Result<CopyStats>;
}

/// Result of a finished copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyStats {
    /// What was copied, and what was left out.
    pub copied: Manifest,
    /// The limits of the new object that the kernel enforces, as reported by the kernel.
    pub enforced: Enforced,
}

/// Operations of one kind of filesystem on the directories that contain `data`: `draft` while an object is being made,
/// `object` afterwards.
///
/// Methods block. After a crash, the engine repeats the whole operation in a new draft.
pub trait Backend: fmt::Debug + Send + Sync {
    /// The kind, compared with the pool's marker.
    fn kind(&self) -> BackendKind;

    /// The capabilities in this pool.
    fn capabilities(&self) -> Capabilities;

    /// Reserves backend state for a new object, such as a project id. The engine records it before the object is made.
    ///
    /// # Errors
    /// `NoSpace` when nothing is left to reserve.
    fn allot(&self) -> Result<BackendState> {
        Ok(BackendState::default())
    }

    /// Makes the empty directory `data` in a draft, with mode 0700 and its limits; returns the limits that the kernel enforces.
    ///
    /// # Errors
    /// `Unsupported` for a limit that cannot be set; otherwise the error of the failed system call.
    fn create(&self, draft: BorrowedFd<'_>, state: &BackendState, limits: Limits) -> Result<Enforced> {
        mkdirat(draft, DATA, Mode::RWXU).context(|| "make the data directory")?;
        let data = open_directory(draft, DATA).context(|| "open the new data directory")?;
        remove_acls(data.as_fd())?;
        self.set_limit(draft, state, limits)
    }

    /// Makes `data` in a draft, with its limits, and starts to copy the directory `from` into it.
    ///
    /// # Errors
    /// Same as [`Backend::create`].
    fn begin_copy<'a>(
        &self,
        from: BorrowedFd<'a>,
        draft: BorrowedFd<'_>,
        spec: &CopySpec,
        progress: &'a Progress,
    ) -> Result<Box<dyn TreeCopy + 'a>> {
        let enforced = self.create(draft, &spec.state, spec.limits)?;
        let to = open_directory(draft, DATA).context(|| "open the new data directory")?;
        let copier = if spec.in_passes {
            TreeCopier::new(from, to.as_fd(), draft, spec.max_bytes, progress)?
        } else {
            TreeCopier::in_one_pass(from, to.as_fd(), spec.max_bytes, progress)?
        };
        Ok(Box::new(FileCopy { copier, enforced }))
    }

    /// Changes the limits of an object; returns the enforced limits as reported by the kernel.
    ///
    /// # Errors
    /// `Unsupported` for a limit that cannot be set.
    fn set_limit(&self, _object: BorrowedFd<'_>, _state: &BackendState, _limits: Limits) -> Result<Enforced> {
        Ok(Enforced::No)
    }

    /// The space that an object takes, as tracked by the kernel; `None` if the caller must walk the tree.
    ///
    /// # Errors
    /// The error of the failed system call.
    fn usage(&self, _object: BorrowedFd<'_>, _state: &BackendState) -> Result<Option<DiskUsage>> {
        Ok(None)
    }

    /// Removes the directory `name` of `parent` with everything below it, or as much as the slice allows. Repeated calls
    /// remove all of it.
    ///
    /// # Errors
    /// Same as [`remove_tree`].
    fn remove(&self, parent: BorrowedFd<'_>, name: &str, slice: Slice<'_>) -> Result<Removed> {
        remove_tree(parent, name, slice)
    }
}

/// The backend for the filesystem of a pool's directory.
#[must_use]
pub fn for_filesystem(_root: BorrowedFd<'_>) -> Box<dyn Backend> {
    Box::new(dir::Dir)
}
