//! News of changes on a filesystem that other hosts use, too: the file `generation` names the latest changes.
//!
//! inotify reports nothing that another host does, and a time of a directory may stay the same. So each change is announced
//! in this file, under the pool's commit lock and before its rename: a process that ends between the two has announced
//! too much, never too little. The rename of the newest announcement may be still to come, so its object is read at each
//! use until the next announcement. Each has a random number: a reader finds the last one that it knows in the list, and
//! what follows has changed. Without it, everything may have changed.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::F_RDLCK;
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::dirs::{nonce, open_file_inside};
use super::lock_files::range;
use super::object::ObjectKind;
use crate::error::{Context as _, Result};
use crate::volume::Name;

/// The file's name in the pool's directory.
const FILE: &str = "generation";
/// Number of changes that the file names. With the longest names they fit into [`BYTES`].
const CHANGES: usize = 32;
/// The size of the file, which is written as a whole, in place.
const BYTES: usize = 4096;
/// Readings of a file that another host is writing, before it counts as damaged.
const READINGS: usize = 3;

/// What has changed since the last time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changes {
    /// These objects, or some of them.
    Of(Vec<(ObjectKind, Name)>),
    /// Anything.
    Anything,
}

/// Makes the file as large as it will ever be: a full filesystem has no space for it later, and a deletion needs it. The
/// caller holds the commit lock.
///
/// # Errors
/// The error of the failed system call.
pub(super) fn allocate(root: BorrowedFd<'_>) -> Result<()> {
    if is_allocated(root)? {
        return Ok(());
    }
    write(root, &[]).context(|| format!("write {FILE}"))
}

/// Whether the file has its full size.
///
/// # Errors
/// The error of the failed system call.
pub(super) fn is_allocated(root: BorrowedFd<'_>) -> Result<bool> {
    let is_complete = |file: File| Ok(file.metadata().context(|| "stat it")?.len() >= BYTES as u64);
    open(root).and_then(is_complete).context(|| format!("open {FILE}"))
}

/// What a process knows of the changes of a pool.
#[derive(Debug, Default)]
pub(super) struct Generation {
    /// The newest announcement that it has seen: empty if the file names none. `None`: nothing was read yet.
    known: Option<String>,
    /// Whether it is an own one, whose rename is complete.
    is_own: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Announcement {
    nonce: String,
    kind: ObjectKind,
    name: Name,
}

impl Generation {
    /// What has changed since the last call.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub(super) fn take(&mut self, root: BorrowedFd<'_>) -> Result<Changes> {
        let list = read(root).context(|| format!("read {FILE}"))?;
        Ok(self.compare(list.as_deref()))
    }

    /// Announces a change of these objects that follows, and returns what has changed before. The caller holds the commit lock until the
    /// change is complete.
    ///
    /// # Errors
    /// The error of the failed system call; nothing may be changed then.
    pub(super) fn announce(
        &mut self,
        root: BorrowedFd<'_>,
        kind: ObjectKind,
        names: &[&Name],
    ) -> Result<Changes> {
        let mut list = read(root).context(|| format!("read {FILE}"))?;
        let changes = self.compare(list.as_deref());
        let list = list.get_or_insert_default();
        let nonce = nonce()?;
        list.extend(names.iter().map(|name| Announcement {
            nonce: nonce.clone(),
            kind,
            name: (*name).clone(),
        }));
        list.drain(..list.len().saturating_sub(CHANGES));
        // An interrupted writing leaves a list that counts as damaged: everything is read again.
        write(root, list).context(|| format!("write {FILE}"))?;
        (self.known, self.is_own) = (Some(nonce), true);
        Ok(changes)
    }

    fn compare(&mut self, list: Option<&[Announcement]>) -> Changes {
        let Some(list) = list else {
            (self.known, self.is_own) = (None, false);
            return Changes::Anything;
        };
        let newest = list.last().map_or("", |last| &last.nonce);
        let known = self.known.replace(newest.to_owned());
        let was_own = self.is_own;
        self.is_own &= known.as_deref() == Some(newest);
        match known {
            Some(known) if known.is_empty() && list.is_empty() => Changes::Of(Vec::new()),
            Some(known) => match list.iter().position(|change| change.nonce == known) {
                Some(at) => {
                    let is_known = |change: &&Announcement| was_own && change.nonce == known;
                    let new = list.iter().skip(at).skip_while(is_known);
                    Changes::Of(new.map(|change| (change.kind, change.name.clone())).collect())
                }
                None => Changes::Anything,
            },
            None => Changes::Anything,
        }
    }
}

/// The announced changes, the newest last; `None` if the file is damaged. A missing one is made.
fn read(root: BorrowedFd<'_>) -> Result<Option<Vec<Announcement>>> {
    for _ in 0..READINGS {
        // Opened each time, since the file may have been removed.
        let Some(file) = open_to_read(root)? else { return Ok(None) };
        // A lock makes an NFS client read afresh. It is shared by all readers, and no process locks the file for writing. Closing releases it.
        fcntl(&file, FcntlArg::F_OFD_SETLK(&range(F_RDLCK, 0)))
            .map_err(std::io::Error::from)
            .context(|| "lock it")?;
        let mut text = String::new();
        let read = (&file).take(BYTES as u64 + 1).read_to_string(&mut text);
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {}
            read => {
                let _: usize = read.context(|| "read it")?;
                if let Some(list) = parse(&text) {
                    return Ok(Some(list));
                }
            }
        }
    }
    Ok(None)
}

fn write(root: BorrowedFd<'_>, list: &[Announcement]) -> Result<()> {
    let mut text = format(list);
    text.extend(std::iter::repeat_n('\n', BYTES.saturating_sub(text.len())));
    let mut file = open(root)?;
    file.write_all(text.as_bytes()).context(|| "write it")?;
    // On NFS, this writes the pages to the server and reports a failure, which closing hides.
    fs::fdatasync(&file).context(|| "sync it")
}

fn open(root: BorrowedFd<'_>) -> Result<File> {
    Ok(File::from(open_with(root, OFlags::RDWR | OFlags::CREATE).context(|| "open it")?))
}

/// On a read-only filesystem, the file is only read, and `None` if it is missing.
fn open_to_read(root: BorrowedFd<'_>) -> Result<Option<File>> {
    match open_with(root, OFlags::RDWR | OFlags::CREATE) {
        Err(Errno::ROFS) => match open_with(root, OFlags::RDONLY) {
            Err(Errno::NOENT) => Ok(None),
            file => Ok(Some(File::from(file.context(|| "open it")?))),
        },
        file => Ok(Some(File::from(file.context(|| "open it")?))),
    }
}

fn open_with(root: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    open_file_inside(root, FILE, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK, mode)
}

fn format(list: &[Announcement]) -> String {
    let lines: Vec<_> = list
        .iter()
        .map(|change| format!("{} {}/{}\n", change.nonce, change.kind.directory(), change.name))
        .collect();
    let lines = lines.concat();
    format!("{}\n{lines}", digest(lines.trim_end()))
}

fn parse(text: &str) -> Option<Vec<Announcement>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let (found, lines) = text.split_once('\n')?;
    let lines = lines.trim_end_matches('\n');
    let list: Vec<_> = lines.lines().map(parse_line).collect::<Option<_>>()?;
    (digest(lines) == found).then_some(list)
}

fn parse_line(line: &str) -> Option<Announcement> {
    let (nonce, object) = line.split_once(' ')?;
    let (directory, name) = object.split_once('/')?;
    let kind = [ObjectKind::Volumes, ObjectKind::Snapshots]
        .into_iter()
        .find(|kind| kind.directory() == directory)?;
    Some(Announcement { nonce: nonce.to_owned(), kind, name: name.parse().ok()? })
}

/// Tells a list that is complete from one that is being written.
fn digest(lines: &str) -> String {
    let digest = Sha256::digest(lines.as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    const KIND: ObjectKind = ObjectKind::Volumes;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn of(names: &[&str]) -> Changes {
        Changes::Of(names.iter().map(|text| (KIND, name(text))).collect())
    }

    #[test]
    fn a_reader_learns_each_change_and_reads_the_newest_one_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let (mut writer, mut reader) = (Generation::default(), Generation::default());
        assert_eq!(reader.take(root.as_fd()).unwrap(), Changes::Anything);
        assert_eq!(reader.take(root.as_fd()).unwrap(), of(&[]));
        assert_eq!(writer.announce(root.as_fd(), KIND, &[&name("a")]).unwrap(), Changes::Anything);
        assert_eq!(
            reader.take(root.as_fd()).unwrap(),
            Changes::Anything,
            "the first change has none before it"
        );
        assert_eq!(reader.take(root.as_fd()).unwrap(), of(&["a"]), "its rename may be still to come");
        for change in ["b", "c"] {
            assert_eq!(writer.announce(root.as_fd(), KIND, &[&name(change)]).unwrap(), of(&[]));
        }
        assert_eq!(reader.take(root.as_fd()).unwrap(), of(&["a", "b", "c"]));
        assert_eq!(reader.announce(root.as_fd(), KIND, &[&name("d")]).unwrap(), of(&["c"]));
        assert_eq!(reader.take(root.as_fd()).unwrap(), of(&[]), "an own change is known");
        assert_eq!(writer.take(root.as_fd()).unwrap(), of(&["d"]));
    }

    #[test]
    fn every_object_of_the_newest_change_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let (mut writer, mut reader) = (Generation::default(), Generation::default());
        writer.announce(root.as_fd(), KIND, &[&name("first")]).unwrap();
        reader.take(root.as_fd()).unwrap();
        writer.announce(root.as_fd(), KIND, &[&name("from"), &name("to")]).unwrap();
        assert_eq!(reader.take(root.as_fd()).unwrap(), of(&["first", "from", "to"]));
        assert_eq!(
            reader.take(root.as_fd()).unwrap(),
            of(&["from", "to"]),
            "the rename may be still to come"
        );
        assert_eq!(writer.take(root.as_fd()).unwrap(), of(&[]), "an own change is known");
        reader.announce(root.as_fd(), KIND, &[&name("next")]).unwrap();
        assert_eq!(writer.take(root.as_fd()).unwrap(), of(&["next"]));
    }

    #[test]
    fn a_reader_that_missed_too_much_reads_everything() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let (mut writer, mut reader) = (Generation::default(), Generation::default());
        writer.announce(root.as_fd(), KIND, &[&name(&"a".repeat(64))]).unwrap();
        reader.take(root.as_fd()).unwrap();
        for _ in 0..CHANGES {
            writer.announce(root.as_fd(), KIND, &[&name(&"b".repeat(64))]).unwrap();
        }
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().len(), BYTES as u64);
        assert_eq!(reader.take(root.as_fd()).unwrap(), Changes::Anything);
        assert_eq!(reader.take(root.as_fd()).unwrap(), of(&[&"b".repeat(64)]));
    }

    #[test]
    fn a_file_that_is_damaged_or_gone_causes_everything_to_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let (mut writer, mut reader) = (Generation::default(), Generation::default());
        let path = dir.path().join(FILE);
        let damages: [&dyn Fn(); 3] = [
            &|| std::fs::write(&path, [0xff; 64]).unwrap(),
            &|| {
                let text = std::fs::read_to_string(&path).unwrap();
                std::fs::write(&path, text.replace("volumes/a", "volumes/b")).unwrap();
            },
            &|| std::fs::remove_file(&path).unwrap(),
        ];
        for damage in damages {
            writer.announce(root.as_fd(), KIND, &[&name("a")]).unwrap();
            reader.take(root.as_fd()).unwrap();
            assert_eq!(reader.take(root.as_fd()).unwrap(), of(&["a"]));
            damage();
            assert_eq!(reader.take(root.as_fd()).unwrap(), Changes::Anything);
            writer.announce(root.as_fd(), KIND, &[&name("c")]).unwrap();
            assert_eq!(reader.take(root.as_fd()).unwrap(), Changes::Anything);
        }
    }
}
