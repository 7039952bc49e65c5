//! Every operation is killed at every system call that changes something, and every such call is made to fail once.
//!
//! A child process (this program again) opens a pool and waits. strace attaches to it, so that only the system calls of
//! the operation itself count. Then the child continues. `when=N` of strace counts the calls of each thread separately,
//! and copies run in a thread of their own, so N goes up to the largest number of calls that one thread makes.
//!
//! After a kill, a process that was running all the time sees the result and repeats the operation at once; in another case
//! of the same kill, a new process does.
//!
//! All of this happens in memory. On every other backend, a sample is taken: one in `ORLOP_CRASH_EVERY` faults (100), but
//! twenty times as many of the calls that only this backend makes.
//!
//! `ORLOP_CRASH_CALLS=own` leaves out all other calls there.
//!
//! `ORLOP_CRASH_ONLY` limits the test to operations whose name contains this text, such as `Expand`.

mod operation;
mod tracer;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use orlop::engine::Engine;

use self::operation::{ALL, Base, GROUP, OLD, Operation, RETAINED, SNAPSHOT, TRASHED};
use self::tracer::Tracer;
use crate::common::backends::{Backend, Ground, on_each_backend};
use crate::common::child::{ChildProcess, serve};
use crate::common::isolation::{enter_new_mount_namespace, skip, unmount_all};
use crate::common::pool::{check, check_listings, contents, listed_snapshots, long_waits, names, settings};
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
    "fremovexattr",
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

/// Environment variables of the child process: its operation, its backend and its directory.
const OPERATION: &str = "ORLOP_CRASH_OPERATION";
const BACKEND: &str = "ORLOP_CRASH_BACKEND";
const DIRECTORY: &str = "ORLOP_CRASH_DIRECTORY";

/// The child process: opens the pool, then runs the operation whenever it is asked to. Does nothing when it runs as a test.
#[test]
fn child_process() {
    let (Ok(operation), Ok(dir)) = (std::env::var(OPERATION), std::env::var(DIRECTORY)) else { return };
    let operation = *ALL.iter().find(|known| format!("{known:?}") == operation).unwrap();
    let base = Base { dir: dir.into(), backend: Backend::named(&std::env::var(BACKEND).unwrap()) };
    let new = || Engine::open(vec![settings(&base.pool())], long_waits()).unwrap();
    let mut engine = (!operation.is_open()).then(|| base.open());
    serve(|_| match operation.run(engine.get_or_insert_with(new), &base) {
        Ok(id) => format!("ok {id}"),
        Err(error) => format!("{:?} {}", error.kind(), error.chain()),
    });
}

fn start_child(operation: Operation, base: &Base) -> ChildProcess {
    let variables = [
        (OPERATION, format!("{operation:?}")),
        (BACKEND, base.backend.name.to_owned()),
        (DIRECTORY, base.dir.to_str().unwrap().to_owned()),
    ];
    ChildProcess::start("faults::crash::child_process", &variables)
}

/// Calls that read, or whose effect ends with the process. A kill there is the same as a kill at the next call, and they
/// do not fail for lack of space.
const READS: &[&str] = &["openat2", "flock", "getdents64", "open_tree", "mount_setattr"];

/// What happens at a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The process is killed, and a new process repeats the operation.
    Kill,
    /// The process is killed, and a process that was running all the time repeats the operation at once.
    KillBesideOther,
    NoSpace,
    Io,
}

impl Fault {
    fn is_kill(self) -> bool {
        matches!(self, Self::Kill | Self::KillBesideOther)
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    operation: Operation,
    fault: Fault,
    call: &'static str,
    at: usize,
}

/// The pool of one case, and the processes that are not interrupted.
struct Scene<'b> {
    operation: Operation,
    base: &'b Base,
    /// Everything in the pool before the operation.
    before: BTreeMap<String, String>,
    /// A process that has the pool open all the time, unless the operation opens a new pool.
    other: Option<Engine>,
}

fn new_base(ground: &Ground) -> (tempfile::TempDir, Base) {
    let dir = ground.new_dir();
    let base = Base { dir: dir.path().canonicalize().unwrap(), backend: ground.backend };
    (dir, base)
}

/// For each system call, the largest number of calls by one thread during the operation.
fn count_calls(ground: &Ground, operation: Operation) -> BTreeMap<&'static str, usize> {
    let (_dir, base) = new_base(ground);
    let calls = [CALLS, ground.backend.calls].concat();
    let _other = operation.prepare(&base);
    let mut process = start_child(operation, &base);
    let tracer = Tracer::attach(&process, &base, &[format!("trace=?{}", calls.join(",?"))]);
    let answer = process.ask("run");
    assert!(answer.starts_with("ok"), "{operation:?}: {answer}");
    let log = tracer.detach();
    let mut by_thread: BTreeMap<(&str, &'static str), usize> = BTreeMap::new();
    for line in log.lines() {
        let (thread, rest) = line.split_once(char::is_whitespace).unwrap();
        let name = rest.trim_start().split('(').next().unwrap();
        if let Some(call) = calls.iter().find(|call| **call == name) {
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
fn run_case(ground: &Ground, case: Case) -> bool {
    let (_dir, base) = new_base(ground);
    let Case { operation, fault, call, at } = case;
    let other = operation.prepare(&base);
    let scene = Scene { operation, base: &base, before: contents(&base.pool()), other };
    let mut process = start_child(operation, &base);
    let effect = match fault {
        Fault::Kill | Fault::KillBesideOther => "signal=KILL",
        Fault::NoSpace => "error=ENOSPC",
        Fault::Io => "error=EIO",
    };
    let inject = [format!("trace={call}"), format!("inject={call}:{effect}:when={at}")];
    let tracer = Tracer::attach(&process, &base, &inject);
    let answer = process.ask("run");
    let result = catch_unwind(AssertUnwindSafe(|| {
        if fault.is_kill() {
            drop(process);
            scene.check_after_kill(fault, &tracer.detach(), &answer)
        } else {
            scene.check_after_failure(case, process, tracer, &answer)
        }
    }));
    unmount_all(&base.target());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Scene<'_> {
    fn check_after_kill(&self, fault: Fault, log: &str, answer: &str) -> bool {
        let operation = self.operation;
        operation.check_other_objects(self.base, &self.before);
        let done = operation.is_done(self.base, &self.before);
        assert!(
            done || operation.is_open() || !answer.starts_with("ok"),
            "acknowledged but not done: {answer}"
        );
        self.check_other_process();
        if fault == Fault::KillBesideOther {
            self.repeat(self.other.as_ref().unwrap());
            self.check_other_process();
        }
        self.check_restart();
        log.contains("(INJECTED)") || log.contains("killed by SIGKILL")
    }

    /// Checks that the process that was not interrupted knows the state of the pool.
    fn check_other_process(&self) {
        let Some(other) = &self.other else { return };
        let (operation, pool) = (self.operation, self.base.pool());
        if operation.is_of_group() {
            let on_disk = operation.without_rest_of_group(names(&pool.join("snapshots")));
            assert_eq!(listed_snapshots(other), on_disk);
        } else {
            check_listings(other, &pool);
        }
    }

    /// Repeats the operation, which must succeed and take effect.
    fn repeat(&self, engine: &Engine) {
        let (operation, base) = (self.operation, self.base);
        let again =
            operation.run(engine, base).unwrap_or_else(|error| panic!("the retry: {}", error.chain()));
        let (_, name) = operation.object();
        assert!(operation.is_open() || again == format!("p/{name}"), "the retry gave {again}");
        assert!(operation.is_open() || operation.is_done(base, &self.before), "the retry took effect");
        assert_eq!(base.is_mounted(), operation.mounted(true), "mounted");
        operation.check_other_objects(base, &self.before);
    }

    /// Checks that a new process removes all remains of the fault, and that a retry succeeds in it.
    fn check_restart(&self) {
        let (operation, pool) = (self.operation, self.base.pool());
        let engine = self.base.open();
        assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        check(&engine, &pool);
        self.repeat(&engine);
        assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        check(&engine, &pool);
        self.check_other_process();
        // An entry that the other process is removing is not one of this process's reaper.
        let other = self.other.as_ref();
        assert!(other.is_none_or(|other| other.wait_for_reaper(Duration::from_secs(120))));
        let kept = names(&pool.join("trash")).len();
        assert!(operation.kept().contains(&kept), "in the trash: {:?}", names(&pool.join("trash")));
    }

    fn check_after_failure(
        &self,
        case: Case,
        mut process: ChildProcess,
        tracer: Tracer,
        answer: &str,
    ) -> bool {
        let (operation, base) = (self.operation, self.base);
        let log = tracer.detach();
        operation.check_other_objects(base, &self.before);
        let done = operation.is_done(base, &self.before);
        if let Some(rest) = answer.strip_prefix("ok") {
            // The failure of this call was tolerated. The operation must still be complete.
            assert!(operation.is_open() || done, "{rest}");
        } else {
            check_error(case, answer);
            assert!(operation.may_fail_when_done() || !done, "refused but done: {answer}");
            if !operation.is_open() && case.call != "unlinkat" {
                assert_eq!(names(&base.pool().join("work")), BTreeSet::new(), "left in work/: {answer}");
            }
        }
        self.check_other_process();
        let retry = process.ask("run");
        assert!(retry.starts_with("ok"), "the retry in the same process: {retry}; {}", process.stderr());
        assert!(operation.is_open() || operation.is_done(base, &self.before), "the retry took effect");
        // The reaper retries failed removals only after a while. After any other failure, the trash must become empty now.
        let trash = || names(&base.pool().join("trash"));
        if !["unlinkat", "openat2", "openat", "getdents64", "fcntl"].contains(&case.call) {
            let removed = (0..500).any(|_| {
                sleep_ms(if operation.kept().contains(&trash().len()) { 0 } else { 10 });
                operation.kept().contains(&trash().len())
            });
            assert!(removed, "left in trash/: {:?}", trash());
        }
        drop(process);
        self.check_restart();
        log.contains("(INJECTED)")
    }
}

/// Checks that an error says what failed.
fn check_error(case: Case, answer: &str) {
    let (kind, text) = match case.fault {
        Fault::NoSpace => ("NoSpace", "No space left on device"),
        Fault::Io | Fault::Kill | Fault::KillBesideOther => ("Unavailable", "Input/output error"),
    };
    let kind = if case.operation.is_open() { "Unavailable" } else { kind };
    assert!(answer.starts_with(kind) && answer.contains(text), "expected {kind}: {answer}");
    let (_, name) = case.operation.object();
    let named = [name, OLD, RETAINED, TRASHED, SNAPSHOT, GROUP[1], "group snapshot", "target", "pool p"]
        .iter()
        .any(|word| !word.is_empty() && answer.contains(word));
    assert!(named, "the error does not name its object: {answer}");
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

/// The calls that are made to fail. Only the 256 lock files of a new pool make more than 64 calls: some stand for all.
fn positions(largest: usize) -> impl Iterator<Item = usize> {
    (1..=largest).filter(move |at| *at <= 32 || at + 32 > largest)
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

/// The faults of an operation that makes these calls.
fn cases_of(backend: &Backend, operation: Operation, counts: BTreeMap<&'static str, usize>) -> Vec<Case> {
    let mut cases = Vec::new();
    for (call, largest) in counts {
        let faults: &[_] = match (READS.contains(&call), operation.is_open()) {
            (true, _) => &[Fault::Io],
            (false, true) => &[Fault::Kill, Fault::NoSpace, Fault::Io],
            (false, false) => &[Fault::Kill, Fault::KillBesideOther, Fault::NoSpace, Fault::Io],
        };
        for at in positions(largest) {
            cases.extend(faults.iter().map(|fault| Case { operation, fault: *fault, call, at }));
        }
    }
    if !backend.is_in_memory() {
        let every = std::env::var("ORLOP_CRASH_EVERY").map_or(100, |text| text.parse().unwrap());
        let (own, others): (Vec<_>, Vec<_>) =
            cases.into_iter().partition(|case| backend.calls.contains(&case.call));
        let own = own.into_iter().step_by((every / 20).max(1));
        cases = match std::env::var("ORLOP_CRASH_CALLS") {
            Ok(only) => {
                assert_eq!(only, "own");
                own.collect()
            }
            Err(_) => own.chain(others.into_iter().step_by(every)).collect(),
        };
    }
    cases
}

#[expect(clippy::print_stderr, reason = "prints figures for the log")]
fn check_every_operation(ground: &Ground) {
    let only = std::env::var("ORLOP_CRASH_ONLY").unwrap_or_default();
    let operations =
        ALL.iter().copied().filter(|operation| format!("{operation:?}").contains(&only)).collect();
    let mut cases = Vec::new();
    for (operation, counts) in in_parallel(operations, |operation| count_calls(ground, *operation)) {
        let counts = counts.unwrap_or_else(|error| panic!("{operation:?} without a fault: {error}"));
        cases.extend(cases_of(ground.backend, operation, counts));
    }
    let (all, began) = (cases.len(), Instant::now());
    eprintln!("{all} faults: {:?}", count_cases(&cases));
    let results = in_parallel(cases, |case| run_case(ground, *case));
    let hit = results.iter().filter(|(_, result)| *result == Ok(true)).count();
    eprintln!("{hit} of {all} faults were injected in {} s", began.elapsed().as_secs());
    let failures = results.iter().filter_map(|(case, result)| Some((case, result.as_ref().err()?)));
    let failures: Vec<_> = failures.map(|(case, error)| format!("{case:?}: {error}")).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(hit * 10 >= all * 9, "too few faults were injected");
}

#[test]
fn every_operation_is_atomic_under_kills_and_failing_calls() {
    if can_run() {
        let test = "faults::crash::every_operation_is_atomic_under_kills_and_failing_calls";
        on_each_backend(test, check_every_operation);
    }
}
