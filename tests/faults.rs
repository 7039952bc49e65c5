//! Tests of faults: failing system calls, kills, a full disk. They take long and start many processes.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

mod faults {
    mod alarms;
    mod btrfs_disk;
    mod connections;
    mod crash;
    mod frozen_disk;
    mod full_disk;
    mod hanging_docker;
    mod hanging_pool;
    mod killed_server;
    mod log;
    mod odd_disk;
    mod pause;
    mod pause_kills;
    mod paused_copies;
    mod phases;
    mod reaper;
    mod refusing_disk;
    mod takeover;
    mod workers;
}
