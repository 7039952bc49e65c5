//! The volume plugin while one of two pools hangs. An engine calls Get before everything else, and takes an error to mean that
//! the volume does not exist.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::hanging_pool::{Fuse, SLOW_POOL, is_installed};
use crate::common::isolation::{in_own_process, skip};
use crate::common::plugin::Plugin;
use crate::common::wait::within_seconds;

/// What an engine may have to wait for an answer about a volume that it knows.
const FAST: Duration = Duration::from_millis(100);

#[test]
fn volumes_of_a_pool_that_hangs_are_described_at_once_and_others_are_not_delayed() {
    let test = "volumes_of_a_pool_that_hangs_are_described_at_once_and_others_are_not_delayed";
    in_own_process(&format!("faults::hanging_docker::{test}"), || {
        if !is_installed() {
            return skip("bindfs is not installed");
        }
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir(base.join("ok")).unwrap();
        let pool = |name: &str, path: &str, more: &str| {
            format!("[[pool]]\nname = \"{name}\"\npath = \"{}\"\n{more}\n", base.join(path).display())
        };
        let config = base.join("orlop.toml");
        fs::write(&config, pool("ok", "ok", "") + &pool("slow", "mount", SLOW_POOL)).unwrap();
        let fuse = Fuse::start(&base, &[]);
        let plugin = Plugin::spawn(&base, &["--config", config.to_str().unwrap()]);
        plugin.wait();
        plugin.ok("Create", &json!({"Name": "v1", "Opts": {"pool": "slow"}}));
        plugin.ok("Mount", &json!({"Name": "v1", "ID": "a"}));
        fuse.send(Signal::STOP);
        let get = |name: &str| plugin.ok("Get", &json!({ "Name": name }))["Volume"].clone();
        let is_fast = |call: &dyn Fn()| {
            let started = Instant::now();
            call();
            started.elapsed() < FAST
        };
        let path = |name: &str| plugin.error("Path", &json!({ "Name": name }));
        // Before orlop knows that the pool hangs. An engine asks for each name that it is to create.
        let started = Instant::now();
        let error = path("v1");
        assert!(error.contains("pool slow has not responded"), "{error}");
        path("unknown");
        plugin.error("Get", &json!({"Name": "unknown"}));
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        let volume = get("v1");
        assert!(volume["Status"]["state"].as_str().unwrap().contains("pool slow"), "{volume}");
        within_seconds(60, "Get is fast", || is_fast(&|| drop(get("v1"))));
        assert_eq!(plugin.names(), ["v1"]);
        within_seconds(60, "List is fast", || is_fast(&|| drop(plugin.names())));
        within_seconds(60, "Path is fast", || is_fast(&|| drop(path("v1"))));
        plugin.ok("Create", &json!({"Name": "v2", "Opts": {"pool": "ok"}}));
        plugin.ok("Mount", &json!({"Name": "v2", "ID": "a"}));
        plugin.ok("Unmount", &json!({"Name": "v1", "ID": "a"}));
        plugin.ok("Unmount", &json!({"Name": "v2", "ID": "a"}));
        fuse.send(Signal::CONT);
        within_seconds(180, "the pool is used again", || get("v1")["Status"]["state"] == "ok");
        plugin.ok("Remove", &json!({"Name": "v1"}));
        assert_eq!(plugin.names(), ["v2"]);
    });
}
