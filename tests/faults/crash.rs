//! Every operation is killed at every system call that changes something, and every such call is made to fail once.
//!
//! A child process (this program again) opens a pool and waits. strace attaches to it, so that only the system calls of
//! the operation itself count. Then the child continues. `when=N` of strace counts the calls of each thread separately,
//! and copies run in a thread of their own, so N goes up to the largest number of calls that one thread makes.
//!
//! `ORLOP_CRASH_ONLY` limits the test to operations whose name contains this text, such as `Expand`.
#![expect(clippy::wildcard_enum_match_arm, reason = "most operations share the last arm")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, OwnerSpec, Publish, Sharing};
use orlop::error::{Error, Kind, Result};
use orlop::mount::{self, MountFlags};
use orlop::volume::{OnDelete, Policy, PolicyChange, SizeRange, Source};

use crate::common::isolation::{enter_new_mount_namespace, skip, unmount_all};
use crate::common::pool::{
    check, clone_request, contents, copy_request, id, long_waits, memory_dir, names, open, request, settings,
    snapshot_request,
};
use crate::common::wait::sleep_ms;

/// System calls that change something, and calls whose failure an operation must report.
const CALLS: &[&str] = &[
    "mkdirat",
    "openat",
    "openat2",
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "syncfs",
    "renameat2",
    "renameat",
    "unlinkat",
    "linkat",
    "symlinkat",
    "mknodat",
    "fchown",
    "fchownat",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "copy_file_range",
    "ftruncate",
    "fallocate",
    "utimensat",
    "fsetxattr",
    "flock",
    "fcntl",
    "inotify_init1",
    "inotify_add_watch",
    "getdents64",
    "open_tree",
    "mount_setattr",
    "move_mount",
    "umount2",
];

const FRESH: &str = "fresh-object";
const OLD: &str = "old-volume";
const RETAINED: &str = "old-retained";
const TRASHED: &str = "old-trashed";
const SNAPSHOT: &str = "old-snapshot";
/// An id as the kubelet generates it for an inline volume, and the name of its directory.
const INLINE: &str = "csi-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
static INLINE_NAME: LazyLock<String> = LazyLock::new(|| id(INLINE).name.to_string());
const GROWN: u64 = 8 << 20;

/// Environment variables of the child process: its operation and its directory.
const OPERATION: &str = "ORLOP_CRASH_OPERATION";
const DIRECTORY: &str = "ORLOP_CRASH_DIRECTORY";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    FirstOpen,
    OpenAfterCrash,
    Create,
    Clone,
    Restore,
    Snapshot,
    Expand,
    Modify,
    Delete,
    DeleteToTrash,
    DeleteRetained,
    DeleteSnapshot,
    Publish,
    Unpublish,
    PublishEphemeral,
    UnpublishEphemeral,
}

const ALL: &[Operation] = &[
    Operation::FirstOpen,
    Operation::OpenAfterCrash,
    Operation::Create,
    Operation::Clone,
    Operation::Restore,
    Operation::Snapshot,
    Operation::Expand,
    Operation::Modify,
    Operation::Delete,
    Operation::DeleteToTrash,
    Operation::DeleteRetained,
    Operation::DeleteSnapshot,
    Operation::Publish,
    Operation::Unpublish,
    Operation::PublishEphemeral,
    Operation::UnpublishEphemeral,
];

/// The directory of one case, with the pool and the target.
#[derive(Debug)]
struct Base {
    dir: PathBuf,
}

impl Base {
    fn pool(&self) -> PathBuf {
        self.dir.join("pool")
    }

    fn target(&self) -> PathBuf {
        self.dir.join("target")
    }

    fn data(&self, kind: &str, name: &str) -> PathBuf {
        self.pool().join(kind).join(name).join("data")
    }

    fn is_mounted(&self) -> bool {
        mount::mounted_at(&self.target()).unwrap().is_some()
    }
}

fn ephemeral() -> CreateVolume {
    request(INLINE, 1 << 20)
}

fn publish(engine: &Engine, base: &Base, name: &str, ephemeral: Option<CreateVolume>) -> Result<()> {
    engine.publish(&Publish {
        id: id(name),
        target: base.target(),
        flags: MountFlags::default(),
        sharing: Sharing::ManyTargets,
        ephemeral: ephemeral.map(Box::new),
    })
}

fn unavailable(engine: &Engine) -> Result<String> {
    match &engine.pools()[0].unavailable {
        Some(why) => Err(Error::new(Kind::Unavailable, why.clone())),
        None => Ok(String::new()),
    }
}

impl Operation {
    fn is_open(self) -> bool {
        matches!(self, Self::FirstOpen | Self::OpenAfterCrash)
    }

    fn mounts(self) -> bool {
        matches!(self, Self::Publish | Self::Unpublish | Self::PublishEphemeral | Self::UnpublishEphemeral)
    }

    /// The directory and the name of the object that it works on.
    fn object(self) -> (&'static str, &'static str) {
        match self {
            Self::FirstOpen | Self::OpenAfterCrash => ("", ""),
            Self::Create | Self::Clone | Self::Restore => ("volumes", FRESH),
            Self::PublishEphemeral | Self::UnpublishEphemeral => ("volumes", INLINE_NAME.as_str()),
            Self::Snapshot => ("snapshots", FRESH),
            Self::Expand | Self::Modify | Self::Delete | Self::Publish | Self::Unpublish => ("volumes", OLD),
            Self::DeleteToTrash => ("volumes", TRASHED),
            Self::DeleteRetained => ("volumes", RETAINED),
            Self::DeleteSnapshot => ("snapshots", SNAPSHOT),
        }
    }

    /// Makes the pool and the acknowledged objects that exist before the operation.
    fn prepare(self, base: &Base) {
        fs::create_dir(base.pool()).unwrap();
        if self == Self::FirstOpen {
            return;
        }
        let engine = open(&base.pool());
        for (name, on_delete) in
            [(OLD, OnDelete::Delete), (RETAINED, OnDelete::Retain), (TRASHED, OnDelete::Trash)]
        {
            let policy = Policy { on_delete, trash_for: Duration::from_secs(3600), ..Policy::default() };
            engine.create(&CreateVolume { policy, ..request(name, 1 << 20) }).unwrap();
            fs::write(base.data("volumes", name).join("file"), format!("of {name}")).unwrap();
        }
        fill(&base.data("volumes", OLD));
        engine.create_snapshot(&snapshot_request(SNAPSHOT, &id(OLD))).unwrap();
        match self {
            Self::Unpublish => publish(&engine, base, OLD, None).unwrap(),
            Self::UnpublishEphemeral => publish(&engine, base, INLINE, Some(ephemeral())).unwrap(),
            Self::OpenAfterCrash => {
                drop(engine);
                fs::create_dir_all(base.pool().join("work/0123456789abcdef/data/deep")).unwrap();
                fs::write(base.pool().join("work/0123456789abcdef/volume.json"), "{").unwrap();
                fs::write(base.pool().join("work/fedcba9876543210"), "{").unwrap();
            }
            _ => {}
        }
    }

    /// Runs the operation; returns the id of its object.
    fn run(self, engine: &Engine, base: &Base) -> Result<String> {
        let answer = match self {
            Self::FirstOpen | Self::OpenAfterCrash => return unavailable(engine),
            Self::Create => {
                let owner = OwnerSpec { uid: Some(7), gid: Some(8), mode: Some(0o2750) };
                engine.create(&CreateVolume { owner, ..request(FRESH, 1 << 20) })?.id
            }
            Self::Clone => engine.create(&clone_request(FRESH, &id(OLD)))?.id,
            Self::Restore => engine.create(&copy_request(FRESH, Source::Snapshot(id(SNAPSHOT))))?.id,
            Self::Snapshot => {
                let snapshot = engine.create_snapshot(&snapshot_request(FRESH, &id(OLD)))?;
                assert!(snapshot.ready);
                snapshot.id
            }
            Self::Expand => engine.expand(&id(OLD), SizeRange { required: GROWN, limit: 0 })?.id,
            Self::Modify => {
                let change = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
                engine.modify(&id(OLD), change)?.id
            }
            Self::Delete => engine.delete(&id(OLD)).map(|()| id(OLD))?,
            Self::DeleteToTrash => engine.delete(&id(TRASHED)).map(|()| id(TRASHED))?,
            Self::DeleteRetained => engine.delete(&id(RETAINED)).map(|()| id(RETAINED))?,
            Self::DeleteSnapshot => engine.delete_snapshot(&id(SNAPSHOT)).map(|()| id(SNAPSHOT))?,
            Self::Publish => publish(engine, base, OLD, None).map(|()| id(OLD))?,
            Self::Unpublish => engine.unpublish(&id(OLD).to_string(), &base.target()).map(|()| id(OLD))?,
            Self::PublishEphemeral => {
                publish(engine, base, INLINE, Some(ephemeral())).map(|()| id(INLINE))?
            }
            Self::UnpublishEphemeral => engine.unpublish(INLINE, &base.target()).map(|()| id(INLINE))?,
        };
        Ok(answer.to_string())
    }

    /// Whether the target is a mount point, before or after the operation.
    fn mounted(self, done: bool) -> bool {
        match self {
            Self::Publish | Self::PublishEphemeral => done,
            Self::Unpublish | Self::UnpublishEphemeral => !done,
            _ => false,
        }
    }

    /// Reports whether the operation took effect. Checks that it took effect completely or not at all.
    fn is_done(self, base: &Base, before: &BTreeMap<String, String>) -> bool {
        let (directory, name) = self.object();
        let now = contents(&base.pool());
        let object = |all: &BTreeMap<String, String>| subtree(all, &format!("{directory}/{name}"));
        let exists = base.pool().join(directory).join(name).exists();
        let existed = before.contains_key(&format!("{directory}/{name}"));
        match self {
            Self::FirstOpen | Self::OpenAfterCrash => return false,
            Self::Publish | Self::Unpublish => assert_eq!(object(&now), object(before)),
            Self::Expand | Self::Modify => {
                let record = "volume.json".to_owned();
                let (mut now, mut before) = (object(&now), object(before));
                let (new, old) = (now.remove(&record), before.remove(&record));
                assert_eq!(now, before);
                let word =
                    if self == Self::Expand { format!("\\\"size\\\": {GROWN}") } else { "retain".to_owned() };
                if new == old {
                    return false;
                }
                assert!(new.unwrap().contains(&word));
                return true;
            }
            _ if exists == existed => assert_eq!(object(&now), object(before)),
            Self::Create => {
                let data = fs::metadata(base.data(directory, name)).unwrap();
                assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (7, 8, 0o2750));
            }
            Self::Clone | Self::Restore | Self::Snapshot => {
                let copy = contents(&base.data(directory, name));
                assert_eq!(copy, subtree(before, &format!("volumes/{OLD}/data")), "the copy is complete");
            }
            Self::PublishEphemeral => assert!(base.data(directory, name).is_dir()),
            Self::DeleteToTrash | Self::DeleteRetained => {
                let trash = names(&base.pool().join("trash"));
                let kept = trash.iter().find(|entry| entry.starts_with(name)).unwrap();
                assert_eq!(
                    subtree(&now, &format!("trash/{kept}")),
                    object(before),
                    "the kept volume is complete"
                );
            }
            Self::Delete | Self::DeleteSnapshot | Self::UnpublishEphemeral => {}
        }
        let moved = exists != existed || matches!(self, Self::Publish | Self::Unpublish);
        moved && base.is_mounted() == self.mounted(true)
    }

    /// Checks that all other objects are unchanged.
    fn check_other_objects(self, base: &Base, before: &BTreeMap<String, String>) {
        let now = contents(&base.pool());
        let (directory, name) = self.object();
        let own = format!("{directory}/{name}");
        let others = |all: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            let kept = all.iter().filter(|(path, _)| {
                let is_own = path.as_str() == own || path.starts_with(&format!("{own}/"));
                // A new record that is not in place yet belongs to the operation.
                let is_new_record = path.starts_with("volumes/.");
                (path.starts_with("volumes/") || path.starts_with("snapshots/")) && !is_own && !is_new_record
            });
            kept.map(|(path, text)| (path.clone(), text.clone())).collect()
        };
        assert_eq!(others(&now), others(before), "an object that was acknowledged before changed");
    }
}

/// The entries at and below a path, with paths relative to it.
fn subtree(all: &BTreeMap<String, String>, top: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (path, text) in all {
        match path.strip_prefix(top) {
            Some("") => found.insert(String::new(), text.clone()),
            Some(rest) => rest.strip_prefix('/').and_then(|rest| found.insert(rest.to_owned(), text.clone())),
            None => None,
        };
    }
    found
}

/// Makes one entry of every type that a copy handles with its own system calls.
fn fill(data: &Path) {
    fs::create_dir_all(data.join("dir/deeper")).unwrap();
    fs::write(data.join("dir/file"), "a file").unwrap();
    fs::hard_link(data.join("dir/file"), data.join("link")).unwrap();
    symlink("dir/file", data.join("symlink")).unwrap();
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    sparse.set_len(32 << 10).unwrap();
    (&sparse).write_all(b"start").unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, data.join("fifo"), fifo, 0o640.into(), 0).unwrap();
}

/// The child process: opens the pool, then runs the operation and answers whenever it receives a byte. Does nothing when
/// it runs as a test.
#[test]
fn child_process() {
    let (Ok(operation), Ok(dir)) = (std::env::var(OPERATION), std::env::var(DIRECTORY)) else { return };
    let operation = *ALL.iter().find(|known| format!("{known:?}") == operation).unwrap();
    let base = Base { dir: dir.into() };
    let new = || Engine::open(vec![settings(&base.pool())], long_waits()).unwrap();
    let mut engine = (!operation.is_open()).then(|| open(&base.pool()));
    let parent = std::io::stdin();
    // `sendto` and `read` are not among the calls that are made to fail.
    let send = |text: String| {
        let sent = rustix::net::send(parent.as_fd(), text.as_bytes(), rustix::net::SendFlags::NOSIGNAL);
        assert_eq!(sent.unwrap(), text.len());
    };
    send("ready\n".into());
    let mut byte = [0];
    while rustix::io::read(parent.as_fd(), &mut byte).unwrap() == 1 {
        let engine = engine.get_or_insert_with(new);
        send(match operation.run(engine, &base) {
            Ok(id) => format!("ok {id}\n"),
            Err(error) => format!("{:?} {}\n", error.kind(), error.chain().replace('\n', " ")),
        });
    }
}

/// Calls that read, or whose effect ends with the process. A kill there is the same as a kill at the next call, and they
/// do not fail for lack of space.
const READS: &[&str] = &["openat2", "flock", "getdents64", "open_tree", "mount_setattr"];

/// What happens at a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    NoSpace,
    Io,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    operation: Operation,
    fault: Fault,
    call: &'static str,
    at: usize,
}

/// The child process, seen from the parent.
struct ChildProcess {
    child: Child,
    answers: BufReader<UnixStream>,
}

impl ChildProcess {
    #[expect(clippy::disallowed_methods, reason = "a process is killed")]
    fn start(operation: Operation, base: &Base) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faults::crash::child_process", "--nocapture", "--test-threads=1"])
            .env(OPERATION, format!("{operation:?}"))
            .env(DIRECTORY, &base.dir)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Self { child, answers: BufReader::new(ours) };
        assert_eq!(process.receive(), "ready", "{}", process.stderr());
        process
    }

    /// Receives one line; empty if the process is dead.
    fn receive(&mut self) -> String {
        let mut line = String::new();
        // A reset also means that it was killed, before it read the byte.
        match self.answers.read_line(&mut line) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("no answer: {error}"),
            _ => line.trim_end().to_owned(),
        }
    }

    /// Runs the operation; returns the answer.
    fn run_operation(&mut self) -> String {
        // It may be dead already.
        let _ = self.answers.get_ref().write_all(b"!");
        self.receive()
    }

    /// Kills the process; returns what it printed.
    fn stderr(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut text);
        text
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An strace that is attached to a process, and its log.
struct Tracer {
    strace: Child,
    log: PathBuf,
}

impl Tracer {
    #[expect(clippy::disallowed_methods, reason = "strace is a program")]
    fn attach(process: &ChildProcess, base: &Base, expressions: &[String]) -> Self {
        let log = base.dir.join("log");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o"]).arg(&log);
        for expression in expressions {
            strace.args(["-e", expression]);
        }
        strace.args(["-p", &process.child.id().to_string()]);
        let mut strace = strace.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut messages = BufReader::new(strace.stderr.take().unwrap()).lines();
        let first = messages.next().unwrap().unwrap();
        assert!(first.contains("attached"), "strace: {first}");
        // Read the rest, so that strace does not block on a full pipe.
        std::thread::spawn(move || messages.for_each(drop));
        Self { strace, log }
    }

    /// Detaches from the process if it is alive; returns the log.
    fn detach(mut self) -> String {
        let id = rustix::process::Pid::from_child(&self.strace);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.strace.wait();
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn new_base() -> (tempfile::TempDir, Base) {
    let dir = memory_dir();
    let base = Base { dir: dir.path().canonicalize().unwrap() };
    (dir, base)
}

/// For each system call, the largest number of calls by one thread during the operation.
fn count_calls(operation: Operation) -> BTreeMap<&'static str, usize> {
    let (_dir, base) = new_base();
    operation.prepare(&base);
    let mut process = ChildProcess::start(operation, &base);
    let tracer = Tracer::attach(&process, &base, &[format!("trace=?{}", CALLS.join(",?"))]);
    let answer = process.run_operation();
    assert!(answer.starts_with("ok"), "{operation:?}: {answer}");
    let log = tracer.detach();
    let mut by_thread: BTreeMap<(&str, &'static str), usize> = BTreeMap::new();
    for line in log.lines() {
        let (thread, rest) = line.split_once(char::is_whitespace).unwrap();
        let name = rest.trim_start().split('(').next().unwrap();
        if let Some(call) = CALLS.iter().find(|call| **call == name) {
            *by_thread.entry((thread, call)).or_default() += 1;
        }
    }
    let mut largest = BTreeMap::new();
    for ((_, call), count) in by_thread {
        let entry = largest.entry(call).or_default();
        *entry = count.max(*entry);
    }
    unmount_all(&base.target());
    largest
}

/// Injects one fault into one operation; reports whether the operation made the call.
fn run_case(case: Case) -> bool {
    let (_dir, base) = new_base();
    let Case { operation, fault, call, at } = case;
    operation.prepare(&base);
    let before = contents(&base.pool());
    let mut process = ChildProcess::start(operation, &base);
    let effect = match fault {
        Fault::Kill => "signal=KILL",
        Fault::NoSpace => "error=ENOSPC",
        Fault::Io => "error=EIO",
    };
    let inject = [format!("trace={call}"), format!("inject={call}:{effect}:when={at}")];
    let tracer = Tracer::attach(&process, &base, &inject);
    let answer = process.run_operation();
    let result = catch_unwind(AssertUnwindSafe(|| {
        if fault == Fault::Kill {
            check_after_kill(operation, &base, &before, process, tracer, &answer)
        } else {
            check_after_failure(case, &base, &before, process, tracer, &answer)
        }
    }));
    unmount_all(&base.target());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn check_after_kill(
    operation: Operation,
    base: &Base,
    before: &BTreeMap<String, String>,
    process: ChildProcess,
    tracer: Tracer,
    answer: &str,
) -> bool {
    drop(process);
    let log = tracer.detach();
    operation.check_other_objects(base, before);
    let done = operation.is_done(base, before);
    assert!(done || operation.is_open() || !answer.starts_with("ok"), "acknowledged but not done: {answer}");
    let engine = open(&base.pool());
    check_retry(operation, base, before, &engine);
    log.contains("(INJECTED)") || log.contains("killed by SIGKILL")
}

/// Checks that the fault left no incomplete object and that a retry succeeds.
fn check_retry(operation: Operation, base: &Base, before: &BTreeMap<String, String>, engine: &Engine) {
    assert!(engine.wait_for_reaper(Duration::from_secs(10)));
    check(engine, &base.pool());
    let again = operation.run(engine, base).unwrap_or_else(|error| panic!("the retry: {}", error.chain()));
    let (_, name) = operation.object();
    assert!(operation.is_open() || again == format!("p/{name}"), "the retry gave {again}");
    assert!(operation.is_open() || operation.is_done(base, before), "the retry took effect");
    assert_eq!(base.is_mounted(), operation.mounted(true), "mounted");
    assert!(engine.wait_for_reaper(Duration::from_secs(10)));
    check(engine, &base.pool());
    operation.check_other_objects(base, before);
    let kept = names(&base.pool().join("trash")).len();
    let keeps = matches!(operation, Operation::DeleteToTrash | Operation::DeleteRetained);
    assert_eq!(kept, usize::from(keeps), "in the trash: {:?}", names(&base.pool().join("trash")));
}

fn check_after_failure(
    case: Case,
    base: &Base,
    before: &BTreeMap<String, String>,
    mut process: ChildProcess,
    tracer: Tracer,
    answer: &str,
) -> bool {
    let Case { operation, fault, call, .. } = case;
    let (kind, text) = match fault {
        Fault::NoSpace => ("NoSpace", "No space left on device"),
        Fault::Io | Fault::Kill => ("Internal", "Input/output error"),
    };
    let log = tracer.detach();
    operation.check_other_objects(base, before);
    if let Some(rest) = answer.strip_prefix("ok") {
        // The failure of this call was tolerated. The operation must still be complete.
        assert!(operation.is_open() || operation.is_done(base, before), "{rest}");
    } else {
        let kind = if operation.is_open() { "Unavailable" } else { kind };
        assert!(answer.starts_with(kind) && answer.contains(text), "expected {kind}: {answer}");
        let (_, name) = operation.object();
        let named = [name, OLD, SNAPSHOT, "target", "pool p"]
            .iter()
            .any(|word| !word.is_empty() && answer.contains(word));
        assert!(named, "the error does not name its object: {answer}");
        assert!(operation.mounts() || !operation.is_done(base, before), "refused but done: {answer}");
        if !operation.is_open() && call != "unlinkat" {
            assert_eq!(names(&base.pool().join("work")), BTreeSet::new(), "left in work/: {answer}");
        }
    }
    let retry = process.run_operation();
    assert!(retry.starts_with("ok"), "the retry in the same process: {retry}; {}", process.stderr());
    assert!(operation.is_open() || operation.is_done(base, before), "the retry took effect");
    // The reaper retries failed removals only after a while. After any other failure, the trash must become empty now.
    let keeps = usize::from(matches!(operation, Operation::DeleteToTrash | Operation::DeleteRetained));
    let trash = || names(&base.pool().join("trash")).len();
    if !["unlinkat", "openat2", "openat", "getdents64", "fcntl"].contains(&call) {
        let removed = (0..500).any(|_| {
            sleep_ms(if trash() == keeps { 0 } else { 10 });
            trash() == keeps
        });
        assert!(removed, "left in trash/: {:?}", names(&base.pool().join("trash")));
    }
    drop(process);
    check_retry(operation, base, before, &open(&base.pool()));
    log.contains("(INJECTED)")
}

/// What this machine lacks to run the test.
#[expect(clippy::disallowed_methods, reason = "strace is a program")]
fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounts and other owners need root");
    }
    let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    strace.is_err().then_some("strace is missing: tests/install test")
}

fn can_run() -> bool {
    missing().is_none_or(|reason| {
        skip(reason);
        false
    })
}

/// The number of faults for each operation.
fn count_cases(cases: &[Case]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for case in cases {
        *counts.entry(format!("{:?}", case.operation)).or_default() += 1;
    }
    counts
}

/// The message of a panic.
fn message_of(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast::<String>().map_or_else(|_| "a panic".to_owned(), |text| *text);
    text.chars().take(2000).collect()
}

/// Calls `with` for each item, in threads with their own mount namespaces. A panic becomes an error.
fn in_parallel<T: Send, R: Send>(
    items: Vec<T>,
    with: impl Fn(&T) -> R + Sync,
) -> Vec<(T, std::result::Result<R, String>)> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (queue, results) = (Mutex::new(items), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                enter_new_mount_namespace();
                loop {
                    let Some(item) = queue.lock().unwrap().pop() else { return };
                    let result = catch_unwind(AssertUnwindSafe(|| with(&item))).map_err(message_of);
                    results.lock().unwrap().push((item, result));
                }
            });
        }
    });
    results.into_inner().unwrap()
}

#[test]
fn every_operation_is_atomic_under_kills_and_failing_calls() {
    if !can_run() {
        return;
    }
    let only = std::env::var("ORLOP_CRASH_ONLY").unwrap_or_default();
    let operations =
        ALL.iter().copied().filter(|operation| format!("{operation:?}").contains(&only)).collect();
    let mut cases = Vec::new();
    for (operation, counts) in in_parallel(operations, |operation| count_calls(*operation)) {
        for (call, largest) in counts.unwrap_or_else(|error| panic!("{operation:?} without a fault: {error}"))
        {
            let faults: &[_] =
                if READS.contains(&call) { &[Fault::Io] } else { &[Fault::Kill, Fault::NoSpace, Fault::Io] };
            for at in 1..=largest {
                cases.extend(faults.iter().map(|fault| Case { operation, fault: *fault, call, at }));
            }
        }
    }
    let all = cases.len();
    eprintln!("{all} faults: {:?}", count_cases(&cases));
    let results = in_parallel(cases, |case| run_case(*case));
    let hit = results.iter().filter(|(_, result)| *result == Ok(true)).count();
    eprintln!("{hit} of {all} faults were injected");
    let failures = results.iter().filter_map(|(case, result)| Some((case, result.as_ref().err()?)));
    let failures: Vec<_> = failures.map(|(case, error)| format!("{case:?}: {error}")).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(hit * 10 >= all * 9, "too few faults were injected");
}
