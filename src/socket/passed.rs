//! Sockets that systemd listens on for this process: socket activation.

use std::env;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net as blocking;
use std::path::{Path, PathBuf};

use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use tokio::net::UnixListener;

use crate::error::{Context as _, Error, Kind, Result};
use crate::sys::passed_file;

/// The most sockets that are taken. `orlop serve` has no use for more.
const MOST: usize = 16;

/// A listening socket, which stays when this process ends.
#[derive(Debug)]
pub struct Passed {
    path: PathBuf,
    listener: blocking::UnixListener,
}

impl Passed {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, in a runtime.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn into_listener(self) -> Result<UnixListener> {
        let what = || format!("listen on {}", self.path.display());
        self.listener.set_nonblocking(true).context(what)?;
        UnixListener::from_std(self.listener).context(what)
    }
}

/// Takes the sockets that were passed to this process. To be called once, at its start.
///
/// # Errors
/// `Invalid` when one is no listening Unix socket with a path, or when others than root and its group may connect to it.
pub fn passed() -> Result<Vec<Passed>> {
    let number = |name: &str| env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    // The variables reach the processes that this one starts, too.
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    if count > MOST {
        return Err(Error::new(
            Kind::Invalid,
            format!("LISTEN_FDS is {count}, and at most {MOST} sockets are used"),
        ));
    }
    let files = passed_file::take(count).context(|| format!("take the {count} sockets of LISTEN_FDS"))?;
    files.into_iter().map(listener).collect()
}

fn listener(file: OwnedFd) -> Result<Passed> {
    let is_stream = socket_type(&file).is_ok_and(|kind| kind == SocketType::STREAM);
    let is_listening = is_stream && socket_acceptconn(&file).unwrap_or(false);
    let listener = blocking::UnixListener::from(file);
    let address = listener.local_addr().ok().filter(|_| is_listening);
    let path = address.and_then(|address| address.as_pathname().map(Path::to_owned));
    let path = path.ok_or_else(|| {
        let text = "LISTEN_FDS: a descriptor is no listening Unix socket with a path: use ListenStream=/PATH in the .socket unit";
        Error::new(Kind::Invalid, text)
    })?;
    check_access(&path)?;
    Ok(Passed { path, listener })
}

/// Refuses a socket file to which others than root and its group may connect: who can connect mounts volumes as root.
fn check_access(path: &Path) -> Result<()> {
    let found = fs::metadata(path).map_err(|error| {
        let text = format!("LISTEN_FDS: look at {}, to find out who may connect to it", path.display());
        Error::caused(Kind::Invalid, text, error)
    })?;
    let is_own = [0, rustix::process::geteuid().as_raw()].contains(&found.uid());
    // To connect is to write.
    if is_own && found.mode() & 0o002 == 0 {
        return Ok(());
    }
    let text = format!(
        "LISTEN_FDS: others than root and its group may connect to {} (owner {}, mode {:04o}), and so mount volumes as root: \
         use SocketMode=0660 without SocketUser= in the .socket unit, and restart it",
        path.display(),
        found.uid(),
        found.mode() & 0o7777
    );
    Err(Error::new(Kind::Invalid, text))
}
