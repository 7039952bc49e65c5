//! A pool on a filesystem that is really full: what needs room says so and leaves nothing, and deleting works.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "ground/pool.rs"]
mod ground;
#[path = "ground/mounts.rs"]
mod mounts;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use ground::{check, contents, copy_of, cut, id, names, request, settings};
use orlop::engine::Engine;
use orlop::engine::request::PoolSettings;
use orlop::error::{Error, Kind};
use orlop::volume::{OnDelete, PolicyChange, SizeRange, Source};
use rustix::mount::{MountFlags as Bits, MountPropagationFlags as Propagation, UnmountFlags};

/// Runs `test` with a small filesystem in memory, in a thread with a mount namespace of its own.
fn on_a_small_disk(options: &std::ffi::CStr, test: impl FnOnce(&Path) + Send) {
    if !mounts::possible() {
        return;
    }
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            mounts::enter_new_namespace(Propagation::PRIVATE);
            let dir = tempfile::tempdir().unwrap();
            rustix::mount::mount("tmpfs", dir.path(), "tmpfs", Bits::empty(), options).unwrap();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(dir.path())));
            while rustix::mount::unmount(dir.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Its ledger lets everything through, so that the filesystem has to say no.
fn open(pool: &Path) -> Engine {
    let settings = PoolSettings { overcommit_percent: 1000, ..settings(pool) };
    Engine::open(vec![settings], ground::patient()).unwrap()
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    while file.write_all(&[1]).is_ok() {}
}

fn no_space<T: std::fmt::Debug>(answer: Result<T, Error>, name: &str) {
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain());
    let text = error.chain();
    // By the filesystem, or by the ledger that has asked it.
    let clear = text.contains("No space left") && text.contains(name) || text.contains("pool p is full");
    assert!(clear, "{text}");
}

#[test]
fn a_disk_filled_to_the_brim_is_said_and_can_be_emptied() {
    on_a_small_disk(c"size=4m,mode=755", |pool| {
        let engine = open(pool);
        for name in ["a", "b"] {
            engine.create(&request(name, 0)).unwrap();
            fs::write(pool.join("volumes").join(name).join("data/file"), vec![7; 100_000]).unwrap();
        }
        engine.create_snapshot(&cut("s", &id("a"))).unwrap();
        fill(&pool.join("volumes/b/data/fill"));
        let before = contents(pool);
        for _ in 0..3 {
            no_space(engine.create(&request("new", 0)), "new");
            no_space(engine.create(&copy_of("new", Source::Volume(id("a")))), "new");
            no_space(engine.create(&copy_of("new", Source::Snapshot(id("s")))), "new");
            no_space(engine.create_snapshot(&cut("t", &id("a"))), "t");
            no_space(engine.expand(&id("a"), SizeRange { required: 1, limit: 0 }), "volumes/a");
            let change = PolicyChange { on_delete: Some(OnDelete::Retain), ..PolicyChange::default() };
            no_space(engine.modify(&id("a"), change), "volumes/a");
            assert!(engine.wait_idle(Duration::from_secs(10)));
        }
        assert_eq!(contents(pool), before, "all is as it was");
        assert_eq!(engine.pools()[0].provisioned, 0);
        check(&engine, pool);
        // It can be opened when full, and emptied.
        drop(engine);
        let engine = open(pool);
        check(&engine, pool);
        engine.delete_snapshot(&id("s")).unwrap();
        engine.delete(&id("b")).unwrap();
        assert!(engine.wait_idle(Duration::from_secs(10)));
        assert_eq!(names(&pool.join("trash")).len(), 0);
        engine.create(&copy_of("new", Source::Volume(id("a")))).unwrap();
        engine.expand(&id("a"), SizeRange { required: 1, limit: 0 }).unwrap();
        check(&engine, pool);
    });
}

#[test]
fn a_disk_without_inodes_is_said_and_can_be_emptied() {
    on_a_small_disk(c"size=64m,nr_inodes=64,mode=755", |pool| {
        let engine = open(pool);
        engine.create(&request("a", 0)).unwrap();
        engine.create(&request("b", 0)).unwrap();
        let data = pool.join("volumes/b/data");
        let made = (0..64).take_while(|which| fs::write(data.join(which.to_string()), "").is_ok()).count();
        assert!(made > 10);
        let before = contents(pool);
        no_space(engine.create(&request("new", 0)), "new");
        no_space(engine.create_snapshot(&cut("t", &id("a"))), "t");
        no_space(engine.expand(&id("a"), SizeRange { required: 1, limit: 0 }), "volumes/a");
        // FsStats for a folder and its data, not for the record.
        for spare in 1..4 {
            fs::remove_file(data.join(spare.to_string())).unwrap();
            if spare < 3 {
                no_space(engine.create(&request("new", 0)), "new");
            } else {
                engine.create(&request("new", 0)).unwrap();
                engine.delete(&id("new")).unwrap();
            }
            assert!(engine.wait_idle(Duration::from_secs(10)));
            check(&engine, pool);
        }
        assert_eq!(contents(pool).len(), before.len() - 3);
        engine.delete(&id("b")).unwrap();
        assert!(engine.wait_idle(Duration::from_secs(10)));
        engine.create_snapshot(&cut("t", &id("a"))).unwrap();
        check(&engine, pool);
    });
}
