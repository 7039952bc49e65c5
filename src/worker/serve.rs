//! The worker's side: runs calls on threads until its parent ends.

use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use tracing::Span;

use super::{Request, Response, Setup, frames};
use crate::engine::Engine;
use crate::engine::call::Call;
use crate::engine::request::Keeper;
use crate::error::{Context as _, Error, Kind, Result};

/// A worker that is connected to its parent.
#[derive(Debug, Clone)]
pub struct Worker {
    socket: Arc<OwnedFd>,
    /// Locked while a message is sent.
    sending: Arc<Mutex<()>>,
}

/// Connects a worker to its parent, by its standard input. Returns what the worker is to serve, and the descriptors that
/// its predecessors have deposited.
///
/// # Errors
/// `Invalid` if the standard input is not the socket of a parent.
pub fn connect() -> Result<(Worker, Setup, BTreeMap<String, OwnedFd>)> {
    // Its parent ends it, after the calls that are running.
    let ignored = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    ignored.thread_block().map_err(std::io::Error::from).context(|| "block signals")?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context(|| "open the socket of the parent")?;
    let mut kept = BTreeMap::new();
    let not_a_parent =
        || Error::new(Kind::Invalid, "this command is internal: it reads its task from a socket");
    loop {
        match frames::receive(socket.as_fd()).map_err(|_| not_a_parent())? {
            Some((Request::Descriptor { name }, Some(descriptor))) => drop(kept.insert(name, descriptor)),
            Some((Request::Setup(setup), _)) => {
                return Ok((Worker { socket: Arc::new(socket), sending: Arc::default() }, *setup, kept));
            }
            _ => return Err(not_a_parent()),
        }
    }
}

impl Keeper for Worker {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        self.deposit(name, descriptor)
    }

    fn close(&self, name: &str) -> Result<()> {
        self.release(name)
    }
}

impl Worker {
    /// Gives the parent a descriptor to keep for the next worker, however this one ends. The parent never uses it. An
    /// earlier descriptor of this name is closed.
    ///
    /// # Errors
    /// `Internal` if it cannot be sent.
    pub fn deposit(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        self.send(&Response::Deposit { name: name.to_owned() }, Some(descriptor))
    }

    /// Lets the parent close the descriptor of this name.
    ///
    /// # Errors
    /// `Internal` if the message cannot be sent.
    pub fn release(&self, name: &str) -> Result<()> {
        self.send(&Response::Release { name: name.to_owned() }, None)
    }

    /// Runs calls until the parent ends, and then stops the copies.
    ///
    /// # Errors
    /// `Internal` for a message that cannot be read.
    pub fn serve(&self, engine: &Arc<Engine>) -> Result<()> {
        let served = self.run_calls(engine);
        engine.shutdown();
        served
    }

    fn run_calls(&self, engine: &Arc<Engine>) -> Result<()> {
        let span = Span::current();
        while let Some((request, _)) = frames::receive(self.socket.as_fd())? {
            let Request::Call { number, call } = request else { continue };
            let (worker, engine) = (self.clone(), Arc::clone(engine));
            let span = span.clone();
            let work = move || span.in_scope(|| worker.answer(number, run(*call, &engine)));
            if let Err(error) = thread::Builder::new().name("call".to_owned()).spawn(work) {
                self.answer(number, Err(error).context(|| "start a thread"));
            }
        }
        Ok(())
    }

    fn answer(&self, number: u64, result: Result<String>) {
        // If the parent has ended, the answer is not needed.
        let _ = self.send(&Response::Answer { number, result: result.map_err(Into::into) }, None);
    }

    fn send(&self, response: &Response, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        frames::send(self.socket.as_fd(), response, descriptor)
    }
}

fn run(call: Call, engine: &Engine) -> Result<String> {
    catch_unwind(AssertUnwindSafe(|| call.run(engine))).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// The error of a call that panicked.
fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic");
    Error::new(Kind::Internal, format!("a bug in orlop caused a panic: {text}"))
}
