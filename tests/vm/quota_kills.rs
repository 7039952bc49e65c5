//! Pools with project quotas whose change from plain directories is killed, and quotas that are switched off at the wrong moment.
//! Needs strace.
#![expect(clippy::disallowed_methods, reason = "runs orlop")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use orlop::volume::Enforced;

use super::quota_pools::{
    data, each_filesystem, id_of, new_filesystem, open, project_limits, quota, wait_until_reaped,
};
use crate::common::disk::run;
use crate::common::held::{check_fix_killed_at, create_if_told, create_while, has_strace};
use crate::common::isolation::in_own_process;
use crate::common::pool::{MIB, check, edit_record, id, names, read_record, request};
use crate::common::server::ORLOP;

const SIZE: u64 = 8 * MIB;

/// The system calls around the change of the marker, with the backend that a kill there leaves: the new marker is written and
/// synced, renamed, and made durable.
const KILLS: [(&str, usize, &str); 2] = [("renameat", 1, "dir"), ("fsync", 3, "quota")];

fn backend(pool: &Path) -> String {
    read_record(&pool.join("orlop.json"))["backend"].as_str().unwrap().to_owned()
}

#[test]
fn a_pool_whose_takeover_is_killed_at_its_marker_has_the_old_or_the_new_backend() {
    if !has_strace() {
        return;
    }
    each_filesystem(|name, pool| {
        drop(open(pool));
        edit_record(&pool.join("orlop.json"), |marker| marker["backend"] = "dir".into());
        open(pool).create(&request("v", SIZE)).unwrap();
        fs::write(data(pool, "v").join("kept"), "kept").unwrap();
        for (call, at, expected) in KILLS {
            assert_eq!(backend(pool), "dir", "{name}");
            assert!(check_fix_killed_at(pool, call, at), "{name}: {call} {at}: nothing was killed");
            assert_eq!(backend(pool), expected, "{name}: {call} {at}");
            let engine = open(pool);
            drop(engine.hold(&id("v")).unwrap());
            assert_eq!(engine.get(&id("v")).unwrap().enforced, Enforced::No, "{name}: {call} {at}");
            let enforced = if expected == "quota" { Enforced::Bytes } else { Enforced::No };
            let new = format!("new-{expected}");
            assert_eq!(
                engine.create(&request(&new, SIZE)).unwrap().enforced,
                enforced,
                "{name}: {call} {at}"
            );
        }
        let fixed =
            Command::new(ORLOP).args(["check", "--fix", "--pool", &format!("p={}", pool.display())]).output();
        let printed = String::from_utf8_lossy(&fixed.unwrap().stdout).into_owned();
        assert_eq!(printed.matches("is enforced from now on").count(), 2, "{name}: {printed}");
        let engine = open(pool);
        for volume in ["v", "new-dir", "new-quota"] {
            assert_eq!(engine.get(&id(volume)).unwrap().enforced, Enforced::Bytes, "{name}: {volume}");
            assert_eq!(quota(pool, id_of(pool, volume)).max_bytes, SIZE, "{name}: {volume}");
        }
        assert_eq!(fs::read(data(pool, "v").join("kept")).unwrap(), b"kept", "{name}");
        assert!(!pool.join("orlop.json.new").exists(), "{name}");
        check(&engine, pool);
    });
}

#[test]
fn child_process() {
    create_if_told();
}

#[test]
fn quotas_that_are_switched_off_during_a_create_fail_it_if_the_limit_must_hold() {
    let test = "vm::quota_kills::quotas_that_are_switched_off_during_a_create_fail_it_if_the_limit_must_hold";
    in_own_process(test, || {
        let dir = tempfile::tempdir().unwrap();
        // xfs_quota switches quotas off on xfs only.
        let name = "xfs";
        let at = dir.path().join(name);
        new_filesystem(name, &at);
        let pool = at.join("pool");
        fs::create_dir(&pool).unwrap();
        let engine = open(&pool);
        engine.create(&request("kept", SIZE)).unwrap();
        let before = project_limits(&pool);
        let switch = |word: &str| {
            run("xfs_quota", &["-f", "-x", "-c", &format!("{word} -p"), at.to_str().unwrap()]);
        };
        let Some(text) = create_while("vm::quota_kills::child_process", &pool, || switch("disable")) else {
            return;
        };
        assert!(
            text.contains("Unsupported, \"create volume p/new: limit=hard")
                && text.contains("quotas were switched off"),
            "{name}: {text}"
        );
        switch("enable");
        assert_eq!(names(&pool.join("volumes")), BTreeSet::from(["kept".to_owned()]), "{name}");
        // What a process leaves is removed by the process that serves the pool.
        drop(engine);
        let engine = open(&pool);
        wait_until_reaped(&engine, &pool);
        check(&engine, &pool);
        assert_eq!(project_limits(&pool), before, "{name}");
        drop(engine);
        let _ = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
    });
}
