//! The one error of orlop: what the caller may do about it, what was being done, and why it went wrong.
//!
//! A text is lower case, without a full stop, says what was being done to which object, and never repeats its
//! source: the door joins the chain once, with [`Error::chain`].

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;

/// A result of orlop's own.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller may do about a failure: named for the remedy, not for the place where it arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong in itself: send another.
    Invalid,
    /// The object does not exist. Only the engine and the parsers of ids say so; a missing file is `Internal`.
    NotFound,
    /// An object of this name exists and differs: use another name.
    Conflict,
    /// Somebody uses the object: let them stop first.
    InUse,
    /// Another call for the same object is running: try again.
    Busy,
    /// No room: free some, or try another pool or node.
    NoSpace,
    /// The size is one that this object cannot have: ask for another.
    OutOfRange,
    /// This pool, volume or kernel cannot do it: ask for something else.
    Unsupported,
    /// What the object lives on is not there now: bring it back.
    Unavailable,
    /// A fault of orlop or of the machine: read the chain and the log.
    Internal,
}

/// A failure: its kind, what was being done, and its cause.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: Kind,
    what: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    /// An error of a chosen kind, caused by another.
    pub fn caused(
        kind: Kind,
        what: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self { kind, what: what.into(), source: Some(Box::new(source)) }
    }

    /// What the caller may do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The whole story in one line: what was being done, then each cause after a colon.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.what.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        text
    }
}

/// Adds to a failure what was being done; the kind follows from the cause.
pub trait Context<T> {
    /// Wraps the error; `what` is only made when there is one.
    ///
    /// # Errors
    /// The error it wraps.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| {
            let cause: io::Error = cause.into();
            Error::caused(kind_of(&cause), what(), cause)
        })
    }
}

impl<T> Context<T> for Result<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::caused(cause.kind, what(), cause))
    }
}

/// The remedy for a failed system call. `ENOENT` is no `NotFound`: a missing file is not a missing volume.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "io::ErrorKind is open; what is not named here is a fault"
)]
fn kind_of(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
        io::ErrorKind::ResourceBusy => Kind::InUse,
        io::ErrorKind::StaleNetworkFileHandle
        | io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => Kind::Unavailable,
        _ => Kind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_follows_from_the_errno() {
        let cases = [
            (libc::ENOSPC, Kind::NoSpace),
            (libc::EDQUOT, Kind::NoSpace),
            (libc::EBUSY, Kind::InUse),
            (libc::ESTALE, Kind::Unavailable),
            (libc::ETIMEDOUT, Kind::Unavailable),
            (libc::EHOSTUNREACH, Kind::Unavailable),
            (libc::ENOENT, Kind::Internal),
            (libc::EIO, Kind::Internal),
        ];
        for (errno, kind) in cases {
            let failed: io::Result<()> = Err(io::Error::from_raw_os_error(errno));
            assert_eq!(failed.context(|| "try").unwrap_err().kind(), kind, "errno {errno}");
        }
    }

    #[test]
    fn the_chain_names_every_cause_once() {
        let failed: io::Result<()> = Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let error = failed.context(|| "write volume.json").context(|| "create volume p/a").unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(
            error.chain(),
            "create volume p/a: write volume.json: No space left on device (os error 28)"
        );
    }
}
