//! A process that a test starts, speaks to by lines, and kills: this test program again, limited to one function.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::SendFlags;

/// The process, seen from its parent. Killed on drop.
pub(crate) struct ChildProcess {
    child: Child,
    answers: BufReader<UnixStream>,
}

impl ChildProcess {
    /// Starts the function `test`, which must have this full name and calls [`serve`] if it finds these environment
    /// variables. Returns when the process is ready.
    #[expect(clippy::disallowed_methods, reason = "the process is this program again")]
    pub(crate) fn start(test: &str, variables: &[(&str, String)]) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(180))).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .envs(variables.iter().cloned())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Self { child, answers: BufReader::new(ours) };
        assert_eq!(process.receive(), "ready", "{}", process.stderr());
        process
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends one line, unless the process is dead.
    pub(crate) fn send(&mut self, line: &str) {
        let _ = self.answers.get_ref().write_all(format!("{line}\n").as_bytes());
    }

    /// Receives one line; empty if the process is dead.
    pub(crate) fn receive(&mut self) -> String {
        let mut line = String::new();
        // A reset also means that it was killed, before it read the line.
        match self.answers.read_line(&mut line) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("no answer: {error}"),
            _ => line.trim_end().to_owned(),
        }
    }

    /// Sends a line and returns the answer; empty if the process is dead.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.receive()
    }

    /// Kills the process and waits for its end.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills the process; returns what it printed.
    pub(crate) fn stderr(&mut self) -> String {
        self.kill();
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
        }
        text
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// In the child process: reports that it is ready, then answers each line of the parent until this one is gone.
///
/// The system calls are `sendto` and `read`, which no test makes to fail.
pub(crate) fn serve(mut answer: impl FnMut(&str) -> String) {
    let parent = std::io::stdin();
    let send = |text: &str| {
        let line = format!("{}\n", text.replace('\n', " "));
        assert_eq!(
            rustix::net::send(parent.as_fd(), line.as_bytes(), SendFlags::NOSIGNAL).unwrap(),
            line.len()
        );
    };
    send("ready");
    for line in parent.lock().lines() {
        send(&answer(&line.unwrap()));
    }
}
