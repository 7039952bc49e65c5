//! Files of a tree that are not in its project, so that its limits do not count them: the owner of a file can give it another
//! project id. And trees that enter a project, or leave it.

mod special;

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Statx};
use rustix::io::{Errno, Result as ErrnoResult};

use self::special::make_again;
use super::{Budget, Entry, Reopen, TreePath, Walk, fstat, fstatat, kind_of, open_directory, open_path};
use crate::error::{Context as _, Result};
use crate::sys::file_flags;
use crate::sys::project::{Project, project, set_project};

/// How many paths are remembered.
const MAX_PATHS: usize = 10;

/// What an audit has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strays {
    /// Number of files and directories that are not in the project, or do not pass it on. A file with several names may count
    /// for each of them.
    pub count: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// How many of them were put back.
    pub put_back: u64,
    /// The paths of the first ones, printable and shortened.
    pub paths: Vec<String>,
    /// Number of files that could not be looked at, or not be put back.
    pub failed: u64,
    /// Why the first one of those could not.
    pub failure: Option<String>,
}

/// A walk through a tree that compares the project of each file, in slices. Symbolic links are not followed, mounts not
/// entered, and devices and FIFOs not opened.
#[derive(Debug)]
pub struct Audit {
    walk: Walk,
    budget: Budget,
    path: TreePath,
    reopen: Reopen,
    project: u32,
    mode: Mode,
    found: Strays,
}

/// What happens to a file that is not in the project.
#[derive(Debug)]
enum Mode {
    /// It is reported.
    Look,
    /// It is put back.
    Mend,
    /// It is put into the project. One whose project cannot be set is made again in this directory, which passes on the project,
    /// and replaced.
    Enter(OwnedFd),
    /// The project is 0, which no directory passes on. A file whose project cannot be set stays as it is.
    Leave,
}

impl Audit {
    /// Starts at the top directory of a tree. With `mend`, strays are put back.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn new(data: BorrowedFd<'_>, project: u32, mend: bool) -> Result<Self> {
        Self::in_mode(data, project, if mend { Mode::Mend } else { Mode::Look })
    }

    /// Starts to put a tree that nothing uses into a project. `scratch` is an empty directory of its filesystem that passes on
    /// the project.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn enter(data: BorrowedFd<'_>, project: u32, scratch: OwnedFd) -> Result<Self> {
        Self::in_mode(data, project, Mode::Enter(scratch))
    }

    /// Starts to undo what [`Audit::enter`] has done.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn leave(data: BorrowedFd<'_>) -> Result<Self> {
        Self::in_mode(data, 0, Mode::Leave)
    }

    fn in_mode(data: BorrowedFd<'_>, project: u32, mode: Mode) -> Result<Self> {
        let mut audit = Self {
            walk: Walk::of_live_tree(data).context(|| "open the data directory")?,
            budget: Budget::of_filesystem(data)?,
            path: TreePath::default(),
            reopen: Reopen::new()?,
            project,
            mode,
            found: Strays::default(),
        };
        let stat = fstat(data).context(|| "stat the data directory")?;
        let compared = audit.compare_open(audit.walk.dir(), true);
        audit.note(c".", &stat, compared);
        Ok(audit)
    }

    /// Continues for about this time; `None` if something is left then.
    ///
    /// # Errors
    /// `Busy` when the tree keeps changing so that the walk finds no end or no way back; otherwise the error of the failed
    /// system call.
    pub fn run(&mut self, slice: Duration) -> Result<Option<Strays>> {
        let started = Instant::now();
        loop {
            match self.walk.next().context(|| "read a directory")? {
                Some(entry) => self.look_at(&entry)?,
                None if self.walk.leave()? => self.path.pop(),
                None => return Ok(Some(std::mem::take(&mut self.found))),
            }
            if started.elapsed() >= slice {
                return Ok(None);
            }
        }
    }

    /// Compares an entry of the current directory, and enters it if it is a directory.
    fn look_at(&mut self, entry: &Entry) -> Result<()> {
        let name = &entry.name;
        let stat = match fstatat(self.walk.dir(), name) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat.context(|| format!("stat {}", self.path.join(name)))?,
        };
        let kind = kind_of(&stat);
        self.budget.take(if kind == FileType::Directory { 1 } else { u64::from(stat.stx_nlink) })?;
        let compared = match kind {
            FileType::Directory => return self.descend(name, &stat),
            FileType::RegularFile => self.compare_file(name),
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => self.compare_name(name, &stat),
        };
        let compared = match (&self.mode, compared) {
            // Only directories keep programs from moving files.
            (Mode::Leave, Ok(Compared::Stays(_)) | Err(_)) => Ok(Compared::IsInside),
            (_, compared) => compared,
        };
        self.note(name, &stat, compared);
        Ok(())
    }

    fn descend(&mut self, name: &CStr, stat: &Statx) -> Result<()> {
        Budget::check_depth(self.walk.depth())?;
        let directory = match open_directory(self.walk.dir(), name) {
            // It was deleted or replaced since, or it is a mount point.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(()),
            Err(error) => {
                self.note(name, stat, Err(error));
                return Ok(());
            }
            Ok(directory) => directory,
        };
        // Before its entries, so that what is made in it meanwhile is in the project.
        let compared = self.compare_open(directory.as_fd(), true);
        self.note(name, stat, compared);
        self.path.push(name);
        self.walk.enter(directory).context(|| "stat a directory")
    }

    /// Compares the project of an open file or directory.
    fn compare_open(&self, file: BorrowedFd<'_>, is_directory: bool) -> ErrnoResult<Compared> {
        let found = project(file)?;
        let passes_on = is_directory && !matches!(self.mode, Mode::Leave);
        if found.id == self.project && (found.is_inherited == passes_on || !is_directory) {
            return Ok(Compared::IsInside);
        }
        let expected = Project { id: self.project, is_inherited: passes_on };
        Ok(self.put_back(|| set_project(file, expected)))
    }

    /// Compares the project of a regular file, which is opened only when it is known to be one.
    fn compare_file(&self, name: &CStr) -> ErrnoResult<Compared> {
        let file = open_path(self.walk.dir(), name)?;
        // It was replaced since: the next audit sees it.
        if kind_of(&fstat(file.as_fd())?) != FileType::RegularFile {
            return Ok(Compared::IsInside);
        }
        self.compare_open(self.reopen.for_reading(file.as_fd())?.as_fd(), false)
    }

    /// Compares the project of a file that cannot be opened. It cannot be changed before Linux 6.17, and never on ext4.
    fn compare_name(&self, name: &CStr, stat: &Statx) -> ErrnoResult<Compared> {
        let at = self.walk.dir();
        match file_flags::project_of_name(at, name) {
            Ok(found) if found != self.project => {
                Ok(self.put_back(|| file_flags::set_project_of_name(at, name, self.project)))
            }
            Ok(_) => Ok(Compared::IsInside),
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOTTY) => match &self.mode {
                Mode::Enter(scratch) => Ok(make_again(at, name, stat, scratch.as_fd())
                    .map_or_else(|error| Compared::Stays(error.chain()), |()| Compared::WasPutBack)),
                Mode::Look | Mode::Mend | Mode::Leave => Ok(Compared::IsInside),
            },
            Err(error) => Err(error),
        }
    }

    fn put_back(&self, set: impl FnOnce() -> ErrnoResult<()>) -> Compared {
        if matches!(self.mode, Mode::Look) {
            return Compared::IsOutside;
        }
        set().map_or_else(|error| Compared::Stays(error.to_string()), |()| Compared::WasPutBack)
    }

    fn note(&mut self, name: &CStr, stat: &Statx, compared: ErrnoResult<Compared>) {
        let (is_stray, was_put_back, failure) = match compared {
            Ok(Compared::IsInside) | Err(Errno::NOENT | Errno::XDEV | Errno::LOOP) => return,
            Ok(Compared::IsOutside) => (true, false, None),
            Ok(Compared::WasPutBack) => (true, true, None),
            Ok(Compared::Stays(failure)) => (true, false, Some(failure)),
            Err(error) => (false, false, Some(error.to_string())),
        };
        let (found, path) = (&mut self.found, self.path.join(name));
        if let Some(error) = failure {
            found.failed = found.failed.saturating_add(1);
            found.failure.get_or_insert_with(|| format!("{path}: {error}"));
        }
        if !is_stray {
            return;
        }
        let links = if kind_of(stat) == FileType::Directory { 1 } else { u64::from(stat.stx_nlink.max(1)) };
        found.count = found.count.saturating_add(1);
        found.bytes = found.bytes.saturating_add(stat.stx_blocks.saturating_mul(512) / links);
        found.put_back += u64::from(was_put_back);
        if found.paths.len() < MAX_PATHS {
            found.paths.push(path);
        }
    }
}

/// The project of a file, compared with that of the tree.
#[derive(Debug)]
enum Compared {
    IsInside,
    IsOutside,
    WasPutBack,
    /// It could not be put back, for this reason.
    Stays(String),
}
