//! A running `orlop serve --docker`, and a client that speaks as an engine does.
#![expect(clippy::disallowed_methods, reason = "the program under test is a process")]

use std::io::{Read as _, Write as _};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::{Value, json};

use super::server::ORLOP;
use super::wait::within_seconds;

/// A server of the volume plugin protocol; killed when dropped. Its mounts are in the caller's mount namespace.
pub(crate) struct Plugin {
    child: Child,
    client: Client,
}

/// A client of one of its sockets.
pub(crate) struct Client {
    base: PathBuf,
    driver: String,
}

impl Deref for Plugin {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Plugin {
    /// Starts a server with these flags, and does not wait until it listens.
    pub(crate) fn spawn(base: &Path, flags: &[&str]) -> Self {
        Self::spawn_as(Command::new(ORLOP), base, flags)
    }

    /// Like [`Plugin::spawn`], with a command that runs orlop.
    pub(crate) fn spawn_as(mut command: Command, base: &Path, flags: &[&str]) -> Self {
        std::fs::create_dir_all(base).unwrap();
        let log = std::fs::File::create(base.join("log")).unwrap();
        command.args(["serve", "--node-id", "n1"]).args(flags).stderr(log);
        command.arg("--docker").arg(base.join("plugins/orlop.sock"));
        command.arg("--docker-mounts").arg(base.join("mounts"));
        command.arg("--docker-shares").arg(base.join("shares"));
        command.arg("--known-pools").arg(base.join("known-pools"));
        let client = Client { base: base.to_owned(), driver: "orlop".to_owned() };
        Self { child: command.spawn().unwrap(), client }
    }

    /// Starts a server of the pool `p`, in `pool/`, and waits until it listens.
    pub(crate) fn start(base: &Path) -> Self {
        let pool = base.join("pool");
        std::fs::create_dir_all(&pool).unwrap();
        let plugin = Self::spawn(base, &[&format!("--pool=p={}", pool.display())]);
        plugin.wait();
        plugin
    }

    /// Sends SIGKILL and waits.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM and waits.
    pub(crate) fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Client {
    /// A client of the driver of this name.
    pub(crate) fn at(&self, driver: &str) -> Self {
        Self { base: self.base.clone(), driver: driver.to_owned() }
    }

    /// The log of the server.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.base.join("log")).unwrap()
    }

    /// Waits until a text is in the log.
    pub(crate) fn wait_for_log(&self, text: &str) {
        within_seconds(120, text, || self.log().contains(text));
    }

    /// Waits until it listens.
    pub(crate) fn wait(&self) {
        within_seconds(120, "the plugin listens", || self.connect().is_some());
    }

    pub(crate) fn connect(&self) -> Option<UnixStream> {
        UnixStream::connect(self.base.join(format!("plugins/{}.sock", self.driver))).ok()
    }

    /// Sends the bytes of a request, and returns the status and the body of the response.
    pub(crate) fn send(&self, request: &[u8]) -> (u16, String) {
        let mut stream = self.connect().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        // The server may answer, and close the connection, before it has read everything.
        let _ = stream.write_all(request);
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, body.to_owned())
    }

    /// Makes a call as Docker 20.10 does: without a content type, and with an empty host.
    pub(crate) fn call(&self, method: &str, body: &str) -> (u16, Value) {
        let request = format!(
            "POST /{method} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Accept: application/vnd.docker.plugins.v1.2+json\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let (status, body) = self.send(request.as_bytes());
        let json = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{method}: {error}: {body:?}"));
        (status, json)
    }

    /// Makes a call that must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, method: &str, body: &Value) -> Value {
        let (status, answer) = self.call(&format!("VolumeDriver.{method}"), &body.to_string());
        assert_eq!((status, &answer["Err"]), (200, &json!("")), "{method} {body}: {answer}");
        answer
    }

    /// Makes a call that must fail, and returns the error.
    #[track_caller]
    pub(crate) fn error(&self, method: &str, body: &Value) -> String {
        let (status, answer) = self.call(&format!("VolumeDriver.{method}"), &body.to_string());
        assert_eq!(status, 500, "{method} {body}: {answer}");
        answer["Err"].as_str().unwrap().to_owned()
    }

    /// The names that List returns.
    pub(crate) fn names(&self) -> Vec<String> {
        let answer = self.ok("List", &json!({}));
        let volumes = answer["Volumes"].as_array().unwrap().iter();
        volumes.map(|volume| volume["Name"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.kill();
    }
}
