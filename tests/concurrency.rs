//! Many callers at once, on one volume and on many: nothing is done twice, nothing is lost, nobody waits for ever.
//!
//! `ORLOP_STRESS_SECONDS` says how long; 60 when it does not.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "ground/pool.rs"]
mod ground;
#[path = "ground/mounts.rs"]
mod mounts;
#[path = "ground/stop.rs"]
mod stop;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use ground::{check, copy_of, cut, id, names, pause, request, settings};
use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, PoolSettings, Publish, Sharing, SnapshotFilter, Tuning};
use orlop::error::{Error, Kind, Result};
use orlop::mount::{self, MountFlags};
use orlop::volume::{PolicyChange, SizeRange, Source, VolumeId};

const CALLERS: usize = 32;
/// Files in every volume whose copies are counted.
const FILES: u64 = 20;

fn seconds() -> u64 {
    std::env::var("ORLOP_STRESS_SECONDS").map_or(60, |text| text.parse().unwrap())
}

fn impatient() -> Tuning {
    Tuning { copy_wait: Duration::from_millis(20), ..Tuning::default() }
}

fn engine(pool: &Path) -> Engine {
    Engine::open(vec![settings(pool)], impatient()).unwrap()
}

/// Asks again while the answer is that somebody else is at it.
fn insist<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match call() {
            Err(error) if error.kind() == Kind::Busy && Instant::now() < deadline => pause(1),
            answer => return answer,
        }
    }
}

#[test]
fn one_name_asked_for_by_many_is_one_volume() {
    let dir = ground::place();
    let engine = engine(dir.path());
    for round in 0..50 {
        let name = format!("v{round}");
        let start = Barrier::new(CALLERS);
        let answers: Vec<_> = std::thread::scope(|scope| {
            let call = |which: usize| {
                start.wait();
                // Half of them want another size.
                let size = 4096 << (which % 2);
                let range = SizeRange { required: size, limit: size };
                insist(|| engine.create(&CreateVolume { size: range, ..request(&name, 0) }))
            };
            let callers: Vec<_> = (0..CALLERS).map(|which| scope.spawn(move || call(which))).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        let made: BTreeSet<_> = answers.iter().flatten().map(|v| (v.created, v.size)).collect();
        assert_eq!(made.len(), 1, "all who got one got the same");
        let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        assert_eq!(refused.len(), CALLERS / 2);
        assert!(refused.iter().all(|error| error.kind() == Kind::Conflict));
    }
    check(&engine, dir.path());
}

#[test]
fn one_copy_asked_for_by_many_is_made_once() {
    let dir = ground::place();
    // Nobody waits for the whole copy, so that those who join it at its end are many and want different sizes.
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
                // Half of them want more than the others get.
                let limit = if which.is_multiple_of(2) { 4096 } else { 8192 };
                let range = SizeRange { required: limit, limit };
                let request = CreateVolume { size: range, ..copy_of(&name, Source::Volume(id("source"))) };
                (insist(|| engine.create(&request)), range)
            };
            let callers: Vec<_> = (0..CALLERS as u64).map(|which| scope.spawn(move || call(which))).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        let mut made = BTreeSet::new();
        for (answer, range) in answers {
            match answer {
                Ok(volume) => {
                    assert!(range.admits(volume.size), "got {} for {range:?}", volume.size);
                    made.insert(volume.created);
                }
                Err(error) => assert_eq!(error.kind(), Kind::Conflict, "{}", error.chain()),
            }
        }
        assert_eq!(made.len(), 1);
        assert_eq!(names(&dir.path().join("volumes").join(&name).join("data")).len(), 1000);
    }
    assert_eq!(engine.jobs_running(), 0);
    check(&engine, dir.path());
}

#[test]
fn what_fits_exactly_is_promised_to_all_at_once() {
    let dir = ground::place();
    let probe = engine(dir.path());
    let free = probe.capacity(None).unwrap().available;
    drop(probe);
    // A pool that may promise 64 MiB, and as many callers as that is enough for.
    let size = 2 << 20;
    let fits = PoolSettings { reserve: free - size * CALLERS as u64, ..settings(dir.path()) };
    let engine = Engine::open(vec![fits], impatient()).unwrap();
    for _ in 0..20 {
        let start = Barrier::new(CALLERS);
        std::thread::scope(|scope| {
            for which in 0..CALLERS {
                let (engine, start) = (&engine, &start);
                scope.spawn(move || {
                    start.wait();
                    // Records and folders take a little of a disk in memory: half of what would fit.
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

/// Looking does not disturb: a volume that comes and goes while it is looked at is in the list exactly while it is
/// there.
#[test]
fn who_only_looks_leaves_the_list_alone() {
    let dir = ground::place();
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
        let _stop = stop::Stop(&stop);
        for _ in 0..300 {
            insist(|| engine.create(&request("v", 4096))).unwrap();
            assert_eq!(engine.pools()[0].provisioned, 4096);
            assert_eq!(engine.list(None, 10).unwrap().items.len(), 1);
            insist(|| engine.expand(&id("v"), SizeRange { required: 8192, limit: 0 })).unwrap();
            assert_eq!(engine.pools()[0].provisioned, 8192);
            insist(|| engine.delete(&id("v"))).unwrap();
            assert_eq!(engine.pools()[0].provisioned, 0);
            assert_eq!(engine.list(None, 10).unwrap().items.len(), 0);
        }
    });
}

/// A snapshot or clone that is said to be ready was never cut from a volume that was being removed.
#[test]
fn a_copy_of_a_volume_that_is_deleted_meanwhile_is_whole_or_not_there() {
    let dir = ground::place();
    let engine = engine(dir.path());
    let mut ready = 0;
    for round in 0..150 {
        insist(|| engine.create(&request("v", 0))).unwrap();
        for file in 0..FILES {
            fs::write(dir.path().join(format!("volumes/v/data/{file}")), "x").unwrap();
        }
        let start = Barrier::new(3);
        let (cutting, cloning) = std::thread::scope(|scope| {
            let cutting = scope.spawn(|| {
                start.wait();
                let snapshot = engine.create_snapshot(&cut(&format!("s{round}"), &id("v")));
                snapshot.map(drop)
            });
            let cloning = scope.spawn(|| {
                start.wait();
                engine.create(&copy_of(&format!("c{round}"), Source::Volume(id("v")))).map(drop)
            });
            start.wait();
            insist(|| engine.delete(&id("v"))).unwrap();
            (cutting.join().unwrap(), cloning.join().unwrap())
        });
        for result in [cutting, cloning] {
            let fine = result.map_err(|error| (error.kind(), error.chain()));
            assert!(matches!(fine, Ok(()) | Err((Kind::NotFound | Kind::Busy, _))), "{fine:?}");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while engine.jobs_running() > 0 && Instant::now() < deadline {
            pause(1);
        }
        for (shelf, name) in [("snapshots", format!("s{round}")), ("volumes", format!("c{round}"))] {
            let folder = dir.path().join(shelf).join(name);
            if folder.exists() {
                assert_eq!(names(&folder.join("data")).len() as u64, FILES, "{} is whole", folder.display());
                ready += 1;
            }
        }
    }
    assert!(ready > 0, "no copy was ever in time");
    check(&engine, dir.path());
}

/// What is left of a copy that failed or was stopped is gone soon, and not only after the next start.
#[test]
fn a_copy_that_is_stopped_leaves_nothing() {
    let dir = ground::place();
    let engine = engine(dir.path());
    engine.create(&request("v", 0)).unwrap();
    for file in 0..2000 {
        fs::write(dir.path().join(format!("volumes/v/data/{file}")), vec![1; 10_000]).unwrap();
    }
    for _ in 0..5 {
        assert!(!engine.create_snapshot(&cut("s", &id("v"))).unwrap().ready, "it takes a while");
        insist(|| engine.delete_snapshot(&id("s"))).unwrap();
        assert!(engine.wait_idle(Duration::from_secs(10)));
        for folder in ["work", "trash", "snapshots"] {
            assert_eq!(names(&dir.path().join(folder)).len(), 0, "left in {folder}/");
        }
    }
}

/// What the callers of the long test share.
struct World {
    engine: Engine,
    pool: PathBuf,
    targets: PathBuf,
    stop: AtomicBool,
    /// For each caller, how much it has done.
    done: Vec<AtomicU64>,
    answers: std::sync::Mutex<BTreeMap<(&'static str, Option<Kind2>), u64>>,
}

/// A kind that can be ordered, for the summary.
type Kind2 = String;

/// A caller of the long test: a source of chance and a place of its own.
struct Caller<'w> {
    world: &'w World,
    me: usize,
    chance: u64,
}

impl Caller<'_> {
    fn pick(&mut self, of: u64) -> u64 {
        // xorshift: enough to differ.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % of
    }

    /// Half of the time the one that everybody wants.
    fn volume(&mut self) -> VolumeId {
        match self.pick(16) {
            which @ 0..8 => id(&format!("v{which}")),
            _ => id("everybodys"),
        }
    }

    fn note<T>(&self, what: &'static str, answer: &Result<T>, fine: &[Kind]) {
        let kind = answer.as_ref().err().map(Error::kind);
        *self
            .world
            .answers
            .lock()
            .unwrap()
            .entry((what, kind.map(|kind| format!("{kind:?}"))))
            .or_default() += 1;
        if let Err(error) = answer {
            assert!(fine.contains(&error.kind()), "{what}: {:?} {}", error.kind(), error.chain());
        }
    }

    fn act(&mut self) {
        use Kind::{Busy, Conflict, InUse, NotFound, OutOfRange};
        let (engine, volume) = (&self.world.engine, self.volume());
        let name = volume.name.to_string();
        match self.pick(12) {
            0..3 => self.note("create", &engine.create(&request(&name, 4096)), &[Busy, Conflict]),
            3 => {
                let source = Source::Volume(self.volume());
                self.note(
                    "clone",
                    &engine.create(&copy_of(&name, source)),
                    &[Busy, Conflict, NotFound, OutOfRange],
                );
            }
            4 => self.note("delete", &engine.delete(&volume), &[Busy, InUse]),
            5 => {
                let range = SizeRange { required: 4096 + self.pick(1 << 20), limit: 0 };
                self.note("expand", &engine.expand(&volume, range), &[Busy, NotFound]);
            }
            6 => {
                let trash_for = Some(Duration::from_secs(self.pick(100)));
                let change = PolicyChange { trash_for, ..PolicyChange::default() };
                self.note("modify", &engine.modify(&volume, change), &[Busy, NotFound]);
            }
            7 => {
                let request = cut(&format!("s{}", self.pick(4)), &volume);
                self.note("snapshot", &engine.create_snapshot(&request), &[Busy, Conflict, NotFound]);
            }
            8 => {
                let snapshot = id(&format!("s{}", self.pick(4)));
                self.note("delete snapshot", &engine.delete_snapshot(&snapshot), &[Busy]);
            }
            9 => {
                let source = Source::Snapshot(id(&format!("s{}", self.pick(4))));
                self.note(
                    "restore",
                    &engine.create(&copy_of(&name, source)),
                    &[Busy, Conflict, NotFound, OutOfRange],
                );
            }
            10 => {
                engine.list(None, 100).unwrap();
                engine.list_snapshots(&SnapshotFilter::default(), None, 100).unwrap();
                self.note("get", &engine.get(&volume), &[NotFound]);
                assert_eq!(engine.pools().len(), 1);
            }
            _ => self.publish(&volume),
        }
    }

    /// While it is published here nobody can delete it, and its files stay.
    fn publish(&mut self, volume: &VolumeId) {
        use Kind::{Busy, Conflict, InUse, NotFound};
        let engine = &self.world.engine;
        // Now and then at a place that others want too.
        let shared = self.pick(4) == 0;
        let place = if shared { "shared".to_owned() } else { format!("of-{}", self.me) };
        let target = self.world.targets.join(place);
        let request = Publish {
            id: volume.clone(),
            target: target.clone(),
            flags: MountFlags::default(),
            sharing: if self.pick(3) == 0 { Sharing::OneTarget } else { Sharing::ManyTargets },
            ephemeral: None,
        };
        let answer = engine.publish(&request);
        self.note("publish", &answer, &[Busy, Conflict, InUse, NotFound]);
        if answer.is_ok() && !shared {
            let file = target.join(format!("of-{}", self.me));
            fs::write(&file, "mine").unwrap();
            let deleted = engine.delete(volume);
            assert!(deleted.is_err(), "{volume} was deleted while it was in use");
            self.note("delete in use", &deleted, &[Busy, InUse]);
            assert_eq!(fs::read(&file).unwrap(), b"mine");
            assert_eq!(engine.get(volume).unwrap().id, *volume, "it is still there");
        }
        let text = volume.to_string();
        let down = if shared {
            engine.unpublish(&text, &target)
        } else {
            insist(|| engine.unpublish(&text, &target))
        };
        // In a place that others want too, something else may be mounted by now.
        self.note("unpublish", &down, if shared { &[Busy, Conflict, InUse] } else { &[] });
        assert!(shared || !target.exists(), "{} is taken down", target.display());
    }
}

#[test]
fn everything_at_once_for_a_minute() {
    if mounts::in_a_process_of_its_own("everything_at_once_for_a_minute") {
        return;
    }
    let dir = ground::place();
    let base = dir.path().canonicalize().unwrap();
    let (pool, targets) = (base.join("pool"), base.join("targets"));
    fs::create_dir_all(&pool).unwrap();
    fs::create_dir_all(&targets).unwrap();
    let world = Arc::new(World {
        engine: engine(&pool),
        pool,
        targets,
        stop: AtomicBool::new(false),
        done: (0..CALLERS).map(|_| AtomicU64::new(0)).collect(),
        answers: Default::default(),
    });
    let callers: Vec<_> = (0..CALLERS)
        .map(|me| {
            let world = Arc::clone(&world);
            std::thread::spawn(move || {
                let mut caller = Caller { world: &world, me, chance: 0x9e37_79b9 * (me as u64 + 1) };
                while !world.stop.load(Ordering::Relaxed) {
                    caller.act();
                    world.done[me].fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    watch(&world, &callers);
    world.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().unwrap();
    }
    let total: u64 = world.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
    eprintln!("{total} calls: {:?}", world.answers.lock().unwrap());
    finish(&world);
}

/// Every caller gets on, or the test ends here.
fn watch(world: &World, callers: &[std::thread::JoinHandle<()>]) {
    let deadline = Instant::now() + Duration::from_secs(seconds());
    let mut last = vec![(0, Instant::now()); CALLERS];
    while Instant::now() < deadline {
        pause(200);
        for (me, (seen, when)) in last.iter_mut().enumerate() {
            let now = world.done[me].load(Ordering::Relaxed);
            if now != *seen {
                (*seen, *when) = (now, Instant::now());
            }
            assert!(!callers[me].is_finished(), "caller {me} has failed");
            assert!(when.elapsed() < Duration::from_secs(60), "caller {me} waits for ever");
        }
    }
}

/// When all are gone, everything can be taken down, and nothing is left.
fn finish(world: &World) {
    let engine = &world.engine;
    let deadline = Instant::now() + Duration::from_secs(30);
    while engine.jobs_running() > 0 && Instant::now() < deadline {
        // One that failed is in the table until somebody was told.
        for which in 0..8 {
            let _ = engine.create(&request(&format!("v{which}"), 0));
            let _ = engine.delete_snapshot(&id(&format!("s{which}")));
        }
        let _ = engine.create(&request("everybodys", 0));
        pause(10);
    }
    let shared = world.targets.join("shared");
    if let Some(there) = mount::mounted_at(&shared).unwrap() {
        let name = there.root.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        engine.unpublish(&format!("p/{name}"), &shared).unwrap();
    }
    assert!(mount::mounted_at(&shared).unwrap().is_none(), "mounted once only");
    check(engine, &world.pool);
    for name in names(&world.pool.join("volumes")) {
        engine.delete(&id(&name)).unwrap_or_else(|error| panic!("{}", error.chain()));
    }
    for name in names(&world.pool.join("snapshots")) {
        engine.delete_snapshot(&id(&name)).unwrap();
    }
    assert!(engine.wait_idle(Duration::from_secs(30)));
    check(engine, &world.pool);
    let status = engine.pools().remove(0);
    assert_eq!((status.provisioned, status.volumes, status.snapshots), (0, 0, 0));
    assert_eq!(names(&world.pool.join("trash")).len(), 0);
}
