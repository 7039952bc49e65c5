//! Audits of volumes with project ids, on xfs, which has ids whether the kernel has quotas or not. Needs root, xfsprogs and loop
//! devices.
#![expect(clippy::disallowed_methods, reason = "the program under test is a process")]

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::{LastAudit, Tuning};
use orlop::error::Kind;
use orlop::fs::audit::Strays;
use orlop::fs::project::{self, Project};
use orlop::sys::file_flags::{project_of_name, set_project_of_name};

use crate::api::commands::{Ran, run};
use crate::api::live_copy::LeaseHolder;
use crate::common::disk::{self, Disk};
use crate::common::isolation::in_own_process;
use crate::common::pool::{
    edit_record, id, long_waits, open, open_with, read_record, request, volume_record,
};
use crate::common::server::ORLOP;
use crate::common::wait::{StopOnDrop, within_seconds};

const OUTSIDE: Project = Project { id: 0, is_inherited: false };

/// Runs a test in a process of its own, with a pool of the backend `quota`.
fn on_xfs(test: &str, body: impl FnOnce(&Path)) {
    in_own_process(&format!("api::audit::{test}"), || {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Disk::new(&dir.path().join("disk"), 320, &["mkfs.xfs"]);
        let pool = disk.path().join("pool");
        fs::create_dir(&pool).unwrap();
        drop(open(&pool));
        edit_record(&pool.join("orlop.json"), |marker| marker["backend"] = "quota".into());
        body(&pool);
    });
}

fn data(pool: &Path, volume: &str) -> PathBuf {
    pool.join("volumes").join(volume).join("data")
}

fn set(path: &Path, project: Project) {
    project::set(File::open(path).unwrap().as_fd(), project).unwrap();
}

fn project_of(path: &Path) -> Project {
    project::of(File::open(path).unwrap().as_fd()).unwrap()
}

fn id_of(pool: &Path, volume: &str) -> u32 {
    let recorded = read_record(&volume_record(pool, volume))["backend"]["project"].as_u64().unwrap();
    u32::try_from(recorded).unwrap()
}

fn audit(engine: &Engine, volume: &str, mend: bool) -> Strays {
    engine.audit(&id(volume), mend).unwrap().unwrap().run(Duration::MAX).unwrap().unwrap()
}

fn check(pool: &Path, flags: &[&str]) -> Ran {
    run(Command::new(ORLOP).arg("check").args(flags).arg("--pool").arg(format!("p={}", pool.display())))
}

/// An engine of a pool that gets the volumes `v` and `w`.
fn with_two_volumes(pool: &Path) -> Engine {
    let engine = open(pool);
    for volume in ["v", "w"] {
        engine.create(&request(volume, 0)).unwrap();
    }
    engine
}

#[test]
fn files_that_left_their_project_are_found_and_put_back() {
    on_xfs("files_that_left_their_project_are_found_and_put_back", |pool| {
        let engine = with_two_volumes(pool);
        let (v, project) = (data(pool, "v"), id_of(pool, "v"));
        fs::create_dir_all(v.join("d/e")).unwrap();
        for file in ["inside", "d/outside", "d/e/in\x1b[31m\nside"] {
            fs::write(v.join(file), vec![1; 8192]).unwrap();
        }
        disk::run("sync", &["-f", pool.to_str().unwrap()]);
        assert_eq!(audit(&engine, "v", false), Strays::default());
        set(&v.join("d/outside"), OUTSIDE);
        set(&v.join("d/e/in\x1b[31m\nside"), Project { id: id_of(pool, "w"), is_inherited: false });
        set(&v.join("d/e"), Project { id: project, is_inherited: false });
        let found = check(pool, &["--audit"]);
        assert_eq!(found.code, 1, "{found:?}");
        let line = found.stdout.lines().find(|line| line.contains("volume p/v")).unwrap();
        assert!(line.starts_with("BAD") && line.contains("3 files of 16Ki"), "{line}");
        assert!(line.contains("--fix") && line.contains("d/outside"), "{line}");
        assert!(!found.stdout.contains('\x1b'), "{line}");
        assert!(
            found.stdout.contains("volume p/w   project        all files are in the project"),
            "{found:?}"
        );
        assert_eq!(project_of(&v.join("d/outside")), OUTSIDE, "an audit changes nothing");

        let mended = check(pool, &["--audit", "--fix"]);
        assert!(mended.code == 0 && mended.stdout.contains("put back 3 files"), "{mended:?}");
        assert_eq!(check(pool, &["--audit"]).code, 0);
        assert_eq!(project_of(&v.join("d/outside")), Project { id: project, is_inherited: false });
        assert_eq!(project_of(&v.join("d/e")), Project { id: project, is_inherited: true });
        set(&v, OUTSIDE);
        assert_eq!(audit(&engine, "v", true).put_back, 1, "the root directory of the volume");
        assert_eq!(project_of(&v), Project { id: project, is_inherited: true });
    });
}

#[test]
fn an_audit_follows_no_link_enters_no_mount_and_opens_no_fifo() {
    on_xfs("an_audit_follows_no_link_enters_no_mount_and_opens_no_fifo", |pool| {
        let engine = with_two_volumes(pool);
        let (v, w) = (data(pool, "v"), data(pool, "w"));
        fs::write(w.join("file"), "").unwrap();
        for (target, link) in
            [(w.clone(), "directory"), (w.join("file"), "file"), ("/dev/zero".into(), "zero")]
        {
            std::os::unix::fs::symlink(target, v.join(link)).unwrap();
        }
        disk::run("mkfifo", &[v.join("fifo").to_str().unwrap()]);
        disk::run("mknod", &[v.join("device").to_str().unwrap(), "c", "1", "5"]);
        fs::create_dir(v.join("mounted")).unwrap();
        disk::run("mount", &["--bind", w.to_str().unwrap(), v.join("mounted").to_str().unwrap()]);
        assert_eq!(audit(&engine, "v", true), Strays::default());
        assert_eq!(project_of(&w), Project { id: id_of(pool, "w"), is_inherited: true });
    });
}

#[test]
fn files_that_cannot_be_opened_are_put_back_where_the_kernel_can_move_them() {
    on_xfs("files_that_cannot_be_opened_are_put_back_where_the_kernel_can_move_them", |pool| {
        let engine = open(pool);
        engine.create(&request("v", 0)).unwrap();
        let v = data(pool, "v");
        std::os::unix::fs::symlink("elsewhere", v.join("link")).unwrap();
        let (directory, project) = (File::open(&v).unwrap(), id_of(pool, "v"));
        if set_project_of_name(directory.as_fd(), c"link", 0).is_err() {
            // Before Linux 6.17, its owner cannot do that either.
            assert_eq!(audit(&engine, "v", false), Strays::default());
            return;
        }
        let found = audit(&engine, "v", true);
        assert_eq!((found.count, found.put_back, found.paths), (1, 1, vec!["link".to_owned()]));
        assert_eq!(project_of_name(directory.as_fd(), c"link"), Ok(project));
    });
}

#[test]
fn an_audit_ends_although_a_tenant_keeps_moving_directories() {
    on_xfs("an_audit_ends_although_a_tenant_keeps_moving_directories", |pool| {
        let engine = open(pool);
        engine.create(&request("v", 0)).unwrap();
        let v = data(pool, "v");
        for name in ["a/b/c/d", "x/y"] {
            fs::create_dir_all(v.join(name)).unwrap();
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = fs::rename(v.join("a/b/c"), v.join("x/y/c"));
                    let _ = fs::rename(v.join("x/y/c"), v.join("a/b/c"));
                }
            });
            for _ in 0..200 {
                // It may find no way back.
                let _ = engine.audit(&id("v"), true).unwrap().unwrap().run(Duration::MAX);
            }
        });
        assert_eq!(audit(&engine, "v", false), Strays::default());
    });
}

#[test]
fn an_audit_in_slices_finds_the_same_and_remembers_few_paths() {
    on_xfs("an_audit_in_slices_finds_the_same_and_remembers_few_paths", |pool| {
        let engine = open(pool);
        engine.create(&request("v", 0)).unwrap();
        let v = data(pool, "v");
        for number in 0..40 {
            let name = v.join(std::ffi::OsStr::from_bytes(&[b'a' + number / 10, b'0' + number % 10, 0xff]));
            fs::write(&name, "").unwrap();
            set(&name, OUTSIDE);
        }
        let expected = audit(&engine, "v", false);
        assert_eq!((expected.count, expected.paths.len()), (40, 10));
        let (mut audit, mut slices) = (engine.audit(&id("v"), false).unwrap().unwrap(), 1);
        let found = loop {
            match audit.run(Duration::ZERO).unwrap() {
                Some(found) => break found,
                None => slices += 1,
            }
        };
        assert_eq!(found, expected);
        assert!(slices >= 40, "{slices}");
    });
}

#[test]
fn the_serving_process_audits_its_volumes_and_reports_what_it_found() {
    on_xfs("the_serving_process_audits_its_volumes_and_reports_what_it_found", |pool| {
        let never = open_with(pool, Tuning { audit_every: Duration::ZERO, ..long_waits() });
        never.create(&request("v", 0)).unwrap();
        let file = data(pool, "v").join("file");
        fs::write(&file, "").unwrap();
        set(&file, OUTSIDE);
        let engine = open_with(pool, Tuning { audit_every: Duration::from_millis(500), ..long_waits() });
        within_seconds(60, "the stray is reported", || {
            engine.pools()[0].audit.is_some_and(|last| last.strays == 1)
        });
        assert_eq!(project_of(&file), OUTSIDE, "nothing is changed without being asked for");
        audit(&engine, "v", true);
        within_seconds(60, "it is put back", || engine.pools()[0].audit.is_some_and(|last| last.strays == 0));
        assert!(never.pools()[0].audit.is_none());
    });
}

#[test]
fn a_volume_that_cannot_be_audited_completely_is_counted() {
    on_xfs("a_volume_that_cannot_be_audited_completely_is_counted", |pool| {
        let engine = open_with(pool, Tuning { audit_every: Duration::from_millis(500), ..long_waits() });
        for volume in ["v", "w"] {
            engine.create(&request(volume, 0)).unwrap();
        }
        let leased = data(pool, "v").join("leased");
        fs::create_dir(&leased).unwrap();
        fs::write(leased.join("file"), "").unwrap();
        let counted = |strays, incomplete| {
            let found = |last: LastAudit| (last.strays, last.incomplete) == (strays, incomplete);
            engine.pools()[0].audit.is_some_and(found)
        };
        within_seconds(120, "an audit has seen all", || counted(0, 0));
        let holder = LeaseHolder::start(&leased);
        within_seconds(120, "the volume is counted", || counted(0, 1));
        drop(holder);
        within_seconds(120, "it is audited again", || counted(0, 0));
    });
}

#[test]
fn a_file_that_cannot_get_a_project_leaves_the_volume_as_it_was() {
    on_xfs("a_file_that_cannot_get_a_project_leaves_the_volume_as_it_was", |pool| {
        let engine = open(pool);
        fs::create_dir_all(pool.join("volumes/v/data/leased")).unwrap();
        let v = data(pool, "v");
        fs::write(v.join("leased/file"), "").unwrap();
        fs::write(v.join("other"), "").unwrap();
        fs::write(volume_record(pool, "v"), record_of(&engine, pool)).unwrap();
        let holder = LeaseHolder::start(&v.join("leased"));
        let refused = engine.take_over(&id("v")).unwrap_err();
        // The holder of the lease is a user, or its file cannot be opened.
        assert!(refused.chain().contains("leased/file"), "{}", refused.chain());
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert_eq!(project_of(&v), OUTSIDE);
        fs::rename(v.join("other"), v.join("leased/other")).unwrap();
        drop(engine.hold(&id("v")).unwrap());
        assert!(engine.take_over(&id("v")).is_err(), "also at the next attempt");
        drop(holder);
        let project = engine.take_over(&id("v")).unwrap().unwrap().volume.backend.number("project");
        assert_eq!(audit(&engine, "v", false), Strays::default());
        assert_eq!(Some(u64::from(project_of(&v).id)), project);
        assert!(engine.take_over(&id("v")).unwrap().is_none(), "it has a project");
    });
}

/// The record of a volume that a pool of plain directories had.
fn record_of(engine: &Engine, pool: &Path) -> Vec<u8> {
    engine.create(&request("template", 0)).unwrap();
    edit_record(&volume_record(pool, "template"), |record| {
        drop(record.as_object_mut().unwrap().remove("backend"))
    });
    fs::read(volume_record(pool, "template")).unwrap()
}

#[test]
fn a_directory_that_is_adopted_gets_a_project_with_all_its_files() {
    on_xfs("a_directory_that_is_adopted_gets_a_project_with_all_its_files", |pool| {
        let srv = pool.parent().unwrap().join("srv/shop");
        fs::create_dir_all(srv.join("d/e")).unwrap();
        fs::write(srv.join("d/file"), "text").unwrap();
        std::os::unix::fs::symlink("d/file", srv.join("link")).unwrap();
        let pools = format!("p={}", pool.display());
        let ran = run(Command::new(ORLOP).arg("adopt").arg(&srv).args(["--pool", &pools]));
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "p/shop\n"), "{}", ran.stderr);
        let (engine, data) = (open(pool), data(pool, "shop"));
        assert_eq!(audit(&engine, "shop", false), Strays::default());
        assert_eq!(project_of(&data.join("d/e")), Project { id: id_of(pool, "shop"), is_inherited: true });
        for name in ["link", "d/file"] {
            fs::rename(data.join(name), data.join("d/e/moved")).unwrap();
            fs::rename(data.join("d/e/moved"), data.join(name)).unwrap();
        }
        assert_eq!(fs::read_to_string(data.join("link")).unwrap(), "text");
        // An unmanaged volume, too.
        fs::create_dir_all(pool.join("volumes/mine/data/d")).unwrap();
        let ran = run(Command::new(ORLOP).args(["adopt", "p/mine", "--pool", &pools]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(audit(&engine, "mine", false), Strays::default());
    });
}
