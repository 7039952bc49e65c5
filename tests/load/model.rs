//! Random operations on engines and on a small model of the pool: after each one, the directories, listings and
//! accounting agree with the model.

mod expected;
mod steps;

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use serde::{Deserialize, Serialize};

use self::expected::Model;
use self::steps::{Step, add_remains, step};
use crate::common::child::{ChildProcess, serve};
use crate::common::disk::Disk;
use crate::common::isolation::in_own_process;
use crate::common::pool::{Report, memory_dir, open};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        max_shrink_time: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    }
}

fn run_in_one_process(steps: &[Step], pool: &Path) {
    let (mut engine, mut model) = (Some(open(pool)), Model::default());
    for step in steps {
        if matches!(step, Step::Restart | Step::CrashRemains) {
            engine = None;
        }
        let expected = model.apply(step, pool);
        if matches!(step, Step::CrashRemains) {
            add_remains(pool);
        }
        let engine = engine.get_or_insert_with(|| open(pool));
        assert_eq!(step.run(engine), expected, "{step:?}");
        model.check(engine, pool);
    }
}

/// The environment variable of a child process: the directory of its pool.
const POOL: &str = "ORLOP_MODEL_POOL";

/// A request to a child process.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Execute a step; the answer is `Ok(())`, or the kind of the error.
    Run(Step),
    /// Answer with a [`Report`].
    Report,
}

/// The child process: has the pool open and executes steps. Does nothing when it runs as a test.
#[test]
fn child_process() {
    let Ok(pool) = std::env::var(POOL) else { return };
    let engine = open(Path::new(&pool));
    serve(|line| match serde_json::from_str(line).unwrap() {
        Request::Run(step) => {
            let answer = format!("{:?}", step.run(&engine));
            assert!(engine.wait_for_reaper(std::time::Duration::from_secs(120)));
            answer
        }
        Request::Report => serde_json::to_string(&Report::of(&engine)).unwrap(),
    });
}

fn start_child(pool: &Path) -> ChildProcess {
    let variables = [(POOL, pool.to_str().unwrap().to_owned())];
    ChildProcess::start("load::model::child_process", &variables)
}

fn ask(child: &mut ChildProcess, request: &Request) -> String {
    let answer = child.ask(&serde_json::to_string(request).unwrap());
    assert!(!answer.is_empty(), "the process ended: {}", child.stderr());
    answer
}

/// A step in one of the two processes.
#[derive(Debug, Clone)]
struct Turn {
    by: usize,
    step: Step,
    /// Whether both processes report afterwards. Otherwise they learn of several changes at once.
    report: bool,
}

fn turn() -> impl Strategy<Value = Turn> {
    let turn = (0..2_usize, step(), prop::bool::weighted(0.3));
    turn.prop_map(|(by, step, report)| Turn { by, step, report })
}

/// Runs each step in its process. `Restart` and `CrashRemains` kill the process.
fn run_in_two_processes(turns: &[Turn]) {
    let dir = memory_dir();
    let (pool, mut model) = (dir.path(), Model::default());
    let observer = open(pool);
    let mut children = [start_child(pool), start_child(pool)];
    for Turn { by, step, report } in turns {
        let expected = model.apply(step, pool);
        if matches!(step, Step::Restart | Step::CrashRemains) {
            children[*by].kill();
            if matches!(step, Step::CrashRemains) {
                add_remains(pool);
            }
            children[*by] = start_child(pool);
        }
        let answer = ask(&mut children[*by], &Request::Run(step.clone()));
        assert_eq!(answer, format!("{expected:?}"), "{step:?} in process {by}");
        if *report {
            check_reports(&mut children, &model);
        }
        model.check(&observer, pool);
    }
    check_reports(&mut children, &model);
}

fn check_reports(children: &mut [ChildProcess], model: &Model) {
    for child in children {
        let report: Report = serde_json::from_str(&ask(child, &Request::Report)).unwrap();
        assert_eq!(report, model.report());
    }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn engine_disk_and_model_agree_after_every_step(steps in prop::collection::vec(step(), 1..40)) {
        run_in_one_process(&steps, memory_dir().path());
    }
}

#[test]
fn engine_disk_and_model_agree_on_btrfs() {
    in_own_process("load::model::engine_disk_and_model_agree_on_btrfs", || {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 64 << 10, &["mkfs.btrfs"]);
        let mut runner = TestRunner::new(config(20));
        let run = |steps: Vec<Step>| {
            let pool = tempfile::tempdir_in(disk.path()).unwrap();
            run_in_one_process(&steps, pool.path());
            Ok(())
        };
        runner.run(&prop::collection::vec(step(), 1..40), run).unwrap();
    });
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn two_processes_disk_and_model_agree_after_every_step(turns in prop::collection::vec(turn(), 1..40)) {
        run_in_two_processes(&turns);
    }
}
