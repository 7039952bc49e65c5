//! Mounts: a directory made to appear at a path, and whether it does. The kernel's mount table is the truth.
//!
//! A mount is built detached, given its flags, and moved in place in one step; nobody ever sees it without them.

pub mod location;
pub mod mountinfo;
pub mod options;

pub mod users;

mod busy;
mod legacy;
mod target;

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

pub use self::mountinfo::{Device, MountInfo};
pub use self::options::{Atime, MountFlags};
pub use self::target::{open_target, remove_target};

use self::location::{Anchor, FsLocation, Handle, LOCAL};
use crate::error::{Context as _, Error, Kind, Result};
use crate::sys::mount_setattr::mount_setattr;

/// More mounts than this at one target are not a stack but somebody who mounts as quickly as we unmount.
const DEEPEST_STACK: usize = 1000;

/// The system calls that a mount is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `open_tree`, `mount_setattr`, `move_mount`: Linux 5.12 and newer.
    Detached,
    /// mount(2), on a private stage.
    Classic,
}

/// Clones the directory `source` as a detached bind mount, sets its flags, and moves it to `target` in one step.
/// What is already mounted at `target` is covered: look with [`mounted_at`] first.
///
/// # Errors
/// `Internal` if the kernel refuses. Nothing is mounted then.
pub fn attach(source: BorrowedFd<'_>, target: BorrowedFd<'_>, flags: MountFlags) -> Result<()> {
    // A call that the kernel lacks says so at once and for nothing, so what it has need not be remembered.
    match attach_detached(source, target, flags) {
        Err((_, Errno::NOSYS)) => attach_by(Api::Classic, source, target, flags),
        Err((what, errno)) => Err(errno).context(|| what),
        Ok(()) => Ok(()),
    }
}

/// [`attach`] by the calls of one's choice.
///
/// # Errors
/// As [`attach`]; `Internal` also if the kernel lacks them.
pub fn attach_by(api: Api, source: BorrowedFd<'_>, target: BorrowedFd<'_>, flags: MountFlags) -> Result<()> {
    match api {
        Api::Detached => attach_detached(source, target, flags)
            .map_err(|(what, errno)| (what, std::io::Error::from(errno)))
            .or_else(|(what, cause)| Err(cause).context(|| what)),
        Api::Classic => legacy::attach(source, target, flags.over(inherited(source)?)),
    }
}

/// The clone of a shared mount is a member of its peer group, and the clone of a slave a slave: what is mounted in
/// the pool would appear in every volume published from it. So the clone is made private. That takes nothing from
/// the target: moved to a shared parent, the kubelet's, the mount gets a peer group of its own and propagates to the
/// parent's peers, as does its unmounting. It is not cloned with what is mounted inside: nothing is to be there.
fn attach_detached(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    flags: MountFlags,
) -> Result<(), (&'static str, Errno)> {
    let how =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source, "", how).map_err(|errno| ("clone the directory", errno))?;
    mount_setattr(tree.as_fd(), flags.change()).map_err(|errno| ("set the flags of the mount", errno))?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", target, "", how).map_err(|errno| ("move the mount in place", errno))
}

/// The topmost mount exactly at `target`. Where nothing is mounted, this is one system call; where something is, it
/// is found by its number, so that symbolic links above `target` and a stack of mounts do not matter. A dead NFS
/// server is not asked.
///
/// # Errors
/// `Invalid` if `target` is no path for a volume; `Internal` if the mount table cannot be read.
pub fn mounted_at(target: &Path) -> Result<Option<MountInfo>> {
    let split = target::split(target)?;
    // A mount may go while its line is looked for; then look again.
    for _ in 0..8 {
        let stat = match rustix::fs::statx(CWD, target, LOCAL, StatxFlags::MNT_ID) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            // A mount that is broken, such as a stale NFS handle, is still in the table.
            Err(_) => break,
            Ok(stat) => stat,
        };
        let says_root = stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
        let says_id = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
        if !says_root || !says_id {
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

/// Whether the mount `info` is what [`attach`] would make of `source` and `flags`: the same directory of the same
/// filesystem, by the number of the filesystem and the path in it, with the same flags. Neither is asked of the
/// filesystem, so a dead NFS server does not matter. If `source` lies on a detached mount, which is in no table, the
/// roots are compared by device and inode instead.
///
/// # Errors
/// `Internal` if the mount table cannot be read or `source` has been removed.
pub fn is_same(info: &MountInfo, source: BorrowedFd<'_>, flags: MountFlags) -> Result<bool> {
    use std::os::unix::ffi::OsStrExt as _;
    let handle = Handle::of(source)?;
    let Some(under) = mountinfo::by_id(handle.mount)? else {
        return Ok(info.flags == flags.over(without_atime(info.flags)) && same_inode(&info.target, source)?);
    };
    let place = handle.place(Some(&Anchor::of_info(&under)))?;
    let same_root = place.device == info.device && place.path == info.root.as_os_str().as_bytes();
    Ok(same_root && !info.root_deleted && info.flags == flags.over(under.flags))
}

/// Whether the mount `info` shows the directory `source`, with whatever flags.
///
/// # Errors
/// As [`is_same`].
pub fn is_of(info: &MountInfo, source: BorrowedFd<'_>) -> Result<bool> {
    use std::os::unix::ffi::OsStrExt as _;
    let Some(place) = place_of(source)? else { return same_inode(&info.target, source) };
    let same_root = place.device == info.device && place.path == info.root.as_os_str().as_bytes();
    Ok(same_root && !info.root_deleted)
}

/// Where the directory `source` is mounted, as this mount namespace sees it. Mounts of what lies in it do not count.
///
/// # Errors
/// `Internal` if the mount table cannot be read or `source` has been removed.
pub fn targets_of(source: BorrowedFd<'_>) -> Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStringExt as _;
    let handle = Handle::of(source)?;
    let (mut targets, mut place, mut before) = (Vec::new(), None, Vec::new());
    // One reading: the mount that the directory lies on is older than those made of it, and nearly always comes first.
    mountinfo::each_own(|line| {
        if line.id == handle.mount {
            place = Some(handle.place(Some(&Anchor::of(&line))));
        }
        let (root, removed) = line.root();
        match &place {
            _ if removed => {}
            None => before.push((line.device, root.into_owned(), line.target().into_owned())),
            Some(Ok(place)) if line.device == place.device && *root == *place.path => {
                targets.push(PathBuf::from(OsString::from_vec(line.target().into_owned())));
            }
            Some(_) => {}
        }
        std::ops::ControlFlow::Continue(())
    })?;
    let Some(place) = place.transpose()? else { return Ok(targets) };
    let earlier =
        before.into_iter().filter(|(device, root, _)| (*device, root) == (place.device, &place.path));
    targets.extend(earlier.map(|(_, _, target)| PathBuf::from(OsString::from_vec(target))));
    Ok(targets)
}

/// Where a directory lies in its filesystem; `None` if it was opened by a detached mount, which is in no table.
fn place_of(dir: BorrowedFd<'_>) -> Result<Option<FsLocation>> {
    let handle = Handle::of(dir)?;
    let Some(under) = mountinfo::by_id(handle.mount)? else { return Ok(None) };
    handle.place(Some(&Anchor::of_info(&under))).map(Some)
}

/// Unmounts whatever is mounted at `target`, all of a stack, until nothing is. That nothing is mounted, or nothing is
/// there, is fine. Never lazily: a mount that only left the table still holds the volume, and its files change after
/// the caller was told that nobody uses them.
///
/// # Errors
/// `InUse`, naming who holds it if that is soon found; `Invalid` if `target` is no path for a volume.
pub fn detach(target: &Path) -> Result<()> {
    let split = target::split(target)?;
    let mut refused = 0;
    for _ in 0..DEEPEST_STACK {
        // Unmounting does not look at the target, which may hang or be stale.
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            // Nothing is mounted; or it was between the two calls; or the kernel will never let this one go.
            Err(Errno::INVAL) if mounted_at(target)?.is_none() => return Ok(()),
            Err(Errno::INVAL) if refused < 3 => refused += 1,
            Err(Errno::BUSY) => {
                let path = target::real_path(&split)?.unwrap_or_default();
                let holder = busy::holder(&path).unwrap_or_else(|| {
                    "no process that holds it was found: look with `fuser -m` on the host, in all its containers"
                        .to_owned()
                });
                let text = format!("unmount {}: it is busy: {holder}", target.display());
                return Err(Error::caused(Kind::InUse, text, std::io::Error::from(Errno::BUSY)));
            }
            Err(errno) => return Err(errno).context(|| format!("unmount {}", target.display())),
        }
    }
    let text = format!("unmount {}: it is still mounted after {DEEPEST_STACK} times", target.display());
    Err(Error::new(Kind::Internal, text))
}

/// Whether `dir` lies on a shared mount, so that what is mounted below it is seen outside of this mount namespace.
///
/// # Errors
/// `Internal` if `dir` is not there or the mount table cannot be read.
pub fn shared_with_host(dir: &Path) -> Result<bool> {
    let how = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let open = rustix::fs::open(dir, how, rustix::fs::Mode::empty())
        .context(|| format!("open {}", dir.display()))?;
    let mount = mountinfo::by_id(Handle::of(open.as_fd())?.mount)?;
    Ok(mount.is_some_and(|mount| mount.shared.is_some()))
}

/// The flags of the mount that `source` was opened by; the defaults if it is in no table.
fn inherited(source: BorrowedFd<'_>) -> Result<MountFlags> {
    let mount = mountinfo::by_id(Handle::of(source)?.mount)?;
    Ok(mount.map_or_else(MountFlags::default, |mount| mount.flags))
}

/// Of a detached source only the rule for access times is unknown.
fn without_atime(flags: MountFlags) -> MountFlags {
    let MountFlags { nodiratime, atime, .. } = flags;
    MountFlags { nodiratime, atime, nosuid: false, nodev: false, ..MountFlags::default() }
}

fn same_inode(target: &Path, source: BorrowedFd<'_>) -> Result<bool> {
    let what = StatxFlags::INO | StatxFlags::TYPE;
    let at =
        rustix::fs::statx(CWD, target, LOCAL, what).context(|| format!("look at {}", target.display()))?;
    let of =
        rustix::fs::statx(source, "", LOCAL | AtFlags::EMPTY_PATH, what).context(|| "look at the source")?;
    let identity =
        |stat: &rustix::fs::Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, stat.stx_mode);
    Ok(identity(&at) == identity(&of))
}
