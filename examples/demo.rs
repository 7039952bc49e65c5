//! A volume's whole life over CSI, told step by step: `demo PATH-OF-ORLOP`.
//!
//! Starts a server of its own on a pool below the folder of that program, and cleans up.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a demonstration prints and starts programs"
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
    let program = PathBuf::from(std::env::args_os().nth(1).ok_or("say where orlop is: demo PATH")?);
    let program = fs::canonicalize(program)?;
    let folder = program.with_file_name(format!("demo-{}", std::process::id()));
    fs::create_dir(&folder)?;
    fs::create_dir(folder.join("pool"))?;
    // An unprivileged process has to get to the targets, though not into the pool.
    let mut demo = Demo::start(&program, &folder).await?;
    let told = demo.tell().await;
    let stopped = demo.stop();
    told?;
    stopped?;
    fs::remove_dir_all(&folder)?;
    println!("\nThat was a volume's life. The pool and the server are gone.");
    Ok(())
}

struct Demo {
    folder: PathBuf,
    server: Child,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

impl Demo {
    async fn start(program: &Path, folder: &Path) -> Outcome<Self> {
        let socket = folder.join("csi.sock");
        println!("Start orlop on the pool {}/pool", folder.display());
        let server = Command::new(program)
            .args(["serve", "--node-id", "demo", "--pool"])
            .arg(format!("default={}/pool", folder.display()))
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
        Ok(Self { folder: folder.to_owned(), server, controller, node })
    }

    /// Ends the server as an orchestrator does.
    fn stop(mut self) -> Outcome {
        drop((self.controller, self.node));
        let pid = rustix::process::Pid::from_child(&self.server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.server.wait()?;
        if status.success() { Ok(()) } else { Err(format!("orlop ended with {status}").into()) }
    }

    async fn tell(&mut self) -> Outcome {
        let volume = self.create("photos", None).await?;
        let target = self.publish(&volume, "app").await?;
        write_as_nobody(&target, "hello from nobody")?;
        let snapshot = self.snapshot(&volume).await?;
        write_as_nobody(&target, "changed after the snapshot")?;
        let restored = self
            .create("photos-restored", Some(Type::Snapshot(SnapshotSource { snapshot_id: snapshot.clone() })))
            .await?;
        self.expect_file(&restored, "restored", "hello from nobody").await?;
        let of = Type::Volume(VolumeSource { volume_id: volume.clone() });
        let clone = self.create("photos-clone", Some(of)).await?;
        self.expect_file(&clone, "clone", "changed after the snapshot").await?;
        self.expand(&volume).await?;
        self.stats(&volume, &target).await?;
        self.refuse(&volume).await?;
        self.unpublish(&volume, &target).await?;
        for id in [&volume, &restored, &clone] {
            self.delete(id).await?;
        }
        println!("Delete the snapshot, which outlived its volume");
        self.controller
            .delete_snapshot(DeleteSnapshotRequest { snapshot_id: snapshot, ..Default::default() })
            .await?;
        let left =
            self.controller.list_volumes(ListVolumesRequest::default()).await?.into_inner().entries.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} volumes are left").into()) }
    }

    async fn create(&mut self, name: &str, source: Option<Type>) -> Outcome<String> {
        let from = match &source {
            None => "".to_owned(),
            Some(Type::Snapshot(of)) => format!(" from snapshot {}", of.snapshot_id),
            Some(Type::Volume(of)) => format!(" as a clone of {}", of.volume_id),
        };
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: 16 * MIB, limit_bytes: 0 }),
            volume_capabilities: vec![capability()],
            volume_content_source: source.map(|kind| VolumeContentSource { r#type: Some(kind) }),
            ..Default::default()
        };
        let answer = self.controller.create_volume(request).await?.into_inner();
        let volume = answer.volume.ok_or("no volume in the answer")?;
        println!("Create a volume{from}: {}, {} MiB", volume.volume_id, volume.capacity_bytes / MIB);
        Ok(volume.volume_id)
    }

    async fn publish(&mut self, id: &str, name: &str) -> Outcome<PathBuf> {
        let target = self.folder.join(name);
        let request = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await?;
        println!("Publish {id} at {}", target.display());
        Ok(target)
    }

    async fn unpublish(&mut self, id: &str, target: &Path) -> Outcome {
        let (volume_id, target_path) = (id.to_owned(), target.display().to_string());
        self.node.node_unpublish_volume(NodeUnpublishVolumeRequest { volume_id, target_path }).await?;
        println!("Unpublish {id}: {} is gone", target.display());
        if target.exists() { Err("the target is still there".into()) } else { Ok(()) }
    }

    async fn expect_file(&mut self, id: &str, name: &str, text: &str) -> Outcome {
        let target = self.publish(id, name).await?;
        let found = fs::read_to_string(target.join("file"))?;
        println!("  it says {found:?}");
        self.unpublish(id, &target).await?;
        if found == text { Ok(()) } else { Err(format!("expected {text:?}").into()) }
    }

    async fn snapshot(&mut self, id: &str) -> Outcome<String> {
        let request = CreateSnapshotRequest {
            source_volume_id: id.to_owned(),
            name: "monday".to_owned(),
            ..Default::default()
        };
        let answer = self.controller.create_snapshot(request).await?.into_inner();
        let snapshot = answer.snapshot.ok_or("no snapshot in the answer")?;
        println!("Snapshot {id}: {}, ready: {}", snapshot.snapshot_id, snapshot.ready_to_use);
        Ok(snapshot.snapshot_id)
    }

    async fn expand(&mut self, id: &str) -> Outcome {
        let request = ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: 32 * MIB, limit_bytes: 0 }),
            ..Default::default()
        };
        let answer = self.controller.controller_expand_volume(request).await?.into_inner();
        println!("Expand {id} while it is in use: {} MiB", answer.capacity_bytes / MIB);
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
            println!("Stats of {id}: {} of {} {unit} used", usage.used, usage.total);
        }
        Ok(())
    }

    async fn refuse(&mut self, id: &str) -> Outcome {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), secrets: HashMap::new() };
        match self.controller.delete_volume(request).await {
            Ok(_) => Err("a volume in use was deleted".into()),
            Err(status) => {
                println!("Delete {id}? Refused ({:?}): {}", status.code(), status.message());
                Ok(())
            }
        }
    }

    async fn delete(&mut self, id: &str) -> Outcome {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), secrets: HashMap::new() };
        self.controller.delete_volume(request).await?;
        println!("Delete {id}");
        Ok(())
    }
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// Writes a file as a process of another program and of nobody, whom the volume lets in and the pool does not.
fn write_as_nobody(target: &Path, text: &str) -> Outcome {
    println!("A process of user 65534 writes {text:?} to {}/file", target.display());
    // It starts in the volume as root and then drops all rights: the folders above may be private.
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
    if shell.status()?.success() { Ok(()) } else { Err("the process could not write".into()) }
}
