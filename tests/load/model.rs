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
use crate::common::backends::{Backend, Ground, on_each_backend};
use crate::common::child::{ChildProcess, serve};
use crate::common::pool::Report;

/// `ORLOP_MODEL_CASES` is the number of sequences; the default is `in_memory`, and less on slower filesystems.
fn config(backend: &Backend, in_memory: u32) -> ProptestConfig {
    let default = if backend.is_in_memory() { in_memory } else { in_memory / 15 };
    ProptestConfig {
        cases: std::env::var("ORLOP_MODEL_CASES").map_or(default, |text| text.parse().unwrap()),
        max_shrink_time: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    }
}

/// Runs random sequences on new pools.
fn run_random<T: Clone + std::fmt::Debug>(
    ground: &Ground,
    cases: u32,
    step: impl Strategy<Value = T>,
    run: impl Fn(&[T], &Path),
) {
    let mut runner = TestRunner::new(config(ground.backend, cases));
    let on_new_pool = |steps: Vec<T>| {
        run(&steps, ground.new_dir().path());
        Ok(())
    };
    runner.run(&prop::collection::vec(step, 1..40), on_new_pool).unwrap();
}

fn run_in_one_process(backend: &Backend, steps: &[Step], pool: &Path) {
    let open = |pool: &Path| backend.open_patiently(pool);
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

/// The environment variables of a child process: the directory of its pool, and the name of its backend.
const POOL: &str = "ORLOP_MODEL_POOL";
const BACKEND: &str = "ORLOP_MODEL_BACKEND";

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
    let (Ok(pool), Ok(backend)) = (std::env::var(POOL), std::env::var(BACKEND)) else { return };
    let engine = Backend::named(&backend).open_patiently(Path::new(&pool));
    serve(|line| match serde_json::from_str(line).unwrap() {
        Request::Run(step) => {
            let answer = format!("{:?}", step.run(&engine));
            assert!(engine.wait_for_reaper(std::time::Duration::from_secs(120)));
            answer
        }
        Request::Report => serde_json::to_string(&Report::of(&engine)).unwrap(),
    });
}

fn start_child(backend: &Backend, pool: &Path) -> ChildProcess {
    let variables = [(POOL, pool.to_str().unwrap().to_owned()), (BACKEND, backend.name.to_owned())];
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
fn run_in_two_processes(backend: &Backend, turns: &[Turn], pool: &Path) {
    let mut model = Model::default();
    let observer = backend.open_patiently(pool);
    let mut children = [start_child(backend, pool), start_child(backend, pool)];
    for Turn { by, step, report } in turns {
        let expected = model.apply(step, pool);
        if matches!(step, Step::Restart | Step::CrashRemains) {
            children[*by].kill();
            if matches!(step, Step::CrashRemains) {
                add_remains(pool);
            }
            children[*by] = start_child(backend, pool);
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

#[test]
fn engine_disk_and_model_agree_after_every_step() {
    on_each_backend("load::model::engine_disk_and_model_agree_after_every_step", |ground| {
        run_random(ground, 300, step(), |steps, pool| run_in_one_process(ground.backend, steps, pool));
    });
}

#[test]
fn two_processes_disk_and_model_agree_after_every_step() {
    on_each_backend("load::model::two_processes_disk_and_model_agree_after_every_step", |ground| {
        run_random(ground, 150, turn(), |turns, pool| run_in_two_processes(ground.backend, turns, pool));
    });
}
