//! The client side: CSI calls as the sidecars and the kubelet make them, and rates of calls.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::node_client::NodeClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use orlop::csi::proto::*;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Requested size of most volumes.
const SMALL: i64 = 64 << 10;
/// Requested size of volumes full of files, beyond which no copy of them goes.
const LARGE: i64 = 8 << 30;

/// Name of the pool.
pub(crate) const POOL: &str = "p";

/// One connection per service, as the sidecars and the kubelet have.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

impl Client {
    pub(crate) fn new(controller: Channel, node: Channel) -> Self {
        Self { controller: ControllerClient::new(controller), node: NodeClient::new(node) }
    }

    /// Creates a small volume, empty or from a source; retries while the source is being copied.
    pub(crate) async fn create(&self, name: &str, source: Option<volume_content_source::Type>) {
        self.create_of_size(SMALL, name, source).await;
    }

    /// Like [`Client::create`], for a volume that can have many files.
    pub(crate) async fn create_large(&self, name: &str, source: Option<volume_content_source::Type>) {
        self.create_of_size(LARGE, name, source).await;
    }

    async fn create_of_size(&self, size: i64, name: &str, source: Option<volume_content_source::Type>) {
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capabilities: capability().into_iter().collect(),
            volume_content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
            ..CreateVolumeRequest::default()
        };
        while let Err(status) = self.controller.clone().create_volume(request.clone()).await {
            assert_eq!(status.code(), Code::Aborted, "{}", status.message());
        }
    }

    pub(crate) async fn delete(&self, name: &str) {
        let request = DeleteVolumeRequest { volume_id: id(name), secrets: HashMap::new() };
        expect(self.controller.clone().delete_volume(request).await);
    }

    pub(crate) async fn publish(&self, name: &str, target: &str) {
        let request = NodePublishVolumeRequest {
            volume_id: id(name),
            target_path: target.to_owned(),
            volume_capability: capability(),
            ..NodePublishVolumeRequest::default()
        };
        expect(self.node.clone().node_publish_volume(request).await);
    }

    pub(crate) async fn unpublish(&self, name: &str, target: &str) {
        let request = NodeUnpublishVolumeRequest { volume_id: id(name), target_path: target.to_owned() };
        expect(self.node.clone().node_unpublish_volume(request).await);
    }

    /// Creates a snapshot and waits until it is ready.
    pub(crate) async fn snapshot(&self, volume: &str, name: &str) {
        self.snapshot_with(volume, name, &[]).await;
    }

    /// The same with parameters of the class.
    pub(crate) async fn snapshot_with(&self, volume: &str, name: &str, parameters: &[(&str, &str)]) {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let request = CreateSnapshotRequest {
            source_volume_id: id(volume),
            name: name.to_owned(),
            parameters: parameters.iter().map(owned).collect(),
            ..CreateSnapshotRequest::default()
        };
        loop {
            let response = expect(self.controller.clone().create_snapshot(request.clone()).await);
            if response.snapshot.is_some_and(|snapshot| snapshot.ready_to_use) {
                return;
            }
        }
    }

    pub(crate) async fn delete_snapshot(&self, name: &str) {
        let request = DeleteSnapshotRequest { snapshot_id: id(name), secrets: HashMap::new() };
        expect(self.controller.clone().delete_snapshot(request).await);
    }

    /// Creates, publishes, unpublishes and deletes a volume.
    pub(crate) async fn lifecycle(&self, name: &str, target: &str) {
        self.create(name, None).await;
        self.publish(name, target).await;
        self.unpublish(name, target).await;
        self.delete(name).await;
    }

    /// Lists one page of volumes; returns the number of its entries and the token of the next page.
    pub(crate) async fn page(&self, max_entries: i32, starting_token: String) -> (usize, String) {
        let request = ListVolumesRequest { max_entries, starting_token };
        let page = expect(self.controller.clone().list_volumes(request).await);
        (page.entries.len(), page.next_token)
    }
}

fn capability() -> Option<VolumeCapability> {
    Some(VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    })
}

/// Returns the ID of the volume or snapshot of this name.
pub(crate) fn id(name: &str) -> String {
    format!("{POOL}/{name}")
}

fn expect<T>(response: Result<tonic::Response<T>, Status>) -> T {
    match response {
        Ok(response) => response.into_inner(),
        Err(status) => panic!("{:?}: {}", status.code(), status.message()),
    }
}

/// How often concurrent callers did something, and in what time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) count: f64,
    elapsed: Duration,
}

impl Rate {
    pub(crate) fn per_second(self) -> f64 {
        self.count / self.elapsed.as_secs_f64()
    }
}

/// Repeats `work` on `callers` tasks until the time is up and the calls under way have ended.
pub(crate) async fn rate_of<F, W>(callers: usize, time: Duration, work: W) -> Rate
where
    F: Future<Output = ()> + Send + 'static,
    W: Fn() -> F + Clone + Send + 'static,
{
    let began = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let work = work.clone();
        all.spawn(async move {
            let mut done = 0_u32;
            while began.elapsed() < time {
                work().await;
                done += 1;
            }
            done
        });
    }
    let count: u32 = all.join_all().await.into_iter().sum();
    Rate { count: f64::from(count), elapsed: began.elapsed() }
}
