//! The target directory of a mount: validated, created if missing, removed only when empty.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::location::path_of;
use super::table::STATX_LOCAL;
use crate::error::{Context as _, Error, Kind, Result};

/// The kernel's limit for a path, which includes the terminating NUL.
const PATH_MAX: usize = 4096;

/// A target, split into its parent directory and its last component.
pub(super) struct Split<'a> {
    parent: &'a Path,
    name: &'a OsStr,
}

/// Opens the directory `target`; creates it with mode 0750 if it is missing. If something is mounted there, opens the
/// root of that mount. A parent may be a symbolic link (`/var/lib/kubelet` often is); the last component may not.
///
/// # Errors
/// `Invalid`, naming the target, if a volume cannot be mounted at the path.
pub fn open_target(target: &Path) -> Result<OwnedFd> {
    let split = split(target)?;
    let parent = open_parent(&split).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
            let text = format!(
                "target {}: its parent is not a directory that orlop can see: the caller must create it, and kubelet's \
                 directory must be mounted into orlop's container at the same path",
                target.display()
            );
            Error::caused(Kind::Invalid, text, std::io::Error::from(errno))
        }
        other => open_error(target, other),
    })?;
    match rustix::fs::mkdirat(&parent, split.name, Mode::from_raw_mode(0o750)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).context(|| format!("create target {}", target.display())),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, split.name, flags, Mode::empty()).map_err(|errno| open_error(target, errno))
}

/// Removes the directory `target`, which must not be a mount point. Succeeds if it does not exist. A directory that is
/// not empty is left as it is: its files were written while no volume was mounted, and deleting them would lose data.
///
/// # Errors
/// `Internal` if it is not empty, `Invalid` if it is not a directory, `InUse` if something is mounted on it.
pub fn remove_target(target: &Path) -> Result<()> {
    let split = split(target)?;
    let removed =
        open_parent(&split).and_then(|parent| rustix::fs::unlinkat(parent, split.name, AtFlags::REMOVEDIR));
    let text = match removed {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            "it is not empty: files were written there while no volume was mounted; nothing was deleted: move the \
             files away and retry"
        }
        Err(Errno::NOTDIR) => return Err(not_a_directory(target)),
        Err(other) => return Err(other).context(|| format!("remove target {}", target.display())),
    };
    Err(Error::new(Kind::Internal, format!("remove target {}: {text}", target.display())))
}

/// Validates a target and splits it.
pub(super) fn split(target: &Path) -> Result<Split<'_>> {
    let bytes = target.as_os_str().as_bytes();
    let problem = if bytes.is_empty() {
        "it is empty"
    } else if bytes.len() >= PATH_MAX {
        return Err(Error::new(Kind::Invalid, "the target is longer than 4095 bytes"));
    } else if bytes.contains(&0) {
        "it contains a NUL"
    } else if !target.is_absolute() {
        "it is not absolute"
    } else if target.components().any(|part| part == Component::ParentDir) {
        "it contains `..`"
    } else if let (Some(parent), Some(name)) = (target.parent(), target.file_name()) {
        return Ok(Split { parent, name });
    } else {
        "it is the root directory"
    };
    Err(Error::new(Kind::Invalid, format!("target `{}`: {problem}", bytes.escape_ascii())))
}

/// Returns the path of a target with the symbolic links in its parent resolved. Does not access the target itself.
/// `None` if its parent does not exist.
pub(super) fn real_path(split: &Split<'_>) -> Result<Option<Vec<u8>>> {
    let parent = match open_parent(split) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        parent => parent.context(|| format!("open the target's parent {}", split.parent.display()))?,
    };
    let mut path = path_of(parent.as_fd())?;
    if path != b"/" {
        path.push(b'/');
    }
    path.extend_from_slice(split.name.as_bytes());
    Ok(Some(path))
}

fn open_parent(split: &Split<'_>) -> Result<OwnedFd, Errno> {
    rustix::fs::open(split.parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The error for a target that could not be opened.
fn open_error(target: &Path, errno: Errno) -> Error {
    if matches!(errno, Errno::NOTDIR | Errno::LOOP) {
        return not_a_directory(target);
    }
    let result: Result<(), Errno> = Err(errno);
    match result.context(|| format!("open target {}", target.display())) {
        Err(error) => error,
        Ok(()) => Error::new(Kind::Internal, "open target"),
    }
}

fn not_a_directory(target: &Path) -> Error {
    let found = rustix::fs::statx(CWD, target, STATX_LOCAL, rustix::fs::StatxFlags::TYPE);
    let is_link = found.is_ok_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Symlink);
    let kind = if is_link { "a symbolic link, which is not followed" } else { "not a directory" };
    Error::new(Kind::Invalid, format!("target {} is {kind}; nothing was changed", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_kind(path: impl AsRef<OsStr>) -> Kind {
        let error = open_target(Path::new(path.as_ref())).unwrap_err();
        assert!(error.chain().contains("target"), "{}", error.chain());
        assert_eq!(remove_target(Path::new(path.as_ref())).unwrap_err().kind(), error.kind());
        error.kind()
    }

    #[test]
    fn an_invalid_target_is_refused() {
        for path in ["", "a", "./a", "/", "//", "/a/../b", "/..", "/a/.."] {
            assert_eq!(error_kind(path), Kind::Invalid, "{path}");
        }
        assert_eq!(error_kind(OsStr::from_bytes(b"/tmp/a\0b")), Kind::Invalid);
        assert_eq!(error_kind(format!("/{}", "a/".repeat(2048))), Kind::Invalid);
    }

    #[test]
    fn a_missing_target_is_created_but_not_its_parent() {
        let base = tempfile::tempdir().unwrap();
        let target = base.path().join("mount");
        open_target(&target).unwrap();
        open_target(&target).unwrap();
        assert_eq!(open_target(&base.path().join("no/mount")).unwrap_err().kind(), Kind::Invalid);
        remove_target(&target).unwrap();
        remove_target(&target).unwrap();
        remove_target(&base.path().join("no/mount")).unwrap();
        assert!(!base.path().join("no").exists());
    }

    #[test]
    fn a_symlink_or_file_at_the_target_is_refused_and_kept() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("dir")).unwrap();
        std::fs::write(base.path().join("file"), "kept").unwrap();
        for to in ["dir", "file", "nowhere"] {
            let link = base.path().join(format!("to-{to}"));
            std::os::unix::fs::symlink(base.path().join(to), &link).unwrap();
            assert_eq!(error_kind(&link), Kind::Invalid);
            assert!(open_target(&link).unwrap_err().chain().contains("symbolic link"));
            assert!(link.symlink_metadata().unwrap().is_symlink());
        }
        assert_eq!(error_kind(base.path().join("file")), Kind::Invalid);
        assert!(base.path().join("file").exists());
        std::os::unix::fs::symlink(base.path().join("dir"), base.path().join("parent")).unwrap();
        open_target(&base.path().join("parent/mount")).unwrap();
        assert!(base.path().join("dir/mount").is_dir());
    }

    #[test]
    fn a_target_with_files_is_not_removed() {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("file"), "kept").unwrap();
        let error = remove_target(base.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.chain().contains("not empty"), "{}", error.chain());
        assert!(base.path().join("file").exists());
    }
}
