//! Existing directories enter a project: all their files get its id.
//!
//! A directory that passes on a project id takes no file with another one (EXDEV). So a tree is not to be used while a part of it
//! has the id only.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::audit::{Audit, Strays};
use crate::fs::open_directory;
use crate::fs::project::{self, Project};
use crate::volume::DATA;

/// Gives an object that nothing uses a project id. The directory that contains `data` gets it last.
pub(super) fn enter(object: BorrowedFd<'_>, scratch: BorrowedFd<'_>, id: u32) -> Result<()> {
    project::set(scratch, Project { id, is_inherited: true })?;
    let data = open_directory(object, DATA).context(|| "open the data directory")?;
    let scratch = scratch.try_clone_to_owned().context(|| "duplicate a descriptor")?;
    complete(Audit::enter(data.as_fd(), id, scratch)?)?;
    project::set(object, Project { id, is_inherited: false })
}

/// Takes the project ids away again.
pub(super) fn leave(object: BorrowedFd<'_>) -> Result<()> {
    project::set(object, Project { id: 0, is_inherited: false })?;
    let data = open_directory(object, DATA).context(|| "open the data directory")?;
    complete(Audit::leave(data.as_fd())?)
}

fn complete(mut walk: Audit) -> Result<()> {
    let found = loop {
        if let Some(found) = walk.run(Duration::MAX)? {
            break found;
        }
    };
    let Strays { failed, failure: Some(first), .. } = found else { return Ok(()) };
    let text = format!("{failed} files cannot get the project id of the volume, such as {first}");
    Err(Error::new(Kind::Unsupported, text))
}
