//! The data of a file, and its holes.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::buffer::spare_capacity;
use rustix::fs::Statx;
use rustix::io::pread;

use crate::archive::Parts;
use crate::error::{Context as _, Result};
use crate::fs::copy::catalogue::time;
use crate::fs::copy::contents::{data_range, has_no_hole};
use crate::fs::fstat;
use crate::fs::stop::Stop;

/// The largest file that is read as a whole.
const SMALL: usize = 16 << 10;
/// The smallest block of a filesystem, in bytes: a hole begins at such a boundary, and is not shorter unless the file ends.
const SMALLEST_BLOCK: usize = 512;

/// The data of a small file without holes. `None` for any other file.
pub(super) fn read_whole(file: BorrowedFd<'_>, stat: &Statx) -> Result<Option<Vec<u8>>> {
    let size = usize::try_from(stat.stx_size).ok().filter(|size| *size <= SMALL);
    let Some(size) = size.filter(|_| may_be_whole(stat)) else { return Ok(None) };
    let mut data = Vec::with_capacity(size);
    let read = if size > 0 { pread(file, spare_capacity(&mut data), 0).context(|| "read")? } else { 0 };
    // Space for attributes may stand for that of a hole, which reads as zeros.
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let may_have_hole = data.chunks(SMALLEST_BLOCK).any(is_zero);
    Ok((read == size && !may_have_hole).then_some(data))
}

/// Whether a file has changed since it had these attributes.
pub(super) fn has_changed(file: BorrowedFd<'_>, since: &Statx) -> Result<bool> {
    let now = fstat(file).context(|| "stat")?;
    let facts = |stat: &Statx| (stat.stx_size, time(stat.stx_mtime), time(stat.stx_ctime));
    Ok(facts(&now) != facts(since))
}

/// Whether a file has as much space as its size. A part of it may be for attributes.
fn may_be_whole(stat: &Statx) -> bool {
    stat.stx_blocks.saturating_mul(512) >= stat.stx_size
}

/// The parts of a file that have data; `None` if that is the whole file.
pub(super) fn parts_of(
    file: BorrowedFd<'_>,
    stat: &Statx,
    stop: &Stop<'_>,
) -> Result<Option<Vec<Range<u64>>>> {
    let size = stat.stx_size;
    if may_be_whole(stat) && has_no_hole(file, size) {
        return Ok(None);
    }
    let (mut parts, mut at) = (Parts::default(), 0);
    while at < size {
        stop.check()?;
        let Some(Range { start, end }) = data_range(file, at..size)? else { break };
        // At least one block, even if a hole has been punched there meanwhile: the rest may have data.
        at = end.max(start + SMALLEST_BLOCK as u64).min(size);
        parts.add(start..at);
    }
    let ranges = parts.into_ranges();
    let is_whole = matches!(&ranges[..], [range] if *range == (0..size));
    Ok((!is_whole).then_some(ranges))
}
