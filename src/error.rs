//! The error type of orlop: a kind for the caller, a message, and the cause.
//!
//! A message is lower case, has no full stop, and names the object and the operation. It does not repeat its cause: a
//! frontend joins the messages of all causes with [`Error::chain`].

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// A result with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an error: what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The request is wrong in itself: correct it.
    Invalid,
    /// The object does not exist. Only the engine and the parsers of ids return this; a missing file is `Internal`.
    NotFound,
    /// An object of this name exists and differs: use another name.
    Conflict,
    /// The object is in use: stop its users first.
    InUse,
    /// Another operation on the same object is running: retry.
    Busy,
    /// There is not enough space: free some, or use another pool or node.
    NoSpace,
    /// The object cannot have this size: request another.
    OutOfRange,
    /// This pool, volume or kernel does not support the request: change it.
    Unsupported,
    /// The pool or filesystem of the object is not available now: restore it and retry.
    Unavailable,
    /// The pool does not respond. The operation may have started and may still complete: check the disk and retry.
    Unresponsive,
    /// The record of the object is damaged, or a newer version wrote it: restore it, or upgrade orlop.
    Unreadable,
    /// A fault of orlop or of the host: see the message and the log.
    Internal,
}

/// An error with its kind, message and cause.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates an error without a cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Creates an error with a cause.
    pub fn caused(
        kind: Kind,
        message: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(Box::new(source)) }
    }

    /// An error that a failed system call caused, of the kind of that failure.
    #[must_use]
    pub fn of_system_call(cause: impl Into<io::Error>, message: impl Into<String>) -> Self {
        let cause: io::Error = cause.into();
        let kind = kind_of(&cause);
        if is_of_the_disk(&cause) {
            let reason = "the disk or its filesystem fails, and the log of the kernel says why";
            return Self::caused(kind, message, Self::caused(kind, reason, cause));
        }
        Self::caused(kind, message, cause)
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether a system call has failed with this errno.
    #[must_use]
    pub fn has_errno(&self, errno: Errno) -> bool {
        let mut cause = self.source();
        while let Some(error) = cause {
            if error.downcast_ref::<io::Error>().and_then(Errno::from_io_error) == Some(errno) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// The message and those of all causes, for another process.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        let mut messages = vec![self.message.clone()];
        let mut cause = self.source();
        while let Some(error) = cause {
            messages.push(error.to_string());
            cause = error.source();
        }
        messages
    }

    /// The error of another process, from its [`Error::messages`].
    #[must_use]
    pub fn from_messages(kind: Kind, messages: Vec<String>) -> Self {
        let mut messages = messages.into_iter().rev();
        let innermost = Self::new(kind, messages.next().unwrap_or_default());
        messages.fold(innermost, |cause, message| Self::caused(kind, message, cause))
    }

    /// Returns the message and those of all causes in one line, separated by colons. A cause that the text already
    /// contains is left out: some libraries repeat the messages of their causes.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.contains(&message) {
                let _ = write!(text, ": {message}");
            }
            cause = error.source();
        }
        text
    }
}

/// Adds a message to the error of a result. The kind is derived from the cause.
pub trait Context<T> {
    /// Wraps the error. `message` is called only if there is one.
    ///
    /// # Errors
    /// The wrapped error.
    fn context<S: Into<String>>(self, message: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, message: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::of_system_call(cause, message()))
    }
}

impl<T> Context<T> for Result<T> {
    fn context<S: Into<String>>(self, message: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::caused(cause.kind, message(), cause))
    }
}

/// The kind for a failed system call. `ENOENT` is not `NotFound`: a missing file is not a missing volume.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "io::ErrorKind is non-exhaustive; every other kind is internal"
)]
fn kind_of(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
        io::ErrorKind::ResourceBusy => Kind::InUse,
        io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::CrossesDevices
        | io::ErrorKind::StaleNetworkFileHandle
        | io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => Kind::Unavailable,
        _ if is_of_the_disk(error) => Kind::Unavailable,
        _ => Kind::Internal,
    }
}

/// Whether the disk does not do what it is told to, or the filesystem on it is damaged.
fn is_of_the_disk(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::UCLEAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_derived_from_the_errno() {
        let cases = [
            (libc::ENOSPC, Kind::NoSpace),
            (libc::EDQUOT, Kind::NoSpace),
            (libc::EBUSY, Kind::InUse),
            (libc::EROFS, Kind::Unavailable),
            (libc::EXDEV, Kind::Unavailable),
            (libc::ESTALE, Kind::Unavailable),
            (libc::ETIMEDOUT, Kind::Unavailable),
            (libc::EHOSTUNREACH, Kind::Unavailable),
            (libc::ENOENT, Kind::Internal),
            (libc::EIO, Kind::Unavailable),
            (libc::EUCLEAN, Kind::Unavailable),
        ];
        for (errno, kind) in cases {
            let failed: io::Result<()> = Err(io::Error::from_raw_os_error(errno));
            assert_eq!(failed.context(|| "try").unwrap_err().kind(), kind, "errno {errno}");
        }
    }

    #[test]
    fn the_chain_contains_every_cause_once() {
        let failed: io::Result<()> = Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let error = failed.context(|| "write volume.json").context(|| "create volume p/a").unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert!(error.has_errno(Errno::NOSPC) && !error.has_errno(Errno::DQUOT));
        assert_eq!(
            error.chain(),
            "create volume p/a: write volume.json: No space left on device (os error 28)"
        );
    }

    #[test]
    fn an_error_of_another_process_keeps_its_kind_and_its_causes() {
        let failed: io::Result<()> = Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let error = failed.context(|| "write volume.json").context(|| "create volume p/a").unwrap_err();
        let received = Error::from_messages(error.kind(), error.messages());
        assert_eq!((received.kind(), received.chain()), (error.kind(), error.chain()));
        assert_eq!(received.messages(), error.messages());
    }

    #[test]
    fn a_cause_that_repeats_its_own_cause_is_shown_once() {
        let inner = Error::new(Kind::Internal, "No such file or directory");
        let outer = Error::caused(Kind::Internal, "transport error: No such file or directory", inner);
        assert_eq!(outer.chain(), "transport error: No such file or directory");
        let inner = Error::new(Kind::Internal, "no file");
        let outer = Error::caused(Kind::Internal, "in-cluster: (no variable), kubeconfig: (no file)", inner);
        assert_eq!(outer.chain(), "in-cluster: (no variable), kubeconfig: (no file)");
    }
}
