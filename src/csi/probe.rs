//! Probes a CSI driver: the only call that orlop makes as a CSI client.

use std::path::Path;

use tonic::transport::Endpoint;

use super::proto::{ProbeRequest, identity_client::IdentityClient};
use crate::error::{Error, Kind, Result};

/// Calls `Probe` of the driver behind a socket.
///
/// # Errors
/// `Unavailable` when the driver does not respond or is not ready.
pub async fn probe(socket: &Path) -> Result<()> {
    let what = || format!("probe {}", socket.display());
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .map_err(|error| Error::caused(Kind::Invalid, what(), error))?;
    let channel =
        endpoint.connect().await.map_err(|error| Error::caused(Kind::Unavailable, what(), error))?;
    let response = IdentityClient::new(channel).probe(ProbeRequest {}).await;
    let response = response.map_err(|status| {
        Error::new(Kind::Unavailable, format!("{}: {}: {}", what(), status.code(), status.message()))
    })?;
    match response.into_inner().ready {
        Some(false) => Err(Error::new(Kind::Unavailable, format!("{}: the driver is not ready", what()))),
        Some(true) | None => Ok(()),
    }
}
