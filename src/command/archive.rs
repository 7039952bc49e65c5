//! Archives as files, and what the commands print about them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::printable;
use crate::archive::compression::{Compression, Sum};
use crate::archive::name::compression_of;
use crate::archive::{Entry, EntryKind, Origin};
use crate::engine::BackedUp;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::unpack::{Layout, Unpacked};
use crate::volume::{Size, Timestamp};

/// A file that is being written. It gets its name when it is complete; dropped before, it is removed.
#[derive(Debug)]
pub struct NewArchive {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    is_complete: bool,
}

impl NewArchive {
    /// Creates the file beside its final name, readable by its owner only: it has the data of all owners.
    ///
    /// # Errors
    /// `Invalid` when the name is that of something else than a file; otherwise the error of the failed system call.
    pub fn create(path: &Path) -> Result<Self> {
        let not_a_file = || Error::new(Kind::Invalid, format!("{} is not a regular file", path.display()));
        let name = path.file_name().ok_or_else(not_a_file)?.to_string_lossy();
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(not_a_file());
        }
        let temporary = path.with_file_name(format!(".{name}.{}.part", uuid::Uuid::new_v4().simple()));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&temporary);
        let file = file.context(|| format!("create a file beside {}", path.display()))?;
        Ok(Self { path: path.to_owned(), temporary, file, is_complete: false })
    }

    /// The stream to write to.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn stream(&self) -> Result<File> {
        self.file.try_clone().context(|| "open the archive again")
    }

    /// Gives the file its name, and writes its checksum beside it.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn complete(mut self, sum: &Sum) -> Result<()> {
        let (path, shown) = (self.path.clone(), self.path.display().to_string());
        self.file.sync_all().context(|| format!("sync {shown}"))?;
        let sum_path = sum_path(&path);
        match fs::remove_file(&sum_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(|| format!("replace {}", sum_path.display()));
            }
            _ => {}
        }
        fs::rename(&self.temporary, &path).context(|| format!("rename the archive to {shown}"))?;
        self.is_complete = true;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut file = File::create(&sum_path).context(|| format!("create {}", sum_path.display()))?;
        let line = format!("{}  {name}\n", sum.sha256);
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
        written.context(|| format!("write {}", sum_path.display()))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.context(|| format!("sync {}", dir.display()))
    }
}

impl Drop for NewArchive {
    fn drop(&mut self) {
        if !self.is_complete {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// The file with the checksum of an archive, as `sha256sum -c` reads it.
fn sum_path(archive: &Path) -> PathBuf {
    let mut path = archive.as_os_str().to_owned();
    path.push(".sha256");
    path.into()
}

/// Whether a path means standard input or output.
#[must_use]
pub fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The compression for a file of this name.
///
/// # Errors
/// `Invalid` when the name tells none.
pub fn compression_for(path: &Path) -> Result<Compression> {
    if is_standard(path) {
        return Ok(Compression::Zstd);
    }
    compression_of(path).ok_or_else(|| {
        let text = format!(
            "{} does not end with .tar, .tar.gz, .tgz, .tar.zst or .tzst: use such a name, or --format",
            path.display()
        );
        Error::new(Kind::Invalid, text)
    })
}

/// Standard output for an archive.
///
/// # Errors
/// `Invalid` when it is a terminal.
pub fn standard_output() -> Result<File> {
    if io::stdout().is_terminal() {
        let text = "the archive is not written to a terminal: use -o FILE, or redirect standard output";
        return Err(Error::new(Kind::Invalid, text));
    }
    let stream: OwnedFd = io::stdout().as_fd().try_clone_to_owned().context(|| "open standard output")?;
    Ok(stream.into())
}

/// Opens an archive for reading. Waits for the writer of a FIFO: open it before signals are handled, and only once.
///
/// # Errors
/// `Invalid` when it does not exist, is neither a file nor a FIFO, or standard input is a terminal; otherwise the error of
/// the failed system call.
pub fn open(path: &Path) -> Result<File> {
    let invalid = |why: &str| Error::new(Kind::Invalid, format!("{} {why}", path.display()));
    if is_standard(path) {
        if io::stdin().is_terminal() {
            return Err(Error::new(
                Kind::Invalid,
                "the archive is not read from a terminal: name a file, or redirect",
            ));
        }
        let stream: OwnedFd = io::stdin().as_fd().try_clone_to_owned().context(|| "open standard input")?;
        return Ok(stream.into());
    }
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(invalid("does not exist")),
        Ok(found) if found.is_dir() => return Err(invalid("is a directory: name an archive")),
        Ok(found) if !found.is_file() && !found.file_type().is_fifo() => {
            return Err(invalid("is neither a file nor a FIFO: name an archive"));
        }
        Ok(_) | Err(_) => {}
    }
    File::open(path).context(|| format!("open {}", path.display()))
}

/// An archive that a command reads.
#[derive(Debug)]
pub struct Input {
    /// Its name, for messages.
    pub path: PathBuf,
    /// What is read.
    pub stream: File,
}

impl Input {
    /// Opens an archive as [`open`] does.
    ///
    /// # Errors
    /// Same as [`open`].
    pub fn open(path: PathBuf) -> Result<Self> {
        open(&path).map(|stream| Self { path, stream })
    }
}

/// Compares an archive with the file beside it that has its checksum; `None` if there is none.
///
/// # Errors
/// `Unreadable` when they differ.
pub fn compare(path: &Path, sum: &Sum) -> Result<Option<PathBuf>> {
    let sum_path = sum_path(path);
    if is_standard(path) || !sum_path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&sum_path).context(|| format!("read {}", sum_path.display()))?;
    if text.split_whitespace().next() == Some(&sum.sha256) {
        return Ok(Some(sum_path));
    }
    let text = format!("{} does not match {}: the archive was changed", path.display(), sum_path.display());
    Err(Error::new(Kind::Unreadable, text))
}

/// A line about a finished backup.
#[must_use]
pub fn summary(source: &str, path: &Path, done: &BackedUp, sum: &Sum) -> String {
    let packed = done.packed;
    let to = if is_standard(path) { "standard output".into() } else { path.display().to_string() };
    printable(&format!(
        "{source} -> {to}: {}, {} of data, {} in the archive, consistency {}",
        entries_text(packed.entries),
        Size(packed.bytes).to_short(),
        Size(sum.bytes).to_short(),
        done.copied.consistency.as_str(),
    )) + "\n"
}

/// A number of names below the top directory.
#[must_use]
pub fn entries_text(count: u64) -> String {
    if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") }
}

/// What a backup lacks, one line for each.
#[must_use]
pub fn warnings(done: &BackedUp) -> Vec<String> {
    let packed = done.packed;
    let mut warnings = Vec::new();
    let mut warn = |count: u64, one: &str, several: &str| match count {
        0 => {}
        1 => warnings.push(format!("1 {one}")),
        _ => warnings.push(format!("{count} {several}")),
    };
    warn(packed.changed, "file changed while it was read", "files changed while they were read");
    warn(
        packed.sockets,
        "socket was left out, since an archive cannot hold it",
        "sockets were left out, since an archive cannot hold them",
    );
    warn(
        packed.skipped_xattrs,
        "extended attribute was left out, since it is too large or there are too many",
        "extended attributes were left out, since they are too large or too many",
    );
    warn(
        packed.separated_links,
        "hard link became a file of its own, since there are too many",
        "hard links became files of their own, since there are too many",
    );
    warnings
}

/// What an archive was taken for.
#[must_use]
fn taken_for(path: &Path, origin: Option<&Origin>, unpacked: &Unpacked) -> String {
    let dir = String::from_utf8_lossy(unpacked.layout.prefix());
    let what = match (&unpacked.layout, origin) {
        (Layout::Prefix(_), _) => format!("the directory {dir}/ of an archive"),
        (_, Some(origin)) => {
            format!(
                "a backup of {} by orlop, of {}, consistency {}",
                origin.source, origin.created, origin.consistency
            )
        }
        (Layout::Root, None) => {
            "an archive with the files at its root, as those of Docker Desktop and `podman volume export`"
                .to_owned()
        }
        (Layout::Data, None) => {
            format!(
                "an archive of a container's {dir}/, as by `tar czf … /{dir}`; --prefix . keeps the directory {dir}/"
            )
        }
        (Layout::Vackup, None) => {
            format!("an archive of Docker Desktop's volume extension; --prefix . keeps the directory {dir}/")
        }
        (Layout::Offen(_), None) => {
            format!(
                "an archive of offen's docker-volume-backup, with the files in {dir}/; --prefix . keeps that directory"
            )
        }
    };
    printable(&format!("{} is {what}", shown_path(path)))
}

/// What is said after a restore.
#[must_use]
pub fn restored(path: &Path, origin: Option<&Origin>, unpacked: &Unpacked) -> Vec<String> {
    let mut text = vec![taken_for(path, origin, unpacked)];
    if unpacked.skipped_xattrs > 0 {
        let what = match unpacked.skipped_xattrs {
            1 => "1 extended attribute was left out, since the filesystem cannot store it".to_owned(),
            skipped => {
                format!("{skipped} extended attributes were left out, since the filesystem cannot store them")
            }
        };
        text.push(what);
    }
    text
}

/// The name of an archive for messages.
#[must_use]
pub fn shown_path(path: &Path) -> String {
    if is_standard(path) { "standard input".to_owned() } else { path.display().to_string() }
}

/// A line about an entry, like those of `tar -tv`.
#[must_use]
pub fn line(entry: &Entry) -> String {
    let (kind, size, target) = match &entry.kind {
        EntryKind::File => ('-', entry.size.to_string(), None),
        EntryKind::HardLink(target) => ('h', "0".to_owned(), Some((" link to ", target))),
        EntryKind::Symlink(target) => ('l', "0".to_owned(), Some((" -> ", target))),
        EntryKind::Directory => ('d', "0".to_owned(), None),
        EntryKind::Fifo => ('p', "0".to_owned(), None),
        EntryKind::CharacterDevice(major, minor) => ('c', format!("{major},{minor}"), None),
        EntryKind::BlockDevice(major, minor) => ('b', format!("{major},{minor}"), None),
    };
    let time = Timestamp::from_second(entry.modified.0).unwrap_or_default();
    let text = |bytes: &[u8]| printable(&String::from_utf8_lossy(bytes));
    let target = target.map(|(word, target)| format!("{word}{}", text(target))).unwrap_or_default();
    let owner = format!("{}/{}", entry.uid, entry.gid);
    format!("{kind}{} {owner:>11} {size:>11} {time} {}{target}\n", permissions(entry.mode), text(&entry.path))
}

fn permissions(mode: u32) -> String {
    let bit = |bit: u32, name: char| if mode & bit != 0 { name } else { '-' };
    let special = |special: u32, execute: u32, name: char| match (mode & special != 0, mode & execute != 0) {
        (false, true) => 'x',
        (false, false) => '-',
        (true, true) => name,
        (true, false) => name.to_ascii_uppercase(),
    };
    [
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        special(0o4000, 0o100, 's'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        special(0o2000, 0o010, 's'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        special(0o1000, 0o001, 't'),
    ]
    .iter()
    .collect()
}
