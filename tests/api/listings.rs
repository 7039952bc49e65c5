//! What listings say beside the records: usage, users, pods, claims and orphans, in each format.
#![expect(clippy::disallowed_methods, reason = "the program under test and its helpers are processes")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use orlop::engine::Engine;
use orlop::engine::request::Tuning;
use serde_json::{Value, json};

use crate::api::commands::{Container, Pools, Ran, run, set_age};
use crate::common::isolation;
use crate::common::pool::{settings_of, volume_record};
use crate::common::server::ORLOP;

const CLAIM: &str = "csi.storage.k8s.io/pvc";

/// The cells of the row of a volume, by the columns of the table.
fn row(table: &str, name: &str) -> Vec<(String, String)> {
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    let mut lines = table.lines().map(cells);
    let header = lines.next().unwrap();
    let row = lines.find(|row| row.get(1).is_some_and(|cell| cell == name));
    let row = row.unwrap_or_else(|| panic!("no {name} in\n{table}"));
    assert_eq!(header.len(), row.len(), "{table}");
    header.into_iter().zip(row).collect()
}

fn cell(table: &str, name: &str, column: &str) -> String {
    let found = row(table, name).into_iter().find(|(header, _)| header == column);
    found.unwrap_or_else(|| panic!("no {column} in\n{table}")).1
}

#[test]
fn a_listing_shows_usage_users_and_state() {
    if !isolation::is_root() {
        return;
    }
    let pools = Pools::with(&[("busy", 4 << 20), ("idle", 0)], &[]);
    let data = pools.path("p").join("volumes/busy/data");
    fs::write(data.join("file"), vec![1; 1 << 20]).unwrap();
    let container = Container::start(&data, &pools.dir.path().join("target"));
    let user = format!("process {}", container.0.id());
    let header = "POOL  NAME  SIZE  USED";
    for arguments in ["ls", "ls -o wide"] {
        let table = pools.run(arguments).stdout;
        assert!(table.starts_with(header), "{table}");
        let shown = |name: &str, column: &str| cell(&table, name, column);
        assert_eq!([shown("busy", "USED BY"), shown("busy", "STATE")], [user.clone(), "in use".to_owned()]);
        assert_eq!([shown("idle", "USED BY"), shown("idle", "STATE")], ["-", "dangling"].map(str::to_owned));
        assert!(!table.contains("CLAIM"), "{table}");
    }
    let wide = pools.run("ls -o wide").stdout;
    let used = cell(&wide, "busy", "USED");
    assert!(used == "1Mi" || used == "1.0Mi", "{wide}");
    assert_eq!(cell(&wide, "busy", "PATH"), data.display().to_string());
    let listed = pools.run("ls -o json").json();
    let (busy, idle) = (&listed[0], &listed[1]);
    assert_eq!((&busy["state"], &idle["state"]), (&json!("in use"), &json!("dangling")));
    assert_eq!(
        (&busy["usedBy"], &idle["usedBy"]),
        (&pools.run("inspect busy").json()[0]["users"], &json!([]))
    );
    assert_eq!(busy["usedBy"][0]["pid"], json!(container.0.id()));
    assert!(busy["used"].as_u64().is_none_or(|bytes| (1 << 20..2 << 20).contains(&bytes)), "{busy}");
    let state = |name: &str| run(pools.command(&format!("inspect {name}")).args(["-f", "{{.State}}"])).stdout;
    assert_eq!((state("busy").as_str(), state("idle").as_str()), ("in use\n", "dangling\n"));
}

#[test]
fn volumes_are_measured_until_the_deadline_and_a_large_one_does_not_hide_the_others() {
    let pools = Pools::with(&[("a-large", 0), ("broken", 0), ("small", 0)], &[]);
    let volumes = pools.path("p").join("volumes");
    for directory in 0..300 {
        let directory = volumes.join(format!("a-large/data/{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..100 {
            fs::write(directory.join(file.to_string()), "").unwrap();
        }
    }
    fs::write(volumes.join("small/data/file"), vec![1; 1 << 20]).unwrap();
    fs::remove_dir(volumes.join("broken/data")).unwrap();
    let settings = settings_of("p", &pools.path("p"));
    let pool = settings.name.clone();
    let engine = Engine::open_for_command(vec![settings], Tuning::default()).unwrap();
    let stored = engine.records(&pool).unwrap();
    let records: Vec<_> = stored.iter().filter_map(|volume| volume.record.as_ref().ok()).collect();
    let used = |deadline| engine.used_bytes(&pool, &records, deadline).unwrap();
    assert!(used(Instant::now()).is_empty(), "nothing is measured after the deadline");
    let names: Vec<_> =
        used(Instant::now() + Duration::from_secs(60)).keys().map(ToString::to_string).collect();
    assert_eq!(names, ["a-large", "small"]);
    let all = || {
        let begin = Instant::now();
        used(begin + Duration::from_secs(60));
        begin.elapsed()
    };
    let half = all().min(all()).min(all()) / 2;
    let has_small = |_| used(Instant::now() + half).keys().any(|name| name.as_str() == "small");
    // Another process may take the time of an attempt.
    assert!((0..50).any(has_small), "in {half:?}");
    let ran = pools.run("ls -o wide");
    assert_eq!((ran.code, cell(&ran.stdout, "broken", "USED")), (0, "-".to_owned()));
}

#[test]
fn a_volume_is_shown_with_its_claim() {
    let pools = Pools::with(&[("plain", 0)], &[]);
    let labels = format!("--label {CLAIM}/namespace=shop --label {CLAIM}/name=data");
    assert_eq!(pools.run(&format!("create claimed -o ondelete=retain {labels}")).code, 0);
    let claim = json!({"namespace": "shop", "name": "data"});
    for arguments in ["ls", "ls -o wide"] {
        let table = pools.run(arguments).stdout;
        let shown = ["claimed", "plain"].map(|name| cell(&table, name, "CLAIM"));
        assert_eq!(shown, ["shop/data", "-"], "{table}");
    }
    let listed = pools.run("ls -o json").json();
    assert_eq!((&listed[0]["claim"], &listed[1]["claim"]), (&claim, &Value::Null));
    let inspected = pools.run("inspect claimed plain").json();
    assert_eq!((&inspected[0]["claim"], &inspected[1]["claim"]), (&claim, &Value::Null));
    assert!(!pools.run("ls -f name=plain").stdout.contains("CLAIM"), "no volume has one");
    let ran = pools.run("rename claimed other");
    assert!(ran.stderr.contains("is that of claim shop/data, whose PersistentVolume"), "{}", ran.stderr);
    assert_eq!(pools.run("rm claimed").code, 0);
    let trash = pools.run("ls --trash -o wide").stdout;
    assert_eq!(
        [cell(&trash, "claimed", "CLAIM"), cell(&trash, "claimed", "STATE")],
        ["shop/data", "trashed"]
    );
    let trash = pools.run("ls --trash -o json").json();
    assert_eq!((&trash[0]["claim"], &trash[0]["state"]), (&claim, &json!("trashed")));
}

/// The commands run in PID and mount namespaces of their own, whose first process sees the directory of logs of a kubelet.
#[test]
fn pods_are_named_as_kubelet_names_them() {
    if !isolation::is_root() {
        return;
    }
    let pools = Pools::with(&[("a", 0), ("b", 0)], &[]);
    let (known, other) = ("0b6fd0a7-5d3c-4c3e-9d7c-2a8f1d1f0a11", "1b6fd0a7-5d3c-4c3e-9d7c-2a8f1d1f0a11");
    let script = "
mount -t tmpfs none /var/log && mkdir -p /var/log/pods/shop_web-0_$2
at() { mkdir -p $1/pods/$2/volumes/x/mount && mount --bind $1/p/volumes/$3/data $1/pods/$2/volumes/x/mount; }
at $1 $2 a && at $1 $3 b
$0 ls --pool p=$1/p
echo; $0 inspect a b --pool p=$1/p
$0 rm a b --pool p=$1/p";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private"]);
    command.args(["sh", "-c", script, ORLOP]).arg(pools.dir.path()).args([known, other]);
    let Ran { code, stdout, stderr } = run(&mut command);
    let (table, inspected) = stdout.split_once("\n\n").unwrap_or_else(|| panic!("{stdout}{stderr}"));
    assert_eq!(cell(table, "a", "USED BY"), "pod shop/web-0");
    assert_eq!(cell(table, "b", "USED BY"), format!("pod {}", &other[..12]));
    let inspected: Value = serde_json::from_str(inspected).unwrap();
    let pod = |volume: usize| {
        ["pod", "podNamespace", "podName"].map(|key| inspected[volume]["users"][0][key].clone())
    };
    assert_eq!(pod(0), [json!(known), json!("shop"), json!("web-0")]);
    assert_eq!(pod(1), [json!(other), Value::Null, Value::Null]);
    let refusals: Vec<_> = stderr.lines().collect();
    assert_eq!((code, refusals.len()), (4, 2), "{stderr}");
    assert!(refusals[0].starts_with("orlop: volume p/a is in use by pod shop/web-0 at /"), "{stderr}");
    assert!(refusals[1].starts_with(&format!("orlop: volume p/b is in use by pod {other} at /")), "{stderr}");
}

#[test]
fn every_listing_has_every_format() {
    let pools = Pools::with(&[("a", 4096), ("b", 0), ("gone", 0)], &[]);
    fs::create_dir_all(pools.path("q").join("volumes/mine/data")).unwrap();
    assert_eq!(pools.run("snapshot create a s --label why=upgrade").code, 0);
    assert_eq!(pools.run("rm gone").code, 0);
    for (command, names, column) in [
        ("ls", "p/a\np/b\nq/mine\n", "PATH"),
        ("ls --trash", "p/gone\n", "AGE"),
        ("snapshot ls", "p/s\n", "why=upgrade"),
        ("df", "p\nq\n", "PATH"),
        ("doctor", "volume q/mine\n", "ok    pool p: marker: "),
        ("volume doctor", "volume q/mine\n", "ok    pool p: marker: "),
    ] {
        let printed = |format: &str| {
            let ran = pools.run(&format!("{command} -o {format}"));
            assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{command} -o {format}");
            ran.stdout
        };
        let of_doctor: String = match command.ends_with("doctor") {
            // The machine may have findings of its own.
            true => printed("name")
                .lines()
                .filter(|line| line.starts_with("volume"))
                .map(|line| format!("{line}\n"))
                .collect(),
            false => printed("name"),
        };
        assert_eq!(of_doctor, names, "{command}");
        let json: Value = serde_json::from_str(&printed("json")).unwrap();
        assert!(json.as_array().is_some_and(|items| !items.is_empty()), "{command}: {json}");
        let yaml = printed("yaml");
        let first = json[0].as_object().unwrap().keys().next().unwrap().clone();
        assert!(yaml.contains(&format!("\"{first}\": ")), "{command}: {yaml}");
        assert_eq!(
            yaml.lines().filter(|line| line.starts_with("- ")).count(),
            json.as_array().unwrap().len()
        );
        let (text, wide) = (printed("text"), printed("wide"));
        assert!(wide.contains(column) && !text.contains(column), "{command}: {text}{wide}");
    }
    assert_eq!(pools.run("inspect a b -o name").stdout, "p/a\np/b\n");
    assert!(pools.run("inspect a -o yaml").stdout.contains("\"claim\": null\n"));
    assert_eq!(pools.run("inspect a -o wide").code, 2);
    for command in ["check", "volume check"] {
        let ran = pools.run(&format!("{command} -o json"));
        assert!(ran.code == 0 && ran.json().as_array().unwrap().len() > 4, "{command}: {ran:?}");
    }
}

/// Answers like an API server: two pages of PersistentVolumes for the right token. Its arguments: a directory with its key,
/// its certificate and `answer`, which says how it answers. Prints its port.
const API_SERVER: &str = r#"
import http.server, json, os, ssl, sys, time, urllib.parse
os.chdir(sys.argv[1])

def volume(name, phase="Bound", node="n1", driver="dir.orlop.dev"):
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "dir.orlop.dev/node", "operator": "In", "values": [node]}]}]}}
    return {"metadata": {"name": name}, "status": {"phase": phase},
            "spec": {"csi": {"driver": driver, "volumeHandle": "p/" + name}, "nodeAffinity": affinity}}

PAGES = [[volume("kept"), volume("released", "Released"), volume("elsewhere", node="n2")],
         [volume("late"), volume("foreign", driver="other.dev"), volume("yielded", "Released")]]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        answer = open("answer").read()
        while answer == "never":
            time.sleep(60)
        page = 1 if query.get("continue") == ["second"] else 0
        status = 200
        body = {"apiVersion": "v1", "kind": "PersistentVolumeList", "items": PAGES[page],
                "metadata": {} if page else {"continue": "second"}}
        right = url.path == "/api/v1/persistentvolumes" and self.headers["Authorization"] == "Bearer secret"
        if answer == "forbidden" or not right or not query.get("limit"):
            status = 403
            body = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden",
                    "message": "you may not list persistentvolumes", "metadata": {}}
        if answer == "incomplete" and page:
            body["metadata"] = {"continue": "", "remainingItemCount": 7}
        if answer == "verbose":
            status = 500
            body = {"message": "first line\n" + "x" * 100000}
        if answer == "endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b" " * (1 << 20))
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
server.handle_error = lambda *_: None
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert.pem", "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// An API server with a certificate of its own, which ends when this is dropped.
struct ApiServer {
    process: Child,
    port: String,
}

impl ApiServer {
    /// Starts it with a certificate for 127.0.0.1.
    fn start(dir: &Path) -> Self {
        let settings = "[req]\nprompt=no\ndistinguished_name=name\nx509_extensions=more\n[name]\nCN=api\n[more]\n\
                        basicConstraints=critical,CA:FALSE\nsubjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n";
        fs::write(dir.join("settings"), settings).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -config settings"
                .split(' '),
        );
        let made =
            openssl.args(["-keyout", "key.pem", "-out", "cert.pem"]).current_dir(dir).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fs::write(dir.join("token"), "secret").unwrap();
        fs::write(dir.join("namespace"), "orlop").unwrap();
        let mut python = Command::new("python3");
        let mut process = python.args(["-c", API_SERVER]).arg(dir).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut port).unwrap();
        Self { process, port: port.trim().to_owned() }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The commands run in a mount namespace that has the token of a service account, as in a pod.
#[test]
fn a_volume_of_a_claim_without_a_persistent_volume_is_an_orphan() {
    if !isolation::is_root() {
        return;
    }
    let pools = Pools::with(&[("plain", 0)], &[]);
    let names = ["elsewhere", "foreign", "kept", "late", "lost", "released", "yielded", "young"];
    for name in names {
        let labels = format!("--label {CLAIM}/namespace=shop --label {CLAIM}/name={name}");
        assert_eq!(pools.run(&format!("create {name} {labels}")).code, 0);
        // The record of a volume has the time at which its copy began.
        set_age(&pools.path("p"), name, 1);
        if !["yielded", "young"].contains(&name) {
            let record = fs::File::options().write(true).open(volume_record(&pools.path("p"), name)).unwrap();
            record.set_modified(SystemTime::now() - Duration::from_secs(601)).unwrap();
        }
    }
    let directory = pools.dir.path().join("api");
    fs::create_dir(&directory).unwrap();
    let server = ApiServer::start(&directory);
    let in_pod = |answer: &str, arguments: &str| {
        fs::write(directory.join("answer"), answer).unwrap();
        let script = "
run=$(readlink -f /var/run) && mount -t tmpfs none $run && mkdir -p $run/secrets/kubernetes.io/serviceaccount
cd $run/secrets/kubernetes.io/serviceaccount && cp $1/token $1/namespace . && cp $1/cert.pem ca.crt
shift; exec \"$@\"";
        let orlop = pools.command(arguments);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(&directory);
        command.arg(orlop.get_program()).args(orlop.get_args());
        command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", &server.port);
        run(command.env("ORLOP_NODE_ID", "n1"))
    };
    let orphans = |table: &str| -> Vec<&str> {
        names.into_iter().filter(|name| cell(table, name, "STATE") == "orphan").collect()
    };
    let listed = in_pod("well", "ls");
    assert_eq!((listed.code, listed.stderr.as_str()), (0, ""));
    let expected = ["elsewhere", "foreign", "lost", "released", "yielded"];
    assert_eq!(orphans(&listed.stdout), expected, "{}", listed.stdout);
    assert_eq!(cell(&listed.stdout, "plain", "STATE"), "dangling");
    let inspected = in_pod("well", "inspect lost kept").json();
    assert_eq!((&inspected[0]["state"], &inspected[1]["state"]), (&json!("orphan"), &json!("dangling")));
    let other = in_pod("well", "ls --driver other.dev --node-id n1").stdout;
    assert_eq!(orphans(&other), ["elsewhere", "kept", "late", "lost", "released"], "{other}");

    for (answer, why) in [
        ("forbidden", "you may not list persistentvolumes"),
        ("never", "did not respond in time"),
        ("incomplete", "the list is incomplete: 7 are missing"),
        ("verbose", "first line\\u000ax"),
        ("endless", "larger than 16777216 bytes"),
    ] {
        let begin = Instant::now();
        let ran = in_pod(answer, "ls");
        assert!(begin.elapsed() < Duration::from_secs(20), "{answer}");
        assert_eq!((ran.code, ran.stderr.lines().count()), (0, 1), "{}", ran.stderr);
        assert!(ran.stderr.starts_with("orlop: which volumes are orphans is not known: "), "{}", ran.stderr);
        assert!(ran.stderr.contains(why) && ran.stderr.chars().count() < 400, "{}", ran.stderr);
        assert_eq!(orphans(&ran.stdout), [""; 0]);
    }
    assert_eq!(in_pod("forbidden", "ls -q").stderr, "", "a listing without states does not ask");
    assert_eq!(in_pod("forbidden", "ls -f name=plain").stderr, "", "nor one without claims");
    assert_eq!(orphans(&pools.run("ls").stdout), [""; 0], "nor one outside a cluster");
}

#[test]
fn a_listing_asks_only_the_pools_of_its_filter_and_refuses_unknown_ones() {
    let pools = Pools::with(&[("a", 0)], &[("b", 0)]);
    for arguments in ["ls -f pool=nope", "ls -q -f pool=p -f pool=nope"] {
        let ran = pools.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments}: {}", ran.stderr);
        let expected = "pool nope does not exist; the configured pools are: p, q";
        assert!(ran.stderr.contains(expected), "{arguments}: {}", ran.stderr);
    }
    assert_eq!(pools.run("ls -q -f pool=q -f pool=p -f pool=q").stdout, "p/a\nq/b\n");
    fs::remove_file(pools.path("q").join("orlop.json")).unwrap();
    assert_eq!(pools.run("ls -q").code, 1, "pool q is unavailable");
    let ran = pools.run("ls -q -f pool=p");
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "p/a\n", ""));
}
