//! Asks an NFS server whether it responds: an RPC call of the procedure NULL (RFC 5531), which needs no mount.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a server may take to accept the connection and to respond.
pub(super) const DEADLINE: Duration = Duration::from_secs(3);

const NFS_PROGRAM: u32 = 100_003;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
/// The mark of the last fragment of a message.
const LAST_FRAGMENT: u32 = 1 << 31;

/// Succeeds when the server responds in time, also if it does not have this version of NFS.
pub(super) fn ping(server: &SocketAddr, version: u32) -> io::Result<()> {
    let end = Instant::now() + DEADLINE;
    let left = || match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(server, left()?)?;
    let id = std::process::id();
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(&call(id, version))?;
    // The head of a reply: length, id, direction.
    let mut head = [0; 12];
    let mut filled = 0;
    while filled < head.len() {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut head[filled..]) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let is_reply = head[4..8] == id.to_be_bytes() && head[8..12] == REPLY.to_be_bytes();
    is_reply.then_some(()).ok_or_else(|| io::Error::other("it does not speak RPC"))
}

/// A call without arguments, credentials and verifier.
fn call(id: u32, version: u32) -> Vec<u8> {
    let words = [id, CALL, RPC_VERSION, NFS_PROGRAM, version, 0, 0, 0, 0, 0];
    let length = u32::try_from(words.len() * 4).unwrap_or(0) | LAST_FRAGMENT;
    std::iter::once(length).chain(words).flat_map(u32::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Serves one connection with this answer, in which the id of the call is put.
    fn answer(bytes: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut call = [0; 44];
            stream.read_exact(&mut call).unwrap();
            let mut answer = bytes.to_vec();
            if answer.len() >= 8 {
                answer[4..8].copy_from_slice(&call[4..8]);
            }
            stream.write_all(&answer).unwrap();
        });
        address
    }

    #[test]
    fn a_reply_of_any_kind_shows_that_the_server_responds() {
        ping(&answer(&[0x80, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), 4).unwrap();
    }

    #[test]
    fn something_else_than_an_nfs_server_is_an_error() {
        let error = ping(&answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"), 4).unwrap_err();
        assert_eq!(error.to_string(), "it does not speak RPC");
        let error = ping(&answer(b"no"), 4).unwrap_err();
        assert_eq!(error.to_string(), "it closed the connection");
    }

    #[test]
    fn a_server_that_never_answers_takes_the_deadline_only() {
        // The kernel accepts the connection, and no program reads it.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = ping(&listener.local_addr().unwrap(), 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
