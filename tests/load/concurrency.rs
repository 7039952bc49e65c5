//! Many concurrent callers, on one volume and on many: nothing is done twice, nothing is lost, no caller waits forever.
//!
//! `ORLOP_STRESS_SECONDS` is the duration of the longest test; the default is 60.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, PoolSettings, Publish, Sharing, SnapshotFilter, Tuning};
use orlop::error::{Kind, Result};
use orlop::mount::{self, MountFlags};
use orlop::volume::{PolicyChange, SizeRange, Source, VolumeId};

use crate::common::isolation::in_own_process;
use crate::common::pool::{
    check, clone_request, copy_request, id, memory_dir, names, open_with, request, settings, snapshot_request,
};
use crate::common::random::Random;
use crate::common::wait::{StopOnDrop, retry_busy, sleep_ms, within_seconds};

const CALLERS: usize = 32;
/// Files in every volume whose copies are counted.
const FILES: u64 = 20;

pub(super) fn seconds() -> u64 {
    std::env::var("ORLOP_STRESS_SECONDS").map_or(60, |text| text.parse().unwrap())
}

/// Requests wait for copies only briefly.
fn short_waits() -> Tuning {
    Tuning { copy_wait: Duration::from_millis(20), ..Tuning::default() }
}

fn engine(pool: &Path) -> Engine {
    open_with(pool, short_waits())
}

#[test]
fn concurrent_creates_of_one_name_return_one_volume() {
    let dir = memory_dir();
    let engine = engine(dir.path());
    for round in 0..50 {
        let name = format!("v{round}");
        let start = Barrier::new(CALLERS);
        let answers: Vec<_> = std::thread::scope(|scope| {
            let call = |which: usize| {
                start.wait();
                // Half of the callers request another size.
                let size = 4096 << (which % 2);
                let range = SizeRange { required: size, limit: size };
                retry_busy(|| engine.create(&CreateVolume { size: range, ..request(&name, 0) }))
            };
            let callers: Vec<_> = (0..CALLERS).map(|which| scope.spawn(move || call(which))).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        let volumes: BTreeSet<_> = answers.iter().flatten().map(|v| (v.uid, v.size)).collect();
        assert_eq!(volumes.len(), 1, "successful callers got different volumes");
        let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        assert_eq!(refused.len(), CALLERS / 2);
        assert!(refused.iter().all(|error| error.kind() == Kind::Conflict));
    }
    check(&engine, dir.path());
}

#[test]
fn concurrent_requests_for_one_copy_make_it_once() {
    let dir = memory_dir();
    // No caller waits for the whole copy, so many callers with different sizes join it at its end.
    let tuning = Tuning { copy_wait: Duration::from_millis(3), ..Tuning::default() };
    let engine = Engine::open(vec![settings(dir.path())], tuning).unwrap();
    engine.create(&request("source", 4096)).unwrap();
    for file in 0..1000 {
        fs::write(dir.path().join(format!("volumes/source/data/{file}")), vec![0; 1000]).unwrap();
    }
    for round in 0..5 {
        let name = format!("v{round}");
        let start = Barrier::new(CALLERS);
        let answers: Vec<_> = std::thread::scope(|scope| {
            let call = |which: u64| {
                start.wait();
                // Half of the callers accept a larger size.
                let limit = if which.is_multiple_of(2) { 8 << 20 } else { 16 << 20 };
                let range = SizeRange { required: limit, limit };
                let request = CreateVolume { size: range, ..clone_request(&name, &id("source")) };
                (retry_busy(|| engine.create(&request)), range)
            };
            let callers: Vec<_> = (0..CALLERS as u64).map(|which| scope.spawn(move || call(which))).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        let mut volumes = BTreeSet::new();
        for (answer, range) in answers {
            match answer {
                Ok(volume) => {
                    assert!(range.admits(volume.size), "got {} for {range:?}", volume.size);
                    volumes.insert(volume.uid);
                }
                Err(error) => assert_eq!(error.kind(), Kind::Conflict, "{}", error.chain()),
            }
        }
        assert_eq!(volumes.len(), 1);
        assert_eq!(names(&dir.path().join("volumes").join(&name).join("data")).len(), 1000);
    }
    assert_eq!(engine.active_jobs(), 0);
    check(&engine, dir.path());
}

#[test]
fn concurrent_creates_can_use_the_whole_capacity() {
    let dir = memory_dir();
    let probe = engine(dir.path());
    let free = probe.capacity(None).unwrap().available;
    drop(probe);
    // A pool that can provision 64 MiB: 2 MiB for each caller.
    let size = 2 << 20;
    let exact = PoolSettings { reserve: free - size * CALLERS as u64, ..settings(dir.path()) };
    let engine = Engine::open(vec![exact], short_waits()).unwrap();
    within_seconds(60, "the pool is available", || engine.pools()[0].unavailable.is_none());
    for _ in 0..20 {
        let start = Barrier::new(CALLERS);
        std::thread::scope(|scope| {
            for which in 0..CALLERS {
                let (engine, start) = (&engine, &start);
                scope.spawn(move || {
                    start.wait();
                    // Records and directories take a little space of a tmpfs, so request only half.
                    let made = engine.create(&request(&format!("v{which}"), size / 2)).map(drop);
                    made.unwrap_or_else(|error| panic!("{}", error.chain()));
                });
            }
        });
        for which in 0..CALLERS {
            engine.delete(&id(&format!("v{which}"))).unwrap();
        }
        assert_eq!(engine.pools()[0].provisioned, 0);
    }
}

/// Reads do not disturb: a volume that is created and deleted during reads is listed exactly while it exists.
#[test]
fn reads_do_not_change_the_index() {
    let dir = memory_dir();
    let engine = engine(dir.path());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = engine.get(&id("v"));
                    let _ = engine.health(&id("v"), None);
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        for _ in 0..300 {
            retry_busy(|| engine.create(&request("v", 4096))).unwrap();
            assert_eq!(engine.pools()[0].provisioned, 4096);
            assert_eq!(engine.list(None, 10).unwrap().items.len(), 1);
            retry_busy(|| engine.expand(&id("v"), SizeRange { required: 8192, limit: 0 })).unwrap();
            assert_eq!(engine.pools()[0].provisioned, 8192);
            retry_busy(|| engine.delete(&id("v"))).unwrap();
            assert_eq!(engine.pools()[0].provisioned, 0);
            assert_eq!(engine.list(None, 10).unwrap().items.len(), 0);
        }
    });
}

/// A snapshot or clone that is reported as ready is never a copy of a volume that was being removed.
#[test]
fn a_copy_of_a_volume_being_deleted_is_complete_or_absent() {
    let dir = memory_dir();
    let engine = engine(dir.path());
    let mut ready = 0;
    for round in 0..150 {
        retry_busy(|| engine.create(&request("v", 0))).unwrap();
        for file in 0..FILES {
            fs::write(dir.path().join(format!("volumes/v/data/{file}")), "x").unwrap();
        }
        let start = Barrier::new(3);
        let (snapshot, clone) = std::thread::scope(|scope| {
            let snapshot = scope.spawn(|| {
                start.wait();
                engine.create_snapshot(&snapshot_request(&format!("s{round}"), &id("v"))).map(drop)
            });
            let clone = scope.spawn(|| {
                start.wait();
                engine.create(&clone_request(&format!("c{round}"), &id("v"))).map(drop)
            });
            start.wait();
            retry_busy(|| engine.delete(&id("v"))).unwrap();
            (snapshot.join().unwrap(), clone.join().unwrap())
        });
        for result in [snapshot, clone] {
            let result = result.map_err(|error| (error.kind(), error.chain()));
            assert!(matches!(result, Ok(()) | Err((Kind::NotFound | Kind::Busy, _))), "{result:?}");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while engine.active_jobs() > 0 && Instant::now() < deadline {
            sleep_ms(1);
        }
        for (kind, name) in [("snapshots", format!("s{round}")), ("volumes", format!("c{round}"))] {
            let object = dir.path().join(kind).join(name);
            if object.exists() {
                assert_eq!(
                    names(&object.join("data")).len() as u64,
                    FILES,
                    "{} is incomplete",
                    object.display()
                );
                ready += 1;
            }
        }
    }
    assert!(ready > 0, "no copy was complete before the deletion");
    check(&engine, dir.path());
}

/// The remains of a cancelled copy are removed at once, and not only at the next start.
#[test]
fn a_cancelled_copy_leaves_nothing() {
    let dir = memory_dir();
    let engine = engine(dir.path());
    engine.create(&request("v", 0)).unwrap();
    for file in 0..2000 {
        fs::write(dir.path().join(format!("volumes/v/data/{file}")), vec![1; 10_000]).unwrap();
    }
    for _ in 0..5 {
        assert!(
            !engine.create_snapshot(&snapshot_request("s", &id("v"))).unwrap().ready,
            "the copy is too fast for this test"
        );
        retry_busy(|| engine.delete_snapshot(&id("s"))).unwrap();
        assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        for directory in ["work", "trash", "snapshots"] {
            assert_eq!(names(&dir.path().join(directory)).len(), 0, "left in {directory}/");
        }
    }
}

/// What the callers of the long test share.
struct Shared {
    engine: Engine,
    pool: PathBuf,
    targets: PathBuf,
    stop: AtomicBool,
    /// The number of calls of each caller.
    done: Vec<AtomicU64>,
    /// The number of answers for each operation and error kind.
    answers: Mutex<BTreeMap<(&'static str, Option<String>), u64>>,
}

/// A caller of the long test.
struct Caller<'s> {
    shared: &'s Shared,
    number: usize,
    random: Random,
}

impl Caller<'_> {
    fn pick(&mut self, bound: u64) -> u64 {
        self.random.pick(bound)
    }

    /// A volume: half of the time the one that all callers share.
    fn volume(&mut self) -> VolumeId {
        match self.pick(16) {
            which @ 0..8 => id(&format!("v{which}")),
            _ => id("shared"),
        }
    }

    /// Counts an answer, and checks that an error is of an allowed kind.
    fn record<T>(&self, what: &'static str, answer: &Result<T>, allowed: &[Kind]) {
        let kind = answer.as_ref().err().map(|error| format!("{:?}", error.kind()));
        *self.shared.answers.lock().unwrap().entry((what, kind)).or_default() += 1;
        if let Err(error) = answer {
            assert!(allowed.contains(&error.kind()), "{what}: {:?} {}", error.kind(), error.chain());
        }
    }

    /// Makes one random call.
    fn call(&mut self) {
        use Kind::{Busy, Conflict, InUse, NotFound, OutOfRange};
        let (engine, volume) = (&self.shared.engine, self.volume());
        let name = volume.name.to_string();
        match self.pick(12) {
            0..3 => self.record("create", &engine.create(&request(&name, 4096)), &[Busy, Conflict]),
            3 => {
                let source = Source::Volume(self.volume());
                // On a slow machine, what uses the source may not be found in time.
                self.record(
                    "clone",
                    &engine.create(&copy_request(&name, source)),
                    &[Busy, Conflict, InUse, NotFound, OutOfRange],
                );
            }
            4 => self.record("delete", &engine.delete(&volume), &[Busy, InUse]),
            5 => {
                let range = SizeRange { required: 4096 + self.pick(1 << 20), limit: 0 };
                self.record("expand", &engine.expand(&volume, range), &[Busy, NotFound]);
            }
            6 => {
                let trash_for = Some(Duration::from_secs(self.pick(100)));
                let change = PolicyChange { trash_for, ..PolicyChange::default() };
                self.record("modify", &engine.modify(&volume, change), &[Busy, NotFound]);
            }
            7 => {
                let request = snapshot_request(&format!("s{}", self.pick(4)), &volume);
                self.record(
                    "snapshot",
                    &engine.create_snapshot(&request),
                    &[Busy, Conflict, InUse, NotFound],
                );
            }
            8 => {
                let snapshot = id(&format!("s{}", self.pick(4)));
                self.record("delete snapshot", &engine.delete_snapshot(&snapshot), &[Busy]);
            }
            9 => {
                let source = Source::Snapshot(id(&format!("s{}", self.pick(4))));
                self.record(
                    "restore",
                    &engine.create(&copy_request(&name, source)),
                    &[Busy, Conflict, NotFound, OutOfRange],
                );
            }
            10 => {
                engine.list(None, 100).unwrap();
                engine.list_snapshots(&SnapshotFilter::default(), None, 100).unwrap();
                self.record("get", &engine.get(&volume), &[NotFound]);
                assert_eq!(engine.pools().len(), 1);
            }
            _ => self.publish(&volume),
        }
    }

    /// Publishes a volume, and checks that it cannot be deleted while it is published.
    fn publish(&mut self, volume: &VolumeId) {
        use Kind::{Busy, Conflict, InUse, NotFound};
        let engine = &self.shared.engine;
        // Every fourth time at a target that all callers share.
        let shared = self.pick(4) == 0;
        let name = if shared { "shared".to_owned() } else { format!("of-{}", self.number) };
        let target = self.shared.targets.join(name);
        let request = Publish {
            id: volume.clone(),
            target: target.clone(),
            flags: MountFlags::default(),
            sharing: if self.pick(3) == 0 { Sharing::OneTarget } else { Sharing::ManyTargets },
            ephemeral: None,
        };
        let answer = engine.publish(&request);
        self.record("publish", &answer, &[Busy, Conflict, InUse, NotFound]);
        if answer.is_ok() && !shared {
            let file = target.join(format!("of-{}", self.number));
            fs::write(&file, "text").unwrap();
            let deleted = engine.delete(volume);
            assert!(deleted.is_err(), "{volume} was deleted while it was in use");
            self.record("delete in use", &deleted, &[Busy, InUse]);
            assert_eq!(fs::read(&file).unwrap(), b"text");
            assert_eq!(engine.get(volume).unwrap().id, *volume, "a published volume exists");
        }
        let text = volume.to_string();
        let unpublished = if shared {
            engine.unpublish(&text, &target)
        } else {
            retry_busy(|| engine.unpublish(&text, &target))
        };
        // At the shared target, another volume may be mounted by now.
        self.record("unpublish", &unpublished, if shared { &[Busy, Conflict, InUse] } else { &[] });
        assert!(shared || !target.exists(), "{} still exists", target.display());
    }
}

#[test]
fn mixed_operations_run_concurrently_without_errors() {
    let test = "load::concurrency::mixed_operations_run_concurrently_without_errors";
    in_own_process(test, run_mixed_operations);
}

#[expect(clippy::print_stderr, reason = "prints figures for the log")]
fn run_mixed_operations() {
    let dir = memory_dir();
    let base = dir.path().canonicalize().unwrap();
    let (pool, targets) = (base.join("pool"), base.join("targets"));
    fs::create_dir_all(&pool).unwrap();
    fs::create_dir_all(&targets).unwrap();
    let shared = Arc::new(Shared {
        engine: engine(&pool),
        pool,
        targets,
        stop: AtomicBool::new(false),
        done: (0..CALLERS).map(|_| AtomicU64::new(0)).collect(),
        answers: Default::default(),
    });
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let random = Random::new(number as u64);
                let mut caller = Caller { shared: &shared, number, random };
                while !shared.stop.load(Ordering::Relaxed) {
                    caller.call();
                    shared.done[number].fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    check_progress(&shared, &callers);
    shared.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().unwrap();
    }
    let total: u64 = shared.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
    eprintln!("{total} calls: {:?}", shared.answers.lock().unwrap());
    remove_everything(&shared);
}

/// Checks for the whole duration that every caller makes progress.
fn check_progress(shared: &Shared, callers: &[std::thread::JoinHandle<()>]) {
    let deadline = Instant::now() + Duration::from_secs(seconds());
    let mut last = vec![(0, Instant::now()); CALLERS];
    while Instant::now() < deadline {
        sleep_ms(200);
        for (number, (seen, when)) in last.iter_mut().enumerate() {
            let now = shared.done[number].load(Ordering::Relaxed);
            if now != *seen {
                (*seen, *when) = (now, Instant::now());
            }
            assert!(!callers[number].is_finished(), "caller {number} failed");
            assert!(when.elapsed() < Duration::from_secs(60), "caller {number} makes no progress");
        }
    }
}

/// Removes everything after the callers have ended, and checks that nothing is left.
fn remove_everything(shared: &Shared) {
    let engine = &shared.engine;
    let deadline = Instant::now() + Duration::from_secs(30);
    while engine.active_jobs() > 0 && Instant::now() < deadline {
        // A failed job is kept until a request has received its error.
        for which in 0..8 {
            let _ = engine.create(&request(&format!("v{which}"), 0));
            let _ = engine.delete_snapshot(&id(&format!("s{which}")));
        }
        let _ = engine.create(&request("shared", 0));
        sleep_ms(10);
    }
    let target = shared.targets.join("shared");
    if let Some(mounted) = mount::mounted_at(&target).unwrap() {
        let name = mounted.root.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        engine.unpublish(&format!("p/{name}"), &target).unwrap();
    }
    assert!(mount::mounted_at(&target).unwrap().is_none(), "it was mounted twice");
    check(engine, &shared.pool);
    for name in names(&shared.pool.join("volumes")) {
        engine.delete(&id(&name)).unwrap_or_else(|error| panic!("{}", error.chain()));
    }
    for name in names(&shared.pool.join("snapshots")) {
        engine.delete_snapshot(&id(&name)).unwrap();
    }
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    check(engine, &shared.pool);
    let status = engine.pools().remove(0);
    assert_eq!((status.provisioned, status.volumes, status.snapshots), (0, 0, 0));
    assert_eq!(names(&shared.pool.join("trash")).len(), 0);
}
