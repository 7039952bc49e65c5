//! Publishing volumes: promises of docs/semantics.md about mounts.

use std::fs;
use std::path::{Path, PathBuf};

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, Publish, Sharing};
use orlop::error::Kind;
use orlop::mount::{Atime, MountFlags};
use orlop::volume::{SizeRange, VolumeId};

use crate::common::isolation;
use crate::common::pool::{MIB, kind, long_waits, open, request, settings_of};
use crate::common::wait::within_seconds;

/// A directory for a pool and for targets, in a mount namespace of the test's thread.
struct Node<'d> {
    dir: &'d Path,
}

impl Node<'_> {
    fn pool(&self) -> PathBuf {
        self.dir.join("pool")
    }

    fn target(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn publish_request(&self, id: &VolumeId, target: &str, read_only: bool) -> Publish {
        let flags = MountFlags { read_only, ..MountFlags::default() };
        let (id, target) = (id.clone(), self.target(target));
        Publish { id, target, flags, sharing: Sharing::ManyTargets, ephemeral: None }
    }
}

/// Runs `test` on a new [`Node`].
fn on_a_node(test: impl FnOnce(&Node<'_>) + Send) {
    if !isolation::is_root() {
        return;
    }
    isolation::in_own_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let node = Node { dir: dir.path() };
        fs::create_dir(node.pool()).unwrap();
        test(&node);
    });
}

#[test]
fn a_published_volume_survives_a_restart_and_a_missing_pool() {
    on_a_node(|node| {
        let engine = open(&node.pool());
        let id = engine.create(&request("a", 4096)).unwrap().id;
        let publish = node.publish_request(&id, "t", false);
        engine.publish(&publish).unwrap();
        drop(engine);
        fs::write(publish.target.join("file"), vec![1; 1 << 20]).unwrap();
        let engine = open(&node.pool());
        engine.publish(&publish).unwrap();
        assert_eq!(kind(engine.delete(&id)), Kind::InUse, "the mount is read from the kernel");
        let usage = engine.stats(&id, &publish.target).unwrap();
        assert_eq!((usage.bytes.total, usage.bytes.available), (4096, 0));
        assert!(usage.bytes.used.unwrap() >= MIB);
        assert_eq!(engine.health(&id, Some(&publish.target)).unwrap()[0].reason, "OverSize");

        fs::rename(node.pool(), node.target("away")).unwrap();
        assert_eq!(kind(engine.publish(&node.publish_request(&id, "u", false))), Kind::Unavailable);
        assert!(!node.target("u").exists());
        engine.unpublish(&id.to_string(), &publish.target).unwrap();
        assert!(!publish.target.exists());
        fs::rename(node.target("away"), node.pool()).unwrap();
        engine.delete(&id).unwrap();
    });
}

#[test]
fn targets_share_a_volume_and_have_their_own_flags() {
    on_a_node(|node| {
        let engine = open(&node.pool());
        let id = engine.create(&request("a", MIB)).unwrap().id;
        let (write, read) = (node.publish_request(&id, "w", false), node.publish_request(&id, "r", true));
        engine.publish(&write).unwrap();
        engine.publish(&read).unwrap();
        fs::write(write.target.join("file"), "text").unwrap();
        assert_eq!(fs::read_to_string(read.target.join("file")).unwrap(), "text");
        let refused = fs::write(read.target.join("file"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let alone = Publish { sharing: Sharing::OneTarget, ..node.publish_request(&id, "one", false) };
        assert_eq!(kind(engine.publish(&alone)), Kind::InUse);
        for target in [&write.target, &read.target] {
            engine.unpublish(&id.to_string(), target).unwrap();
        }
        assert!(node.pool().join("volumes/a/data/file").exists());
    });
}

#[test]
fn unpublish_removes_only_the_mounts_of_its_volume() {
    on_a_node(|node| {
        let engine = open(&node.pool());
        let (a, b) =
            (engine.create(&request("a", MIB)).unwrap().id, engine.create(&request("b", MIB)).unwrap().id);
        let publish = node.publish_request(&a, "t", false);
        engine.publish(&publish).unwrap();
        assert_eq!(kind(engine.unpublish(&b.to_string(), &publish.target)), Kind::Conflict);
        assert_eq!(kind(engine.publish(&node.publish_request(&b, "t", false))), Kind::Conflict);
        let never = node.target("never");
        engine.unpublish("p/deleted", &never).unwrap();
        assert_eq!(kind(engine.unpublish("not an id", &never)), Kind::NotFound);
        let full = node.target("full");
        fs::create_dir(&full).unwrap();
        fs::write(full.join("file"), "foreign").unwrap();
        assert!(engine.unpublish(&a.to_string(), &full).is_err());
        assert!(full.join("file").exists(), "files in a target are never deleted");
        for _ in 0..2 {
            engine.unpublish(&a.to_string(), &publish.target).unwrap();
        }
        engine.delete(&a).unwrap();
    });
}

#[test]
fn a_volume_on_a_read_only_filesystem_can_be_published() {
    isolation::in_own_process("mounts::publish::a_volume_on_a_read_only_filesystem_can_be_published", || {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("pool");
        fs::create_dir(&pool).unwrap();
        let none = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &pool, "tmpfs", none, None).unwrap();
        let engine = open(&pool);
        let volume = engine.create(&request("a", 0)).unwrap();
        drop(engine);
        let remount = || rustix::mount::mount_remount(&pool, rustix::mount::MountFlags::RDONLY, "").is_ok();
        within_seconds(60, "the filesystem is read-only", remount);
        let engine = open(&pool);
        let target = dir.path().join("target");
        let publish = Publish {
            id: volume.id.clone(),
            target: target.clone(),
            flags: MountFlags::default(),
            sharing: Sharing::ManyTargets,
            ephemeral: None,
        };
        engine.publish(&publish).unwrap_or_else(|error| panic!("{}", error.chain()));
        engine.unpublish(&volume.id.to_string(), &target).unwrap();
        assert!(engine.create(&request("b", 0)).is_err());
        isolation::unmount_all(&pool);
    });
}

#[test]
fn a_record_that_cannot_be_opened_affects_its_volume_only() {
    let test = "mounts::publish::a_record_that_cannot_be_opened_affects_its_volume_only";
    isolation::in_own_process(test, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        engine.create(&request("a", MIB)).unwrap();
        drop(engine);
        // orlop enters no mount, so opening the record fails.
        let (hidden, none) = (dir.path().join("volumes/a"), rustix::mount::MountFlags::empty());
        rustix::mount::mount("tmpfs", &hidden, "tmpfs", none, None).unwrap();
        let engine = open(dir.path());
        let other = engine.create(&request("b", MIB)).unwrap_or_else(|error| panic!("{}", error.chain()));
        engine.expand(&other.id, SizeRange { required: 2 * MIB, limit: 0 }).unwrap();
        isolation::unmount_all(&hidden);
        assert_eq!(engine.pools()[0].provisioned, 3 * MIB, "the record is read again");
    });
}

#[test]
fn a_pool_that_was_remounted_gives_the_same_answer_to_a_retry() {
    on_a_node(|node| {
        let (pool, flags) = (node.pool(), rustix::mount::MountFlags::empty());
        rustix::mount::mount("tmpfs", &pool, "tmpfs", flags, c"mode=755").unwrap();
        let engine = open(&pool);
        let id = engine.create(&request("a", 0)).unwrap().id;
        let publish = node.publish_request(&id, "t", false);
        let asks = |flags: MountFlags| Publish { flags, ..publish.clone() };
        engine.publish(&publish).unwrap();
        use rustix::mount::MountFlags as Flags;
        for remounted in
            [Flags::NOATIME, Flags::NOEXEC, Flags::NODIRATIME, Flags::NOSUID | Flags::NODEV, flags]
        {
            rustix::mount::mount_remount(&pool, Flags::BIND | remounted, c"").unwrap();
            engine.publish(&publish).unwrap();
            let read_only = MountFlags { read_only: true, ..MountFlags::default() };
            let noexec = MountFlags { noexec: true, ..MountFlags::default() };
            let noatime = MountFlags { atime: Some(Atime::Never), ..MountFlags::default() };
            for other in [read_only, noexec, noatime] {
                assert_eq!(kind(engine.publish(&asks(other))), Kind::Conflict, "{other:?}");
            }
        }
        engine.unpublish(&id.to_string(), &publish.target).unwrap();
        // Published while the pool forbids programs, and again when it allows them.
        rustix::mount::mount_remount(&pool, Flags::BIND | Flags::NOEXEC, c"").unwrap();
        engine.publish(&publish).unwrap();
        rustix::mount::mount_remount(&pool, Flags::BIND, c"").unwrap();
        engine.publish(&publish).unwrap();
        engine.unpublish(&id.to_string(), &publish.target).unwrap();
        isolation::unmount_all(&pool);
    });
}

#[test]
fn two_spellings_of_a_target_are_one_target() {
    on_a_node(|node| {
        let (real, link) = (node.target("real"), node.target("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let engine = open(&node.pool());
        let ids = ["a", "b"].map(|name| engine.create(&request(name, 0)).unwrap().id);
        let requests = [(&ids[0], "real/t"), (&ids[1], "link/t")];
        for _ in 0..100 {
            let start = std::sync::Barrier::new(2);
            let answers = std::thread::scope(|scope| {
                let threads = requests.map(|(id, target)| {
                    let (publish, engine, start) = (node.publish_request(id, target, false), &engine, &start);
                    scope.spawn(move || {
                        start.wait();
                        engine.publish(&publish)
                    })
                });
                threads.map(|thread| thread.join().unwrap())
            });
            assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
            let published = usize::from(answers[1].is_ok());
            engine.unpublish(&ids[published].to_string(), &real.join("t")).unwrap();
            assert!(!real.join("t").exists());
        }
    });
}

#[test]
fn a_volume_of_the_same_name_in_another_pool_is_not_unpublished() {
    on_a_node(|node| {
        let other = node.target("other");
        fs::create_dir(&other).unwrap();
        // Two processes may give the same name in two pools.
        let make = |name: &str, path: &Path| {
            let engine = Engine::open(vec![settings_of(name, path)], long_waits()).unwrap();
            engine.create(&request("same", 0)).unwrap().id
        };
        let (a, b) = (make("p", &node.pool()), make("q", &other));
        let settings = vec![settings_of("p", &node.pool()), settings_of("q", &other)];
        let engine = Engine::open(settings, long_waits()).unwrap();
        for (published, asked) in [(&a, &b), (&b, &a)] {
            let publish = node.publish_request(published, "t", false);
            engine.publish(&publish).unwrap();
            let error = engine.unpublish(&asked.to_string(), &publish.target).unwrap_err();
            assert!(
                error.kind() == Kind::Conflict && error.chain().contains("nothing was changed"),
                "{error}"
            );
            engine.publish(&publish).unwrap();
            engine.unpublish(&published.to_string(), &publish.target).unwrap();
            assert!(!publish.target.exists());
        }
    });
}

#[test]
fn a_failed_publish_of_an_inline_volume_leaves_no_volume() {
    on_a_node(|node| {
        let engine = open(&node.pool());
        let name = format!("csi-{}", "0123456789abcdef".repeat(4));
        let id: VolumeId = format!("p/{}", orlop::volume::Name::of(&name)).parse().unwrap();
        let ephemeral = Some(Box::new(request(&name, MIB)));
        let publish = Publish { ephemeral, ..node.publish_request(&id, "missing/t", false) };
        assert_eq!(kind(engine.publish(&publish)), Kind::Invalid);
        let status = engine.pools().remove(0);
        assert_eq!((status.volumes, status.provisioned), (0, 0));
        let target = node.target("t");
        let publish = Publish { target: target.clone(), ..publish };
        engine.publish(&publish).unwrap();
        // One that existed before is kept.
        let elsewhere = Publish { target: node.target("missing/t"), ..publish.clone() };
        assert_eq!(kind(engine.publish(&elsewhere)), Kind::Invalid);
        engine.publish(&publish).unwrap();
        engine.unpublish(&name, &target).unwrap();
        assert_eq!(engine.pools()[0].volumes, 0);
    });
}

#[test]
fn an_inline_volume_in_an_unknown_pool_is_refused_as_a_mistake() {
    on_a_node(|node| {
        let engine = open(&node.pool());
        let id: VolumeId = "nvme/v".parse().unwrap();
        let volume = CreateVolume { pool: Some(id.pool.clone()), ..request("v", MIB) };
        let publish = Publish { ephemeral: Some(Box::new(volume)), ..node.publish_request(&id, "t", false) };
        let error = engine.publish(&publish).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.chain().contains("pool nvme does not exist"), "{}", error.chain());
    });
}
