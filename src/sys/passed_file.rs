//! Descriptors that were passed to this process at its start (`sd_listen_fds(3)`).
#![expect(unsafe_code, reason = "a number becomes a descriptor")]

use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, FdFlags};

/// The first descriptor that is passed.
const FIRST: RawFd = 3;

/// Takes the descriptors `3`, `4` and so on, which programs that this one starts do not get. Returns none the second time.
///
/// # Errors
/// `EBADF` if one of them is not open.
pub fn take(count: usize) -> Result<Vec<OwnedFd>, Errno> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let take = |number| {
        // SAFETY: the descriptor is used for this call only, which fails if it is not open.
        rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, FdFlags::CLOEXEC)?;
        // SAFETY: it is open, the parent passed it to this process, and no other part of it takes it.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    };
    (FIRST..).take(count).map(take).collect()
}
