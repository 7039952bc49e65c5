//! Compression and checksums, in a thread beside the one that reads or writes the entries.

use std::fmt;
use std::io::{self, BufRead, Cursor, Read, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::pipe::{PipeReader, PipeWriter, Stop, pipe};
use super::{bad, explain};
use crate::error::{Context as _, Error, Kind, Result};

/// Fast, as the source of a backup should not wait for the compressor.
const LEVEL: i32 = 1;
/// The largest window of zstd that is accepted, as a power of two: that of `zstd --long`. More memory is refused.
const WINDOW_LOG: u32 = 27;

/// The compression of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// None.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// The bytes of a file, and their checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// Number of bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// Counts and hashes what passes.
struct Hashing<S> {
    stream: S,
    bytes: u64,
    sha256: Sha256,
}

impl<S> Hashing<S> {
    fn new(stream: S) -> Self {
        Self { stream, bytes: 0, sha256: Sha256::new() }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.sha256.update(bytes);
    }

    fn sum(self) -> Sum {
        let digits = self.sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Sum { bytes: self.bytes, sha256: digits }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        self.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(to)?;
        self.add(&to[..read]);
        Ok(read)
    }
}

/// Compresses what is written to it.
pub struct Compressor {
    pipe: PipeWriter,
    thread: Option<JoinHandle<io::Result<Sum>>>,
}

impl Compressor {
    /// Starts a thread that compresses and writes to `out`, until `stop` reports true.
    ///
    /// # Errors
    /// `Internal` when the thread cannot be started.
    pub fn start(
        out: impl Write + Send + 'static,
        compression: Compression,
        stop: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Self> {
        let stop: Stop = Arc::new(stop);
        let (pipe, input) = pipe(&stop);
        let work = move || compress(input, Hashing::new(out), compression);
        let thread = thread::Builder::new().name("compress".to_owned()).spawn(work);
        let thread = thread.context(|| "start the thread that compresses")?;
        Ok(Self { pipe, thread: Some(thread) })
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// The error of the output; `Busy` when it was stopped.
    pub fn finish(self) -> Result<Sum> {
        let Self { pipe, thread } = self;
        match (pipe.finish(), thread) {
            (Err(error), _) if !is_pipe_end(&error) => Err(explain(error)),
            (_, thread) => join(thread).map_err(explain),
        }
    }
}

/// Waits for the thread, unless that was done before.
fn join(thread: Option<JoinHandle<io::Result<Sum>>>) -> io::Result<Sum> {
    let ended = thread.and_then(|thread| thread.join().ok());
    ended.unwrap_or_else(|| Err(io::Error::other("the compressor has ended")))
}

/// Whether an error is that of the pipe between the threads.
fn is_pipe_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe && error.raw_os_error().is_none()
}

impl Write for Compressor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.pipe.write(bytes) {
            // The thread has ended, and knows why.
            Err(error) if is_pipe_end(&error) => Err(join(self.thread.take()).err().unwrap_or(error)),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

fn compress<W: Write>(input: PipeReader, mut out: Hashing<W>, compression: Compression) -> io::Result<Sum> {
    match compression {
        Compression::None => input.copy_to(&mut out)?,
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(&mut out, flate2::Compression::new(LEVEL.unsigned_abs()));
            input.copy_to(&mut encoder)?;
            encoder.finish()?;
        }
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(&mut out, LEVEL)?;
            encoder.include_checksum(true)?;
            input.copy_to(&mut encoder)?;
            encoder.finish()?;
        }
    }
    out.flush()?;
    Ok(out.sum())
}

/// Decompresses what is read from it.
pub struct Decompressor {
    pipe: PipeReader,
    thread: JoinHandle<Option<Sum>>,
}

impl Decompressor {
    /// Starts a thread that reads `input` and recognizes its compression, until `stop` reports true.
    ///
    /// # Errors
    /// `Internal` when the thread cannot be started.
    pub fn start(
        input: impl Read + Send + 'static,
        stop: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Self> {
        let stop: Stop = Arc::new(stop);
        let (mut out, pipe) = pipe(&stop);
        let work = move || {
            let mut input = Hashing::new(input);
            match decompress(&mut input, &mut out).and_then(|()| out.flush().map_err(explain)) {
                Ok(()) => drop(out.finish()),
                Err(error) => out.fail(error),
            }
            Some(input.sum())
        };
        let thread = thread::Builder::new().name("decompress".to_owned()).spawn(work);
        Ok(Self { pipe, thread: thread.context(|| "start the thread that decompresses")? })
    }

    /// The bytes and the checksum of the input, after all of it was read.
    ///
    /// # Errors
    /// `Internal` when the thread has panicked.
    pub fn finish(self) -> Result<Sum> {
        let sum = self.thread.join().ok().flatten();
        sum.ok_or_else(|| Error::new(Kind::Internal, "the decompressor panicked"))
    }
}

impl Read for Decompressor {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.pipe.read(to)
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

/// Decompresses all of the input.
fn decompress<R: Read>(input: &mut Hashing<R>, out: &mut PipeWriter) -> Result<()> {
    let (mut start, mut length) = ([0; 6], 0);
    while length < start.len() {
        match input.read(&mut start[length..]).context(|| "read the archive")? {
            0 => break,
            read => length += read,
        }
    }
    let magic = &start[..length];
    let mut whole = io::BufReader::with_capacity(128 << 10, Cursor::new(magic).chain(input));
    let copied = if magic.starts_with(&[0x1f, 0x8b]) {
        copy_gzip(&mut whole, out)
    } else if matches!(magic, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) {
        copy_zstd(&mut whole, out)
    } else if magic.starts_with(b"BZh") || magic.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        return Err(bad(
            "the archive is compressed by bzip2 or xz: decompress it first, such as by `xz -dc FILE`",
        ));
    } else {
        copy(&mut whole, out)
    };
    copied.map_err(explain)
}

/// Names the cause if the window of the compressed data is too large: the library has a text for it only.
fn explain_window(error: io::Error) -> io::Error {
    if error.raw_os_error().is_some() || !error.to_string().contains("too much memory") {
        return error;
    }
    let text = format!(
        "the archive needs more than {} MiB of memory, by `zstd --long`: decompress it first, such as by \
         `zstd -dc --long=31 FILE`",
        1 << (WINDOW_LOG - 20)
    );
    io::Error::other(bad(text))
}

/// Decompresses all members of a gzip file (RFC 1952).
fn copy_gzip(input: &mut impl BufRead, out: &mut PipeWriter) -> io::Result<()> {
    loop {
        copy(GzDecoder::new(&mut *input), out)?;
        if !has_more(input, |first| first == 0x1f)? {
            return Ok(());
        }
    }
}

/// Decompresses all frames of a file of zstd (RFC 8878), and skips those that are to be skipped.
fn copy_zstd(input: &mut impl BufRead, out: &mut PipeWriter) -> io::Result<()> {
    loop {
        let mut decoder = zstd::Decoder::with_buffer(&mut *input)?.single_frame();
        decoder.window_log_max(WINDOW_LOG)?;
        copy(&mut decoder, out).map_err(explain_window)?;
        if !has_more(input, |first| matches!(first, 0x28 | 0x50..=0x5f))? {
            return Ok(());
        }
    }
}

/// Whether another part begins, with such a byte, where one has ended.
fn has_more(input: &mut impl BufRead, begins: impl Fn(u8) -> bool) -> io::Result<bool> {
    match input.fill_buf()?.first() {
        None => Ok(false),
        Some(first) if begins(*first) => Ok(true),
        Some(_) => Err(io::Error::other(bad("the archive has data behind its end"))),
    }
}

/// Copies a stream, in larger parts than the standard library does.
fn copy(mut from: impl Read, to: &mut PipeWriter) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
