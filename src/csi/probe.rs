//! The one call that orlop makes as a CSI client.

use std::path::Path;

use tonic::transport::Endpoint;

use super::proto::{ProbeRequest, identity_client::IdentityClient};
use crate::error::{Error, Kind, Result};

/// Asks `Probe` of the driver behind a socket.
///
/// # Errors
/// `Unavailable` when nobody answers or the answer is no.
pub async fn probe(socket: &Path) -> Result<()> {
    let what = || format!("probe {}", socket.display());
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .map_err(|bad| Error::caused(Kind::Invalid, what(), bad))?;
    let channel =
        endpoint.connect().await.map_err(|failed| Error::caused(Kind::Unavailable, what(), failed))?;
    let answer = IdentityClient::new(channel).probe(ProbeRequest {}).await;
    let answer = answer.map_err(|status| {
        Error::new(Kind::Unavailable, format!("{}: {}: {}", what(), status.code(), status.message()))
    })?;
    match answer.into_inner().ready {
        Some(false) => Err(Error::new(Kind::Unavailable, format!("{}: it says: not ready", what()))),
        Some(true) | None => Ok(()),
    }
}
