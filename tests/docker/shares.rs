//! Shares of NFS servers as volumes, as far as they need no NFS. `tests/vm/docker.rs` mounts some.

use std::fs;
use std::thread;

use serde_json::json;

use super::protocol::{ID, with_plugin};
use crate::common::plugin::Plugin;
use crate::common::wait::within_seconds;

#[test]
fn a_share_is_recorded_described_and_forgotten() {
    with_plugin("shares::a_share_is_recorded_described_and_forgotten", |plugin, base| {
        let opts = json!({"type": "nfs", "o": "addr=192.0.2.1,rw,soft", "device": ":/export"});
        let share = json!({"Name": "nas", "Opts": opts});
        for _ in 0..2 {
            plugin.ok("Create", &share);
        }
        plugin.ok("Create", &json!({"Name": "v1"}));
        assert_eq!(plugin.names(), ["nas", "v1"]);
        assert_eq!(fs::read_dir(base.join("pool/volumes")).unwrap().count(), 1, "no volume of the pool");
        for _ in 0..2 {
            let volume = plugin.ok("Get", &json!({"Name": "nas"}))["Volume"].clone();
            assert_eq!((&volume["Name"], &volume["Mountpoint"]), (&json!("nas"), &json!(null)));
            assert!(volume["CreatedAt"].as_str().unwrap().ends_with('Z'), "{volume}");
            let status = json!({"type": "nfs", "share": "192.0.2.1:/export", "options": "addr=192.0.2.1,rw,soft",
                                "state": "ok", "users": []});
            assert_eq!(volume["Status"], status);
            assert_eq!(plugin.ok("Path", &json!({"Name": "nas"}))["Mountpoint"], json!(null));
            plugin.ok("Unmount", &json!({"Name": "nas", "ID": ID}));
            // Also after a restart.
            plugin.kill();
            *plugin = Plugin::start(base);
        }
        plugin.ok("Remove", &json!({"Name": "nas"}));
        assert_eq!(plugin.names(), ["v1"]);
        assert!(plugin.error("Get", &json!({"Name": "nas"})).contains("does not exist"));
        plugin.kill();
        *plugin = Plugin::start(base);
        assert_eq!(plugin.names(), ["v1"]);
    });
}

#[test]
fn a_name_is_that_of_one_volume_or_share() {
    with_plugin("shares::a_name_is_that_of_one_volume_or_share", |plugin, _| {
        let share =
            |name: &str, o: &str| json!({"Name": name, "Opts": {"type": "nfs", "o": o, "device": ":/x"}});
        plugin.ok("Create", &json!({"Name": "v1"}));
        plugin.ok("Create", &share("nas", "addr=nas"));
        for (request, expected) in [
            (share("v1", "addr=nas"), "volume p/v1 exists"),
            (share("nas", "addr=nas,ro"), "share nas exists with other options"),
            (json!({"Name": "nas"}), "a share nas exists"),
            (json!({"Name": "nas", "Opts": {"size": "1g"}}), "a share nas exists"),
            (share("a", "addr=nas"), "is not 2 to 64 letters"),
            (share("other", "addr=nas,nfsvers=2"), "version"),
        ] {
            let error = plugin.error("Create", &request);
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(plugin.names(), ["nas", "v1"]);
    });
}

#[test]
fn a_volume_and_a_share_that_are_created_at_once_never_both_get_the_name() {
    let test = "shares::a_volume_and_a_share_that_are_created_at_once_never_both_get_the_name";
    with_plugin(test, |plugin, base| {
        let client = plugin.at("orlop");
        for round in 0..200 {
            let name = format!("v{round}");
            let opts = json!({"type": "nfs", "o": "addr=192.0.2.1", "device": ":/x"});
            let share = json!({"Name": name, "Opts": opts}).to_string();
            let volume = json!({"Name": name}).to_string();
            let (share, volume) = thread::scope(|scope| {
                let share = scope.spawn(|| client.call("VolumeDriver.Create", &share));
                let volume = client.call("VolumeDriver.Create", &volume);
                (share.join().unwrap(), volume)
            });
            let has = |path: String| base.join(path).exists();
            let made = (has(format!("shares/orlop/{name}.json")), has(format!("pool/volumes/{name}")));
            assert_eq!(made, (share.0 == 200, volume.0 == 200), "{share:?} {volume:?}");
            assert!(made.0 != made.1, "{name}: {share:?} {volume:?}");
        }
    });
}

#[test]
fn a_share_whose_server_does_not_respond_is_refused_by_name_and_can_be_removed() {
    let test = "shares::a_share_whose_server_does_not_respond_is_refused_by_name_and_can_be_removed";
    with_plugin(test, |plugin, _| {
        // Nothing listens there.
        let opts = json!({"type": "nfs", "o": "addr=127.0.0.1,port=1", "device": ":/export"});
        plugin.ok("Create", &json!({"Name": "nas", "Opts": opts}));
        let error = plugin.error("Mount", &json!({"Name": "nas", "ID": ID}));
        assert!(error.contains("127.0.0.1"), "{error}");
        assert_eq!(plugin.ok("Get", &json!({"Name": "nas"}))["Volume"]["Mountpoint"], json!(null));
        plugin.ok("Remove", &json!({"Name": "nas"}));
        assert!(plugin.names().is_empty());
    });
}

#[test]
fn a_damaged_record_of_a_share_affects_that_share_only() {
    with_plugin("shares::a_damaged_record_of_a_share_affects_that_share_only", |plugin, base| {
        plugin.kill();
        fs::create_dir_all(base.join("shares/orlop")).unwrap();
        fs::write(base.join("shares/orlop/bad.json"), "{").unwrap();
        *plugin = Plugin::start(base);
        plugin.ok("Create", &json!({"Name": "v1"}));
        assert_eq!(plugin.names(), ["bad", "v1"]);
        let volume = plugin.ok("Get", &json!({"Name": "bad"}))["Volume"].clone();
        assert!(
            volume["Status"]["state"].as_str().unwrap().contains("bad.json of share bad cannot be read"),
            "{volume}"
        );
        assert!(plugin.error("Mount", &json!({"Name": "bad", "ID": ID})).contains("bad.json"));
        plugin.ok("Remove", &json!({"Name": "bad"}));
        within_seconds(60, "it is forgotten", || plugin.names() == ["v1"]);
    });
}
