//! Plain directories whose size the project quotas of xfs and ext4 enforce.
//!
//! Each volume is a project of its own. `data` has its id and passes it on to everything that is made in it. The directory
//! that contains `data` has the id, too, and does not pass it on: a tenant cannot change it there, so it says which limits go
//! when the volume is removed.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::fstatvfs;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{
    Backend, BackendKind, Capabilities, CopySpec, CopyStats, CopySupport, LimitSupport, Pass, SourceState,
    TreeCopy, UsageSupport, Used, begin_file_copy, make_data, quota_entry,
};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::audit::Audit;
use crate::fs::copy::Progress;
use crate::fs::open_directory;
use crate::fs::project::{self, Project, ProjectQuota, Projects};
use crate::fs::remove::{Removed, Slice, remove_tree};
use crate::volume::{BackendState, DATA, Enforced, Limit, Limits};

/// The field of a record that has the project id of the volume.
const PROJECT: &str = "project";
/// The field of a record that is there while the files of the volume are being given its project id.
const ENTERING: &str = "entering";
/// The directory that contains `data` is one of the inodes of its project.
pub(super) const OWN_INODES: u64 = 1;

/// A pool on a filesystem with project quotas, which may be switched off at the moment.
#[derive(Debug)]
pub(super) struct Quota {
    root: OwnedFd,
    filesystem: Projects,
}

/// The limits of a project, as the kernel keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProjectLimits {
    bytes: u64,
    inodes: u64,
}

/// A copy into a volume with limits.
struct LimitedCopy<'a> {
    copy: Box<dyn TreeCopy + 'a>,
    backend: &'a Quota,
    project: u32,
}

impl Quota {
    /// The backend of a pool; `None` if its filesystem has no projects.
    pub(super) fn new(root: BorrowedFd<'_>) -> Result<Option<Self>> {
        let Some(filesystem) = project::kind_of(root) else { return Ok(None) };
        let root = root.try_clone_to_owned().context(|| "duplicate a descriptor")?;
        Ok(Some(Self { root, filesystem }))
    }

    /// The project of an object: the one that its record names, if the object's directory has it. A copy of the directory
    /// made by hand, or in another filesystem, does not have it.
    fn project_of(object: BorrowedFd<'_>, state: &BackendState) -> Option<u32> {
        let recorded = recorded(state)?;
        project::of(object).is_some_and(|project| project.id == recorded).then_some(recorded)
    }

    fn quota(&self, project: u32) -> Result<Option<ProjectQuota>> {
        project::quota(self.root.as_fd(), project)
    }

    /// Sets the limits of a project, and reports whether the kernel enforces them.
    fn enforce(&self, project: u32, wanted: ProjectLimits) -> Result<bool> {
        let is_set = |quota: ProjectQuota| ProjectLimits::from(quota) == wanted;
        if !project::is_enforced(self.root.as_fd()) {
            return Ok(false);
        }
        if !self.quota(project)?.is_some_and(is_set) {
            project::limit(self.root.as_fd(), project, wanted.bytes, wanted.inodes)?;
        }
        Ok(self.quota(project)?.is_some_and(is_set))
    }

    /// Does a part of a copy as a tenant would: ext4 lets no one but processes with `CAP_SYS_RESOURCE` exceed a limit.
    fn limited<T>(&self, project: u32, part: impl FnOnce() -> Result<T>) -> Result<T> {
        without_exemption(part).map_err(|error| self.explain(project, error))
    }

    /// Tells a volume that is full from a filesystem that is: xfs reports both in the same way.
    fn explain(&self, project: u32, error: Error) -> Error {
        if error.kind() != Kind::NoSpace || !self.is_at_limit(project).unwrap_or(false) {
            return error;
        }
        Error::caused(
            Kind::OutOfRange,
            "the limit of the new volume is reached, which needs a larger size, or more inodes",
            error,
        )
    }

    /// Whether a volume can take less than its filesystem.
    fn is_at_limit(&self, project: u32) -> Result<bool> {
        let Some(quota) = self.quota(project)? else { return Ok(false) };
        let stat = fstatvfs(&self.root).context(|| "read the filesystem's statistics")?;
        let is_less = |limit: u64, used: u64, free: u64| limit != 0 && limit.saturating_sub(used) <= free;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(is_less(quota.max_bytes, quota.bytes, free)
            || is_less(quota.max_inodes, quota.inodes, stat.f_favail))
    }

    /// What the kernel keeps for these limits.
    fn limits(&self, limits: Limits) -> Result<ProjectLimits> {
        let is_limited = limits.mode != Limit::None;
        let bytes = match limits.bytes {
            bytes if is_limited && bytes != 0 => project::whole_blocks(self.root.as_fd(), bytes)?,
            _ => 0,
        };
        let inodes = if is_limited && limits.inodes != 0 { limits.inodes + OWN_INODES } else { 0 };
        Ok(ProjectLimits { bytes, inodes })
    }
}

impl Backend for Quota {
    fn kind(&self) -> BackendKind {
        BackendKind::Quota
    }

    fn capabilities(&self) -> Capabilities {
        let (limits, usage) = if project::is_enforced(self.root.as_fd()) {
            (LimitSupport::BytesAndInodes, UsageSupport::Counter)
        } else {
            (LimitSupport::None, UsageSupport::Walk)
        };
        Capabilities { limits, copies: CopySupport::Files, usage }
    }

    fn how_to_limit(&self) -> Option<&'static str> {
        Some(match self.filesystem {
            Projects::Xfs => {
                "project quotas are off: unmount the filesystem, and mount it with the option prjquota (a remount does not \
                 switch them on)"
            }
            Projects::Ext4 => "project quotas are off: mount the filesystem with the option prjquota",
        })
    }

    fn allot(&self, new_id: &dyn Fn() -> Result<u32>) -> Result<BackendState> {
        Ok(BackendState::default().with_number(PROJECT, new_id()?.into()))
    }

    fn create(&self, draft: BorrowedFd<'_>, state: &BackendState, limits: Limits) -> Result<Enforced> {
        make_data(draft)?;
        if let Some(id) = recorded(state) {
            project::set(draft, Project { id, is_inherited: false })?;
        }
        self.set_limit(draft, state, limits)
    }

    fn begin_copy<'a>(
        &'a self,
        from: BorrowedFd<'a>,
        draft: BorrowedFd<'_>,
        spec: &CopySpec,
        progress: &'a Progress,
    ) -> Result<Box<dyn TreeCopy + 'a>> {
        let copy = begin_file_copy(self, from, draft, spec, progress)?;
        Ok(match Self::project_of(draft, &spec.state) {
            Some(project) => Box::new(LimitedCopy { copy, backend: self, project }),
            None => copy,
        })
    }

    fn within_limits(
        &self,
        object: BorrowedFd<'_>,
        state: &BackendState,
        part: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        match Self::project_of(object, state) {
            Some(project) => self.limited(project, part),
            None => part(),
        }
    }

    fn set_limit(&self, object: BorrowedFd<'_>, state: &BackendState, limits: Limits) -> Result<Enforced> {
        let wanted = self.limits(limits)?;
        let project = Self::project_of(object, state);
        let is_enforced = match project {
            Some(id) => {
                let data = open_directory(object, DATA).context(|| "open the data directory")?;
                let expected = Project { id, is_inherited: true };
                if project::of(data.as_fd()) != Some(expected) {
                    project::set(data.as_fd(), expected)?;
                }
                self.enforce(id, wanted)?
            }
            None => false,
        };
        if !is_enforced && limits.mode == Limit::Hard && wanted.is_any() {
            let why = match project {
                Some(_) => "project quotas were switched off",
                None => "its directory does not have the project id of its record, as it was copied or moved",
            };
            let text = format!(
                "limit=hard: the kernel does not enforce the size of the volume: {why}; use limit=auto, or a new volume"
            );
            return Err(Error::new(Kind::Unsupported, text));
        }
        Ok(match (is_enforced, wanted.bytes != 0, wanted.inodes != 0) {
            (false, ..) | (_, false, false) => Enforced::No,
            (_, true, false) => Enforced::Bytes,
            (_, false, true) => Enforced::Inodes,
            (_, true, true) => Enforced::BytesAndInodes,
        })
    }

    fn used(&self, object: BorrowedFd<'_>, state: &BackendState) -> Result<Option<Used>> {
        let Some(id) = Self::project_of(object, state) else { return Ok(None) };
        let data = open_directory(object, DATA).context(|| "open the data directory")?;
        if project::of(data.as_fd()).is_none_or(|project| project.id != id) {
            return Ok(None);
        }
        let quota = self.quota(id)?;
        let used = |quota: ProjectQuota| Used {
            bytes: quota.bytes,
            inodes: Some(quota.inodes.saturating_sub(OWN_INODES)),
        };
        Ok(quota.map(used))
    }

    fn audit(&self, object: BorrowedFd<'_>, state: &BackendState, mend: bool) -> Result<Option<Audit>> {
        let Some(id) = Self::project_of(object, state) else { return Ok(None) };
        let data = open_directory(object, DATA).context(|| "open the data directory")?;
        Audit::new(data.as_fd(), id, mend).map(Some)
    }

    fn has_entered(&self, object: BorrowedFd<'_>, state: &BackendState) -> bool {
        !is_entering(state) && Self::project_of(object, state).is_some()
    }

    fn state_to_enter(&self, state: &BackendState, new_id: &dyn Fn() -> Result<u32>) -> Result<BackendState> {
        if is_entering(state) {
            return Ok(state.clone());
        }
        Ok(BackendState::default().with_number(PROJECT, new_id()?.into()).with_number(ENTERING, 1))
    }

    fn enter(
        &self,
        object: BorrowedFd<'_>,
        scratch: BorrowedFd<'_>,
        state: &BackendState,
    ) -> Result<BackendState> {
        let id = recorded(state).ok_or_else(|| Error::new(Kind::Internal, "the record has no project id"))?;
        quota_entry::enter(object, scratch, id)?;
        Ok(state.clone().without(ENTERING))
    }

    fn leave(&self, object: BorrowedFd<'_>, state: &BackendState) -> Result<BackendState> {
        quota_entry::leave(object).map(|()| state.clone().without(ENTERING))
    }

    fn check_usable(&self, state: &BackendState) -> Result<()> {
        check_entered(state)
    }

    /// The limits go when `data` is removed, before the directory that has its project id: so a removal that is interrupted
    /// leaves none behind.
    fn remove(&self, parent: BorrowedFd<'_>, name: &str, slice: Slice<'_>) -> Result<Removed> {
        let object = open_directory(parent, name).ok();
        let project = object.as_ref().and_then(|object| project::of(object.as_fd()));
        // What is left of a takeover passes on the id of a volume that lives.
        let (Some(object), Some(Project { id: id @ 1.., is_inherited: false })) = (object, project) else {
            return remove_tree(parent, name, slice);
        };
        let data = remove_tree(object.as_fd(), DATA, slice)?;
        if !data.complete {
            return Ok(data);
        }
        project::clear_limits(self.root.as_fd(), id);
        let rest = remove_tree(parent, name, slice)?;
        Ok(Removed { entries: data.entries + rest.entries, ..rest })
    }
}

/// The project id in a record.
fn recorded(state: &BackendState) -> Option<u32> {
    state.number(PROJECT).and_then(|id| u32::try_from(id).ok())
}

/// Refuses a volume for which [`Backend::enter`] was begun and is not complete.
///
/// # Errors
/// `Unavailable` then.
pub(super) fn check_entered(state: &BackendState) -> Result<()> {
    if !is_entering(state) {
        return Ok(());
    }
    let text = "its files are being given a project id, and that was interrupted: complete it by `orlop check --fix`";
    Err(Error::new(Kind::Unavailable, text))
}

fn is_entering(state: &BackendState) -> bool {
    state.number(ENTERING).is_some_and(|number| number != 0)
}

impl ProjectLimits {
    fn is_any(self) -> bool {
        self.bytes != 0 || self.inodes != 0
    }
}

impl From<ProjectQuota> for ProjectLimits {
    fn from(quota: ProjectQuota) -> Self {
        Self { bytes: quota.max_bytes, inodes: quota.max_inodes }
    }
}

impl LimitedCopy<'_> {
    fn limited<T>(&mut self, part: impl FnOnce(&mut (dyn TreeCopy + '_)) -> Result<T>) -> Result<T> {
        self.backend.limited(self.project, || part(self.copy.as_mut()))
    }
}

impl TreeCopy for LimitedCopy<'_> {
    fn live(&mut self) -> Result<Pass> {
        self.limited(|copy| copy.live())
    }

    fn freeze_point(&mut self, source: SourceState) -> Result<()> {
        self.limited(|copy| copy.freeze_point(source))
    }

    fn finish(self: Box<Self>) -> Result<CopyStats> {
        self.copy.finish()
    }
}

/// Runs `part` without the capability that exempts this thread, and those that it starts, from the limits of ext4.
fn without_exemption<T>(part: impl FnOnce() -> T) -> T {
    let all = capabilities(None).ok().filter(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    if let Some(mut fewer) = all {
        fewer.effective.remove(CapabilitySet::SYS_RESOURCE);
        // If that is refused, only ext4 loses: the copy may exceed its limit.
        let _ = set_capabilities(None, fewer);
    }
    let result = part();
    if let Some(all) = all {
        let _ = set_capabilities(None, all);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_made_without_the_right_to_exceed_limits() {
        let has = || capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE);
        let before = has();
        let inside = without_exemption(|| std::thread::scope(|scope| scope.spawn(has).join().unwrap()));
        assert!(!inside, "also in the threads of the copy");
        assert_eq!(has(), before);
    }

    #[test]
    fn a_filesystem_without_projects_has_no_such_backend() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert!(Quota::new(proc.as_fd()).unwrap().is_none());
    }
}
