//! The cluster as a test uses it: a namespace of its own, the API server, and the commands of orlop on each node.

use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

pub(crate) const DRIVER: &str = "dir.orlop.dev";
/// Long enough for a machine that is busy with other work.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// The API paths of kinds of objects, without the namespace.
pub(crate) const PODS: &str = "api/v1/pods";
pub(crate) const CLAIMS: &str = "api/v1/persistentvolumeclaims";
pub(crate) const VOLUMES: &str = "api/v1/persistentvolumes";
pub(crate) const EVENTS: &str = "api/v1/events";
pub(crate) const NODES: &str = "api/v1/nodes";
pub(crate) const SPACES: &str = "api/v1/namespaces";
pub(crate) const CLASSES: &str = "apis/storage.k8s.io/v1/storageclasses";
pub(crate) const CAPACITIES: &str = "apis/storage.k8s.io/v1/csistoragecapacities";
pub(crate) const SETS: &str = "apis/apps/v1/statefulsets";
pub(crate) const DRIVERS: &str = "apis/storage.k8s.io/v1/csidrivers";
pub(crate) const DRIVER_NODES: &str = "apis/storage.k8s.io/v1/csinodes";
pub(crate) const ATTACHMENTS: &str = "apis/storage.k8s.io/v1/volumeattachments";
pub(crate) const DAEMONS: &str = "apis/apps/v1/daemonsets";
pub(crate) const CONTENTS: &str = "apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents";
pub(crate) const SNAPSHOTS: &str = "apis/snapshot.storage.k8s.io/v1/volumesnapshots";
pub(crate) const GROUPS: &str = "apis/groupsnapshot.storage.k8s.io/v1/volumegroupsnapshots";
pub(crate) const GROUP_CONTENTS: &str = "apis/groupsnapshot.storage.k8s.io/v1/volumegroupsnapshotcontents";
pub(crate) const GROUP_CLASSES: &str = "apis/groupsnapshot.storage.k8s.io/v1/volumegroupsnapshotclasses";

/// Kinds of objects without a namespace.
const GLOBAL: [&str; 10] = [
    VOLUMES,
    NODES,
    SPACES,
    CLASSES,
    DRIVERS,
    DRIVER_NODES,
    ATTACHMENTS,
    CONTENTS,
    GROUP_CONTENTS,
    GROUP_CLASSES,
];

/// The names of the nodes that run orlop and accept pods.
static USABLE_NODES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let cluster = TestNamespace::existing("default");
    let has_orlop = |node: &Value| {
        let drivers = node["spec"]["drivers"].as_array();
        drivers.is_some_and(|all| all.iter().any(|one| one["name"] == DRIVER))
    };
    let with_orlop: Vec<_> =
        cluster.list(DRIVER_NODES).iter().filter(|node| has_orlop(node)).map(name_of).collect();
    let nodes = cluster.list(NODES);
    let usable = nodes.iter().filter(|node| {
        let taints = node["spec"]["taints"].as_array().map_or(0, Vec::len);
        taints == 0 && is_ready(node) && with_orlop.contains(&name_of(node))
    });
    let names: Vec<_> = usable.map(name_of).collect();
    assert!(names.len() >= 2, "two nodes that run orlop and accept pods are needed: {names:?}");
    names
});

/// The node on which tests put a pod if any node will do.
pub(crate) fn first() -> &'static str {
    &USABLE_NODES[0]
}

/// Another node.
pub(crate) fn second() -> &'static str {
    &USABLE_NODES[1]
}

/// The namespace of a test, and a client of the cluster.
pub(crate) struct TestNamespace {
    runtime: Runtime,
    client: Client,
    pub(crate) name: String,
}

impl TestNamespace {
    /// Creates the namespace `name`.
    pub(crate) fn new(name: &str) -> Self {
        let test = Self::existing(name);
        // It may be left from a failed run.
        if test.find(SPACES, name).is_some() {
            test.delete_all();
            test.delete_and_wait(SPACES, name);
        }
        test.create(SPACES, &json!({"metadata": {"name": name}}));
        // Pods need it, and it is created a moment after the namespace.
        test.wait("a service account", || test.find("api/v1/serviceaccounts", "default"));
        test
    }

    /// Uses a namespace that exists.
    pub(crate) fn existing(name: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(Client::try_default()).expect("KUBECONFIG names the test cluster");
        Self { runtime, client, name: name.to_owned() }
    }

    /// Uses another namespace of the cluster.
    pub(crate) fn other(&self, name: &str) -> Self {
        Self::existing(name)
    }

    // --- objects ---

    fn url(&self, kind: &str, name: &str) -> String {
        if GLOBAL.contains(&kind) {
            return format!("/{kind}/{name}").trim_end_matches('/').to_owned();
        }
        let (api, plural) = kind.rsplit_once('/').unwrap();
        format!("/{api}/namespaces/{}/{plural}/{name}", self.name).trim_end_matches('/').to_owned()
    }

    fn call(&self, method: &str, url: &str, content: &str, body: &Value) -> kube::Result<Value> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(url).header("Content-Type", content);
        self.runtime.block_on(self.client.request(request.body(body).unwrap()))
    }

    /// Creates an object; returns the message if the API server refuses it.
    pub(crate) fn try_create(&self, kind: &str, object: &Value) -> Result<Value, String> {
        let created = self.call("POST", &self.url(kind, ""), "application/json", object);
        created.map_err(|error| error.to_string())
    }

    pub(crate) fn create(&self, kind: &str, object: &Value) -> Value {
        self.try_create(kind, object).unwrap_or_else(|error| panic!("create {kind} {object}: {error}"))
    }

    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<Value> {
        match self.call("GET", &self.url(kind, name), "application/json", &Value::Null) {
            Ok(object) => Some(object),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => panic!("get {kind} {name}: {error}"),
        }
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        self.find(kind, name).unwrap_or_else(|| panic!("{kind} {name} does not exist"))
    }

    /// The response to a GET request for any URL of the API server.
    pub(crate) fn get_url(&self, url: &str) -> Value {
        self.call("GET", url, "application/json", &Value::Null).unwrap()
    }

    pub(crate) fn list(&self, kind: &str) -> Vec<Value> {
        self.get_url(&self.url(kind, ""))["items"].as_array().unwrap().clone()
    }

    pub(crate) fn patch(&self, kind: &str, name: &str, change: &Value) -> Value {
        let url = self.url(kind, name);
        self.call("PATCH", &url, "application/merge-patch+json", change)
            .unwrap_or_else(|error| panic!("patch {kind} {name}: {error}"))
    }

    /// Requests the deletion of an object. It may be deleted already.
    pub(crate) fn delete(&self, kind: &str, name: &str) {
        match self.call("DELETE", &self.url(kind, name), "application/json", &Value::Null) {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("delete {kind} {name}: {error}"),
        }
    }

    pub(crate) fn delete_and_wait(&self, kind: &str, name: &str) {
        self.delete(kind, name);
        self.wait(&format!("{kind} {name} is deleted"), || self.find(kind, name).is_none().then_some(()));
    }

    // --- waiting ---

    /// Polls until there is a result.
    pub(crate) fn wait<T>(&self, what: &str, poll: impl FnMut() -> Option<T>) -> T {
        wait(what, SOON, poll, || self.explain())
    }

    pub(crate) fn wait_long<T>(&self, what: &str, poll: impl FnMut() -> Option<T>) -> T {
        wait(what, 3 * SOON, poll, || self.explain())
    }

    /// The state of claims and pods, and the events.
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

    /// Waits for an event about an object of the namespace; returns its message.
    pub(crate) fn event(&self, about: &str, reason: &str, part: &str) -> String {
        self.wait(&format!("an event {reason} about {about} with {part:?}"), || {
            self.list(EVENTS).iter().find_map(|event| {
                let (name, why) = (at(event, "/involvedObject/name"), at(event, "/reason"));
                let text = at(event, "/message");
                (name == about && why == reason && text.contains(part)).then_some(text)
            })
        })
    }

    // --- pods and claims ---

    /// Waits until the pod's condition contains the reason why it has no node. Events are unsuitable: of its messages
    /// about a pod, the scheduler keeps the text of the first one, from before it saw the claim.
    pub(crate) fn wait_unschedulable(&self, pod: &str, part: &str) {
        self.wait(&format!("pod {pod} is unschedulable with {part:?}"), || {
            let pod = self.get(PODS, pod);
            let conditions = pod["status"]["conditions"].as_array()?;
            let condition =
                conditions.iter().find(|one| one["type"] == "PodScheduled" && one["status"] == "False")?;
            at(condition, "/message").contains(part).then_some(())
        });
    }

    pub(crate) fn wait_ready(&self, pod: &str) -> Value {
        self.wait(&format!("pod {pod} is ready"), || self.find(PODS, pod).filter(is_ready))
    }

    /// Waits until a pod has ended; returns its log.
    pub(crate) fn output(&self, pod: &str) -> String {
        let what = format!("pod {pod} has ended");
        self.output_at(pod, &self.wait(&what, || self.end_of(pod)))
    }

    /// Like [`TestNamespace::output`], for a pod that works for long.
    pub(crate) fn output_long(&self, pod: &str) -> String {
        let what = format!("pod {pod} has ended");
        self.output_at(pod, &self.wait_long(&what, || self.end_of(pod)))
    }

    /// The phase of a pod that has ended.
    fn end_of(&self, pod: &str) -> Option<String> {
        let phase = at(&self.get(PODS, pod), "/status/phase");
        ["Succeeded", "Failed"].contains(&phase.as_str()).then_some(phase)
    }

    fn output_at(&self, pod: &str, phase: &str) -> String {
        let log = self.log(pod);
        assert_eq!(phase, "Succeeded", "pod {pod} failed: {log}");
        log
    }

    pub(crate) fn log(&self, pod: &str) -> String {
        let request = Request::get(format!("{}/log", self.url(PODS, pod))).body(Vec::new()).unwrap();
        self.runtime.block_on(self.client.request_text(request)).unwrap_or_default()
    }

    /// Waits until a claim is bound; returns its volume.
    pub(crate) fn wait_bound(&self, claim: &str) -> Bound {
        let claim = self.wait(&format!("claim {claim} is bound"), || {
            self.find(CLAIMS, claim).filter(|claim| at(claim, "/status/phase") == "Bound")
        });
        let volume = self.get(VOLUMES, &at(&claim, "/spec/volumeName"));
        Bound::of(&volume)
    }

    // --- orlop ---

    /// Runs a command of orlop in its pod on a node.
    pub(crate) fn orlop(&self, node: &str, arguments: &[&str]) -> Output {
        let pods = self.other("orlop").list(PODS);
        let is_on_node = |pod: &&Value| {
            at(pod, "/metadata/labels/app.kubernetes.io~1component") == "node"
                && at(pod, "/spec/nodeName") == node
        };
        let pod =
            name_of(pods.iter().find(is_on_node).unwrap_or_else(|| panic!("no pod of orlop on {node}")));
        let exec = ["exec", "-n", "orlop", &pod, "-c", "orlop", "--", "orlop"];
        Command::new("kubectl").args(exec).args(arguments).output().unwrap()
    }

    /// What `orlop inspect` prints about a volume.
    pub(crate) fn inspect(&self, volume: &Bound) -> Value {
        let output = self.orlop(&volume.node, &["inspect", &volume.handle]);
        assert!(output.status.success(), "inspect {}: {output:?}", volume.handle);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()[0].clone()
    }

    /// What `orlop inspect` prints about the volumes for the claims and pods of the namespace, on all nodes.
    pub(crate) fn volumes(&self) -> Vec<Value> {
        let mut found = Vec::new();
        for node in USABLE_NODES.iter() {
            let ids = String::from_utf8(self.orlop(node, &["ls", "-q"]).stdout).unwrap();
            if ids.is_empty() {
                continue;
            }
            // Volumes of other tests may be deleted meanwhile, so the exit code says nothing.
            let arguments: Vec<_> = std::iter::once("inspect").chain(ids.lines()).collect();
            let all: Vec<Value> = serde_json::from_slice(&self.orlop(node, &arguments).stdout).unwrap();
            found.extend(all.into_iter().filter(|volume| {
                let labels = volume["labels"].as_object();
                let namespaces = ["csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pod.namespace"];
                labels.is_some_and(|labels| {
                    namespaces.iter().any(|key| labels.get(*key).is_some_and(|one| *one == *self.name))
                })
            }));
        }
        found
    }

    /// Runs a command in a pod; returns its output.
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> String {
        run(Command::new("kubectl").args(["exec", "-n", &self.name, pod, "--"]).args(command))
    }

    /// Deletes the pods, snapshots and claims of the namespace, and waits until their volumes are deleted.
    pub(crate) fn delete_all(&self) {
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
            self.wait(&format!("volume {name} is deleted"), || {
                let stays = |volume: &Value| at(volume, "/spec/persistentVolumeReclaimPolicy") == "Retain";
                self.find(VOLUMES, &name).is_none_or(|volume| stays(&volume)).then_some(())
            });
        }
    }
}

impl Drop for TestNamespace {
    /// The namespace of a failed test is kept for inspection.
    fn drop(&mut self) {
        if !std::thread::panicking() && !["default", "orlop"].contains(&self.name.as_str()) {
            self.delete(SPACES, &self.name.clone());
        }
    }
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    out.into_owned()
}

pub(crate) fn wait<T>(
    what: &str,
    timeout: Duration,
    mut poll: impl FnMut() -> Option<T>,
    explain: impl FnOnce() -> String,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(result) = poll() {
            return result;
        }
        if Instant::now() > deadline {
            panic!("not within {} s: {what}{}", timeout.as_secs(), explain());
        }
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// A field of an object as text; empty if it is missing.
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

/// A PersistentVolume of orlop.
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

    /// Waits until neither the cluster nor orlop has the volume.
    pub(crate) fn wait_deleted(&self, test: &TestNamespace) {
        test.wait(&format!("volume {} is deleted", self.volume), || {
            test.find(VOLUMES, &self.volume).is_none().then_some(())
        });
        let found = test.orlop(&self.node, &["inspect", &self.handle]);
        assert_eq!(found.status.code(), Some(3), "{} still exists: {found:?}", self.handle);
    }
}
