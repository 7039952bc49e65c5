//! Worker processes: the calls of some pools run in another process, which is killed when their disk does not respond.
//!
//! The pools of a group share a worker. It is this program again, with an engine of its own. Its parent sends calls over a
//! socket and keeps, for its successors, the descriptors that it deposits.

mod frames;
mod group;
mod process;
mod serve;
mod stall;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::call::Call;
use crate::engine::request::{PoolSettings, Tuning};
use crate::error::{Error, Kind, Result};

pub use group::{Group, Launch, Probe};
pub use serve::{Worker, connect};

/// The subcommand that runs a worker.
pub const WORKER_COMMAND: &str = "worker";

/// What a worker is to serve, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// The name of the group.
    pub group: String,
    /// The pools of the group.
    pub pools: Vec<PoolSettings>,
    /// Timeouts and concurrency.
    pub tuning: Tuning,
    /// Directory in which the host's pools are recorded.
    pub known_pools: PathBuf,
    /// Filter of the log.
    pub log: String,
    /// Whether the log is JSON.
    pub log_as_json: bool,
}

impl Setup {
    /// What its calls wait for, as the subject of a message, and what to check when that does not respond.
    fn subject(&self) -> (String, &'static str) {
        match self.pools.iter().find_map(|pool| pool.share.as_ref()) {
            Some(share) => (format!("NFS server {}", share.server), PoolSettings::CHECK_SERVER),
            None => (format!("pool {}", self.group), "check its disk"),
        }
    }
}

/// A message to a worker.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// A descriptor that an earlier worker has deposited; it comes with the message.
    Descriptor { name: String },
    /// What to serve: after the descriptors, and before the calls.
    Setup(Box<Setup>),
    /// A call.
    Call { number: u64, call: Box<Call> },
}

/// A message from a worker.
#[derive(Debug, Serialize, Deserialize)]
enum Response {
    /// The answer to a call, as JSON.
    Answer { number: u64, result: std::result::Result<String, Failure> },
    /// A descriptor to keep; it comes with the message.
    Deposit { name: String },
    /// The descriptor of this name is to be closed.
    Release { name: String },
}

/// An error between processes.
#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    kind: Kind,
    messages: Vec<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { kind: error.kind(), messages: error.messages() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::from_messages(failure.kind, failure.messages)
    }
}

/// Parses an answer of a worker.
fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|error| Error::caused(Kind::Internal, "parse a message of a worker process", error))
}
