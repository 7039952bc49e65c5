//! One pass over all mount namespaces: by the kernel's own list of them ([`namespaces`]) or by `/proc`, where each namespace
//! that is found is read once.
//!
//! Most processes are in a namespace that has been read, and cost one `readlinkat`. A line of a mount table costs the
//! cutting of its first fields unless it is of a filesystem that was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::error::{Context as _, Result};
use crate::mount::location::{Anchor, FsLocation, below};
use crate::mount::mountinfo::{Device, Reader};

use super::namespaces::{self, Known};
use super::record::MountRecord;

/// What a scan has found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The mounts asked for that are in the scanner's own table.
    anchors: Vec<Anchor>,
    /// The mounts of the filesystems asked for, by filesystem and root.
    seen: Vec<MountRecord>,
    /// How many processes could not be looked at, for want of the right to.
    pub(super) refused: usize,
    /// The other namespaces were looked at, not their processes: who uses what is not known.
    pub(super) nameless: bool,
}

impl Scan {
    /// The mount of this number.
    pub(super) fn anchor(&self, mount: u64) -> Option<&Anchor> {
        self.anchors.iter().find(|anchor| anchor.mount == mount)
    }

    /// The mounts whose root is in this place.
    pub(super) fn in_place(&self, place: &FsLocation) -> Vec<&MountRecord> {
        let from = self.seen.partition_point(|seen| seen.device < place.device);
        let of_device = self.seen[from..].iter().take_while(|seen| seen.device == place.device);
        if place.loose {
            return of_device.filter(|seen| lies_somewhere(&seen.root, &place.path)).collect();
        }
        // What begins with the path stands together; between it and what is below stand names that are longer.
        let path = &place.path[..];
        let from = self.seen.partition_point(|seen| (seen.device, &seen.root[..]) < (place.device, path));
        let near = self.seen[from..].iter();
        near.take_while(|seen| seen.device == place.device && seen.root.starts_with(path))
            .filter(|seen| below(&seen.root, path).is_some())
            .collect()
    }
}

/// Whether `root` is or lies below a directory whose path ends in `end`. Where the detached mount of the pool has its
/// own root is not known, so this may see a use too many, on the same filesystem, but never one too few.
fn lies_somewhere(root: &[u8], end: &[u8]) -> bool {
    let slashes = root.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| at).any(|at| below(&root[at..], end).is_some())
}

/// Scans for mounts of the filesystems that the mounts `asked` are of: the namespaces themselves where the kernel lets
/// us, else the processes of `proc`.
pub(super) fn run(proc: &Path, asked: &BTreeMap<u64, Device>, known: &mut Known) -> Result<Scan> {
    let dir = open(CWD, proc, OFlags::DIRECTORY).context(|| format!("open {}", proc.display()))?;
    let mut pass = Pass::begin(proc, dir.as_fd(), asked)?;
    match namespaces::others(dir.as_fd(), &pass.devices, known) {
        Some(seen) => {
            pass.scan.seen.extend(seen);
            pass.scan.nameless = true;
        }
        None => pass.others().context(|| format!("list {}", proc.display()))?,
    }
    pass.scan.seen.sort_unstable();
    Ok(pass.scan)
}

/// Scans the processes, and so knows who uses what.
pub(super) fn processes(proc: &Path, asked: &BTreeMap<u64, Device>) -> Result<Scan> {
    let dir = open(CWD, proc, OFlags::DIRECTORY).context(|| format!("open {}", proc.display()))?;
    let mut pass = Pass::begin(proc, dir.as_fd(), asked)?;
    pass.others().context(|| format!("list {}", proc.display()))?;
    pass.scan.seen.sort_unstable();
    Ok(pass.scan)
}

/// A scan under way.
struct Pass<'a> {
    proc: BorrowedFd<'a>,
    reader: Reader,
    name: Vec<u8>,
    devices: Vec<Device>,
    /// The namespaces that have been read whole.
    read: BTreeSet<u64>,
    /// The processes that have a root of their own, by namespace and root: they see a part of their table.
    partial: BTreeMap<(u64, Vec<u8>), Vec<i32>>,
    scan: Scan,
}

impl<'a> Pass<'a> {
    /// Begins with the scanner's own table.
    fn begin(path: &Path, proc: BorrowedFd<'a>, asked: &BTreeMap<u64, Device>) -> Result<Self> {
        let mut pass = Self {
            proc,
            reader: Reader::default(),
            name: Vec::with_capacity(32),
            devices: Vec::new(),
            read: BTreeSet::new(),
            partial: BTreeMap::new(),
            scan: Scan::default(),
        };
        pass.own(asked).context(|| format!("read {}/thread-self/mountinfo", path.display()))?;
        Ok(pass)
    }

    /// Reads the scanner's own table, which also tells what filesystems to look for. Of this one table all lines are
    /// kept until that is known.
    fn own(&mut self, asked: &BTreeMap<u64, Device>) -> Result<(), Errno> {
        let file = open(self.proc, "thread-self/mountinfo", OFlags::empty())?;
        let (anchors, mut all) = (&mut self.scan.anchors, Vec::new());
        self.reader.each(file, |line| {
            if asked.contains_key(&line.id) {
                anchors.push(Anchor::of(&line));
            }
            all.extend(MountRecord::of(&line, None));
            ControlFlow::Continue(())
        })?;
        let device = |(mount, by_stat): (&u64, &Device)| {
            let anchor = self.scan.anchors.iter().find(|anchor| anchor.mount == *mount);
            anchor.map_or(*by_stat, |anchor| anchor.device)
        };
        self.devices = asked.iter().map(device).collect();
        self.devices.sort_unstable();
        self.devices.dedup();
        all.retain(|seen| self.devices.contains(&seen.device));
        self.scan.seen = all;
        let mut link = [MaybeUninit::uninit(); 64];
        self.read.extend(namespace(self.proc, b"thread-self/ns/mnt", &mut link)?);
        Ok(())
    }

    /// Reads the tables of the other namespaces.
    fn others(&mut self) -> Result<(), Errno> {
        let mut space = vec![MaybeUninit::uninit(); 32 * 1024];
        let mut entries = RawDir::new(self.proc, &mut space);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let pid =
                std::str::from_utf8(entry.file_name().to_bytes()).ok().and_then(|name| name.parse().ok());
            if let Some(pid) = pid {
                self.process(pid);
            }
        }
        for ((namespace, _), pids) in std::mem::take(&mut self.partial) {
            if !self.read.contains(&namespace) {
                let _one_was_there = pids.into_iter().any(|pid| self.table(pid).is_ok());
            }
        }
        Ok(())
    }

    /// Reads the table of one process if it is of a new namespace. A process that vanishes meanwhile is passed over:
    /// another of its namespace comes, or the namespace has gone with it.
    fn process(&mut self, pid: i32) {
        let mut link = [MaybeUninit::uninit(); 64];
        let namespace = match namespace(self.proc, path(&mut self.name, pid, "ns/mnt"), &mut link) {
            Ok(Some(namespace)) if !self.read.contains(&namespace) => namespace,
            Err(Errno::ACCESS | Errno::PERM) => {
                self.scan.refused += 1;
                return;
            }
            _ => return,
        };
        let root = rustix::fs::readlinkat(self.proc, path(&mut self.name, pid, "root"), Vec::new());
        match root.map(std::ffi::CString::into_bytes) {
            Ok(root) if root == b"/" => {
                if self.table(pid).is_ok() {
                    self.read.insert(namespace);
                }
            }
            Ok(root) => self.partial.entry((namespace, root)).or_default().push(pid),
            Err(_) => {}
        }
    }

    /// Reads the table of a process. What was read before a failure stays: it was true.
    fn table(&mut self, pid: i32) -> Result<(), Errno> {
        let file = open(self.proc, path(&mut self.name, pid, "mountinfo"), OFlags::empty())?;
        let (devices, seen) = (&self.devices, &mut self.scan.seen);
        self.reader.each(file, |line| {
            if devices.contains(&line.device) {
                seen.extend(MountRecord::of(&line, Some(pid)));
            }
            ControlFlow::Continue(())
        })
    }
}

fn open(dir: impl AsFd, path: impl rustix::path::Arg, more: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC | more, Mode::empty())
}

/// `<pid>/<file>`, in a buffer that is used again.
fn path<'b>(buffer: &'b mut Vec<u8>, pid: i32, file: &str) -> &'b [u8] {
    buffer.clear();
    let _never_fails = write!(buffer, "{pid}/{file}");
    buffer
}

/// The number in `mnt:[4026531841]`.
fn namespace(
    proc: BorrowedFd<'_>,
    path: &[u8],
    buffer: &mut [MaybeUninit<u8>],
) -> Result<Option<u64>, Errno> {
    let (link, _) = rustix::fs::readlinkat_raw(proc, path, buffer)?;
    let number = link.strip_prefix(b"mnt:[").and_then(|link| link.strip_suffix(b"]"));
    Ok(number.and_then(|number| std::str::from_utf8(number).ok()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Device = Device { major: 8, minor: 1 };

    fn scan(roots: &[(u32, &str)]) -> Scan {
        let seen = |(minor, root): &(u32, &str)| MountRecord {
            device: Device { major: 8, minor: *minor },
            root: root.as_bytes().to_vec(),
            pid: None,
            target: Vec::new(),
            group: None,
        };
        let mut seen: Vec<MountRecord> = roots.iter().map(seen).collect();
        seen.sort_unstable();
        Scan { seen, ..Scan::default() }
    }

    fn found(scan: &Scan, path: &str, loose: bool) -> Vec<String> {
        let place = FsLocation { device: DEVICE, path: path.into(), loose };
        let roots = scan.in_place(&place).into_iter().map(|seen| seen.root.clone());
        roots.map(|root| String::from_utf8(root).unwrap()).collect()
    }

    #[test]
    fn what_lies_in_a_directory_is_found_and_its_neighbours_are_not() {
        let scan = scan(&[
            (0, "/v/a"),
            (1, "/"),
            (1, "/v"),
            (1, "/v/a"),
            (1, "/v/a"),
            (1, "/v/a!"),
            (1, "/v/a-b"),
            (1, "/v/a.b/c"),
            (1, "/v/a/x"),
            (1, "/v/a/x/y"),
            (1, "/v/a0"),
            (1, "/v/ab"),
            (1, "/w"),
            (2, "/v/a"),
        ]);
        assert_eq!(found(&scan, "/v/a", false), ["/v/a", "/v/a", "/v/a/x", "/v/a/x/y"]);
        assert_eq!(found(&scan, "/v/a/x", false), ["/v/a/x", "/v/a/x/y"]);
        assert_eq!(found(&scan, "/", false).len(), 12);
        assert!(found(&scan, "/v/b", false).is_empty());
        assert!(found(&scan, "/z", false).is_empty());
    }

    #[test]
    fn on_a_detached_mount_the_end_of_the_path_decides() {
        let scan = scan(&[(1, "/"), (1, "/v/a"), (1, "/export/v/a/x"), (1, "/export/v/ab"), (2, "/v/a")]);
        assert_eq!(found(&scan, "/v/a", true), ["/export/v/a/x", "/v/a"]);
    }

    #[test]
    fn a_proc_that_is_not_there_is_an_error() {
        assert!(run(Path::new("/nonexistent"), &BTreeMap::new(), &mut Known::default()).is_err());
    }

    #[test]
    fn the_namespaces_show_what_their_processes_show() {
        use crate::mount::location::Handle;
        let root = std::fs::File::open("/").unwrap();
        let handle = Handle::of(root.as_fd()).unwrap();
        let (asked, mut known) = (BTreeMap::from([(handle.mount, handle.device)]), Known::default());
        let shown = |scan: &Scan| -> BTreeSet<_> {
            scan.seen.iter().map(|seen| (seen.root.clone(), seen.target.clone(), seen.group)).collect()
        };
        // Others come and go meanwhile.
        for _ in 0..50 {
            let before = processes(Path::new("/proc"), &asked).unwrap();
            let quick = run(Path::new("/proc"), &asked, &mut known).unwrap();
            let after = processes(Path::new("/proc"), &asked).unwrap();
            let (before, after) = (shown(&before), shown(&after));
            if before == after && before.is_subset(&shown(&quick)) {
                return;
            }
        }
        panic!("the two ways do not agree");
    }
}
