//! Unix sockets to listen on. Only the process's user can connect. Stale sockets are replaced, files removed on drop.

mod passed;

use std::future::poll_fn;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net as blocking;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::stream::unfold;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;
use tracing::warn;

pub use self::passed::{Passed, passed};
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::shorten;

/// Maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Pause after a connection could not be accepted: without a free descriptor, the next attempt fails at once, too.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often a lasting failure to accept connections is logged.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// A listener and its socket file.
#[derive(Debug)]
pub struct Bound {
    /// The listener.
    pub listener: UnixListener,
    /// The socket file, removed on drop.
    pub file: SocketFile,
}

/// A socket file that this process created. Dropping this removes the file, unless another file has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Reports whether the path still names this socket.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Parses an endpoint: `unix:///a/b.sock` or `/a/b.sock`.
///
/// # Errors
/// `Invalid` for a relative path, and for a name that does not end in `.sock`, as the CSI specification requires.
pub fn parse_path(endpoint: &str) -> Result<PathBuf> {
    let path = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    let has_suffix = path.extension().is_some_and(|extension| extension == "sock");
    if path.is_absolute() && has_suffix && !endpoint.contains('\0') {
        return Ok(path.to_path_buf());
    }
    Err(Error::new(
        Kind::Invalid,
        format!("{:?} is not a socket path such as unix:///run/orlop/csi.sock", shorten(endpoint)),
    ))
}

/// Listens at a path. Only the user of this process can connect. A socket without a listener is replaced.
///
/// # Errors
/// `Invalid` when the directory is missing, the path is too long or names a file of another type; `InUse` when a
/// process listens there.
pub fn bind(path: &Path) -> Result<Bound> {
    if !path.parent().is_some_and(Path::is_dir) {
        return Err(Error::new(
            Kind::Invalid,
            format!("listen on {}: its directory does not exist: create it and retry", path.display()),
        ));
    }
    let address = SocketAddrUnix::new(path).map_err(|_| {
        Error::new(
            Kind::Invalid,
            format!("listen on {}: the path of a socket has at most 107 bytes", path.display()),
        )
    })?;
    remove_stale(path)?;
    let what = || format!("listen on {}", path.display());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context(what)?;
    // bind(2) gives the file the mode of the socket. Changing the mode afterwards would let others connect first.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).context(what)?;
    rustix::net::bind(&socket, &address).context(what)?;
    let found = std::fs::symlink_metadata(path).context(what)?;
    let file = SocketFile { path: path.to_path_buf(), identity: (found.dev(), found.ino()) };
    rustix::net::listen(&socket, BACKLOG).context(what)?;
    let listener = UnixListener::from_std(blocking::UnixListener::from(socket)).context(what)?;
    Ok(Bound { listener, file })
}

/// The connections of a listener whose `accept` is polled; never an error, and never the end. While the process or the
/// machine has no descriptor or memory for a connection, tries again once a second and warns once a minute.
pub fn connections<C, A>(
    accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<(C, A)>>,
) -> impl Stream<Item = io::Result<C>> {
    unfold((accept, None), async |(mut accept, mut warned): (_, Option<Instant>)| {
        loop {
            let error = match poll_fn(&mut accept).await {
                Ok((connection, _)) => return Some((Ok(connection), (accept, warned))),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => error,
            };
            if warned.is_none_or(|time| time.elapsed() >= WARN_EVERY) {
                warn!(%error, "cannot accept a connection; retrying: check the limit of open files, and who connects");
                warned = Some(Instant::now());
            }
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    })
}

/// Removes a socket whose process has exited.
fn remove_stale(path: &Path) -> Result<()> {
    let what = || format!("listen on {}", path.display());
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context(what)?,
    };
    if !found.file_type().is_socket() {
        return Err(Error::new(
            Kind::Invalid,
            format!("{}: another file exists there and is not a socket", what()),
        ));
    }
    match blocking::UnixStream::connect(path) {
        Ok(_) => Err(Error::new(Kind::InUse, format!("{}: another process listens there", what()))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).context(|| format!("remove the stale socket {}", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context(what),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::pin::pin;

    use futures_util::StreamExt as _;

    use super::*;

    #[test]
    fn an_endpoint_is_an_absolute_path_that_ends_in_sock() {
        for good in ["unix:///a/csi.sock", "/a/csi.sock"] {
            assert_eq!(parse_path(good).unwrap(), Path::new("/a/csi.sock"));
        }
        for bad in ["", "csi.sock", "unix://csi.sock", "unix:///a/csi", "tcp://1.2.3.4:5", "unix:///a\0.sock"]
        {
            assert_eq!(parse_path(bad).unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_failed_accept_is_tried_again_after_a_pause() {
        let mut attempts = 0;
        let fail_twice = |_: &mut Context<'_>| {
            attempts += 1;
            let result =
                if attempts < 3 { Err(io::Error::from_raw_os_error(libc::EMFILE)) } else { Ok(((), ())) };
            Poll::Ready(result)
        };
        let started = Instant::now();
        pin!(connections(fail_twice)).next().await.unwrap().unwrap();
        assert!(started.elapsed() >= ACCEPT_PAUSE * 2, "{:?}", started.elapsed());
        assert_eq!(attempts, 3);
    }

    #[tokio::test]
    async fn a_socket_is_private_replaces_a_stale_one_and_is_removed_on_drop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        drop(blocking::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "stale");
        let bound = bind(&path).unwrap();
        let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(bind(&path).unwrap_err().kind(), Kind::InUse, "a live one");
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn other_files_and_other_sockets_are_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        std::fs::write(&path, "data").unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), Kind::Invalid);
        std::fs::remove_file(&path).unwrap();
        let bound = bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "other data").unwrap();
        drop(bound);
        assert!(path.exists());
        assert!(bind(&directory.path().join("missing/a.sock")).is_err());
        assert!(bind(&directory.path().join(format!("{}.sock", "x".repeat(120)))).is_err());
    }
}
