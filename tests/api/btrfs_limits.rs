//! What docs/limits.md says about sizes on btrfs beyond the limit itself. Needs root, btrfs-progs and loop devices.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use orlop::engine::Engine;
use orlop::engine::request::{CreateVolume, OwnerSpec};
use orlop::error::Kind;
use orlop::volume::{Limit, Policy, Source};
use rustix::fs::statvfs;
use rustix::io::Errno;

use crate::common::disk::{Disk, QUOTA_GROUPS, SIMPLE_QUOTAS, enable_quotas, run};
use crate::common::isolation::{in_own_process, skip};
use crate::common::pool::{MIB, check, id, names, open, request, snapshot_request};

const SIZE: u64 = 16 * MIB;
const DISK_MIB: u64 = 1024;

fn on_btrfs(test: &str, quotas: u64, body: impl FnOnce(&Path, &Engine)) {
    in_own_process(&format!("api::btrfs_limits::{test}"), || {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Disk::new(&dir.path().join("disk"), DISK_MIB, &["mkfs.btrfs"]);
        if !enable_quotas(disk.path(), quotas) {
            return skip("simple quotas of btrfs need Linux 6.7");
        }
        body(disk.path(), &open(disk.path()));
    });
}

fn limited(name: &str, size: u64) -> CreateVolume {
    CreateVolume { policy: Policy { limit: Limit::Hard, ..Policy::default() }, ..request(name, size) }
}

fn data(pool: &Path, volume: &str) -> PathBuf {
    pool.join("volumes").join(volume).join("data")
}

/// Appends to a file until not even a block fits, and returns its length.
fn fill(path: &Path) -> u64 {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let data: Vec<u8> = (0..64_u32 << 10).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[1]).collect();
    let mut rest = data.as_slice();
    while rest.len() >= 4096 {
        if let Err(error) = file.write_all(rest).and_then(|()| file.sync_all()) {
            assert!(is_limit(&error), "{error}");
            rest = &rest[..rest.len() / 2];
        }
    }
    file.metadata().unwrap().len()
}

fn is_limit(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::DQUOT)
}

#[test]
fn df_shows_the_whole_filesystem() {
    on_btrfs("df_shows_the_whole_filesystem", QUOTA_GROUPS, |pool, engine| {
        engine.create(&limited("v", SIZE)).unwrap();
        let shown = statvfs(data(pool, "v")).unwrap();
        assert!(shown.f_blocks * shown.f_frsize > DISK_MIB * MIB / 2);
    });
}

#[test]
fn a_full_volume_cannot_be_overwritten_and_another_owner_may_need_a_larger_one() {
    let test = "a_full_volume_cannot_be_overwritten_and_another_owner_may_need_a_larger_one";
    on_btrfs(test, QUOTA_GROUPS, |pool, engine| {
        let volume = engine.create(&limited("v", SIZE)).unwrap();
        let path = data(pool, "v").join("file");
        let length = fill(&path);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let block = vec![7; 1 << 20];
        let overwrite = |at| file.write_all_at(&block, at).and_then(|()| file.sync_all());
        let refused = (0..length / MIB).find_map(|at| overwrite(at * MIB).err());
        assert!(refused.as_ref().is_some_and(is_limit), "{refused:?}");

        // Until no metadata fits either.
        let empty = (0..100_000).find(|i| File::create(data(pool, "v").join(i.to_string())).is_err());
        assert!(empty.is_some());
        engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
        let restore = |name, size, owner| {
            let source = Some(Source::Snapshot(id("s")));
            engine.create(&CreateVolume { source, owner, ..limited(name, size) })
        };
        let other = OwnerSpec { uid: Some(1000), gid: Some(1000), ..OwnerSpec::default() };
        // Another owner takes space, which may be there or not.
        if let Err(error) = restore("same", SIZE, other) {
            assert_eq!(error.kind(), Kind::OutOfRange, "{}", error.chain());
            assert!(!names(&pool.join("volumes")).contains("same"));
        }
        restore("larger", 2 * SIZE, other).unwrap();
        check(engine, pool);
    });
}

#[test]
fn simple_quotas_charge_a_restored_volume_with_what_it_writes() {
    let test = "simple_quotas_charge_a_restored_volume_with_what_it_writes";
    on_btrfs(test, SIMPLE_QUOTAS, |pool, engine| {
        let volume = engine.create(&limited("v", SIZE)).unwrap();
        let length = fill(&data(pool, "v").join("file"));
        engine.create_snapshot(&snapshot_request("s", &volume.id)).unwrap();
        let source = Some(Source::Snapshot(id("s")));
        engine.create(&CreateVolume { source, ..limited("r", SIZE) }).unwrap();
        let more = fill(&data(pool, "r").join("more"));
        assert!(length > SIZE - 2 * MIB && more > SIZE - 2 * MIB, "{length} and {more}");
        // The snapshot keeps charging the volume that wrote its data.
        fs::remove_file(data(pool, "v").join("file")).unwrap();
        run("btrfs", &["filesystem", "sync", pool.to_str().unwrap()]);
        let written = File::create(data(pool, "v").join("next"))
            .and_then(|mut file| file.write_all(&vec![1; 4 << 20]).and_then(|()| file.sync_all()));
        assert!(written.as_ref().is_err_and(is_limit), "{written:?}");
    });
}

#[test]
fn a_subvolume_that_a_tenant_makes_has_no_limit() {
    on_btrfs("a_subvolume_that_a_tenant_makes_has_no_limit", QUOTA_GROUPS, |pool, engine| {
        engine.create(&limited("v", SIZE)).unwrap();
        let nested = data(pool, "v").join("nested");
        run("btrfs", &["subvolume", "create", nested.to_str().unwrap()]);
        let mut file = File::create(nested.join("file")).unwrap();
        file.write_all(&vec![1; 32 << 20]).and_then(|()| file.sync_all()).unwrap();
    });
}
