//! Byte-range locks that the processes of a pool hold on the files in `locks/` (`F_OFD_SETLK`, Linux 3.15).
//!
//! A key locks one byte: 8 bits of its hash choose the file and 62 bits the byte, so two keys practically never collide.
//! There are 256 files since the kernel searches the locks of one file one by one. The locks belong to the open file
//! descriptions of this process and end with it, however it ends.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::OnceLock;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, c_short, flock};
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::dirs::{for_each_name, open_file_inside};
use super::keeper::KeptFiles;
use crate::error::{Context as _, Result};
use crate::fs::DirIdentity;

/// Whether others may hold a lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With others in this mode.
    Shared,
    /// Alone.
    Exclusive,
}

const FILES: usize = 256;

/// The lock files, each opened at its first use.
#[derive(Debug)]
pub(super) struct LockFiles {
    dir: OwnedFd,
    /// Where each file is kept, so that its locks outlive this process, and under which prefix.
    kept: Option<(KeptFiles, String)>,
    files: Box<[OnceLock<OwnedFd>; FILES]>,
}

/// The byte that stands for a key.
struct Position {
    file: u8,
    byte: i64,
}

impl Position {
    fn of(key: &str) -> Self {
        let digest = Sha256::digest(key.as_bytes());
        let mut offset = [0; 8];
        offset.copy_from_slice(&digest[1..9]);
        // 62 bits: start and end of a range must be valid file offsets.
        Self { file: digest[0], byte: i64::from_be_bytes(offset) & (i64::MAX >> 1) }
    }
}

impl LockFiles {
    /// Uses the files in this directory. A missing one is made when it is first needed, by any number of hosts at once.
    pub(super) fn new(dir: OwnedFd) -> Self {
        Self { dir, kept: None, files: Box::new([const { OnceLock::new() }; FILES]) }
    }

    /// Like [`LockFiles::new`], but the locks outlive this process, and those of its predecessors are taken over:
    /// [`LockFiles::unlock_others`] releases those that are not needed any more. `prefix` is that of the names of the kept
    /// files.
    pub(super) fn kept(dir: OwnedFd, kept: &KeptFiles, prefix: String) -> Result<Self> {
        let locks = Self { kept: Some((kept.clone(), prefix)), ..Self::new(dir) };
        for number in 0..=u8::MAX {
            locks.take_over(number)?;
        }
        Ok(locks)
    }

    /// Makes all files: a full filesystem has no space for them later, and a delete needs them.
    pub(super) fn make_all(&self) -> Result<()> {
        let mut missing: BTreeSet<String> = (0..=u8::MAX).map(file_name).collect();
        for_each_name(self.dir.as_fd(), |name| drop(missing.take(name))).context(|| "list locks/")?;
        missing.iter().try_for_each(|name| self.open(name).map(drop))
    }

    /// Acquires the lock of a key unless another process holds it in a mode that excludes this one. The caller makes sure
    /// that no other thread of this process locks or unlocks the key: within one process, a second lock would replace the
    /// first.
    pub(super) fn try_lock(&self, key: &str, mode: Mode) -> Result<bool> {
        let position = Position::of(key);
        let file = self.file(position.file)?;
        let kind = match mode {
            Mode::Shared => F_RDLCK,
            Mode::Exclusive => F_WRLCK,
        };
        // Nothing can be changed there, so nothing needs to be excluded.
        let Some(file) = file else { return Ok(true) };
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, position.byte))) {
            Ok(_) => Ok(true),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
            Err(error) => Err(std::io::Error::from(error))
                .context(|| format!("set a lock in locks/{:02x}", position.file)),
        }
    }

    /// Releases the lock of a key.
    pub(super) fn unlock(&self, key: &str) {
        let position = Position::of(key);
        if let Some(file) = self.files[usize::from(position.file)].get() {
            let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&range(F_UNLCK, position.byte)));
        }
    }

    /// Releases the locks of all keys but these.
    pub(super) fn unlock_others(&self, keys: &[String]) {
        let mut wanted: Vec<Vec<i64>> = vec![Vec::new(); FILES];
        for position in keys.iter().map(|key| Position::of(key)) {
            wanted[usize::from(position.file)].push(position.byte);
        }
        for (slot, mut bytes) in self.files.iter().zip(wanted) {
            let Some(file) = slot.get() else { continue };
            bytes.sort_unstable();
            let mut start = 0;
            for byte in bytes {
                if byte > start {
                    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&bytes_range(F_UNLCK, start, byte - start)));
                }
                start = byte + 1;
            }
            // A length of 0 reaches to the end.
            let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&bytes_range(F_UNLCK, start, 0)));
        }
    }

    /// Uses the file that a predecessor has left, if it is still the one in the directory.
    fn take_over(&self, number: u8) -> Result<()> {
        let Some((kept, prefix)) = &self.kept else { return Ok(()) };
        let kept_name = format!("{prefix}{}", file_name(number));
        let Some(file) = kept.take(&kept_name) else { return Ok(()) };
        let found = DirIdentity::of_entry(self.dir.as_fd(), file_name(number));
        if DirIdentity::of(file.as_fd()).is_ok_and(|own| found.is_ok_and(|found| own == found)) {
            let _is_first = self.files[usize::from(number)].set(file);
            return Ok(());
        }
        kept.close(&kept_name)
    }

    /// Returns a lock file; `None` on a read-only filesystem.
    fn file(&self, number: u8) -> Result<Option<&OwnedFd>> {
        let slot = &self.files[usize::from(number)];
        if let Some(file) = slot.get() {
            return Ok(Some(file));
        }
        // Another thread may have been faster. Its file is used, and this one has no locks yet.
        let Some(opened) = self.open(&file_name(number))? else { return Ok(None) };
        let file = slot.get_or_init(|| opened);
        // Before its first lock.
        if let Some((kept, prefix)) = &self.kept {
            kept.keep(&format!("{prefix}{}", file_name(number)), file.as_fd())?;
        }
        Ok(Some(file))
    }

    fn open(&self, name: &str) -> Result<Option<OwnedFd>> {
        let open = |flags, mode| {
            let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            open_file_inside(&self.dir, name, flags, mode)
        };
        let opened = match open(OFlags::empty(), FileMode::empty()) {
            Err(Errno::NOENT) => open(OFlags::CREATE, FileMode::RUSR | FileMode::WUSR),
            opened => opened,
        };
        match opened {
            Err(Errno::ROFS) => Ok(None),
            opened => opened.map(Some).context(|| format!("open locks/{name}")),
        }
    }
}

fn file_name(number: u8) -> String {
    format!("{number:02x}")
}

/// The byte to lock or unlock.
pub(super) fn range(kind: i32, byte: i64) -> flock {
    bytes_range(kind, byte, 1)
}

fn bytes_range(kind: i32, start: i64, length: i64) -> flock {
    #[expect(clippy::cast_possible_truncation, reason = "the constants fit, but libc types them as int")]
    let (kind, whence) = (kind as c_short, SEEK_SET as c_short);
    // The process id must be 0 for these commands.
    flock { l_type: kind, l_whence: whence, l_start: start, l_len: length, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::BorrowedFd;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::pool::keeper::Keeper;

    #[derive(Debug, Default)]
    struct Parent(Mutex<BTreeMap<String, OwnedFd>>);

    impl Keeper for Parent {
        fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
            self.0.lock().unwrap().insert(name.to_owned(), descriptor.try_clone_to_owned().unwrap());
            Ok(())
        }

        fn close(&self, name: &str) -> Result<()> {
            self.0.lock().unwrap().remove(name);
            Ok(())
        }
    }

    fn open(dir: &Path) -> OwnedFd {
        std::fs::File::open(dir).unwrap().into()
    }

    /// The locks of the next process of this parent.
    fn successor(parent: &Arc<Parent>, dir: &Path) -> LockFiles {
        let copy = |(name, file): (&String, &OwnedFd)| (name.clone(), file.try_clone().unwrap());
        let left = parent.0.lock().unwrap().iter().map(copy).collect();
        let kept = KeptFiles::new(Arc::<Parent>::clone(parent), left);
        LockFiles::kept(open(dir), &kept, "p/used/".to_owned()).unwrap()
    }

    #[test]
    fn a_successor_takes_over_the_locks_that_it_needs_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let parent = Arc::new(Parent::default());
        let other = LockFiles::new(open(dir.path()));
        let is_free = |key: &str| {
            let taken = other.try_lock(key, Mode::Exclusive).unwrap();
            other.unlock(key);
            taken
        };
        let keys: Vec<_> = (0..600).map(|number| format!("used v{number}")).collect();
        let first = successor(&parent, dir.path());
        assert!(keys.iter().all(|key| first.try_lock(key, Mode::Exclusive).unwrap()));
        drop(first);
        assert!(!keys.iter().any(|key| is_free(key)), "the parent keeps the locks");
        let next = successor(&parent, dir.path());
        let (needed, others) = keys.split_at(300);
        next.unlock_others(needed);
        assert!(!needed.iter().any(|key| is_free(key)) && others.iter().all(|key| is_free(key)));
        assert!(needed.iter().all(|key| next.try_lock(key, Mode::Exclusive).unwrap()));
    }

    #[test]
    fn hosts_that_make_missing_files_at_once_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (LockFiles::new(open(dir.path())), LockFiles::new(open(dir.path())));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a file is made when it is needed");
        std::thread::scope(|scope| {
            scope.spawn(|| other.make_all().unwrap());
            assert!((0..600).all(|number| one.try_lock(&format!("key {number}"), Mode::Exclusive).unwrap()));
        });
        assert!(!(0..600).any(|number| other.try_lock(&format!("key {number}"), Mode::Shared).unwrap()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), FILES);
    }

    #[test]
    fn files_that_were_replaced_are_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let parent = Arc::new(Parent::default());
        assert!(successor(&parent, dir.path()).try_lock("used v", Mode::Exclusive).unwrap());
        assert_eq!(parent.0.lock().unwrap().len(), 1);
        for file in std::fs::read_dir(dir.path()).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        LockFiles::new(open(dir.path())).make_all().unwrap();
        let next = successor(&parent, dir.path());
        assert!(parent.0.lock().unwrap().is_empty(), "the parent closes what is of no more use");
        assert!(next.try_lock("used v", Mode::Exclusive).unwrap());
    }
}
