//! Runs the life cycle of a volume over CSI and prints each step: `demo PATH-OF-ORLOP`.
//!
//! Starts its own server with a pool in a temporary directory beside that program, and removes both at the end.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a demonstration prints its steps and starts programs"
)]

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::node_client::NodeClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use orlop::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use orlop::csi::proto::volume_usage::Unit;
use orlop::csi::proto::*;
use tonic::transport::{Channel, Endpoint};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const MIB: i64 = 1 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let program = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: demo PATH-OF-ORLOP")?);
    let program = fs::canonicalize(program)?;
    let directory = program.with_file_name(format!("demo-{}", std::process::id()));
    fs::create_dir(&directory)?;
    fs::create_dir(directory.join("pool"))?;
    let mut demo = Demo::start(&program, &directory).await?;
    let finished = demo.run().await;
    let stopped = demo.stop();
    finished?;
    stopped?;
    fs::remove_dir_all(&directory)?;
    println!("Stopped the server and removed {}", directory.display());
    Ok(())
}

struct Demo {
    directory: PathBuf,
    server: Child,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

impl Demo {
    async fn start(program: &Path, directory: &Path) -> Outcome<Self> {
        let socket = directory.join("csi.sock");
        println!("Starting orlop in {}, with the pool pool/", directory.display());
        let server = Command::new(program)
            .args(["serve", "--node-id", "demo", "--pool"])
            .arg(format!("default={}/pool", directory.display()))
            .args(["--csi", &format!("unix://{}", socket.display())])
            .env("ORLOP_LOG", "warn")
            .spawn()?;
        for _ in 0..100 {
            if socket.exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let channel = Endpoint::try_from(format!("unix://{}", socket.display()))?.connect().await?;
        let (controller, node) = (ControllerClient::new(channel.clone()), NodeClient::new(channel));
        Ok(Self { directory: directory.to_owned(), server, controller, node })
    }

    /// Stops the server as an orchestrator does: with SIGTERM.
    fn stop(mut self) -> Outcome {
        drop((self.controller, self.node));
        let pid = rustix::process::Pid::from_child(&self.server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.server.wait()?;
        if status.success() { Ok(()) } else { Err(format!("orlop exited with {status}").into()) }
    }

    async fn run(&mut self) -> Outcome {
        let volume = self.create("photos", None).await?;
        let target = self.publish(&volume, "app").await?;
        write_as_nobody(&target, "written before the snapshot")?;
        let snapshot = self.snapshot(&volume).await?;
        write_as_nobody(&target, "written after the snapshot")?;
        let restored = self
            .create("photos-restored", Some(Type::Snapshot(SnapshotSource { snapshot_id: snapshot.clone() })))
            .await?;
        self.expect_file(&restored, "restored", "written before the snapshot").await?;
        let source = Type::Volume(VolumeSource { volume_id: volume.clone() });
        let clone = self.create("photos-clone", Some(source)).await?;
        self.expect_file(&clone, "clone", "written after the snapshot").await?;
        self.expand(&volume).await?;
        self.stats(&volume, &target).await?;
        self.try_delete_in_use(&volume).await?;
        self.unpublish(&volume, &target).await?;
        for id in [&volume, &restored, &clone] {
            self.delete(id).await?;
        }
        self.delete_snapshot(snapshot).await?;
        let left =
            self.controller.list_volumes(ListVolumesRequest::default()).await?.into_inner().entries.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} volumes still exist").into()) }
    }

    async fn create(&mut self, name: &str, source: Option<Type>) -> Outcome<String> {
        let from = match &source {
            None => String::new(),
            Some(Type::Snapshot(source)) => format!(" from snapshot {}", source.snapshot_id),
            Some(Type::Volume(source)) => format!(" as a clone of {}", source.volume_id),
        };
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: 16 * MIB, limit_bytes: 0 }),
            volume_capabilities: vec![capability()],
            volume_content_source: source.map(|kind| VolumeContentSource { r#type: Some(kind) }),
            ..Default::default()
        };
        let response = self.controller.create_volume(request).await?.into_inner();
        let volume = response.volume.ok_or("the response has no volume")?;
        println!("Created volume {} of {} MiB{from}", volume.volume_id, volume.capacity_bytes / MIB);
        Ok(volume.volume_id)
    }

    async fn publish(&mut self, id: &str, name: &str) -> Outcome<PathBuf> {
        let target = self.directory.join(name);
        let request = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await?;
        println!("Published volume {id} at {}/", name_of(&target));
        Ok(target)
    }

    async fn unpublish(&mut self, id: &str, target: &Path) -> Outcome {
        let (volume_id, target_path) = (id.to_owned(), target.display().to_string());
        self.node.node_unpublish_volume(NodeUnpublishVolumeRequest { volume_id, target_path }).await?;
        if target.exists() {
            return Err(format!("{} still exists", target.display()).into());
        }
        println!("Unpublished volume {id} and removed {}/", name_of(target));
        Ok(())
    }

    async fn expect_file(&mut self, id: &str, name: &str, text: &str) -> Outcome {
        let target = self.publish(id, name).await?;
        let found = fs::read_to_string(target.join("file"))?;
        println!("Read {found:?} from {}/file", name_of(&target));
        self.unpublish(id, &target).await?;
        if found == text { Ok(()) } else { Err(format!("expected {text:?}").into()) }
    }

    async fn snapshot(&mut self, id: &str) -> Outcome<String> {
        let request = CreateSnapshotRequest {
            source_volume_id: id.to_owned(),
            name: "monday".to_owned(),
            ..Default::default()
        };
        let response = self.controller.create_snapshot(request).await?.into_inner();
        let snapshot = response.snapshot.ok_or("the response has no snapshot")?;
        let state = if snapshot.ready_to_use { "ready to use" } else { "still being copied" };
        println!("Created snapshot {} of volume {id}: {state}", snapshot.snapshot_id);
        Ok(snapshot.snapshot_id)
    }

    async fn expand(&mut self, id: &str) -> Outcome {
        let request = ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: 32 * MIB, limit_bytes: 0 }),
            ..Default::default()
        };
        let response = self.controller.controller_expand_volume(request).await?.into_inner();
        println!("Expanded volume {id} to {} MiB while it is in use", response.capacity_bytes / MIB);
        Ok(())
    }

    async fn stats(&mut self, id: &str, target: &Path) -> Outcome {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: target.display().to_string(),
            ..Default::default()
        };
        for usage in self.node.node_get_volume_stats(request).await?.into_inner().usage {
            let unit = if usage.unit == i32::from(Unit::Bytes) { "bytes" } else { "inodes" };
            println!("Usage of volume {id}: {} of {} {unit}", usage.used, usage.total);
        }
        Ok(())
    }

    async fn try_delete_in_use(&mut self, id: &str) -> Outcome {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), secrets: HashMap::new() };
        match self.controller.delete_volume(request).await {
            Ok(_) => Err("a volume in use was deleted".into()),
            Err(status) => {
                println!("Deleting volume {id} is refused with {:?}: {}", status.code(), status.message());
                Ok(())
            }
        }
    }

    async fn delete(&mut self, id: &str) -> Outcome {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), secrets: HashMap::new() };
        self.controller.delete_volume(request).await?;
        println!("Deleted volume {id}");
        Ok(())
    }

    async fn delete_snapshot(&mut self, snapshot_id: String) -> Outcome {
        let request = DeleteSnapshotRequest { snapshot_id: snapshot_id.clone(), ..Default::default() };
        self.controller.delete_snapshot(request).await?;
        println!("Deleted snapshot {snapshot_id}, which existed longer than its source volume");
        Ok(())
    }
}

/// Name of a target in the directory of the demonstration.
fn name_of(target: &Path) -> String {
    target.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// Writes a file from an unprivileged process, which can access the volume and not the pool.
fn write_as_nobody(target: &Path, text: &str) -> Outcome {
    // The shell starts in the target as root and then drops its privileges: the directories above may be private.
    let mut shell = Command::new("setpriv");
    shell.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "sh",
        "-c",
        "printf %s \"$1\" >file",
        "sh",
        text,
    ]);
    shell.current_dir(target);
    if !shell.status()?.success() {
        return Err(format!("user 65534 cannot write to {}/file", target.display()).into());
    }
    println!("User 65534 wrote {text:?} to {}/file", name_of(target));
    Ok(())
}
