//! Writes an archive that GNU tar and its like extract: POSIX headers, with PAX records for what these cannot hold.

use std::borrow::Cow;
use std::io::Write;

use super::header::{Header, fits, split};
use super::pax::RecordWriter;
use super::{ACCESS_ACL, BLOCK, DEFAULT_ACL, Entry, EntryKind, Origin, acl, explain, sparse};
use crate::error::{Error, Kind, Result};

/// Archives end with zeros up to a multiple of this, as those of other programs.
const RECORD: u64 = 20 * BLOCK as u64;

/// Writes the entries of an archive, one after another.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    written: u64,
    /// Bytes of data that the current entry still gets.
    left: u64,
    records: RecordWriter,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self { out, written: 0, left: 0, records: RecordWriter::default() }
    }

    /// Bytes that were written, without compression.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.written
    }

    /// Notes where the data comes from. Other programs ignore it.
    ///
    /// # Errors
    /// The error of the failed write.
    pub fn origin(&mut self, origin: &Origin) -> Result<()> {
        let json = serde_json::to_string(origin);
        let json = json.map_err(|error| Error::caused(Kind::Internal, "write the comment", error))?;
        self.records.clear();
        self.records.add("comment", format!("orlop {json}"));
        self.write_records(b'g', &[])
    }

    /// Begins an entry, whose data follows by [`Writer::data`].
    ///
    /// # Errors
    /// The error of the failed write; `Internal` when data of the last entry is missing.
    pub fn entry(&mut self, entry: &Entry) -> Result<()> {
        if self.left > 0 {
            return Err(Error::new(Kind::Internal, "an entry is shorter than was announced"));
        }
        let mut path = Cow::Borrowed(&entry.path[..]);
        if entry.kind == EntryKind::Directory {
            path.to_mut().push(b'/');
        }
        self.records.clear();
        let records = &mut self.records;
        let mut header = header_of(entry, records);
        let map = entry.data.as_ref().map(|ranges| sparse::to_bytes(ranges, entry.size));
        match &map {
            Some(map) => {
                header.size = map.len() as u64 + entry.stored();
                records.add_number("GNU.sparse.major", 1);
                records.add_number("GNU.sparse.minor", 0);
                records.add_number("GNU.sparse.realsize", entry.size);
                records.add("GNU.sparse.name", &path);
                header.path = sparse_name(&path).into();
            }
            None => {
                if split(&path).is_none() {
                    records.add("path", &path);
                }
                header.path = path;
            }
        }
        if !fits(header.size, Header::SIZE_LENGTH) {
            records.add_number("size", header.size);
        }
        if !records.bytes().is_empty() {
            self.write_records(b'x', &entry.path)?;
        }
        self.write(&header.to_block())?;
        self.left = header.size;
        if let Some(map) = map {
            self.data(&map)?;
        }
        self.pad_if_complete()
    }

    /// Writes the next bytes of the current entry: all that have been announced, in any number of calls.
    ///
    /// # Errors
    /// The error of the failed write; `Internal` when it is more than was announced.
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left =
            left.ok_or_else(|| Error::new(Kind::Internal, "an entry is longer than was announced"))?;
        self.write(bytes)?;
        self.pad_if_complete()
    }

    /// Ends the archive. Returns the stream below and the bytes that were written.
    ///
    /// # Errors
    /// The error of the failed write; `Internal` when data of an entry is missing.
    pub fn finish(mut self) -> Result<(W, u64)> {
        if self.left > 0 {
            return Err(Error::new(Kind::Internal, "an entry is shorter than was announced"));
        }
        let end = self.written + 2 * BLOCK as u64;
        while self.written < end || !self.written.is_multiple_of(RECORD) {
            self.write(&[0; BLOCK])?;
        }
        self.out.flush().map_err(explain)?;
        Ok((self.out, self.written))
    }

    /// Writes the records as a header of this type, for the entry with this path.
    fn write_records(&mut self, kind: u8, path: &[u8]) -> Result<()> {
        let records = std::mem::take(&mut self.records);
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let path = [&b"PaxHeaders/"[..], &name[..name.len().min(80)]].concat();
        let size = records.bytes().len() as u64;
        let header = Header { path: path.into(), mode: 0o644, size, kind, ..Header::default() };
        self.write(&header.to_block())?;
        self.left = size;
        self.data(records.bytes())?;
        self.records = records;
        Ok(())
    }

    fn pad_if_complete(&mut self) -> Result<()> {
        let over = usize::try_from(self.written % BLOCK as u64).unwrap_or(0);
        if self.left > 0 || over == 0 {
            return Ok(());
        }
        self.write(&[0; BLOCK][over..])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).map_err(explain)
    }
}

/// The header of an entry without its path and size. Adds the records for what it cannot hold.
fn header_of<'a>(entry: &'a Entry, records: &mut RecordWriter) -> Header<'a> {
    let mut header = Header {
        mode: entry.mode & 0o7777,
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        size: entry.size,
        modified: entry.modified.0,
        ..Header::default()
    };
    match &entry.kind {
        EntryKind::File => header.kind = b'0',
        EntryKind::HardLink(target) => (header.kind, header.link) = (b'1', target.into()),
        EntryKind::Symlink(target) => (header.kind, header.link) = (b'2', target.into()),
        EntryKind::CharacterDevice(major, minor) => (header.kind, header.device) = (b'3', (*major, *minor)),
        EntryKind::BlockDevice(major, minor) => (header.kind, header.device) = (b'4', (*major, *minor)),
        EntryKind::Directory => header.kind = b'5',
        EntryKind::Fifo => header.kind = b'6',
    }
    if header.link.len() > Header::LINK_LENGTH {
        records.add("linkpath", &header.link);
    }
    for (key, id) in [("uid", header.uid), ("gid", header.gid)] {
        if !fits(id, Header::ID_LENGTH) {
            records.add_number(key, id);
        }
    }
    let seconds = u64::try_from(entry.modified.0);
    if entry.modified.1 != 0 || !seconds.is_ok_and(|seconds| fits(seconds, Header::TIME_LENGTH)) {
        records.add_time("mtime", entry.modified);
    }
    if let Some(accessed) = entry.accessed {
        records.add_time("atime", accessed);
    }
    for (name, value) in &entry.xattrs {
        match (&name[..], acl::to_text(value)) {
            (ACCESS_ACL, Some(text)) => records.add("SCHILY.acl.access", text),
            (DEFAULT_ACL, Some(text)) => records.add("SCHILY.acl.default", text),
            (name, _) => records.add([b"SCHILY.xattr.", &encode(name)[..]].concat(), value),
        }
    }
    header
}

/// The name of an attribute as part of a key, as GNU tar writes it.
fn encode(name: &[u8]) -> Vec<u8> {
    let text = name.iter().map(|byte| match byte {
        b'%' => &b"%25"[..],
        b'=' => b"%3D",
        byte => std::slice::from_ref(byte),
    });
    text.collect::<Vec<_>>().concat()
}

/// The name that a program gives to a sparse file if it does not know this format.
fn sparse_name(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let (dir, name) = path.split_at(at);
    [dir, b"GNUSparseFile.0/", name].concat()
}
