//! `orlop exec`: runs a command that sees a volume.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use super::volumes::open;
use super::{print_error, report};
use crate::command::printable;
use crate::config::flags::Exec;
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::{self, MountFlags};

/// The exit codes of shells and Docker for a command that cannot be started, and for one that is not found.
const NOT_STARTED: (u8, u8) = (126, 127);

/// Replaces this process by the command, in a mount namespace in which the volume is mounted. So the command gets the
/// signals, and its exit code is that of `orlop exec`. The volume counts as in use until the command and its children end.
pub(super) fn exec(flags: &Exec) -> Result<ExitCode> {
    if let Err(error) = enter(flags) {
        return Ok(report(&[error]));
    }
    let Some((program, arguments)) = flags.command.split_first() else {
        return Err(Error::new(Kind::Invalid, "the command is missing"));
    };
    #[expect(clippy::disallowed_methods, reason = "the user asks for this program")]
    let failed = Command::new(program).args(arguments).exec();
    print_error(&printable(&format!("run {}: {failed}", program.display())));
    let (not_executable, not_found) = NOT_STARTED;
    let is_missing = failed.kind() == io::ErrorKind::NotFound;
    Ok(ExitCode::from(if is_missing { not_found } else { not_executable }))
}

fn enter(flags: &Exec) -> Result<()> {
    let session = open(&flags.pools)?;
    let id = session.volume(&flags.volume)?;
    let what = format!("mount volume {id} at {}", flags.at.display());
    // Its lock is held until it is mounted, so that it is in use when the lock is free.
    let held = session.call(&what, move |engine| engine.hold(&id))?;
    let mount_flags = MountFlags { read_only: flags.read_only, ..MountFlags::default() };
    mount::attach_in_own_namespace(held.data(), &flags.at, mount_flags).context(|| what)?;
    rustix::process::chdir(&flags.at).context(|| format!("enter {}", flags.at.display()))
}
