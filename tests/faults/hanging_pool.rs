//! A pool whose disk hangs: it is on a FUSE filesystem whose server is stopped. Calls for it wait in the kernel, as for a
//! dead disk, and the other pool must not notice.
#![expect(clippy::disallowed_methods, reason = "the FUSE server is a process")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::node_client::NodeClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::*;
use orlop::engine::Engine;
use orlop::engine::request::PoolSettings;
use orlop::volume::SizeRange;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::csi::{capability, create_request, map};
use crate::common::isolation::{in_own_process, skip, unmount_all};
use crate::common::pool::{
    MIB, check, clone_request, id, listed, long_waits, names, request, settings, snapshot_request,
};
use crate::common::server::{ORLOP, Server, connect};
use crate::common::wait::within_seconds;

/// Callers of the pool that hangs: more than a lane lets in.
const CALLERS: usize = 80;
/// `call-timeout` of the server.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// What a response may take beyond that, on a busy machine.
pub(super) const SLACK: Duration = Duration::from_secs(2);
/// Measurements of the healthy pool while the other one works, and as many while it hangs.
const ROUNDS: usize = 3;
const CALLS_PER_ROUND: usize = 40;

/// The settings of the pool that hangs, besides its name and path.
pub(super) const SLOW_POOL: &str = "exclusive = true\nmounted = true";

/// A FUSE filesystem that shows `back` at `mount`. Ends when dropped, so that nothing hangs any longer.
pub(super) struct Fuse {
    server: Child,
    mount: PathBuf,
}

impl Fuse {
    pub(super) fn start(base: &Path, options: &[&str]) -> Self {
        let (back, mount) = (base.join("back"), base.join("mount"));
        for directory in [&back, &mount] {
            fs::create_dir(directory).unwrap();
        }
        let mut command = Command::new("bindfs");
        // Without these options, the kernel would answer from its cache for a second.
        command.args(["-f", "-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0"]).args(options);
        let server = command.arg(&back).arg(&mount).spawn().unwrap();
        let fuse = Self { server, mount };
        let device = |path: &Path| rustix::fs::stat(path).unwrap().st_dev;
        within_seconds(180, "bindfs is mounted", || device(&fuse.mount) != device(base));
        fuse
    }

    pub(super) fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.server), signal).unwrap();
    }
}

/// Whether this machine has the FUSE server.
pub(super) fn is_installed() -> bool {
    Command::new("bindfs").arg("--version").output().is_ok()
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Killing the server makes the calls that hang fail.
        let _ = self.server.kill();
        let _ = self.server.wait();
        unmount_all(&self.mount);
    }
}

/// The pools `ok` and `slow` and their server.
pub(super) struct Setup {
    pub(super) base: PathBuf,
    pub(super) fuse: Fuse,
}

impl Setup {
    fn new(base: &Path, slow_pool: &str) -> Self {
        fs::create_dir(base.join("ok")).unwrap();
        let pools = format!(
            "[[pool]]\nname = \"ok\"\npath = \"{0}/ok\"\n\
             [[pool]]\nname = \"slow\"\npath = \"{0}/mount\"\n{slow_pool}\n\
             [tuning]\ncopy-wait = \"1s\"\ncall-timeout = \"{1}s\"\n",
            base.display(),
            CALL_TIMEOUT.as_secs(),
        );
        fs::write(base.join("orlop.toml"), pools).unwrap();
        Self { base: base.to_owned(), fuse: Fuse::start(base, &[]) }
    }

    /// Starts a command on both pools.
    fn command(&self, arguments: &str) -> Child {
        let mut command = Command::new(ORLOP);
        command.args(arguments.split_whitespace()).arg("--config").arg(self.base.join("orlop.toml"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("ORLOP_POOL").spawn().unwrap()
    }

    pub(super) async fn serve(&self) -> (Server, Client) {
        let server = Server::spawn_with_config(&self.base, &self.base.join("orlop.toml"));
        let client = Client::connect(&self.base).await;
        (server, client)
    }
}

#[derive(Clone)]
pub(super) struct Client {
    pub(super) controller: ControllerClient<Channel>,
    pub(super) node: NodeClient<Channel>,
    target: String,
}

impl Client {
    pub(super) async fn connect(base: &Path) -> Self {
        let channel = connect(&base.join("csi.sock")).await;
        let target = base.join("target").display().to_string();
        let node = NodeClient::new(channel.clone());
        Self { controller: ControllerClient::new(channel), node, target }
    }

    pub(super) async fn create(&mut self, pool: &str, name: &str) -> Result<(), Status> {
        let request = CreateVolumeRequest { parameters: map(&[("pool", pool)]), ..create_request(name) };
        self.controller.create_volume(request).await.map(drop)
    }

    pub(super) async fn get(&mut self, id: &str) -> Result<(), Status> {
        let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
        self.controller.controller_get_volume(request).await.map(drop)
    }

    pub(super) async fn delete(&mut self, id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.controller.delete_volume(request).await.map(drop)
    }

    pub(super) async fn list(&mut self) -> Result<(), Status> {
        self.controller.list_volumes(ListVolumesRequest::default()).await.map(drop)
    }

    pub(super) async fn capacity(&mut self, pool: &str) -> Result<i64, Status> {
        let request = GetCapacityRequest { parameters: map(&[("pool", pool)]), ..Default::default() };
        self.controller.get_capacity(request).await.map(|response| response.into_inner().available_capacity)
    }

    pub(super) async fn publish(&mut self, id: &str) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: self.target.clone(),
            volume_capability: Some(capability(Mode::SingleNodeMultiWriter)),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await.map(drop)
    }

    pub(super) async fn unpublish(&mut self, id: &str) -> Result<(), Status> {
        let (volume_id, target_path) = (id.to_owned(), self.target.clone());
        self.node.node_unpublish_volume(NodeUnpublishVolumeRequest { volume_id, target_path }).await.map(drop)
    }

    pub(super) async fn storage_health(&mut self) -> String {
        let health = self.node.node_get_storage_health(NodeGetStorageHealthRequest::default()).await;
        let entries = health.unwrap().into_inner().backend_health;
        entries.into_iter().map(|entry| entry.message).collect()
    }

    /// A volume of the pool `ok` from its creation to its deletion; returns the time of each call.
    pub(super) async fn cycle(&mut self, name: &str) -> [Duration; 5] {
        let id = format!("ok/{name}");
        let create = timed(self.create("ok", name)).await;
        let capacity = timed(self.capacity("ok")).await;
        let publish = timed(self.publish(&id)).await;
        let unpublish = timed(self.unpublish(&id)).await;
        [create, capacity, publish, unpublish, timed(self.delete(&id)).await]
    }
}

/// The time that a call takes. It must succeed, and may not take a time that suggests that it waited for a disk.
async fn timed<T>(call: impl Future<Output = Result<T, Status>>) -> Duration {
    let started = Instant::now();
    let answered = tokio::time::timeout(CALL_TIMEOUT, call).await;
    answered.expect("the pool ok waits for the pool slow").unwrap();
    started.elapsed()
}

/// The call is answered with UNAVAILABLE in time, and the message names the pool and since when it hangs.
pub(super) async fn is_unavailable<T: std::fmt::Debug>(
    what: &str,
    call: impl Future<Output = Result<T, Status>>,
) {
    let answered = tokio::time::timeout(CALL_TIMEOUT + SLACK, call).await;
    let status = answered.unwrap_or_else(|_| panic!("{what} is not answered")).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{what}: {status:?}");
    let message = status.message();
    let names_time = message.contains("since 20") || message.contains("retry");
    assert!(message.contains("pool") && names_time, "{what}: {message}");
}

fn run(test: &str, body: impl AsyncFnOnce(Setup)) {
    run_with(&format!("faults::hanging_pool::{test}"), SLOW_POOL, body);
}

/// Runs a test, by its full name, with these settings of the pool `slow`.
pub(super) fn run_with(test: &str, slow_pool: &str, body: impl AsyncFnOnce(Setup)) {
    if !is_installed() {
        return skip("bindfs is not installed");
    }
    in_own_process(test, || {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        // In memory, since the times that are compared must not depend on what else uses this machine's disk.
        rustix::mount::mount("tmpfs", &base, "tmpfs", MountFlags::empty(), c"mode=0700").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(body(Setup::new(&base, slow_pool)));
        unmount_all(&base);
    });
}

/// Keeps callers waiting for the pool `slow`, some of which give up early, as sidecars do.
pub(super) fn start_callers(client: &Client) -> Vec<tokio::task::JoinHandle<()>> {
    let call = |number: usize| {
        let mut client = client.clone();
        async move {
            let id = format!("slow/v{number}");
            match number % 4 {
                0 => is_unavailable("CreateVolume", client.create("slow", &format!("v{number}"))).await,
                1 => is_unavailable("ControllerGetVolume", client.get(&id)).await,
                2 => is_unavailable("DeleteVolume", client.delete(&id)).await,
                _ => {
                    let call = client.get(&id);
                    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
                }
            }
        }
    };
    (0..CALLERS).map(|number| tokio::spawn(call(number))).collect()
}

pub(super) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_pool_that_hangs_harms_only_its_own_callers_and_recovers() {
    run("a_pool_that_hangs_harms_only_its_own_callers_and_recovers", async |setup: Setup| {
        let (server, mut client) = setup.serve().await;
        fs::create_dir_all(setup.base.join("back/volumes/mine/data")).unwrap();
        within_async(10, async || client.clone().get("slow/mine").await.is_ok()).await;
        client.list().await.unwrap();
        assert!(client.capacity("slow").await.unwrap() > 0);
        let idle_threads = server.threads();
        let (mut before, mut during) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            for call in 0..CALLS_PER_ROUND {
                before.push(client.cycle(&format!("b{round}-{call}")).await);
            }
            setup.fuse.send(Signal::STOP);
            let callers = start_callers(&client);
            within_seconds(180, "a lane is full", || server.threads() >= idle_threads + 60);
            for call in 0..CALLS_PER_ROUND {
                during.push(client.cycle(&format!("d{round}-{call}")).await);
            }
            is_unavailable("ListVolumes", client.list()).await;
            for caller in callers {
                caller.await.unwrap();
            }
            check_hanging(&server, &mut client).await;
            during.push(client.cycle(&format!("l{round}")).await);
            assert!(server.threads() < idle_threads + 100, "{} threads", server.threads());
            setup.fuse.send(Signal::CONT);
            within_async(10, async || client.clone().get("slow/mine").await.is_ok()).await;
            within_async(10, async || client.clone().list().await.is_ok()).await;
            within_seconds(180, "the pool is available", || {
                server.http("/readyz").contains("pool slow: available")
            });
            let text = server.http("/metrics");
            assert!(text.contains("orlop_pool_unavailable_since_seconds{pool=\"slow\"} 0\n"), "{text}");
        }
        for (which, name) in
            ["CreateVolume", "GetCapacity", "Publish", "Unpublish", "DeleteVolume"].iter().enumerate()
        {
            let of = |times: &[[Duration; 5]]| median(times.iter().map(|cycle| cycle[which]).collect());
            let (before, during) = (of(&before), of(&during));
            eprintln!("{name}: median {before:?}, and {during:?} while the other pool hangs");
            assert!(during < before * 3 + Duration::from_millis(5), "{name}: {before:?} became {during:?}");
        }
        // The last lines are written some milliseconds later.
        let read_log = || fs::read_to_string(setup.base.join("log")).unwrap();
        within_seconds(180, "the last change is logged", || {
            read_log().matches("pool is available pool=\"slow\"").count() > ROUNDS
        });
        let log = read_log();
        let changes = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        assert_eq!(changes("pool is unavailable pool=\"slow\""), ROUNDS, "{log}");
        assert_eq!(changes("pool is available pool=\"slow\""), ROUNDS + 1, "{log}");
        // The runtime ends a thread that has been idle for ten seconds.
        within_seconds(180, "the threads of the calls end", || server.threads() <= idle_threads + 4);
    });
}

/// What is reported while the pool `slow` hangs and its lane is stalled.
async fn check_hanging(server: &Server, client: &mut Client) {
    for (what, text) in [("/readyz", server.http("/readyz")), ("health", client.storage_health().await)] {
        assert!(
            text.contains("pool slow: ") && text.contains("has not responded since 20"),
            "{what}: {text}"
        );
    }
    let readyz = server.http("/readyz");
    assert!(readyz.contains("200 OK") && readyz.contains("pool ok: available"), "{readyz}");
    let metrics = server.http("/metrics");
    assert!(metrics.contains("orlop_pool_available{pool=\"slow\"} 0\n"), "{metrics}");
    let since = metrics.split("orlop_pool_unavailable_since_seconds{pool=\"slow\"} ").nth(1).unwrap();
    let since: u64 = since.lines().next().unwrap().parse().unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(since <= now && since + 60 > now, "{since}");
    let started = Instant::now();
    assert_eq!(client.capacity("slow").await.unwrap(), 0);
    // At most one of them is let in as a trial, and waits.
    let (list, refused) = (client.clone().list().await, client.clone().get("slow/mine").await);
    for status in [list.unwrap_err(), refused.unwrap_err()] {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("pool slow does not respond: "), "{status:?}");
    }
    assert!(started.elapsed() < CALL_TIMEOUT * 2 + SLACK, "{:?}", started.elapsed());
}

#[test]
fn the_process_starts_while_a_pool_hangs() {
    run("the_process_starts_while_a_pool_hangs", async |setup: Setup| {
        setup.fuse.send(Signal::STOP);
        let started = Instant::now();
        let (server, mut client) = setup.serve().await;
        eprintln!("the socket was there after {:?}", started.elapsed());
        client.cycle("a").await;
        within_seconds(180, "the pool is reported", || {
            server.http("/readyz").contains("has not responded since 20")
        });
        is_unavailable("ControllerGetVolume", client.get("slow/mine")).await;
        setup.fuse.send(Signal::CONT);
        within_async(10, async || client.clone().capacity("slow").await.is_ok_and(|bytes| bytes > 0)).await;
        within_async(10, async || client.clone().list().await.is_ok()).await;
    });
}

/// Pods on a dead disk must be able to end.
#[test]
fn a_volume_of_a_pool_that_hangs_can_be_unpublished() {
    run("a_volume_of_a_pool_that_hangs_can_be_unpublished", async |setup: Setup| {
        let (mut server, mut client) = setup.serve().await;
        fs::create_dir_all(setup.base.join("back/volumes/mine/data")).unwrap();
        within_async(10, async || client.clone().get("slow/mine").await.is_ok()).await;
        client.publish("slow/mine").await.unwrap();
        setup.fuse.send(Signal::STOP);
        for caller in start_callers(&client) {
            caller.await.unwrap();
        }
        let answered = tokio::time::timeout(CALL_TIMEOUT, client.unpublish("slow/mine")).await;
        answered.expect("unpublish waits for the disk").unwrap();
        assert!(!setup.base.join("target").exists());
        // Calls that hang keep the process from ending for no longer than the runtime waits for them.
        let started = Instant::now();
        assert!(server.terminate().success());
        assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{:?}", started.elapsed());
    });
}

/// Also by a process that was started while the pool did not respond.
#[test]
fn a_volume_of_a_pool_that_hangs_can_be_unpublished_after_a_restart() {
    run("a_volume_of_a_pool_that_hangs_can_be_unpublished_after_a_restart", async |setup: Setup| {
        let (mut server, mut client) = setup.serve().await;
        fs::create_dir_all(setup.base.join("back/volumes/mine/data")).unwrap();
        within_async(10, async || client.clone().get("slow/mine").await.is_ok()).await;
        client.publish("slow/mine").await.unwrap();
        setup.fuse.send(Signal::STOP);
        server.kill();
        let (_server, mut client) = setup.serve().await;
        for caller in start_callers(&client) {
            caller.await.unwrap();
        }
        let answered = tokio::time::timeout(CALL_TIMEOUT, client.unpublish("slow/mine")).await;
        answered.expect("unpublish waits for the disk").unwrap();
        assert!(!setup.base.join("target").exists());
    });
}

/// Closing the files of a pool whose filesystem was detached may hang, too.
#[test]
fn a_pool_that_hangs_and_is_detached_harms_no_other_pool() {
    run("a_pool_that_hangs_and_is_detached_harms_no_other_pool", async |setup: Setup| {
        let (_server, mut client) = setup.serve().await;
        client.create("slow", "a").await.unwrap();
        setup.fuse.send(Signal::STOP);
        rustix::mount::unmount(&setup.fuse.mount, UnmountFlags::DETACH).unwrap();
        let mut slow = client.clone();
        let caller = tokio::spawn(async move { slow.get("slow/a").await });
        for number in 0..20 {
            client.cycle(&format!("c{number}")).await;
        }
        assert_eq!(caller.await.unwrap().unwrap_err().code(), Code::Unavailable);
    });
}

/// bindfs knows no flags of renameat2(2).
#[test]
fn a_pool_on_a_filesystem_without_rename_flags_works() {
    run("a_pool_on_a_filesystem_without_rename_flags_works", async |setup: Setup| {
        let mount = setup.fuse.mount.clone();
        let work = move || {
            let pool = PoolSettings { exclusive: true, ..settings(&mount) };
            let engine = Engine::open(vec![pool.clone()], long_waits()).unwrap();
            fs::create_dir_all(mount.join("work/0123456789abcdef/data")).unwrap();
            let volume = engine.create(&request("a", MIB)).unwrap();
            engine.create(&clone_request("b", &volume.id)).unwrap();
            engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
            engine.expand(&volume.id, SizeRange { required: 2 * MIB, limit: 0 }).unwrap();
            drop(engine);
            let engine = Engine::open(vec![pool], long_waits()).unwrap();
            engine.delete(&volume.id).unwrap();
            engine.delete_snapshot(&id("s")).unwrap();
            assert!(engine.wait_for_reaper(Duration::from_secs(120)));
            check(&engine, &mount);
            assert_eq!(names(&mount.join("trash")).len(), 0);
            assert_eq!(listed(&engine).into_keys().collect::<Vec<_>>(), ["b"]);
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    });
}

/// Polls a condition of the server.
pub(super) async fn within_async(seconds: u64, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {seconds} s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Commands need no server. Without a deadline, each of these would wait until the disk responds.
#[test]
fn a_command_on_a_pool_that_hangs_ends_with_an_error() {
    run("a_command_on_a_pool_that_hangs_ends_with_an_error", async |setup: Setup| {
        let (server, mut client) = setup.serve().await;
        client.create("ok", "a").await.unwrap();
        client.create("slow", "b").await.unwrap();
        drop(server);
        setup.fuse.send(Signal::STOP);
        let cases = [
            ("ls -q", "ok/a\n", "list the volumes of pool slow: no answer within 5 s"),
            ("inspect slow/b", "[]\n", "inspect volume slow/b: no answer within 5 s"),
            ("inspect b", "[]\n", "find volume b (or name its pool, as <pool>/b): no answer within 5 s"),
            ("rm slow/b ok/a", "ok/a\n", "delete volume slow/b: no answer within 5 s"),
            ("create c -o pool=slow", "", "create volume slow/c: no answer within 5 s"),
            ("clone slow/b c", "", "create volume slow/c: no answer within 5 s"),
            ("snapshot create slow/b s", "", "create snapshot slow/s: no answer within 5 s"),
            ("expand slow/b 1g", "", "expand volume slow/b: no answer within 5 s"),
        ];
        // `ls` first, since `rm` changes what it prints; the others wait side by side.
        let (first, others) = cases.split_at(1);
        for cases in [first, others] {
            let commands: Vec<_> = cases.iter().map(|(arguments, ..)| setup.command(arguments)).collect();
            for (command, (arguments, stdout, expected)) in commands.into_iter().zip(cases) {
                let output = command.wait_with_output().unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert_eq!(String::from_utf8_lossy(&output.stdout), *stdout, "{arguments}: {stderr}");
                assert_eq!(output.status.code(), Some(1), "{arguments}");
                assert!(stderr.contains(expected), "{arguments}: {stderr}");
            }
        }
        setup.fuse.send(Signal::CONT);
    });
}
