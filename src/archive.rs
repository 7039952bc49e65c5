//! Tar archives as streams, without access to a filesystem: PAX headers, sparse files, compression and checksums.
//!
//! What is read may be hostile: lengths, counts and names are bounded, and nothing is interpreted as a path here.

pub mod compression;
pub mod name;

mod acl;
mod header;
mod pax;
mod pipe;
mod reader;
mod sparse;
mod writer;

use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};
pub use acl::{ACCESS_ACL, DEFAULT_ACL};
pub use reader::Reader;
pub(crate) use sparse::Parts;
pub use writer::Writer;

/// The unit of a tar archive.
const BLOCK: usize = 512;
/// The longest path, and the longest target of a link, of an entry.
pub const MAX_PATH: usize = 64 << 10;
/// The most bytes of extended attributes of an entry.
pub const MAX_XATTRS: usize = 1 << 20;
/// The memory that an extended attribute takes besides its name and value.
const PER_XATTR: usize = 100;

/// An entry of an archive, without the data of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path as in the archive.
    pub path: Vec<u8>,
    /// Its type.
    pub kind: EntryKind,
    /// Permission bits, with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of its contents.
    pub modified: Time,
    /// Time of the last access, if it is recorded.
    pub accessed: Option<Time>,
    /// Extended attributes as the kernel has them, with ACLs.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of a regular file, with its holes; otherwise 0.
    pub size: u64,
    /// The parts of a sparse file that have data, in their order; `None` for a file without holes.
    pub data: Option<Vec<Range<u64>>>,
}

/// Seconds since 1970, and nanoseconds.
pub type Time = (i64, u32);

/// The type of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A further name of the file with this path.
    HardLink(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
    /// A character device with its major and minor number.
    CharacterDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
}

impl Entry {
    /// The bytes of data that the archive has of it.
    #[must_use]
    pub fn stored(&self) -> u64 {
        match &self.data {
            None => self.size,
            Some(ranges) => ranges.iter().map(|range| range.end - range.start).sum(),
        }
    }

    /// The bytes of memory that it takes, as far as they depend on the archive.
    pub(crate) fn memory(&self) -> usize {
        let xattrs = self.xattrs.iter().map(|(name, value)| name.len() + value.len() + PER_XATTR);
        let target = match &self.kind {
            EntryKind::HardLink(target) | EntryKind::Symlink(target) => target.len(),
            EntryKind::Directory
            | EntryKind::File
            | EntryKind::Fifo
            | EntryKind::CharacterDevice(..)
            | EntryKind::BlockDevice(..) => 0,
        };
        self.path.len() + target + xattrs.sum::<usize>()
    }

    /// Whether it stands for the top directory.
    #[must_use]
    pub fn is_top(&self) -> bool {
        self.path.split(|byte| *byte == b'/').all(|name| name.is_empty() || name == b".")
    }

    /// Its path for messages: short, without control characters.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.path)
    }
}

/// A path for messages.
#[must_use]
pub fn shown(path: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = String::from_utf8_lossy(path);
    let replaced = text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let short: String = replaced.take(SHOWN).collect();
    if text.chars().count() > SHOWN { short + "…" } else { short }
}

/// What orlop notes in the comment of an archive about its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The volume or snapshot, with its kind.
    pub source: String,
    /// Size of the volume in bytes; 0: none.
    pub size: u64,
    /// What the data shows of a volume that was in use: `crash` or `none`.
    pub consistency: String,
    /// When the archive was begun, as RFC 3339.
    pub created: String,
}

/// The error for an archive that is damaged or refused.
fn bad(text: impl Into<String>) -> Error {
    Error::new(Kind::Unreadable, text)
}

fn too_short() -> Error {
    bad("the archive ends too early: it is incomplete")
}

/// The error of a failed read or write of an archive: that of another thread, damage of the compressed data, or that of a
/// system call.
fn explain(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => too_short(),
        Err(error) if error.raw_os_error().is_some() => {
            Error::of_system_call(error, "read or write the archive")
        }
        Err(error) => Error::caused(Kind::Unreadable, "the archive is damaged", error),
    }
}
