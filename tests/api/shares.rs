//! Static shares over CSI, as far as they need no NFS.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::*;
use tonic::{Code, Status};

use crate::common::csi::{capability, map};
use crate::common::server::Server;

/// The id of a PersistentVolume that csi-driver-nfs made.
const HANDLE: &str = "127.0.0.1#export#pvc-1##delete";

fn publish(server: &Server, id: &str, context: HashMap<String, String>) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: server.target("t"),
        volume_capability: Some(capability(Mode::MultiNodeMultiWriter)),
        volume_context: context,
        ..Default::default()
    }
}

/// A share of a server that does not run.
fn share() -> HashMap<String, String> {
    map(&[("server", "127.0.0.1"), ("share", "/export"), ("subDir", "pvc-1"), ("mountPermissions", "0777")])
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().contains(text), "{}", status.message());
}

#[tokio::test]
async fn a_share_whose_server_does_not_respond_is_named_at_once() {
    for with_pool in [true, false] {
        let server = Server::start(with_pool);
        let mut node = server.node().await;
        let mut request = publish(&server, HANDLE, share());
        let Some(volume_capability::AccessType::Mount(mount)) =
            &mut request.volume_capability.as_mut().unwrap().access_type
        else {
            panic!("it is a mount")
        };
        mount.mount_flags = vec!["nfsvers=4.1".into(), "port=9".into(), "noatime,_netdev".into()];
        let started = Instant::now();
        refused(node.node_publish_volume(request).await, Code::Unavailable, "the NFS server 127.0.0.1");
        assert!(started.elapsed() < Duration::from_secs(60));
        assert!(!Path::new(&server.target("t")).exists());
    }
}

#[tokio::test]
async fn a_share_that_is_not_mounted_is_unpublished_and_deleted_without_any_change() {
    for with_pool in [true, false] {
        let server = Server::start(with_pool);
        let (mut node, mut controller) = (server.node().await, server.controller().await);
        let request =
            NodeUnpublishVolumeRequest { volume_id: HANDLE.into(), target_path: server.target("t") };
        for _ in 0..2 {
            node.node_unpublish_volume(request.clone()).await.unwrap();
        }
        if with_pool {
            let delete = DeleteVolumeRequest { volume_id: HANDLE.into(), ..Default::default() };
            controller.delete_volume(delete).await.unwrap();
            assert_eq!(std::fs::read_dir(server.pool().join("trash")).unwrap().count(), 0);
        }
        let stats = NodeGetVolumeStatsRequest {
            volume_id: HANDLE.into(),
            volume_path: server.target("t"),
            ..Default::default()
        };
        refused(node.node_get_volume_stats(stats).await, Code::NotFound, "");
    }
}

#[tokio::test]
async fn a_share_has_the_id_of_no_pool_and_is_no_inline_volume() {
    let server = Server::start(true);
    let mut node = server.node().await;
    let answer = node.node_publish_volume(publish(&server, "p/export", share())).await;
    refused(answer, Code::InvalidArgument, "use another id");
    let mut inline = share();
    inline.insert("csi.storage.k8s.io/ephemeral".into(), "true".into());
    refused(
        node.node_publish_volume(publish(&server, "csi-1", inline)).await,
        Code::InvalidArgument,
        "unknown field",
    );
    let mut outside = share();
    outside.insert("subDir".into(), "../other".into());
    refused(
        node.node_publish_volume(publish(&server, HANDLE, outside)).await,
        Code::InvalidArgument,
        "subDir",
    );
}
