//! The Debian package of `deploy/deb`, and the managed plugin of `deploy/plugin`.
#![expect(clippy::disallowed_methods, reason = "packages are built by programs")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::isolation::is_root;
use crate::common::server::ORLOP;

/// Runs a program and returns what it prints.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_debian_package_has_the_program_units_completions_and_man_pages() {
    if !Path::new("/usr/bin/dpkg-deb").exists() && std::env::var_os("CI").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (package, root) = (dir.path().join("orlop.deb"), dir.path().join("root"));
    let (package, root_text) = (package.to_str().unwrap(), root.to_str().unwrap());
    // The program of the tests is large, and compressing it takes long.
    run("deploy/deb/build", &[ORLOP, package, "-Znone"]);
    let field = |name| run("dpkg-deb", &["--field", package, name]).trim_end().to_owned();
    let version = run(ORLOP, &["--version"]);
    assert_eq!(
        (field("Package"), field("Version")),
        ("orlop".to_owned(), format!("{}-1", version.trim_end()[6..].to_owned()))
    );
    assert!(["amd64", "arm64"].contains(&field("Architecture").as_str()));
    let listed = run("dpkg-deb", &["--contents", package]);
    assert!(listed.lines().all(|line| line.contains(" root/root ")), "{listed}");
    run("dpkg-deb", &["--extract", package, root_text]);
    for (path, mode) in [
        ("usr/bin/orlop", 0o755),
        ("usr/lib/systemd/system/orlop-docker.service", 0o644),
        ("usr/lib/systemd/system/orlop-docker.socket", 0o644),
        ("usr/share/bash-completion/completions/orlop", 0o644),
        ("usr/share/zsh/vendor-completions/_orlop", 0o644),
        ("usr/share/fish/vendor_completions.d/orlop.fish", 0o644),
        ("usr/share/man/man1/orlop.1.gz", 0o644),
        ("usr/share/man/man1/orlop-serve.1.gz", 0o644),
        ("usr/share/doc/orlop/copyright", 0o644),
    ] {
        let found = fs::metadata(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}\n{listed}"));
        assert!(found.len() > 0 && found.permissions().mode() & 0o7777 == mode, "{path}: {found:?}");
    }
    assert!(root.join("var/lib/orlop").is_dir());
    assert_eq!(run(root.join("usr/bin/orlop").to_str().unwrap(), &["--version"]), version);
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/orlop-docker.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/orlop serve"), "{unit}");
    run("dpkg-deb", &["--control", package, dir.path().join("control").to_str().unwrap()]);
    for script in ["postinst", "prerm", "postrm"] {
        run("sh", &["-n", dir.path().join("control").join(script).to_str().unwrap()]);
    }
}

#[test]
fn the_units_name_the_same_socket_and_flags_that_exist() {
    let read = |name: &str| fs::read_to_string(Path::new("deploy/systemd").join(name)).unwrap();
    let (service, socket) = (read("orlop-docker.service"), read("orlop-docker.socket"));
    let value = |text: &str, key: &str| {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(key));
        lines.next().unwrap().to_owned()
    };
    let listens = value(&socket, "ListenStream=");
    let started = value(&service, "ExecStart=/usr/local/bin/orlop serve ");
    assert!(started.ends_with(&format!("--docker unix://{listens}")), "{started}");
    let help = run(ORLOP, &["serve", "--help"]);
    for flag in started.split(' ').filter(|word| word.starts_with("--")) {
        assert!(help.contains(flag), "{flag}");
    }
}

#[test]
fn the_managed_plugin_has_its_mount_points_and_flags_that_exist() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    run("deploy/plugin/build", &[ORLOP, dir.path().to_str().unwrap()]);
    let config: Value = serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    let rootfs = dir.path().join("rootfs");
    let words: Vec<_> =
        config["entrypoint"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert!(rootfs.join(&words[0][1..]).is_file());
    let help = run(ORLOP, &["serve", "--help"]);
    assert!(
        words[2..].iter().filter(|word| word.starts_with("--")).all(|flag| help.contains(*flag)),
        "{words:?}"
    );
    let targets = words.iter().position(|word| *word == "--docker-mounts").unwrap() + 1;
    assert_eq!(words[targets], config["propagatedMount"], "engines rewrite paths below it");
    let socket = format!("unix:///run/docker/plugins/{}", config["interface"]["socket"].as_str().unwrap());
    assert!(words.contains(&socket.as_str()), "{words:?}");
    for mount in config["mounts"].as_array().unwrap() {
        let path = mount["destination"].as_str().unwrap();
        assert!(rootfs.join(&path[1..]).is_dir(), "{path}");
    }
}
