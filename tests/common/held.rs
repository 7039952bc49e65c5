//! Processes that strace holds or kills at their system calls.
#![expect(clippy::print_stderr, reason = "tells another process the result")]
#![expect(clippy::disallowed_methods, reason = "strace and the program under test are processes")]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use orlop::engine::request::{CreateVolume, Tuning};
use orlop::volume::{Limit, Policy};
use rustix::process::{Pid, Signal, kill_process};

use super::isolation::skip;
use super::pool::{MIB, names, open_with, request};
use super::server::ORLOP;
use super::wait::within_seconds;

/// Whether this machine has strace.
pub(crate) fn has_strace() -> bool {
    let has = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok();
    if !has {
        skip("this test needs strace");
    }
    has
}

/// The environment variable of a process that makes a volume: the directory of its pool.
const POOL: &str = "ORLOP_HELD_POOL";

/// In the process that [`create_while`] starts: makes a volume with `limit=hard`, and prints the error. Does nothing in a test.
pub(crate) fn create_if_told() {
    let Ok(pool) = std::env::var(POOL) else { return };
    let seconds = Duration::from_secs;
    let tuning = Tuning { copy_wait: seconds(120), lock_wait: seconds(60), ..Tuning::default() };
    let policy = Policy { limit: Limit::Hard, ..Policy::default() };
    let made =
        open_with(Path::new(&pool), tuning).create(&CreateVolume { policy, ..request("new", 8 * MIB) });
    eprintln!("{:?}", made.map_err(|error| (error.kind(), error.chain())));
}

/// Makes a volume with `limit=hard` in another process, which is this program limited to `test`, and that calls
/// [`create_if_told`]. Runs `meanwhile` after it has made the draft of the volume and before it goes on. Returns what it
/// printed; `None` without strace.
pub(crate) fn create_while(test: &str, pool: &Path, meanwhile: impl FnOnce()) -> Option<String> {
    if !has_strace() {
        return None;
    }
    let mut strace = Command::new("strace");
    // The first call with the directory of the drafts stops the process after it.
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=mkdirat", "-P"]).arg(pool.join("work"));
    strace.args(["-e", "inject=mkdirat:signal=STOP:when=1"]).arg(std::env::current_exe().unwrap());
    strace.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(POOL, pool);
    let mut child = strace.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let has_draft = || !names(&pool.join("work")).is_empty();
    within_seconds(180, "the draft is made, or the process has ended", || {
        has_draft() || child.try_wait().unwrap().is_some()
    });
    meanwhile();
    let has_waited = has_draft();
    let traced = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
    let traced = traced.trim().parse().ok().and_then(Pid::from_raw);
    within_seconds(180, "the process ends", || {
        let _ = traced.map(|traced| kill_process(traced, Signal::CONT));
        child.try_wait().unwrap().is_some()
    });
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(has_waited, "{printed}");
    Some(printed)
}

/// Runs `orlop check --fix` for the pool `p`, killed at this system call of each thread. Returns whether it was killed.
pub(crate) fn check_fix_killed_at(pool: &Path, call: &str, at: usize) -> bool {
    let inject = format!("inject={call}:signal=KILL:when={at}");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject, ORLOP]);
    strace.args(["check", "--fix", "--pool", &format!("p={}", pool.display())]);
    let status = strace.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    // strace ends as its child did.
    status.signal().is_some() || status.code() == Some(137)
}
