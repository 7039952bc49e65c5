//! The directory that a volume is mounted on: checked, made if it is not there, and removed only when it is empty.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::location::{LOCAL, path_of};
use crate::error::{Context as _, Error, Kind, Result};

/// The longest path that the kernel takes is one less: it counts the NUL.
const PATH_MAX: usize = 4096;

/// A target cut into the directory it lies in and its name there.
pub(super) struct Split<'a> {
    parent: &'a Path,
    name: &'a OsStr,
}

/// Opens the directory `target`; makes it, with mode 0750, if it is missing. What is mounted there is opened, not
/// what lies under it. A parent may be a symbolic link (`/var/lib/kubelet` often is); the last name may not.
///
/// # Errors
/// `Invalid`, naming `target_path`, if the path is not one that a volume can be mounted on.
pub fn open_target(target: &Path) -> Result<OwnedFd> {
    let split = split(target)?;
    let parent = open_parent(&split).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
            let text = format!(
                "target_path {}: its parent is not a directory that orlop sees: let the caller make it, and \
                     mount the kubelet's directory into orlop's container at the same path",
                target.display()
            );
            Error::caused(Kind::Invalid, text, std::io::Error::from(errno))
        }
        other => refused(target, other),
    })?;
    match rustix::fs::mkdirat(&parent, split.name, Mode::from_raw_mode(0o750)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).context(|| format!("make target_path {}", target.display())),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, split.name, flags, Mode::empty()).map_err(|errno| refused(target, errno))
}

/// Removes the directory `target`, which nothing is mounted on any more. One that is not there is fine; one that
/// holds anything is left as it is, for that was written beside the volume and is nobody's to delete.
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
            "it is not empty: something was written there while no volume was mounted; nothing was deleted; move \
             the files away and try again"
        }
        Err(Errno::NOTDIR) => return Err(not_a_directory(target)),
        Err(other) => return Err(other).context(|| format!("remove target_path {}", target.display())),
    };
    Err(Error::new(Kind::Internal, format!("remove target_path {}: {text}", target.display())))
}

/// Checks a target and cuts it.
pub(super) fn split(target: &Path) -> Result<Split<'_>> {
    let bytes = target.as_os_str().as_bytes();
    let wrong = if bytes.is_empty() {
        "it is empty"
    } else if bytes.len() >= PATH_MAX {
        return Err(Error::new(Kind::Invalid, "target_path is longer than 4095 bytes"));
    } else if bytes.contains(&0) {
        "it holds a NUL"
    } else if !target.is_absolute() {
        "it is not absolute"
    } else if target.components().any(|part| part == Component::ParentDir) {
        "it holds `..`"
    } else if let (Some(parent), Some(name)) = (target.parent(), target.file_name()) {
        return Ok(Split { parent, name });
    } else {
        "it is the root directory"
    };
    Err(Error::new(Kind::Invalid, format!("target_path `{}`: {wrong}", bytes.escape_ascii())))
}

/// The path of a target with no symbolic link in it, found without touching the target itself; `None` if its parent
/// is not there.
pub(super) fn real_path(split: &Split<'_>) -> Result<Option<Vec<u8>>> {
    let parent = match open_parent(split) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        parent => parent.context(|| format!("open {}", split.parent.display()))?,
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

/// Why the last name of a target could not be opened.
fn refused(target: &Path, errno: Errno) -> Error {
    if matches!(errno, Errno::NOTDIR | Errno::LOOP) {
        return not_a_directory(target);
    }
    let failed: Result<(), Errno> = Err(errno);
    match failed.context(|| format!("open target_path {}", target.display())) {
        Err(error) => error,
        Ok(()) => Error::new(Kind::Internal, "open target_path"),
    }
}

fn not_a_directory(target: &Path) -> Error {
    let found = rustix::fs::statx(CWD, target, LOCAL, rustix::fs::StatxFlags::TYPE);
    let link = found.is_ok_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Symlink);
    let what = if link { "a symbolic link, which is not followed" } else { "not a directory" };
    Error::new(Kind::Invalid, format!("target_path {} is {what}; nothing was changed", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(path: impl AsRef<OsStr>) -> Kind {
        let error = open_target(Path::new(path.as_ref())).unwrap_err();
        assert!(error.chain().contains("target_path"), "{}", error.chain());
        assert_eq!(remove_target(Path::new(path.as_ref())).unwrap_err().kind(), error.kind());
        error.kind()
    }

    #[test]
    fn a_path_that_is_no_target_is_invalid() {
        for path in ["", "a", "./a", "/", "//", "/a/../b", "/..", "/a/.."] {
            assert_eq!(kind(path), Kind::Invalid, "{path}");
        }
        assert_eq!(kind(OsStr::from_bytes(b"/tmp/a\0b")), Kind::Invalid);
        assert_eq!(kind(format!("/{}", "a/".repeat(2048))), Kind::Invalid);
    }

    #[test]
    fn a_target_is_made_once_and_its_parent_never() {
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
    fn a_link_or_a_file_is_refused_and_stays() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("dir")).unwrap();
        std::fs::write(base.path().join("file"), "kept").unwrap();
        for to in ["dir", "file", "nowhere"] {
            let link = base.path().join(format!("to-{to}"));
            std::os::unix::fs::symlink(base.path().join(to), &link).unwrap();
            assert_eq!(kind(&link), Kind::Invalid);
            assert!(open_target(&link).unwrap_err().chain().contains("symbolic link"));
            assert!(link.symlink_metadata().unwrap().is_symlink());
        }
        assert_eq!(kind(base.path().join("file")), Kind::Invalid);
        assert!(base.path().join("file").exists());
        std::os::unix::fs::symlink(base.path().join("dir"), base.path().join("parent")).unwrap();
        open_target(&base.path().join("parent/mount")).unwrap();
        assert!(base.path().join("dir/mount").is_dir());
    }

    #[test]
    fn a_target_with_files_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("file"), "kept").unwrap();
        let error = remove_target(base.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.chain().contains("not empty"), "{}", error.chain());
        assert!(base.path().join("file").exists());
    }
}
