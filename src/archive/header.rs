//! The header block of an entry: fields at fixed places, numbers in octal or, as GNU tar writes large ones, in binary.

use std::borrow::Cow;

use super::{BLOCK, bad};
use crate::error::Result;

/// Places of the fields in a header.
const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 8);
const UID: (usize, usize) = (108, 8);
const GID: (usize, usize) = (116, 8);
const SIZE: (usize, usize) = (124, 12);
const MODIFIED: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const KIND: usize = 156;
const LINK: (usize, usize) = (157, 100);
const MAGIC: (usize, usize) = (257, 8);
const MAJOR: (usize, usize) = (329, 8);
const MINOR: (usize, usize) = (337, 8);
const PREFIX: (usize, usize) = (345, 155);

/// The fields of a header.
#[derive(Debug, Default)]
pub(super) struct Header<'a> {
    pub(super) path: Cow<'a, [u8]>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) modified: i64,
    pub(super) kind: u8,
    pub(super) link: Cow<'a, [u8]>,
    pub(super) device: (u32, u32),
}

/// The part of a path that the name field takes, and that of the prefix field; `None` if the path needs a record.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= NAME.1 {
        return Some((&[], path));
    }
    let at = (path.len() - NAME.1 - 1..=PREFIX.1).find(|at| path.get(*at) == Some(&b'/'))?;
    let (prefix, name) = (path.get(..at)?, path.get(at + 1..)?);
    (!prefix.is_empty() && !name.is_empty()).then_some((prefix, name))
}

/// Whether a number fits into a field of this length, in octal with a NUL at the end.
pub(super) fn fits(number: u64, length: usize) -> bool {
    number < 1 << (3 * (length - 1))
}

impl Header<'_> {
    pub(super) const ID_LENGTH: usize = UID.1;
    pub(super) const SIZE_LENGTH: usize = SIZE.1;
    pub(super) const TIME_LENGTH: usize = MODIFIED.1;
    pub(super) const LINK_LENGTH: usize = LINK.1;

    /// Formats the block. A name that does not fit is cut, and such a number is 0: a record has it.
    pub(super) fn to_block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let (prefix, name) = split(&self.path).unwrap_or((&[], &self.path));
        put(&mut block, NAME, name);
        put(&mut block, PREFIX, prefix);
        put(&mut block, LINK, &self.link);
        let modified = u64::try_from(self.modified).unwrap_or(0);
        let numbers = [
            (MODE, self.mode.into()),
            (UID, self.uid),
            (GID, self.gid),
            (SIZE, self.size),
            (MODIFIED, modified),
            (MAJOR, self.device.0.into()),
            (MINOR, self.device.1.into()),
        ];
        for (field, number) in numbers {
            put_number(&mut block, field, if fits(number, field.1) { number } else { 0 });
        }
        block[KIND] = self.kind;
        put(&mut block, MAGIC, b"ustar\x0000");
        // The checksum counts its own field as spaces.
        put(&mut block, CHECKSUM, &[b' '; CHECKSUM.1]);
        let checksum = block.iter().map(|byte| u64::from(*byte)).sum();
        put_number(&mut block, (CHECKSUM.0, CHECKSUM.1 - 1), checksum);
        block[CHECKSUM.0 + CHECKSUM.1 - 1] = b' ';
        block
    }

    /// Parses a block.
    ///
    /// # Errors
    /// `Unreadable` when its checksum or a number is wrong.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header<'static>> {
        let (unsigned, signed) = sums(block);
        let expected = number(block, CHECKSUM).ok();
        if expected != Some(unsigned.cast_signed()) && expected != Some(signed) {
            return Err(bad(
                "the archive is damaged, or it is no tar archive: the checksum of a header is wrong",
            ));
        }
        let unsigned = |field| u64::try_from(number(block, field)?).map_err(|_| bad("a number is negative"));
        let small = |field| u32::try_from(unsigned(field)?).map_err(|_| bad("a number is too large"));
        let is_ustar = field(block, MAGIC).starts_with(b"ustar\0");
        let mut path = if is_ustar { text(block, PREFIX).to_vec() } else { Vec::new() };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(text(block, NAME));
        let kind = block[KIND];
        let is_device = matches!(kind, b'3' | b'4');
        Ok(Header {
            path: path.into(),
            mode: small(MODE)? & 0o7777,
            uid: unsigned(UID)?,
            gid: unsigned(GID)?,
            size: unsigned(SIZE)?,
            modified: number(block, MODIFIED)?,
            kind,
            link: text(block, LINK).to_vec().into(),
            device: if is_device { (small(MAJOR)?, small(MINOR)?) } else { (0, 0) },
        })
    }
}

fn field(block: &[u8; BLOCK], (at, length): (usize, usize)) -> &[u8] {
    &block[at..at + length]
}

/// A field up to its first NUL.
fn text(block: &[u8; BLOCK], place: (usize, usize)) -> &[u8] {
    field(block, place).split(|byte| *byte == 0).next().unwrap_or_default()
}

fn put(block: &mut [u8; BLOCK], (at, length): (usize, usize), bytes: &[u8]) {
    let length = length.min(bytes.len());
    block[at..at + length].copy_from_slice(&bytes[..length]);
}

/// Writes a number that fits in octal digits, with a NUL at the end.
fn put_number(block: &mut [u8; BLOCK], (at, length): (usize, usize), mut number: u64) {
    for digit in block[at..at + length - 1].iter_mut().rev() {
        *digit = b"01234567"[(number & 7) as usize];
        number >>= 3;
    }
    block[at + length - 1] = 0;
}

/// A number in octal, or in base 256 if the first bit is set.
fn number(block: &[u8; BLOCK], place: (usize, usize)) -> Result<i64> {
    let bytes = field(block, place);
    let wrong = || bad("the archive is damaged: a number in a header is wrong");
    if let Some((first, rest)) = bytes.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        let is_negative = first & 0x40 != 0;
        let first = i128::from(first & 0x3f) - if is_negative { 0x40 } else { 0 };
        let value = rest.iter().fold(first, |value: i128, byte| (value << 8) | i128::from(*byte));
        return i64::try_from(value).map_err(|_| wrong());
    }
    let digits: Vec<u8> = bytes.iter().copied().filter(|byte| !matches!(byte, 0 | b' ')).collect();
    if digits.is_empty() {
        return Ok(0);
    }
    let digits = std::str::from_utf8(&digits).map_err(|_| wrong())?;
    i64::from_str_radix(digits, 8).map_err(|_| wrong())
}

/// The sum of the bytes, with spaces in place of the checksum; and the sum that old programs wrote, of signed bytes.
fn sums(block: &[u8; BLOCK]) -> (u64, i64) {
    let checksum = CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1;
    let bytes = block.iter().enumerate().map(|(at, byte)| if checksum.contains(&at) { b' ' } else { *byte });
    bytes.fold((0, 0), |(unsigned, signed), byte| {
        (unsigned + u64::from(byte), signed + i64::from(byte.cast_signed()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let path = [b"d".repeat(120), b"f".repeat(90)].join(&b'/');
        let header = Header {
            path: Cow::Borrowed(&path),
            mode: 0o4755,
            uid: 7,
            size: 1 << 32,
            kind: b'0',
            ..Header::default()
        };
        let read = Header::parse(&header.to_block()).unwrap();
        assert_eq!((&read.path[..], read.mode, read.uid, read.size), (&path[..], 0o4755, 7, 1 << 32));
        assert!(split(&b"x".repeat(101)).is_none() && split(&b"/".repeat(300)).is_none());
    }

    #[test]
    fn a_binary_number_is_read_and_a_wrong_one_refused() {
        let mut block = [0; BLOCK];
        block[SIZE.0] = 0x80;
        block[SIZE.0 + 11] = 5;
        assert_eq!(number(&block, SIZE).unwrap(), 5);
        block[MODIFIED.0..MODIFIED.0 + 12].fill(0xff);
        assert_eq!(number(&block, MODIFIED).unwrap(), -1);
        block[SIZE.0 + 1] = 1;
        assert!(number(&block, SIZE).is_err(), "beyond 64 bits");
        block[UID.0] = b'9';
        assert!(number(&block, UID).is_err());
        assert!(Header::parse(&[1; BLOCK]).is_err());
    }
}
