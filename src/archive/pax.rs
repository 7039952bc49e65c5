//! Records of PAX headers: `LENGTH KEY=VALUE\n`.

use std::fmt;
use std::io::Write as _;

use super::{Time, bad};
use crate::error::Result;

/// The most bytes of one header: an archive must not fill the memory with them.
pub(super) const MAX_HEADER: u64 = 4 << 20;

/// Formats records into a buffer that is used again.
#[derive(Debug, Default)]
pub(super) struct RecordWriter {
    bytes: Vec<u8>,
    number: Vec<u8>,
}

impl RecordWriter {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// The records, as the data of a PAX header.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn add(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (key, value) = (key.as_ref(), value.as_ref());
        // A space, '=' and the line break, and the length of the length itself.
        let rest = key.len() + value.len() + 3;
        let digits = |number: usize| number.checked_ilog10().unwrap_or(0) as usize + 1;
        let length = rest + digits(rest + digits(rest));
        append(&mut self.bytes, format_args!("{length} "));
        for part in [key, b"=", value, b"\n"] {
            self.bytes.extend_from_slice(part);
        }
    }

    pub(super) fn add_number(&mut self, key: &str, number: u64) {
        self.add_formatted(key, format_args!("{number}"));
    }

    pub(super) fn add_time(&mut self, key: &str, (seconds, nanoseconds): Time) {
        // A fraction counts towards zero in a decimal number, and forward in a time.
        match (seconds, nanoseconds) {
            (seconds, 0) => self.add_formatted(key, format_args!("{seconds}")),
            (seconds @ ..=-1, nanoseconds) => {
                let (whole, fraction) = ((seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds);
                self.add_formatted(key, format_args!("-{whole}.{fraction:09}"));
            }
            (seconds, nanoseconds) => self.add_formatted(key, format_args!("{seconds}.{nanoseconds:09}")),
        }
    }

    fn add_formatted(&mut self, key: &str, value: fmt::Arguments<'_>) {
        let mut number = std::mem::take(&mut self.number);
        number.clear();
        append(&mut number, value);
        self.add(key, &number);
        self.number = number;
    }
}

fn append(bytes: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Appending to a vector does not fail.
    let _ = bytes.write_fmt(text);
}

/// Records by their keys. Of several with one key, the last one counts.
#[derive(Debug, Default)]
pub(super) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let found = self.0.iter().rev().find(|record| record.0 == key.as_bytes());
        found.map(|record| &record.1[..])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Vec<u8>, Vec<u8>)> {
        self.0.iter()
    }

    /// The number of a record.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = std::str::from_utf8(value).ok().filter(|text| !text.starts_with('+'));
        let number = text.and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| bad(format!("the archive is damaged: the record {key} is no number")))
    }

    /// The time of a record.
    pub(super) fn time(&self, key: &str) -> Result<Option<Time>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let time = std::str::from_utf8(value).ok().and_then(parse_time);
        time.map(Some).ok_or_else(|| bad(format!("the archive is damaged: the record {key} is no time")))
    }

    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self> {
        let wrong = || bad("the archive is damaged: a PAX header is wrong");
        let mut records = Self::default();
        while bytes.first().is_some_and(|byte| *byte != 0) {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse().ok());
            let length =
                length.filter(|length| *length > space + 1 && *length <= bytes.len()).ok_or_else(wrong)?;
            let (record, rest) = bytes.split_at(length);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            records.0.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            bytes = rest;
        }
        Ok(records)
    }
}

/// Parses a decimal number of seconds. Digits beyond nanoseconds are dropped.
fn parse_time(text: &str) -> Option<Time> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !is_number(seconds) || !is_number(fraction) {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    let fraction: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    match (is_negative, fraction.parse::<u32>().ok()?) {
        (false, nanoseconds) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, nanoseconds) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let mut writer = RecordWriter::default();
        for length in [0, 1, 84, 85, 86, 87, 88, 89, 90, 91, 979, 985, 990, 991, 995, 9990] {
            writer.clear();
            let (key, value) = (format!("k{length}"), "x".repeat(length));
            writer.add(&key, &value);
            let read = Records::parse(writer.bytes()).unwrap();
            assert_eq!(read.0, [(key.into_bytes(), value.into_bytes())]);
        }
        for time in [(0, 0), (5, 1), (-1, 999_999_999), (-7, 0), (-7, 500_000_000), (1 << 40, 120)] {
            writer.add_time("mtime", time);
            writer.add_number("size", u64::MAX);
            let read = Records::parse(writer.bytes()).unwrap();
            assert_eq!(read.time("mtime").unwrap(), Some(time));
            assert_eq!(read.number("size").unwrap(), Some(u64::MAX));
        }
    }

    #[test]
    fn wrong_records_are_refused() {
        for bad in ["9 a=b\n", "x a=b\n", "5 a=b", "6 abc\n", "99999999999999999999 a=b\n", "2 ", "0 a=b\n"] {
            assert!(Records::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let mut writer = RecordWriter::default();
        writer.add("size", "-1");
        writer.add("mtime", "1.x");
        let records = Records::parse(writer.bytes()).unwrap();
        assert!(records.number("size").is_err() && records.time("mtime").is_err());
    }
}
