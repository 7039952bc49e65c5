//! Logs that cannot be written fail and delay no call.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::{CreateVolumeRequest, DeleteVolumeRequest};
use tokio::time::timeout;

use crate::common::csi::capability;
use crate::common::pool::memory_dir;
use crate::common::server::Server;
use crate::common::wait::within_seconds;

/// A pipe with its ends for reading and for writing.
fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader.into(), writer.into())
}

/// Creates and deletes volumes on a server that logs each call to `stderr`.
async fn calls_succeed(stderr: impl Into<Stdio>) {
    let dir = memory_dir();
    std::fs::create_dir(dir.path().join("pool")).unwrap();
    let mut server = Server::spawn_with_log(dir.path(), stderr.into());
    within_seconds(60, "the server accepts connections", || UnixStream::connect(server.socket()).is_ok());
    let mut controller = server.controller().await;
    // More lines than a pipe takes.
    for number in 0..300 {
        let name = format!("v{number}");
        let create = CreateVolumeRequest {
            name: name.clone(),
            volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
            ..CreateVolumeRequest::default()
        };
        let delete = DeleteVolumeRequest { volume_id: format!("p/{name}"), ..DeleteVolumeRequest::default() };
        timeout(Duration::from_secs(10), controller.create_volume(create)).await.unwrap().unwrap();
        timeout(Duration::from_secs(10), controller.delete_volume(delete)).await.unwrap().unwrap();
    }
    assert_eq!(server.terminate().code(), Some(0));
}

#[tokio::test]
async fn a_full_log_fails_no_call() {
    calls_succeed(File::options().write(true).open("/dev/full").unwrap()).await;
}

#[tokio::test]
async fn a_log_whose_reader_has_gone_fails_no_call() {
    let (reader, writer) = pipe();
    drop(reader);
    calls_succeed(writer).await;
}

#[tokio::test]
async fn a_log_that_is_not_read_delays_no_call() {
    let (reader, writer) = pipe();
    calls_succeed(writer).await;
    let mut text = vec![0; 1000];
    File::from(reader).read_exact(&mut text).unwrap();
    assert!(String::from_utf8(text).unwrap().contains("serving"));
}
