//! Messages on a socket: the length in four bytes, and JSON. A message may have descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::parse;
use crate::error::{Context as _, Error, Kind, Result};

/// Maximum length of a message: far more than the largest page of a listing.
const MAX_BYTES: usize = 256 << 20;
/// Maximum number of descriptors of a message.
const MAX_DESCRIPTORS: usize = 1;

/// Sends a message. Blocks while the other side does not receive.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let body = serde_json::to_vec(message)
        .map_err(|error| Error::caused(Kind::Internal, "write a message", error))?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BYTES);
    let length =
        length.ok_or_else(|| Error::new(Kind::Internal, "a message between processes is too long"))?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend(body);
    let descriptors: Vec<_> = descriptor.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let mut control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    let mut rest = frame.as_slice();
    while !rest.is_empty() {
        let slices = [IoSlice::new(rest)];
        match sendmsg::<()>(socket.as_raw_fd(), &slices, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(sent) => {
                control = &rights[..0];
                rest = rest.get(sent..).unwrap_or_default();
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                return Err(std::io::Error::from(error)).context(|| "send to another process of orlop");
            }
        }
    }
    Ok(())
}

/// Receives a message; `None` when the other side has ended.
pub(super) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<Option<(T, Option<OwnedFd>)>> {
    let mut length = [0; 4];
    let Some((descriptor, received)) = receive_first(socket, &mut length)? else { return Ok(None) };
    if !receive_rest(socket, length.get_mut(received..).unwrap_or_default())? {
        return Ok(None);
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_BYTES {
        return Err(Error::new(Kind::Internal, "a message between processes is too long"));
    }
    let mut body = vec![0; length];
    if !receive_rest(socket, &mut body)? {
        return Ok(None);
    }
    Ok(Some((parse(&String::from_utf8_lossy(&body))?, descriptor)))
}

/// Receives the first bytes of a message, and its descriptor.
fn receive_first(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<Option<(Option<OwnedFd>, usize)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received,
        }
    };
    // A reset: the other side has ended without reading everything.
    let bytes = match received {
        Err(Errno::CONNRESET) => 0,
        received => received.context(|| "receive from another process of orlop")?.bytes,
    };
    let descriptors = control.drain().filter_map(|message| {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message { Some(descriptors) } else { None }
    });
    let descriptor = descriptors.flatten().next();
    Ok((bytes > 0).then_some((descriptor, bytes)))
}

/// Fills the buffer; false when the other side ends before.
fn receive_rest(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<bool> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match recv(socket, rest, RecvFlags::empty()) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(false),
            Ok((_, received)) => filled += received,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "receive from another process of orlop"),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_of_any_length_arrive_with_their_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kept").unwrap();
        file.rewind().unwrap();
        let long = "x".repeat(1 << 20);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                send(ours.as_fd(), &"short", Some(file.as_fd())).unwrap();
                send(ours.as_fd(), &long, None).unwrap();
                drop(ours);
            });
            let (text, descriptor) = receive::<String>(theirs.as_fd()).unwrap().unwrap();
            let mut contents = String::new();
            std::fs::File::from(descriptor.unwrap()).read_to_string(&mut contents).unwrap();
            assert_eq!((text.as_str(), contents.as_str()), ("short", "kept"));
            let (text, descriptor) = receive::<String>(theirs.as_fd()).unwrap().unwrap();
            assert!(text == "x".repeat(1 << 20) && descriptor.is_none());
        });
        assert!(receive::<String>(theirs.as_fd()).unwrap().is_none(), "the end");
    }
}
