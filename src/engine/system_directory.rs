//! Directories without which the host does not work: they are never moved.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD};
use rustix::io::Errno;

/// Directories whose contents belong to the system, too. `/usr/local` is for the administrator.
const TREES: [&str; 9] = ["/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr"];

/// Directories that programs expect at their places, see hier(7). What is in them can be moved.
const PLACES: [&str; 31] = [
    "/dev",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/srv",
    "/sys",
    "/tmp",
    "/usr/local",
    "/usr/local/bin",
    "/usr/local/etc",
    "/usr/local/lib",
    "/usr/local/sbin",
    "/usr/local/share",
    "/var",
    "/var/backups",
    "/var/cache",
    "/var/lib",
    "/var/local",
    "/var/lock",
    "/var/log",
    "/var/mail",
    "/var/opt",
    "/var/run",
    "/var/spool",
    "/var/spool/cron",
    "/var/tmp",
    "/var/www",
];

/// Whether the system needs a directory where it is: one of hier(7), under whatever path it is mounted, a part of one that belongs to
/// the system, or the home of a user.
pub(super) fn is_system_directory(dir: impl AsFd, path: &Path) -> bool {
    let is_local = path.starts_with("/usr/local");
    let is_part = TREES.iter().any(|tree| path.starts_with(tree)) && !is_local;
    let is_home = path.parent() == Some(Path::new("/home"));
    let is_named = || TREES.iter().chain(&PLACES).any(|known| is_same(&dir, known));
    is_part || is_home || is_named()
}

/// Whether a directory is the one at a path. What cannot be compared is taken for the same, unless it does not exist.
fn is_same(dir: &impl AsFd, path: &str) -> bool {
    match (fs::fstat(dir), fs::statat(CWD, path, AtFlags::empty())) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        (_, Err(Errno::NOENT | Errno::NOTDIR)) => false,
        (Err(_), _) | (_, Err(_)) => true,
    }
}
