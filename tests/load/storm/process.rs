//! One of the processes: its threads make random calls until the process is told to stop, or killed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, SnapshotFilter, Tuning};
use orlop::error::{Error, Kind, Result};
use orlop::pool::locks::Mode;
use orlop::pool::object::{ObjectKey, ObjectKind};
use orlop::pool::store::Store;
use orlop::volume::{Name, OnDelete, Policy, SizeRange, Source, VolumeId};
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use super::{COPIES, Directories, EMPTY, SNAPSHOTS, SOURCE, THREADS};
use crate::common::child::serve;
use crate::common::pool::{Report, copy_request, id, open_with, request, snapshot_request};
use crate::common::random::Random;
use crate::common::wait::within_seconds;

/// Environment variables of the process.
pub(super) const DIRECTORY: &str = "ORLOP_STORM_DIRECTORY";
pub(super) const SEED: &str = "ORLOP_STORM_SEED";

/// Number of critical sections that all threads of all processes share.
const SECTIONS: u64 = 3;

/// Runs the process. Does nothing when it runs as a test.
#[test]
fn child_process() {
    let (Ok(dir), Ok(seed)) = (std::env::var(DIRECTORY), std::env::var(SEED)) else { return };
    let (directories, seed): (_, u64) = (Directories::new(Path::new(&dir)), seed.parse().unwrap());
    report_panics(directories.failures());
    let tuning = Tuning { copy_wait: Duration::from_millis(20), ..Tuning::default() };
    let engine = open_with(&directories.pool(), tuning);
    let store = open_store(&directories.pool());
    let total = engine.pools()[0].total;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut callers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let random = Random::new(seed * THREADS + thread);
                let log = directories.log(&format!("{}-{thread}", std::process::id()));
                let mut caller =
                    Caller { engine: &engine, store: &store, dirs: &directories, log, total, random };
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        caller.call();
                    }
                })
            })
            .collect();
        serve(|request| {
            if request == "stop" {
                stop.store(true, Ordering::Relaxed);
                callers.drain(..).for_each(|caller| caller.join().unwrap());
                within_seconds(60, "the copies end", || engine.active_jobs() == 0);
                assert!(engine.wait_for_reaper(Duration::from_secs(120)));
            }
            serde_json::to_string(&Report::of(&engine)).unwrap()
        });
        stop.store(true, Ordering::Relaxed);
    });
}

/// Makes every panic a file, which the parent finds even if the process is killed.
fn report_panics(failures: PathBuf) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current().id();
        fs::write(failures.join(format!("{}-{thread:?}", std::process::id())), panic.to_string()).unwrap();
        print(panic);
    }));
}

/// The pool's locks, beside those of the engine, as another process has them.
fn open_store(pool: &Path) -> Store {
    Store::open(fs::File::open(pool).unwrap().into(), false, Duration::from_secs(1)).unwrap()
}

/// A thread that makes calls.
struct Caller<'p> {
    engine: &'p Engine,
    store: &'p Store,
    dirs: &'p Directories,
    /// One line for each answer.
    log: fs::File,
    /// What the pool can provision.
    total: u64,
    random: Random,
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

impl Caller<'_> {
    fn pick(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.pick(bound as u64)).unwrap()
    }

    /// A size of which the pool has room for about ten.
    fn size(&mut self) -> SizeRange {
        SizeRange { required: self.total / 20 * (1 + self.random.pick(3)), limit: 0 }
    }

    /// A volume that is created empty or as a copy.
    fn volume(&mut self) -> String {
        match self.pick(3) {
            0 => COPIES[self.pick(COPIES.len())].to_owned(),
            _ => EMPTY[self.pick(EMPTY.len())].to_owned(),
        }
    }

    /// A source of a copy: often the one that is never deleted.
    fn source(&mut self) -> VolumeId {
        if self.pick(2) == 0 { id(SOURCE) } else { id(EMPTY[self.pick(EMPTY.len())]) }
    }

    fn snapshot(&mut self) -> &'static str {
        SNAPSHOTS[self.pick(SNAPSHOTS.len())]
    }

    /// Makes a call and logs its answer: the uid of the object, `none` if there is no object, or `-` if the answer says
    /// nothing about it.
    fn log(
        &mut self,
        what: &str,
        object: &str,
        allowed: &[Kind],
        call: impl FnOnce(&Engine) -> Result<Option<Uuid>>,
    ) {
        let start = now();
        let answer = call(self.engine);
        let end = now();
        let (seen, kind) = match &answer {
            Ok(Some(uid)) if uid.is_nil() => ("-".to_owned(), "Pending".to_owned()),
            Ok(Some(uid)) => (uid.to_string(), "Ok".to_owned()),
            Ok(None) => ("none".to_owned(), "Ok".to_owned()),
            Err(error) => {
                assert!(
                    allowed.contains(&error.kind()),
                    "{what} {object}: {:?} {}",
                    error.kind(),
                    error.chain()
                );
                // A copy does not find its source: that is no news about the object.
                let none =
                    error.kind() == Kind::NotFound && !["clone", "restore", "snapshot"].contains(&what);
                (if none { "none" } else { "-" }.to_owned(), format!("{:?}", error.kind()))
            }
        };
        self.log.write_all(format!("{start} {end} {what} {object} {seen} {kind}\n").as_bytes()).unwrap();
    }

    /// Makes one random call.
    fn call(&mut self) {
        use Kind::{Busy, Conflict, NoSpace, NotFound};
        let volume = self.volume();
        match self.pick(20) {
            0..4 => {
                let name = EMPTY[self.pick(EMPTY.len())];
                // The parent takes the volumes that are kept in the trash.
                let on_delete = if name.ends_with("kept") { OnDelete::Retain } else { OnDelete::Delete };
                let policy = Policy { on_delete, ..Policy::default() };
                let request = CreateVolume { size: self.size(), policy, ..request(name, 0) };
                self.log("create", name, &[Busy, Conflict, NoSpace], |engine| {
                    engine.create(&request).map(|made| Some(made.uid))
                });
            }
            4..6 => {
                let source = self.source();
                self.copy("clone", Source::Volume(source));
            }
            6 => {
                let source = Source::Snapshot(id(self.snapshot()));
                self.copy("restore", source);
            }
            7..11 => {
                self.log("delete", &volume, &[Busy], |engine| engine.delete(&id(&volume)).map(|()| None))
            }
            11..13 => {
                let size = self.size();
                self.log("expand", &volume, &[Busy, NotFound, NoSpace], |engine| {
                    engine.expand(&id(&volume), size).map(|grown| Some(grown.uid))
                });
            }
            13 => {
                let (name, source) = (self.snapshot(), self.source());
                self.log("snapshot", name, &[Busy, Conflict, NotFound], |engine| {
                    engine.create_snapshot(&snapshot_request(name, &source)).map(|made| Some(made.uid))
                });
            }
            14 => {
                let name = self.snapshot();
                self.log("delete-snapshot", name, &[Busy], |engine| {
                    engine.delete_snapshot(&id(name)).map(|()| None)
                });
            }
            15..17 => self.log("get", &volume, &[NotFound], |engine| {
                let found = engine.get(&id(&volume))?;
                assert!(found.managed, "{volume} has a record");
                Ok(Some(found.uid))
            }),
            17 => {
                self.engine.list(None, 100).unwrap();
                self.engine.list_snapshots(&SnapshotFilter::default(), None, 100).unwrap();
                assert!(self.engine.pools()[0].unavailable.is_none());
            }
            _ => self.enter_section(),
        }
    }

    fn copy(&mut self, what: &str, source: Source) {
        use Kind::{Busy, Conflict, NoSpace, NotFound, OutOfRange};
        let name = COPIES[self.pick(COPIES.len())];
        let request = CreateVolume { size: self.size(), ..copy_request(name, source) };
        self.log(what, name, &[Busy, Conflict, NoSpace, NotFound, OutOfRange], |engine| {
            engine.create(&request).map(|made| Some(made.uid))
        });
    }

    /// Enters a critical section, exclusively or shared, and checks that no other holder is in it who excludes this one.
    fn enter_section(&mut self) {
        let name = format!("section-{}", self.random.pick(SECTIONS));
        let key = ObjectKey::Object(ObjectKind::Volumes, Name::of(&name));
        let inside = self.dirs.sections().join(&name);
        if self.pick(3) == 0 {
            let Some(_guard) = self.store.locks().try_lock(key, Mode::Shared).unwrap() else { return };
            (0..2)
                .for_each(|_| assert_eq!(self.dirs.living(&inside), None, "{name} is shared and exclusive"));
            return;
        }
        match self.store.locks().lock(key) {
            Ok(_guard) => {
                assert_eq!(self.dirs.living(&inside), None, "{name} has two holders");
                let _ = fs::remove_file(&inside);
                symlink(std::process::id().to_string(), &inside).unwrap();
                std::thread::yield_now();
                fs::remove_file(&inside).unwrap();
            }
            Err(error) => assert_eq!(error.kind(), Kind::Busy, "{}", Error::chain(&error)),
        }
    }
}
