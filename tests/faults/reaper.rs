//! A deleted volume that cannot be removed delays the removal of no other, in its pool or elsewhere.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::volume::VolumeId;
use rustix::fs::{Mode, OFlags, mkdirat, openat};

use crate::common::isolation::{is_root, on_own_tmpfs};
use crate::common::pool::{long_waits, memory_dir, names, request, settings_of};
use crate::common::wait::{StopOnDrop, sleep_ms, within_seconds};

const WRITERS: usize = 3;
/// Inodes of the filesystem that the writers keep full.
const INODES: u64 = 20_000;

/// Creates files and directories until `stop` is set, like a process that got the directory's descriptor from a pod and
/// outlives it. `created` counts them.
fn keep_writing(dir: &File, created: &AtomicU64, stop: &AtomicBool) {
    let (flags, mode) = (OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    while !stop.load(Ordering::Relaxed) {
        let number = created.fetch_add(1, Ordering::Relaxed);
        // Fails while the filesystem is full, and when the directory does not exist any more.
        if number.is_multiple_of(10) {
            let _ = mkdirat(dir, number.to_string(), Mode::RWXU);
        } else {
            let _ = openat(dir, number.to_string(), flags, mode);
        }
    }
}

fn create(engine: &Engine, pool: &str, name: &str) -> VolumeId {
    let mut request = request(name, 0);
    request.pool = Some(pool.parse().unwrap());
    engine.create(&request).unwrap().id
}

fn removal_of_others(first: &Path) {
    let second = memory_dir();
    let pools = vec![settings_of("p", first), settings_of("q", second.path())];
    let engine = Engine::open(pools, long_waits()).unwrap();
    let trash = || [first, second.path()].map(|pool| names(&pool.join("trash")).len() as u64);
    let gauges = || engine.pools().iter().map(|pool| pool.trash).collect::<Vec<_>>();
    let growing = create(&engine, "p", "growing");
    let others = [("p", "a"), ("p", "b"), ("q", "c")].map(|(pool, name)| create(&engine, pool, name));
    let data = File::open(first.join("volumes/growing/data")).unwrap();
    let (created, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..WRITERS {
            scope.spawn(|| keep_writing(&data, &created, &stop));
        }
        within_seconds(180, "the filesystem is full", || created.load(Ordering::Relaxed) > INODES);
        engine.delete(&growing).unwrap();
        // Until the reaper is in the middle of it.
        sleep_ms(500);
        assert_eq!(gauges(), [1, 0], "the entry that is being removed counts");
        others.iter().for_each(|id| engine.delete(id).unwrap());
        within_seconds(180, "the others are removed", || trash() == [1, 0]);
        within_seconds(180, "they are no longer counted", || gauges() == [1, 0]);
        assert!(engine.pools().iter().all(|pool| pool.trash_failure.is_none()));
    });
    assert!(engine.wait_for_reaper(Duration::from_secs(120)));
    assert_eq!((trash(), gauges()), ([0, 0], vec![0, 0]));
}

#[test]
fn a_volume_that_grows_while_it_is_removed_delays_no_other() {
    if is_root() {
        on_own_tmpfs(c"nr_inodes=20000,mode=755", removal_of_others);
    }
}
