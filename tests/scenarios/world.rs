//! The cluster as a test sees it: the API server, the nodes' files, and a namespace of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

pub(crate) const DRIVER: &str = "dir.orlop.dev";
pub(crate) const FIRST: &str = "orlop-1";
pub(crate) const SECOND: &str = "orlop-2";
/// Long enough for a machine that does something else beside it.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// The folder of a kind of object, below which the API server has its objects.
pub(crate) const PODS: &str = "api/v1/pods";
pub(crate) const CLAIMS: &str = "api/v1/persistentvolumeclaims";
pub(crate) const VOLUMES: &str = "api/v1/persistentvolumes";
pub(crate) const EVENTS: &str = "api/v1/events";
pub(crate) const NODES: &str = "api/v1/nodes";
pub(crate) const SPACES: &str = "api/v1/namespaces";
pub(crate) const CLASSES: &str = "apis/storage.k8s.io/v1/storageclasses";
pub(crate) const CAPACITIES: &str = "apis/storage.k8s.io/v1/csistoragecapacities";
pub(crate) const SETS: &str = "apis/apps/v1/statefulsets";
pub(crate) const DAEMONS: &str = "apis/apps/v1/daemonsets";
pub(crate) const SNAPSHOTS: &str = "apis/snapshot.storage.k8s.io/v1/volumesnapshots";

/// Kinds of objects that are in no namespace.
const GLOBAL: [&str; 4] = [VOLUMES, NODES, SPACES, CLASSES];

/// A test's own namespace, and a client of the cluster.
pub(crate) struct World {
    runtime: Runtime,
    client: Client,
    pub(crate) space: String,
}

impl World {
    /// A namespace for the test `name`.
    pub(crate) fn new(name: &str) -> Self {
        let world = Self::in_space(name);
        // A failed run left it.
        if world.find(SPACES, name).is_some() {
            world.empty();
            world.delete_and_wait(SPACES, name);
        }
        world.make(SPACES, &json!({"metadata": {"name": name}}));
        // A pod needs it, and it comes a moment later.
        world.wait("a service account", || world.find("api/v1/serviceaccounts", "default"));
        world
    }

    /// A namespace that is there.
    pub(crate) fn in_space(name: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(Client::try_default()).expect("KUBECONFIG names the test cluster");
        Self { runtime, client, space: name.to_owned() }
    }

    /// The same cluster, in another namespace.
    pub(crate) fn beside(&self, space: &str) -> Self {
        Self::in_space(space)
    }

    // --- objects ---

    fn url(&self, kind: &str, name: &str) -> String {
        if GLOBAL.contains(&kind) {
            return format!("/{kind}/{name}").trim_end_matches('/').to_owned();
        }
        let (api, plural) = kind.rsplit_once('/').unwrap();
        format!("/{api}/namespaces/{}/{plural}/{name}", self.space).trim_end_matches('/').to_owned()
    }

    fn call(&self, method: &str, url: &str, content: &str, body: &Value) -> kube::Result<Value> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(url).header("Content-Type", content);
        self.runtime.block_on(self.client.request(request.body(body).unwrap()))
    }

    /// Makes an object; the API server's refusal, if it refuses.
    pub(crate) fn try_make(&self, kind: &str, object: &Value) -> Result<Value, String> {
        let created = self.call("POST", &self.url(kind, ""), "application/json", object);
        created.map_err(|error| error.to_string())
    }

    pub(crate) fn make(&self, kind: &str, object: &Value) -> Value {
        self.try_make(kind, object).unwrap_or_else(|error| panic!("make {kind} {object}: {error}"))
    }

    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<Value> {
        match self.call("GET", &self.url(kind, name), "application/json", &Value::Null) {
            Ok(object) => Some(object),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            // The first node may be booting.
            Err(error) => panic!("get {kind} {name}: {error}"),
        }
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        self.find(kind, name).unwrap_or_else(|| panic!("{kind} {name} is not there"))
    }

    /// Any page of the API server.
    pub(crate) fn page(&self, url: &str) -> Value {
        self.call("GET", url, "application/json", &Value::Null).unwrap()
    }

    pub(crate) fn list(&self, kind: &str) -> Vec<Value> {
        self.page(&self.url(kind, ""))["items"].as_array().unwrap().clone()
    }

    pub(crate) fn patch(&self, kind: &str, name: &str, change: &Value) -> Value {
        let url = self.url(kind, name);
        self.call("PATCH", &url, "application/merge-patch+json", change)
            .unwrap_or_else(|error| panic!("patch {kind} {name}: {error}"))
    }

    /// Asks for the deletion of an object, which may be gone already.
    pub(crate) fn delete(&self, kind: &str, name: &str) {
        match self.call("DELETE", &self.url(kind, name), "application/json", &Value::Null) {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("delete {kind} {name}: {error}"),
        }
    }

    pub(crate) fn delete_and_wait(&self, kind: &str, name: &str) {
        self.delete(kind, name);
        self.wait(&format!("{kind} {name} is gone"), || self.find(kind, name).is_none().then_some(()));
    }

    // --- waiting ---

    /// Asks until there is an answer.
    pub(crate) fn wait<T>(&self, what: &str, ask: impl FnMut() -> Option<T>) -> T {
        wait(what, SOON, ask, || self.explain())
    }

    pub(crate) fn wait_long<T>(&self, what: &str, ask: impl FnMut() -> Option<T>) -> T {
        wait(what, 3 * SOON, ask, || self.explain())
    }

    /// What a person would look at.
    fn explain(&self) -> String {
        let mut text = String::new();
        for (kind, state) in [(CLAIMS, "/status/phase"), (PODS, "/status/phase")] {
            for object in self.list(kind) {
                text += &format!("\n  {kind} {}: {}", name_of(&object), at(&object, state));
            }
        }
        for event in self.list(EVENTS) {
            text += &format!("\n  {}: {}", at(&event, "/reason"), at(&event, "/message"));
        }
        text
    }

    /// Waits for an event about an object of the namespace, and returns its text.
    pub(crate) fn event(&self, about: &str, reason: &str, part: &str) -> String {
        self.wait(&format!("an event {reason} about {about} that says {part:?}"), || {
            self.list(EVENTS).iter().find_map(|event| {
                let (name, why) = (at(event, "/involvedObject/name"), at(event, "/reason"));
                let text = at(event, "/message");
                (name == about && why == reason && text.contains(part)).then_some(text)
            })
        })
    }

    // --- pods and claims ---

    /// Waits until the scheduler says of a pod why it has no node. From the pod's condition: of events about one
    /// pod the scheduler's recorder keeps the first one's text, which may be that the claim is not seen yet.
    pub(crate) fn wait_unschedulable(&self, pod: &str, part: &str) {
        self.wait(&format!("pod {pod} has no node: {part:?}"), || {
            let pod = self.get(PODS, pod);
            let conditions = pod["status"]["conditions"].as_array()?;
            let why =
                conditions.iter().find(|one| one["type"] == "PodScheduled" && one["status"] == "False")?;
            at(why, "/message").contains(part).then_some(())
        });
    }

    pub(crate) fn wait_ready(&self, pod: &str) -> Value {
        self.wait(&format!("pod {pod} is ready"), || self.find(PODS, pod).filter(is_ready))
    }

    /// Waits until a pod has ended, and returns what it printed.
    pub(crate) fn output(&self, pod: &str) -> String {
        let phase = self.wait(&format!("pod {pod} has ended"), || {
            let phase = at(&self.get(PODS, pod), "/status/phase");
            ["Succeeded", "Failed"].contains(&phase.as_str()).then_some(phase)
        });
        let log = self.log(pod);
        assert_eq!(phase, "Succeeded", "pod {pod} failed: {log}");
        log
    }

    pub(crate) fn log(&self, pod: &str) -> String {
        let request = Request::get(format!("{}/log", self.url(PODS, pod))).body(Vec::new()).unwrap();
        self.runtime.block_on(self.client.request_text(request)).unwrap_or_default()
    }

    /// Waits until a claim is bound, and returns its volume.
    pub(crate) fn wait_bound(&self, claim: &str) -> Bound {
        let claim = self.wait(&format!("claim {claim} is bound"), || {
            self.find(CLAIMS, claim).filter(|claim| at(claim, "/status/phase") == "Bound")
        });
        let volume = self.get(VOLUMES, &at(&claim, "/spec/volumeName"));
        Bound::of(&volume)
    }

    /// The claims of the namespace go, and with them their volumes.
    pub(crate) fn empty(&self) {
        let bound: Vec<_> = self
            .list(CLAIMS)
            .iter()
            .map(|claim| at(claim, "/spec/volumeName"))
            .filter(|name| !name.is_empty())
            .collect();
        for kind in [SETS, PODS, SNAPSHOTS, CLAIMS] {
            for object in self.list(kind) {
                self.delete(kind, &name_of(&object));
            }
        }
        for name in bound {
            self.wait(&format!("volume {name} is gone"), || {
                let gone = |volume: &Value| at(volume, "/spec/persistentVolumeReclaimPolicy") == "Retain";
                self.find(VOLUMES, &name).is_none_or(|volume| gone(&volume)).then_some(())
            });
        }
    }
}

impl Drop for World {
    /// A failed test leaves its namespace to be looked at.
    fn drop(&mut self) {
        if !std::thread::panicking() && !["default", "orlop"].contains(&self.space.as_str()) {
            self.delete(SPACES, &self.space.clone());
        }
    }
}

pub(crate) fn wait<T>(
    what: &str,
    most: Duration,
    mut ask: impl FnMut() -> Option<T>,
    explain: impl FnOnce() -> String,
) -> T {
    let until = Instant::now() + most;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        if Instant::now() > until {
            panic!("not within {} s: {what}{}", most.as_secs(), explain());
        }
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// A text in an object; empty: it is not there.
pub(crate) fn at(object: &Value, path: &str) -> String {
    match object.pointer(path) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

pub(crate) fn name_of(object: &Value) -> String {
    at(object, "/metadata/name")
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// A PersistentVolume of ours.
#[derive(Debug, Clone)]
pub(crate) struct Bound {
    pub(crate) volume: String,
    pub(crate) handle: String,
    pub(crate) node: String,
}

impl Bound {
    pub(crate) fn of(volume: &Value) -> Self {
        Self {
            volume: name_of(volume),
            handle: at(volume, "/spec/csi/volumeHandle"),
            node: at(volume, "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values/0"),
        }
    }

    /// Its folder on its node, as this machine sees it.
    pub(crate) fn folder(&self) -> PathBuf {
        let (pool, name) = self.handle.split_once('/').unwrap();
        pool_on(&self.node, pool).join("volumes").join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    pub(crate) fn record(&self) -> Value {
        serde_json::from_slice(&fs::read(self.folder().join("volume.json")).unwrap()).unwrap()
    }

    pub(crate) fn wait_gone(&self, world: &World) {
        world.wait(&format!("volume {} is gone", self.volume), || {
            world.find(VOLUMES, &self.volume).is_none().then_some(())
        });
        assert!(!self.folder().exists(), "{} is gone", self.folder().display());
    }
}

// --- nodes ---

fn state() -> PathBuf {
    std::env::var_os("ORLOP_CLUSTER").map_or_else(|| "/var/lib/orlop-cluster".into(), PathBuf::from)
}

/// The root of a node, through its first process.
pub(crate) fn root_of(node: &str) -> PathBuf {
    let file = state().join("nodes").join(node).join("pid");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    PathBuf::from(format!("/proc/{}/root", text.split(' ').next().unwrap()))
}

pub(crate) fn pool_on(node: &str, pool: &str) -> PathBuf {
    let path = match pool {
        "default" => "var/lib/orlop",
        "small" => "srv",
        other => panic!("no pool is called {other}"),
    };
    root_of(node).join(path)
}

/// Runs a script of `tests/cluster`; its output.
pub(crate) fn script(name: &str, args: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster").join(name);
    run(Command::new(path).args(args))
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    out.into_owned()
}

/// Runs a command in a node; its output.
pub(crate) fn on(node: &str, command: &[&str]) -> String {
    script("node", &[&["-n", node], command].concat())
}

/// Kills orlop on a node, as a fault would: nothing is told to it.
pub(crate) fn kill_orlop(node: &str) {
    // No orlop runs between two kills: that is well.
    on(node, &["sh", "-c", "pkill -KILL -x orlop || true"]);
}

pub(crate) fn kubelet(node: &str, verb: &str) {
    on(node, &["--kubelet", verb]);
}
