//! Copies that wait for their turn cost nothing but memory.

use std::time::Duration;

use orlop::engine::request::Tuning;
use orlop::error::Kind;

use crate::common::isolation::in_own_process;
use crate::common::pool::{
    MIB, clone_request, id, kind, memory_dir, names, open_with, request, snapshot_request,
};
use crate::common::wait::within_seconds;

/// The numbers of threads and of open descriptors of this process, without the 256 lock files of its pool.
fn threads_and_descriptors() -> (usize, usize) {
    let is_lock = |name: &String| {
        let file = std::fs::read_link(format!("/proc/self/fd/{name}")).unwrap_or_default();
        file.parent().is_some_and(|dir| dir.ends_with("locks"))
    };
    let descriptors = names("/proc/self/fd".as_ref()).into_iter().filter(|name| !is_lock(name)).count();
    (names("/proc/self/task".as_ref()).len(), descriptors)
}

#[test]
fn waiting_copies_hold_no_threads_and_no_descriptors() {
    in_own_process("load::waiting_copies::waiting_copies_hold_no_threads_and_no_descriptors", || {
        let dir = memory_dir();
        let no_turns = Tuning { copies: 0, copy_wait: Duration::ZERO, ..Tuning::default() };
        let engine = open_with(dir.path(), no_turns);
        engine.create(&request("v", MIB)).unwrap();
        // The threads that opened the pools have ended when their number is stable.
        within_seconds(60, "only the reaper and the test run", || threads_and_descriptors().0 <= 3);
        let before = threads_and_descriptors();
        for copy in 0..50 {
            let snapshot = engine.create_snapshot(&snapshot_request(&format!("s{copy}"), &id("v"))).unwrap();
            assert!(!snapshot.ready);
            assert_eq!(kind(engine.create(&clone_request(&format!("c{copy}"), &id("v")))), Kind::Busy);
        }
        assert_eq!((engine.active_jobs(), threads_and_descriptors()), (100, before));
        assert_eq!(engine.pools()[0].provisioned, 51 * MIB);
        // A copy that is cancelled gives back what is reserved for it.
        engine.delete(&id("c0")).unwrap();
        engine.delete_snapshot(&id("s0")).unwrap();
        assert_eq!((engine.active_jobs(), engine.pools()[0].provisioned), (98, 50 * MIB));
        engine.shutdown();
        assert_eq!((engine.active_jobs(), engine.pools()[0].provisioned), (0, MIB));
    });
}
