//! A running `orlop serve`.
#![expect(clippy::disallowed_methods, reason = "the program under test is a process")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::identity_client::IdentityClient;
use orlop::csi::proto::node_client::NodeClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::wait::within_seconds;

/// The program under test.
pub(crate) const ORLOP: &str = env!("CARGO_BIN_EXE_orlop");

/// How a server is started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Whether it serves the pool `p`.
    pub(crate) pool: bool,
    /// Whether it runs in a mount namespace of its own, so that no mount outlives it. Needs root.
    pub(crate) own_mounts: bool,
}

/// A server; killed when dropped. Its sockets and its pool, `pool/`, are in one directory.
pub(crate) struct Server {
    child: Child,
    base: PathBuf,
    /// Removed after the server has ended.
    temporary: Option<TempDir>,
}

impl Server {
    /// Starts a server in an existing directory and does not wait for it.
    pub(crate) fn spawn(base: &Path, options: Options) -> Self {
        let mut command = Command::new(if options.own_mounts { "unshare" } else { ORLOP });
        if options.own_mounts {
            command.args(["--mount", "--propagation", "private", ORLOP]);
        }
        command.args(["serve", "--node-id", "n1", "--log", "off"]);
        command.arg("--csi").arg(base.join("csi.sock")).arg("--http").arg(base.join("http.sock"));
        if options.pool {
            command.arg(format!("--pool=p={}", base.join("pool").display()));
        } else {
            command.arg("--no-pools");
        }
        Self { child: command.spawn().unwrap(), base: base.to_owned(), temporary: None }
    }

    /// Starts a server with the pools of a configuration file, in an existing directory, and does not wait for it.
    /// Its log is in `log`.
    pub(crate) fn spawn_with_config(base: &Path, config: &Path) -> Self {
        let log = std::fs::File::create(base.join("log")).unwrap();
        let mut command = Command::new(ORLOP);
        command.args(["serve", "--node-id", "n1", "--config"]).arg(config).stderr(log);
        command.arg("--csi").arg(base.join("csi.sock")).arg("--http").arg(base.join("http.sock"));
        Self { child: command.spawn().unwrap(), base: base.to_owned(), temporary: None }
    }

    /// Starts a server of the pool `p` with more flags, in an existing directory, and does not wait for it.
    pub(crate) fn spawn_with_flags(base: &Path, flags: &[&str]) -> Self {
        let mut command = Command::new(ORLOP);
        command.args(["serve", "--node-id", "n1", "--log", "off"]).args(flags);
        command.arg("--csi").arg(base.join("csi.sock")).arg("--http").arg(base.join("http.sock"));
        command.arg(format!("--pool=p={}", base.join("pool").display()));
        Self { child: command.spawn().unwrap(), base: base.to_owned(), temporary: None }
    }

    /// Starts a server of the pool `p` that logs each call, in an existing directory, and does not wait for it.
    pub(crate) fn spawn_with_log(base: &Path, log: Stdio) -> Self {
        let mut command = Command::new(ORLOP);
        command.args(["serve", "--node-id", "n1", "--log", "debug"]).stderr(log);
        command.arg("--csi").arg(base.join("csi.sock")).arg("--http").arg(base.join("http.sock"));
        command.arg(format!("--pool=p={}", base.join("pool").display()));
        Self { child: command.spawn().unwrap(), base: base.to_owned(), temporary: None }
    }

    /// Starts a server in a new temporary directory and waits until it accepts connections.
    pub(crate) fn start(pool: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pool")).unwrap();
        let own_mounts = rustix::process::geteuid().is_root();
        let mut server = Self::spawn(dir.path(), Options { pool, own_mounts });
        super::wait::within_seconds(60, "the server accepts connections", || {
            UnixStream::connect(server.socket()).is_ok()
        });
        server.temporary = Some(dir);
        server
    }

    /// Starts a server that logs each call, in a new temporary directory, and waits until it serves.
    pub(crate) fn start_with_log() -> Self {
        let dir = super::pool::memory_dir();
        std::fs::create_dir(dir.path().join("pool")).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut server = Self::spawn_with_log(dir.path(), log.into());
        super::wait::within_seconds(60, "the server serves", || server.log_lines("serving") == 1);
        server.temporary = Some(dir);
        server
    }

    /// Number of lines of its log that contain a text.
    pub(crate) fn log_lines(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(self.base.join("log")).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// The directory of its sockets and its pool.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    pub(crate) fn pool(&self) -> PathBuf {
        self.base.join("pool")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.base.join("csi.sock")
    }

    /// A target path for a volume, as text.
    pub(crate) fn target(&self, name: &str) -> String {
        self.base.join(name).display().to_string()
    }

    /// A path of the server's mount namespace, as seen from the test.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.child.id()))
    }

    /// Its mount namespace.
    pub(crate) fn mounts(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/mnt", self.child.id()))
    }

    /// Limits the files that it may have open.
    pub(crate) fn limit_open_files(&self, limit: u64) {
        let limit = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
        let pid = Some(rustix::process::Pid::from_child(&self.child));
        rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
    }

    /// Number of its open files.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// The processes that it has started and that have not ended.
    pub(crate) fn children(&self) -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of_task = |task: std::io::Result<std::fs::DirEntry>| {
            // A thread may end while the directory is read.
            let text = std::fs::read_to_string(task.ok()?.path().join("children")).ok()?;
            Some(text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>())
        };
        tasks.filter_map(of_task).flatten().collect()
    }

    /// Number of its threads.
    pub(crate) fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().count()
    }

    pub(crate) async fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(connect(&self.socket()).await)
    }

    pub(crate) async fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(connect(&self.socket()).await)
    }

    pub(crate) async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(connect(&self.socket()).await)
    }

    /// The response to a GET request, with its headers.
    pub(crate) fn http(&self, path: &str) -> String {
        let mut connection = None;
        within_seconds(60, "the HTTP server listens", || {
            connection = UnixStream::connect(self.base.join("http.sock")).ok();
            connection.is_some()
        });
        let mut stream = connection.unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Sends SIGTERM and waits.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.wait()
    }

    /// Sends SIGKILL and waits.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects to a server that may still be starting.
pub(crate) async fn connect(socket: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return channel,
            Err(error) => assert!(Instant::now() < deadline, "connect to {}: {error}", socket.display()),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
