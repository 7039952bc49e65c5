//! Changes of the state of a pool are logged, once each way.

use std::fs::{self, File};

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::{CreateVolumeRequest, ListVolumesRequest};
use orlop::engine::Engine;
use rustix::mount::MountFlags;
use tonic::Code;

use crate::common::csi::capability;
use crate::common::isolation::{in_own_mount_namespace, is_root, unmount_all};
use crate::common::pool::{long_waits, memory_dir, settings};
use crate::common::server::Server;
use crate::common::wait::within_seconds;

/// The cause of a missing directory.
const MISSING: &str = "the directory is missing";

/// Waits until the log has these numbers of lines that name the beginning and the end of a problem.
fn check_log(server: &Server, begin: &str, end: &str, expected: (usize, usize)) {
    within_seconds(120, &format!("{begin:?} and {end:?} are logged {expected:?} times"), || {
        server.http("/readyz");
        (server.log_lines(begin), server.log_lines(end)) == expected
    });
}

#[tokio::test]
async fn an_unreadable_record_and_an_unavailable_pool_are_logged_once_each_way() {
    let server = Server::start_with_log();
    let mut controller = server.controller().await;
    let create = CreateVolumeRequest {
        name: "v".to_owned(),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..CreateVolumeRequest::default()
    };
    controller.create_volume(create.clone()).await.unwrap();
    let record = server.pool().join("volumes/v/volume.json");
    let original = fs::read(&record).unwrap();
    let (begin, end) =
        ("record cannot be read pool=\"p\" object=\"volume p/v\" cause=", "record can be read again");
    for round in 0..2 {
        fs::write(&record, "{").unwrap();
        assert_eq!(controller.create_volume(create.clone()).await.unwrap_err().code(), Code::Internal);
        check_log(&server, begin, end, (round + 1, round));
        fs::write(&record, &original).unwrap();
        controller.create_volume(create.clone()).await.unwrap();
        check_log(&server, begin, end, (round + 1, round + 1));
    }
    let away = server.base().join("away");
    wait_until_available(&server, true);
    let before = missing(&server);
    fs::rename(server.pool(), &away).unwrap();
    controller.list_volumes(ListVolumesRequest::default()).await.unwrap_err();
    wait_until_available(&server, false);
    (0..20).for_each(|_| drop(server.http("/readyz")));
    let changes = changes(&server);
    let (_, last) = changes.last().unwrap();
    // A slow reading may have come first. The directory is missing then, too, and this is no change.
    assert!(last.contains(MISSING) || last.contains("has not responded"), "{last}");
    assert!(missing(&server) - before <= 1, "{changes:#?}");
    fs::rename(&away, server.pool()).unwrap();
    wait_until_available(&server, true);
}

/// The changes of the pool in the log: whether it is available, and the line. A reading that is slow is a change, too.
fn changes(server: &Server) -> Vec<(bool, String)> {
    let log = fs::read_to_string(server.base().join("log")).unwrap();
    let change = |line: &str| {
        let available = line.contains("pool is available pool=\"p\"");
        let is_change = available || line.contains("pool is unavailable pool=\"p\"");
        is_change.then(|| (available, line.to_owned()))
    };
    log.lines().filter_map(change).collect()
}

/// Waits until this is the last change. Each change differs from the one before.
fn wait_until_available(server: &Server, available: bool) {
    within_seconds(120, &format!("the log says that the pool is available: {available}"), || {
        server.http("/readyz");
        let changes = changes(server);
        let repeated = changes.windows(2).find(|pair| pair[0].0 == pair[1].0);
        assert_eq!(repeated, None, "a change is logged twice");
        changes.last().is_some_and(|last| last.0 == available)
    });
}

/// Number of changes because the directory is missing.
fn missing(server: &Server) -> usize {
    changes(server).iter().filter(|(_, line)| line.contains(MISSING)).count()
}

#[test]
fn trash_that_cannot_be_removed_is_logged_once_with_its_entry() {
    if is_root() {
        in_own_mount_namespace(trash_with_a_mount);
    }
}

fn trash_with_a_mount() {
    let dir = memory_dir();
    fs::create_dir(dir.path().join("pool")).unwrap();
    drop(Engine::open(vec![settings(&dir.path().join("pool"))], long_waits()).unwrap());
    let mounted = dir.path().join("pool/trash/v.0+0.0123456789abcdef/data/mounted");
    fs::create_dir_all(&mounted).unwrap();
    rustix::mount::mount("tmpfs", &mounted, "tmpfs", MountFlags::empty(), None).unwrap();
    let log = File::create(dir.path().join("log")).unwrap();
    let server = Server::spawn_with_log(dir.path(), log.into());
    within_seconds(60, "the server serves", || server.log_lines("serving") == 1);
    let begin = "trash cannot be removed; retrying pool=\"p\" cause=\"trash/v.0+0.0123456789abcdef: ";
    check_log(&server, begin, "trash is removed again", (1, 0));
    server.http("/metrics");
    assert_eq!(server.log_lines("trash cannot be removed"), 1);
    drop(server);
    unmount_all(&mounted);
}
