//! Static shares of the NFS server that `tests/vm/inside` has started with the directory `/mnt/xfs`.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop::engine::Engine;
use orlop::engine::request::{Sharing, Tuning};
use orlop::engine::share::PublishShare;
use orlop::error::Kind;
use orlop::mount::MountFlags;
use orlop::remote::NfsShare;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::isolation::in_own_process;
use crate::common::pool::kind;

const EXPORT: &str = "/mnt/xfs";
const SERVER: &str = "10.80.0.1";
const ID: &str = "10.80.0.1#share#a##";

fn request(share: &str, directory: &str, target: &Path) -> PublishShare {
    let options = ["soft,timeo=300".to_owned(), "noatime".to_owned()];
    let share = NfsShare::with_mount_options(SERVER, share, &options).unwrap();
    PublishShare {
        id: ID.to_owned(),
        flags: share.flags(),
        share,
        directory: directory.into(),
        target: target.to_owned(),
        sharing: Sharing::ManyTargets,
    }
}

/// Makes a directory with one file on the server.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(EXPORT).join(name);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    path
}

#[test]
fn a_static_share_is_mounted_and_left_as_it_is() {
    in_own_process("vm::shares::a_static_share_is_mounted_and_left_as_it_is", || {
        let path = directory("share/a/b");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).unwrap();
        // No pool is needed.
        let engine = Engine::open(Vec::new(), Tuning::default()).unwrap();
        let targets = tempfile::tempdir().unwrap();
        let (first, second) = (targets.path().join("first"), targets.path().join("second"));
        let publish = request("/share", "a/b", &first);
        for _ in 0..2 {
            engine.publish_share(&publish).unwrap();
        }
        assert_eq!(fs::read_to_string(first.join("file")).unwrap(), "kept");
        fs::write(first.join("new"), "written").unwrap();
        File::open(first.join("new")).unwrap().sync_all().unwrap();
        assert_eq!(fs::read_to_string(path.join("new")).unwrap(), "written");
        assert_eq!(engine.server_of_share(ID, &first).unwrap().as_deref(), Some(SERVER));
        assert!(engine.usage_of_share(&first).unwrap().bytes.total > 0);

        let read_only = MountFlags { read_only: true, ..publish.flags };
        let other = PublishShare { flags: read_only, ..publish.clone() };
        assert_eq!(kind(engine.publish_share(&other)), Kind::Conflict);
        let second_target = PublishShare { target: second.clone(), ..other };
        let alone = PublishShare { sharing: Sharing::OneTarget, ..second_target.clone() };
        assert_eq!(kind(engine.publish_share(&alone)), Kind::InUse);
        engine.publish_share(&second_target).unwrap();
        assert!(fs::write(second.join("new"), "again").is_err(), "it is read-only");

        // A restart, which knows nothing of the shares.
        drop(engine);
        let engine = Engine::open(Vec::new(), Tuning::default()).unwrap();
        let open = File::open(first.join("file")).unwrap();
        let busy = engine.unpublish_share(ID, &first).unwrap_err();
        assert_eq!(busy.kind(), Kind::InUse, "{}", busy.chain());
        drop(open);
        for target in [&first, &second, &first] {
            assert!(engine.unpublish_share(ID, target).unwrap());
            assert!(!target.exists());
        }
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o751);
    });
}

#[test]
fn a_share_that_cannot_be_mounted_says_why() {
    in_own_process("vm::shares::a_share_that_cannot_be_mounted_says_why", || {
        let path = directory("linked/real");
        symlink("real", path.with_file_name("link")).unwrap();
        let engine = Engine::open(Vec::new(), Tuning::default()).unwrap();
        let targets = tempfile::tempdir().unwrap();
        let target = targets.path().join("t");
        let refused = |share: &str, directory: &str, text: &str| {
            let error = engine.publish_share(&request(share, directory, &target)).unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
            assert!(error.chain().contains(text), "{}", error.chain());
            assert!(!target.exists());
        };
        refused("/missing", "", "check that the path exists on the server");
        refused("/linked", "missing", "does not exist: create it");
        refused("/linked", "link", "a symbolic link leads to it");
        refused("/linked", "real/file", "is no directory");
        let mut unknown = request("/linked", "real", &target);
        unknown.share = NfsShare::with_mount_options(SERVER, "/linked", &["colour".to_owned()]).unwrap();
        let error = engine.publish_share(&unknown).unwrap_err();
        assert!(error.chain().contains("option `colour`"), "{}", error.chain());
    });
}

/// Runs `host` of `tests/vm/bin`.
#[expect(clippy::disallowed_methods, reason = "it is a program")]
fn host(arguments: &[&str]) {
    assert!(Command::new("host").args(arguments).status().unwrap().success(), "host {arguments:?}");
}

#[test]
fn a_share_is_unpublished_while_its_server_is_out_of_reach() {
    in_own_process("vm::shares::a_share_is_unpublished_while_its_server_is_out_of_reach", || {
        let path = directory("cut");
        host(&["add", "cut", "31"]);
        let engine = Engine::open(Vec::new(), Tuning::default()).unwrap();
        let targets = tempfile::tempdir().unwrap();
        let target = targets.path().join("t");
        let publish = request("/cut", "", &target);
        // The mount belongs to the network of the thread that makes it.
        std::thread::scope(|scope| {
            let mount = scope.spawn(|| {
                let network = File::open("/run/netns/cut").unwrap();
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                engine.publish_share(&publish).unwrap();
            });
            mount.join().unwrap();
        });
        fs::write(target.join("new"), "written").unwrap();
        File::open(target.join("new")).unwrap().sync_all().unwrap();
        host(&["cut", "cut"]);
        let started = Instant::now();
        assert!(engine.unpublish_share(ID, &target).unwrap());
        assert!(!target.exists());
        // The system call takes 45 s and more.
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(30), "it waited for the server: {elapsed:?}");
        assert!(engine.unpublish_share(ID, &target).unwrap());
        host(&["join", "cut"]);
        assert_eq!(fs::read_to_string(path.join("new")).unwrap(), "written");
    });
}

#[test]
fn a_share_whose_directory_was_replaced_is_mounted_anew() {
    in_own_process("vm::shares::a_share_whose_directory_was_replaced_is_mounted_anew", || {
        let path = directory("exchanged/a");
        let engine = Engine::open(Vec::new(), Tuning::default()).unwrap();
        let targets = tempfile::tempdir().unwrap();
        let target = targets.path().join("t");
        let publish = request("/exchanged", "a", &target);
        engine.publish_share(&publish).unwrap();
        let away = path.with_file_name("away");
        fs::rename(&path, &away).unwrap();
        fs::remove_dir_all(&away).unwrap();
        let path = directory("exchanged/a");
        fs::write(path.join("new"), "restored").unwrap();
        engine.publish_share(&publish).unwrap();
        assert_eq!(fs::read_to_string(target.join("new")).unwrap(), "restored");
        assert!(engine.unpublish_share(ID, &target).unwrap());
    });
}
