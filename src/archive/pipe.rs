//! A pipe between two threads of few buffers, whose ends can be stopped.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::error::{Error, Kind};

/// Number of buffers, and their size.
const BUFFERS: usize = 6;
const SIZE: usize = 256 << 10;
/// How long an end waits before it looks whether it should stop.
const POLL: Duration = Duration::from_millis(100);

/// Reports whether the ends of a pipe should stop.
pub(super) type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// A full buffer; `None` at the end; or why there is no more.
type Filled = Result<Option<Vec<u8>>, Error>;

/// The end that is written to. Dropped before [`PipeWriter::finish`], the reader gets an error.
pub(super) struct PipeWriter {
    filled: Sender<Filled>,
    empty: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
    stop: Stop,
}

/// The end that is read from.
pub(super) struct PipeReader {
    filled: Receiver<Filled>,
    empty: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    has_ended: bool,
    stop: Stop,
}

/// Creates a pipe.
pub(super) fn pipe(stop: &Stop) -> (PipeWriter, PipeReader) {
    let ((filled_to, filled), (empty_to, empty)) = (channel(), channel());
    for _ in 1..BUFFERS {
        let _ = empty_to.send(Vec::with_capacity(SIZE));
    }
    let buffer = Vec::with_capacity(SIZE);
    (
        PipeWriter { filled: filled_to, empty, buffer, stop: Arc::clone(stop) },
        PipeReader {
            filled,
            empty: empty_to,
            buffer: Vec::new(),
            at: 0,
            has_ended: false,
            stop: Arc::clone(stop),
        },
    )
}

fn receive<T>(from: &Receiver<T>, stop: &Stop, other_end: &'static str) -> io::Result<T> {
    loop {
        if stop() {
            return Err(io::Error::other(Error::new(Kind::Busy, "cancelled")));
        }
        match from.recv_timeout(POLL) {
            Ok(received) => return Ok(received),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, other_end));
            }
        }
    }
}

impl PipeWriter {
    /// Passes the last bytes on, and tells the reader that they are the last ones.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.pass_on()?;
        self.send(Ok(None))
    }

    /// Tells the reader why there is no more.
    pub(super) fn fail(self, error: Error) {
        let _ = self.send(Err(error));
    }

    fn pass_on(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut next = receive(&self.empty, &self.stop, "the reader has ended")?;
        next.clear();
        let full = std::mem::replace(&mut self.buffer, next);
        self.send(Ok(Some(full)))
    }

    fn send(&self, buffer: Filled) -> io::Result<()> {
        self.filled
            .send(buffer)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader has ended"))
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == SIZE {
            self.pass_on()?;
        }
        let length = bytes.len().min(SIZE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PipeReader {
    /// Writes everything to another stream.
    pub(super) fn copy_to(self, out: &mut impl Write) -> io::Result<()> {
        while let Some(buffer) = self.next()? {
            out.write_all(&buffer)?;
            let _ = self.empty.send(buffer);
        }
        Ok(())
    }

    fn next(&self) -> io::Result<Option<Vec<u8>>> {
        receive(&self.filled, &self.stop, "the writer has ended")?.map_err(io::Error::other)
    }
}

impl Read for PipeReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() {
            if self.has_ended || to.is_empty() {
                return Ok(0);
            }
            let Some(next) = self.next()? else {
                self.has_ended = true;
                return Ok(0);
            };
            let _ = self.empty.send(std::mem::replace(&mut self.buffer, next));
            self.at = 0;
        }
        let length = to.len().min(self.buffer.len() - self.at);
        to[..length].copy_from_slice(&self.buffer[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

impl fmt::Debug for PipeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeWriter").finish_non_exhaustive()
    }
}

impl fmt::Debug for PipeReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeReader").finish_non_exhaustive()
    }
}
