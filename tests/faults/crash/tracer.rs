//! strace, which counts the system calls of a process or makes one of them fail.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::operation::Base;
use crate::common::child::ChildProcess;

/// An strace that is attached to a process, and its log.
pub(super) struct Tracer {
    strace: Child,
    log: PathBuf,
}

impl Tracer {
    #[expect(clippy::disallowed_methods, reason = "strace is a program")]
    pub(super) fn attach(process: &ChildProcess, base: &Base, expressions: &[String]) -> Self {
        let log = base.dir.join("log");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o"]).arg(&log);
        for expression in expressions {
            strace.args(["-e", expression]);
        }
        strace.args(["-p", &process.id().to_string()]);
        let mut strace = strace.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut messages = BufReader::new(strace.stderr.take().unwrap()).lines();
        let first = messages.next().unwrap().unwrap();
        assert!(first.contains("attached"), "strace: {first}");
        // Read the rest, so that strace does not block on a full pipe.
        std::thread::spawn(move || messages.for_each(drop));
        Self { strace, log }
    }

    /// Detaches from the process if it is alive; returns the log.
    pub(super) fn detach(mut self) -> String {
        let id = rustix::process::Pid::from_child(&self.strace);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.strace.wait();
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
