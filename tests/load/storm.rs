//! Many processes with many threads on one pool, which are killed and started again: nothing is done twice, no lock is
//! lost, the sum of sizes never exceeds the limit, and in the end all processes agree with the disk.
//!
//! `ORLOP_STRESS_SECONDS` is the duration; the default is 60.

mod history;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_UNLCK, F_WRLCK, flock};
use orlop::engine::Engine;
use uuid::Uuid;

use self::history::{Observation, check_history};
use super::concurrency::seconds;
use crate::common::child::ChildProcess;
use crate::common::pool::{Report, check, memory_dir, names, open, read_record, request};
use crate::common::random::Random;
use crate::common::wait::sleep_ms;

const PROCESSES: u64 = 8;
const THREADS: u64 = 8;

/// Volumes that are created empty. Those whose name ends with "kept" stay in the trash when they are deleted.
const EMPTY: [&str; 8] = ["a", "b", "c", "d", "a-kept", "b-kept", "c-kept", "d-kept"];
/// Volumes that are created as copies.
const COPIES: [&str; 4] = ["copy-1", "copy-2", "copy-3", "copy-4"];
const SNAPSHOTS: [&str; 3] = ["snapshot-1", "snapshot-2", "snapshot-3"];
/// A volume that always exists, and its number of files.
const SOURCE: &str = "source";
const FILES: usize = 8;

/// The directories of the test.
struct Directories {
    top: PathBuf,
}

impl Directories {
    fn new(top: &Path) -> Self {
        Self { top: top.to_owned() }
    }

    fn pool(&self) -> PathBuf {
        self.top.join("pool")
    }

    /// The log of a thread.
    fn log(&self, name: &str) -> fs::File {
        fs::File::create_new(self.top.join("logs").join(name)).unwrap()
    }

    /// A file for each panic of a process.
    fn failures(&self) -> PathBuf {
        self.top.join("failures")
    }

    /// A link for each critical section that a process is in.
    fn sections(&self) -> PathBuf {
        self.top.join("sections")
    }

    /// A file for each process that was killed.
    fn killed(&self, process: &str) -> PathBuf {
        self.top.join("killed").join(process)
    }

    /// The process that is in a critical section; `None` if there is none, or it was killed there.
    fn living(&self, section: &Path) -> Option<String> {
        let holder = fs::read_link(section).ok()?.into_os_string().into_string().unwrap();
        (!self.killed(&holder).exists()).then_some(holder)
    }
}

fn start_process(dirs: &Directories, seed: u64) -> ChildProcess {
    let variables =
        [(process::DIRECTORY, dirs.top.to_str().unwrap().to_owned()), (process::SEED, seed.to_string())];
    ChildProcess::start("load::storm::process::child_process", &variables)
}

#[test]
fn processes_that_are_killed_and_started_share_a_pool() {
    let dir = memory_dir();
    let dirs = Directories::new(dir.path());
    for name in ["pool", "logs", "failures", "sections", "killed"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let observer = open(&dirs.pool());
    observer.create(&request(SOURCE, 0)).unwrap();
    for file in 0..FILES {
        fs::write(dirs.pool().join(format!("volumes/{SOURCE}/data/{file}")), "x").unwrap();
    }
    let limit = observer.pools()[0].total;
    let mut storm = Storm { dirs: &dirs, limit, kept: BTreeSet::new(), largest: 0, kills: 0 };
    let mut processes = storm.run();
    check_end(&dirs, &observer, &mut processes);
    storm.collect_kept();
    check_logs(&storm);
}

/// What the parent does and observes while the processes work.
struct Storm<'d> {
    dirs: &'d Directories,
    /// The largest sum of sizes that the pool may have.
    limit: u64,
    /// The volumes that were found in the trash.
    kept: BTreeSet<Uuid>,
    /// The largest sum of sizes that was seen.
    largest: u64,
    kills: u64,
}

impl Storm<'_> {
    /// Runs the processes for the duration of the test, and returns the last ones.
    fn run(&mut self) -> Vec<ChildProcess> {
        let mut random = Random::new(1);
        let mut processes: Vec<_> = (0..PROCESSES).map(|seed| start_process(self.dirs, seed)).collect();
        let deadline = Instant::now() + Duration::from_secs(seconds());
        let mut next_kill = Instant::now();
        while Instant::now() < deadline {
            self.check_sum();
            self.collect_kept();
            check_failures(self.dirs);
            if Instant::now() >= next_kill {
                let which = usize::try_from(random.pick(PROCESSES)).unwrap();
                self.kill(&mut processes[which]);
                self.kills += 1;
                processes[which] = start_process(self.dirs, PROCESSES + self.kills);
                next_kill = Instant::now() + Duration::from_millis(random.pick(600));
            }
            sleep_ms(2);
        }
        processes
    }

    fn kill(&self, process: &mut ChildProcess) {
        fs::write(self.dirs.killed(&process.id().to_string()), "").unwrap();
        process.kill();
    }

    /// Checks the sum of sizes on disk, without any lock: volumes that are read twice, one time after the other, exist
    /// together in between, since no uid returns and sizes only grow.
    fn check_sum(&mut self) {
        let (first, second) = (volumes_on_disk(&self.dirs.pool()), volumes_on_disk(&self.dirs.pool()));
        let both = first.iter().filter(|(uid, _)| second.contains_key(uid));
        let sum = both.map(|(_, size)| size).sum();
        assert!(sum <= self.limit, "{sum} bytes are provisioned, and {} are allowed: {first:?}", self.limit);
        self.largest = self.largest.max(sum);
    }

    /// Takes the kept volumes out of the trash. No volume is deleted twice.
    fn collect_kept(&mut self) {
        let trash = self.dirs.pool().join("trash");
        for entry in names(&trash).into_iter().filter(|entry| entry.contains(".keep.")) {
            let uid = uid_of(&read_record(&trash.join(&entry).join("volume.json")));
            assert!(self.kept.insert(uid), "{entry} was deleted twice");
            fs::remove_dir_all(trash.join(&entry)).unwrap();
        }
    }
}

fn uid_of(record: &serde_json::Value) -> Uuid {
    record["uid"].as_str().unwrap().parse().unwrap()
}

/// The uids and sizes of the volumes on disk. Every record that can be opened is complete.
fn volumes_on_disk(pool: &Path) -> BTreeMap<Uuid, u64> {
    let mut found = BTreeMap::new();
    for name in EMPTY.iter().chain(&COPIES) {
        let Ok(record) = fs::read(pool.join("volumes").join(name).join("volume.json")) else { continue };
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        found.insert(uid_of(&record), record["size"].as_u64().unwrap());
    }
    found
}

fn check_failures(dirs: &Directories) {
    if let Some(failure) = names(&dirs.failures()).pop_first() {
        panic!("process {failure}: {}", fs::read_to_string(dirs.failures().join(&failure)).unwrap());
    }
}

/// Stops all processes; checks that their listings agree with each other and with the disk, and that nothing is left.
fn check_end(dirs: &Directories, observer: &Engine, processes: &mut [ChildProcess]) {
    // All at once: a reaper has the lowest priority, so it would wait for the processes that still work.
    let mut ask = |request: &str| -> Vec<Report> {
        processes.iter_mut().for_each(|process| process.send(request));
        let answers: Vec<_> = processes.iter_mut().map(ChildProcess::receive).collect();
        check_failures(dirs);
        answers.iter().map(|answer| serde_json::from_str(answer).unwrap()).collect()
    };
    ask("stop");
    check(observer, &dirs.pool());
    for report in ask("report") {
        assert_eq!(report, Report::of(observer));
    }
    let trash = names(&dirs.pool().join("trash"));
    assert!(trash.iter().all(|entry| entry.contains(".keep.")), "left in the trash: {trash:?}");
    assert_eq!(held_locks(&dirs.pool()), BTreeSet::new(), "locks are held");
    for name in COPIES {
        let volume = dirs.pool().join("volumes").join(name);
        if volume.exists()
            && read_record(&volume.join("volume.json"))["source"]["volume"] == format!("p/{SOURCE}")
        {
            assert_eq!(names(&volume.join("data")).len(), FILES, "{name} is incomplete");
        }
    }
}

/// The lock files in which any process holds a lock.
fn held_locks(pool: &Path) -> BTreeSet<String> {
    let locks = pool.join("locks");
    let is_locked = |name: &String| {
        let file = fs::File::options().read(true).write(true).open(locks.join(name)).unwrap();
        let kind = |kind: i32| i16::try_from(kind).unwrap();
        let mut range = flock { l_type: kind(F_WRLCK), l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut range)).unwrap();
        range.l_type != kind(F_UNLCK)
    };
    names(&locks).into_iter().filter(is_locked).collect()
}

/// Checks that the answers of all processes fit one history, and that no created volume was lost.
#[expect(clippy::print_stderr, reason = "prints figures for the log")]
fn check_logs(storm: &Storm<'_>) {
    let (mut observations, mut counts) = (BTreeMap::<String, Vec<_>>::new(), BTreeMap::<_, u64>::new());
    let mut created = BTreeSet::new();
    for log in names(&storm.dirs.top.join("logs")) {
        let text = fs::read_to_string(storm.dirs.top.join("logs").join(log)).unwrap();
        // A process that was killed may have written a part of its last line.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let words: Vec<_> = line.split_whitespace().collect();
            let [start, end, what, object, seen, kind] = words[..] else { panic!("{line}") };
            *counts.entry(format!("{what} {kind}")).or_default() += 1;
            if seen == "-" {
                continue;
            }
            let uid = (seen != "none").then(|| seen.parse().unwrap());
            created.extend(uid.filter(|_| what == "create" && object.ends_with("kept")));
            let observation = Observation { start: start.parse().unwrap(), end: end.parse().unwrap(), uid };
            observations.entry(object.to_owned()).or_default().push(observation);
        }
    }
    for (name, observations) in &observations {
        check_history(observations).unwrap_or_else(|contradiction| panic!("{name}: {contradiction}"));
    }
    let exist: BTreeSet<_> = volumes_on_disk(&storm.dirs.pool()).into_keys().collect();
    assert!(storm.kept.is_disjoint(&exist), "a volume exists and was deleted");
    let lost: Vec<_> =
        created.iter().filter(|uid| !storm.kept.contains(uid) && !exist.contains(uid)).collect();
    assert!(lost.is_empty(), "created volumes are neither in the pool nor in the trash: {lost:?}");
    let percent = storm.largest * 100 / storm.limit;
    eprintln!(
        "{} kills, {} volumes kept, at most {percent} % provisioned: {counts:?}",
        storm.kills,
        storm.kept.len()
    );
    for answer in ["create Ok", "create NoSpace", "clone Ok", "delete Ok", "expand Ok", "snapshot Ok"] {
        assert!(
            counts.get(answer).is_some_and(|count| *count > 0),
            "no call had the answer {answer:?}: {counts:?}"
        );
    }
    assert!(percent > 80, "the pool was never full: {percent} %");
}
