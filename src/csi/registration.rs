//! Tells kubelet of the driver, as node-driver-registrar does: a socket in kubelet's plugin folder that answers where
//! the CSI socket is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::error::{Error, Kind, Result};
use crate::socket::{self, Bound, Place};

mod proto {
    #![expect(unreachable_pub, clippy::allow_attributes, clippy::too_many_lines, reason = "generated")]
    tonic::include_proto!("pluginregistration");
}

use proto::registration_server::{self, RegistrationServer};
use proto::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// How often to look whether somebody removed the socket: kubelet sees a new one at once.
const LOOK: Duration = Duration::from_secs(2);

/// What kubelet is told.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The driver's name.
    pub driver: String,
    /// Where the CSI socket is, as kubelet sees it.
    pub endpoint: PathBuf,
    /// Where to listen for kubelet.
    pub socket: PathBuf,
}

#[tonic::async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            // Of the registration of CSI drivers, not of CSI: what node-driver-registrar says.
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    /// Kubelet tries again by itself: there is nothing to do but to tell.
    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = self.driver, "kubelet registered the driver");
        } else {
            tracing::error!(driver = self.driver, error = ?status.error, "kubelet refused the driver");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Serves the registration socket until `stop`, and makes it again whenever somebody removes it.
///
/// # Errors
/// What [`socket::bind`] says of the first socket; later ones are tried again.
pub async fn register(registration: Registration, stop: CancellationToken) -> Result<()> {
    let mut bound = socket::bind(&registration.socket)?;
    loop {
        let Bound { listener, place } = bound;
        Server::builder()
            .add_service(RegistrationServer::new(registration.clone()))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), removed(&place, &stop))
            .await
            .map_err(|failed| Error::caused(Kind::Unavailable, "serve kubelet's registration", failed))?;
        match again(&registration.socket, &stop).await {
            Some(next) => bound = next,
            None => return Ok(()),
        }
    }
}

/// Ends when the socket is no longer where it was made.
async fn removed(place: &Place, stop: &CancellationToken) {
    while place.is_ours() && stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {}
}

/// Another socket at the same place, as soon as that is possible; none: we stop.
async fn again(path: &Path, stop: &CancellationToken) -> Option<Bound> {
    while !stop.is_cancelled() {
        match socket::bind(path) {
            Ok(bound) => return Some(bound),
            Err(error) => tracing::warn!(error = error.chain(), "cannot make the registration socket again"),
        }
        stop.run_until_cancelled(tokio::time::sleep(LOOK)).await;
    }
    None
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::proto::registration_client::RegistrationClient;
    use super::*;

    async fn ask(socket: &Path) -> PluginInfo {
        let url = format!("unix://{}", socket.display());
        let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        let mut client = RegistrationClient::new(channel);
        client.get_info(InfoRequest {}).await.unwrap().into_inner()
    }

    #[tokio::test]
    async fn kubelet_is_told_again_after_it_cleaned_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("d-reg.sock");
        let registration = Registration {
            driver: "d.x".into(),
            endpoint: "/plugins/d/csi.sock".into(),
            socket: socket.clone(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(register(registration, stop.clone()));
        for _ in 0..2 {
            while !socket.exists() {
                tokio::time::sleep(LOOK).await;
            }
            let info = ask(&socket).await;
            assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "d.x"));
            assert_eq!(
                (info.endpoint.as_str(), info.supported_versions.as_slice()),
                ("/plugins/d/csi.sock", &["1.0.0".to_owned()][..])
            );
            std::fs::remove_file(&socket).unwrap();
        }
        stop.cancel();
        task.await.unwrap().unwrap();
        assert!(!socket.exists());
    }
}
