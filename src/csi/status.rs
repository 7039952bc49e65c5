//! The one table from [`Kind`] to a gRPC code, and what a finished call looks like to the log.

use http::HeaderMap;
use tonic::{Code, Status};

use crate::error::{Error, Kind};
use crate::telemetry::{Outcome, Weight};

/// Longest message on the wire: it travels in a header.
const MESSAGE: usize = 1024;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(code(error.kind()), message(&error))
    }
}

/// What CreateVolume answers. The provisioner takes ABORTED, UNAVAILABLE, CANCELLED and DEADLINE_EXCEEDED as "still
/// running in the background here": it calls this node again for ever and never gives the claim back to the
/// scheduler. RESOURCE_EXHAUSTED makes it try another node. So only a lock or a copy that is really running is
/// ABORTED, and a pool that is not there is one without room.
pub(super) fn of_create(error: Error) -> Status {
    match error.kind() {
        Kind::Unavailable => Status::new(Code::ResourceExhausted, message(&error)),
        Kind::Invalid
        | Kind::NotFound
        | Kind::Conflict
        | Kind::InUse
        | Kind::Busy
        | Kind::NoSpace
        | Kind::OutOfRange
        | Kind::Unsupported
        | Kind::Internal => error.into(),
    }
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid | Kind::Unsupported => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict => Code::AlreadyExists,
        Kind::InUse => Code::FailedPrecondition,
        Kind::Busy => Code::Aborted,
        Kind::NoSpace => Code::ResourceExhausted,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::Unavailable => Code::Unavailable,
        Kind::Internal => Code::Internal,
    }
}

fn message(error: &Error) -> String {
    bounded(error.chain(), MESSAGE)
}

/// A text of at most `most` bytes, cut at a character.
pub(super) fn bounded(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// What the log and the metrics need of a finished call. An error of a unary call has no body: tonic puts its code
/// into the headers and the whole `Status` beside them.
pub(super) fn outcome(headers: &HeaderMap, extensions: &http::Extensions) -> Outcome {
    let text = headers.get(Status::GRPC_STATUS).map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()));
    let message = extensions.get::<Status>().map(|status| status.message().to_owned()).unwrap_or_default();
    let (code, weight) = named(text);
    Outcome { code, message, weight }
}

/// A code's name as Go's libraries print it, for dashboards that know those, and how loud to be about it.
fn named(code: Code) -> (&'static str, Weight) {
    match code {
        Code::Ok => ("OK", Weight::Fine),
        Code::Cancelled => ("Canceled", Weight::Notable),
        Code::Unknown => ("Unknown", Weight::Fault),
        Code::InvalidArgument => ("InvalidArgument", Weight::Notable),
        Code::DeadlineExceeded => ("DeadlineExceeded", Weight::Trouble),
        Code::NotFound => ("NotFound", Weight::Notable),
        Code::AlreadyExists => ("AlreadyExists", Weight::Notable),
        Code::PermissionDenied => ("PermissionDenied", Weight::Trouble),
        Code::ResourceExhausted => ("ResourceExhausted", Weight::Trouble),
        Code::FailedPrecondition => ("FailedPrecondition", Weight::Notable),
        Code::Aborted => ("Aborted", Weight::Notable),
        Code::OutOfRange => ("OutOfRange", Weight::Notable),
        Code::Unimplemented => ("Unimplemented", Weight::Notable),
        Code::Internal => ("Internal", Weight::Fault),
        Code::Unavailable => ("Unavailable", Weight::Trouble),
        Code::DataLoss => ("DataLoss", Weight::Fault),
        Code::Unauthenticated => ("Unauthenticated", Weight::Trouble),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_code() {
        let table = [
            (Kind::Invalid, Code::InvalidArgument, Code::InvalidArgument),
            (Kind::NotFound, Code::NotFound, Code::NotFound),
            (Kind::Conflict, Code::AlreadyExists, Code::AlreadyExists),
            (Kind::InUse, Code::FailedPrecondition, Code::FailedPrecondition),
            (Kind::Busy, Code::Aborted, Code::Aborted),
            (Kind::NoSpace, Code::ResourceExhausted, Code::ResourceExhausted),
            (Kind::OutOfRange, Code::OutOfRange, Code::OutOfRange),
            (Kind::Unsupported, Code::InvalidArgument, Code::InvalidArgument),
            (Kind::Unavailable, Code::Unavailable, Code::ResourceExhausted),
            (Kind::Internal, Code::Internal, Code::Internal),
        ];
        for (kind, code, on_create) in table {
            assert_eq!(Status::from(Error::new(kind, "x")).code(), code, "{kind:?}");
            assert_eq!(of_create(Error::new(kind, "x")).code(), on_create, "create: {kind:?}");
        }
    }

    #[test]
    fn a_message_is_bounded_and_has_no_details() {
        let status = Status::from(Error::new(Kind::Invalid, "ü".repeat(5000)));
        assert!(status.message().len() <= MESSAGE && status.message().ends_with('…'));
        assert!(status.details().is_empty());
    }
}
