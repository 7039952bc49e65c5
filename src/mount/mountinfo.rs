//! Reads mount tables (`/proc/<pid>/mountinfo`, see proc_pid_mountinfo(5)) line by line, as bytes: a path need not be
//! UTF-8.

use std::borrow::Cow;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::options::MountFlags;
use crate::error::{Context as _, Result};

/// The table of the calling thread, which may be in another mount namespace than its process.
pub(super) const OWN_TABLE: &str = "/proc/thread-self/mountinfo";

/// The suffix that the kernel adds to the root of a mount whose directory was removed.
pub const DELETED: &[u8] = b"//deleted";

/// The device number of a filesystem, as in the mount table. On btrfs, `st_dev` differs between subvolumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl From<(u32, u32)> for Device {
    fn from((major, minor): (u32, u32)) -> Self {
        Self { major, minor }
    }
}

/// One line of a mount table, split into fields that are still escaped and borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Id of the mount.
    pub id: u64,
    /// Id of the mount that it is mounted on.
    pub parent: u64,
    /// The filesystem.
    pub device: Device,
    root: &'a [u8],
    target: &'a [u8],
    options: &'a [u8],
    /// The optional fields, the hyphen, and the fields after it.
    rest: &'a [u8],
}

impl<'a> Line<'a> {
    /// Parses a line; `None` if it is not a line of a mount table.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(7, |byte| *byte == b' ');
        let id = parse_u64(fields.next()?)?;
        let parent = parse_u64(fields.next()?)?;
        let mut device = fields.next()?.splitn(2, |byte| *byte == b':');
        let major = u32::try_from(parse_u64(device.next()?)?).ok()?;
        let minor = u32::try_from(parse_u64(device.next()?)?).ok()?;
        let (root, target, options) = (fields.next()?, fields.next()?, fields.next()?);
        let rest = fields.next()?;
        Some(Self { id, parent, device: Device { major, minor }, root, target, options, rest })
    }

    /// Returns the directory or file of the filesystem that is the root of the mount, and whether it has been removed. The
    /// kernel shows `/` for every mount of NFS, and the directory in its source.
    #[must_use]
    pub fn root(&self) -> (Cow<'a, [u8]>, bool) {
        if let Some(path) = self.path_on_nfs_server() {
            return (unescape(path), false);
        }
        match self.root.strip_suffix(DELETED) {
            Some(root) => (unescape(root), true),
            None => (unescape(self.root), false),
        }
    }

    /// The path in a source such as `nas:/export` or `[fd00::1]:/export`.
    fn path_on_nfs_server(&self) -> Option<&'a [u8]> {
        let mut tail = self.tail();
        let is_nfs = matches!(tail.next()?, b"nfs" | b"nfs4");
        let source = tail.next().filter(|_| is_nfs)?;
        source.windows(2).position(|pair| pair == b":/").map(|at| &source[at + 1..])
    }

    /// Returns the mount point, relative to the root of the process that the table belongs to.
    #[must_use]
    pub fn target(&self) -> Cow<'a, [u8]> {
        unescape(self.target)
    }

    /// Returns the flags of the mount.
    #[must_use]
    pub fn flags(&self) -> MountFlags {
        MountFlags::from_table(self.options)
    }

    /// Returns the peer group that the mount is a member of.
    #[must_use]
    pub fn shared(&self) -> Option<u64> {
        self.optional(b"shared:")
    }

    /// Returns the peer group that the mount receives events from, as a slave.
    #[must_use]
    pub fn master(&self) -> Option<u64> {
        self.optional(b"master:")
    }

    fn optional(&self, name: &[u8]) -> Option<u64> {
        let fields = self.rest.split(|byte| *byte == b' ');
        fields.take_while(|field| *field != b"-").find_map(|field| parse_u64(field.strip_prefix(name)?))
    }

    /// Returns the type of the filesystem, and its options as they are in the table, still escaped.
    #[must_use]
    pub fn filesystem(&self) -> (&'a [u8], &'a [u8]) {
        let mut tail = self.tail();
        (tail.next().unwrap_or_default(), tail.nth(1).unwrap_or_default())
    }

    /// The fields after the hyphen: type, source and options of the filesystem.
    fn tail(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.rest.split(|byte| *byte == b' ').skip_while(|field| *field != b"-").skip(1)
    }

    /// Copies and unescapes the fields.
    #[must_use]
    pub fn to_info(&self) -> MountInfo {
        let (root, root_deleted) = self.root();
        let mut tail = self.tail();
        let mut next_field = || OsString::from_vec(unescape(tail.next().unwrap_or_default()).into_owned());
        MountInfo {
            id: self.id,
            parent: self.parent,
            device: self.device,
            root: path(root),
            root_deleted,
            target: path(self.target()),
            flags: self.flags(),
            shared: self.shared(),
            fs_type: next_field(),
            source: next_field(),
            super_options: next_field(),
        }
    }
}

/// A mount, as a line of the mount table describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Its id. The kernel reuses it after the mount is unmounted.
    pub id: u64,
    /// Id of the mount that it is mounted on.
    pub parent: u64,
    /// The filesystem.
    pub device: Device,
    /// The directory or file of the filesystem that is mounted.
    pub root: PathBuf,
    /// Whether that directory has been removed.
    pub root_deleted: bool,
    /// The mount point.
    pub target: PathBuf,
    /// The flags of the mount itself, not of its filesystem.
    pub flags: MountFlags,
    /// The peer group that it is a member of.
    pub shared: Option<u64>,
    /// Type of the filesystem.
    pub fs_type: OsString,
    /// Source of the filesystem, such as a block device.
    pub source: OsString,
    /// Options of the filesystem.
    pub super_options: OsString,
}

/// Reads mount tables line by line through one buffer, which is reused.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// Calls `visit` for each line of an open table until it breaks or the table ends. Skips malformed lines.
    ///
    /// # Errors
    /// The error of a read; `EINVAL` if the process that the table belongs to has ended.
    pub fn each<F>(&mut self, table: impl AsFd, mut visit: F) -> Result<(), Errno>
    where
        F: FnMut(Line<'_>) -> ControlFlow<()>,
    {
        if self.buffer.is_empty() {
            self.buffer.resize(32 * 1024, 0);
        }
        let mut partial = 0;
        loop {
            if partial == self.buffer.len() {
                self.buffer.resize(partial * 2, 0);
            }
            let read = match rustix::io::read(&table, &mut self.buffer[partial..]) {
                Err(Errno::INTR) => continue,
                read => read?,
            };
            if read == 0 {
                return Ok(());
            }
            let filled = partial + read;
            let mut start = 0;
            while let Some(length) = self.buffer[start..filled].iter().position(|byte| *byte == b'\n') {
                let line = Line::parse(&self.buffer[start..start + length]);
                if line.is_some_and(|line| visit(line).is_break()) {
                    return Ok(());
                }
                start += length + 1;
            }
            self.buffer.copy_within(start..filled, 0);
            partial = filled - start;
        }
    }
}

/// Calls `visit` for each line of the calling thread's mount table until it breaks.
///
/// # Errors
/// `Internal` if the table cannot be read, for example because `/proc` is not mounted.
pub fn each_own(visit: impl FnMut(Line<'_>) -> ControlFlow<()>) -> Result<()> {
    let table = open_own_table().context(|| format!("open {OWN_TABLE}"))?;
    Reader::default().each(table, visit).context(|| format!("read {OWN_TABLE}"))
}

fn open_own_table() -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, OWN_TABLE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Returns the mount with this id in the calling thread's mount table.
///
/// # Errors
/// `Internal` if the table cannot be read.
pub fn by_id(id: u64) -> Result<Option<MountInfo>> {
    let mut found = None;
    each_own(|line| {
        if line.id != id {
            return ControlFlow::Continue(());
        }
        found = Some(line.to_info());
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Returns the topmost mount at exactly this path in the calling thread's mount table. The path contains no symbolic
/// links.
///
/// # Errors
/// `Internal` if the table cannot be read.
pub fn by_target(target: &[u8]) -> Result<Option<MountInfo>> {
    let mut stack: Vec<MountInfo> = Vec::new();
    each_own(|line| {
        if *line.target() == *target {
            stack.push(line.to_info());
        }
        ControlFlow::Continue(())
    })?;
    // The order of the lines says nothing: the topmost mount is the one that is not the parent of another.
    let top = stack.iter().position(|mount| !stack.iter().any(|other| other.parent == mount.id));
    Ok(top.map(|top| stack.swap_remove(top)))
}

/// Decodes the kernel's `\ooo` escapes; keeps any other backslash.
pub(super) fn unescape(field: &[u8]) -> Cow<'_, [u8]> {
    if !field.contains(&b'\\') {
        return Cow::Borrowed(field);
    }
    let mut decoded = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                decoded.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            (byte, after) => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    Cow::Owned(decoded)
}

fn path(bytes: Cow<'_, [u8]>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.into_owned()))
}

/// Parses a decimal number; unlike `str::parse`, accepts no sign.
fn parse_u64(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};
    use std::os::unix::ffi::OsStrExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_root_of_an_nfs_mount_is_in_its_source() {
        let root = |tail: &str| {
            let line = format!("60 40 0:50 / /t rw - {tail} rw,vers=4.2");
            Line::parse(line.as_bytes()).unwrap().root().0.into_owned()
        };
        assert_eq!(root("nfs4 nas:/pool/volumes/a\\040b/data"), b"/pool/volumes/a b/data");
        assert_eq!(root("nfs4 [fd00::1]:/pool"), b"/pool");
        assert_eq!(root("nfs nas:/"), b"/");
        assert_eq!(root("tmpfs nas:/pool"), b"/");
    }

    #[test]
    fn a_line_is_parsed_into_its_fields() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 ro,noatime shared:1 master:2 - ext3 /dev/a\\040b rw,errors=continue";
        let info = Line::parse(line).unwrap().to_info();
        assert_eq!((info.id, info.parent, info.device), (36, 35, Device { major: 98, minor: 0 }));
        assert_eq!(info.root.as_os_str(), "/mnt1");
        assert_eq!(info.target.as_os_str(), "/mnt 2");
        assert!(info.flags.read_only && !info.root_deleted);
        assert_eq!(info.shared, Some(1));
        assert_eq!(Line::parse(line).unwrap().master(), Some(2));
        assert_eq!((info.fs_type.to_str(), info.source.to_str()), (Some("ext3"), Some("/dev/a b")));
        assert_eq!(info.super_options, "rw,errors=continue");
        let (fs_type, options) = Line::parse(line).unwrap().filesystem();
        assert_eq!((fs_type, options), (&b"ext3"[..], &b"rw,errors=continue"[..]));
    }

    #[test]
    fn optional_fields_end_at_the_hyphen() {
        let line = Line::parse(b"1 2 0:3 / /a rw - tmpfs shared:9 rw").unwrap();
        assert_eq!((line.shared(), line.to_info().source.to_str()), (None, Some("shared:9")));
        let line = Line::parse(b"1 2 0:3 / /a rw unbindable future:1 shared:77 - tmpfs  rw").unwrap();
        assert_eq!(line.shared(), Some(77));
        assert_eq!(
            (line.to_info().source.to_str(), line.to_info().super_options.to_str()),
            (Some(""), Some("rw"))
        );
    }

    #[test]
    fn a_removed_root_is_recognized_by_its_suffix() {
        let line = Line::parse(b"1 2 0:3 /v/a//deleted /t rw - ext4 /dev/a rw").unwrap();
        assert_eq!(line.root(), (Cow::Borrowed(&b"/v/a"[..]), true));
        assert!(line.to_info().root_deleted);
    }

    #[test]
    fn paths_that_are_not_utf8_are_preserved() {
        let info = Line::parse(b"1 2 0:3 /\xff /\xfe\\011 rw - ext4 /dev/a rw").unwrap().to_info();
        assert_eq!(info.root.as_os_str().as_bytes(), b"/\xff");
        assert_eq!(info.target.as_os_str().as_bytes(), b"/\xfe\t");
    }

    #[test]
    fn malformed_lines_are_rejected() {
        let lines: [&[u8]; 7] = [
            b"",
            b"1 2",
            b"a 2 0:3 / /a rw - t s o",
            b"1 2 03 / /a rw - t s o",
            b"1 2 0:3 / /a rw",
            b"-1 2 0:3 / /a rw - t s o",
            b"99999999999999999999 2 0:3 / /a rw - t s o",
        ];
        for line in lines {
            assert!(Line::parse(line).is_none(), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_line_longer_than_the_buffer_is_read() {
        let mut file = tempfile::tempfile().unwrap();
        for id in 0..50 {
            let options = "x".repeat(id * 3000);
            writeln!(file, "{id} 2 0:3 / /a{id} rw - overlay o {options}").unwrap();
        }
        file.rewind().unwrap();
        let mut ids = Vec::new();
        let mut reader = Reader::default();
        let visit = |line: Line<'_>| {
            assert_eq!(line.to_info().super_options.len() as u64, line.id * 3000);
            ids.push(line.id);
            if line.id == 48 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        reader.each(&file, visit).unwrap();
        assert_eq!(ids, (0..49).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn unescape_reverses_the_escapes_of_the_kernel(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let escaped: Vec<u8> = bytes
                .iter()
                .flat_map(|byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                    byte => vec![*byte],
                })
                .collect();
            prop_assert_eq!(unescape(&escaped), &bytes[..]);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Line::parse(&bytes).map(|line| line.to_info());
            let _ = unescape(&bytes);
        }
    }
}
