//! Scans all mount namespaces, by the kernel's own list of them ([`namespaces`]) or by `/proc`, where each namespace is
//! read once.
//!
//! Most processes are in a namespace that has been read and cost one `readlinkat`. Of most lines of a mount table only
//! the first fields are parsed: a line is copied only if it is of a wanted filesystem.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::error::{Context as _, Result};
use crate::mount::location::{ContainingMount, FsLocation, MountId, below};
use crate::mount::mountinfo::{Device, Reader};

use super::namespaces::{self, FoundMounts, ScanCache};
use super::record::MountRecord;

/// The result of a scan.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The wanted mounts that are attached in the scanner's own namespace.
    containing_mounts: Vec<(MountId, ContainingMount)>,
    /// All mounts of the wanted filesystems, sorted by filesystem and root.
    records: Vec<MountRecord>,
    /// Number of processes that could not be inspected, for lack of privileges.
    pub(super) uninspectable: usize,
    /// Whether the namespaces were scanned without their processes, so that the users of a mount are unknown.
    pub(super) users_unknown: bool,
    /// Whether it is known that no namespace has an overlay.
    pub(super) without_overlays: bool,
}

impl Scan {
    /// Looks the wanted mounts up; returns an empty scan and the filesystems to scan for. A mount that is attached
    /// nowhere has the filesystem that stat(2) reported.
    fn new(wanted: &BTreeMap<MountId, Device>) -> Result<(Self, Vec<Device>)> {
        let (mut scan, mut devices) = (Self::default(), Vec::with_capacity(wanted.len()));
        for (id, st_dev) in wanted {
            match ContainingMount::find(*id)? {
                None => devices.push(*st_dev),
                Some(mount) => {
                    devices.push(mount.device);
                    scan.containing_mounts.push((*id, mount));
                }
            }
        }
        devices.sort_unstable();
        devices.dedup();
        Ok((scan, devices))
    }

    /// Returns the wanted mount with this id.
    pub(super) fn containing_mount(&self, id: MountId) -> Option<&ContainingMount> {
        self.containing_mounts.iter().find(|(wanted, _)| *wanted == id).map(|(_, mount)| mount)
    }

    /// Returns the mounts whose root is this directory or is below it.
    pub(super) fn mounts_in(&self, dir: &FsLocation) -> Vec<&MountRecord> {
        let start = self.records.partition_point(|record| record.device < dir.device);
        let of_device = self.records[start..].iter().take_while(|record| record.device == dir.device);
        if dir.detached {
            return of_device.filter(|record| may_be_below(&record.root, &dir.path)).collect();
        }
        // Roots that start with the path are adjacent. Siblings with a longer name, such as `a-b` beside `a`, are among
        // them and are filtered out.
        let path = &dir.path[..];
        let start =
            self.records.partition_point(|record| (record.device, &record.root[..]) < (dir.device, path));
        let candidates = self.records[start..].iter();
        candidates
            .take_while(|record| record.device == dir.device && record.root.starts_with(path))
            .filter(|record| below(&record.root, path).is_some())
            .collect()
    }
}

/// Reports whether `root` is, or is below, a directory whose path ends in `suffix`. The root of the pool's detached
/// mount is unknown, so this may report a false use on the same filesystem, but it never misses one.
fn may_be_below(root: &[u8], suffix: &[u8]) -> bool {
    let slashes = root.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| at).any(|at| below(&root[at..], suffix).is_some())
}

/// Scans for mounts of the filesystems that the mounts `wanted` are of: by namespaces where the kernel allows that,
/// otherwise by the processes of `proc`.
pub(super) fn run(proc: &Path, wanted: &BTreeMap<MountId, Device>, cache: &mut ScanCache) -> Result<Scan> {
    let (mut scan, devices) = Scan::new(wanted)?;
    match namespaces::mounts_in_all_namespaces(proc, &devices, cache) {
        Some(FoundMounts { records, any_overlay }) => {
            (scan.records, scan.without_overlays) = (records, !any_overlay);
            scan.users_unknown = true;
            scan.records.sort_unstable();
            Ok(scan)
        }
        None => run_over_proc(proc, wanted),
    }
}

/// Like [`run`], always by processes, so that the result names a process for every mount in another namespace.
pub(super) fn run_over_proc(proc: &Path, wanted: &BTreeMap<MountId, Device>) -> Result<Scan> {
    let dir = open_proc(proc)?;
    let (scan, devices) = Scan::new(wanted)?;
    let mut scanner = ProcScanner::new(dir.as_fd(), scan, devices);
    scanner.read_own_table().context(|| format!("read {}/thread-self/mountinfo", proc.display()))?;
    scanner.read_all().context(|| format!("list {}", proc.display()))?;
    scanner.scan.records.sort_unstable();
    Ok(scanner.scan)
}

pub(super) fn open_proc(proc: &Path) -> Result<OwnedFd> {
    open(CWD, proc, OFlags::DIRECTORY).context(|| format!("open {}", proc.display()))
}

/// A scan in progress.
struct ProcScanner<'a> {
    proc: BorrowedFd<'a>,
    reader: Reader,
    path_buffer: Vec<u8>,
    devices: Vec<Device>,
    /// Namespaces whose whole table has been read.
    complete: BTreeSet<u64>,
    /// Processes with another root directory, such as after chroot(2), by namespace and root. Their tables show a part
    /// of the namespace.
    chrooted: BTreeMap<(u64, Vec<u8>), Vec<i32>>,
    scan: Scan,
}

impl<'a> ProcScanner<'a> {
    fn new(proc: BorrowedFd<'a>, scan: Scan, devices: Vec<Device>) -> Self {
        Self {
            proc,
            reader: Reader::default(),
            path_buffer: Vec::with_capacity(32),
            devices,
            complete: BTreeSet::new(),
            chrooted: BTreeMap::new(),
            scan,
        }
    }

    /// Reads the scanner's own table.
    fn read_own_table(&mut self) -> Result<(), Errno> {
        let file = open(self.proc, "thread-self/mountinfo", OFlags::empty())?;
        let (devices, records) = (&self.devices, &mut self.scan.records);
        self.reader.each(file, |line| {
            if devices.contains(&line.device) {
                records.extend(MountRecord::from_line(&line, None));
            }
            ControlFlow::Continue(())
        })?;
        let mut link = [MaybeUninit::uninit(); 64];
        self.complete.extend(namespace_id(self.proc, b"thread-self/ns/mnt", &mut link)?);
        Ok(())
    }

    /// Reads the tables of the other namespaces.
    fn read_all(&mut self) -> Result<(), Errno> {
        let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
        let mut entries = RawDir::new(self.proc, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let pid =
                std::str::from_utf8(entry.file_name().to_bytes()).ok().and_then(|name| name.parse().ok());
            if let Some(pid) = pid {
                self.visit_process(pid);
            }
        }
        for ((namespace, _), pids) in std::mem::take(&mut self.chrooted) {
            if !self.complete.contains(&namespace) {
                // The table of one process is enough; processes that have ended are skipped.
                let _any_read = pids.into_iter().any(|pid| self.read_table(pid).is_ok());
            }
        }
        Ok(())
    }

    /// Reads the table of a process if its namespace has not been read. A process that ends meanwhile is skipped:
    /// another process of its namespace follows, or the namespace has ended too.
    fn visit_process(&mut self, pid: i32) {
        let mut link = [MaybeUninit::uninit(); 64];
        let namespace =
            match namespace_id(self.proc, proc_path(&mut self.path_buffer, pid, "ns/mnt"), &mut link) {
                Ok(Some(namespace)) if !self.complete.contains(&namespace) => namespace,
                Err(Errno::ACCESS | Errno::PERM) => {
                    self.scan.uninspectable += 1;
                    return;
                }
                _ => return,
            };
        let root =
            rustix::fs::readlinkat(self.proc, proc_path(&mut self.path_buffer, pid, "root"), Vec::new());
        match root.map(std::ffi::CString::into_bytes) {
            Ok(root) if root == b"/" => {
                if self.read_table(pid).is_ok() {
                    self.complete.insert(namespace);
                }
            }
            Ok(root) => self.chrooted.entry((namespace, root)).or_default().push(pid),
            Err(_) => {}
        }
    }

    /// Reads the table of a process. Keeps the lines read before a failure, which are valid.
    fn read_table(&mut self, pid: i32) -> Result<(), Errno> {
        let file = open(self.proc, proc_path(&mut self.path_buffer, pid, "mountinfo"), OFlags::empty())?;
        let (devices, records) = (&self.devices, &mut self.scan.records);
        self.reader.each(file, |line| {
            if devices.contains(&line.device) {
                records.extend(MountRecord::from_line(&line, Some(pid)));
            }
            ControlFlow::Continue(())
        })
    }
}

fn open(dir: impl AsFd, path: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty())
}

/// Writes `<pid>/<file>` into a buffer, which is reused.
fn proc_path<'b>(buffer: &'b mut Vec<u8>, pid: i32, file: &str) -> &'b [u8] {
    buffer.clear();
    let _never_fails = write!(buffer, "{pid}/{file}");
    buffer
}

/// Reads the id of a namespace, such as 4026531841 from the link `mnt:[4026531841]`.
fn namespace_id(
    proc: BorrowedFd<'_>,
    path: &[u8],
    buffer: &mut [MaybeUninit<u8>],
) -> Result<Option<u64>, Errno> {
    let (link, _) = rustix::fs::readlinkat_raw(proc, path, buffer)?;
    let id = link.strip_prefix(b"mnt:[").and_then(|link| link.strip_suffix(b"]"));
    Ok(id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Device = Device { major: 8, minor: 1 };

    fn scan(roots: &[(u32, &str)]) -> Scan {
        let record = |(minor, root): &(u32, &str)| MountRecord {
            device: Device { major: 8, minor: *minor },
            root: root.as_bytes().to_vec(),
            pid: None,
            target: Vec::new(),
            group: None,
            master: None,
        };
        let mut records: Vec<MountRecord> = roots.iter().map(record).collect();
        records.sort_unstable();
        Scan { records, ..Scan::default() }
    }

    fn found(scan: &Scan, path: &str, detached: bool) -> Vec<String> {
        let dir = FsLocation { device: DEVICE, path: path.into(), detached };
        let roots = scan.mounts_in(&dir).into_iter().map(|record| record.root.clone());
        roots.map(|root| String::from_utf8(root).unwrap()).collect()
    }

    #[test]
    fn mounts_in_a_directory_are_found_and_those_of_its_siblings_are_not() {
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
    fn on_a_detached_mount_roots_are_matched_by_the_end_of_their_path() {
        let scan = scan(&[(1, "/"), (1, "/v/a"), (1, "/export/v/a/x"), (1, "/export/v/ab"), (2, "/v/a")]);
        assert_eq!(found(&scan, "/v/a", true), ["/export/v/a/x", "/v/a"]);
    }

    #[test]
    fn a_missing_proc_is_an_error() {
        assert!(run(Path::new("/nonexistent"), &BTreeMap::new(), &mut ScanCache::default()).is_err());
    }

    #[test]
    fn scans_by_namespace_and_by_process_find_the_same_mounts() {
        use crate::mount::location::MountedDir;
        let root = std::fs::File::open("/").unwrap();
        let dir = MountedDir::of(root.as_fd()).unwrap();
        let (wanted, mut cache) = (BTreeMap::from([(dir.mount, dir.device)]), ScanCache::default());
        let mounts = |scan: &Scan| -> BTreeSet<_> {
            let records = scan.records.iter();
            records.map(|record| (record.root.clone(), record.target.clone(), record.group)).collect()
        };
        // Retry, because other processes mount and unmount meanwhile.
        for _ in 0..50 {
            let before = run_over_proc(Path::new("/proc"), &wanted).unwrap();
            let by_namespace = run(Path::new("/proc"), &wanted, &mut cache).unwrap();
            let after = run_over_proc(Path::new("/proc"), &wanted).unwrap();
            let (before, after) = (mounts(&before), mounts(&after));
            if before == after && before.is_subset(&mounts(&by_namespace)) {
                return;
            }
        }
        panic!("the two kinds of scan find different mounts");
    }
}
