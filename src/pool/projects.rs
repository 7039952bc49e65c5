//! Project ids, as for quotas of xfs and ext4, that forbid the renames between the directories of a pool.
//!
//! A directory with inheritance gives its new entries its project id, and the kernel moves no entry with another id into
//! it (EXDEV).

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;

use super::dirs::{DIRECTORY, open_inside};
use super::marker::read_marker;
use crate::backend::BackendKind;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::inherited_project;

/// The project id that new entries of each directory inherit; `None` where they inherit none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Projects {
    pub(super) volumes: Option<u32>,
    pub(super) snapshots: Option<u32>,
    pub(super) work: Option<u32>,
    pub(super) trash: Option<u32>,
}

/// Refuses the pool in this directory, open and by its path, if its directories have project ids that forbid renames
/// between them.
///
/// # Errors
/// `Unavailable` then, with the remedy; otherwise the error of the failed system call.
pub fn check_projects(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let project = |name: &str| match open_inside(root, name, DIRECTORY) {
        // It would be made here.
        Err(Errno::NOENT) => Ok(inherited_project(root)),
        opened => opened.map(|dir| inherited_project(dir.as_fd())).context(|| format!("open {name}/")),
    };
    let projects = Projects {
        volumes: project("volumes")?,
        snapshots: project("snapshots")?,
        work: project("work")?,
        trash: project("trash")?,
    };
    let is_quota = read_marker(root)?.is_some_and(|marker| marker.backend == BackendKind::Quota.as_str());
    if is_quota { projects.check_none(path) } else { projects.check(path) }
}

impl Projects {
    /// Refuses project ids that forbid a rename between the directories of the pool at `path`.
    ///
    /// # Errors
    /// `Unavailable`, with the remedy.
    pub(super) fn check(self, path: &Path) -> Result<()> {
        let Some((name, id, other, other_id)) = self.conflict() else { return Ok(()) };
        let text = format!(
            "{name}/ gives new entries the project id {id} and {other}/ gives them {other_id}, so none can be moved \
             between the two: run `chattr -p 0 -P {}`, or give the directories of the pool the same project id with \
             inheritance",
            path.join(name).display()
        );
        Err(Error::new(Kind::Unavailable, text))
    }

    /// Refuses every project id in a pool whose volumes have ids of their own.
    ///
    /// # Errors
    /// `Unavailable`, with the remedy.
    pub(super) fn check_none(self, path: &Path) -> Result<()> {
        let all = [
            ("volumes", self.volumes),
            ("snapshots", self.snapshots),
            ("work", self.work),
            ("trash", self.trash),
        ];
        let Some((name, id)) = all.into_iter().find_map(|(name, id)| Some((name, id?))) else {
            return Ok(());
        };
        let text = format!(
            "{name}/ gives new entries the project id {id}, and takes no volume, since each has an id of its own: run \
             `chattr -p 0 -P {}`",
            path.join(name).display()
        );
        Err(Error::new(Kind::Unavailable, text))
    }

    /// The directory whose project id forbids a rename, and the one with the other id.
    fn conflict(self) -> Option<(&'static str, u32, &'static str, u32)> {
        let work = self.work.unwrap_or(0);
        // Objects are made in `work/` and keep its id.
        let into = [("volumes", self.volumes), ("snapshots", self.snapshots), ("trash", self.trash)];
        let refused =
            into.into_iter().find_map(|(name, id)| Some((name, id.filter(|id| *id != work)?, "work", work)));
        // A new record is made in `volumes/` and moved into its volume, which has the id and the inheritance of `work/`.
        let record = || {
            (work != self.volumes.unwrap_or(0)).then_some((
                "work",
                work,
                "volumes",
                self.volumes.unwrap_or(0),
            ))
        };
        refused.or_else(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflict(projects: Projects) -> Option<&'static str> {
        projects.conflict().map(|(name, ..)| name)
    }

    #[test]
    fn project_ids_that_forbid_a_rename_are_found() {
        let none = Projects::default();
        assert_eq!(conflict(none), None);
        assert_eq!(conflict(Projects { volumes: Some(0), work: Some(0), ..none }), None, "0 is the default");
        assert_eq!(conflict(Projects { volumes: Some(7), ..none }), Some("volumes"));
        assert_eq!(conflict(Projects { snapshots: Some(7), ..none }), Some("snapshots"));
        assert_eq!(conflict(Projects { trash: Some(7), ..none }), Some("trash"));
        assert_eq!(conflict(Projects { work: Some(7), ..none }), Some("work"), "a record is refused");
        let same = Projects { volumes: Some(7), work: Some(7), ..none };
        assert_eq!(conflict(same), None, "without inheritance a directory takes any entry");
        assert_eq!(conflict(Projects { trash: Some(0), ..same }), Some("trash"));
        let all = Projects { snapshots: Some(7), trash: Some(7), ..same };
        assert_eq!(conflict(all), None);
        assert_eq!(conflict(Projects { volumes: Some(8), ..all }), Some("volumes"));
        let error =
            all.check(Path::new("/srv/p")).and(Projects { trash: Some(8), ..all }.check(Path::new("/srv/p")));
        assert!(error.unwrap_err().chain().contains("run `chattr -p 0 -P /srv/p/trash`"));
    }

    #[test]
    fn a_pool_whose_volumes_have_ids_of_their_own_takes_no_other_project_id() {
        let path = Path::new("/srv/p");
        assert!(Projects::default().check_none(path).is_ok());
        let all = Projects { volumes: Some(7), snapshots: Some(7), work: Some(7), trash: Some(7) };
        let error = all.check_none(path).unwrap_err();
        assert!(error.chain().contains("run `chattr -p 0 -P /srv/p/volumes`"), "{}", error.chain());
        assert!(Projects { trash: Some(0), ..Projects::default() }.check_none(path).is_err());
    }
}
