//! The program is killed repeatedly under load. Its clients remember what was acknowledged, and each restart is checked
//! against that.
//!
//! `ORLOP_CRASH_ROUNDS` is the number of kills; the default is 20.
#![expect(clippy::print_stderr, reason = "prints figures for the log")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::node_client::NodeClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::*;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::csi::{capability, create_request, from_snapshot};
use crate::common::isolation::in_own_process;
use crate::common::pool::names;
use crate::common::server::{Options, Server, connect};

const CLIENTS: usize = 8;

fn rounds() -> u64 {
    std::env::var("ORLOP_CRASH_ROUNDS").map_or(20, |text| text.parse().unwrap())
}

/// Files in every volume, so that a copy takes more than a moment.
const FILES: usize = 50;

/// The steps of a client with one volume, in this order. Each step is repeated until it is acknowledged.
const STEPS: [Step; 9] = [
    Step::Create,
    Step::Publish,
    Step::Write,
    Step::Snapshot,
    Step::Restore,
    Step::Unpublish,
    Step::Delete,
    Step::DeleteRestored,
    Step::DeleteSnapshot,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Create,
    Publish,
    Write,
    Snapshot,
    Restore,
    Unpublish,
    Delete,
    DeleteRestored,
    DeleteSnapshot,
}

/// Whether an object must exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Present,
    Absent,
    /// The call that creates or removes it has not been answered.
    Either,
}

/// Whether an object that one step creates and another removes must exist during the step `now`.
fn between(now: Step, made: Step, removed: Step) -> Expected {
    if now == made || now == removed {
        Expected::Either
    } else if now > made && now < removed {
        Expected::Present
    } else {
        Expected::Absent
    }
}

/// A client, and what was acknowledged to it.
#[derive(Debug)]
struct Client {
    me: usize,
    /// Number of volumes that it has completed.
    turn: usize,
    step: usize,
    /// Turns whose snapshot and restored volume were kept.
    kept: Vec<usize>,
    targets: PathBuf,
    calls: u64,
}

impl Client {
    fn step(&self) -> Step {
        STEPS[self.step]
    }

    fn volume(&self, turn: usize) -> String {
        format!("v{}-{turn}", self.me)
    }

    fn restored(&self, turn: usize) -> String {
        format!("r{}-{turn}", self.me)
    }

    fn snapshot(&self, turn: usize) -> String {
        format!("s{}-{turn}", self.me)
    }

    fn target(&self) -> PathBuf {
        self.targets.join(format!("of-{}", self.me))
    }

    fn advance(&mut self) {
        self.step += 1;
        let last = if self.turn.is_multiple_of(3) { 7 } else { STEPS.len() };
        if self.step == last {
            if last == 7 {
                self.kept.push(self.turn);
            }
            (self.turn, self.step) = (self.turn + 1, 0);
        }
    }

    /// Sends the request of its next step; reports whether the step is complete.
    async fn send(
        &mut self,
        controller: &mut ControllerClient<Channel>,
        node: &mut NodeClient<Channel>,
    ) -> Result<bool, Status> {
        let (turn, id) = (self.turn, |name: String| format!("p/{name}"));
        let volume_id = id(self.volume(turn));
        let target_path = self.target().display().to_string();
        match self.step() {
            Step::Create => {
                let made = controller.create_volume(create_request(&self.volume(turn))).await?.into_inner();
                assert_eq!(made.volume.unwrap().volume_id, volume_id, "a retry returns the same id");
            }
            Step::Publish => {
                let request = NodePublishVolumeRequest {
                    volume_id,
                    target_path,
                    volume_capability: Some(capability(Mode::SingleNodeMultiWriter)),
                    ..Default::default()
                };
                node.node_publish_volume(request).await?;
            }
            Step::Write => {
                for file in 0..FILES {
                    fs::write(self.target().join(file.to_string()), self.volume(turn)).unwrap();
                }
            }
            Step::Snapshot => {
                let request = CreateSnapshotRequest {
                    source_volume_id: volume_id,
                    name: self.snapshot(turn),
                    ..Default::default()
                };
                let snapshot = controller.create_snapshot(request).await?.into_inner().snapshot.unwrap();
                assert_eq!(snapshot.snapshot_id, id(self.snapshot(turn)));
                return Ok(snapshot.ready_to_use);
            }
            Step::Restore => {
                let request = CreateVolumeRequest {
                    volume_content_source: from_snapshot(&id(self.snapshot(turn))),
                    ..create_request(&self.restored(turn))
                };
                controller.create_volume(request).await?;
            }
            Step::Unpublish => {
                node.node_unpublish_volume(NodeUnpublishVolumeRequest { volume_id, target_path }).await?;
            }
            Step::Delete => delete(controller, volume_id).await?,
            Step::DeleteRestored => delete(controller, id(self.restored(turn))).await?,
            Step::DeleteSnapshot => {
                let snapshot_id = id(self.snapshot(turn));
                let request = DeleteSnapshotRequest { snapshot_id, ..Default::default() };
                controller.delete_snapshot(request).await?;
            }
        }
        Ok(true)
    }

    /// Works until the server is killed or `turns` volumes are complete.
    async fn work(&mut self, socket: &Path, killed: &AtomicBool, turns: usize) {
        let channel = connect(socket).await;
        let (mut controller, mut node) =
            (ControllerClient::new(channel.clone()), NodeClient::new(channel.clone()));
        while self.turn < turns {
            self.calls += 1;
            let step = self.step();
            // Every fifth call is cancelled by the client and repeated at once.
            let cancel = self.calls.is_multiple_of(5) && step != Step::Write;
            let timeout = Duration::from_millis(if cancel { self.calls / 5 % 4 } else { 60_000 });
            match tokio::time::timeout(timeout, self.send(&mut controller, &mut node)).await {
                Err(_) => assert!(cancel, "{self:?} got no answer"),
                Ok(Ok(true)) => self.advance(),
                Ok(Ok(false)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Ok(Err(_)) if killed.load(Ordering::SeqCst) => return,
                // Another call for the same object still runs, such as a cancelled one.
                Ok(Err(status)) if status.code() == Code::Aborted => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(Err(status)) => panic!("{step:?} of {self:?}: {status:?}"),
            }
        }
    }

    /// Adds the expected objects, by directory.
    fn add_expected(&self, all: &mut BTreeMap<String, Expected>) {
        let (now, turn) = (self.step(), self.turn);
        let mut add = |path: String, expected: Expected| {
            if expected != Expected::Absent {
                all.insert(path, expected);
            }
        };
        let is_kept = turn.is_multiple_of(3);
        let until = |step: Step| if is_kept { Step::DeleteSnapshot } else { step };
        add(format!("volumes/{}", self.volume(turn)), between(now, Step::Create, Step::Delete));
        let restored = between(now, Step::Restore, until(Step::DeleteRestored));
        add(format!("volumes/{}", self.restored(turn)), restored);
        add(format!("snapshots/{}", self.snapshot(turn)), between(now, Step::Snapshot, Step::DeleteSnapshot));
        for turn in &self.kept {
            add(format!("volumes/{}", self.restored(*turn)), Expected::Present);
            add(format!("snapshots/{}", self.snapshot(*turn)), Expected::Present);
        }
    }

    /// Whether the volume or snapshot of this name must contain all files.
    fn is_filled(&self, name: &str) -> bool {
        name != self.volume(self.turn) || self.step() > Step::Write
    }
}

async fn delete(controller: &mut ControllerClient<Channel>, volume_id: String) -> Result<(), Status> {
    controller.delete_volume(DeleteVolumeRequest { volume_id, ..Default::default() }).await.map(drop)
}

/// The volumes and snapshots that the server lists, by directory.
async fn listed(controller: &mut ControllerClient<Channel>) -> BTreeSet<String> {
    let volumes = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    let snapshots = controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let name = |id: &str| id.strip_prefix("p/").unwrap().to_owned();
    let volumes = volumes.entries.into_iter().map(|entry| name(&entry.volume.unwrap().volume_id));
    let snapshots = snapshots.entries.into_iter().map(|entry| name(&entry.snapshot.unwrap().snapshot_id));
    let volumes = volumes.map(|name| format!("volumes/{name}"));
    volumes.chain(snapshots.map(|name| format!("snapshots/{name}"))).collect()
}

fn on_disk(pool: &Path) -> BTreeSet<String> {
    let names_in =
        |kind: &'static str| names(&pool.join(kind)).into_iter().map(move |name| format!("{kind}/{name}"));
    ["volumes", "snapshots"].into_iter().flat_map(names_in).collect()
}

/// Checks the state of a server that was just started and has received no other request.
async fn check(base: &Path, clients: &[Client]) {
    let pool = base.join("pool");
    let mut controller = ControllerClient::new(connect(&base.join("csi.sock")).await);
    let listed = listed(&mut controller).await;
    assert_eq!(listed, on_disk(&pool), "listings and directories differ");
    let mut expected = BTreeMap::new();
    clients.iter().for_each(|client| client.add_expected(&mut expected));
    for (path, state) in &expected {
        assert!(*state == Expected::Either || listed.contains(path), "{path} was acknowledged and is lost");
    }
    for path in &listed {
        assert!(expected.contains_key(path), "{path} was deleted or never requested");
        let name = path.split('/').next_back().unwrap();
        let owner = clients.iter().find(|client| name[1..].starts_with(&format!("{}-", client.me))).unwrap();
        let files = names(&pool.join(path).join("data"));
        assert!(!owner.is_filled(name) || files.len() == FILES, "{path} has {} files", files.len());
        let text = owner.volume(name.split('-').next_back().unwrap().parse().unwrap());
        for file in files.iter().filter(|_| owner.is_filled(name)) {
            assert_eq!(fs::read_to_string(pool.join(path).join("data").join(file)).unwrap(), text, "{path}");
        }
    }
    // The reaper first has to remove the trash of the previous process.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !names(&pool.join("trash")).is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for directory in ["trash", "work"] {
        assert_eq!(names(&pool.join(directory)), BTreeSet::new(), "left in {directory}/");
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for client in clients {
        let target = client.target().display().to_string();
        let mounts = table.lines().filter(|line| line.split(' ').nth(4) == Some(&target)).count();
        match between(client.step(), Step::Publish, Step::Unpublish) {
            Expected::Present => assert_eq!(mounts, 1, "{target}"),
            Expected::Absent => assert_eq!(mounts, 0, "{target}"),
            Expected::Either => assert!(mounts <= 1, "{target}"),
        }
    }
    let ours =
        table.lines().filter(|line| line.split(' ').nth(4).unwrap().starts_with(base.to_str().unwrap()));
    assert!(ours.count() <= CLIENTS, "unexpected mounts");
}

/// Runs all clients until `stop` has killed the server, or until all have completed `turns` volumes.
async fn run_clients(
    base: &Path,
    clients: Vec<Client>,
    turns: usize,
    killed: &Arc<AtomicBool>,
    stop: impl Future<Output = ()>,
) -> Vec<Client> {
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let (socket, killed) = (base.join("csi.sock"), Arc::clone(killed));
            tokio::spawn(async move {
                client.work(&socket, &killed, turns).await;
                client
            })
        })
        .collect();
    stop.await;
    let mut back = Vec::new();
    for task in tasks {
        back.push(task.await.unwrap());
    }
    back
}

#[test]
fn acknowledged_changes_survive_kills_under_load() {
    in_own_process("faults::killed_server::acknowledged_changes_survive_kills_under_load", || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(kill_and_check());
    });
}

fn serve(base: &Path) -> Server {
    Server::spawn(base, Options { pool: true, own_mounts: false })
}

async fn kill_and_check() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    for directory in ["pool", "targets"] {
        fs::create_dir(base.join(directory)).unwrap();
    }
    let new = |me| {
        let targets = base.join("targets");
        Client { me, turn: 0, step: 0, kept: Vec::new(), targets, calls: me as u64 }
    };
    let mut clients: Vec<_> = (0..CLIENTS).map(new).collect();
    for round in 0..rounds() {
        let mut server = serve(&base);
        check(&base, &clients).await;
        let killed = Arc::new(AtomicBool::new(false));
        let stop = async {
            tokio::time::sleep(Duration::from_millis(150 + round * 137 % 700)).await;
            killed.store(true, Ordering::SeqCst);
            server.kill();
        };
        clients = run_clients(&base, clients, usize::MAX, &killed, stop).await;
    }
    let turns: Vec<_> = clients.iter().map(|client| client.turn).collect();
    eprintln!("{} kills; volumes completed by each client: {turns:?}", rounds());
    assert!(turns.iter().sum::<usize>() > 0, "no client completed a volume");
    let mut server = serve(&base);
    check(&base, &clients).await;
    let turns = turns.iter().max().unwrap() + 1;
    let never = Arc::new(AtomicBool::new(false));
    clients = run_clients(&base, clients, turns, &never, async {}).await;
    delete_kept(&base, &mut clients).await;
    server.kill();
}

/// Deletes everything that was kept, and checks that the pool is empty then.
async fn delete_kept(base: &Path, clients: &mut [Client]) {
    let mut controller = ControllerClient::new(connect(&base.join("csi.sock")).await);
    for client in clients.iter_mut() {
        for turn in std::mem::take(&mut client.kept) {
            delete(&mut controller, format!("p/{}", client.restored(turn))).await.unwrap();
            let snapshot_id = format!("p/{}", client.snapshot(turn));
            let request = DeleteSnapshotRequest { snapshot_id, ..Default::default() };
            controller.delete_snapshot(request).await.unwrap();
        }
    }
    check(base, clients).await;
    assert_eq!(on_disk(&base.join("pool")), BTreeSet::new());
}
