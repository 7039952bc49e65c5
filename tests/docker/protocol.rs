//! The calls of the protocol, as an engine makes them, and as a broken client does.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use serde_json::json;

use crate::common::container::Program;
use crate::common::isolation::in_own_process;
use crate::common::plugin::Plugin;
use crate::common::pool::{edit_record, read_record, volume_record};
use crate::common::wait::within_seconds;

/// An id as Docker makes it.
pub(super) const ID: &str = "9c1185a5c5e9fc54612808977ee8f548b2258d319d4fb1cba7c9f3b6b4a0ee11";

/// Runs the body of a test in a mount namespace of its own, with a server of the pool `p` in a new directory.
pub(super) fn with_plugin(test: &str, body: impl FnOnce(&mut Plugin, &Path)) {
    in_own_process(&format!("docker::{test}"), || {
        let dir = tempfile::tempdir().unwrap();
        // The mount table has no symbolic links.
        let base = dir.path().canonicalize().unwrap();
        let mut plugin = Plugin::start(&base);
        body(&mut plugin, &base);
        plugin.kill();
        unmount_below(&base.join("mounts"));
        unmount_below(&base.join("mounts-global"));
    });
}

/// The mount points below a directory.
pub(super) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let targets = table.lines().map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
    targets.filter(|target| target.starts_with(dir)).collect()
}

fn unmount_below(dir: &Path) {
    for target in mounts_below(dir) {
        let _ = rustix::mount::unmount(&target, UnmountFlags::DETACH);
    }
}

#[test]
fn a_volume_is_created_mounted_described_and_removed() {
    with_plugin("protocol::a_volume_is_created_mounted_described_and_removed", |plugin, base| {
        assert_eq!(plugin.call("Plugin.Activate", "").1["Implements"], json!(["VolumeDriver"]));
        assert_eq!(plugin.ok("Capabilities", &json!({}))["Capabilities"]["Scope"], "local");
        assert!(plugin.error("Get", &json!({"Name": "v1"})).contains("volume \"v1\" does not exist"));
        let opts = json!({"size": "10", "mode": "0750", "ondelete": "trash", "label.team": "a"});
        plugin.ok("Create", &json!({"Name": "v1", "Opts": opts}));
        let mounted = plugin.ok("Mount", &json!({"Name": "v1", "ID": ID}));
        let at = PathBuf::from(mounted["Mountpoint"].as_str().unwrap());
        assert_eq!(at, base.join("mounts/v1").join(ID));
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o750);
        fs::write(at.join("file"), "data").unwrap();
        assert_eq!(fs::read_to_string(base.join("pool/volumes/v1/data/file")).unwrap(), "data");
        assert_eq!(plugin.ok("Path", &json!({"Name": "v1"}))["Mountpoint"], json!(at));
        let mut volume = json!(null);
        within_seconds(120, "the volume is described in time, with its usage", || {
            volume = plugin.ok("Get", &json!({"Name": "v1"}))["Volume"].take();
            volume["Status"]["used"].is_number()
        });
        assert_eq!((&volume["Name"], &volume["Mountpoint"]), (&json!("v1"), &json!(at)));
        assert!(volume["CreatedAt"].as_str().unwrap().ends_with('Z'), "{volume}");
        let status = &volume["Status"];
        assert_eq!((&status["pool"], &status["size"]), (&json!("p"), &json!(10_u64 << 30)));
        assert_eq!((&status["enforced"], &status["state"]), (&json!("no"), &json!("ok")));
        assert_eq!((&status["users"], &status["snapshots"]), (&json!([]), &json!([])));
        assert_eq!((&status["labels"], &status["health"]), (&json!({"team": "a"}), &json!([])));
        assert_eq!(plugin.names(), ["v1"]);
        plugin.ok("Unmount", &json!({"Name": "v1", "ID": ID}));
        assert!(!at.exists());
        assert_eq!(plugin.ok("Path", &json!({"Name": "v1"}))["Mountpoint"], json!(null));
        plugin.ok("Remove", &json!({"Name": "v1"}));
        assert!(plugin.names().is_empty());
        assert!(!base.join("mounts/v1").exists());
        assert_eq!(fs::read_dir(base.join("pool/trash")).unwrap().count(), 1, "by the policy of the volume");
    });
}

#[test]
fn the_status_of_a_volume_says_what_is_wrong_with_it() {
    with_plugin("protocol::the_status_of_a_volume_says_what_is_wrong_with_it", |plugin, base| {
        plugin.ok("Create", &json!({"Name": "v1", "Opts": {"size": "1m"}}));
        fs::write(base.join("pool/volumes/v1/data/file"), vec![1; 2 << 20]).unwrap();
        within_seconds(120, "the volume is larger than its size", || {
            let volume = plugin.ok("Get", &json!({"Name": "v1"}));
            let health = volume["Volume"]["Status"]["health"][0].as_str().unwrap_or_default().to_owned();
            health.contains("more than its size of 1Mi")
        });
    });
}

#[test]
fn the_same_name_with_other_options_is_refused() {
    with_plugin("protocol::the_same_name_with_other_options_is_refused", |plugin, base| {
        let create = |opts| json!({"Name": "v1", "Opts": opts});
        let opts = json!({"size": "10m", "ondelete": "retain", "label.a": "b"});
        plugin.ok("Create", &create(opts.clone()));
        plugin.ok("Create", &create(opts));
        plugin.ok("Create", &create(json!(null)));
        for (opts, expected) in [
            (json!({"size": "20m"}), "volume p/v1 exists with size"),
            (json!({"uid": "7"}), "volume p/v1 exists with owner"),
            (json!({"ondelete": "delete"}), "volume p/v1 exists with other options (ondelete"),
            (json!({"label.a": "c"}), "volume p/v1 exists with other options (labels)"),
        ] {
            let error = plugin.error("Create", &create(opts));
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(read_record(&volume_record(&base.join("pool"), "v1"))["size"], json!(10 << 20));
    });
}

#[test]
fn a_volume_is_copied_from_a_volume_or_a_snapshot() {
    with_plugin("protocol::a_volume_is_copied_from_a_volume_or_a_snapshot", |plugin, base| {
        plugin.ok("Create", &json!({"Name": "v1"}));
        fs::write(base.join("pool/volumes/v1/data/file"), "data").unwrap();
        let from =
            |name: &str, from: &str| json!({"Name": name, "Opts": {"from": from, "consistency": "none"}});
        plugin.ok("Create", &from("v2", "v1"));
        plugin.ok("Create", &from("v2", "p/v1"));
        assert_eq!(fs::read_to_string(base.join("pool/volumes/v2/data/file")).unwrap(), "data");
        let error = plugin.error("Create", &from("v3", "none"));
        assert!(error.contains("no volume and no snapshot \"none\" exists"), "{error}");
        assert_eq!(plugin.names(), ["v1", "v2"]);
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tar and mkfifo are processes")]
fn a_volume_is_made_from_an_archive() {
    with_plugin("protocol::a_volume_is_made_from_an_archive", |plugin, base| {
        let (tree, archive, fifo) = (base.join("tree"), base.join("a.tar.gz"), base.join("fifo"));
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), "data").unwrap();
        let tar = Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&tree).arg(".").status();
        assert!(tar.unwrap().success());
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let from = |name: &str, from: &Path| json!({"Name": name, "Opts": {"from": from, "size": "10m"}});
        plugin.ok("Create", &from("v1", &archive));
        assert_eq!(fs::read_to_string(base.join("pool/volumes/v1/data/file")).unwrap(), "data");
        assert_eq!(read_record(&volume_record(&base.join("pool"), "v1"))["size"], json!(10 << 20));
        for (name, path, expected) in [
            ("v1", &archive, "volume p/v1 already exists"),
            ("v2", &base.join("missing.tar"), "missing.tar: there is no such file"),
            ("v2", &fifo, "fifo: it is not a file"),
            ("v2", &tree, "tree: it is not a file"),
            ("v2", &tree.join("file"), "the archive ends too early"),
        ] {
            let error = plugin.error("Create", &from(name, path));
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(plugin.names(), ["v1"]);
    });
}

#[test]
fn the_page_names_every_option_and_every_field_of_the_status() {
    with_plugin("protocol::the_page_names_every_option_and_every_field_of_the_status", |plugin, _| {
        let page = fs::read_to_string("docs/docker.md").unwrap();
        let error = plugin.error("Create", &json!({"Name": "v1", "Opts": {"colour": "red"}}));
        let known = error.split("the options are ").nth(1).unwrap();
        let mut known: Vec<_> = known.split(", ").map(|option| option.trim().to_lowercase()).collect();
        let rows = page.lines().filter(|line| line.starts_with("| `"));
        let words = rows.flat_map(|row| row.split(" | ").next().unwrap().split('`').skip(1).step_by(2));
        let mut shown: Vec<_> =
            words.filter_map(|word| word.split_once('=')).map(|(option, _)| option.to_lowercase()).collect();
        for names in [&mut known, &mut shown] {
            names.sort();
            names.dedup();
        }
        assert_eq!(shown, known);
        plugin.ok("Create", &json!({"Name": "v1"}));
        let volume = plugin.ok("Get", &json!({"Name": "v1"}))["Volume"].clone();
        for field in volume["Status"].as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{field}`")), "docs/docker.md does not name {field}");
        }
    });
}

#[test]
fn an_anonymous_volume_is_labelled() {
    with_plugin("protocol::an_anonymous_volume_is_labelled", |plugin, base| {
        for (name, opts) in [(ID, json!(null)), (&"0f".repeat(32), json!({"size": "1m"}))] {
            plugin.ok("Create", &json!({"Name": name, "Opts": opts}));
            let record = read_record(&volume_record(&base.join("pool"), name));
            assert_eq!(record["labels"], json!({"com.docker.volume.anonymous": ""}), "{opts}");
        }
    });
}

#[test]
fn mounts_survive_kills_and_calls_are_idempotent() {
    with_plugin("protocol::mounts_survive_kills_and_calls_are_idempotent", |plugin, base| {
        plugin.ok("Create", &json!({"Name": "v1"}));
        let mount = json!({"Name": "v1", "ID": ID});
        let at = plugin.ok("Mount", &mount)["Mountpoint"].clone();
        plugin.kill();
        assert_eq!(mounts_below(&base.join("mounts")).len(), 1);
        *plugin = Plugin::start(base);
        assert_eq!(plugin.ok("Path", &json!({"Name": "v1"}))["Mountpoint"], at);
        assert_eq!(plugin.ok("Mount", &mount)["Mountpoint"], at, "again");
        assert_eq!(mounts_below(&base.join("mounts")).len(), 1, "one mount for each user");
        plugin.ok("Mount", &json!({"Name": "v1", "ID": "other"}));
        plugin.terminate();
        assert!(!base.join("plugins/orlop.sock").exists(), "engines wait long for a dead socket");
        *plugin = Plugin::start(base);
        plugin.ok("Unmount", &mount);
        plugin.ok("Unmount", &mount);
        assert_eq!(mounts_below(&base.join("mounts")), [base.join("mounts/v1/other")]);
        plugin.ok("Unmount", &json!({"Name": "v1", "ID": "unknown"}));
        plugin.ok("Unmount", &json!({"Name": "unknown", "ID": ID}));
        plugin.ok("Unmount", &json!({"Name": "../v1", "ID": "../.."}));
        plugin.ok("Mount", &json!({"Name": "v1", "ID": "../.."}));
        let all = mounts_below(base);
        assert_eq!(all.iter().filter(|target| target.parent() == Some(&base.join("mounts/v1"))).count(), 2);
        assert_eq!(all.len(), 2, "{all:?}");
    });
}

#[test]
fn a_volume_in_use_is_not_removed_and_forgotten_mounts_do_not_count() {
    let test = "protocol::a_volume_in_use_is_not_removed_and_forgotten_mounts_do_not_count";
    with_plugin(test, |plugin, base| {
        plugin.ok("Create", &json!({"Name": "v1"}));
        let at = plugin.ok("Mount", &json!({"Name": "v1", "ID": ID}))["Mountpoint"].clone();
        let container = base.join("container");
        fs::create_dir(&container).unwrap();
        rustix::mount::mount_bind(at.as_str().unwrap(), &container).unwrap();
        let error = plugin.error("Remove", &json!({"Name": "v1"}));
        assert!(error.contains("volume p/v1 is in use by a mount at"), "{error}");
        assert!(error.contains(container.to_str().unwrap()), "{error}");
        assert!(Path::new(at.as_str().unwrap()).exists(), "nothing was unmounted");
        rustix::mount::unmount(&container, UnmountFlags::empty()).unwrap();
        // The engine was killed, and never unmounts.
        plugin.ok("Remove", &json!({"Name": "v1"}));
        assert!(mounts_below(&base.join("mounts")).is_empty());
        assert!(plugin.names().is_empty());
    });
}

#[test]
fn names_and_options_that_cannot_work_are_refused() {
    with_plugin("protocol::names_and_options_that_cannot_work_are_refused", |plugin, base| {
        for name in ["a", "../x", "a b", "ünï", "-rf", &"x".repeat(255)] {
            let error = plugin.error("Create", &json!({"Name": name}));
            assert!(error.contains("is not 2 to 64 letters"), "{error}");
            assert!(plugin.error("Get", &json!({"Name": name})).contains("does not exist"));
            assert!(plugin.error("Remove", &json!({"Name": name})).contains("does not exist"));
            assert!(plugin.error("Mount", &json!({"Name": name, "ID": ID})).contains("does not exist"));
        }
        for (opts, expected) in [
            (json!({"type": "nfs", "o": "rw", "device": ":/export"}), "option o: it names no server"),
            (json!({"type": "cifs", "device": "//nas/x"}), "SMB shares are not supported yet"),
            (json!({"pool": "none"}), "pool none does not exist; the configured pools are: p"),
            (json!({"colour": "red"}), "unknown option \"colour\""),
        ] {
            let error = plugin.error("Create", &json!({"Name": "v1", "Opts": opts}));
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(fs::read_dir(base.join("pool/volumes")).unwrap().count(), 0);
    });
}

#[test]
fn broken_requests_get_an_error_and_delay_no_other() {
    with_plugin("protocol::broken_requests_get_an_error_and_delay_no_other", |plugin, _| {
        let (status, answer) = plugin.call("VolumeDriver.Create", "");
        assert_eq!(status, 500);
        assert!(answer["Err"].as_str().unwrap().contains("names no volume"), "{answer}");
        for (method, body) in [
            ("VolumeDriver.Get", "[]"),
            ("VolumeDriver.Get", "\u{0}"),
            ("VolumeDriver.Rename", "{}"),
            ("../../etc/passwd", ""),
        ] {
            let (status, answer) = plugin.call(method, body);
            assert_eq!(status, 500, "{answer}");
        }
        assert_eq!(plugin.send(b"GET /VolumeDriver.List HTTP/1.0\r\n\r\n").0, 500);
        assert_eq!(plugin.send(b"\x16\x03\x01 nonsense\r\n\r\n").0, 400);
        let slow: Vec<_> = (0..50)
            .map(|_| {
                let mut stream = plugin.connect().unwrap();
                let head = b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
                stream.write_all(head).unwrap();
                stream
            })
            .collect();
        let large = "x".repeat(2 << 20);
        let head =
            format!("POST /VolumeDriver.Get HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", large.len());
        let (status, body) = plugin.send((head + &large).as_bytes());
        assert!(status == 500 && body.contains("larger than 1048576 bytes"), "{status} {body}");
        plugin.ok("Create", &json!({"Name": "v1"}));
        drop(slow);
        assert_eq!(plugin.names(), ["v1"]);
    });
}

#[test]
fn volumes_of_other_processes_and_damaged_ones_are_known() {
    with_plugin("protocol::volumes_of_other_processes_and_damaged_ones_are_known", |plugin, base| {
        let other =
            Plugin::spawn(&base.join("other"), &[&format!("--pool=p={}", base.join("pool").display())]);
        other.wait();
        other.ok("Create", &json!({"Name": "v1"}));
        assert_eq!(plugin.ok("Get", &json!({"Name": "v1"}))["Volume"]["Name"], "v1");
        other.ok("Create", &json!({"Name": "v2"}));
        within_seconds(120, "the other volume is listed", || plugin.names() == ["v1", "v2"]);
        other.ok("Remove", &json!({"Name": "v1"}));
        assert!(plugin.error("Get", &json!({"Name": "v1"})).contains("does not exist"));
        edit_record(&volume_record(&base.join("pool"), "v2"), |record| record["schema"] = json!(99));
        let volume = plugin.ok("Get", &json!({"Name": "v2"}))["Volume"].clone();
        assert!(volume["Status"]["state"].as_str().unwrap() != "ok", "{volume}");
    });
}

#[test]
fn a_volume_of_a_pool_that_is_gone_is_still_known() {
    with_plugin("protocol::a_volume_of_a_pool_that_is_gone_is_still_known", |plugin, base| {
        plugin.ok("Create", &json!({"Name": "v1"}));
        fs::rename(base.join("pool"), base.join("gone")).unwrap();
        let volume = plugin.ok("Get", &json!({"Name": "v1"}))["Volume"].clone();
        assert_eq!((&volume["Name"], &volume["Status"]["pool"]), (&json!("v1"), &json!("p")));
        assert!(volume["Status"]["state"].as_str().unwrap().contains("pool p"), "{volume}");
        assert_eq!(plugin.names(), ["v1"]);
        assert!(plugin.error("Mount", &json!({"Name": "v1", "ID": ID})).contains("pool p"));
        assert!(plugin.error("Get", &json!({"Name": "v2"})).contains("does not exist"));
        fs::rename(base.join("gone"), base.join("pool")).unwrap();
        plugin.ok("Mount", &json!({"Name": "v1", "ID": ID}));
    });
}

#[test]
fn docker_is_served_when_all_pools_are_available() {
    in_own_process("docker::protocol::docker_is_served_when_all_pools_are_available", || {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir(base.join("pool")).unwrap();
        let pools = format!("--pool=p={0}/pool,q={0}/missing", base.display());
        let csi = base.join("csi.sock");
        let plugin = Plugin::spawn(&base, &[&pools, "--csi", csi.to_str().unwrap()]);
        within_seconds(120, "CSI is served meanwhile", || csi.exists());
        plugin.wait_for_log("Docker is not served until all pools are available");
        assert!(plugin.connect().is_none(), "an engine must not be told that a volume does not exist");
        fs::create_dir(base.join("missing")).unwrap();
        plugin.wait();
        plugin.ok("Create", &json!({"Name": "v1", "Opts": {"pool": "q"}}));
        assert!(base.join("missing/volumes/v1/data").exists());
    });
}

#[test]
fn volumes_of_an_isolated_pool_are_served() {
    in_own_process("docker::protocol::volumes_of_an_isolated_pool_are_served", || {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir(base.join("pool")).unwrap();
        let pool = format!("[[pool]]\nname = \"p\"\npath = \"{}/pool\"\nisolated = true\n", base.display());
        fs::write(base.join("orlop.toml"), pool).unwrap();
        let plugin = Plugin::spawn(&base, &["--config", base.join("orlop.toml").to_str().unwrap()]);
        plugin.wait();
        plugin.ok("Create", &json!({"Name": "v1", "Opts": {"size": "1m"}}));
        let at = plugin.ok("Mount", &json!({"Name": "v1", "ID": ID}))["Mountpoint"].clone();
        assert_eq!(plugin.ok("Path", &json!({"Name": "v1"}))["Mountpoint"], at);
        assert_eq!(plugin.names(), ["v1"]);
        plugin.ok("Remove", &json!({"Name": "v1"}));
        assert!(mounts_below(&base.join("mounts")).is_empty());
        assert!(plugin.names().is_empty());
    });
}

#[test]
fn an_unmanaged_volume_is_mounted_and_never_removed() {
    with_plugin("protocol::an_unmanaged_volume_is_mounted_and_never_removed", |plugin, base| {
        fs::create_dir_all(base.join("pool/volumes/mine/data")).unwrap();
        within_seconds(120, "the volume is listed", || plugin.names() == ["mine"]);
        plugin.ok("Mount", &json!({"Name": "mine", "ID": ID}));
        let error = plugin.error("Remove", &json!({"Name": "mine"}));
        assert!(error.contains("unmanaged and is never deleted"), "{error}");
        assert_eq!(mounts_below(&base.join("mounts")).len(), 1);
        // A read-only bind mount elsewhere is a user, too.
        let other = base.join("other");
        fs::create_dir(&other).unwrap();
        let data = base.join("pool/volumes/mine/data");
        rustix::mount::mount(&data, &other, "", MountFlags::BIND, None).unwrap();
        within_seconds(120, "the user is shown", || {
            let volume = plugin.ok("Get", &json!({"Name": "mine"}));
            volume["Volume"]["Status"]["users"][0].as_str().is_some_and(|user| user.contains("other"))
        });
        rustix::mount::unmount(&other, UnmountFlags::empty()).unwrap();
    });
}

/// Starts a process with a mount namespace of its own, which receives the mounts of the test's, and waits until `script` has
/// run there.
fn in_receiving_namespace(base: &Path, script: &str) -> Program {
    let script = format!(
        "exec unshare --mount --propagation slave sh -ec 'cd {}; {script}; echo ready; read end'",
        base.display()
    );
    Program::run(&script)
}

#[test]
fn copies_of_a_forgotten_mount_in_other_containers_do_not_count() {
    with_plugin("protocol::copies_of_a_forgotten_mount_in_other_containers_do_not_count", |plugin, base| {
        rustix::mount::mount_bind(base, base).unwrap();
        rustix::mount::mount_change(base, MountPropagationFlags::SHARED).unwrap();
        fs::create_dir(base.join("host")).unwrap();
        // The pool was opened through the mount below.
        plugin.kill();
        *plugin = Plugin::start(base);
        plugin.ok("Create", &json!({"Name": "v1"}));
        let tree = format!("mount --rbind {0} host; mount --make-rslave host", base.display());
        // A container with the host's file tree, and a service whose namespace propagates to others.
        let copies =
            [in_receiving_namespace(base, &tree), in_receiving_namespace(base, "mount --make-rshared /")];
        let at = plugin.ok("Mount", &json!({"Name": "v1", "ID": ID}))["Mountpoint"].clone();
        let users = || plugin.ok("Get", &json!({"Name": "v1"}))["Volume"]["Status"]["users"].clone();
        within_seconds(120, "the volume is described without users", || users() == json!([]));
        let bind =
            format!("mkdir -p data; mount --bind {} data; mount --make-rslave data", at.as_str().unwrap());
        let container = in_receiving_namespace(base, &bind);
        let error = plugin.error("Remove", &json!({"Name": "v1"}));
        assert!(error.contains(&format!("in use by process {}", container.pid())), "{error}");
        drop(container);
        // The engine was killed, and never unmounts.
        plugin.ok("Remove", &json!({"Name": "v1"}));
        assert!(plugin.names().is_empty());
        drop(copies);
        plugin.kill();
        unmount_below(base);
    });
}
