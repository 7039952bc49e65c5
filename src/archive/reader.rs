//! Reads archives of this and other programs: POSIX, PAX and GNU headers, sparse files in GNU's format 1.0.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};

use super::header::Header;
use super::pax::{MAX_HEADER, Records};
use super::sparse::Map;
use super::{
    ACCESS_ACL, BLOCK, DEFAULT_ACL, Entry, EntryKind, MAX_PATH, MAX_XATTRS, Origin, acl, bad, explain,
    too_short,
};
use crate::error::{Error, Result};

/// The most zeros behind the end of an archive, and headers before an entry: an archive must not keep a reader forever.
const MAX_END: u64 = 64 << 20;
const MAX_HEADERS: usize = 64;

/// Reads the entries of an archive, one after another.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    read: u64,
    /// Bytes of data of the current entry that are not read yet.
    left: u64,
    /// Zeros behind its data.
    padding: u64,
    global: Records,
    origin: Option<Origin>,
    has_ended: bool,
    /// The first entry, if only the origin was asked for.
    first: Option<Entry>,
}

/// What the headers before the one of an entry say of it.
#[derive(Debug, Default)]
struct Extra {
    records: Records,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Starts to read an archive.
    pub fn new(input: R) -> Self {
        let global = Records::default();
        Self { input, read: 0, left: 0, padding: 0, global, origin: None, has_ended: false, first: None }
    }

    /// Reads up to the first entry, and returns what orlop has noted about the origin.
    ///
    /// # Errors
    /// Same as [`Reader::next_entry`].
    pub fn start(&mut self) -> Result<Option<&Origin>> {
        self.first = self.next_entry()?;
        Ok(self.origin())
    }

    /// The stream below.
    pub fn into_input(self) -> R {
        self.input
    }

    /// What orlop has noted about the origin of the archive, after the first entry was read.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Bytes that were read, without compression.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.read
    }

    /// The next entry; `None` at the end of the archive. Data that was not read is skipped.
    ///
    /// # Errors
    /// `Unreadable` when the archive is damaged, ends too early, or has something that this does not understand; otherwise
    /// the error of the failed read.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let mut extra = Extra::default();
        for _ in 0..MAX_HEADERS {
            self.skip_data()?;
            let Some(header) = self.header()? else { return Ok(None) };
            self.left = header.size;
            self.padding = header.size.next_multiple_of(BLOCK as u64) - header.size;
            match header.kind {
                b'x' => extra.records = Records::parse(&self.whole_data()?)?,
                b'g' => self.read_global()?,
                b'L' => extra.path = Some(self.long_name()?),
                b'K' => extra.link = Some(self.long_name()?),
                _ => return self.entry(header, extra).map(Some),
            }
        }
        Err(bad("the archive has too many headers for one entry"))
    }

    /// Reads data of the current entry: of a sparse file its parts, one after another. 0 at the end.
    ///
    /// # Errors
    /// Same as [`Reader::next_entry`].
    pub fn data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let read = self.read_some(&mut buffer[..most])?;
        if read == 0 {
            return Err(too_short());
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// The next header; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header<'static>>> {
        if self.has_ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        match self.read_block(&mut block)? {
            0 if self.read == 0 => return Err(bad("the archive is empty: it is no tar archive")),
            BLOCK => {}
            _ => return Err(too_short()),
        }
        if block != [0; BLOCK] {
            return Header::parse(&block).map(Some);
        }
        self.has_ended = true;
        self.read_end().map(|()| None)
    }

    /// Reads what follows the end, so that the checksum of the compression is checked.
    fn read_end(&mut self) -> Result<()> {
        let (mut buffer, end) = ([0; 16 * BLOCK], self.read + MAX_END);
        while self.read < end {
            match self.read_some(&mut buffer)? {
                0 => return Ok(()),
                read if buffer[..read].iter().all(|byte| *byte == 0) => {}
                _ => return Err(bad("the archive has data behind its end")),
            }
        }
        Err(bad("the archive has too much behind its end"))
    }

    fn read_global(&mut self) -> Result<()> {
        self.global = Records::parse(&self.whole_data()?)?;
        let comment = self.global.get("comment").and_then(|comment| comment.strip_prefix(b"orlop "));
        if let Some(origin) = comment.and_then(|json| serde_json::from_slice(json).ok()) {
            self.origin = Some(origin);
        }
        Ok(())
    }

    /// The data of a header for the next entry.
    fn whole_data(&mut self) -> Result<Vec<u8>> {
        if self.left > MAX_HEADER {
            return Err(bad("a header is too long"));
        }
        let mut bytes = vec![0; usize::try_from(self.left).unwrap_or(0)];
        let mut at = 0;
        while at < bytes.len() {
            at += self.data(&mut bytes[at..])?;
        }
        Ok(bytes)
    }

    fn long_name(&mut self) -> Result<Vec<u8>> {
        if self.left > MAX_PATH as u64 {
            return Err(bad("a name is too long"));
        }
        let mut name = self.whole_data()?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn entry(&mut self, header: Header<'_>, extra: Extra) -> Result<Entry> {
        let records = &extra.records;
        let text = |key| records.get(key).or_else(|| self.global.get(key)).map(<[u8]>::to_vec);
        let is_sparse = match (records.number("GNU.sparse.major")?, records.number("GNU.sparse.minor")?) {
            (None, None) if records.get("GNU.sparse.map").is_none() => false,
            (Some(1), Some(0)) => true,
            _ => return Err(unknown_sparse()),
        };
        let named = if is_sparse { text("GNU.sparse.name") } else { None };
        let mut path = named.or_else(|| text("path")).or(extra.path).unwrap_or_else(|| header.path.into());
        let link = text("linkpath").or(extra.link).unwrap_or_else(|| header.link.into());
        if path.len().max(link.len()) > MAX_PATH {
            return Err(bad("a name is too long"));
        }
        let kind = kind_of(header.kind, path.ends_with(b"/"), link, header.device)?;
        if kind == EntryKind::Directory {
            let end = path.iter().rposition(|byte| *byte != b'/').map_or(1, |at| at + 1);
            path.truncate(end);
        }
        let number = |key| {
            records
                .number(key)
                .and_then(|found| found.map_or_else(|| self.global.number(key), |n| Ok(Some(n))))
        };
        let id = |key, field| {
            let id = number(key)?.unwrap_or(field);
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| bad("an owner is no valid id"))
        };
        let time = |key| records.time(key);
        let mut entry = Entry {
            path,
            mode: header.mode,
            uid: id("uid", header.uid)?,
            gid: id("gid", header.gid)?,
            modified: time("mtime")?.unwrap_or((header.modified, 0)),
            accessed: time("atime")?,
            xattrs: xattrs(records)?,
            size: 0,
            data: None,
            kind,
        };
        let stored = if entry.kind == EntryKind::File { number("size")?.unwrap_or(header.size) } else { 0 };
        let size = if is_sparse {
            records.number("GNU.sparse.realsize")?.ok_or_else(unknown_sparse)?
        } else {
            stored
        };
        if stored.max(size) > i64::MAX.cast_unsigned() {
            return Err(bad("a size is too large"));
        }
        (self.left, self.padding) = (stored, stored.next_multiple_of(BLOCK as u64) - stored);
        if entry.kind == EntryKind::File {
            entry.size = size;
            entry.data = if is_sparse { Some(self.read_map(size)?) } else { None };
            if entry.stored() != self.left {
                return Err(bad(
                    "the archive is damaged: a sparse file has more or less data than its map says",
                ));
            }
        }
        Ok(entry)
    }

    fn read_map(&mut self, size: u64) -> Result<Vec<std::ops::Range<u64>>> {
        let (mut map, mut block) = (Map::default(), [0; BLOCK]);
        loop {
            let mut at = 0;
            while at < BLOCK {
                match self.data(&mut block[at..])? {
                    0 => return Err(bad("the archive is damaged: the map of a sparse file is too short")),
                    read => at += read,
                }
            }
            if map.read(&block)? {
                return map.ranges(size);
            }
        }
    }

    fn skip_data(&mut self) -> Result<()> {
        let mut buffer = [0; 16 * BLOCK];
        while self.data(&mut buffer)? > 0 {}
        self.left = std::mem::take(&mut self.padding);
        while self.data(&mut buffer)? > 0 {}
        Ok(())
    }

    /// Reads a block; less at the end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<usize> {
        let mut at = 0;
        while at < BLOCK {
            match self.read_some(&mut block[at..])? {
                0 => break,
                read => at += read,
            }
        }
        Ok(at)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.input.read(buffer) {
                Ok(read) => {
                    self.read += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(explain(error)),
            }
        }
    }
}

fn kind_of(kind: u8, is_directory: bool, link: Vec<u8>, device: (u32, u32)) -> Result<EntryKind> {
    Ok(match kind {
        b'0' | b'\0' | b'7' if is_directory => EntryKind::Directory,
        b'0' | b'\0' | b'7' => EntryKind::File,
        b'1' => EntryKind::HardLink(link),
        b'2' => EntryKind::Symlink(link),
        b'3' => EntryKind::CharacterDevice(device.0, device.1),
        b'4' => EntryKind::BlockDevice(device.0, device.1),
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'S' => return Err(unknown_sparse()),
        kind => {
            return Err(bad(format!("the archive has an entry of the unknown type {:?}", char::from(kind))));
        }
    })
}

fn xattrs(records: &Records) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    for (key, value) in records.iter() {
        let (name, value) = match &key[..] {
            b"SCHILY.acl.access" => (ACCESS_ACL.to_vec(), acl::from_text(value)?),
            b"SCHILY.acl.default" => (DEFAULT_ACL.to_vec(), acl::from_text(value)?),
            key => match key.strip_prefix(b"SCHILY.xattr.") {
                Some(name) => (decode(name), value.clone()),
                None => continue,
            },
        };
        found.insert(name, value);
    }
    let bytes: usize = found.iter().map(|(name, value): (&Vec<u8>, &Vec<u8>)| name.len() + value.len()).sum();
    if bytes > MAX_XATTRS {
        return Err(bad("an entry has too many extended attributes"));
    }
    Ok(found.into_iter().collect())
}

/// The reverse of what a writer does to the name of an attribute.
fn decode(name: &[u8]) -> Vec<u8> {
    let (mut decoded, mut rest) = (Vec::new(), name);
    while let Some((first, more)) = rest.split_first() {
        let (byte, more) = match (rest.strip_prefix(b"%25"), rest.strip_prefix(b"%3D")) {
            (Some(more), _) => (b'%', more),
            (_, Some(more)) => (b'=', more),
            (None, None) => (*first, more),
        };
        decoded.push(byte);
        rest = more;
    }
    decoded
}

fn unknown_sparse() -> Error {
    bad(
        "the archive has a sparse file in an old format: make it with tar --format=posix --sparse-version=1.0",
    )
}
