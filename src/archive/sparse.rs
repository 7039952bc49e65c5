//! The map of a sparse file in GNU's format 1.0: decimal numbers, one a line, before the data.

use std::ops::Range;

use super::{BLOCK, bad};
use crate::error::Result;

/// The most parts of a file that are recorded on their own; more of them are joined over the shortest holes.
const MAX_WRITTEN: usize = 1 << 16;
/// The most parts that are read.
pub(super) const MAX_READ: u64 = 1 << 20;

/// Collects the parts of a file that have data.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    ranges: Vec<Range<u64>>,
    /// Holes that are not longer are filled.
    filled: u64,
}

impl Parts {
    /// Adds the next part.
    pub(crate) fn add(&mut self, range: Range<u64>) {
        self.join(range);
        while self.ranges.len() > MAX_WRITTEN {
            self.filled = (2 * self.filled).max(BLOCK as u64);
            let ranges = std::mem::take(&mut self.ranges);
            ranges.into_iter().for_each(|range| self.join(range));
        }
    }

    fn join(&mut self, range: Range<u64>) {
        match self.ranges.last_mut() {
            Some(last) if range.start - last.end <= self.filled => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }

    pub(crate) fn into_ranges(self) -> Vec<Range<u64>> {
        self.ranges
    }
}

/// Formats the map, padded to whole blocks. As GNU tar does, an empty part marks the end of a file that ends with a hole.
pub(super) fn to_bytes(ranges: &[Range<u64>], size: u64) -> Vec<u8> {
    let mut ranges = ranges.to_vec();
    if ranges.last().is_none_or(|last| last.end < size) {
        ranges.push(size..size);
    }
    let mut text = format!("{}\n", ranges.len());
    for Range { start, end } in ranges {
        text.push_str(&format!("{start}\n{}\n", end - start));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// Reads the numbers of a map.
#[derive(Debug, Default)]
pub(super) struct Map {
    expected: Option<u64>,
    numbers: Vec<u64>,
    digits: Option<u64>,
}

impl Map {
    /// Reads a block of the map. Reports whether it was the last one.
    pub(super) fn read(&mut self, block: &[u8; BLOCK]) -> Result<bool> {
        let wrong = || bad("the archive is damaged: the map of a sparse file is wrong");
        for byte in block {
            let digit = char::from(*byte).to_digit(10);
            match (digit, self.digits) {
                (Some(digit), number) => {
                    let number =
                        number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit.into()));
                    self.digits = Some(number.ok_or_else(wrong)?);
                }
                (None, Some(number)) if *byte == b'\n' => {
                    self.digits = None;
                    match self.expected {
                        None if number > MAX_READ => return Err(bad("a sparse file has too many parts")),
                        None => self.expected = Some(number * 2),
                        Some(_) => self.numbers.push(number),
                    }
                }
                _ => return Err(wrong()),
            }
            if self.expected == Some(self.numbers.len() as u64) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The parts, which are in order, do not overlap and end with the file.
    pub(super) fn ranges(&self, size: u64) -> Result<Vec<Range<u64>>> {
        let (pairs, _) = self.numbers.as_chunks::<2>();
        let mut ranges: Vec<Range<u64>> = Vec::with_capacity(pairs.len());
        for [start, length] in pairs {
            let end = start.checked_add(*length).filter(|end| *end <= size);
            let follows = ranges.last().is_none_or(|last| last.end <= *start);
            let end = end.filter(|_| follows);
            let end = end.ok_or_else(|| bad("the archive is damaged: the map of a sparse file is wrong"))?;
            if *length > 0 {
                ranges.push(*start..end);
            }
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], size: u64) -> Result<Vec<Range<u64>>> {
        let mut map = Map::default();
        let (blocks, _) = bytes.as_chunks::<BLOCK>();
        for block in blocks {
            if map.read(block)? {
                return map.ranges(size);
            }
        }
        panic!("the map does not end");
    }

    #[test]
    fn a_map_is_read_as_it_was_written() {
        let many: Vec<_> = (0..5000).map(|at| at * 8192..at * 8192 + 4096).collect();
        let ends_with_data = [0..1, 10..4096];
        for (ranges, size) in [(&[][..], 1 << 40), (&many, 1 << 30), (&ends_with_data, 4096)] {
            assert_eq!(read(&to_bytes(ranges, size), size).unwrap(), ranges);
        }
    }

    #[test]
    fn a_wrong_map_is_refused() {
        for text in
            ["1\n5\n6\n", "2\n0\n5\n4\n1\n", "x", "1\n18446744073709551615\n2\n", "1\n-1\n", "2000000\n"]
        {
            let mut block = [0; BLOCK];
            block[..text.len()].copy_from_slice(text.as_bytes());
            assert!(read(&block, 10).is_err(), "{text:?}");
        }
    }

    #[test]
    fn many_parts_are_joined_over_the_shortest_holes() {
        let mut parts = Parts::default();
        for at in 0..3 * MAX_WRITTEN as u64 {
            let hole = if at % 10 == 9 { 1 << 20 } else { 4096 };
            parts.add(at << 24..((at + 1) << 24) - hole);
        }
        let ranges = parts.into_ranges();
        assert!(ranges.len() <= MAX_WRITTEN, "{}", ranges.len());
        let is_long = |range: &Range<u64>| range.end & 0xff_ffff == 0xf0_0000;
        let (last, others) = ranges.split_last().unwrap();
        assert!(others.iter().all(is_long) && last.end > others.len() as u64);
    }
}
