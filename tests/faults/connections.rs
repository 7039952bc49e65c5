//! Idle connections, and requests that the HTTP/2 library refuses before the program sees them.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::{CreateVolumeRequest, ProbeRequest};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::time::timeout;

use crate::common::csi::capability;
use crate::common::server::Server;
use crate::common::wait::{sleep_ms, within_seconds};

/// Opens a connection; `None` if too many wait to be accepted.
fn connect_now(path: &Path) -> Option<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).ok()?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    Some(stream)
}

#[tokio::test]
async fn idle_and_half_sent_http_requests_take_no_descriptors_from_csi_and_are_closed() {
    let server = Server::start_with_log();
    server.limit_open_files(256);
    let mut idle = Vec::new();
    for number in 0..400 {
        match connect_now(&server.base().join("http.sock")) {
            Some(mut stream) => {
                if number % 2 == 0 {
                    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-a: ").unwrap();
                }
                idle.push(stream);
            }
            None => sleep_ms(2),
        }
    }
    let mut controller = server.controller().await;
    let create = CreateVolumeRequest {
        name: "v".to_owned(),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..CreateVolumeRequest::default()
    };
    timeout(Duration::from_secs(60), controller.create_volume(create)).await.unwrap().unwrap();
    let first = &mut idle[0];
    first.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // It has no answer, and its end may be a reset.
    assert!(!matches!(first.read(&mut [0]), Ok(1..)));
    drop(idle);
    assert!(server.http("/readyz").contains("200 OK"));
}

#[tokio::test]
async fn a_server_without_descriptors_says_so_once_and_accepts_connections_again() {
    let server = Server::start_with_log();
    server.limit_open_files(u64::try_from(server.open_files() + 4).unwrap());
    let idle: Vec<_> = (0..20).map_while(|_| connect_now(&server.socket())).collect();
    within_seconds(60, "the shortage is logged", || server.log_lines("cannot accept a connection") == 1);
    drop(idle);
    let probe = server.identity().await.probe(ProbeRequest {}).await.unwrap();
    assert_eq!(probe.into_inner().ready, Some(true));
    assert_eq!(server.log_lines("cannot accept a connection"), 1);
}

/// The bytes of a gRPC request with this `:authority`. The client of this project cannot send a malformed one.
fn request(authority: &str) -> Vec<u8> {
    let literal =
        |name: u8, text: &str| [&[name, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let frame = |kind: u8, flags: u8, stream: u8, body: &[u8]| {
        [&[0, 0, u8::try_from(body.len()).unwrap(), kind, flags, 0, 0, 0, stream], body].concat()
    };
    let method_and_scheme = vec![0x83, 0x86]; // POST, http
    let headers = [method_and_scheme, literal(4, "/csi.v1.Identity/Probe"), literal(1, authority)].concat();
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 4, 1, &headers)].concat()
}

#[test]
fn a_client_that_sends_the_path_of_the_socket_as_authority_is_logged_with_the_remedy() {
    let server = Server::start_with_log();
    let clients = [(); 2].map(|()| {
        let mut client = UnixStream::connect(server.socket()).unwrap();
        client.write_all(&request("%2Frun%2Fcsi.sock")).unwrap();
        client
    });
    within_seconds(60, "a warning", || server.log_lines("grpc.default_authority") == 1);
    drop(clients);
}
