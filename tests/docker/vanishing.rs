//! Clients that close their connection in the middle of a call: the call goes on, and the same request can be repeated.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::protocol::{ID, mounts_below, with_plugin};
use crate::common::isolation::in_own_process;
use crate::common::plugin::{Client, Plugin};
use crate::common::wait::within_seconds;

/// Files of the volume that is copied: its copy takes much longer than a call.
const FILES: usize = 20_000;

/// The same for a copy that a stop waits for.
const FEW_FILES: usize = 5000;

/// Sends a request and does not read the answer.
fn send(client: &Client, method: &str, body: &Value) -> UnixStream {
    let body = body.to_string();
    let mut stream = client.connect().unwrap();
    let head =
        format!("POST /VolumeDriver.{method} HTTP/1.1\r\nHost: \r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
    stream
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Copies a volume for a client that vanishes, and for one that repeats the request.
fn vanish_during_a_copy(plugin: &Client, pool: &Path) {
    plugin.ok("Create", &json!({"Name": "v1"}));
    let data = pool.join("volumes/v1/data");
    (0..FILES).for_each(|number| fs::write(data.join(number.to_string()), "x").unwrap());
    let copy = |name: &str| json!({"Name": name, "Opts": {"from": "v1", "consistency": "none"}});
    let share = json!({"Name": "v2", "Opts": {"type": "nfs", "o": "addr=192.0.2.1", "device": ":/x"}});
    let stream = send(plugin, "Create", &copy("v2"));
    within_seconds(120, "the copy has begun", || entries(&pool.join("work")) > 0);
    drop(stream);
    // The server notices the end of the connection before it accepts another one, or soon.
    plugin.names();
    assert!(!pool.join("volumes/v2").exists(), "the copy is still being made");
    let error = plugin.error("Create", &share);
    assert!(error.contains("volume v2 is being created in pool p"), "{error}");
    plugin.ok("Create", &copy("v2"));
    assert_eq!(entries(&pool.join("volumes/v2/data")), FILES);
    // Without a repetition, it is completed, too.
    let stream = send(plugin, "Create", &copy("v3"));
    within_seconds(120, "the copy has begun", || entries(&pool.join("work")) > 0);
    drop(stream);
    within_seconds(120, "the copy is complete", || plugin.names() == ["v1", "v2", "v3"]);
    within_seconds(120, "nothing half made is left", || entries(&pool.join("work")) == 0);
    assert_eq!((entries(&pool.join("volumes")), entries(&pool.join("volumes/v3/data"))), (3, FILES));
    // No lock is left.
    for name in ["v1", "v2", "v3"] {
        plugin.ok("Remove", &json!({ "Name": name }));
    }
    plugin.ok("Create", &share);
    plugin.ok("Create", &json!({"Name": "v1"}));
    assert_eq!(plugin.names(), ["v1", "v2"]);
}

#[test]
fn a_copy_for_a_client_that_vanishes_goes_on_and_its_request_can_be_repeated() {
    let test = "vanishing::a_copy_for_a_client_that_vanishes_goes_on_and_its_request_can_be_repeated";
    with_plugin(test, |plugin, base| vanish_during_a_copy(plugin, &base.join("pool")));
}

#[test]
fn a_copy_is_completed_and_answered_before_the_server_stops() {
    let test = "vanishing::a_copy_is_completed_and_answered_before_the_server_stops";
    with_plugin(test, |plugin, base| {
        let pool = base.join("pool");
        plugin.ok("Create", &json!({"Name": "v1"}));
        let data = pool.join("volumes/v1/data");
        (0..FEW_FILES).for_each(|number| fs::write(data.join(number.to_string()), "x").unwrap());
        let copy = |name: &str| json!({"Name": name, "Opts": {"from": "v1", "consistency": "none"}});
        let mut stream = send(plugin, "Create", &copy("v2"));
        let made = |name: &str| pool.join("volumes").join(name).join("data");
        within_seconds(120, "the copy has begun", || entries(&pool.join("work")) > 0 || made("v2").exists());
        drop(send(plugin, "Create", &copy("v3")));
        plugin.terminate();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"HTTP/1.1 200 OK");
        assert_eq!(entries(&made("v2")), FEW_FILES);
        // Its request may have come too late.
        assert!(!made("v3").exists() || entries(&made("v3")) == FEW_FILES);
    });
}

#[test]
fn a_copy_of_a_worker_for_a_client_that_vanishes_goes_on_and_keeps_its_name() {
    let test = "a_copy_of_a_worker_for_a_client_that_vanishes_goes_on_and_keeps_its_name";
    in_own_process(&format!("docker::vanishing::{test}"), || {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir(base.join("pool")).unwrap();
        let pool = format!("[[pool]]\nname = \"p\"\npath = \"{}/pool\"\nisolated = true\n", base.display());
        fs::write(base.join("orlop.toml"), pool).unwrap();
        let plugin = Plugin::spawn(&base, &["--config", base.join("orlop.toml").to_str().unwrap()]);
        plugin.wait();
        vanish_during_a_copy(&plugin, &base.join("pool"));
    });
}

#[test]
fn a_volume_is_made_and_mounted_once_for_a_client_that_vanishes_at_any_moment() {
    let test = "vanishing::a_volume_is_made_and_mounted_once_for_a_client_that_vanishes_at_any_moment";
    with_plugin(test, |plugin, base| {
        let (create, mount) = (json!({"Name": "v1"}), json!({"Name": "v1", "ID": ID}));
        let targets = || mounts_below(&base.join("mounts"));
        for round in 0..50_u32 {
            for (method, request) in [("Create", &create), ("Mount", &mount)] {
                let started = Instant::now();
                let stream = send(plugin, method, request);
                while started.elapsed() < Duration::from_micros(200) * round {
                    std::hint::spin_loop();
                }
                drop(stream);
                plugin.ok(method, request);
            }
            assert_eq!(plugin.names(), ["v1"]);
            assert_eq!(targets(), [base.join("mounts/v1").join(ID)], "round {round}");
            // The first request may still be on its way.
            within_seconds(60, "the volume is unmounted", || {
                plugin.ok("Unmount", &mount);
                targets().is_empty()
            });
            assert_eq!((entries(&base.join("pool/volumes")), entries(&base.join("pool/work"))), (1, 0));
            plugin.ok("Remove", &create);
        }
    });
}
