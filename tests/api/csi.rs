//! The program over its socket: the gRPC code of every call, error texts, and fields of responses.
//!
//! As root, the server runs in a mount namespace of its own, so that no mount outlives it.

use std::path::Path;
use std::process::Command;

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::*;
use tonic::{Code, Status};

use crate::common::csi::{
    MIB, block, capability, create_request as create, from_snapshot, from_volume, map, size,
};
use crate::common::isolation::is_root;
use crate::common::server::{ORLOP, Options, Server};
use crate::common::wait::within_seconds;

/// The topology of a node.
fn topology(node: &str) -> Topology {
    Topology { segments: map(&[("dir.orlop.dev/node", node)]) }
}

/// Checks that a call was refused: the code, a part of the message, and the form that the CSI specification requires.
fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>, code: Code, word: &str) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), code, "{what}: {}", status.message());
    assert!(status.message().contains(word), "{what}: {:?} lacks {word:?}", status.message());
    assert!(!status.message().is_empty() && status.message().len() <= 1024, "{what}");
    assert!(status.details().is_empty(), "{what}");
}

#[tokio::test]
async fn the_driver_reports_its_identity_and_capabilities() {
    let server = Server::start(true);
    let mut identity = server.identity().await;
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (info.name.as_str(), info.vendor_version.as_str()),
        ("dir.orlop.dev", env!("CARGO_PKG_VERSION"))
    );
    let plugin = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    assert_eq!(plugin.into_inner().capabilities.len(), 4);
    let probe = identity.probe(ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(probe.ready, Some(true));
    let node = server.node().await.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((node.node_id.as_str(), node.accessible_topology), ("n1", Some(topology("n1"))));
    let mut controller = server.controller().await;
    let capabilities =
        controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await.unwrap();
    assert_eq!(capabilities.into_inner().capabilities.len(), 13);
}

#[tokio::test]
async fn a_driver_without_topology_makes_volumes_for_every_node() {
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir(base.path().join("pool")).unwrap();
    let server = Server::spawn_with_flags(base.path(), &["--topology=false", "--driver=nfs.orlop.dev"]);
    within_seconds(60, "the server listens", || server.socket().exists());
    let plugin =
        server.identity().await.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    assert_eq!(plugin.into_inner().capabilities.len(), 3, "no VOLUME_ACCESSIBILITY_CONSTRAINTS");
    let node = server.node().await.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(node.accessible_topology, None);
    let mut controller = server.controller().await;
    let requirement = TopologyRequirement { requisite: vec![topology("n2")], preferred: vec![] };
    let request = CreateVolumeRequest { accessibility_requirements: Some(requirement), ..create("a") };
    let volume = controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(volume.accessible_topology, []);
    let elsewhere = GetCapacityRequest { accessible_topology: Some(topology("n2")), ..Default::default() };
    assert!(controller.get_capacity(elsewhere).await.unwrap().into_inner().available_capacity > 0);
}

#[tokio::test]
async fn invalid_create_requests_are_refused() {
    let server = Server::start(true);
    let mut controller = server.controller().await;
    controller.create_volume(create("taken")).await.unwrap();
    let with = |change: fn(&mut CreateVolumeRequest)| {
        let mut request = create("new");
        change(&mut request);
        request
    };
    let elsewhere = with(|r| {
        let requisite = vec![topology("n2")];
        r.accessibility_requirements = Some(TopologyRequirement { requisite, preferred: Vec::new() });
    });
    let cases = [
        (with(|r| r.name.clear()), Code::InvalidArgument, "name"),
        (with(|r| r.name = "x".repeat(129)), Code::InvalidArgument, "name"),
        (with(|r| r.name = "a\0b".into()), Code::InvalidArgument, "name"),
        (with(|r| r.volume_capabilities.clear()), Code::InvalidArgument, "volume_capabilities"),
        (with(|r| r.volume_capabilities.push(block())), Code::InvalidArgument, "volumeMode: Filesystem"),
        (with(|r| r.volume_capabilities[0].access_mode = None), Code::InvalidArgument, "access_mode"),
        (with(|r| r.volume_capabilities[0].access_type = None), Code::InvalidArgument, "access_type"),
        (with(|r| r.capacity_range = size(-1, 0)), Code::OutOfRange, "required_bytes"),
        (with(|r| r.capacity_range = size(2, 1)), Code::OutOfRange, "limit_bytes"),
        (with(|r| r.capacity_range = size(i64::MAX, 0)), Code::ResourceExhausted, ""),
        (with(|r| r.parameters = map(&[("colour", "red")])), Code::InvalidArgument, "`colour`"),
        (with(|r| r.parameters = map(&[("pool", "../x")])), Code::InvalidArgument, "pool"),
        (with(|r| r.parameters = map(&[("limit", "hard")])), Code::InvalidArgument, "hard"),
        (with(|r| r.parameters = map(&[("x", &"y".repeat(5000))])), Code::InvalidArgument, "parameters"),
        (with(|r| r.mutable_parameters = map(&[("pool", "p")])), Code::InvalidArgument, "mutable_parameters"),
        (
            with(|r| r.volume_content_source = Some(VolumeContentSource::default())),
            Code::InvalidArgument,
            "source",
        ),
        (with(|r| r.volume_content_source = from_volume("p/none")), Code::NotFound, "p/none"),
        (with(|r| r.volume_content_source = from_volume("../etc")), Code::NotFound, "../etc"),
        (with(|r| r.volume_content_source = from_snapshot("fake")), Code::NotFound, "fake"),
        (with(|r| r.volume_content_source = from_snapshot("")), Code::InvalidArgument, "snapshot_id"),
        (elsewhere, Code::ResourceExhausted, "n2"),
        (
            with(|r| (r.name, r.capacity_range) = ("taken".into(), size(2 * MIB, 0))),
            Code::AlreadyExists,
            "taken",
        ),
    ];
    for (request, code, word) in cases {
        let what = format!("{request:?}").chars().take(300).collect::<String>();
        refused(&what, controller.create_volume(request).await, code, word);
    }
    let listed = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.entries.len(), 1, "a refused request leaves nothing");
}

#[tokio::test]
async fn unusual_names_become_safe_ids() {
    let server = Server::start(true);
    let mut controller = server.controller().await;
    for name in ["../../etc/passwd", "a/b", "ü".repeat(64).as_str(), ".", "a b", "line\nbreak"] {
        let first = controller.create_volume(create(name)).await.unwrap().into_inner().volume.unwrap();
        let again = controller.create_volume(create(name)).await.unwrap().into_inner().volume.unwrap();
        assert_eq!(first, again, "{name:?}");
        assert!(first.volume_id.starts_with("p/_") && first.volume_id.len() <= 128, "{}", first.volume_id);
        assert_eq!(first.accessible_topology, [topology("n1")]);
    }
    let names = std::fs::read_dir(server.pool().join("volumes")).unwrap().count();
    assert_eq!(names, 6);
}

#[tokio::test]
async fn missing_objects_are_not_found_and_deleting_them_succeeds() {
    let server = Server::start(true);
    let mut c = server.controller().await;
    let unknown = DeleteVolumeRequest { volume_id: "q/none".to_owned(), ..Default::default() };
    let answer = c.delete_volume(unknown).await;
    refused("a pool that is not configured", answer, Code::Unavailable, "not configured");
    for id in ["p/none", "fake-vol-id", "../../etc", "p/.."] {
        let volume_id = id.to_owned();
        c.delete_volume(DeleteVolumeRequest { volume_id: volume_id.clone(), ..Default::default() })
            .await
            .unwrap();
        let snapshot = DeleteSnapshotRequest { snapshot_id: volume_id.clone(), ..Default::default() };
        c.delete_snapshot(snapshot).await.unwrap();
        let get = ControllerGetVolumeRequest { volume_id: volume_id.clone() };
        refused(id, c.controller_get_volume(get).await, Code::NotFound, "");
        let get = GetSnapshotRequest { snapshot_id: volume_id.clone(), ..Default::default() };
        refused(id, c.get_snapshot(get).await, Code::NotFound, "");
        let health = ControllerGetVolumeHealthRequest { volume_id: volume_id.clone(), ..Default::default() };
        refused(id, c.controller_get_volume_health(health).await, Code::NotFound, "");
        let modify = ControllerModifyVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
        refused(id, c.controller_modify_volume(modify).await, Code::NotFound, "");
        let expand = ControllerExpandVolumeRequest {
            volume_id: volume_id.clone(),
            capacity_range: size(MIB, 0),
            ..Default::default()
        };
        refused(id, c.controller_expand_volume(expand).await, Code::NotFound, "");
        let validate = ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.clone(),
            volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
            ..Default::default()
        };
        refused(id, c.validate_volume_capabilities(validate).await, Code::NotFound, "");
        let snapshot_request = CreateSnapshotRequest {
            name: "s".into(),
            source_volume_id: volume_id.clone(),
            ..Default::default()
        };
        refused(id, c.create_snapshot(snapshot_request).await, Code::NotFound, "");
        let by_id = ListSnapshotsRequest { snapshot_id: volume_id.clone(), ..Default::default() };
        assert!(c.list_snapshots(by_id).await.unwrap().into_inner().entries.is_empty());
        let by_source = ListSnapshotsRequest { source_volume_id: volume_id, ..Default::default() };
        assert!(c.list_snapshots(by_source).await.unwrap().into_inner().entries.is_empty());
    }
}

#[tokio::test]
async fn missing_fields_are_refused_by_the_controller() {
    let server = Server::start(true);
    let mut c = server.controller().await;
    let ia = Code::InvalidArgument;
    refused("delete", c.delete_volume(DeleteVolumeRequest::default()).await, ia, "volume_id");
    refused("delete", c.delete_snapshot(DeleteSnapshotRequest::default()).await, ia, "snapshot_id");
    refused("get", c.controller_get_volume(ControllerGetVolumeRequest::default()).await, ia, "volume_id");
    refused("get", c.get_snapshot(GetSnapshotRequest::default()).await, ia, "snapshot_id");
    let modify = ControllerModifyVolumeRequest::default();
    refused("modify", c.controller_modify_volume(modify).await, ia, "volume_id");
    let health = ControllerGetVolumeHealthRequest::default();
    refused("health", c.controller_get_volume_health(health).await, ia, "volume_id");
    let expand = ControllerExpandVolumeRequest { capacity_range: size(1, 0), ..Default::default() };
    refused("expand", c.controller_expand_volume(expand).await, ia, "volume_id");
    let expand = ControllerExpandVolumeRequest { volume_id: "p/none".into(), ..Default::default() };
    refused("expand", c.controller_expand_volume(expand).await, ia, "capacity_range");
    let snapshot_request = CreateSnapshotRequest { source_volume_id: "p/a".into(), ..Default::default() };
    refused("snapshot", c.create_snapshot(snapshot_request).await, ia, "name");
    let snapshot_request = CreateSnapshotRequest { name: "s".into(), ..Default::default() };
    refused("snapshot", c.create_snapshot(snapshot_request.clone()).await, ia, "source_volume_id");
    let snapshot_request = CreateSnapshotRequest { parameters: map(&[("k", "v")]), ..snapshot_request };
    refused("snapshot", c.create_snapshot(snapshot_request).await, ia, "\"k\"");
    let validate = ValidateVolumeCapabilitiesRequest { volume_id: "p/none".into(), ..Default::default() };
    refused("validate", c.validate_volume_capabilities(validate).await, ia, "volume_capabilities");
    let list = ListVolumesRequest { max_entries: -1, ..Default::default() };
    refused("list", c.list_volumes(list).await, ia, "max_entries");
    let attach = c.controller_publish_volume(ControllerPublishVolumeRequest::default()).await;
    refused("attach", attach, Code::Unimplemented, "PUBLISH_UNPUBLISH_VOLUME");
}

#[tokio::test]
async fn a_volume_is_validated_expanded_and_modified() {
    let server = Server::start(true);
    let mut c = server.controller().await;
    let id = c.create_volume(create("v")).await.unwrap().into_inner().volume.unwrap().volume_id;
    let validate = |capability| ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        volume_capabilities: vec![capability],
        ..Default::default()
    };
    let valid =
        c.validate_volume_capabilities(validate(capability(Mode::MultiNodeReaderOnly))).await.unwrap();
    assert_eq!(valid.into_inner().confirmed.unwrap().volume_capabilities.len(), 1);
    let invalid = c.validate_volume_capabilities(validate(block())).await.unwrap().into_inner();
    assert!(invalid.confirmed.is_none() && invalid.message.contains("block"), "{}", invalid.message);

    let expand = |capacity_range| ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range,
        ..Default::default()
    };
    for _ in 0..2 {
        let grown = c.controller_expand_volume(expand(size(3 * MIB, 0))).await.unwrap().into_inner();
        assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (3 * MIB, false));
    }
    let capped = c.controller_expand_volume(expand(size(MIB, 2 * MIB))).await;
    refused("smaller than the volume", capped, Code::OutOfRange, "");
    refused("negative", c.controller_expand_volume(expand(size(-1, 0))).await, Code::OutOfRange, "");

    let modify = |pairs: &[(&str, &str)]| ControllerModifyVolumeRequest {
        volume_id: id.clone(),
        mutable_parameters: map(pairs),
        ..Default::default()
    };
    c.controller_modify_volume(modify(&[])).await.unwrap();
    c.controller_modify_volume(modify(&[("onDelete", "trash"), ("trashFor", "1h")])).await.unwrap();
    let unknown = c.controller_modify_volume(modify(&[("XXX_FakeKey", "1")])).await;
    refused("unknown key", unknown, Code::InvalidArgument, "XXX_FakeKey");
    let hard = c.controller_modify_volume(modify(&[("limit", "hard")])).await;
    refused("a pool without limits", hard, Code::InvalidArgument, "hard");
    let found =
        c.controller_get_volume(ControllerGetVolumeRequest { volume_id: id }).await.unwrap().into_inner();
    assert_eq!(found.volume.unwrap().capacity_bytes, 3 * MIB);
    assert!(found.status.is_some());
}

#[tokio::test]
async fn snapshots_and_copies_report_their_source() {
    let server = Server::start(true);
    let mut c = server.controller().await;
    let id = c.create_volume(create("v")).await.unwrap().into_inner().volume.unwrap().volume_id;
    let other = c.create_volume(create("w")).await.unwrap().into_inner().volume.unwrap().volume_id;
    let snapshot_request = |source: &str| CreateSnapshotRequest {
        name: "s".into(),
        source_volume_id: source.to_owned(),
        ..Default::default()
    };
    let snapshot = c.create_snapshot(snapshot_request(&id)).await.unwrap().into_inner().snapshot.unwrap();
    assert!(snapshot.ready_to_use && snapshot.creation_time.is_some() && snapshot.source_volume_id == id);
    let again = c.create_snapshot(snapshot_request(&id)).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(again, snapshot);
    refused("another source", c.create_snapshot(snapshot_request(&other)).await, Code::AlreadyExists, "s");

    for (name, source) in [("r", from_snapshot(&snapshot.snapshot_id)), ("k", from_volume(&id))] {
        let request = CreateVolumeRequest { volume_content_source: source.clone(), ..create(name) };
        let made = c.create_volume(request).await.unwrap().into_inner().volume.unwrap();
        assert_eq!(made.content_source, source);
    }
    let smaller = CreateVolumeRequest {
        volume_content_source: from_volume(&id),
        capacity_range: size(0, MIB / 2),
        ..create("small")
    };
    refused("smaller than its source", c.create_volume(smaller).await, Code::OutOfRange, "");
    let listed = c.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.entries.len(), 1);
}

#[tokio::test]
async fn pages_are_correct_while_volumes_are_created_and_deleted() {
    let server = Server::start(true);
    let mut c = server.controller().await;
    for name in ["a", "b", "c", "d", "e"] {
        c.create_volume(create(name)).await.unwrap();
    }
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let request = ListVolumesRequest { max_entries: 2, starting_token: token.clone() };
        let page = c.list_volumes(request).await.unwrap().into_inner();
        assert!(page.entries.len() <= 2);
        listed.extend(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id));
        if listed.len() == 2 {
            let volume_id = "p/b".to_owned();
            c.delete_volume(DeleteVolumeRequest { volume_id, ..Default::default() }).await.unwrap();
            c.create_volume(create("aa")).await.unwrap();
        }
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ["p/a", "p/b", "p/c", "p/d", "p/e"]);
    let first = ListVolumesRequest { max_entries: 1, ..Default::default() };
    let token = c.list_volumes(first).await.unwrap().into_inner().next_token;
    for invalid in ["invalid-token", "1", &format!("{token}00"), "p/a", "\u{fffd}", &"f".repeat(2000)] {
        let request = ListVolumesRequest { starting_token: invalid.to_owned(), ..Default::default() };
        refused(invalid, c.list_volumes(request).await, Code::Aborted, "starting_token");
        let request = ListSnapshotsRequest { starting_token: invalid.to_owned(), ..Default::default() };
        refused(invalid, c.list_snapshots(request).await, Code::Aborted, "starting_token");
    }
    let other = ControllerListVolumeHealthRequest { starting_token: token, ..Default::default() };
    refused("of another list", c.controller_list_volume_health(other).await, Code::Aborted, "starting_token");
    let health = c.controller_list_volume_health(ControllerListVolumeHealthRequest::default()).await.unwrap();
    assert!(health.into_inner().entries.is_empty(), "healthy volumes are not listed");
}

#[tokio::test]
async fn capacity_is_reported_for_this_node_only() {
    let server = Server::start(true);
    let mut c = server.controller().await;
    let local = c.get_capacity(GetCapacityRequest::default()).await.unwrap().into_inner();
    assert!(local.available_capacity > 0 && local.maximum_volume_size.is_some());
    let other_node = GetCapacityRequest { accessible_topology: Some(topology("n2")), ..Default::default() };
    assert_eq!(c.get_capacity(other_node).await.unwrap().into_inner().available_capacity, 0);
}

#[tokio::test]
async fn a_claim_that_no_node_can_satisfy_finds_capacity_and_is_refused_with_the_reason() {
    let server = Server::start(true);
    let mut c = server.controller().await;
    let (good, ia) = (vec![capability(Mode::SingleNodeWriter)], Code::InvalidArgument);
    let cases = [
        (good.clone(), ("colour", "red"), "`colour`"),
        (good.clone(), ("pool", "missing"), "parameter pool"),
        (good, ("mode", "rwx"), "not an octal mode"),
        (vec![block()], ("pool", "p"), "volumeMode: Filesystem"),
    ];
    for (volume_capabilities, parameter, text) in cases {
        let (parameters, accessible_topology) = (map(&[parameter]), Some(topology("n1")));
        let ask = GetCapacityRequest {
            parameters: parameters.clone(),
            volume_capabilities: volume_capabilities.clone(),
            accessible_topology,
        };
        let capacity = c.get_capacity(ask.clone()).await.unwrap().into_inner();
        assert_eq!((capacity.available_capacity, capacity.maximum_volume_size), (1 << 60, Some(1 << 60)));
        let elsewhere = GetCapacityRequest { accessible_topology: Some(topology("n2")), ..ask };
        assert_eq!(c.get_capacity(elsewhere).await.unwrap().into_inner().available_capacity, 0);
        let create = CreateVolumeRequest { parameters, volume_capabilities, ..create("v") };
        refused("create", c.create_volume(create).await, ia, text);
    }
}

fn publish(id: &str, target: String, mode: Mode) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: target,
        volume_capability: Some(capability(mode)),
        ..Default::default()
    }
}

#[tokio::test]
async fn missing_fields_are_refused_by_the_node() {
    let server = Server::start(true);
    let mut n = server.node().await;
    let ia = Code::InvalidArgument;
    let mode = Mode::SingleNodeWriter;
    let without_capability =
        NodePublishVolumeRequest { volume_capability: None, ..publish("p/v", server.target("t"), mode) };
    let cases = [
        (publish("", server.target("t"), mode), ia, "volume_id"),
        (publish("p/v", String::new(), mode), ia, "target_path"),
        (publish("p/v", "some/path".into(), mode), ia, "target_path"),
        (publish("p/v", "/a/../b".into(), mode), ia, "target_path"),
        (publish("p/v", format!("/{}", "x".repeat(5000)), mode), ia, "target_path"),
        (without_capability, ia, "volume_capability"),
        (publish("p/v", server.target("t"), Mode::Unknown), ia, "access_mode"),
        (publish("p/v", server.target("t"), mode), Code::NotFound, "p/v"),
        (publish("fake-vol-id", server.target("t"), mode), Code::NotFound, "fake-vol-id"),
    ];
    for (request, code, word) in cases {
        refused(word, n.node_publish_volume(request).await, code, word);
    }
    let unpublish = |volume_id: &str, target_path: &str| NodeUnpublishVolumeRequest {
        volume_id: volume_id.to_owned(),
        target_path: target_path.to_owned(),
    };
    refused("unpublish", n.node_unpublish_volume(unpublish("", "/t")).await, ia, "volume_id");
    refused("unpublish", n.node_unpublish_volume(unpublish("p/v", "")).await, ia, "target_path");
    for id in ["", "p/none", "fake-vol-id"] {
        let stats = |volume_path: &str| NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: volume_path.to_owned(),
            ..Default::default()
        };
        let expand = |volume_path: &str| NodeExpandVolumeRequest {
            volume_id: id.to_owned(),
            volume_path: volume_path.to_owned(),
            ..Default::default()
        };
        let code = if id.is_empty() { ia } else { Code::NotFound };
        refused("stats", n.node_get_volume_stats(stats("some/path")).await, code, "");
        refused("stats", n.node_get_volume_stats(stats("")).await, ia, "");
        refused("expand", n.node_expand_volume(expand("some/path")).await, code, "");
        refused("expand", n.node_expand_volume(expand("")).await, ia, "");
    }
    let healthy = n.node_get_storage_health(NodeGetStorageHealthRequest::default()).await.unwrap();
    assert!(healthy.into_inner().backend_health.is_empty());
    let stage = n.node_stage_volume(NodeStageVolumeRequest::default()).await;
    refused("stage", stage, Code::Unimplemented, "STAGE_UNSTAGE_VOLUME");
}

#[tokio::test]
async fn a_volume_is_published_according_to_its_access_mode() {
    if !is_root() {
        return;
    }
    let server = Server::start(true);
    let (mut c, mut n) = (server.controller().await, server.node().await);
    let modes = [
        (Mode::SingleNodeSingleWriter, Err(Code::FailedPrecondition)),
        (Mode::SingleNodeWriter, Err(Code::FailedPrecondition)),
        (Mode::SingleNodeMultiWriter, Ok(())),
        (Mode::MultiNodeMultiWriter, Ok(())),
    ];
    for (mode, second) in modes {
        let id =
            c.create_volume(create(mode.as_str_name())).await.unwrap().into_inner().volume.unwrap().volume_id;
        let (first, other) = (server.target("t1"), server.target("t2"));
        for _ in 0..2 {
            n.node_publish_volume(publish(&id, first.clone(), mode)).await.unwrap();
        }
        std::fs::write(server.inside(&first).join("file"), "x").unwrap();
        let changed = NodePublishVolumeRequest { readonly: true, ..publish(&id, first.clone(), mode) };
        refused("other flags", n.node_publish_volume(changed).await, Code::AlreadyExists, "");
        let answer = n.node_publish_volume(publish(&id, other.clone(), mode)).await;
        assert_eq!(answer.map(|_| ()).map_err(|status| status.code()), second, "{mode:?}");
        let delete = DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
        refused("in use", c.delete_volume(delete.clone()).await, Code::FailedPrecondition, "");

        let at = |path: &str| NodeGetVolumeStatsRequest {
            volume_id: id.clone(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        let usage = n.node_get_volume_stats(at(&first)).await.unwrap().into_inner().usage;
        assert_eq!(
            usage.iter().map(|one| one.unit()).collect::<Vec<_>>(),
            [volume_usage::Unit::Bytes, volume_usage::Unit::Inodes]
        );
        refused("not published there", n.node_get_volume_stats(at("/")).await, Code::NotFound, "");
        let grow = NodeExpandVolumeRequest {
            volume_id: id.clone(),
            volume_path: first.clone(),
            capacity_range: size(2 * MIB, 0),
            ..Default::default()
        };
        assert_eq!(n.node_expand_volume(grow.clone()).await.unwrap().into_inner().capacity_bytes, 2 * MIB);
        // kubelet starts the pod with the old size after this code only.
        let too_much = NodeExpandVolumeRequest { capacity_range: size(i64::MAX, 0), ..grow };
        refused("too much", n.node_expand_volume(too_much).await, Code::FailedPrecondition, "pool p is full");
        let health = NodeGetVolumeHealthRequest {
            volume_id: id.clone(),
            volume_publish_path: first.clone(),
            ..Default::default()
        };
        let health = n.node_get_volume_health(health).await.unwrap().into_inner().volume_health.unwrap();
        assert!(health.volume_id == id && health.health_statuses.is_empty(), "{health:?}");

        for target_path in [&first, &first, &other] {
            let request =
                NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path: target_path.clone() };
            n.node_unpublish_volume(request).await.unwrap();
            assert!(!Path::new(target_path).exists());
        }
        c.delete_volume(delete).await.unwrap();
    }
}

#[tokio::test]
async fn an_inline_volume_is_deleted_when_it_is_unpublished() {
    if !is_root() {
        return;
    }
    let server = Server::start(true);
    let mut n = server.node().await;
    let target = server.target("t");
    let with = |pairs: &[(&str, &str)]| {
        let mut context = map(pairs);
        context.insert("csi.storage.k8s.io/ephemeral".into(), "true".into());
        context.insert("csi.storage.k8s.io/pod.name".into(), "web-0".into());
        NodePublishVolumeRequest {
            volume_context: context,
            ..publish("csi-8c3", target.clone(), Mode::SingleNodeWriter)
        }
    };
    refused("junk", n.node_publish_volume(with(&[("junk", "1")])).await, Code::InvalidArgument, "`junk`");
    refused("size", n.node_publish_volume(with(&[("size", "big")])).await, Code::InvalidArgument, "\"size\"");
    for _ in 0..2 {
        n.node_publish_volume(with(&[("size", "1Mi"), ("mode", "0700")])).await.unwrap();
    }
    let record = server.pool().join("volumes/csi-8c3/volume.json");
    assert!(std::fs::read_to_string(&record).unwrap().contains("web-0"));
    std::fs::write(server.inside(&target).join("file"), "x").unwrap();
    let unpublish = NodeUnpublishVolumeRequest { volume_id: "csi-8c3".into(), target_path: target.clone() };
    for _ in 0..2 {
        let _ = n.node_unpublish_volume(unpublish.clone()).await.map_err(|status| {
            assert_eq!(status.code(), Code::NotFound, "a retry may find it deleted");
        });
    }
    assert!(!record.exists() && !Path::new(&target).exists());
}

#[tokio::test]
async fn a_server_without_pools_serves_the_identity_only() {
    let server = Server::start(false);
    let mut identity = server.identity().await;
    assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    assert_eq!(
        identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner().name,
        "dir.orlop.dev"
    );
    let mut c = server.controller().await;
    let volume_id = "p/v".to_owned();
    let delete = DeleteVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
    refused("delete", c.delete_volume(delete).await, Code::InvalidArgument, "--no-pools");
    let get = ControllerGetVolumeRequest { volume_id };
    refused("get", c.controller_get_volume(get).await, Code::InvalidArgument, "--no-pools");
    refused("list", c.list_volumes(ListVolumesRequest::default()).await, Code::InvalidArgument, "--no-pools");
    refused("create", c.create_volume(create("v")).await, Code::InvalidArgument, "--no-pools");
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let server = Server::start(true);
    let mut c = server.controller().await;
    c.create_volume(create("v")).await.unwrap();
    assert!(server.http("/livez").starts_with("HTTP/1.1 200"));
    assert!(server.http("/readyz").contains("pool p: available"));
    let text = server.http("/metrics");
    let count = "csi_plugin_operations_seconds_count{driver_name=\"dir.orlop.dev\",\
                 method_name=\"/csi.v1.Controller/CreateVolume\",grpc_status_code=\"OK\"} 1";
    for line in [count, "orlop_volumes{pool=\"p\"} 1", "orlop_pool_provisioned_bytes{pool=\"p\"} 1048576"] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the program under test is a process")]
fn a_second_server_is_refused_and_shutdown_is_clean() {
    let mut server = Server::start(true);
    let socket = server.socket();
    let probe = || Command::new(ORLOP).args(["probe", "--csi"]).arg(&socket).output().unwrap();
    assert!(probe().status.success());
    let mut second = Server::spawn(server.base(), Options { pool: true, own_mounts: is_root() });
    assert_eq!(second.wait().code(), Some(1), "another server listens on the socket");
    assert!(probe().status.success(), "the first server still works");
    assert!(server.terminate().success());
    assert!(!socket.exists() && !server.base().join("http.sock").exists());
    let after = probe();
    assert_eq!(after.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&after.stderr).starts_with("orlop: probe "));
}
