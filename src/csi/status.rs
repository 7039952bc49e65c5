//! The only table from [`Kind`] to a gRPC code, and the outcome of a call for the log.

use http::HeaderMap;
use tonic::{Code, Status};

use crate::error::{Error, Kind};
use crate::telemetry::{Outcome, Severity};

/// Maximum bytes of a message, which is sent in a header.
const MAX_MESSAGE: usize = 1024;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(code(error.kind()), message(&error))
    }
}

/// The status of a failed CreateVolume.
///
/// csi-provisioner takes ABORTED, UNAVAILABLE, CANCELLED and DEADLINE_EXCEEDED to mean that the volume is still being
/// created on this node: it retries here forever and never returns the claim to the scheduler. After RESOURCE_EXHAUSTED
/// it tries another node. Therefore ABORTED is returned only while a lock is held or a copy runs, and an unavailable
/// pool is RESOURCE_EXHAUSTED. A pool that does not respond stays UNAVAILABLE: the volume may still be created on it.
pub(super) fn for_create(error: Error) -> Status {
    with_code(Code::ResourceExhausted, &[Kind::Unavailable], error)
}

/// The status of a failed CreateVolumeGroupSnapshot: FAILED_PRECONDITION if the volumes cannot be in one group.
pub(super) fn for_create_group(error: Error) -> Status {
    with_code(Code::FailedPrecondition, &[Kind::Unsupported], error)
}

/// The status of a failed NodeExpandVolume.
///
/// kubelet expands a volume before it starts a pod with it, and starts no pod after an error. FAILED_PRECONDITION is
/// different: the pod starts with the old size, and the claim shows the reason. Therefore it is the answer when the volume
/// cannot grow but is usable as it is. In a pool that is not available at all, publishing it fails by itself.
pub(super) fn for_node_expand(error: Error) -> Status {
    with_code(Code::FailedPrecondition, &[Kind::NoSpace, Kind::Unsupported, Kind::Unavailable], error)
}

/// The status of an error: with this code if it is of one of these kinds.
fn with_code(code: Code, kinds: &[Kind], error: Error) -> Status {
    if kinds.contains(&error.kind()) { Status::new(code, message(&error)) } else { error.into() }
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
        Kind::Unavailable | Kind::Unresponsive => Code::Unavailable,
        Kind::Unreadable | Kind::Internal => Code::Internal,
    }
}

fn message(error: &Error) -> String {
    truncated(error.chain(), MAX_MESSAGE)
}

/// Truncates a text to at most `max` bytes, at a character boundary.
pub(super) fn truncated(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// The outcome of a finished call. A failed unary call has no body: tonic puts its code into the headers and the
/// `Status` into the extensions.
pub(super) fn outcome(headers: &HeaderMap, extensions: &http::Extensions) -> Outcome {
    let code = headers.get(Status::GRPC_STATUS).map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()));
    let message = extensions.get::<Status>().map(|status| status.message().to_owned()).unwrap_or_default();
    let (code, severity) = name_and_severity(code);
    Outcome { code, message, severity }
}

/// A code's name, spelled as in Go libraries, since dashboards expect that, and its severity.
fn name_and_severity(code: Code) -> (&'static str, Severity) {
    match code {
        Code::Ok => ("OK", Severity::Ok),
        Code::Cancelled => ("Canceled", Severity::Info),
        Code::Unknown => ("Unknown", Severity::Error),
        Code::InvalidArgument => ("InvalidArgument", Severity::Info),
        Code::DeadlineExceeded => ("DeadlineExceeded", Severity::Warn),
        Code::NotFound => ("NotFound", Severity::Info),
        Code::AlreadyExists => ("AlreadyExists", Severity::Info),
        Code::PermissionDenied => ("PermissionDenied", Severity::Warn),
        Code::ResourceExhausted => ("ResourceExhausted", Severity::Warn),
        Code::FailedPrecondition => ("FailedPrecondition", Severity::Info),
        Code::Aborted => ("Aborted", Severity::Info),
        Code::OutOfRange => ("OutOfRange", Severity::Info),
        Code::Unimplemented => ("Unimplemented", Severity::Info),
        Code::Internal => ("Internal", Severity::Error),
        Code::Unavailable => ("Unavailable", Severity::Warn),
        Code::DataLoss => ("DataLoss", Severity::Error),
        Code::Unauthenticated => ("Unauthenticated", Severity::Warn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_code() {
        let table = [
            (Kind::Invalid, Code::InvalidArgument, Code::InvalidArgument, Code::InvalidArgument),
            (Kind::NotFound, Code::NotFound, Code::NotFound, Code::NotFound),
            (Kind::Conflict, Code::AlreadyExists, Code::AlreadyExists, Code::AlreadyExists),
            (Kind::InUse, Code::FailedPrecondition, Code::FailedPrecondition, Code::FailedPrecondition),
            (Kind::Busy, Code::Aborted, Code::Aborted, Code::Aborted),
            (Kind::NoSpace, Code::ResourceExhausted, Code::ResourceExhausted, Code::FailedPrecondition),
            (Kind::OutOfRange, Code::OutOfRange, Code::OutOfRange, Code::OutOfRange),
            (Kind::Unsupported, Code::InvalidArgument, Code::InvalidArgument, Code::FailedPrecondition),
            (Kind::Unreadable, Code::Internal, Code::Internal, Code::Internal),
            (Kind::Unavailable, Code::Unavailable, Code::ResourceExhausted, Code::FailedPrecondition),
            (Kind::Unresponsive, Code::Unavailable, Code::Unavailable, Code::Unavailable),
            (Kind::Internal, Code::Internal, Code::Internal, Code::Internal),
        ];
        for (kind, code, on_create, on_node_expand) in table {
            assert_eq!(Status::from(Error::new(kind, "x")).code(), code, "{kind:?}");
            assert_eq!(for_create(Error::new(kind, "x")).code(), on_create, "create: {kind:?}");
            assert_eq!(for_node_expand(Error::new(kind, "x")).code(), on_node_expand, "expand: {kind:?}");
        }
    }

    #[test]
    fn a_message_is_bounded_and_has_no_details() {
        let status = Status::from(Error::new(Kind::Invalid, "ü".repeat(5000)));
        assert!(status.message().len() <= MAX_MESSAGE && status.message().ends_with('…'));
        assert!(status.details().is_empty());
    }
}
