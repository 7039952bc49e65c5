//! Registers the driver with kubelet, as node-driver-registrar does: a socket in kubelet's plugin directory returns the
//! path of the CSI socket.
//!
//! The name of that socket contains an `@`. kubelet sends the socket's path as the `:authority` of a request, with each
//! `/` as `%2F`. A `%` is not valid in a host name, and h2 resets such a stream. It is valid in the userinfo, which is
//! the part before an `@`.

use std::path::{Path, PathBuf};
use std::time::Duration;

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
        reason = "generated; only kubelet uses the client"
    )]
    tonic::include_proto!("pluginregistration");
}

use proto::registration_server::{self, RegistrationServer};
use proto::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// How often to check that the socket still exists, and to retry to create it. kubelet notices a new socket at once.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Registration of a driver with kubelet.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Name of the driver.
    pub driver: String,
    /// Path of the CSI socket, as kubelet sees it.
    pub endpoint: PathBuf,
    /// Path of the registration socket.
    pub socket: PathBuf,
}

#[tonic::async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            // Versions of the registration protocol, not of CSI. node-driver-registrar sends the same.
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    /// Logs the result. kubelet retries by itself.
    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = self.driver, "kubelet registered the driver");
        } else {
            tracing::error!(driver = self.driver, error = ?status.error, "kubelet did not register the driver");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Checks that kubelet can send requests to a socket of this name.
///
/// # Errors
/// `Invalid` if the file name contains no `@`.
pub fn check(socket: &Path) -> Result<()> {
    if socket.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'@')) {
        return Ok(());
    }
    let text = format!(
        "the file name of {} must have an @, as in dir.orlop.dev@reg.sock: kubelet's requests are malformed without it",
        socket.display()
    );
    Err(Error::new(Kind::Invalid, text))
}

/// Serves the registration socket until `stop`, and creates it again whenever it is removed.
///
/// # Errors
/// As [`socket::bind`] for the first socket; later failures are retried.
pub async fn register(registration: Registration, stop: CancellationToken) -> Result<()> {
    let mut bound = socket::bind(&registration.socket)?;
    loop {
        let Bound { listener, file } = bound;
        let connections = socket::connections(|context| listener.poll_accept(context));
        Server::builder()
            .add_service(RegistrationServer::new(registration.clone()))
            .serve_with_incoming_shutdown(connections, wait_until_removed(&file, &stop))
            .await
            .map_err(|error| Error::caused(Kind::Unavailable, "serve the registration socket", error))?;
        match bind_again(&registration.socket, &stop).await {
            Some(next) => bound = next,
            None => return Ok(()),
        }
    }
}

/// Waits until the socket is removed or replaced, or until `stop`.
async fn wait_until_removed(file: &SocketFile, stop: &CancellationToken) {
    let interval = || stop.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL));
    while file.is_in_place() && interval().await.is_some() {}
}

/// Creates the socket again, with retries. Returns `None` when stopped.
async fn bind_again(path: &Path, stop: &CancellationToken) -> Option<Bound> {
    while !stop.is_cancelled() {
        match socket::bind(path) {
            Ok(bound) => return Some(bound),
            Err(error) => {
                tracing::warn!(error = error.chain(), "cannot create the registration socket again; retrying")
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL)).await;
    }
    None
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::proto::registration_client::RegistrationClient;
    use super::*;

    async fn get_info(socket: &Path) -> PluginInfo {
        let url = format!("unix://{}", socket.display());
        let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        let mut client = RegistrationClient::new(channel);
        client.get_info(InfoRequest {}).await.unwrap().into_inner()
    }

    /// The bytes of kubelet's first request. The client of this crate cannot send such an authority.
    fn kubelet_request(socket: &str) -> Vec<u8> {
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

    /// Sends kubelet's first request; returns the type of the frame that answers it.
    fn response_frame_type(socket: &Path) -> u8 {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.write_all(&kubelet_request(socket.to_str().unwrap())).unwrap();
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
    async fn the_authority_of_kubelet_is_accepted_if_the_socket_name_has_an_at_sign() {
        let dir = tempfile::tempdir().unwrap();
        for (name, expected) in [("d@reg.sock", 1), ("d-reg.sock", 3)] {
            let socket = dir.path().join(name);
            assert_eq!(check(&socket).is_ok(), expected == 1);
            let (driver, endpoint) = ("d.x".into(), "/csi.sock".into());
            let registration = Registration { driver, endpoint, socket: socket.clone() };
            let stop = CancellationToken::new();
            let task = tokio::spawn(register(registration, stop.clone()));
            while !socket.exists() {
                tokio::task::yield_now().await;
            }
            let kind = tokio::task::spawn_blocking(move || response_frame_type(&socket)).await.unwrap();
            assert_eq!(kind, expected, "HEADERS is 1, RST_STREAM is 3: {name}");
            stop.cancel();
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn the_socket_is_created_again_after_it_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("d@reg.sock");
        let registration = Registration {
            driver: "d.x".into(),
            endpoint: "/plugins/d/csi.sock".into(),
            socket: socket.clone(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(register(registration, stop.clone()));
        for _ in 0..2 {
            while !socket.exists() {
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
            let info = get_info(&socket).await;
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
