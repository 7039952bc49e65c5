//! Whether the NFS servers of the pools respond.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Health;
use crate::remote::NfsShare;

/// How often a server is asked.
const ASK_EVERY: Duration = Duration::from_secs(15);

/// The servers of the pools, by name.
#[derive(Debug, Default)]
pub(super) struct WatchedServers(BTreeMap<String, Arc<Server>>);

#[derive(Debug)]
struct Server {
    share: NfsShare,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The last result; `None` before the first one.
    is_up: Option<bool>,
    answered: Option<Instant>,
    is_asked: bool,
}

/// Whether a server responds, and how long ago it last did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// Its name or address, as in the settings.
    pub server: String,
    /// Whether it responded when it was last asked.
    pub is_up: bool,
    /// The time since its last answer; `None` if it has never answered this process.
    pub age: Option<Duration>,
}

impl WatchedServers {
    pub(super) fn new<'s>(shares: impl Iterator<Item = &'s NfsShare>) -> Self {
        let server = |share: &NfsShare| {
            let server = Server { share: share.clone(), state: Mutex::default() };
            (share.server.clone(), Arc::new(server))
        };
        Self(shares.map(server).collect())
    }

    /// Asks all servers. A server that is still being asked is not asked again.
    async fn ask(&self) {
        let asked = self.0.values().filter(|server| server.begin()).cloned();
        let asked: Vec<_> = asked.map(|server| tokio::task::spawn_blocking(move || server.ask())).collect();
        for server in asked {
            let _ = tokio::time::timeout(ASK_EVERY, server).await;
        }
    }

    fn status(&self) -> Vec<ServerStatus> {
        let status = |(name, server): (&String, &Arc<Server>)| {
            let State { is_up, answered, .. } = *server.lock();
            let age = answered.map(|answered| answered.elapsed());
            is_up.map(|is_up| ServerStatus { server: name.clone(), is_up, age })
        };
        self.0.iter().filter_map(status).collect()
    }
}

impl Server {
    fn begin(&self) -> bool {
        !std::mem::replace(&mut self.lock().is_asked, true)
    }

    fn ask(&self) {
        let is_up = self.share.ping().is_ok();
        let mut state = self.lock();
        state.is_asked = false;
        state.is_up = Some(is_up);
        if is_up {
            state.answered = Some(Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// Asks the NFS servers of the pools regularly whether they respond.
    pub async fn watch_servers(&self) -> Infallible {
        loop {
            self.servers.ask().await;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// The NFS servers of the pools that were asked. Does not wait.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerStatus> {
        self.servers.status()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_server_is_up_while_it_responds_and_its_last_answer_gets_older() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = format!("port={}", listener.local_addr().unwrap().port());
        let share = NfsShare::new("127.0.0.1", "/a", &options, None).unwrap();
        let servers = WatchedServers::new([&share, &share].into_iter());
        assert_eq!(servers.status(), []);
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut call = [0; 44];
            stream.read_exact(&mut call).unwrap();
            let mut answer = [0x80, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 1];
            answer[4..8].copy_from_slice(&call[4..8]);
            stream.write_all(&answer).unwrap();
        });
        servers.ask().await;
        answering.join().unwrap();
        let status = servers.status();
        assert_eq!(status.len(), 1, "two pools of one server");
        assert!(status[0].is_up && status[0].server == "127.0.0.1");
        let age = status[0].age.unwrap();
        // The port is closed.
        servers.ask().await;
        let status = servers.status();
        assert!(!status[0].is_up && status[0].age.unwrap() > age);
    }
}
