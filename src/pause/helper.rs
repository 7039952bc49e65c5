//! The helper: a process of its own that freezes cgroups and thaws them at the end of its input or at its deadline.
//!
//! It ends the pause however the process that started it ends, since that closes its input. While cgroups are frozen, it
//! accesses no file but theirs and its pipes, so it never waits for a disk or for a frozen process.
//!
//! | it reads | it does | it writes |
//! |---|---|---|
//! | a [`Job`] | opens and locks the cgroups | `ready` and whether each one is frozen already, such as `ready 0 1` |
//! | `freeze` | freezes those that are not | `frozen`, or `failed` and why |
//! | `thaw` | thaws what it has frozen | `thawed`, or `failed` and why |

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::cgroups::{Cgroup, Hierarchies, poll};
use super::record::FrozenCgroup;
use crate::error::{Context as _, Error, Kind, Result};

/// How long processes may take to freeze. One that waits for a disk does not.
const FREEZE_WAIT: Duration = Duration::from_secs(1);

/// How long the helper waits for the next word before it has frozen anything.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// What the helper is asked to do, on one line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// The `/proc` that shows the host's processes.
    pub(super) proc: PathBuf,
    /// How long the cgroups may stay frozen.
    pub(super) limit: Duration,
    /// How long to wait for other processes that pause the same cgroups.
    pub(super) lock_wait: Duration,
    /// The cgroups, in the order in which they are locked.
    pub(super) cgroups: Vec<FrozenCgroup>,
}

/// Runs the helper on its standard input and output.
///
/// # Errors
/// `Invalid` if the input is not a job; `Busy` if another process pauses one of the cgroups; `Unsupported` or
/// `Internal` if they cannot be used.
pub fn serve() -> Result<()> {
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let (input, output) = (input.as_fd(), output.as_fd());
    let result = run(input, output);
    if let Err(error) = &result {
        say(output, &format!("failed {}", error.chain().replace('\n', " ")));
    }
    result
}

fn run(input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> Result<()> {
    let Some(job) = receive(input, Instant::now() + IDLE_WAIT)? else { return Ok(()) };
    let job: Job = serde_json::from_str(&job).map_err(|error| {
        Error::caused(Kind::Invalid, "this command is internal: it reads its job from a pipe", error)
    })?;
    let hierarchies = Hierarchies::of_host(&job.proc)?;
    let cgroups = job.cgroups.iter().map(|wanted| open(&hierarchies, wanted)).collect::<Result<Vec<_>>>()?;
    hierarchies.move_to_roots();
    let deadline = Instant::now() + job.lock_wait;
    for cgroup in &cgroups {
        lock(cgroup, input, deadline)?;
    }
    let already = cgroups.iter().map(Cgroup::is_frozen_by_itself).collect::<Result<Vec<_>, _>>();
    let already = already.context(|| "read the state of the cgroups")?;
    let states: String = already.iter().map(|frozen| if *frozen { " 1" } else { " 0" }).collect();
    say(output, &format!("ready{states}"));
    if receive(input, Instant::now() + IDLE_WAIT)?.is_none() {
        return Ok(());
    }
    pause(&cgroups, &already, input, output, Instant::now() + job.limit)
}

fn open(hierarchies: &Hierarchies, wanted: &FrozenCgroup) -> Result<Cgroup> {
    let path = &wanted.path;
    let cgroup = hierarchies.open(wanted.hierarchy, path).context(|| format!("open cgroup {path}"))?;
    if cgroup.name == *wanted {
        return Ok(cgroup);
    }
    Err(Error::new(Kind::Busy, format!("cgroup {path} was removed and made again: retry")))
}

fn lock(cgroup: &Cgroup, input: BorrowedFd<'_>, deadline: Instant) -> Result<()> {
    let wait = |time| match is_readable(input, time)? {
        // Nothing is to be read now, so this is the end of the input.
        true => Err(Errno::PIPE),
        false => Ok(()),
    };
    cgroup.lock(deadline, wait).map_err(|errno| {
        let text = format!("another process is pausing cgroup {}: retry", cgroup.name.path);
        Error::caused(Kind::Busy, text, std::io::Error::from(errno))
    })
}

/// Thaws cgroups when dropped.
struct Frozen<'a>(Vec<&'a Cgroup>);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        for cgroup in &self.0 {
            let _nothing_else_helps = cgroup.thaw();
        }
    }
}

fn pause(
    cgroups: &[Cgroup],
    already: &[bool],
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
    deadline: Instant,
) -> Result<()> {
    let ours = cgroups.iter().zip(already).filter(|(_, already)| !**already).map(|(cgroup, _)| cgroup);
    let frozen = Frozen(ours.collect());
    for cgroup in &frozen.0 {
        cgroup.freeze().context(|| format!("freeze cgroup {}", cgroup.name.path))?;
    }
    wait_until_frozen(cgroups, input, deadline.min(Instant::now() + FREEZE_WAIT))?;
    say(output, "frozen");
    let word = receive(input, deadline)?;
    let running = first_running(cgroups);
    drop(frozen);
    match (word, running?) {
        (None, _) => {}
        (Some(_), None) => say(output, "thawed"),
        (Some(_), Some(path)) => {
            return Err(Error::new(Kind::Busy, format!("cgroup {path} was thawed by something else: retry")));
        }
    }
    Ok(())
}

fn wait_until_frozen(cgroups: &[Cgroup], input: BorrowedFd<'_>, deadline: Instant) -> Result<()> {
    while let Some(path) = first_running(cgroups)? {
        if Instant::now() >= deadline {
            let text = format!(
                "cgroup {path} did not freeze in time, because a process waits for a disk: retry, or use \
                 consistency: none"
            );
            return Err(Error::new(Kind::Busy, text));
        }
        let wait = is_readable(input, Duration::from_millis(1)).context(|| "wait for the input")?;
        if wait {
            return Err(Error::new(Kind::Busy, "the process that pauses has ended"));
        }
    }
    Ok(())
}

fn first_running(cgroups: &[Cgroup]) -> Result<Option<&str>> {
    for cgroup in cgroups {
        let path = &cgroup.name.path;
        if !cgroup.is_frozen().context(|| format!("read the state of cgroup {path}"))? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn is_readable(input: BorrowedFd<'_>, time: Duration) -> Result<bool, Errno> {
    poll(&mut [PollFd::from_borrowed_fd(input, PollFlags::IN)], time)
}

/// Receives a line; `None` at the end of the input.
///
/// # Errors
/// `Busy` at the deadline.
pub(super) fn receive(input: BorrowedFd<'_>, deadline: Instant) -> Result<Option<String>> {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(
                Kind::Busy,
                "the time for the pause is over: retry, or allow a longer pause",
            ));
        }
        if !is_readable(input, left).context(|| "wait for a pipe")? {
            continue;
        }
        match rustix::io::read(input, &mut buffer) {
            Ok(0) => return Ok(None),
            Ok(length) => line.extend_from_slice(&buffer[..length]),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "read from a pipe"),
        }
        // The other side sends a line only after the answer to the last one.
        if line.ends_with(b"\n") {
            return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
        }
    }
}

/// Sends a line. The other side may be gone; then the input ends, too.
fn say(output: BorrowedFd<'_>, text: &str) {
    let _ends_with_the_input = rustix::io::write(output, format!("{text}\n").as_bytes());
}
