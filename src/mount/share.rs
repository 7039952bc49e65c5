//! Mounts of shares, whose server may not respond.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{MountInfo, busy_error, mounted_at};
use crate::error::{Context as _, Error, Kind, Result};

/// How long a server that does not respond may delay an unmount.
const DEADLINE: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(20);

impl MountInfo {
    /// The server, if this is a mount of NFS. An IPv6 address is without brackets.
    #[must_use]
    pub fn nfs_server(&self) -> Option<&str> {
        let is_nfs = self.fs_type == "nfs" || self.fs_type == "nfs4";
        let source = self.source.to_str().filter(|_| is_nfs)?;
        let (server, _) = source.split_once(":/")?;
        Some(server.trim_start_matches('[').trim_end_matches(']'))
    }
}

/// Unmounts the topmost mount at `target`, which is of a share. Does not wait for its server: the last mount of a server
/// leaves the mount table at once, but the system call ends only when the server responds or the kernel gives up.
///
/// # Errors
/// `InUse`, naming what keeps the mount busy; `Busy` if it is still mounted after some seconds.
pub fn detach_share(target: &Path) -> Result<()> {
    let (send, done) = mpsc::channel();
    let path = target.to_owned();
    // One system call only: when it ends, another volume may be mounted there.
    let unmount = move || send.send(rustix::mount::unmount(path, UnmountFlags::NOFOLLOW));
    let thread = thread::Builder::new().name("unmount".to_owned());
    thread.spawn(unmount).context(|| "start a thread")?;
    let end = Instant::now() + DEADLINE;
    loop {
        match done.recv_timeout(POLL) {
            Ok(Ok(()) | Err(Errno::NOENT | Errno::INVAL)) => return Ok(()),
            Ok(Err(Errno::BUSY)) => return Err(busy_error(target)?),
            Ok(Err(errno)) => return Err(errno).context(|| format!("unmount {}", target.display())),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(Kind::Internal, "the thread that unmounts has ended"));
            }
            Err(RecvTimeoutError::Timeout) if mounted_at(target)?.is_none() => return Ok(()),
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
            Err(RecvTimeoutError::Timeout) => {
                let text = format!(
                    "unmount {}: the server does not respond, and the mount is still in use; unmounting continues: retry",
                    target.display()
                );
                return Err(Error::new(Kind::Busy, text));
            }
        }
    }
}
