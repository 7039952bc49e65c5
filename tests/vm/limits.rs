//! Limits of pools with project quotas as the command line shows and changes them.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{Publish, Sharing, Tuning};
use orlop::error::Kind;
use orlop::fs::audit::Strays;
use orlop::fs::project::{self, Project};
use orlop::mount::MountFlags;
use orlop::volume::{Enforced, SizeRange};
use rustix::fs::statvfs;

use super::quota_pools::{as_tenant, data, each_filesystem, fill, id_of, limited, open, quota};
use crate::common::disk::run;
use crate::common::isolation::in_own_process;
use crate::common::pool::{MIB, check, contents, edit_record, id, names, read_record, request, settings};
use crate::common::wait::within_seconds;

const SIZE: u64 = 8 * MIB;

fn set(path: &Path, id: u32) {
    let project = Project { id, is_inherited: path.is_dir() && id != 0 };
    project::set(File::open(path).unwrap().as_fd(), project).unwrap();
}

fn audit(engine: &Engine, volume: &str, mend: bool) -> Strays {
    engine.audit(&id(volume), mend).unwrap().unwrap().run(Duration::MAX).unwrap().unwrap()
}

#[test]
fn a_file_that_left_its_project_is_not_counted_until_an_audit_puts_it_back() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        engine.create(&limited("v", SIZE, 0)).unwrap();
        let (file, directory) = (data(pool, "v").join("file"), data(pool, "v").join("directory"));
        fs::create_dir(&directory).unwrap();
        fs::write(&file, vec![1; 3 << 20]).unwrap();
        // As its owner can, without a privilege.
        let owner = "setpriv --reuid 1000 --clear-groups chattr -p 0";
        let leave = format!("chown 1000 file directory && {owner} file && {owner} -P directory");
        run("sh", &["-ec", &format!("cd {} && {leave}", data(pool, "v").display())]);
        fs::write(directory.join("more"), vec![1; 1 << 20]).unwrap();
        run("sync", &["-f", pool.to_str().unwrap()]);
        let project = id_of(pool, "v");
        assert!(quota(pool, project).bytes < MIB, "{name}: it is not counted");
        let found = audit(&engine, "v", false);
        assert_eq!((found.count, found.put_back, found.failed), (3, 0, 0), "{name}: {found:?}");
        assert!(found.bytes >= 4 * MIB, "{name}: {found:?}");
        let mended = audit(&engine, "v", true);
        assert_eq!((mended.put_back, mended.failure), (3, None), "{name}");
        let used = quota(pool, project).bytes;
        assert!((4 * MIB..5 * MIB).contains(&used), "{name}: {used}");
        assert_eq!(audit(&engine, "v", false), Strays::default(), "{name}");
        check(&engine, pool);
    });
}

#[test]
fn files_are_put_back_into_a_volume_that_is_full() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        engine.create(&limited("v", SIZE, 0)).unwrap();
        let (first, second) = (data(pool, "v").join("first"), data(pool, "v").join("second"));
        fill(&first);
        set(&first, 0);
        fill(&second);
        let mended = audit(&engine, "v", true);
        assert_eq!((mended.count, mended.put_back, &mended.failure), (1, 1, &None), "{name}");
        assert!(quota(pool, id_of(pool, "v")).bytes > SIZE, "{name}: more than its size");
        let refused = as_tenant(&format!("head -c 1M /dev/zero 2>&1 >{}.x || true", second.display()));
        assert!(!refused.is_empty(), "{name}: the next write fails");
    });
}

#[test]
fn a_volume_shrinks_to_what_it_uses_and_the_next_write_stops_there() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        let volume = engine.create(&limited("v", SIZE, 0)).unwrap();
        let file = data(pool, "v").join("file");
        fs::write(&file, vec![1; 3 << 20]).unwrap();
        let refused = engine.shrink(&volume.id, 2 * MIB).unwrap_err();
        assert_eq!(refused.kind(), Kind::OutOfRange, "{name}");
        let text = refused.chain();
        assert!(text.contains("uses 3") && text.contains("more than 2Mi"), "{name}: {text}");
        assert_eq!(quota(pool, id_of(pool, "v")).max_bytes, SIZE, "{name}: unchanged");
        let shrunk = engine.shrink(&volume.id, 4 * MIB).unwrap().unwrap();
        assert_eq!((shrunk.size, shrunk.enforced), (4 * MIB, Enforced::Bytes), "{name}");
        let shown = rustix::fs::statvfs(data(pool, "v")).unwrap();
        assert_eq!(shown.f_blocks * shown.f_frsize, 4 * MIB, "{name}: df shows the new size");
        let written = fill(&file);
        assert!((3 * MIB..=4 * MIB).contains(&written), "{name}: {written}");
        check(&engine, pool);
    });
}

/// Moves each entry of the tree into each of these directories and back, as a program does.
fn move_everything(data: &Path) {
    let directories = [data.to_owned(), data.join("a"), data.join("a/b")];
    for from in &directories {
        for name in names(from) {
            for to in directories.iter().filter(|to| !to.starts_with(from.join(&name))) {
                fs::rename(from.join(&name), to.join("moved")).unwrap();
                fs::rename(to.join("moved"), from.join(&name)).unwrap();
            }
        }
    }
}

#[test]
fn a_pool_of_plain_directories_is_taken_over_volume_by_volume() {
    let name = "vm::limits::a_pool_of_plain_directories_is_taken_over_volume_by_volume";
    in_own_process(name, || {
        each_filesystem(|name, pool| {
            drop(open(pool));
            edit_record(&pool.join("orlop.json"), |marker| marker["backend"] = "dir".into());
            let (server, target) = (open(pool), tempfile::tempdir().unwrap());
            for volume in ["v", "used", "large"] {
                assert_eq!(server.create(&request(volume, SIZE)).unwrap().enforced, Enforced::No);
            }
            let v = data(pool, "v");
            fs::create_dir_all(v.join("a/b")).unwrap();
            fs::write(v.join("a/file"), "text").unwrap();
            std::os::unix::fs::symlink("a/file", v.join("link")).unwrap();
            std::os::unix::fs::lchown(v.join("link"), Some(1000), Some(1000)).unwrap();
            run("mkfifo", &[v.join("a/fifo").to_str().unwrap()]);
            fs::write(data(pool, "large").join("file"), vec![1; 9 << 20]).unwrap();
            let before = contents(&v);
            let target = target.path().join("t");
            let publish = Publish {
                id: id("used"),
                target: target.clone(),
                flags: MountFlags::default(),
                sharing: Sharing::ManyTargets,
                ephemeral: None,
            };
            server.publish(&publish).unwrap();

            let command = Engine::open_for_command(vec![settings(pool)], Tuning::default()).unwrap();
            assert!(command.take_over_pool(&"p".parse().unwrap()).unwrap(), "{name}");
            assert_eq!(read_record(&pool.join("orlop.json"))["backend"], "quota", "{name}");
            let entered = command.take_over(&id("v")).unwrap().unwrap();
            assert_eq!((entered.volume.enforced, entered.above_size), (Enforced::Bytes, None), "{name}");
            assert_eq!(contents(&v), before, "{name}");
            assert_eq!(audit(&command, "v", false), Strays::default(), "{name}");
            move_everything(&v);
            let refused = command.take_over(&id("used")).unwrap_err();
            assert_eq!(refused.kind(), Kind::InUse, "{name}");
            assert!(refused.chain().contains("in use by"), "{name}: {}", refused.chain());
            let large = command.take_over(&id("large")).unwrap().unwrap();
            assert!(large.above_size.is_some_and(|used| used > SIZE), "{name}: {large:?}");
            assert_eq!(large.volume.enforced, Enforced::No, "{name}: its program goes on");

            // The process that served the pool before.
            let larger = SizeRange { required: 2 * SIZE, limit: 0 };
            assert_eq!(server.expand(&id("v"), larger).unwrap().enforced, Enforced::Bytes, "{name}");
            assert_eq!(quota(pool, id_of(pool, "v")).max_bytes, 2 * SIZE, "{name}");
            assert_eq!(server.expand(&id("large"), larger).unwrap().enforced, Enforced::Bytes, "{name}");
            assert_eq!(server.create(&request("new", SIZE)).unwrap().enforced, Enforced::Bytes, "{name}");
            let written = fill(&v.join("a/b/large"));
            assert!((2 * SIZE - MIB..=2 * SIZE).contains(&written), "{name}: {written}");
            server.unpublish("p/used", &target).unwrap();
            assert_eq!(command.take_over(&id("used")).unwrap().unwrap().volume.enforced, Enforced::Bytes);
            check(&server, pool);

            // What a killed takeover leaves passes on the project id of a volume that lives.
            let left = pool.join("work/left");
            fs::create_dir(&left).unwrap();
            set(&left, id_of(pool, "v"));
            let next = open(pool);
            let trash = pool.join("trash");
            within_seconds(180, "what is left is removed", || !left.exists() && names(&trash).is_empty());
            assert_eq!(quota(pool, id_of(pool, "v")).max_bytes, 2 * SIZE, "{name}: the limit stays");
            drop(next);
        });
    });
}

#[test]
fn a_size_is_whole_blocks_and_directories_count() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        engine.create(&limited("v", SIZE + 1000, 50)).unwrap();
        let shown = statvfs(data(pool, "v")).unwrap();
        let block = shown.f_frsize;
        assert_eq!(shown.f_blocks * block, SIZE, "{name}");
        let used = (shown.f_blocks - shown.f_bfree) * block;
        assert_eq!(used, if name == "ext4" { 8 << 10 } else { 0 }, "{name}: bytes of an empty volume");
        // The root directory of the volume, and the directory with its record.
        assert_eq!((shown.f_files, shown.f_files - shown.f_ffree), (51, 2), "{name}");
        check(&engine, pool);
    });
}
