//! The mappings of a process, by a query (`PROCMAP_QUERY`, Linux 6.11). The text of `/proc/PID/maps` has a line for each
//! mapping, of which a process can have tens of thousands.
#![expect(unsafe_code, reason = "rustix and libc lack this call, so it is called by its number")]

use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

use super::mount_setattr::last_errno;

/// `_IOWR('f', 17, struct procmap_query)` of `linux/fs.h`.
const PROCMAP_QUERY: libc::c_long = 0xc068_6611;
const WRITABLE: u64 = 0x02;
const SHARED: u64 = 0x08;
const COVERING_OR_NEXT: u64 = 0x10;
const FILE_BACKED: u64 = 0x20;

/// `struct procmap_query` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

/// A shared, writable mapping of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedMapping {
    /// The addresses.
    pub range: Range<u64>,
    /// The major and minor number of the filesystem.
    pub device: (u32, u32),
}

/// Returns the first shared, writable mapping of a file that ends above an address; `None` if there is none. `maps` is an open
/// `/proc/PID/maps`.
///
/// # Errors
/// `ENOTTY` on a kernel without the query; `ESRCH` if the process has ended.
pub fn next_shared_writable(maps: BorrowedFd<'_>, address: u64) -> Result<Option<SharedMapping>, Errno> {
    let flags = WRITABLE | SHARED | COVERING_OR_NEXT | FILE_BACKED;
    let mut query = Query { size: size_of::<Query>() as u64, flags, address, ..Query::default() };
    // SAFETY: the call reads and writes one `struct procmap_query`, which `query` is, and no buffer is given for the name and
    // the build id.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query) };
    match if result == 0 { Ok(()) } else { Err(last_errno()) } {
        Ok(()) => {
            Ok(Some(SharedMapping { range: query.start..query.end, device: (query.major, query.minor) }))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
