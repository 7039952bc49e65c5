//! Mounting and unmounting volumes, and finding out what is mounted at a path.
//!
//! The kernel's mount table is the only source of truth.

pub mod location;
pub mod loop_devices;
pub mod mountinfo;
pub mod namespace;
pub mod options;
pub mod overlays;

pub mod users;

mod busy;
mod detached;
mod legacy;
mod share;
mod table;
mod target;

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

pub use self::detached::{Api, attach, attach_by, attach_in_own_namespace};
pub use self::mountinfo::{Device, MountInfo};
pub use self::options::{Atime, MountFlags};
pub use self::share::detach_share;
pub use self::target::{open_target, remove_target};

use self::location::{ContainingMount, FsLocation, MountedDir, table_id};
use self::table::{MNT_ID_UNIQUE, STATX_LOCAL};
use crate::error::{Context as _, Error, Kind, Result};
use crate::sys::namespace::{MountBuffer, OWN_NAMESPACE, describe_mount};

/// Unmounts of one target before [`detach`] gives up: more mean that another process keeps mounting there.
const MAX_UNMOUNTS: usize = 1000;

/// Returns the topmost mount exactly at `target`. This is one system call if nothing is mounted there. Otherwise the
/// mount is found by its id, so symbolic links above `target` and stacked mounts do not matter. Does not contact the
/// server of a network filesystem, which may be dead.
///
/// # Errors
/// `Invalid` if `target` is not a valid path for a volume; `Internal` if the mount table cannot be read.
pub fn mounted_at(target: &Path) -> Result<Option<MountInfo>> {
    let split = target::split(target)?;
    // Retry if the mount is unmounted before its line is found.
    for _ in 0..8 {
        let stat = match rustix::fs::statx(CWD, target, STATX_LOCAL, StatxFlags::MNT_ID) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            // A broken mount, such as a stale NFS handle, is still in the table.
            Err(_) => break,
            Ok(stat) => stat,
        };
        let has_root_flag = stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
        let has_id = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
        if !has_root_flag || !has_id {
            break; // before Linux 5.8
        }
        if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(None);
        }
        if let Some(info) = mountinfo::by_id(stat.stx_mnt_id)? {
            return Ok(Some(info));
        }
    }
    match target::real_path(&split)? {
        Some(path) => mountinfo::by_target(&path),
        None => Ok(None),
    }
}

/// Reports whether the mount `info` fulfils a request to [`attach`] `source` with `flags`: the same directory of the
/// same filesystem, compared by device number and path, with the flags that the request asks for. Does not access the filesystem, so a dead
/// NFS server does not matter. If `source` is on a detached mount, which is in no table, the roots are compared by
/// device and inode instead.
///
/// # Errors
/// `Internal` if the mount table cannot be read or `source` has been removed.
pub fn is_same(info: &MountInfo, source: BorrowedFd<'_>, flags: MountFlags) -> Result<bool> {
    let Some(location) = attached_location(source)? else {
        let fulfils = flags.is_fulfilled_by(info.flags, MountFlags::NONE);
        return Ok(fulfils && same_inode(&info.target, source)?);
    };
    let inherited = mount_of(source)?.map_or_else(MountFlags::default, |containing| containing.flags);
    Ok(shows(info, &location) && flags.is_fulfilled_by(info.flags, inherited))
}

/// Returns the mount that an open directory is on, in this mount namespace or in a private one of this process; `None` if it
/// is detached.
///
/// # Errors
/// `Internal` if the mount table cannot be read.
pub fn mount_of(dir: BorrowedFd<'_>) -> Result<Option<MountInfo>> {
    let id = table_id(dir)?;
    namespace::first(|| mountinfo::by_id(id))
}

/// Reports whether the mount `info` shows the directory `source`, whatever its flags.
///
/// # Errors
/// Same as [`is_same`].
pub fn is_of(info: &MountInfo, source: BorrowedFd<'_>) -> Result<bool> {
    match attached_location(source)? {
        Some(location) => Ok(shows(info, &location)),
        None => same_inode(&info.target, source),
    }
}

fn shows(info: &MountInfo, location: &FsLocation) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    location.device == info.device && location.path == info.root.as_os_str().as_bytes() && !info.root_deleted
}

/// Reports whether the mount `info` shows a directory below `dir`.
///
/// # Errors
/// Same as [`is_same`].
pub fn is_below(info: &MountInfo, dir: BorrowedFd<'_>) -> Result<bool> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let Some(location) = attached_location(dir)? else { return Ok(false) };
    let path = Path::new(OsStr::from_bytes(&location.path));
    Ok(location.device == info.device && info.root != path && info.root.starts_with(path))
}

/// Returns the paths in this mount namespace at which the directory `source` is mounted. Mounts of directories below
/// `source` are not included.
///
/// # Errors
/// `Internal` if the mount table cannot be read or `source` has been removed.
pub fn targets_of(source: BorrowedFd<'_>) -> Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStringExt as _;
    let Some(location) = attached_location(source)? else { return Ok(Vec::new()) };
    let mut targets = Vec::new();
    table::each_of_device(location.device, |root, target| {
        if *root == *location.path {
            targets.push(PathBuf::from(OsString::from_vec(target.to_vec())));
        }
    })?;
    Ok(targets)
}

/// Returns the location of a directory; `None` if it was opened through a detached mount, which is in no table.
fn attached_location(dir: BorrowedFd<'_>) -> Result<Option<FsLocation>> {
    let dir = MountedDir::of(dir)?;
    let containing = ContainingMount::find(dir.mount)?;
    containing.map(|containing| dir.location(Some(&containing))).transpose()
}

/// Returns the directory of its filesystem that is mounted at `target`; `None` if nothing is. Like [`mounted_at`], without
/// reading the mount table where the kernel has `statmount(2)` (Linux 6.8).
///
/// # Errors
/// Same as [`mounted_at`].
pub fn root_mounted_at(target: &Path) -> Result<Option<PathBuf>> {
    target::split(target)?;
    match root_by_statmount(target) {
        Some(root) => Ok(Some(root)),
        None => Ok(mounted_at(target)?.map(|mount| mount.root)),
    }
}

/// The root of the mount at `target`; `None` if there is none or the kernel does not say.
fn root_by_statmount(target: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let stat = rustix::fs::statx(CWD, target, STATX_LOCAL, MNT_ID_UNIQUE).ok()?;
    let has_id = StatxFlags::from_bits_retain(stat.stx_mask).contains(MNT_ID_UNIQUE);
    if !has_id || !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return None;
    }
    let mount = describe_mount(OWN_NAMESPACE, stat.stx_mnt_id, &mut MountBuffer::default()).ok()?;
    let root = mount.root.strip_suffix(mountinfo::DELETED).unwrap_or(&mount.root);
    Some(PathBuf::from(OsString::from_vec(root.to_vec())))
}

/// Unmounts the topmost mount at `target`, or all of them if the first attempt fails.
///
/// # Errors
/// Same as [`detach`].
pub fn detach_top(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(_) => detach(target),
    }
}

/// Unmounts every mount that is stacked at `target`. Succeeds if nothing is mounted there or `target` does not exist.
///
/// Never unmounts lazily: a lazily unmounted volume is not in the table, but processes can still change its files after
/// the caller was told that it is unused.
///
/// # Errors
/// `InUse`, naming the process or mount that keeps the mount busy if it is found quickly; `Invalid` if `target` is not
/// a valid path for a volume.
pub fn detach(target: &Path) -> Result<()> {
    target::split(target)?;
    let mut retries = 0;
    for _ in 0..MAX_UNMOUNTS {
        // umount2(2) does not access the target's filesystem, which may hang or be stale.
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(Errno::INVAL) if mounted_at(target)?.is_none() => return Ok(()),
            // Something was mounted between the two calls, or the kernel never allows this mount to be unmounted.
            Err(Errno::INVAL) if retries < 3 => retries += 1,
            Err(Errno::BUSY) => return Err(busy_error(target)?),
            Err(errno) => return Err(errno).context(|| format!("unmount {}", target.display())),
        }
    }
    let text = format!("unmount {}: still mounted after {MAX_UNMOUNTS} unmounts", target.display());
    Err(Error::new(Kind::Internal, text))
}

/// Takes the topmost mount at `target` out of the mount table and removes the directory, although something uses the mount.
/// Only for a server that does not respond or has removed the directory: its users can change nothing, and cannot be ended.
///
/// # Errors
/// The error of the failed system call.
pub fn detach_lazily(target: &Path) -> Result<()> {
    target::split(target)?;
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        .context(|| format!("unmount {} lazily", target.display()))?;
    remove_target(target)
}

/// Whether the directory of an NFS server that is mounted at `target` is gone from there. Waits for the server.
#[must_use]
pub fn is_stale(found: &MountInfo, target: &Path) -> bool {
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let stat = || rustix::fs::statx(CWD, target, flags, StatxFlags::BASIC_STATS);
    found.nfs_server().is_some() && stat().is_err_and(|errno| errno == Errno::STALE)
}

/// The error for a mount that is busy. It names what keeps it so, if that is found quickly.
fn busy_error(target: &Path) -> Result<Error> {
    let path = target::real_path(&target::split(target)?)?.unwrap_or_default();
    let cause = busy::find_cause(&path).unwrap_or_else(|| {
        "no process was found that uses it: run `fuser -m` on the host and in its containers".to_owned()
    });
    let text = format!("unmount {}: the mount is busy: {cause}", target.display());
    Ok(Error::caused(Kind::InUse, text, std::io::Error::from(Errno::BUSY)))
}

/// Reports whether `dir` is on a shared mount, so that mounts made below it appear outside of this mount namespace.
///
/// # Errors
/// `Internal` if `dir` does not exist or the mount table cannot be read.
pub fn shared_with_host(dir: &Path) -> Result<bool> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let open = rustix::fs::open(dir, flags, rustix::fs::Mode::empty())
        .context(|| format!("open {}", dir.display()))?;
    let mount = mountinfo::by_id(table_id(open.as_fd())?)?;
    Ok(mount.is_some_and(|mount| mount.shared.is_some()))
}

/// Reports whether the kernel has made the filesystem of a directory read-only because of an error, and says so in the mount
/// table only: ext4 with `errors=remount-ro` since Linux 6.15. statvfs(3) calls it writable.
///
/// # Errors
/// `Internal` if the mount table cannot be read.
pub fn is_read_only_after_error(dir: BorrowedFd<'_>) -> Result<bool> {
    use std::os::unix::ffi::OsStrExt as _;
    let mount = mount_of(dir)?;
    let is_word = |word: &[u8]| word == b"emergency_ro";
    Ok(mount.is_some_and(|mount| mount.super_options.as_bytes().split(|byte| *byte == b',').any(is_word)))
}

fn same_inode(target: &Path, source: BorrowedFd<'_>) -> Result<bool> {
    let mask = StatxFlags::INO | StatxFlags::TYPE;
    let target =
        rustix::fs::statx(CWD, target, STATX_LOCAL, mask).context(|| format!("stat {}", target.display()))?;
    let source = rustix::fs::statx(source, "", STATX_LOCAL | AtFlags::EMPTY_PATH, mask)
        .context(|| "stat the source directory")?;
    let identity =
        |stat: &rustix::fs::Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, stat.stx_mode);
    Ok(identity(&target) == identity(&source))
}
