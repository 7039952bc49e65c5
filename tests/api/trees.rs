//! Unusual trees, and everything that a copy must preserve of a tree.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, OsStr};
use std::fs::{self, File, Permissions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Statx, StatxFlags, Timespec, Timestamps, XattrFlags,
    lgetxattr, llistxattr, lsetxattr, makedev, mknodat, openat, readlinkat, seek, statx, utimensat,
};

/// Everything that a copy must preserve of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) mode: u16,
    pub(crate) owner: (u32, u32),
    links: u32,
    /// The first path of the same file.
    first: PathBuf,
    device: (u32, u32),
    times: [(i64, u32); 2],
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    target: Option<Vec<u8>>,
    pub(crate) data: Option<Vec<u8>>,
    /// The ranges that contain data, where the filesystem reports them reliably.
    parts: Option<Vec<(u64, u64)>>,
}

impl Facts {
    /// Everything but the contents, which are too long for a message. Data ranges are included if both files have them.
    pub(crate) fn without_data(&self, other: &Self) -> Self {
        let parts = if other.parts.is_some() { self.parts.clone() } else { None };
        Self { data: None, parts, ..self.clone() }
    }

    /// Whether an archive can hold it.
    pub(crate) fn is_socket(&self) -> bool {
        FileType::from_raw_mode(self.mode.into()) == FileType::Socket
    }

    /// Without the time of the last access.
    pub(crate) fn without_access(&self) -> Self {
        Self { times: [(0, 0), self.times[1]], ..self.clone() }
    }

    /// Without the ranges that contain data: a block of zeros may be a hole.
    pub(crate) fn without_holes(&self) -> Self {
        Self { parts: None, ..self.clone() }
    }
}

/// Reads a tree without changing access times, except those of symlinks.
pub(crate) fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    let fd = openat(CWD, root, OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC, Mode::empty()).unwrap();
    collect(root, Path::new(""), fd, &mut found);
    let mut firsts = HashMap::new();
    let mut result = BTreeMap::new();
    for (path, (stat, mut facts)) in found {
        let first = firsts.entry((stat.stx_dev_minor, stat.stx_ino)).or_insert_with(|| path.clone());
        facts.first.clone_from(first);
        result.insert(path, facts);
    }
    result
}

fn collect(root: &Path, path: &Path, fd: OwnedFd, found: &mut BTreeMap<PathBuf, (Statx, Facts)>) {
    let stat = statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).unwrap();
    found.insert(path.to_owned(), (stat, facts_of(root, path, fd.as_fd(), c".", &stat)));
    for entry in Dir::read_from(&fd).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let path = path.join(OsStr::from_bytes(name.to_bytes()));
        let stat = statx(&fd, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS).unwrap();
        if FileType::from_raw_mode(stat.stx_mode.into()).is_dir() {
            let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            collect(root, &path, openat(&fd, name, flags, Mode::empty()).unwrap(), found);
        } else {
            found.insert(path.clone(), (stat, facts_of(root, &path, fd.as_fd(), name, &stat)));
        }
    }
}

fn facts_of(root: &Path, path: &Path, at: BorrowedFd<'_>, name: &CStr, stat: &Statx) -> Facts {
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    let (mut data, mut parts) = (None, None);
    if kind.is_file() {
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(at, name, flags, Mode::empty()).unwrap());
        parts = data_parts(&file, stat.stx_size);
        let mut all = Vec::new();
        if stat.stx_size < 1 << 26 {
            all.resize(usize::try_from(stat.stx_size).unwrap(), 0);
            file.read_exact_at(&mut all, 0).unwrap();
        }
        data = Some(all);
    }
    let target = kind.is_symlink().then(|| readlinkat(at, name, Vec::new()).unwrap().into_bytes());
    let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
    Facts {
        mode: stat.stx_mode,
        owner: (stat.stx_uid, stat.stx_gid),
        links: if kind.is_dir() { 0 } else { stat.stx_nlink }, // filesystems count links of directories differently
        first: PathBuf::new(),
        device: (stat.stx_rdev_major, stat.stx_rdev_minor),
        times: [time(stat.stx_atime), time(stat.stx_mtime)],
        xattrs: xattrs(&root.join(path)),
        target,
        data,
        parts,
    }
}

fn data_parts(file: &File, size: u64) -> Option<Vec<(u64, u64)>> {
    const XFS: i64 = 0x5846_5342;
    if size < 1 << 30 && rustix::fs::fstatfs(file).unwrap().f_type == XFS {
        return None; // it preallocates space behind the data and may report it as data
    }
    let (mut at, mut parts) = (0, Vec::new());
    while at < size {
        let Ok(start) = seek(file, SeekFrom::Data(at)) else { break };
        at = seek(file, SeekFrom::Hole(start)).unwrap();
        parts.push((start, at));
    }
    Some(parts)
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_owned(), value)
        })
        .collect()
}

pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// An ACL that lets one more user write.
pub(crate) fn acl(user: u32) -> Vec<u8> {
    let none = u32::MAX;
    let mut raw = 2_u32.to_le_bytes().to_vec();
    for (tag, allowed, id) in
        [(1_u16, 6_u16, none), (2, 6, user), (4, 4, none), (8, 7, 4321), (16, 7, none), (32, 0, none)]
    {
        raw.extend(tag.to_le_bytes());
        raw.extend(allowed.to_le_bytes());
        raw.extend(id.to_le_bytes());
    }
    raw
}

pub(crate) fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Makes a file with data in these parts and holes elsewhere.
pub(crate) fn make_sparse(path: &Path, size: u64, parts: &[(u64, usize)]) {
    let file = File::create(path).unwrap();
    for (start, length) in parts {
        file.write_all_at(&vec![b'x'; *length], *start).unwrap();
    }
    file.set_len(size).unwrap();
    file.sync_all().unwrap();
}

pub(crate) fn make_node(path: &Path, kind: FileType, mode: u32, device: (u32, u32)) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(mode), makedev(device.0, device.1)).unwrap();
}

/// Makes a symlink whose access time does not change when it is read.
pub(crate) fn make_symlink(target: impl AsRef<Path>, path: &Path) {
    symlink(target, path).unwrap();
    set_times(path, (4_000_000_000, 7), (1_000_000_001, 9));
}

/// A name, and a function that makes the tree.
pub(crate) type UnusualTree = (&'static str, fn(&Path));

pub(crate) const UNUSUAL: &[UnusualTree] = &[
    ("empty", |_| {}),
    ("sizes", |root| {
        for size in [0, 1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 1_048_579, 3 << 20] {
            fs::write(root.join(format!("{size}")), vec![b'y'; size]).unwrap();
        }
    }),
    ("holes", |root| {
        make_sparse(&root.join("all"), 1 << 20, &[]);
        make_sparse(&root.join("front"), 1 << 20, &[((1 << 20) - 4096, 4096)]);
        make_sparse(&root.join("end"), 1 << 20, &[(0, 4096)]);
        make_sparse(&root.join("middle"), 1 << 20, &[(0, 4096), (1 << 19, 8192), ((1 << 20) - 4096, 4096)]);
        make_sparse(&root.join("small"), 65536, &[(32768, 4096)]);
        make_sparse(&root.join("huge"), 1 << 40, &[(1 << 39, 4096)]);
        // The space of the attribute is as much as that of the data would be.
        for (name, data) in [("tiny", &[][..]), ("tiny-end", &[(4096, 100)])] {
            make_sparse(&root.join(name), if data.is_empty() { 2617 } else { 4196 }, data);
            set_xattr(&root.join(name), "trusted.large", &[7; 2000]);
        }
    }),
    ("modes", |root| {
        for mode in [0, 0o4755, 0o2755, 0o2644, 0o6711, 0o7777, 0o1600] {
            fs::write(root.join(format!("{mode:o}")), "x").unwrap();
            chown(root.join(format!("{mode:o}")), Some(1000), Some(2000)).unwrap();
            set_mode(&root.join(format!("{mode:o}")), mode);
            let directory = root.join(format!("directory-{mode:o}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("inside"), "x").unwrap();
            chown(&directory, None, Some(2001)).unwrap();
            set_mode(&directory, mode);
        }
    }),
    ("capabilities", |root| {
        fs::write(root.join("ping"), "x").unwrap();
        chown(root.join("ping"), Some(1000), Some(1000)).unwrap();
        set_mode(&root.join("ping"), 0o6755);
        let mut capability = 0x0200_0001_u32.to_le_bytes().to_vec();
        capability.extend([0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        set_xattr(&root.join("ping"), "security.capability", &capability);
    }),
    ("times", |root| {
        for (name, seconds) in [("before", -86_400), ("epoch", 0), ("far", 10_000_000_000)] {
            fs::write(root.join(name), name).unwrap();
            set_times(&root.join(name), (seconds, 123_456_789), (seconds, 987_654_321));
        }
        fs::create_dir(root.join("directory")).unwrap();
        fs::write(root.join("directory/inside"), "x").unwrap();
        set_times(&root.join("directory"), (1, 1), (2, 2));
        set_times(root, (3, 3), (4, 4));
    }),
    ("attributes", |root| {
        fs::write(root.join("file"), "x").unwrap();
        fs::create_dir(root.join("directory")).unwrap();
        make_symlink("nowhere", &root.join("symlink"));
        make_node(&root.join("fifo"), FileType::Fifo, 0o600, (0, 0));
        for path in [root, &root.join("file"), &root.join("directory")] {
            set_xattr(path, "user.empty", b"");
            set_xattr(path, "user.big", &[7; 2000]);
        }
        for path in
            [root, &root.join("file"), &root.join("directory"), &root.join("symlink"), &root.join("fifo")]
        {
            set_xattr(path, "trusted.overlay.opaque", b"y");
            set_xattr(path, "security.orlop-test", b"label");
        }
        set_mode(&root.join("file"), 0o400);
    }),
    ("acls", |root| {
        fs::create_dir_all(root.join("a/b")).unwrap();
        for directory in [root, &root.join("a"), &root.join("a/b")] {
            fs::write(directory.join("plain"), "x").unwrap();
            fs::write(directory.join("with"), "x").unwrap();
            set_xattr(&directory.join("with"), "system.posix_acl_access", &acl(1234));
            make_node(&directory.join("fifo"), FileType::Fifo, 0o600, (0, 0));
            set_xattr(&directory.join("fifo"), "system.posix_acl_access", &acl(1235));
        }
        for directory in [root, &root.join("a")] {
            set_xattr(directory, "system.posix_acl_default", &acl(1236));
            set_xattr(directory, "system.posix_acl_access", &acl(1237));
            set_mode(directory, 0o2770);
        }
        fs::write(root.join("a/inherited"), "x").unwrap();
    }),
    ("symlinks", |root| {
        make_symlink("/etc/passwd", &root.join("absolute"));
        make_symlink("..", &root.join("up"));
        make_symlink(".", &root.join("here"));
        make_symlink("no/such/thing", &root.join("dangling"));
        make_symlink("x".repeat(1000), &root.join("long"));
        lchown(root.join("up"), Some(1000), Some(1001)).unwrap();
    }),
    ("nodes", |root| {
        make_node(&root.join("fifo"), FileType::Fifo, 0o666, (0, 0));
        make_node(&root.join("whiteout"), FileType::CharacterDevice, 0, (0, 0));
        make_node(&root.join("null"), FileType::CharacterDevice, 0o666, (1, 3));
        make_node(&root.join("big"), FileType::BlockDevice, 0o660, (259, 262_143));
        drop(UnixListener::bind(root.join("socket")).unwrap());
        for (at, name) in ["fifo", "null", "big", "socket"].into_iter().enumerate() {
            chown(root.join(name), Some(1000), Some(6)).unwrap();
            set_mode(&root.join(name), 0o4662);
            set_times(&root.join(name), (5, 5), (i64::try_from(at).unwrap(), 6));
        }
    }),
    ("hard links", |root| {
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::write(root.join("file"), "once").unwrap();
        set_xattr(&root.join("file"), "user.a", b"b");
        for name in ["again", "a/x", "a/b/x", "a/b/c/x"] {
            fs::hard_link(root.join("file"), root.join(name)).unwrap();
        }
        make_symlink("target", &root.join("symlink"));
        fs::hard_link(root.join("symlink"), root.join("a/symlink")).unwrap();
        set_times(&root.join("symlink"), (4_000_000_000, 7), (1_000_000_001, 9));
        make_node(&root.join("fifo"), FileType::Fifo, 0o600, (0, 0));
        fs::hard_link(root.join("fifo"), root.join("a/fifo")).unwrap();
        make_node(&root.join("null"), FileType::CharacterDevice, 0o600, (1, 3));
        fs::hard_link(root.join("null"), root.join("a/null")).unwrap();
        for at in 0..2000 {
            let name = format!("a/many-{}", at / 2);
            if at % 2 == 0 {
                fs::write(root.join(&name), name).unwrap();
            } else {
                fs::hard_link(root.join(&name), root.join(format!("a/b/c/{}", at / 2))).unwrap();
            }
        }
        set_times(root, (3, 3), (4, 4));
    }),
    ("names", |root| {
        for name in
            [b"new\nline".as_slice(), b"\xff\xfe", b" ", b"-rf", b"\\", b"*", &[b'n'; 255], "ü".as_bytes()]
        {
            let path = root.join(OsStr::from_bytes(name));
            fs::create_dir(&path).unwrap();
            fs::write(path.join(OsStr::from_bytes(name)), "x").unwrap();
        }
        fs::write(root.join("...."), "x").unwrap();
    }),
    ("deep and wide", |root| {
        let mut path = root.to_owned();
        for depth in 0..40 {
            for at in 0..20 {
                fs::write(path.join(format!("file-{at}")), format!("{depth}")).unwrap();
                fs::create_dir(path.join(format!("directory-{at}"))).unwrap();
            }
            path.push("directory-7");
        }
        for at in 0..3000 {
            fs::write(root.join(format!("{at:0200}")), "").unwrap();
            if at % 10 == 0 {
                fs::create_dir(root.join(format!("directory-{at:0100}"))).unwrap();
            }
        }
    }),
];
