//! The sockets of the plugin: one for volumes of several hosts, and those that systemd passes.
#![expect(clippy::disallowed_methods, reason = "the program under test is a process")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::protocol::{ID, with_plugin};
use crate::common::isolation::in_own_process;
use crate::common::plugin::Plugin;
use crate::common::server::ORLOP;

#[test]
fn pools_of_several_hosts_are_served_with_the_scope_global() {
    with_plugin("endpoints::pools_of_several_hosts_are_served_with_the_scope_global", |plugin, base| {
        plugin.kill();
        let (own, common) = (base.join("pool"), base.join("common"));
        fs::create_dir(&common).unwrap();
        let config = base.join("orlop.toml");
        let pools = format!(
            "[[pool]]\nname = \"p\"\npath = {own:?}\n\n[[pool]]\nname = \"nas\"\npath = {common:?}\nshared = true\n"
        );
        fs::write(&config, pools).unwrap();
        let socket = base.join("plugins/orlop-nfs.sock");
        let flags = ["--config", config.to_str().unwrap(), "--docker-global", socket.to_str().unwrap()];
        *plugin = Plugin::spawn(base, &flags);
        plugin.wait();
        let global = plugin.at("orlop-nfs");
        global.wait();
        for (client, scope, name, at) in
            [(&**plugin, "local", "v1", &own), (&global, "global", "v2", &common)]
        {
            assert_eq!(client.ok("Capabilities", &json!({}))["Capabilities"]["Scope"], scope);
            assert!(client.names().is_empty());
            client.ok("Create", &json!({"Name": name}));
            assert_eq!(client.names(), [name], "{scope}");
            let mounted = client.ok("Mount", &json!({"Name": name, "ID": ID}))["Mountpoint"].clone();
            fs::write(Path::new(mounted.as_str().unwrap()).join("file"), scope).unwrap();
            assert_eq!(fs::read_to_string(at.join("volumes").join(name).join("data/file")).unwrap(), scope);
        }
        for (client, other) in [(&**plugin, "nas"), (&global, "p")] {
            let error = client.error("Create", &json!({"Name": "v3", "Opts": {"pool": other}}));
            assert!(error.contains("is not served by this driver"), "{error}");
        }
        let share = json!({"Name": "v3", "Opts": {"type": "nfs", "o": "addr=nas", "device": ":/x"}});
        assert!(global.error("Create", &share).contains("shares are recorded on this host"));
        for (client, name) in [(&**plugin, "v1"), (&global, "v2")] {
            client.ok("Unmount", &json!({"Name": name, "ID": ID}));
            client.ok("Remove", &json!({"Name": name}));
        }
    });
}

/// `orlop serve`, which gets a listener as systemd passes it: descriptor 3.
fn activated(listener: UnixListener) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3<&0 </dev/null", "sh", ORLOP]);
    command.stdin(OwnedFd::from(listener));
    command
}

#[test]
fn a_socket_that_was_passed_is_served_when_all_pools_are_available_and_remains() {
    let test = "a_socket_that_was_passed_is_served_when_all_pools_are_available_and_remains";
    in_own_process(&format!("docker::endpoints::{test}"), || {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir(base.join("plugins")).unwrap();
        let listener = UnixListener::bind(base.join("plugins/orlop.sock")).unwrap();
        let pool = format!("--pool=p={}/pool", base.display());
        let mut plugin = Plugin::spawn_as(activated(listener.try_clone().unwrap()), &base, &[&pool]);
        plugin.wait_for_log("Docker is not served until all pools are available");
        let waiting = plugin.connect().expect("systemd listens");
        assert!(!plugin.log().contains("serving volumes to Docker"));
        fs::create_dir(base.join("pool")).unwrap();
        plugin.ok("Create", &json!({"Name": "v1"}));
        drop(waiting);
        assert!(plugin.log().contains("serving volumes to Docker"));
        plugin.terminate();
        assert!(plugin.connect().is_some(), "the socket is systemd's, and starts orlop again");
        let plugin = Plugin::spawn_as(activated(listener), &base, &[&pool]);
        assert_eq!(plugin.names(), ["v1"]);
    });
}

/// Starts `orlop serve` with a listener that it refuses, and returns the error.
fn refusal(dir: &Path, listener: UnixListener) -> String {
    let mut command = activated(listener);
    command.args(["serve", "--node-id=n1", "--pool"]).arg(format!("p={}", dir.display()));
    command.arg("--csi").arg(dir.join("csi.sock"));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    text
}

#[test]
fn a_socket_that_no_flag_names_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("other.sock")).unwrap();
    let text = refusal(dir.path(), listener);
    assert!(text.contains("other.sock was passed by the service manager"), "{text}");
}

#[test]
fn a_socket_to_which_everybody_may_connect_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let refusal = || refusal(dir.path(), listener.try_clone().unwrap());
    let with_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    // The mode that systemd gives a socket by default.
    with_mode(0o666);
    let text = refusal();
    assert!(text.contains("other.sock (owner 0, mode 0666)") && text.contains("SocketMode=0660"), "{text}");
    with_mode(0o660);
    let text = refusal();
    assert!(text.contains("was passed by the service manager"), "it is not refused for its mode: {text}");
    std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
    let text = refusal();
    assert!(text.contains("owner 12345") && text.contains("without SocketUser="), "{text}");
    fs::remove_file(&path).unwrap();
    let text = refusal();
    assert!(text.contains("to find out who may connect to it"), "{text}");
}

#[test]
fn a_socket_without_a_file_is_refused_since_everybody_may_connect_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("orlop-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let text = refusal(dir.path(), UnixListener::bind_addr(&address).unwrap());
    assert!(text.contains("is no listening Unix socket with a path"), "{text}");
}
