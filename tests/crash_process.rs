//! The real program under load is killed again and again; its clients remember what they were told, and hold it to it.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]
#![expect(clippy::print_stderr, reason = "says how much was done")]
#![expect(clippy::disallowed_methods, reason = "the program under test is a process, and a test may poll")]

#[path = "ground/mounts.rs"]
mod mounts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::node_client::NodeClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use orlop::csi::proto::*;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const CLIENTS: usize = 8;

fn rounds() -> u64 {
    std::env::var("ORLOP_CRASH_ROUNDS").map_or(20, |text| text.parse().unwrap())
}

/// Files in every volume, so that a copy takes more than a moment.
const FILES: usize = 50;

/// What a client does with one volume, in this order. Each step is asked for until it is acknowledged.
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

/// Whether something is to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    There,
    Gone,
    /// The call that makes or removes it was not answered.
    Either,
}

/// What is there between the acknowledgement of one step and that of another.
fn between(now: Step, made: Step, removed: Step) -> Is {
    if now == made || now == removed {
        Is::Either
    } else if now > made && now < removed {
        Is::There
    } else {
        Is::Gone
    }
}

/// A client and what it was told.
#[derive(Debug)]
struct Client {
    me: usize,
    /// Volumes it has been through.
    turn: usize,
    step: usize,
    /// Turns of which the snapshot and what was restored from it were left.
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

    fn acknowledged(&mut self) {
        self.step += 1;
        let last = if self.turn.is_multiple_of(3) { 7 } else { STEPS.len() };
        if self.step == last {
            if last == 7 {
                self.kept.push(self.turn);
            }
            (self.turn, self.step) = (self.turn + 1, 0);
        }
    }

    /// Asks for its next step; true when that was acknowledged.
    async fn ask(
        &mut self,
        controller: &mut ControllerClient<Channel>,
        node: &mut NodeClient<Channel>,
    ) -> Result<bool, Status> {
        let (turn, id) = (self.turn, |name: String| format!("p/{name}"));
        let volume_id = id(self.volume(turn));
        let target_path = self.target().display().to_string();
        match self.step() {
            Step::Create => {
                let made = controller.create_volume(create(self.volume(turn), None)).await?.into_inner();
                assert_eq!(made.volume.unwrap().volume_id, volume_id, "a retry gives the same id");
            }
            Step::Publish => {
                let request = NodePublishVolumeRequest {
                    volume_id,
                    target_path,
                    volume_capability: Some(capability()),
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
                let cut = controller.create_snapshot(request).await?.into_inner().snapshot.unwrap();
                assert_eq!(cut.snapshot_id, id(self.snapshot(turn)));
                return Ok(cut.ready_to_use);
            }
            Step::Restore => {
                let request = create(self.restored(turn), Some(id(self.snapshot(turn))));
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

    /// Asks until the server dies, or `turns` are over.
    async fn work(&mut self, socket: &Path, killed: &AtomicBool, turns: usize) {
        let channel = connect(socket).await;
        let (mut controller, mut node) =
            (ControllerClient::new(channel.clone()), NodeClient::new(channel.clone()));
        while self.turn < turns {
            self.calls += 1;
            let step = self.step();
            // Now and then the caller hangs up, and asks again at once.
            let hang_up = self.calls.is_multiple_of(5) && step != Step::Write;
            let patience = Duration::from_millis(if hang_up { self.calls / 5 % 4 } else { 60_000 });
            match tokio::time::timeout(patience, self.ask(&mut controller, &mut node)).await {
                Err(_) => assert!(hang_up, "{self:?} waits for ever"),
                Ok(Ok(true)) => self.acknowledged(),
                Ok(Ok(false)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Ok(Err(_)) if killed.load(Ordering::SeqCst) => return,
                // Another call for the same object, such as that which was hung up on, still runs.
                Ok(Err(status)) if status.code() == Code::Aborted => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(Err(status)) => panic!("{step:?} of {self:?}: {status:?}"),
            }
        }
    }

    /// Adds what is to be there, by the folder it is in.
    fn expects(&self, all: &mut BTreeMap<String, Is>) {
        let (now, turn) = (self.step(), self.turn);
        let mut add = |path: String, is: Is| {
            if is != Is::Gone {
                all.insert(path, is);
            }
        };
        let is_kept = turn.is_multiple_of(3);
        let until = |step: Step| if is_kept { Step::DeleteSnapshot } else { step };
        add(format!("volumes/{}", self.volume(turn)), between(now, Step::Create, Step::Delete));
        let restored = between(now, Step::Restore, until(Step::DeleteRestored));
        add(format!("volumes/{}", self.restored(turn)), restored);
        add(format!("snapshots/{}", self.snapshot(turn)), between(now, Step::Snapshot, Step::DeleteSnapshot));
        for turn in &self.kept {
            add(format!("volumes/{}", self.restored(*turn)), Is::There);
            add(format!("snapshots/{}", self.snapshot(*turn)), Is::There);
        }
    }

    /// Whether its files are in a folder of this name.
    fn is_filled(&self, name: &str) -> bool {
        name != self.volume(self.turn) || self.step() > Step::Write
    }
}

async fn delete(controller: &mut ControllerClient<Channel>, volume_id: String) -> Result<(), Status> {
    controller.delete_volume(DeleteVolumeRequest { volume_id, ..Default::default() }).await.map(drop)
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
    }
}

fn create(name: String, from: Option<String>) -> CreateVolumeRequest {
    let source = |snapshot_id| {
        let source = volume_content_source::SnapshotSource { snapshot_id };
        VolumeContentSource { r#type: Some(volume_content_source::Type::Snapshot(source)) }
    };
    CreateVolumeRequest {
        name,
        capacity_range: Some(CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 }),
        volume_capabilities: vec![capability()],
        volume_content_source: from.map(source),
        ..Default::default()
    }
}

async fn connect(socket: &Path) -> Channel {
    let url = format!("unix://{}", socket.display());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Endpoint::from_shared(url.clone()).unwrap().connect().await {
            Ok(channel) => return channel,
            Err(error) => assert!(Instant::now() < deadline, "the server answers: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn serve(base: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(["serve", "--node-id", "n1", "--log", "off"])
        .arg("--csi")
        .arg(base.join("csi.sock"))
        .arg(format!("--pool=p={}", base.join("pool").display()))
        .spawn()
        .unwrap()
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The list of each folder, as the server tells it.
async fn told(controller: &mut ControllerClient<Channel>) -> BTreeSet<String> {
    let volumes = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    let snapshots = controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let name = |id: &str| id.strip_prefix("p/").unwrap().to_owned();
    let volumes = volumes.entries.into_iter().map(|entry| name(&entry.volume.unwrap().volume_id));
    let snapshots = snapshots.entries.into_iter().map(|entry| name(&entry.snapshot.unwrap().snapshot_id));
    let volumes = volumes.map(|name| format!("volumes/{name}"));
    volumes.chain(snapshots.map(|name| format!("snapshots/{name}"))).collect()
}

fn on_disk(pool: &Path) -> BTreeSet<String> {
    let folders = ["volumes", "snapshots"];
    let all = folders
        .iter()
        .flat_map(|shelf| names(&pool.join(shelf)).into_iter().map(move |n| format!("{shelf}/{n}")));
    all.collect()
}

/// After a restart, before anybody asks for anything.
async fn check(base: &Path, clients: &[Client]) {
    let pool = base.join("pool");
    let mut controller = ControllerClient::new(connect(&base.join("csi.sock")).await);
    let told = told(&mut controller).await;
    assert_eq!(told, on_disk(&pool), "what it lists, and what is there");
    let mut expected = BTreeMap::new();
    clients.iter().for_each(|client| client.expects(&mut expected));
    for (path, is) in &expected {
        assert!(*is == Is::Either || told.contains(path), "{path} was acknowledged and is lost");
    }
    for path in &told {
        assert!(expected.contains_key(path), "{path} was deleted, or never asked for");
        let name = path.split('/').next_back().unwrap();
        let owner = clients.iter().find(|client| name[1..].starts_with(&format!("{}-", client.me))).unwrap();
        let files = names(&pool.join(path).join("data"));
        assert!(!owner.is_filled(name) || files.len() == FILES, "{path} has {} files", files.len());
        let text = owner.volume(name.split('-').next_back().unwrap().parse().unwrap());
        for file in files.iter().filter(|_| owner.is_filled(name)) {
            assert_eq!(fs::read_to_string(pool.join(path).join("data").join(file)).unwrap(), text, "{path}");
        }
    }
    // The reaper needs a moment for what the one before has left.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !names(&pool.join("trash")).is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for folder in ["trash", "work"] {
        assert_eq!(names(&pool.join(folder)), BTreeSet::new(), "left in {folder}/");
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for client in clients {
        let target = client.target().display().to_string();
        let mounts = table.lines().filter(|line| line.split(' ').nth(4) == Some(&target)).count();
        match between(client.step(), Step::Publish, Step::Unpublish) {
            Is::There => assert_eq!(mounts, 1, "{target}"),
            Is::Gone => assert_eq!(mounts, 0, "{target}"),
            Is::Either => assert!(mounts <= 1, "{target}"),
        }
    }
    let ours =
        table.lines().filter(|line| line.split(' ').nth(4).unwrap().starts_with(base.to_str().unwrap()));
    assert!(ours.count() <= CLIENTS, "nothing else is mounted");
}

/// All clients ask, until `stop` ends the server or all have been through `turns`.
async fn all_work(
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
fn killed_under_load_it_keeps_what_it_promised() {
    if mounts::in_a_process_of_its_own("killed_under_load_it_keeps_what_it_promised") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(kill_and_check());
}

async fn kill_and_check() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    for folder in ["pool", "targets"] {
        fs::create_dir(base.join(folder)).unwrap();
    }
    let new = |me| {
        let targets = base.join("targets");
        Client { me, turn: 0, step: 0, kept: Vec::new(), targets, calls: me as u64 }
    };
    let mut clients: Vec<_> = (0..CLIENTS).map(new).collect();
    let kills = AtomicU64::new(0);
    for round in 0..rounds() {
        let mut server = serve(&base);
        check(&base, &clients).await;
        let killed = Arc::new(AtomicBool::new(false));
        let stop = async {
            tokio::time::sleep(Duration::from_millis(150 + round * 137 % 700)).await;
            killed.store(true, Ordering::SeqCst);
            server.kill().unwrap();
            server.wait().unwrap();
            kills.fetch_add(1, Ordering::SeqCst);
        };
        clients = all_work(&base, clients, usize::MAX, &killed, stop).await;
    }
    let turns: Vec<_> = clients.iter().map(|client| client.turn).collect();
    eprintln!(
        "killed {} times; volumes that each client went through: {turns:?}",
        kills.load(Ordering::SeqCst)
    );
    assert!(turns.iter().sum::<usize>() > 0, "nobody ever got through");
    let mut server = serve(&base);
    check(&base, &clients).await;
    let turns = turns.iter().max().unwrap() + 1;
    let never = Arc::new(AtomicBool::new(false));
    clients = all_work(&base, clients, turns, &never, async {}).await;
    clear(&base, &mut clients).await;
    server.kill().unwrap();
    server.wait().unwrap();
}

/// Everything that was kept can be deleted, and then nothing is there.
async fn clear(base: &Path, clients: &mut [Client]) {
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
