//! `limit=hard` where the kernel enforces nothing: refused with what an administrator has to do. Needs root and loop devices.

use std::path::Path;

use orlop::engine::request::CreateVolume;
use orlop::error::Kind;
use orlop::volume::{Enforced, Limit, Policy, PolicyChange};

use crate::common::disk::Disk;
use crate::common::isolation::{in_own_mount_namespace, is_root};
use crate::common::pool::{MIB, check, id, names, open, request};

/// Makes a pool on a filesystem without project quotas; `limit=hard` is refused with these commands.
fn is_refused_with(mkfs: &str, commands: &[&str]) {
    if !is_root() {
        return;
    }
    in_own_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 320, &[mkfs]);
        let pool: &Path = disk.path();
        let engine = open(pool);
        assert_eq!(engine.create(&request("auto", MIB)).unwrap().enforced, Enforced::No);
        let policy = Policy { limit: Limit::Hard, ..Policy::default() };
        let change = PolicyChange { limit: Some(Limit::Hard), ..PolicyChange::default() };
        for refused in [
            engine.create(&CreateVolume { policy, ..request("hard", MIB) }).unwrap_err(),
            engine.modify(&id("auto"), change).unwrap_err(),
        ] {
            let text = refused.chain();
            assert_eq!(refused.kind(), Kind::Unsupported, "{text}");
            assert!(text.contains("limit=hard: pool p (backend dir) cannot enforce a size"), "{text}");
            assert!(text.contains("use limit=auto or limit=none"), "{text}");
            for command in commands {
                assert!(text.contains(command), "{command}: {text}");
            }
        }
        let why = engine.inspect(&id("auto")).unwrap().not_enforced.unwrap();
        assert!(commands.iter().all(|command| why.contains(command)), "{why}");
        assert_eq!(names(&pool.join("volumes")).len(), 1);
        check(&engine, pool);
    });
}

#[test]
fn a_hard_limit_on_ext4_without_the_feature_is_refused_with_the_two_commands() {
    let tune = "`tune2fs -O project,quota -E quotatype=prjquota DEVICE`";
    is_refused_with(
        "mkfs.ext4",
        &[tune, "unmounted", "`mount -o prjquota DEVICE PATH`", "`orlop check --fix`"],
    );
}

#[test]
fn a_hard_limit_on_xfs_without_the_option_is_refused_with_the_two_commands() {
    is_refused_with("mkfs.xfs", &["`umount PATH`", "`mount -o prjquota DEVICE PATH`", "`orlop check --fix`"]);
}
