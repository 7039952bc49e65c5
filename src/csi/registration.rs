//! Tells kubelet of the driver, as node-driver-registrar does: a socket in kubelet's plugin folder that answers where
//! the CSI socket is.
//!
//! The socket's name has an `@`. Kubelet sends the socket's path as the request's `:authority`, each `/` as `%2F`. A
//! `%` is not possible in a host's name, and h2 resets such a stream; before an `@`, in the userinfo, it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::error::{Error, Kind, Result};
use crate::socket::{self, Bound, SocketFile};

mod proto {
    #![expect(
        unreachable_pub,
        clippy::allow_attributes,
        clippy::too_many_lines,
        reason = "generated; the client in it is kubelet's"
    )]
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

/// Checks that kubelet can speak through this socket.
///
/// # Errors
/// `Invalid` when there is no `@` in its name.
pub fn check(socket: &Path) -> Result<()> {
    if socket.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'@')) {
        return Ok(());
    }
    let text = format!(
        "the name of {} must have an @, such as dir.orlop.dev@reg.sock: kubelet's calls are malformed without it",
        socket.display()
    );
    Err(Error::new(Kind::Invalid, text))
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
async fn removed(place: &SocketFile, stop: &CancellationToken) {
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

    /// The first call of kubelet, byte by byte: no client of ours sends such an authority.
    fn first_call(socket: &str) -> Vec<u8> {
        let literal =
            |name: &[u8], text: &str| [name, &[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let authority = socket.replace('/', "%2F");
        let headers = [
            vec![0x83, 0x86], // :method POST, :scheme http
            literal(&[0x04], "/pluginregistration.Registration/GetInfo"),
            literal(&[0x01], &authority),
            literal(&[0x0f, 0x10], "application/grpc"),
            literal(&[0, 2, b't', b'e'], "trailers"),
        ]
        .concat();
        let frame = |kind: u8, flags: u8, stream: u8, body: &[u8]| {
            [&[0, 0, u8::try_from(body.len()).unwrap(), kind, flags, 0, 0, 0, stream], body].concat()
        };
        let (settings, headers) = (frame(4, 0, 0, &[]), frame(1, 4, 1, &headers));
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), settings, headers, frame(0, 1, 1, &[0; 5])].concat()
    }

    /// The type of the frame that answers a call.
    fn answer(socket: &Path) -> u8 {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.write_all(&first_call(socket.to_str().unwrap())).unwrap();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).unwrap();
            let length = usize::from(head[1]) * 256 + usize::from(head[2]);
            stream.read_exact(&mut vec![0; length]).unwrap();
            let (kind, stream) = (head[3], head[8]);
            if stream == 1 && kind != 8 {
                return kind;
            }
        }
    }

    #[tokio::test]
    async fn kubelet_is_heard_in_spite_of_its_authority() {
        let folder = tempfile::tempdir().unwrap();
        for (name, expected) in [("d@reg.sock", 1), ("d-reg.sock", 3)] {
            let socket = folder.path().join(name);
            assert_eq!(check(&socket).is_ok(), expected == 1);
            let (driver, endpoint) = ("d.x".into(), "/csi.sock".into());
            let registration = Registration { driver, endpoint, socket: socket.clone() };
            let stop = CancellationToken::new();
            let task = tokio::spawn(register(registration, stop.clone()));
            while !socket.exists() {
                tokio::task::yield_now().await;
            }
            let kind = tokio::task::spawn_blocking(move || answer(&socket)).await.unwrap();
            assert_eq!(kind, expected, "HEADERS is 1, RST_STREAM is 3: {name}");
            stop.cancel();
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn kubelet_is_told_again_after_it_cleaned_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("d@reg.sock");
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
