//! Filesystem backends, one file for each kind.
//!
//! The default methods work on every filesystem: they use [`crate::fs`], enforce no limit and keep no state.

mod btrfs;
mod dir;
mod file_copy;
mod quota;
mod quota_entry;
mod remote;

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::Mode;

use self::file_copy::FileCopy;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::audit::Audit;
use crate::fs::copy::{Manifest, Progress, TreeCopier};
pub use crate::fs::copy::{Pass, SourceState};
use crate::fs::names::make_directory;
use crate::fs::nfs::is_nfs;
use crate::fs::remove::{Removed, Slice, remove_tree};
use crate::fs::subvolume::is_btrfs;
use crate::fs::{inherited_project, open_directory, project, remove_acls};
use crate::volume::{BackendState, DATA, Enforced, Limits};

/// The kinds of backend. A pool's marker records the kind of its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// Plain directories on any filesystem.
    Dir,
    /// Subvolumes of btrfs.
    Btrfs,
    /// Plain directories with project quotas.
    Quota,
}

impl BackendKind {
    /// The name in markers, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Btrfs => "btrfs",
            Self::Quota => "quota",
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
    /// The size in bytes, and the number of inodes.
    BytesAndInodes,
}

/// How a backend copies a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopySupport {
    /// File by file; blocks are shared if the filesystem supports it.
    Files,
    /// By one call, whatever the size.
    Instant,
}

/// How a backend measures the space that a volume takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageSupport {
    /// By walking the tree.
    Walk,
    /// By a counter of the kernel.
    Counter,
}

/// The space that a volume takes, as counted by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// In bytes.
    pub bytes: u64,
    /// In inodes; `None` if they are not counted.
    pub inodes: Option<u64>,
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
    /// Whether the new object is never written to.
    pub read_only: bool,
}

/// A copy in passes. The writers of the source need to be paused during the last one only.
///
/// The engine calls `live` at least once, then `freeze_point` unless the copy need not be that of one moment, then `finish`.
/// After a `freeze_point` that failed or was in vain, it may call `live` and `freeze_point` again. Dropping a copy cancels
/// it; the caller removes the draft.
pub trait TreeCopy {
    /// Whether the copy is made by `freeze_point` alone, in one call of the kernel, so that it shows what a power failure
    /// would have left at that moment. Its writers need not be paused.
    fn is_instant(&self) -> bool {
        false
    }

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
    /// What was copied, and what was left out; `None` if the copy did not look at the files.
    pub copied: Option<Manifest>,
    /// Number of btrfs subvolumes of the tenant, directly in the source, that were left out; at most 255.
    pub skipped_subvolumes: u64,
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

    /// Refuses changes of the pool by this host.
    ///
    /// # Errors
    /// `Unsupported`, with the next step.
    fn check_changes(&self) -> Result<()> {
        Ok(())
    }

    /// Reserves backend state for a new volume, such as a project id. `new_id` gives ids that no other object of the pool has
    /// or had.
    ///
    /// # Errors
    /// `NoSpace` when nothing is left to reserve.
    fn allot(&self, _new_id: &dyn Fn() -> Result<u32>) -> Result<BackendState> {
        Ok(BackendState::default())
    }

    /// Makes the empty directory `data` in a draft, with mode 0700 and its limits; returns the limits that the kernel enforces.
    ///
    /// # Errors
    /// `Unsupported` for a limit that cannot be set; otherwise the error of the failed system call.
    fn create(&self, draft: BorrowedFd<'_>, state: &BackendState, limits: Limits) -> Result<Enforced> {
        make_data(draft)?;
        self.set_limit(draft, state, limits)
    }

    /// Makes `data` in a draft, with its limits, and starts to copy the directory `from` into it.
    ///
    /// # Errors
    /// Same as [`Backend::create`].
    fn begin_copy<'a>(
        &'a self,
        from: BorrowedFd<'a>,
        draft: BorrowedFd<'_>,
        spec: &CopySpec,
        progress: &'a Progress,
    ) -> Result<Box<dyn TreeCopy + 'a>> {
        begin_file_copy(self, from, draft, spec, progress)
    }

    /// Runs a part of the making of an object, in which its limits hold for this process, too.
    ///
    /// # Errors
    /// `OutOfRange` when the object has reached its limits; otherwise that of the part.
    fn within_limits(
        &self,
        _object: BorrowedFd<'_>,
        _state: &BackendState,
        part: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        part()
    }

    /// Changes the limits of an object; returns the enforced limits as reported by the kernel.
    ///
    /// # Errors
    /// `Unsupported` for a limit that cannot be set.
    fn set_limit(&self, _object: BorrowedFd<'_>, _state: &BackendState, _limits: Limits) -> Result<Enforced> {
        Ok(Enforced::No)
    }

    /// Makes the owner and the mode of `data` durable, if the sync of the directory that contains it does not.
    ///
    /// # Errors
    /// The error of the failed system call.
    fn sync_data_directory(&self, _data: BorrowedFd<'_>) -> Result<()> {
        Ok(())
    }

    /// How an administrator lets the filesystem enforce limits, which it does not do now; `None` if there is no way.
    fn how_to_limit(&self) -> Option<&'static str> {
        None
    }

    /// The space that an object takes, as tracked by the kernel; `None` if the caller must walk the tree.
    ///
    /// # Errors
    /// The error of the failed system call.
    fn used(&self, _object: BorrowedFd<'_>, _state: &BackendState) -> Result<Option<Used>> {
        Ok(None)
    }

    /// Starts to look for files of an object that its limits do not count; with `mend`, they are counted from then on. `None` if
    /// there can be none, or if the object has no limits.
    ///
    /// # Errors
    /// The error of the failed system call.
    fn audit(&self, _object: BorrowedFd<'_>, _state: &BackendState, _mend: bool) -> Result<Option<Audit>> {
        Ok(None)
    }

    /// Whether an object needs no call of [`Backend::enter`].
    fn has_entered(&self, _object: BorrowedFd<'_>, _state: &BackendState) -> bool {
        true
    }

    /// State for an object that [`Backend::enter`] is to give limits. Until that is complete, the state says so, and
    /// [`Backend::check_usable`] refuses it.
    ///
    /// # Errors
    /// `NoSpace` when nothing is left to reserve.
    fn state_to_enter(
        &self,
        state: &BackendState,
        _new_id: &dyn Fn() -> Result<u32>,
    ) -> Result<BackendState> {
        Ok(state.clone())
    }

    /// Has the kernel count the files of an object that nothing uses, and returns its state. `scratch` is an empty directory. Can
    /// be repeated after a crash.
    ///
    /// # Errors
    /// `Unsupported`, naming a file, when not all can be counted. [`Backend::leave`] undoes what was done until then.
    fn enter(
        &self,
        _object: BorrowedFd<'_>,
        _scratch: BorrowedFd<'_>,
        state: &BackendState,
    ) -> Result<BackendState> {
        Ok(state.clone())
    }

    /// Undoes [`Backend::enter`], and returns the state of the object.
    ///
    /// # Errors
    /// The error of the failed system call.
    fn leave(&self, _object: BorrowedFd<'_>, state: &BackendState) -> Result<BackendState> {
        Ok(state.clone())
    }

    /// Refuses an object for which [`Backend::enter`] was begun and is not complete.
    ///
    /// # Errors
    /// `Unavailable` then.
    fn check_usable(&self, _state: &BackendState) -> Result<()> {
        Ok(())
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

/// Makes the empty directory `data` in a draft, with mode 0700.
fn make_data(draft: BorrowedFd<'_>) -> Result<()> {
    make_directory(draft, DATA, Mode::RWXU).context(|| "make the data directory")?;
    let data = open_directory(draft, DATA).context(|| "open the new data directory")?;
    remove_acls(data.as_fd())
}

/// Makes `data` in a draft, and starts to copy a directory into it, file by file.
fn begin_file_copy<'a, B: Backend + ?Sized>(
    backend: &B,
    from: BorrowedFd<'a>,
    draft: BorrowedFd<'_>,
    spec: &CopySpec,
    progress: &'a Progress,
) -> Result<Box<dyn TreeCopy + 'a>> {
    let enforced = backend.create(draft, &spec.state, spec.limits)?;
    let to = open_directory(draft, DATA).context(|| "open the new data directory")?;
    let copier = if spec.in_passes {
        TreeCopier::new(from, to.as_fd(), draft, spec.max_bytes, progress)?
    } else {
        TreeCopier::in_one_pass(from, to.as_fd(), spec.max_bytes, progress)?
    };
    Ok(Box::new(FileCopy { copier, enforced }))
}

/// The kind of backend that a new pool in this directory gets.
#[must_use]
pub fn kind_for_new_pool(root: BorrowedFd<'_>) -> BackendKind {
    if is_btrfs(root) {
        BackendKind::Btrfs
    } else if project::is_enforced(root) && inherited_project(root).is_none() {
        BackendKind::Quota
    } else {
        BackendKind::Dir
    }
}

/// The backend that a pool's marker names. A pool of plain directories stays one on every filesystem. A client of an NFS server
/// uses the volumes of other pools, and changes nothing in them.
///
/// # Errors
/// `Unavailable` when the filesystem of the pool's directory does not support it, or this version does not know it.
pub fn open(root: BorrowedFd<'_>, name: &str) -> Result<Box<dyn Backend>> {
    match name {
        "dir" => return Ok(Box::new(dir::Dir::new(root))),
        "btrfs" if is_btrfs(root) => return Ok(Box::new(btrfs::Btrfs::new(root)?)),
        "quota" => {
            if let Some(quota) = quota::Quota::new(root)? {
                return Ok(Box::new(quota));
            }
        }
        _ => {}
    }
    if let Some(remote) = remote::Remote::of(name).filter(|_| is_nfs(root)) {
        return Ok(Box::new(remote));
    }
    let text = format!(
        "the pool was made with backend {name:?}, but its filesystem gives backend {:?} here: check the mount \
         options and the version of orlop",
        kind_for_new_pool(root).as_str()
    );
    Err(Error::new(Kind::Unavailable, text))
}
