//! A proxy in front of the NFS server that loses the reply to each call that makes, moves or removes a name, and repeats the
//! call, as a client does. It uses another connection: a server of NFS 4.0 knows a call by its connection, so it does it again.

use std::io::{self, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::common::wait::sleep_ms;

/// Operations of NFS 4 (RFC 7531).
pub(super) const CREATE: u32 = 6;
pub(super) const LINK: u32 = 11;
pub(super) const REMOVE: u32 = 28;
pub(super) const RENAME: u32 = 29;
const LOST: [u32; 4] = [CREATE, LINK, REMOVE, RENAME];
const PUTFH: u32 = 22;
const SAVEFH: u32 = 32;

/// The proxy.
pub(super) struct Proxy {
    pub(super) port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    connections: usize,
    /// The operations whose replies were lost.
    lost: Vec<u32>,
}

impl Proxy {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                state.lock().unwrap().connections += 1;
                thread::spawn(move || {
                    let _ = relay(&client, &state);
                    state.lock().unwrap().connections -= 1;
                });
            }
        });
        Self { port, state }
    }

    pub(super) fn lost(&self) -> Vec<u32> {
        self.state.lock().unwrap().lost.clone()
    }
}

impl Drop for Proxy {
    /// Waits for the end of the mounts, which would wait for a proxy that has ended.
    fn drop(&mut self) {
        let is_idle = || self.state.lock().unwrap().connections == 0;
        let end = Instant::now() + Duration::from_secs(60);
        while !is_idle() && Instant::now() < end {
            sleep_ms(50);
        }
    }
}

/// Passes calls and replies on until one side ends.
fn relay(mut client: &TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let connect = || TcpStream::connect("127.0.0.1:2049");
    let (mut server, mut other) = (connect()?, connect()?);
    loop {
        let fds = [client.as_fd(), server.as_fd()];
        let mut ready = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        poll(&mut ready, None)?;
        let [of_client, of_server] = ready.map(|fd| !fd.revents().is_empty());
        if of_client {
            let call = message(client)?;
            if let Some(operation) = operation(&call).filter(|operation| LOST.contains(operation)) {
                other.write_all(&call)?;
                let _lost_reply = message(&other)?;
                state.lock().unwrap().lost.push(operation);
            }
            server.write_all(&call)?;
        }
        if of_server {
            client.write_all(&message(&server)?)?;
        }
    }
}

/// Reads one message with its mark.
fn message(mut stream: impl Read) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let mut mark = [0; 4];
        stream.read_exact(&mut mark)?;
        let mark_of = u32::from_be_bytes(mark);
        let start = all.len() + 4;
        all.extend(mark);
        all.resize(start + (mark_of & !(1 << 31)) as usize, 0);
        stream.read_exact(&mut all[start..])?;
        if mark_of >> 31 == 1 {
            return Ok(all);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().unwrap()))
}

/// The place after a counted field.
fn after_field(call: &[u8], at: usize) -> Option<usize> {
    Some(at + 4 + (word(call, at)? as usize).next_multiple_of(4))
}

/// The first operation of a call that is not about the place of its names.
fn operation(call: &[u8]) -> Option<u32> {
    // Mark, number, direction, version, program, its version, procedure, and then the credentials.
    let credentials = after_field(call, 7 * 4 + 4)?;
    let tag = after_field(call, credentials + 4)?;
    // The minor version, and the number of operations.
    let mut at = after_field(call, tag)? + 8;
    loop {
        match word(call, at)? {
            PUTFH => at = after_field(call, at + 4)?,
            SAVEFH => at += 4,
            operation => return Some(operation),
        }
    }
}
