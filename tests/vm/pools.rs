//! Pools on an NFS server, which `tests/vm/inside` has started with the directory `/mnt/xfs`.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use orlop::engine::Engine;
use orlop::engine::request::{PoolSettings, Publish, Sharing, Tuning};
use orlop::error::{Error, Kind};
use orlop::remote::NfsShare;
use orlop::volume::{SizeRange, Source, VolumeId};
use rustix::mount::{MountFlags, mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::isolation::in_own_process;
use crate::common::pool::{MIB, clone_request, copy_request, kind, names, request, snapshot_request};
use crate::common::wait::within_seconds;

/// The server's directory.
const EXPORT: &str = "/mnt/xfs";

/// Files of a volume whose copy takes longer than a call of another host.
const FILES: usize = 80;

/// Without `soft`, a server that is gone would hold a test for ever.
pub(super) const OPTIONS: &str = "soft,timeo=300";

/// Settings of the pool `p` in this directory of the server.
pub(super) fn settings(server: &str, directory: &str, options: &str, version: Option<&str>) -> PoolSettings {
    let share = NfsShare::new(server, &format!("/{directory}"), options, version).unwrap();
    PoolSettings { share: Some(share.clone()), ..PoolSettings::new("p".parse().unwrap(), share.location()) }
}

/// Makes a directory on the server, and returns its path there.
pub(super) fn directory(name: &str) -> PathBuf {
    let path = Path::new(EXPORT).join(name);
    fs::create_dir(&path).unwrap();
    path
}

fn tuning() -> Tuning {
    let seconds = std::time::Duration::from_secs;
    Tuning { copy_wait: seconds(120), lock_wait: seconds(5), call_timeout: seconds(300), ..Tuning::default() }
}

/// Opens a pool, which must be available.
#[track_caller]
pub(super) fn open(settings: PoolSettings) -> Engine {
    let engine = Engine::open(vec![settings], tuning()).unwrap();
    let unavailable = engine.pools()[0].unavailable.clone();
    assert_eq!(unavailable, None);
    engine
}

/// Why a pool cannot be opened.
fn refusal(settings: PoolSettings) -> Error {
    let engine = Engine::open_for_command(vec![settings], tuning()).unwrap();
    engine.records(&"p".parse().unwrap()).unwrap_err()
}

pub(super) fn publish_request(id: &VolumeId, target: &Path, sharing: Sharing) -> Publish {
    let flags = orlop::mount::MountFlags::default();
    Publish { id: id.clone(), target: target.to_owned(), flags, sharing, ephemeral: None }
}

/// Makes the trash of a pool due, which hosts keep for each other.
pub(super) fn make_trash_due(pool: &Path) {
    let trash = pool.join("trash");
    for entry in names(&trash) {
        let due = entry.replace("+600.", "+0.");
        assert_ne!(due, entry, "it is kept for ten minutes");
        fs::rename(trash.join(&entry), trash.join(due)).unwrap();
    }
}

/// The whole life of volumes with this version of NFS.
fn live(version: &str) {
    let name = format!("pool-{version}");
    let pool = directory(&name);
    let settings = settings("10.80.0.1", &name, OPTIONS, Some(version));
    let engine = open(settings.clone());
    let targets = tempfile::tempdir().unwrap();
    let target = targets.path().join("t");
    let a = engine.create(&request("a", 4 * MIB)).unwrap().id;
    assert_eq!(kind(engine.create(&request("a", 8 * MIB))), Kind::Conflict);

    let publish = publish_request(&a, &target, Sharing::OneTarget);
    engine.publish(&publish).unwrap();
    engine.publish(&publish).unwrap();
    fs::write(target.join("file"), "kept").unwrap();
    File::open(target.join("file")).unwrap().sync_all().unwrap();
    assert_eq!(fs::read(pool.join("volumes/a/data/file")).unwrap(), b"kept");
    assert!(!target.join("../volume.json").exists(), "a pod sees its volume only");
    let second = publish_request(&a, &targets.path().join("second"), Sharing::OneTarget);
    assert_eq!(kind(engine.publish(&second)), Kind::InUse);
    let used = engine.delete(&a).unwrap_err();
    assert_eq!(used.kind(), Kind::InUse, "{}", used.chain());

    // A restart while it is published.
    drop(engine);
    assert_eq!(fs::read(target.join("file")).unwrap(), b"kept");
    let engine = open(settings.clone());
    engine.publish(&publish).unwrap();
    assert_eq!(kind(engine.delete(&a)), Kind::InUse);

    let snapshot = engine.create_snapshot(&snapshot_request("s", &a)).unwrap().id;
    fs::write(target.join("file"), "changed").unwrap();
    let restored = engine.create(&copy_request("r", Source::Snapshot(snapshot.clone()))).unwrap().id;
    assert_eq!(fs::read(pool.join("volumes/r/data/file")).unwrap(), b"kept");
    let cloned = engine.create(&clone_request("c", &a)).unwrap().id;
    assert_eq!(fs::read(pool.join("volumes/c/data/file")).unwrap(), b"changed");
    let range = SizeRange { required: 8 * MIB, limit: 0 };
    assert_eq!(engine.expand_published(&a, &target, range).unwrap().size, 8 * MIB);

    engine.unpublish(&a.to_string(), &target).unwrap();
    assert!(!target.exists());
    engine.delete_snapshot(&snapshot).unwrap();
    for volume in [&a, &restored, &cloned] {
        engine.delete(volume).unwrap();
    }
    assert!(engine.list(None, 10).unwrap().items.is_empty());
    assert_eq!(names(&pool.join("work")).len(), 0);
    drop(engine);
    make_trash_due(&pool);
    // It lists the trash at its start.
    let _engine = open(settings);
    within_seconds(180, "the trash is empty", || names(&pool.join("trash")).is_empty());
}

#[test]
fn volumes_live_on_nfs_4_2() {
    in_own_process("vm::pools::volumes_live_on_nfs_4_2", || live("4.2"));
}

#[test]
fn volumes_live_on_nfs_4_1() {
    in_own_process("vm::pools::volumes_live_on_nfs_4_1", || live("4.1"));
}

#[test]
fn volumes_live_on_nfs_4_0() {
    in_own_process("vm::pools::volumes_live_on_nfs_4_0", || live("4.0"));
}

/// Opens a pool as a host does. Its mount belongs to the host's network.
pub(super) fn open_on(host: &str, settings: PoolSettings) -> Engine {
    on_host(host, || open(settings))
}

/// Runs `body` in a thread in the network of a host.
fn on_host<T: Send>(host: &str, body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let network = File::open(Path::new("/run/netns").join(host)).unwrap();
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            body()
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_copy_on_one_host_protects_its_source_from_the_other() {
    let pool = directory("two-hosts");
    let settings = settings("10.80.0.1", "two-hosts", OPTIONS, None);
    let (a, b) = (open_on("a", settings.clone()), open_on("b", settings));
    let source = a.create(&request("v", 64 * MIB)).unwrap().id;
    for number in 0..FILES {
        fs::write(pool.join(format!("volumes/v/data/{number}")), vec![1; 8192]).unwrap();
    }
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| a.create(&clone_request("c", &source)));
        within_seconds(60, "the copy runs", || a.active_jobs() == 1 && names(&pool.join("work")).len() == 1);
        let refused = b.delete(&source).unwrap_err();
        // The copy has locked the data, and uses the volume alone.
        assert!(matches!(refused.kind(), Kind::Busy | Kind::InUse), "{}", refused.chain());
        // A busy machine may take longer than one call.
        let _ = copy.join().unwrap();
    });
    within_seconds(240, "the copy is complete", || a.create(&clone_request("c", &source)).is_ok());
    assert_eq!(names(&pool.join("volumes/c/data")).len(), FILES);
    within_seconds(60, "the copy has ended", || b.delete(&source).is_ok());
    assert!(!pool.join("volumes/v").exists());
}

#[test]
fn a_pool_on_an_ipv6_address_works() {
    let pool = directory("ipv6");
    let engine = open(settings("::1", "ipv6", OPTIONS, None));
    engine.create(&request("a", MIB)).unwrap();
    assert!(pool.join("volumes/a/volume.json").exists());
}

#[test]
fn a_share_that_cannot_be_mounted_is_explained() {
    directory("refused");
    let text = |server: &str, path: &str, options: &str| {
        let error = refusal(settings(server, path, options, None));
        assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
        error.chain()
    };
    let wrong_path = text("10.80.0.1", "missing", OPTIONS);
    assert!(wrong_path.contains("check that the path exists on the server"), "{wrong_path}");
    assert!(wrong_path.starts_with("pool p at 10.80.0.1:/missing: "), "{wrong_path}");
    let unknown = text("10.80.0.1", "refused", "soft,nocolour");
    assert!(unknown.contains("option `nocolour`") && unknown.contains("Unknown parameter"), "{unknown}");
    let out_of_range = text("10.80.0.1", "refused", "soft,nconnect=17");
    assert!(out_of_range.contains("option `nconnect`"), "{out_of_range}");
    // The first address has no server, and nothing has the second one.
    for server in ["127.0.0.1", "10.80.0.99"] {
        let down = text(server, "refused", &format!("{OPTIONS},port=2050"));
        assert!(
            down.contains(&format!("the NFS server {server} at {server}:2050 does not respond")),
            "{down}"
        );
    }
    let nameless = text("nas.invalid", "refused", OPTIONS);
    assert!(nameless.contains("look up the NFS server nas.invalid"), "{nameless}");
}

/// Runs a program, which must succeed.
#[expect(clippy::disallowed_methods, reason = "the server and the hosts are controlled by programs")]
fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

#[test]
fn a_server_that_maps_root_to_another_user_is_explained() {
    let exports = [("root_squash,fsid=7", "squashed"), ("no_root_squash,all_squash,fsid=8", "all-squashed")];
    for (options, name) in exports {
        let pool = directory(name);
        // Options of an export inside another one hold for another filesystem.
        mount("tmpfs", &pool, "tmpfs", MountFlags::empty(), None).unwrap();
        let options = format!("rw,insecure,no_subtree_check,{options}");
        run("exportfs", &["-o", &options, &format!("*:{}", pool.display())]);
        for mode in [0o777, 0o755] {
            fs::set_permissions(&pool, fs::Permissions::from_mode(mode)).unwrap();
            let engine = Engine::open(vec![settings("10.80.0.1", name, OPTIONS, None)], tuning()).unwrap();
            let reason = engine.pools()[0].unavailable.clone().unwrap();
            assert!(reason.contains("with no_root_squash and without all_squash"), "{reason}");
            assert_eq!(names(&pool).len(), 0);
        }
    }
}

#[test]
fn a_host_that_the_server_takes_for_another_one_is_refused() {
    let pool = directory("twins");
    let settings = settings("10.80.0.1", "twins", OPTIONS, None);
    for (host, number) in [("one", "41"), ("twin", "42")] {
        run("host", &["add", host, number]);
        let same = "echo same >/sys/fs/nfs/net/nfs_client/identifier";
        run("ip", &["netns", "exec", host, "sh", "-c", same]);
    }
    let one = open_on("one", PoolSettings { node: Some("host-one".to_owned()), ..settings.clone() });
    one.create(&request("a", MIB)).unwrap();
    let before = names(&pool.join("hosts"));
    let reason = on_host("twin", || {
        let engine = Engine::open(vec![settings.clone()], tuning()).unwrap();
        engine.pools()[0].unavailable.clone().unwrap()
    });
    assert!(reason.contains("host host-one used the pool"), "{reason}");
    assert!(reason.contains("has the same NFS client identity (same/"), "{reason}");
    assert_eq!(names(&pool.join("hosts")), before);
    // Its client was evicted, and recovers.
    within_seconds(180, "the first host goes on", || one.create(&request("b", MIB)).is_ok());
    let other = "echo other >/sys/fs/nfs/net/nfs_client/identifier";
    run("ip", &["netns", "exec", "twin", "sh", "-c", other]);
    let twin = open_on("twin", settings);
    assert_eq!(twin.list(None, 9).unwrap().items.len(), 2);
}

#[test]
fn a_volume_whose_directory_was_replaced_is_abnormal_and_mounted_anew() {
    let test = "vm::pools::a_volume_whose_directory_was_replaced_is_abnormal_and_mounted_anew";
    in_own_process(test, || {
        let pool = directory("replaced");
        let engine = open(settings("10.80.0.1", "replaced", OPTIONS, None));
        let targets = tempfile::tempdir().unwrap();
        let target = targets.path().join("t");
        let id = engine.create(&request("a", MIB)).unwrap().id;
        let publish = publish_request(&id, &target, Sharing::ManyTargets);
        engine.publish(&publish).unwrap();
        let busy = File::open(&target).unwrap();
        assert_eq!(engine.health(&id, Some(&target)).unwrap(), []);
        // As when an administrator restores it from a backup.
        let (data, away) = (pool.join("volumes/a/data"), Path::new(EXPORT).join("replaced-away"));
        fs::rename(&data, &away).unwrap();
        fs::remove_dir(&away).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join("file"), "restored").unwrap();
        within_seconds(60, "the volume is abnormal", || {
            let symptoms = engine.health(&id, Some(&target)).unwrap();
            symptoms
                .iter()
                .any(|found| found.reason == "StaleMount" && found.message.contains("restart the pods"))
        });
        engine.publish(&publish).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "restored");
        assert_eq!(engine.health(&id, Some(&target)).unwrap(), []);
        drop(busy);
        engine.unpublish(&id.to_string(), &target).unwrap();
        assert!(!target.exists());
    });
}

#[test]
fn a_removed_directory_is_noticed_and_mounted_again() {
    let pool = directory("removed");
    let engine = open(settings("10.80.0.1", "removed", OPTIONS, None));
    let volume = engine.create(&request("a", MIB)).unwrap().id;
    let away = Path::new(EXPORT).join("away");
    fs::rename(&pool, &away).unwrap();
    // A thread makes the files of the locks meanwhile.
    within_seconds(60, "the directory is removed", || fs::remove_dir_all(&away).is_ok());
    let error = engine.get(&volume).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.chain().contains("check that the path exists on the server"), "{}", error.chain());
    fs::create_dir(&pool).unwrap();
    let error = engine.get(&volume).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.chain().contains("was here"), "{}", error.chain());
    assert_eq!(names(&pool).len(), 0, "an empty directory does not replace a known pool");
    drop(engine);
    assert_eq!(open(settings("10.80.0.1", "removed", OPTIONS, None)).list(None, 9).unwrap().items.len(), 0);
}
