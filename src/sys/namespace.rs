//! Mount namespaces and the mounts in them, without `/proc`: each namespace of the host in its turn (`ioctl_nsfs(2)`,
//! Linux 6.12), the numbers of its mounts (`listmount(2)`), and what a mount is (`statmount(2)`).
#![expect(unsafe_code, reason = "rustix has none of these calls; they are made by their numbers")]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use linux_raw_sys::general as kernel;
use rustix::io::Errno;

use super::mount_setattr::last_errno;

/// What a namespace is called, and how much is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Its number, which no other ever has.
    pub id: u64,
    /// How many mounts are in it.
    pub mounts: usize,
}

/// Which neighbour of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The one made after it.
    Next,
    /// The one made before it.
    Previous,
}

/// Where a mount is and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The directory of its filesystem that it shows, as the mount table has it.
    pub root: Vec<u8>,
    /// Where it is mounted, seen from the root of its namespace.
    pub target: Vec<u8>,
    /// The peer group that it is in; 0: none.
    pub group: u64,
    /// The peer group that it takes from; 0: none.
    pub master: u64,
}

/// `struct mnt_ns_info`.
#[repr(C)]
struct RawInfo {
    size: u32,
    nr_mounts: u32,
    mnt_ns_id: u64,
}

/// `_IOR(0xb7, number, struct mnt_ns_info)`, by the layout of most architectures.
const fn request(number: u32) -> u32 {
    2 << 30 | 16 << 16 | 0xb7 << 8 | number
}

const GET_INFO: u32 = request(10);
const GET_NEXT: u32 = request(11);
const GET_PREVIOUS: u32 = request(12);

/// What the kernel writes of a mount, and room for two paths.
#[derive(Debug)]
pub struct Buffer(Vec<u64>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; (size_of::<kernel::statmount>() + 3 * 4096) / 8])
    }
}

/// The namespace that `namespace`, a file such as `/proc/1/ns/mnt`, stands for.
///
/// # Errors
/// `ENOTTY` before Linux 6.12.
pub fn info(namespace: BorrowedFd<'_>) -> Result<Info, Errno> {
    ask(namespace, GET_INFO).map(|(_, info)| info)
}

/// The neighbour of a namespace, of all that the caller has `CAP_SYS_ADMIN` in; `None`: it was the last.
///
/// # Errors
/// `ENOTTY` before Linux 6.12, `EPERM` without the right.
pub fn step(from: BorrowedFd<'_>, step: Step) -> Result<Option<(OwnedFd, Info)>, Errno> {
    let request = match step {
        Step::Next => GET_NEXT,
        Step::Previous => GET_PREVIOUS,
    };
    match ask(from, request) {
        Err(Errno::NOENT) => Ok(None),
        Err(other) => Err(other),
        Ok((descriptor, info)) => {
            // SAFETY: the kernel answered this request with a new descriptor, which nobody else has.
            Ok(Some((unsafe { OwnedFd::from_raw_fd(descriptor) }, info)))
        }
    }
}

fn ask(namespace: BorrowedFd<'_>, request: u32) -> Result<(i32, Info), Errno> {
    let mut raw = RawInfo { size: 16, nr_mounts: 0, mnt_ns_id: 0 };
    // SAFETY: the request reads and writes one `struct mnt_ns_info`, which `raw` is, and the descriptor is open.
    let answer = unsafe {
        libc::syscall(libc::SYS_ioctl, namespace.as_raw_fd(), libc::c_long::from(request), &raw mut raw)
    };
    let descriptor = i32::try_from(answer).ok().filter(|answer| *answer >= 0).ok_or_else(last_errno)?;
    Ok((descriptor, Info { id: raw.mnt_ns_id, mounts: raw.nr_mounts as usize }))
}

fn about(namespace: u64, mount: u64, param: u64) -> kernel::mnt_id_req {
    let size = u32::try_from(size_of::<kernel::mnt_id_req>()).unwrap_or(32);
    kernel::mnt_id_req { size, spare: 0, mnt_id: mount, param, mnt_ns_id: namespace }
}

/// The numbers of all mounts of a namespace, which no other mount ever has, into `numbers`.
///
/// # Errors
/// `ENOENT` when the namespace has gone or is empty, `EPERM` without the right.
pub fn list(namespace: u64, numbers: &mut Vec<u64>) -> Result<(), Errno> {
    const BATCH: usize = 512;
    const ROOT: u64 = (kernel::LSMT_ROOT as i64).cast_unsigned();
    numbers.clear();
    loop {
        let request = about(namespace, ROOT, numbers.last().copied().unwrap_or(0));
        numbers.reserve(BATCH);
        let room: &mut [MaybeUninit<u64>] = &mut numbers.spare_capacity_mut()[..BATCH];
        // SAFETY: `request` is a live `struct mnt_id_req` of the size it names, and `room` has place for as many
        // numbers as the call is told.
        let answer = unsafe {
            libc::syscall(
                libc::c_long::from(kernel::__NR_listmount),
                &raw const request,
                room.as_mut_ptr(),
                BATCH,
                0,
            )
        };
        let more = usize::try_from(answer).map_err(|_| last_errno())?.min(BATCH);
        // SAFETY: the kernel has written so many numbers behind those that were there.
        unsafe { numbers.set_len(numbers.len() + more) };
        if more < BATCH {
            return Ok(());
        }
    }
}

/// The number of the filesystem that a mount is of, which never changes.
///
/// # Errors
/// `ENOENT` when the mount has gone.
pub fn device(namespace: u64, mount: u64, buffer: &mut Buffer) -> Result<(u32, u32), Errno> {
    let stat = stat(namespace, mount, kernel::STATMOUNT_SB_BASIC.into(), buffer)?;
    Ok((stat.sb_dev_major, stat.sb_dev_minor))
}

/// Where a mount is and what it shows.
///
/// # Errors
/// `ENOENT` when the mount has gone, `EOVERFLOW` when its paths are too long.
pub fn describe(namespace: u64, mount: u64, buffer: &mut Buffer) -> Result<Described, Errno> {
    let mask = kernel::STATMOUNT_MNT_BASIC | kernel::STATMOUNT_MNT_ROOT | kernel::STATMOUNT_MNT_POINT;
    let stat = stat(namespace, mount, mask.into(), buffer)?;
    let (root, target, group, master) = (stat.mnt_root, stat.mnt_point, stat.mnt_peer_group, stat.mnt_master);
    let text = |at: u32| {
        let start = size_of::<kernel::statmount>() + at as usize;
        let bytes = bytes_of(&buffer.0).get(start..).ok_or(Errno::IO)?;
        Ok(CStr::from_bytes_until_nul(bytes).map_err(|_| Errno::IO)?.to_bytes().to_vec())
    };
    Ok(Described { root: text(root)?, target: text(target)?, group, master })
}

fn stat(namespace: u64, mount: u64, mask: u64, buffer: &mut Buffer) -> Result<&kernel::statmount, Errno> {
    let request = about(namespace, mount, mask);
    let room = &mut buffer.0;
    // SAFETY: `request` is a live `struct mnt_id_req` of the size it names, and the kernel writes at most as many
    // bytes into `room` as it has.
    let answer = unsafe {
        libc::syscall(
            libc::c_long::from(kernel::__NR_statmount),
            &raw const request,
            room.as_mut_ptr(),
            room.len() * 8,
            0,
        )
    };
    if answer != 0 {
        return Err(last_errno());
    }
    // SAFETY: `room` is longer than a `struct statmount` and aligned as its widest field is; any bytes are one.
    let stat = unsafe { &*room.as_ptr().cast::<kernel::statmount>() };
    if stat.mask & mask == mask { Ok(stat) } else { Err(Errno::NOSYS) }
}

fn bytes_of(words: &[u64]) -> &[u8] {
    // SAFETY: the same memory, of which every byte is written, seen as bytes.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn our_own_namespace_lists_what_its_table_has() {
        let own = std::fs::File::open("/proc/self/ns/mnt").unwrap();
        let Ok(info) = info(own.as_fd()) else { return };
        let mut numbers = Vec::new();
        // Without the right to, or while others mount, there is nothing to compare.
        let Ok(()) = list(info.id, &mut numbers) else { return };
        assert!(info.mounts > 0 && numbers.windows(2).all(|pair| pair[0] < pair[1]));
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut buffer = Buffer::default();
        let mut found = 0;
        for number in &numbers {
            let Ok((major, minor)) = device(info.id, *number, &mut buffer) else { continue };
            let Ok(mount) = describe(info.id, *number, &mut buffer) else { continue };
            let target = String::from_utf8_lossy(&mount.target).into_owned();
            found += usize::from(table.contains(&format!(" {major}:{minor} ")) && table.contains(&target));
        }
        assert!(found * 10 >= numbers.len() * 9, "{found} of {}", numbers.len());
    }
}
