//! A pool whose server runs orlop, too: it works on its own filesystem with project quotas, and another host mounts the share.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use orlop::engine::Engine;
use orlop::engine::request::{
    ConsistencySpec, CreateGroup, CreateSnapshot, CreateVolume, PoolSettings, Sharing, Tuning,
};
use orlop::error::{Error, Kind, Result};
use orlop::volume::{Consistency, Enforced, Limit, Policy, PolicyChange, SizeRange, Source, VolumeId};
use rustix::mount::{MountFlags, mount};

use super::pools::{OPTIONS, directory, make_trash_due, open, open_on, publish_request, settings};
use super::quota_pools::{data, id_of, limited, patient, quota};
use crate::common::disk::run;
use crate::common::isolation::{in_own_process, unmount_all};
use crate::common::pool::{
    MIB, clone_request, contents_and_times, copy_request, edit_record, id, names, read_record, request,
};
use crate::common::wait::within_seconds;

const SIZE: u64 = 8 * MIB;

/// Settings of the pool on the server itself.
fn local(pool: &Path) -> PoolSettings {
    let node = Some("server".to_owned());
    let pool = PoolSettings::new("p".parse().unwrap(), pool.to_owned());
    PoolSettings { shared: true, exported: true, node, ..pool }
}

/// Settings of the same pool on the host that mounts it.
fn mounted(name: &str) -> PoolSettings {
    PoolSettings { node: Some("node-a".to_owned()), ..settings("10.80.0.1", name, OPTIONS, None) }
}

/// Writes to a file until no more is accepted, and returns the error.
fn fill(file: &Path) -> std::io::Error {
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    for _ in 0..64 {
        let written = file.write_all(&vec![1; 1 << 20]).and_then(|()| file.sync_all());
        if let Err(error) = written {
            return error;
        }
    }
    panic!("64 MiB were accepted");
}

fn snapshot_request(name: &str, volume: &VolumeId) -> CreateSnapshot {
    let consistency = ConsistencySpec { consistency: Consistency::None, ..ConsistencySpec::default() };
    let (name, source_volume) = (name.to_owned(), volume.clone());
    CreateSnapshot { name, source_volume, consistency, labels: BTreeMap::default() }
}

fn restore_request(name: &str, snapshot: &VolumeId) -> CreateVolume {
    let policy = Policy { limit: Limit::Hard, ..Policy::default() };
    CreateVolume { policy, ..copy_request(name, Source::Snapshot(snapshot.clone())) }
}

fn limit_if_possible(name: &str) -> CreateVolume {
    CreateVolume { policy: Policy { limit: Limit::Auto, ..Policy::default() }, ..limited(name, SIZE, 0) }
}

/// What is in the directories of the pool that only the server changes.
fn objects(pool: &Path) -> Vec<BTreeMap<String, String>> {
    ["volumes", "snapshots", "work", "trash"].map(|name| contents_and_times(&pool.join(name))).into()
}

/// Each change of the pool that a host can ask for.
fn changes(host: &Engine, volume: &VolumeId, snapshot: &VolumeId) -> Vec<(&'static str, Result<()>)> {
    let (pool, new) = ("p".parse().unwrap(), "new".parse().unwrap());
    let range = SizeRange { required: 4 * SIZE, limit: 0 };
    let group = CreateGroup {
        name: "g".to_owned(),
        pool: "p".parse().unwrap(),
        source_volumes: BTreeSet::from([volume.clone()]),
        consistency: ConsistencySpec::default(),
        labels: BTreeMap::default(),
    };
    let policy = PolicyChange { inodes: Some(9), ..PolicyChange::default() };
    let label = BTreeMap::from([("a".to_owned(), Some("b".to_owned()))]);
    vec![
        ("create", host.create(&limited("new", SIZE, 0)).map(drop)),
        ("a dry run of create", host.check_create(&limited("new", SIZE, 0)).map(drop)),
        ("clone", host.create(&clone_request("new", volume)).map(drop)),
        ("restore", host.create(&restore_request("new", snapshot)).map(drop)),
        ("snapshot", host.create_snapshot(&snapshot_request("new", volume)).map(drop)),
        ("group snapshot", host.create_group(&group).map(drop)),
        ("expand", host.expand(volume, range).map(drop)),
        ("shrink", host.shrink(volume, MIB).map(drop)),
        ("modify", host.modify(volume, policy).map(drop)),
        ("label", host.relabel(volume, &label).map(drop)),
        ("rename", host.rename(volume, &new).map(drop)),
        ("delete a snapshot", host.delete_snapshot(snapshot)),
        ("delete", host.delete(volume)),
        ("remove", host.remove(volume)),
        ("adopt", host.adopt(&limited("new", SIZE, 0), Some(Path::new("/mnt/xfs/adopted"))).map(drop)),
        ("undelete", host.undelete(&pool, &trashed(host), &new).map(drop)),
        ("prune --trash", host.expire(&pool, &trashed(host))),
    ]
}

/// The only entry of the trash.
fn trashed(host: &Engine) -> String {
    host.trash(&"p".parse().unwrap()).unwrap().remove(0).entry
}

#[track_caller]
fn assert_refused((what, result): (&str, Result<()>)) {
    let error: Error = result.expect_err(what);
    assert_eq!(error.kind(), Kind::Unsupported, "{what}: {}", error.chain());
    let text = "pool p is not changed from this host: backend quota works on the NFS server only: run this on the server";
    assert!(error.chain().contains(text), "{what}: {}", error.chain());
}

#[test]
fn volumes_that_the_server_makes_have_limits_on_the_hosts_that_mount_them() {
    let test = "vm::agent::volumes_that_the_server_makes_have_limits_on_the_hosts_that_mount_them";
    in_own_process(test, || {
        let pool = directory("limits");
        let server = open(local(&pool));
        assert_eq!(read_record(&pool.join("orlop.json"))["backend"], "quota");
        let host = open_on("a", mounted("limits"));
        let volume = server.create(&limited("v", SIZE, 0)).unwrap();
        assert_eq!(volume.enforced, Enforced::Bytes);
        let targets = tempfile::tempdir().unwrap();
        let target = targets.path().join("t");
        host.publish(&publish_request(&volume.id, &target, Sharing::ManyTargets)).unwrap();

        let refused = fill(&target.join("file"));
        assert!(matches!(refused.raw_os_error(), Some(28 | 122)), "{refused}");
        let written = fs::metadata(data(&pool, "v").join("file")).unwrap().len();
        assert!((SIZE - MIB..=SIZE).contains(&written), "{written}");
        let usage = host.stats(&volume.id, &target).unwrap();
        assert_eq!(usage.bytes.total, SIZE);
        assert!(usage.bytes.used >= Some(SIZE - MIB) && usage.bytes.available <= MIB, "{usage:?}");
        let inspected = host.inspect(&volume.id).unwrap();
        assert_eq!((inspected.volume.enforced, inspected.not_enforced), (Enforced::Bytes, None));
        assert_eq!(host.health(&volume.id, Some(&target)).unwrap(), []);

        let larger = SizeRange { required: 2 * SIZE, limit: 0 };
        assert_eq!(server.expand(&volume.id, larger).unwrap().size, 2 * SIZE);
        // As kubelet asks after the controller has expanded it.
        assert_eq!(host.expand_published(&volume.id, &target, larger).unwrap().size, 2 * SIZE);
        fill(&target.join("more"));
        let usage = host.stats(&volume.id, &target).unwrap();
        assert_eq!(usage.bytes.total, 2 * SIZE);
        assert!(usage.bytes.used >= Some(2 * SIZE - 2 * MIB), "{usage:?}");
        host.unpublish(&volume.id.to_string(), &target).unwrap();
        within_seconds(180, "the host releases it", || server.delete(&volume.id).is_ok());
        assert_eq!(host.list(None, 9).unwrap().items.len(), 0);
    });
}

#[test]
fn the_server_and_the_hosts_exclude_each_other() {
    let test = "vm::agent::the_server_and_the_hosts_exclude_each_other";
    in_own_process(test, || {
        let pool = directory("locks");
        let server = open(local(&pool));
        let host = open_on("a", mounted("locks"));
        let volume = server.create(&limited("v", SIZE, 0)).unwrap().id;
        let targets = tempfile::tempdir().unwrap();
        let (there, here) = (targets.path().join("host"), targets.path().join("server"));
        host.publish(&publish_request(&volume, &there, Sharing::ManyTargets)).unwrap();
        fs::write(there.join("file"), "kept").unwrap();
        File::open(there.join("file")).unwrap().sync_all().unwrap();
        // Its mount table does not show what another host has mounted.
        let used = server.delete(&volume).unwrap_err();
        assert_eq!(used.kind(), Kind::InUse, "{}", used.chain());
        assert!(used.chain().contains("is in use on node-a since"), "{}", used.chain());

        let snapshot = server.create_snapshot(&snapshot_request("s", &volume)).unwrap().id;
        let restored = server.create(&restore_request("r", &snapshot)).unwrap();
        assert_eq!((restored.size, restored.enforced), (SIZE, Enforced::Bytes));
        assert_eq!(fs::read(data(&pool, "r").join("file")).unwrap(), b"kept");
        assert_eq!(host.list(None, 9).unwrap().items.len(), 2, "its next call knows what the server made");

        server.publish(&publish_request(&restored.id, &here, Sharing::ManyTargets)).unwrap();
        let alone = publish_request(&restored.id, &targets.path().join("alone"), Sharing::OneTarget);
        let used = host.publish(&alone).unwrap_err();
        assert_eq!(used.kind(), Kind::InUse, "{}", used.chain());
        assert!(used.chain().contains("is in use on server since"), "{}", used.chain());
        server.unpublish(&restored.id.to_string(), &here).unwrap();
        within_seconds(180, "the server releases it", || host.publish(&alone).is_ok());
        host.unpublish(&restored.id.to_string(), &alone.target).unwrap();
        host.unpublish(&volume.to_string(), &there).unwrap();
    });
}

/// A stopped server has dropped the locks of its clients, whose pods go on after its restart.
#[test]
fn a_volume_that_a_host_uses_is_not_deleted_while_the_server_of_its_locks_restarts() {
    let test = "vm::agent::a_volume_that_a_host_uses_is_not_deleted_while_the_server_of_its_locks_restarts";
    in_own_process(test, || {
        let pool = directory("restart");
        let server = open(local(&pool));
        let volume = server.create(&limited("v", SIZE, 0)).unwrap().id;
        let host = open_on("a", mounted("restart"));
        let targets = tempfile::tempdir().unwrap();
        let (there, here) = (targets.path().join("host"), targets.path().join("server"));
        host.publish(&publish_request(&volume, &there, Sharing::OneTarget)).unwrap();
        let refuses = |server: &Engine, when: &str| {
            let alone = publish_request(&volume, &here, Sharing::OneTarget);
            for result in [server.delete(&volume), server.publish(&alone).map(drop)] {
                let used = result.unwrap_err();
                assert_eq!(used.kind(), Kind::InUse, "{when}: {}", used.chain());
                assert!(used.chain().contains("in use on node-a since"), "{when}: {}", used.chain());
            }
        };
        run("nfs-server", &["down"]);
        refuses(&server, "stopped");
        drop(server);
        // It must not forget the host at its start.
        let server = open(local(&pool));
        refuses(&server, "stopped, and orlop started again");
        run("nfs-server", &["up", "/mnt/xfs"]);
        refuses(&server, "in the grace period");
        fs::write(there.join("file"), "goes on").unwrap();
        refuses(&server, "after the restart");
        host.unpublish(&volume.to_string(), &there).unwrap();
        within_seconds(180, "the volume is free", || server.delete(&volume).is_ok());
    });
}

/// A command on the server that names the directory instead of the configuration.
#[test]
fn a_pool_with_records_of_other_hosts_is_shared_whatever_the_settings_say() {
    in_own_process(
        "vm::agent::a_pool_with_records_of_other_hosts_is_shared_whatever_the_settings_say",
        || {
            let pool = directory("by-path");
            let server = open(local(&pool));
            let volume = server.create(&limited("v", SIZE, 0)).unwrap().id;
            let host = open_on("a", mounted("by-path"));
            let targets = tempfile::tempdir().unwrap();
            let there = targets.path().join("host");
            host.publish(&publish_request(&volume, &there, Sharing::ManyTargets)).unwrap();
            drop(server);
            let command = open(PoolSettings::new("p".parse().unwrap(), pool));
            let used = command.delete(&volume).unwrap_err();
            assert!(used.chain().contains("is in use on node-a since"), "{}", used.chain());
            host.unpublish(&volume.to_string(), &there).unwrap();
        },
    );
}

#[test]
fn a_host_changes_nothing_in_a_pool_whose_limits_only_the_server_sets() {
    let pool = directory("used-only");
    let adopted = PathBuf::from("/mnt/xfs/adopted");
    fs::create_dir(&adopted).unwrap();
    let server = open(local(&pool));
    let volume = server.create(&limited("v", SIZE, 0)).unwrap().id;
    let snapshot = server.create_snapshot(&snapshot_request("s", &volume)).unwrap().id;
    let deleted = server.create(&limited("deleted", SIZE, 0)).unwrap().id;
    let project = id_of(&pool, "deleted");
    server.delete(&deleted).unwrap();
    drop(server);
    // As a process leaves it that is killed while it makes a volume.
    fs::create_dir(pool.join("work/left")).unwrap();
    let before = objects(&pool);

    let host = open_on("a", mounted("used-only"));
    changes(&host, &volume, &snapshot).into_iter().for_each(assert_refused);
    // What is done already succeeds, as a retry.
    host.create(&limited("v", SIZE, 0)).unwrap();
    host.delete(&id("missing")).unwrap();
    assert_eq!(objects(&pool), before);
    assert!(adopted.is_dir());
    drop(host);

    make_trash_due(&pool);
    let before = objects(&pool);
    let host = open_on("a", mounted("used-only"));
    assert!(host.wait_for_reaper(std::time::Duration::from_secs(60)), "it has nothing to remove");
    assert_eq!(objects(&pool), before);
    let _server = open(local(&pool));
    let left = || names(&pool.join("work")).len() + names(&pool.join("trash")).len();
    within_seconds(180, "the server removes what is left", || left() == 0);
    assert_eq!(quota(&pool, project).max_bytes, 0, "with its limit");
    assert_eq!(host.list(None, 9).unwrap().items.len(), 1);
}

#[test]
fn a_host_notices_at_its_next_call_that_the_server_limits_the_volumes_of_a_pool() {
    let pool = directory("taken-over");
    drop(open(local(&pool)));
    edit_record(&pool.join("orlop.json"), |marker| marker["backend"] = "dir".into());
    let host = open_on("a", mounted("taken-over"));
    let made = host.create(&limit_if_possible("v")).unwrap();
    assert_eq!(made.enforced, Enforced::No, "it goes on where nothing is limited");
    let server = Engine::open_for_command(vec![local(&pool)], patient()).unwrap();
    assert!(server.take_over_pool(&"p".parse().unwrap()).unwrap());
    let refused = host.create(&limit_if_possible("new")).map(drop);
    assert_refused(("create", refused));
    let entered = server.take_over(&made.id).unwrap().unwrap();
    assert_eq!(entered.volume.enforced, Enforced::Bytes);
    assert_eq!(host.get(&made.id).unwrap().enforced, Enforced::Bytes);
}

/// Mounts a new btrfs filesystem with quotas at a directory, and exports it.
fn export_btrfs(directory: &Path) {
    let shown = directory.display();
    let script = format!(
        "modprobe btrfs; truncate -s 300M /run/btrfs; mkfs.btrfs -q /run/btrfs; mount -o loop /run/btrfs {shown}; \
         btrfs quota enable {shown}; exportfs -o rw,no_root_squash,insecure,no_subtree_check,fsid=9 '*:{shown}'"
    );
    run("sh", &["-ec", &script]);
}

#[test]
fn subvolumes_that_the_server_makes_are_used_by_the_hosts() {
    let pool = PathBuf::from("/mnt/xfs/subvolumes");
    // Not in the mount namespace of the test: the server would not see it.
    if !pool.exists() {
        export_btrfs(&directory("subvolumes"));
    }
    in_own_process("vm::agent::subvolumes_that_the_server_makes_are_used_by_the_hosts", || {
        let server = open(local(&pool));
        let host = open_on("a", mounted("subvolumes"));
        let volumes = ["v", "w"].map(|name| server.create(&request(name, SIZE)).unwrap().id);
        let targets = tempfile::tempdir().unwrap();
        for volume in &volumes {
            let target = targets.path().join(volume.name.as_str());
            host.publish(&publish_request(volume, &target, Sharing::ManyTargets)).unwrap();
            fs::write(target.join("file"), volume.to_string()).unwrap();
            File::open(target.join("file")).unwrap().sync_all().unwrap();
        }
        let snapshot = server.create_snapshot(&snapshot_request("s", &volumes[0])).unwrap().id;
        let error = host.create_snapshot(&snapshot_request("t", &volumes[0])).unwrap_err();
        assert!(error.chain().contains("backend btrfs works on the NFS server only"), "{}", error.chain());
        server.create(&copy_request("r", Source::Snapshot(snapshot))).unwrap();
        for name in ["v", "w"] {
            assert_eq!(fs::read_to_string(data(&pool, name).join("file")).unwrap(), format!("p/{name}"));
        }
        assert_eq!(fs::read_to_string(data(&pool, "r").join("file")).unwrap(), "p/v");
        assert_eq!(host.list(None, 9).unwrap().items.len(), 3);
        let first = targets.path().join("v");
        assert_eq!(host.health(&volumes[0], Some(&first)).unwrap(), []);
        let used = server.delete(&volumes[0]).unwrap_err();
        assert!(used.chain().contains("is in use on node-a"), "{}", used.chain());
        host.unpublish(&volumes[0].to_string(), &first).unwrap();
        within_seconds(180, "the host releases it", || server.delete(&volumes[0]).is_ok());
        assert_eq!(
            server.delete(&volumes[1]).unwrap_err().kind(),
            Kind::InUse,
            "the other one is still in use"
        );
        host.unpublish(&volumes[1].to_string(), &targets.path().join("w")).unwrap();
    });
}

#[test]
fn a_directory_on_a_mount_of_nfs_is_not_local() {
    in_own_process("vm::agent::a_directory_on_a_mount_of_nfs_is_not_local", || {
        let pool = directory("not-local");
        // Not a temporary directory, whose end would remove what is mounted.
        let mounted = Path::new("/run/not-local");
        fs::create_dir(mounted).unwrap();
        let options = CString::new(format!("addr=10.80.0.1,vers=4.2,{OPTIONS}")).unwrap();
        mount("10.80.0.1:/not-local", mounted, "nfs4", MountFlags::empty(), options.as_c_str()).unwrap();
        let engine = Engine::open_for_command(vec![local(mounted)], Tuning::default()).unwrap();
        let refused = engine.records(&"p".parse().unwrap()).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unavailable);
        assert!(refused.chain().contains("remove `local` from the settings"), "{}", refused.chain());
        assert_eq!(names(&pool), BTreeSet::new());
        unmount_all(mounted);
    });
}
