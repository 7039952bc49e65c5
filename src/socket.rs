//! Unix sockets to listen on: private before anybody can connect, stale ones replaced, removed at the end.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net as blocking;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use crate::error::{Context, Error, Kind, Result};
use crate::volume::shorten;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A listener and the file it listens on.
#[derive(Debug)]
pub struct Bound {
    /// The listener.
    pub listener: UnixListener,
    /// Its file; dropping this removes it.
    pub place: SocketFile,
}

/// The file of a socket that we made. It is removed when this is dropped, unless it is no longer ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Whether the socket is still the file at its path.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Reads `unix:///a/b.sock` or `/a/b.sock`.
///
/// # Errors
/// `Invalid` for a relative path and for a name that does not end in `.sock`, which the CSI specification asks for.
pub fn path(endpoint: &str) -> Result<PathBuf> {
    let path = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    let named = path.extension().is_some_and(|end| end == "sock");
    if path.is_absolute() && named && !endpoint.contains('\0') {
        return Ok(path.to_path_buf());
    }
    Err(Error::new(
        Kind::Invalid,
        format!("{:?} is not a socket such as unix:///run/orlop/csi.sock", shorten(endpoint)),
    ))
}

/// Listens at a path, for the owner of this process only. A socket that nobody answers any more is replaced.
///
/// # Errors
/// `Invalid` when the folder is missing, the path is too long or something else lies there; `InUse` when another
/// process answers there.
pub fn bind(path: &Path) -> Result<Bound> {
    if !path.parent().is_some_and(Path::is_dir) {
        return Err(Error::new(
            Kind::Invalid,
            format!("listen on {}: its folder does not exist: make it first", path.display()),
        ));
    }
    let address = SocketAddrUnix::new(path).map_err(|_| {
        Error::new(
            Kind::Invalid,
            format!("listen on {}: a socket's path has at most 107 bytes", path.display()),
        )
    })?;
    clear(path)?;
    let what = || format!("listen on {}", path.display());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context(what)?;
    // The mode of an unbound socket is that of the file which bind makes: there is no moment at which others could
    // connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).context(what)?;
    rustix::net::bind(&socket, &address).context(what)?;
    let found = std::fs::symlink_metadata(path).context(what)?;
    let place = SocketFile { path: path.to_path_buf(), identity: (found.dev(), found.ino()) };
    rustix::net::listen(&socket, BACKLOG).context(what)?;
    let listener = UnixListener::from_std(blocking::UnixListener::from(socket)).context(what)?;
    Ok(Bound { listener, place })
}

/// Removes the socket of a process that is gone.
fn clear(path: &Path) -> Result<()> {
    let what = || format!("listen on {}", path.display());
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context(what)?,
    };
    if !found.file_type().is_socket() {
        return Err(Error::new(Kind::Invalid, format!("{}: something that is no socket lies there", what())));
    }
    match blocking::UnixStream::connect(path) {
        Ok(_) => Err(Error::new(Kind::InUse, format!("{}: another process answers there", what()))),
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

    use super::*;

    #[test]
    fn endpoints() {
        for good in ["unix:///a/csi.sock", "/a/csi.sock"] {
            assert_eq!(path(good).unwrap(), Path::new("/a/csi.sock"));
        }
        for bad in ["", "csi.sock", "unix://csi.sock", "unix:///a/csi", "tcp://1.2.3.4:5", "unix:///a\0.sock"]
        {
            assert_eq!(path(bad).unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_socket_is_private_replaces_a_stale_one_and_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
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
    async fn what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        std::fs::write(&path, "data").unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), Kind::Invalid);
        std::fs::remove_file(&path).unwrap();
        let bound = bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(bound);
        assert!(path.exists());
        assert!(bind(&folder.path().join("missing/a.sock")).is_err());
        assert!(bind(&folder.path().join(format!("{}.sock", "x".repeat(120)))).is_err());
    }
}
