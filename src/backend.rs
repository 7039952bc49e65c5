//! What a pool's filesystem can do for its volumes: one file and one arm of [`open`] for each kind.
//!
//! The default methods are the functions of [`crate::fs`], which work on every filesystem.

mod dir;
mod file_copy;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicBool;

use rustix::fs::{Mode, mkdirat};

use self::file_copy::FileCopy;
use crate::error::{Context as _, Result};
use crate::fs::copy::Progress;
use crate::fs::remove::remove_tree;
use crate::fs::{DiskUsage, open_directory};
use crate::volume::{BackendState, DATA, Enforced, Limits};

/// The kinds of backend. A pool's marker names the one that the pool was made with.
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
    /// None: sizes are accounted for, not enforced.
    None,
    /// The size in bytes.
    Bytes,
}

/// How a backend copies a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopySupport {
    /// File by file; blocks are shared where the filesystem can.
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
    /// Limits that it can enforce.
    pub limits: LimitSupport,
    /// How it copies.
    pub copies: CopySupport,
    /// How it measures.
    pub usage: UsageSupport,
}

/// The part of a copy's result that exists before the copy.
#[derive(Debug, Clone, Default)]
pub struct CopySpec {
    /// From [`Backend::allot`], already in the record.
    pub state: BackendState,
    /// Limits of the new object, set before the first byte is copied.
    pub limits: Limits,
}

/// A copy in three steps, so that the writers of the source can be paused for the second one only.
///
/// The engine calls `live`, then `freeze_point`, then `finish`. Dropping a copy abandons it; the caller removes the draft.
pub trait TreeCopy {
    /// Copies while the source is in use; reports how much has changed since and is still to be copied.
    ///
    /// # Errors
    /// As [`crate::fs::copy::copy_tree`].
    fn live(&mut self) -> Result<Remaining>;

    /// Brings the copy to one instant of the source. The writers are paused during this call.
    ///
    /// # Errors
    /// As [`TreeCopy::live`].
    fn freeze_point(&mut self) -> Result<()>;

    /// Verifies the copy and writes it to stable storage.
    ///
    /// # Errors
    /// `Internal` when the copy is not complete; otherwise the failed call.
    fn finish(self: Box<Self>) -> Result<CopyStats>;
}

/// What a live copy has left to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Files that changed since they were copied.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
}

/// Result of a finished copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyStats {
    /// Names below the top directory, of every type.
    pub entries: u64,
    /// Apparent sizes of the regular files; a hard-linked file counts once for each name.
    pub bytes: u64,
    /// What the kernel enforces for the new object, read back from it.
    pub enforced: Enforced,
}

/// What one kind of filesystem can do for the directory that holds `data`.
///
/// Every method is synchronous and idempotent: the engine calls it again after a crash. `object` and `draft` are the
/// directories in which `data` lies.
pub trait Backend: fmt::Debug + Send + Sync {
    /// The kind, compared with the pool's marker.
    fn kind(&self) -> BackendKind;

    /// What this backend can do in this pool.
    fn capabilities(&self) -> Capabilities;

    /// Reserves what a new object needs, such as a project id. The engine records it before the object is made.
    ///
    /// # Errors
    /// `NoSpace` when nothing is left to reserve.
    fn allot(&self) -> Result<BackendState> {
        Ok(BackendState::default())
    }

    /// Makes the empty directory `data` in a draft, with mode 0700 and its limits; returns what the kernel enforces.
    ///
    /// # Errors
    /// `Unsupported` for a limit that cannot be set; otherwise the failed call.
    fn create(&self, draft: BorrowedFd<'_>, state: &BackendState, limits: Limits) -> Result<Enforced> {
        mkdirat(draft, DATA, Mode::RWXU).context(|| "make the data directory")?;
        self.set_limit(draft, state, limits)
    }

    /// Makes `data` in a draft, with its limits, and starts to copy the directory `from` into it.
    ///
    /// # Errors
    /// As [`Backend::create`].
    fn begin_copy<'a>(
        &self,
        from: BorrowedFd<'a>,
        draft: BorrowedFd<'_>,
        spec: &CopySpec,
        progress: &'a Progress,
    ) -> Result<Box<dyn TreeCopy + 'a>> {
        let enforced = self.create(draft, &spec.state, spec.limits)?;
        let to = open_directory(draft, DATA).context(|| "open the new data directory")?;
        Ok(Box::new(FileCopy::new(from, to, enforced, progress)))
    }

    /// Changes the limits of an object; returns what the kernel enforces, read back from it.
    ///
    /// # Errors
    /// `Unsupported` for a limit that cannot be set.
    fn set_limit(&self, _object: BorrowedFd<'_>, _state: &BackendState, _limits: Limits) -> Result<Enforced> {
        Ok(Enforced::No)
    }

    /// The space that an object takes, from a counter of the kernel; `None`: the tree has to be walked.
    ///
    /// # Errors
    /// The failed call.
    fn usage(&self, _object: BorrowedFd<'_>, _state: &BackendState) -> Result<Option<DiskUsage>> {
        Ok(None)
    }

    /// Removes the directory `name` of `parent` with everything below it. `stop` ends the call early.
    ///
    /// # Errors
    /// As [`remove_tree`].
    fn remove(&self, parent: BorrowedFd<'_>, name: &str, stop: &AtomicBool) -> Result<()> {
        remove_tree(parent, name, stop).map(|_| ())
    }
}

/// The backend for a pool's directory, chosen by its filesystem.
#[must_use]
pub fn open(_root: BorrowedFd<'_>) -> Box<dyn Backend> {
    Box::new(dir::Dir)
}
