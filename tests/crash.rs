//! Every operation is stopped at every system call that changes something, and every such call is made to fail once.
//!
//! A child (this program again) opens a pool and waits; strace is attached to it, so that only the operation itself is
//! counted; then it goes on. `when=N` counts in each thread on its own, and copies run in a thread of their own, so N
//! runs to the most calls that one thread makes.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]
#![expect(clippy::print_stderr, clippy::wildcard_enum_match_arm, reason = "it is a test")]

#[path = "ground/pool.rs"]
mod ground;
#[path = "ground/mounts.rs"]
mod mounts;

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

use ground::{check, contents, copy_of, cut, id, names, open, patient, request, settings};
use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, OwnerSpec, Publish, Sharing};
use orlop::error::{Error, Kind, Result};
use orlop::mount::{self, MountFlags};
use orlop::volume::{OnDelete, Policy, PolicyChange, SizeRange, Source};
use rustix::mount::{MountPropagationFlags as Propagation, UnmountFlags};

/// What changes something. `openat` and `openat2` are how a file is made, and how one fails to be read.
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
/// An id as kubelet makes them for the inline volumes of pods, and the folder that it gets.
const INLINE: &str = "csi-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
static INLINE_NAME: LazyLock<String> = LazyLock::new(|| id(INLINE).name.to_string());
const GROWN: u64 = 8 << 20;

/// The environment that makes this program the child: what to do, and below which directory.
const DO: &str = "ORLOP_CRASH_DO";
const BASE: &str = "ORLOP_CRASH_BASE";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
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

const ALL: &[Act] = &[
    Act::FirstOpen,
    Act::OpenAfterCrash,
    Act::Create,
    Act::Clone,
    Act::Restore,
    Act::Snapshot,
    Act::Expand,
    Act::Modify,
    Act::Delete,
    Act::DeleteToTrash,
    Act::DeleteRetained,
    Act::DeleteSnapshot,
    Act::Publish,
    Act::Unpublish,
    Act::PublishEphemeral,
    Act::UnpublishEphemeral,
];

/// The directories of one case.
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

    fn data(&self, shelf: &str, name: &str) -> PathBuf {
        self.pool().join(shelf).join(name).join("data")
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

impl Act {
    fn is_open(self) -> bool {
        matches!(self, Self::FirstOpen | Self::OpenAfterCrash)
    }

    fn mounts(self) -> bool {
        matches!(self, Self::Publish | Self::Unpublish | Self::PublishEphemeral | Self::UnpublishEphemeral)
    }

    /// The shelf and the name of what it works on.
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

    /// What was there before, all of it acknowledged.
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
        engine.create_snapshot(&cut(SNAPSHOT, &id(OLD))).unwrap();
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

    fn run(self, engine: &Engine, base: &Base) -> Result<String> {
        let answer = match self {
            Self::FirstOpen | Self::OpenAfterCrash => return unavailable(engine),
            Self::Create => {
                let owner = OwnerSpec { uid: Some(7), gid: Some(8), mode: Some(0o2750) };
                engine.create(&CreateVolume { owner, ..request(FRESH, 1 << 20) })?.id
            }
            Self::Clone => engine.create(&copy_of(FRESH, Source::Volume(id(OLD))))?.id,
            Self::Restore => engine.create(&copy_of(FRESH, Source::Snapshot(id(SNAPSHOT))))?.id,
            Self::Snapshot => {
                let snapshot = engine.create_snapshot(&cut(FRESH, &id(OLD)))?;
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

    /// What is mounted, before and after.
    fn mounted(self, done: bool) -> bool {
        match self {
            Self::Publish | Self::PublishEphemeral => done,
            Self::Unpublish | Self::UnpublishEphemeral => !done,
            _ => false,
        }
    }

    /// Whether it has been done, and done whole; one that was begun only has left all as it was before.
    fn is_done(self, base: &Base, before: &BTreeMap<String, String>) -> bool {
        let (shelf, name) = self.object();
        let now = contents(&base.pool());
        let object = |all: &BTreeMap<String, String>| part(all, &format!("{shelf}/{name}"));
        let is_there = base.pool().join(shelf).join(name).exists();
        let was_there = before.contains_key(&format!("{shelf}/{name}"));
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
            _ if is_there == was_there => assert_eq!(object(&now), object(before)),
            Self::Create => {
                let data = fs::metadata(base.data(shelf, name)).unwrap();
                assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (7, 8, 0o2750));
            }
            Self::Clone | Self::Restore | Self::Snapshot => {
                let copy = contents(&base.data(shelf, name));
                assert_eq!(copy, part(before, &format!("volumes/{OLD}/data")), "the copy is whole");
            }
            Self::PublishEphemeral => assert!(base.data(shelf, name).is_dir()),
            Self::DeleteToTrash | Self::DeleteRetained => {
                let trash = names(&base.pool().join("trash"));
                let kept = trash.iter().find(|folder| folder.starts_with(name)).unwrap();
                assert_eq!(part(&now, &format!("trash/{kept}")), object(before), "what is kept is whole");
            }
            Self::Delete | Self::DeleteSnapshot | Self::UnpublishEphemeral => {}
        }
        let moved = is_there != was_there || matches!(self, Self::Publish | Self::Unpublish);
        moved && base.is_mounted() == self.mounted(true)
    }

    /// Everything else is as it was before.
    fn others_are_whole(self, base: &Base, before: &BTreeMap<String, String>) {
        let now = contents(&base.pool());
        let (shelf, name) = self.object();
        let own = format!("{shelf}/{name}");
        let others = |all: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            let kept = all.iter().filter(|(path, _)| {
                let is_own = path.as_str() == own || path.starts_with(&format!("{own}/"));
                (path.starts_with("volumes/") || path.starts_with("snapshots/")) && !is_own
            });
            kept.map(|(path, text)| (path.clone(), text.clone())).collect()
        };
        assert_eq!(others(&now), others(before), "what was acknowledged before");
    }
}

/// What lies at and below a path, by the path from there.
fn part(all: &BTreeMap<String, String>, top: &str) -> BTreeMap<String, String> {
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

/// One of everything that a copy has a call of its own for.
fn fill(data: &Path) {
    fs::create_dir_all(data.join("dir/deeper")).unwrap();
    fs::write(data.join("dir/file"), "a file").unwrap();
    fs::hard_link(data.join("dir/file"), data.join("link")).unwrap();
    symlink("dir/file", data.join("symlink")).unwrap();
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    sparse.set_len(32 << 10).unwrap();
    (&sparse).write_all(b"begins").unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, data.join("fifo"), fifo, 0o640.into(), 0).unwrap();
}

/// Only does something in the child: opens, waits for a word, acts, answers; again for each further word.
#[test]
fn the_child_acts_when_told() {
    let (Ok(act), Ok(dir)) = (std::env::var(DO), std::env::var(BASE)) else { return };
    let act = *ALL.iter().find(|known| format!("{known:?}") == act).unwrap();
    let base = Base { dir: dir.into() };
    let new = || Engine::open(vec![settings(&base.pool())], patient()).unwrap();
    let mut engine = (!act.is_open()).then(|| open(&base.pool()));
    let parent = std::io::stdin();
    // By calls that are not among those made to fail.
    let say = |text: String| {
        let sent = rustix::net::send(parent.as_fd(), text.as_bytes(), rustix::net::SendFlags::NOSIGNAL);
        assert_eq!(sent.unwrap(), text.len());
    };
    say("ready\n".into());
    let mut word = [0];
    while rustix::io::read(parent.as_fd(), &mut word).unwrap() == 1 {
        let engine = engine.get_or_insert_with(new);
        say(match act.run(engine, &base) {
            Ok(id) => format!("ok {id}\n"),
            Err(error) => format!("{:?} {}\n", error.kind(), error.chain().replace('\n', " ")),
        });
    }
}

/// Calls that read, or make nothing that outlives the process: to be stopped there is to be stopped at the next one,
/// and they do not run out of room.
const READS: &[&str] = &["openat2", "flock", "getdents64", "open_tree", "mount_setattr"];

/// What is done to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    NoSpace,
    Io,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    act: Act,
    fault: Fault,
    call: &'static str,
    at: usize,
}

/// The child, stopped at no more than what it is told.
struct Actor {
    child: Child,
    line: BufReader<UnixStream>,
}

impl Actor {
    #[expect(clippy::disallowed_methods, reason = "what is stopped must be another process")]
    fn start(act: Act, base: &Base) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_child_acts_when_told", "--nocapture", "--test-threads=1"])
            .env(DO, format!("{act:?}"))
            .env(BASE, &base.dir)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut actor = Self { child, line: BufReader::new(ours) };
        assert_eq!(actor.hear(), "ready", "{}", actor.last_words());
        actor
    }

    /// One line; empty when it is dead.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        // A reset is a death too: it was killed with our word unread.
        match self.line.read_line(&mut line) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("no answer: {error}"),
            _ => line.trim_end().to_owned(),
        }
    }

    fn act(&mut self) -> String {
        // It may be dead already.
        let _ = self.line.get_ref().write_all(b"!");
        self.hear()
    }

    fn last_words(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut text);
        text
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// strace on a running process, and what it writes.
struct Tracer {
    strace: Child,
    log: PathBuf,
}

impl Tracer {
    #[expect(clippy::disallowed_methods, reason = "strace is a program")]
    fn attach(actor: &Actor, base: &Base, expressions: &[String]) -> Self {
        let log = base.dir.join("log");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o"]).arg(&log);
        for expression in expressions {
            strace.args(["-e", expression]);
        }
        strace.args(["-p", &actor.child.id().to_string()]);
        let mut strace = strace.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut says = BufReader::new(strace.stderr.take().unwrap()).lines();
        let first = says.next().unwrap().unwrap();
        assert!(first.contains("attached"), "strace: {first}");
        // Or it would stop at a full pipe.
        std::thread::spawn(move || says.for_each(drop));
        Self { strace, log }
    }

    /// Lets go of the process, if that still lives.
    fn detach(mut self) -> String {
        let id = rustix::process::Pid::from_child(&self.strace);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.strace.wait();
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn new_base() -> (tempfile::TempDir, Base) {
    let dir = ground::place();
    let base = Base { dir: dir.path().canonicalize().unwrap() };
    (dir, base)
}

/// How often each call is made by the thread that makes it most often.
fn count(act: Act) -> BTreeMap<&'static str, usize> {
    let (_dir, base) = new_base();
    act.prepare(&base);
    let mut actor = Actor::start(act, &base);
    let tracer = Tracer::attach(&actor, &base, &[format!("trace=?{}", CALLS.join(",?"))]);
    let answer = actor.act();
    assert!(answer.starts_with("ok"), "{act:?}: {answer}");
    let log = tracer.detach();
    let mut by_thread: BTreeMap<(&str, &'static str), usize> = BTreeMap::new();
    for line in log.lines() {
        let (thread, rest) = line.split_once(char::is_whitespace).unwrap();
        let word = rest.trim_start().split('(').next().unwrap();
        if let Some(call) = CALLS.iter().find(|call| **call == word) {
            *by_thread.entry((thread, call)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in by_thread {
        let entry = most.entry(call).or_default();
        *entry = count.max(*entry);
    }
    clear(&base);
    most
}

fn clear(base: &Base) {
    while rustix::mount::unmount(base.target(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
}

/// One fault in one operation; true if there was an occasion for it.
fn run(case: Case) -> bool {
    let (_dir, base) = new_base();
    let Case { act, fault, call, at } = case;
    act.prepare(&base);
    let before = contents(&base.pool());
    let mut actor = Actor::start(act, &base);
    let how = match fault {
        Fault::Kill => "signal=KILL",
        Fault::NoSpace => "error=ENOSPC",
        Fault::Io => "error=EIO",
    };
    let inject = [format!("trace={call}"), format!("inject={call}:{how}:when={at}")];
    let tracer = Tracer::attach(&actor, &base, &inject);
    let answer = actor.act();
    let result = catch_unwind(AssertUnwindSafe(|| {
        if fault == Fault::Kill {
            killed(act, &base, &before, actor, tracer, &answer)
        } else {
            failed(case, &base, &before, actor, tracer, &answer)
        }
    }));
    clear(&base);
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn killed(
    act: Act,
    base: &Base,
    before: &BTreeMap<String, String>,
    actor: Actor,
    tracer: Tracer,
    answer: &str,
) -> bool {
    drop(actor);
    let log = tracer.detach();
    act.others_are_whole(base, before);
    let done = act.is_done(base, before);
    assert!(done || act.is_open() || !answer.starts_with("ok"), "acknowledged and not done: {answer}");
    let engine = open(&base.pool());
    finish(act, base, before, &engine);
    log.contains("(INJECTED)") || log.contains("killed by SIGKILL")
}

/// After the fault: nothing half-made, and the retry ends well.
fn finish(act: Act, base: &Base, before: &BTreeMap<String, String>, engine: &Engine) {
    assert!(engine.wait_idle(Duration::from_secs(10)));
    check(engine, &base.pool());
    let again = act.run(engine, base).unwrap_or_else(|error| panic!("the retry: {}", error.chain()));
    let (_, name) = act.object();
    assert!(act.is_open() || again == format!("p/{name}"), "the retry gave {again}");
    assert!(act.is_open() || act.is_done(base, before), "the retry is done");
    assert_eq!(base.is_mounted(), act.mounted(true), "mounted");
    assert!(engine.wait_idle(Duration::from_secs(10)));
    check(engine, &base.pool());
    act.others_are_whole(base, before);
    let kept = names(&base.pool().join("trash")).len();
    let keeps = matches!(act, Act::DeleteToTrash | Act::DeleteRetained);
    assert_eq!(kept, usize::from(keeps), "in the trash: {:?}", names(&base.pool().join("trash")));
}

fn failed(
    case: Case,
    base: &Base,
    before: &BTreeMap<String, String>,
    mut actor: Actor,
    tracer: Tracer,
    answer: &str,
) -> bool {
    let Case { act, fault, call, .. } = case;
    let (kind, text) = match fault {
        Fault::NoSpace => ("NoSpace", "No space left on device"),
        Fault::Io | Fault::Kill => ("Internal", "Input/output error"),
    };
    let log = tracer.detach();
    act.others_are_whole(base, before);
    if let Some(said) = answer.strip_prefix("ok") {
        // A call that may fail: what was done is whole all the same.
        assert!(act.is_open() || act.is_done(base, before), "{said}");
    } else {
        let kind = if act.is_open() { "Unavailable" } else { kind };
        assert!(answer.starts_with(kind) && answer.contains(text), "a clear error: {answer}");
        let (_, name) = act.object();
        let named = [name, OLD, SNAPSHOT, "target", "pool p"]
            .iter()
            .any(|word| !word.is_empty() && answer.contains(word));
        assert!(named, "the error names nothing: {answer}");
        assert!(act.mounts() || !act.is_done(base, before), "refused and done: {answer}");
        if !act.is_open() && call != "unlinkat" {
            assert_eq!(names(&base.pool().join("work")), BTreeSet::new(), "left in work/: {answer}");
        }
    }
    let again = actor.act();
    assert!(again.starts_with("ok"), "the retry in the same process: {again}; {}", actor.last_words());
    assert!(act.is_open() || act.is_done(base, before), "the retry is done");
    // The reaper tries again what it could not remove, after a while; else it is to be gone without a restart.
    let keeps = usize::from(matches!(act, Act::DeleteToTrash | Act::DeleteRetained));
    let trash = || names(&base.pool().join("trash")).len();
    if !["unlinkat", "openat2", "openat", "getdents64"].contains(&call) {
        let gone = (0..500).any(|_| {
            ground::pause(if trash() == keeps { 0 } else { 10 });
            trash() == keeps
        });
        assert!(gone, "left in trash/: {:?}", names(&base.pool().join("trash")));
    }
    drop(actor);
    finish(act, base, before, &open(&base.pool()));
    log.contains("(INJECTED)")
}

/// What is missing to stop processes here, if anything.
#[expect(clippy::disallowed_methods, reason = "strace is a program")]
fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounts and other owners need root");
    }
    let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    strace.is_err().then_some("strace is missing: tests/install test")
}

fn can_run() -> bool {
    let Some(why) = missing() else { return true };
    assert!(std::env::var_os("CI").is_none(), "{why}, and with CI set nothing is skipped");
    eprintln!("skipped: {why}");
    false
}

/// How many faults each operation gets, for the log.
fn counts_of(cases: &[Case]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for case in cases {
        *counts.entry(format!("{:?}", case.act)).or_default() += 1;
    }
    counts
}

/// What somebody panicked with.
fn said(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast::<String>().map_or_else(|_| "a panic".to_owned(), |text| *text);
    text.chars().take(2000).collect()
}

/// Calls `with` for each item, in threads with mount namespaces of their own; says what panicked.
fn in_parallel<T: Send, R: Send>(
    items: Vec<T>,
    with: impl Fn(&T) -> R + Sync,
) -> Vec<(T, std::result::Result<R, String>)> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (queue, results) = (Mutex::new(items), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                mounts::enter_new_namespace(Propagation::PRIVATE);
                loop {
                    let Some(item) = queue.lock().unwrap().pop() else { return };
                    let result = catch_unwind(AssertUnwindSafe(|| with(&item))).map_err(said);
                    results.lock().unwrap().push((item, result));
                }
            });
        }
    });
    results.into_inner().unwrap()
}

#[test]
fn stopped_or_failing_at_every_step_every_operation_leaves_all_or_nothing() {
    if !can_run() {
        return;
    }
    let only = std::env::var("ORLOP_CRASH_ONLY").unwrap_or_default();
    let acts: Vec<_> = ALL.iter().copied().filter(|act| format!("{act:?}").contains(&only)).collect();
    let mut cases = Vec::new();
    for (act, counts) in in_parallel(acts, |act| count(*act)) {
        for (call, most) in counts.unwrap_or_else(|why| panic!("{act:?} without a fault: {why}")) {
            let faults: &[_] =
                if READS.contains(&call) { &[Fault::Io] } else { &[Fault::Kill, Fault::NoSpace, Fault::Io] };
            for at in 1..=most {
                cases.extend(faults.iter().map(|fault| Case { act, fault: *fault, call, at }));
            }
        }
    }
    let all = cases.len();
    eprintln!("{all} faults: {:?}", counts_of(&cases));
    let results = in_parallel(cases, |case| run(*case));
    let hit = results.iter().filter(|(_, result)| *result == Ok(true)).count();
    eprintln!("{hit} of {all} faults came to pass");
    let broken = results.iter().filter_map(|(case, result)| Some((case, result.as_ref().err()?)));
    let broken: Vec<_> = broken.map(|(case, why)| format!("{case:?}: {why}")).collect();
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
    assert!(hit * 10 >= all * 9, "hardly any fault came to pass");
}
