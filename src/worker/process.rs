//! One worker process, seen from its parent.

use std::collections::{BTreeMap, HashMap};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::group::Launch;
use super::{Request, Response, Setup, frames};
use crate::engine::call::Call;
use crate::error::{Context as _, Error, Kind, Result};

/// The descriptors that workers have deposited, by name. The parent only keeps and passes them.
pub(super) type Kept = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// How a worker answers a call: `None` if it ended before.
type Waiting = oneshot::Sender<Result<String>>;

/// How long a worker may take to read what it is to do.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);

/// A worker process. Its reader thread reaps it.
#[derive(Debug)]
pub(super) struct Process {
    group: String,
    /// What its calls wait for, and what to check when that does not respond.
    subject: (String, &'static str),
    pidfd: OwnedFd,
    socket: UnixStream,
    calls: mpsc::Sender<Request>,
    state: Mutex<State>,
    /// Notified when the process was reaped.
    reaped: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u64, (Waiting, bool)>,
    next: u64,
    /// When a call last completed that shows that the disk responds.
    completed: Option<Instant>,
    /// When it was killed, or ended.
    ended: Option<Instant>,
    /// Whether it was killed because its disk did not respond.
    was_killed: bool,
    is_reaped: bool,
}

impl Process {
    /// Starts a worker. Blocks for some milliseconds.
    pub(super) fn start(launch: &Launch, setup: &Setup, kept: &Kept) -> Result<Arc<Self>> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, flags);
        let (ours, theirs) = pair.map_err(std::io::Error::from).context(|| "make a socket for a worker")?;
        let child = Started(Some(spawn(launch, theirs)?));
        let socket = UnixStream::from(ours);
        let pidfd = pidfd_open(child.pid(), PidfdFlags::empty()).context(|| "open a process")?;
        let (calls, to_send) = mpsc::channel();
        let (reader, writer) = (clone(&socket)?, clone(&socket)?);
        // A child that hangs at its start must not hold the group.
        let limited = socket.set_write_timeout(Some(SETUP_TIMEOUT));
        limited.context(|| "limit the start of a worker")?;
        send_setup(&socket, setup, kept)?;
        socket.set_write_timeout(None).context(|| "limit the start of a worker")?;
        let (group, subject) = (setup.group.clone(), setup.subject());
        info!(group, pid = child.pid().as_raw_nonzero().get(), "started a worker process");
        let state = Mutex::default();
        let process = Arc::new(Self { group, subject, pidfd, socket, calls, state, reaped: Notify::new() });
        spawn_thread("worker-out", move || write(&writer, &to_send))?;
        let (reading, kept) = (Arc::clone(&process), Arc::clone(kept));
        spawn_thread("worker-in", move || reading.read(&reader, &kept, child))?;
        Ok(process)
    }

    /// Sends a call and waits for its answer. At the deadline, kills the worker if it has completed no call since this one
    /// was sent. `shows_disk`: whether its completion shows that the disk responds.
    pub(super) async fn call(&self, call: Call, deadline: Instant, shows_disk: bool) -> Result<String> {
        let sent = Instant::now();
        if sent >= deadline {
            return Err(self.ended());
        }
        let (answer, mut answered) = oneshot::channel();
        let Some(number) = self.register(answer, shows_disk) else { return Err(self.ended()) };
        if self.calls.send(Request::Call { number, call: Box::new(call) }).is_err() {
            self.end();
        }
        if let Ok(answer) = timeout_at(deadline, &mut answered).await {
            return answer.unwrap_or_else(|_| Err(self.ended()));
        }
        if shows_disk && lock(&self.state).completed.is_none_or(|completed| completed < sent) {
            warn!(group = self.group, "a call was not completed in time: killing the worker process");
            lock(&self.state).was_killed = true;
            self.kill();
        }
        answered.await.unwrap_or_else(|_| Err(self.ended()))
    }

    /// The number of a call that waits from now on; `None` if the worker has ended.
    fn register(&self, answer: Waiting, shows_disk: bool) -> Option<u64> {
        let mut state = lock(&self.state);
        if state.ended.is_some() {
            return None;
        }
        state.next += 1;
        let number = state.next;
        state.waiting.insert(number, (answer, shows_disk));
        Some(number)
    }

    /// The error of a call that was not answered.
    fn ended(&self) -> Error {
        let (subject, remedy) = &self.subject;
        let text = if self.was_killed() {
            format!("{subject} does not respond, and its worker process was killed: {remedy}, and retry")
        } else {
            format!("the worker process of {subject} has ended: the call may have been completed; retry")
        };
        Error::new(Kind::Unresponsive, text)
    }

    /// Kills the process and fails its calls, even if the process does not end.
    pub(super) fn kill(&self) {
        let _has_ended = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.end();
        let _has_ended = self.socket.shutdown(Shutdown::Both);
    }

    /// Lets the process stop its copies and end.
    pub(super) fn stop(&self) {
        let _has_ended = self.socket.shutdown(Shutdown::Write);
    }

    fn end(&self) {
        let mut state = lock(&self.state);
        state.ended.get_or_insert_with(Instant::now);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }

    /// Whether it was killed because its disk did not respond.
    pub(super) fn was_killed(&self) -> bool {
        lock(&self.state).was_killed
    }

    /// When it ended or was killed.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        lock(&self.state).ended
    }

    /// Whether the kernel has ended it.
    pub(super) fn is_reaped(&self) -> bool {
        lock(&self.state).is_reaped
    }

    /// Waits until the kernel has ended it; reports whether it did before the deadline.
    pub(super) async fn wait_until_reaped(&self, deadline: Instant) -> bool {
        loop {
            let reaped = self.reaped.notified();
            if self.is_reaped() {
                return true;
            }
            if timeout_at(deadline, reaped).await.is_err() {
                return self.is_reaped();
            }
        }
    }

    /// Receives messages until the worker ends, and reaps it.
    fn read(&self, socket: &UnixStream, kept: &Kept, child: Started) {
        let received = loop {
            match frames::receive(socket.as_fd()) {
                Ok(Some((response, descriptor))) => self.handle(response, descriptor, kept),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = received {
            warn!(group = self.group, error = error.chain(), "cannot understand the worker process");
        }
        self.end();
        let _has_ended = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let status = child.wait();
        info!(group = self.group, status, "the worker process has ended");
        lock(&self.state).is_reaped = true;
        self.reaped.notify_waiters();
    }

    fn handle(&self, response: Response, descriptor: Option<OwnedFd>, kept: &Kept) {
        match response {
            Response::Answer { number, result } => {
                let mut state = lock(&self.state);
                let Some((waiting, shows_disk)) = state.waiting.remove(&number) else { return };
                let result = result.map_err(Error::from);
                let is_busy = result.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
                if shows_disk && !is_busy {
                    state.completed = Some(Instant::now());
                }
                drop(state);
                let _ = waiting.send(result);
            }
            Response::Deposit { name } => {
                let Some(descriptor) = descriptor else { return };
                close(lock(kept).insert(name, descriptor));
            }
            Response::Release { name } => close(lock(kept).remove(&name)),
        }
    }
}

/// A child process. It is killed and reaped when this is dropped, such as after a failure during its start.
struct Started(Option<Child>);

impl Started {
    fn pid(&self) -> Pid {
        self.0.as_ref().map_or(Pid::INIT, Pid::from_child)
    }

    /// Waits for its end, and returns its exit status as text.
    fn wait(mut self) -> String {
        let ended = self.0.take().map(|mut child| child.wait());
        match ended {
            Some(Ok(status)) => status.to_string(),
            Some(Err(error)) => error.to_string(),
            None => String::new(),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _has_ended = child.kill();
            let _has_ended = child.wait();
        }
    }
}

/// Sends a new worker what its predecessors have deposited, and what to serve.
fn send_setup(socket: &UnixStream, setup: &Setup, kept: &Kept) -> Result<()> {
    for (name, descriptor) in lock(kept).iter() {
        let request = Request::Descriptor { name: name.clone() };
        frames::send(socket.as_fd(), &request, Some(descriptor.as_fd()))?;
    }
    frames::send(socket.as_fd(), &Request::Setup(Box::new(setup.clone())), None)
}

/// Closes a descriptor on a thread, since that may wait for its disk.
fn close(descriptor: Option<OwnedFd>) {
    if descriptor.is_some() {
        let _closed_here_otherwise = spawn_thread("close", move || drop(descriptor));
    }
}

#[expect(clippy::disallowed_methods, reason = "the worker is this program again")]
fn spawn(launch: &Launch, socket: OwnedFd) -> Result<Child> {
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments).env_clear().envs(launch.environment.iter().cloned()).current_dir("/");
    // Its parent ends it; a Ctrl-C in a terminal reaches the parent only.
    command.process_group(0).stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.spawn().context(|| format!("start {} as a worker process", launch.program.display()))
}

fn write(socket: &UnixStream, requests: &mpsc::Receiver<Request>) {
    while let Ok(request) = requests.recv() {
        // If the worker has ended, the reader knows.
        if frames::send(socket.as_fd(), &request, None).is_err() {
            return;
        }
    }
}

fn clone(socket: &UnixStream) -> Result<UnixStream> {
    socket.try_clone().context(|| "open a socket again")
}

fn spawn_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop).context(|| "start a thread")
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a process that was killed may take to end before it counts as left behind.
pub(super) const DEATH_WAIT: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::call::Get;
    use crate::engine::request::Tuning;

    #[test]
    fn a_call_that_begins_when_the_worker_has_just_ended_is_refused() {
        let launch = Launch { program: "cat".into(), arguments: Vec::new(), environment: Vec::new() };
        let setup = Setup {
            group: "p".into(),
            pools: Vec::new(),
            tuning: Tuning::default(),
            known_pools: "/nonexistent".into(),
            log: "info".into(),
            log_as_json: false,
        };
        // On a thread, since a call that waits for itself would never return.
        let (answer, answered) = mpsc::channel();
        thread::spawn(move || {
            let process = Process::start(&launch, &setup, &Kept::default()).unwrap();
            process.kill();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let get = Call::Get(Get { id: "p/v".parse().unwrap() });
            let deadline = Instant::now() + Duration::from_secs(600);
            answer.send(runtime.block_on(process.call(get, deadline, true))).unwrap();
        });
        let error = answered.recv_timeout(Duration::from_secs(120)).unwrap().unwrap_err();
        assert!(error.chain().contains("the worker process of pool p has ended"), "{}", error.chain());
    }
}
