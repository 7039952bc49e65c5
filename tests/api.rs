//! Tests of the engine, of copies, and of the program over its socket. They share one process.
//!
//! Tests that unmount are in the binary `mounts`: a process that is started at the same time inherits the descriptors
//! of this one until its `execve`, and they keep a mount busy.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

mod api {
    mod archive;
    mod audit;
    mod backup;
    mod btrfs;
    mod btrfs_limits;
    mod commands;
    mod copy;
    mod copy_update;
    mod csi;
    mod endless;
    mod engine;
    mod groups;
    mod hard_limits;
    mod hostile;
    mod listings;
    mod live_copy;
    mod many_hosts;
    mod pools;
    mod random_updates;
    mod records;
    mod removal;
    mod replace;
    mod semantics;
    mod shares;
    mod sharing;
    mod snapshot_cost;
    mod terminal;
    mod trees;
    mod upkeep;
    mod verbs;
    mod whole_copies;
}
