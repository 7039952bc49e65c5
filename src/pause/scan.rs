//! One scan of all processes: which consume a volume, in which cgroups they are, and whether others can write.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::cgroups::Hierarchies;
use super::mounts::Mounts;
use super::plan::Plan;
use super::process::{Process, each_number};
use super::writers::Writers;
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::location::{ContainingMount, FsLocation, MountedDir};
use crate::mount::mountinfo::Device;

/// How often a process may refuse to be inspected until that is final, and the time between.
const REFUSALS: usize = 5;
const REFUSED_FOR: Duration = Duration::from_millis(2);
/// Scans that run at once; the others wait. A process that blocks its readers would take a thread for each scan.
const MAX_RUNNING: usize = 8;

/// Where volumes are.
#[derive(Debug)]
pub(super) struct Volumes {
    pub(super) locations: Vec<FsLocation>,
    /// Their filesystems as `stat` reports them, which differs from the mount table on btrfs.
    pub(super) st_devs: Vec<Device>,
    pub(super) dirs: Vec<OwnedFd>,
}

impl Volumes {
    /// Locates these directories.
    pub(super) fn of(dirs: &[BorrowedFd<'_>]) -> Result<Self> {
        let mut volumes = Self { locations: Vec::new(), st_devs: Vec::new(), dirs: Vec::new() };
        for dir in dirs {
            volumes.dirs.push(dir.try_clone_to_owned().context(|| "duplicate a descriptor")?);
            let dir = MountedDir::of(*dir)?;
            let containing = ContainingMount::find(dir.mount)?.ok_or_else(|| {
                Error::new(Kind::Unavailable, "the mount of the pool is no longer attached: restart orlop")
            })?;
            volumes.locations.push(dir.location(Some(&containing))?);
            volumes.st_devs.push(dir.device);
        }
        Ok(volumes)
    }
}

/// Scans the processes of a `/proc`, each time in a thread of its own. A process can block its reader: the memory map
/// is locked while a page comes from a FUSE server.
#[derive(Debug, Clone)]
pub(super) struct Scanner {
    /// The directory.
    pub(super) proc: PathBuf,
    /// The process that was read last.
    current: Arc<AtomicI32>,
    /// `None`: no scan waits for another.
    turns: Option<Arc<Turns>>,
}

impl Scanner {
    /// Creates a scanner.
    pub(super) fn new(proc: PathBuf) -> Self {
        Self { proc, current: Arc::default(), turns: Some(Arc::default()) }
    }

    /// A scanner for scans during a pause, which wait for no other scan: the containers wait for them, and each pause has one.
    pub(super) fn for_pause(&self) -> Self {
        Self { turns: None, ..self.clone() }
    }

    /// Reports whether a process consumes one of the volumes.
    pub(super) fn is_consumed(&self, volumes: &Arc<Volumes>, limit: Duration) -> Result<bool> {
        let volumes = Arc::clone(volumes);
        self.in_time(limit, move |proc, progress| {
            let scan = Scan::take(proc, &volumes, progress)?;
            Ok(scan.consumers(&volumes).next().is_some())
        })
    }

    /// Plans what to freeze so that nothing writes to the volumes. `None`: nothing consumes them. Fails if a process elsewhere
    /// can write to them; most of the time is spent on that, so `writers` can turn it off.
    pub(super) fn plan(
        &self,
        volumes: &Arc<Volumes>,
        limit: Duration,
        writers: OtherWriters,
    ) -> Result<Option<Plan>> {
        let volumes = Arc::clone(volumes);
        self.in_time(limit, move |proc, progress| {
            let hierarchies = Hierarchies::of_host(proc)?;
            let scan = Scan::take(proc, &volumes, progress)?;
            let consumers: Vec<&Seen> = scan.consumers(&volumes).collect();
            let plan = Plan::make(&scan, &hierarchies, &consumers)?;
            if writers == OtherWriters::Refused {
                scan.refuse_writers(&volumes, &plan, progress)?;
            }
            Ok((!consumers.is_empty()).then_some(plan))
        })
    }

    fn in_time<T: Send + 'static>(
        &self,
        limit: Duration,
        scan: impl FnOnce(&Path, &Progress) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let late = || {
            let pid = self.current.load(Ordering::Relaxed);
            Error::new(Kind::Busy, format!("reading the processes took too long, the last one {pid}: retry"))
        };
        let turn = match &self.turns {
            Some(turns) => Some(turns.take(deadline).ok_or_else(late)?),
            None => None,
        };
        let (sender, result) = mpsc::channel();
        let progress = Progress { current: Arc::clone(&self.current), deadline };
        let proc = self.proc.clone();
        let run = move || {
            let scanned = scan(&proc, &progress);
            drop(turn);
            drop(sender.send(scanned));
        };
        std::thread::Builder::new().name("scan".to_owned()).spawn(run).context(|| "start a thread")?;
        let left = deadline.saturating_duration_since(Instant::now());
        result.recv_timeout(left).unwrap_or_else(|_| Err(late()))
    }
}

/// The turns of the scans.
#[derive(Debug, Default)]
struct Turns {
    running: Mutex<usize>,
    ended: Condvar,
}

/// The right to scan, until it is dropped.
struct Turn(Arc<Turns>);

impl Turns {
    /// Waits for a turn; `None` if none is free in time.
    fn take(self: &Arc<Self>, deadline: Instant) -> Option<Turn> {
        let left = deadline.saturating_duration_since(Instant::now());
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.wait_timeout_while(running, left, |running| *running >= MAX_RUNNING);
        let (mut running, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *running += 1;
        Some(Turn(Arc::clone(self)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_one();
    }
}

/// What a scan does about processes that can write to the volumes and are not to be frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OtherWriters {
    Refused,
    NotSought,
}

/// How far a scan is.
#[derive(Debug)]
struct Progress {
    current: Arc<AtomicI32>,
    deadline: Instant,
}

impl Progress {
    fn at(&self, pid: i32) -> Result<()> {
        self.current.store(pid, Ordering::Relaxed);
        if Instant::now() < self.deadline {
            return Ok(());
        }
        Err(Error::new(Kind::Busy, "there are too many processes and open files to read in time: retry"))
    }
}

/// A process that a scan has seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// Its id.
    pub(super) pid: i32,
    /// The text of its `cgroup`.
    pub(super) cgroup: String,
    namespace: Vec<u8>,
}

/// All processes at some moment.
#[derive(Debug)]
pub(super) struct Scan {
    proc: OwnedFd,
    own_pid: Option<i32>,
    /// The mount namespaces of process 1, of orlop, and of the thread.
    host: BTreeSet<Vec<u8>>,
    processes: Vec<Seen>,
    mounts: Mounts,
}

impl Scan {
    fn take(proc: &Path, volumes: &Volumes, progress: &Progress) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(CWD, proc, flags, Mode::empty());
        let listing = open().context(|| format!("open {}", proc.display()))?;
        let dir = open().context(|| format!("open {}", proc.display()))?;
        let link =
            |path: &str| rustix::fs::readlinkat(&dir, path, Vec::new()).map(std::ffi::CString::into_bytes);
        let own_pid = link("self").ok().and_then(|pid| std::str::from_utf8(&pid).ok()?.parse().ok());
        let namespace = |of: &str| match link(&format!("{of}/ns/mnt")) {
            Err(Errno::ACCESS | Errno::PERM) if of == "1" => Ok(None),
            namespace => namespace.map(Some).map_err(uninspectable),
        };
        let host = ["1", "self", "thread-self"].into_iter().map(namespace).collect::<Result<Vec<_>>>()?;
        let host = host.into_iter().flatten().collect();
        let mut devices: Vec<Device> = volumes.locations.iter().map(|volume| volume.device).collect();
        devices.dedup();
        let mut scan = Self { proc: dir, own_pid, host, processes: Vec::new(), mounts: Mounts::of(devices) };
        scan.read_host(progress)?;
        each_number(listing.as_fd(), |pid| {
            progress.at(pid).map_err(Failure::Other)?;
            match scan.visit_again(pid) {
                Err(error) if has_ended(error) => Ok(()),
                result => result.map_err(Failure::Errno),
            }
        })
        .map_err(Failure::into_error)?;
        Ok(scan)
    }

    /// Reads the mounts of the thread, whose namespace may be of no process.
    fn read_host(&mut self, progress: &Progress) -> Result<()> {
        progress.at(self.own_pid.unwrap_or_default())?;
        let thread =
            Process::of_thread(&self.proc).and_then(|thread| Ok((thread.mount_namespace()?, thread)));
        let (namespace, thread) = thread.context(|| "open the directory of the thread in /proc")?;
        self.mounts.read(&thread, &namespace).context(|| "read the mounts of the thread")
    }

    /// Visits a process, again if it refuses. A refusal may be of the moment: a process that ends or executes a program has
    /// been seen to refuse once on Linux 6.18.
    fn visit_again(&mut self, pid: i32) -> Result<(), Errno> {
        for _ in 0..REFUSALS {
            match self.visit(pid) {
                Err(Errno::ACCESS | Errno::PERM) => std::thread::park_timeout(REFUSED_FOR),
                visited => return visited,
            }
        }
        self.visit(pid)
    }

    fn visit(&mut self, pid: i32) -> Result<(), Errno> {
        let process = Process::open(&self.proc, pid)?;
        let namespace = match process.mount_namespace() {
            // Process 1 may have rights that orlop lacks. It is of the host in any case.
            Err(Errno::ACCESS | Errno::PERM) if pid == 1 => Vec::new(),
            namespace => namespace?,
        };
        if !namespace.is_empty() {
            self.mounts.read(&process, &namespace)?;
        }
        self.processes.push(Seen { pid, cgroup: process.cgroup()?, namespace });
        Ok(())
    }

    fn consumers<'a>(&'a self, volumes: &Volumes) -> impl Iterator<Item = &'a Seen> {
        let namespaces = self.mounts.consuming(&volumes.locations, &self.host);
        self.processes.iter().filter(move |process| namespaces.contains(&process.namespace[..]))
    }

    /// All processes.
    pub(super) fn processes(&self) -> &[Seen] {
        &self.processes
    }

    /// Opens a process, unless it has ended.
    pub(super) fn open(&self, seen: &Seen) -> Option<Process> {
        Process::open(&self.proc, seen.pid).ok()
    }

    /// Reports whether a process is this one, process 1, or in the mount namespace of one of them.
    pub(super) fn is_of_host(&self, seen: &Seen) -> bool {
        seen.pid == 1 || Some(seen.pid) == self.own_pid || self.host.contains(&seen.namespace)
    }

    /// Fails if a process outside of the cgroups of the plan can write to a volume.
    fn refuse_writers(&self, volumes: &Volumes, plan: &Plan, progress: &Progress) -> Result<()> {
        let writers = Writers { volumes, mounts: &self.mounts };
        let is_trusted = |seen: &&Seen| seen.pid == 1 || Some(seen.pid) == self.own_pid;
        for seen in self.processes.iter().filter(|seen| !is_trusted(seen)) {
            progress.at(seen.pid)?;
            if plan.contains(&seen.cgroup) {
                continue;
            }
            let Some(process) = self.open(seen) else { continue };
            let Some(what) = writers.find(&process).map_err(uninspectable)? else { continue };
            // The id may be of another process by now.
            if process.cgroup().is_ok_and(|cgroup| !plan.contains(&cgroup)) {
                let text = format!(
                    "process {} ({}) {what} and is in no container that can be paused: stop it, or use \
                     consistency: none",
                    seen.pid,
                    process.command()
                );
                return Err(Error::new(Kind::InUse, text));
            }
        }
        Ok(())
    }
}

/// A failure while the processes are listed.
enum Failure {
    Errno(Errno),
    Other(Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::Errno(errno) => uninspectable(errno),
            Self::Other(error) => error,
        }
    }
}

fn uninspectable(errno: Errno) -> Error {
    match errno {
        Errno::ACCESS | Errno::PERM => {
            let text =
                "a process cannot be inspected: run orlop with CAP_SYS_PTRACE, or use consistency: none";
            Error::caused(Kind::Unsupported, text, std::io::Error::from(errno))
        }
        _ => Error::of_system_call(errno, "read the processes"),
    }
}

/// Reports whether a call failed because the process has ended.
fn has_ended(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::SRCH | Errno::INVAL)
}
