//! Processes that are killed while they create and delete volumes with project ids.
#![expect(clippy::print_stderr, reason = "reports what was killed")]

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use orlop::error::Error;
use orlop::fs::project::Project;
use orlop::volume::Source;

use super::quota_pools::{data, id_of, open, project_limits, project_of, wait_until_reaped};
use crate::common::child::{ChildProcess, serve};
use crate::common::pool::{MIB, check, copy_request, id, names, request};
use crate::common::wait::within_seconds;

/// The environment variable of a child process: the directory of its pool.
const POOL: &str = "ORLOP_QUOTA_POOL";

/// When a call is killed, in sixteenths of the shortest time that one took. Few kills are in the middle: a process needs some time
/// to read the call.
const DELAYS: [u32; 8] = [9, 7, 11, 5, 13, 3, 15, 1];

#[derive(Debug, Clone, Copy)]
enum Call {
    Create,
    Delete,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Delete => "delete",
        })
    }
}

/// The child process: makes and deletes the volumes that it is told to. Does nothing when it runs as a test.
#[test]
fn child_process() {
    let Ok(pool) = std::env::var(POOL) else { return };
    let engine = open(Path::new(&pool));
    serve(|line| {
        // Tells the test which call a kill has hit.
        eprintln!("begun {line}");
        let (call, name) = line.split_once(' ').unwrap();
        let done = match call {
            "create" => engine.create(&request(name, MIB / 4)).map(drop),
            _ => engine.delete(&id(name)),
        };
        eprintln!("ended {line}");
        format!("{:?}", done.map_err(|error: Error| error.chain()))
    });
}

/// One of the processes that change the pool, again after each kill, and what it has done.
struct Storm<'a> {
    pool: &'a Path,
    child: ChildProcess,
    /// By the kind of call: the shortest time that one took, the kills, and those of them that hit the call.
    took: [Duration; 2],
    kills: [u32; 2],
    hits: [u32; 2],
    /// The time that new processes took to start, and killed ones to end.
    restarts: [Duration; 2],
    /// The ids that volumes have had, and how many volumes that was.
    ids: BTreeSet<u32>,
    acknowledged: usize,
    kept: BTreeSet<String>,
    deleted: BTreeSet<String>,
}

impl<'a> Storm<'a> {
    fn new(pool: &'a Path) -> Self {
        Self {
            pool,
            child: Self::start(pool),
            took: [Duration::MAX; 2],
            kills: Default::default(),
            hits: Default::default(),
            restarts: Default::default(),
            ids: BTreeSet::new(),
            acknowledged: 0,
            kept: BTreeSet::new(),
            deleted: BTreeSet::new(),
        }
    }

    fn start(pool: &Path) -> ChildProcess {
        let variables = [(POOL, pool.to_str().unwrap().to_owned())];
        ChildProcess::start("vm::quota_storm::child_process", &variables)
    }

    /// Makes a call that must succeed.
    fn call(&mut self, call: Call, name: &str) {
        let began = Instant::now();
        assert_eq!(self.child.ask(&format!("{call} {name}")), "Ok(())", "{call} {name}");
        let took = &mut self.took[call as usize];
        *took = (*took).min(began.elapsed());
        match call {
            Call::Create => {
                self.ids.insert(id_of(self.pool, name));
                self.acknowledged += 1;
                self.kept.insert(name.to_owned());
            }
            Call::Delete => {
                self.deleted.insert(name.to_owned());
            }
        }
    }

    /// Kills the process during a call, at another step each time. After every second kill, the call is repeated.
    fn kill_during(&mut self, call: Call, name: &str) {
        let which = call as usize;
        let delay = self.took[which] * DELAYS[self.kills[which] as usize / 2 % DELAYS.len()] / 16;
        let line = format!("{call} {name}");
        self.child.send(&line);
        let began = Instant::now();
        while began.elapsed() < delay {
            std::hint::spin_loop();
        }
        let killed = Instant::now();
        let report = self.child.stderr();
        self.restarts[1] += killed.elapsed();
        let has = |word: &str| report.lines().any(|found| found == format!("{word} {line}"));
        self.hits[which] += u32::from(has("begun") && !has("ended"));
        let ended = Instant::now();
        self.child = Self::start(self.pool);
        self.restarts[0] += ended.elapsed();
        let is_repeated = self.kills[which] % 2 == 1;
        self.kills[which] += 1;
        if is_repeated {
            self.repeat(call, name);
        }
    }

    /// Repeats a call that may have been complete.
    fn repeat(&mut self, call: Call, name: &str) {
        let was_there = self.pool.join("volumes").join(name).exists();
        match call {
            Call::Create => self.call(call, name),
            Call::Delete if was_there => self.call(call, name),
            // What is gone was deleted.
            Call::Delete => drop(self.deleted.insert(name.to_owned())),
        }
    }

    fn run(&mut self, process: usize, volumes: usize) {
        for n in 0..volumes {
            let name = format!("v{process}-{n}");
            match n % 20 {
                19 => self.kill_during(Call::Create, &name),
                3 => {
                    self.call(Call::Create, &name);
                    self.call(Call::Delete, &name);
                }
                13 => {
                    self.call(Call::Create, &name);
                    self.kept.remove(&name);
                    self.kill_during(Call::Delete, &name);
                }
                _ => self.call(Call::Create, &name),
            }
        }
        self.kept.retain(|name| !self.deleted.contains(name));
    }
}

#[test]
fn no_two_volumes_share_an_id_after_two_processes_were_killed_again_and_again() {
    let volumes: usize = std::env::var("ORLOP_STORM_VOLUMES").map_or(160, |text| text.parse().unwrap());
    let disk = std::env::var("ORLOP_STORM_DISK").unwrap_or_else(|_| "/mnt/xfs".to_owned());
    let dir = tempfile::tempdir_in(disk).unwrap();
    let pool = dir.path();
    drop(open(pool));
    let began = Instant::now();
    let storms: Vec<_> = thread::scope(|scope| {
        let run = |process| {
            let mut storm = Storm::new(pool);
            storm.run(process, volumes / 2);
            storm
        };
        let threads = [0, 1].map(|process| scope.spawn(move || run(process)));
        threads.map(|thread| thread.join().unwrap()).into()
    });
    let of = |count: fn(&Storm<'_>) -> [u32; 2], call: Call| -> u32 {
        storms.iter().map(|storm| count(storm)[call as usize]).sum()
    };
    eprintln!("{volumes} creates, and deletes and kills among them, took {} s", began.elapsed().as_secs());
    for storm in &storms {
        let [starts, ends] = storm.restarts;
        eprintln!("starts of one of the processes took {starts:?}, and ends {ends:?}");
    }
    for call in [Call::Create, Call::Delete] {
        let (kills, hits) = (of(|storm| storm.kills, call), of(|storm| storm.hits, call));
        eprintln!("{hits} of {kills} kills hit a {call}");
        assert!(hits >= 2 && hits * 4 >= kills, "{hits} of {kills} kills hit a {call}");
    }
    let ids: BTreeSet<_> = storms.iter().flat_map(|storm| storm.ids.iter().copied()).collect();
    let acknowledged: usize = storms.iter().map(|storm| storm.acknowledged).sum();
    assert_eq!(ids.len(), acknowledged, "an id is never used again, also after a deletion");
    check_after(pool, &storms, volumes, &ids);
}

/// Checks what is left of the volumes, and that their ids are theirs.
fn check_after(pool: &Path, storms: &[Storm<'_>], volumes: usize, had: &BTreeSet<u32>) {
    let engine = open(pool);
    wait_until_reaped(&engine, pool);
    check(&engine, pool);
    let made = names(&pool.join("volumes"));
    for Storm { kept, deleted, .. } in storms {
        assert!(kept.is_subset(&made), "lost: {:?}", kept.difference(&made));
        assert!(deleted.is_disjoint(&made), "deleted: {:?}", deleted.intersection(&made));
    }
    let ids: BTreeSet<_> = made
        .iter()
        .map(|name| {
            let recorded = id_of(pool, name);
            assert_eq!(project_of(&data(pool, name)), Project { id: recorded, is_inherited: true }, "{name}");
            recorded
        })
        .collect();
    eprintln!("{} volumes with {} ids are left", made.len(), ids.len());
    assert!(made.len() * 6 >= volumes * 5 && ids.len() == made.len(), "{} of {volumes}", made.len());
    within_seconds(60, "no removed volume has left a limit", || project_limits(pool) == ids);
    engine.create(&copy_request("copy", Source::Volume(id(made.first().unwrap())))).unwrap();
    let new = id_of(pool, "copy");
    assert!(!ids.contains(&new) && !had.contains(&new), "an id is never used again");
}
