//! The side of the helper's owner: starts it, talks to it, and thaws in its place when it dies.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::cgroups::Cgroup;
use super::helper::{Job, receive};
use super::record::FrozenCgroup;
use crate::error::{Context as _, Error, Kind, Result};

/// The subcommand that runs the helper.
pub const HELPER_COMMAND: &str = "freeze-helper";

/// How long the helper may take for what needs no waiting. It is long, since the host may be busy.
const GRACE: Duration = Duration::from_secs(10);

/// How long the helper may be late to thaw before its owner does.
const THAW_GRACE: Duration = Duration::from_millis(500);

/// A running helper. Dropping it thaws what was frozen and ends the helper.
#[derive(Debug)]
pub(super) struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// The cgroups that are to be frozen. Those that were frozen before are not among them.
    cgroups: Vec<Cgroup>,
    may_have_frozen: bool,
}

impl Helper {
    /// Starts the helper and lets it lock the cgroups. `limit` is how long they may stay frozen.
    #[expect(clippy::disallowed_methods, reason = "the helper must outlive this process, however that ends")]
    pub(super) fn start(program: &Path, proc: &Path, cgroups: Vec<Cgroup>, limit: Duration) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(HELPER_COMMAND)
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context(|| format!("start {} to freeze cgroups", program.display()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = output.expect("the standard output was requested");
        let mut helper = Self { child, input, output, cgroups, may_have_frozen: false };
        let names: Vec<FrozenCgroup> = helper.cgroups.iter().map(|cgroup| cgroup.name.clone()).collect();
        let lock_wait = limit + THAW_GRACE;
        let job = Job { proc: proc.to_owned(), limit, lock_wait, cgroups: names };
        let job = serde_json::to_string(&job).map_err(|error| {
            Error::caused(Kind::Internal, "write the job of the process that freezes cgroups", error)
        })?;
        helper.send(&job)?;
        let answer = helper.answer("ready", Instant::now() + lock_wait + GRACE)?;
        let mut already = answer.split_whitespace().map(|state| state == "1");
        helper.cgroups.retain(|_| !already.next().unwrap_or(false));
        Ok(helper)
    }

    /// The cgroups that [`Helper::freeze`] will freeze.
    pub(super) fn to_freeze(&self) -> Vec<FrozenCgroup> {
        self.cgroups.iter().map(|cgroup| cgroup.name.clone()).collect()
    }

    /// Freezes, and returns when all processes are frozen.
    pub(super) fn freeze(&mut self) -> Result<()> {
        self.may_have_frozen = true;
        self.send("freeze")?;
        self.answer("frozen", Instant::now() + GRACE).map(drop)
    }

    fn send(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().expect("the input is open until the helper ends");
        match input.write_all(format!("{line}\n").as_bytes()) {
            // The answer says why it has ended.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => result.context(|| "write to the process that freezes cgroups"),
        }
    }

    /// Receives the answer that begins with this word; returns the rest of it.
    fn answer(&self, word: &str, deadline: Instant) -> Result<String> {
        let died = || Error::new(Kind::Busy, "the process that freezes cgroups has died: retry");
        let line = receive(self.output.as_fd(), deadline)?.ok_or_else(died)?;
        if let Some(rest) = line.strip_prefix(word) {
            return Ok(rest.to_owned());
        }
        let reason = line.strip_prefix("failed ").unwrap_or(&line);
        Err(Error::new(Kind::Busy, reason))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.may_have_frozen {
            for cgroup in &self.cgroups {
                let _nothing_else_helps = cgroup.thaw();
            }
        }
        let _may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A thread that thaws when the helper dies, or does not end the pause in time.
#[derive(Debug)]
pub(super) struct Watch {
    input: Option<ChildStdin>,
    thread: Option<JoinHandle<Result<Instant>>>,
}

impl Watch {
    /// Watches a helper until the deadline.
    pub(super) fn start(mut helper: Helper, deadline: Instant) -> Result<Self> {
        let input = helper.input.take();
        let watch = move || {
            helper.answer("thawed", deadline + THAW_GRACE)?;
            helper.may_have_frozen = false;
            Ok(Instant::now())
        };
        let thread = std::thread::Builder::new().name("pause".to_owned()).spawn(watch);
        Ok(Self { input, thread: Some(thread.context(|| "start a thread")?) })
    }

    /// Ends the pause; returns the moment when the helper had thawed.
    ///
    /// # Errors
    /// `Busy` if the pause had ended before.
    pub(super) fn end(mut self) -> Result<Instant> {
        // If the helper is gone, the thread knows.
        let _ = self.input.as_mut().map(|input| input.write_all(b"thaw\n"));
        let thread = self.thread.take().expect("the thread is joined once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The end of its input makes the helper thaw.
        drop(self.input.take());
        if let Some(thread) = self.thread.take() {
            let _the_pause_is_over = thread.join();
        }
    }
}
