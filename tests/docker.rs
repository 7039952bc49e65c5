//! Tests of the volume plugin protocol over its socket, without an engine. `tests/docker/suite` runs those with Docker and
//! Podman.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

mod docker {
    mod endpoints;
    mod package;
    mod protocol;
    mod shares;
    mod vanishing;
}
