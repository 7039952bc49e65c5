//! The rule of who may know whom, read from the sources: a new arrow between modules is a visible line here.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module, the modules of ours that it may name, and the foreign crates that only such a row may name.
type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

const LAYERS: &[Row] = &[
    ("error", &[], &["thiserror"]),
    ("volume", &["error"], &["jiff", "serde", "serde_json", "sha2", "uuid"]),
    ("sys", &["error"], &["rustix", "libc", "linux_raw_sys"]),
    ("fs", &["error"], &["rustix"]),
    ("mount", &["error", "sys"], &["rustix"]),
    ("backend", &["error", "fs", "volume"], &["rustix"]),
    ("pool", &["backend", "error", "fs", "mount", "volume"], &["rustix", "serde", "serde_json", "uuid"]),
    ("engine", &["backend", "error", "fs", "mount", "pool", "volume"], &["rustix", "uuid"]),
    ("quantity", &["error", "volume"], &["serde"]),
    ("health", &["engine"], &["tokio"]),
    ("metrics", &["engine", "health"], &["prometheus_client", "rustix"]),
    ("telemetry", &["error", "metrics", "volume"], &["http", "tower", "tracing", "tracing_subscriber"]),
    ("socket", &["error", "volume"], &["rustix", "tokio"]),
    (
        "csi",
        &["engine", "error", "health", "metrics", "mount", "quantity", "socket", "telemetry", "volume"],
        &[
            "http",
            "prost",
            "prost_types",
            "serde",
            "serde_json",
            "sha2",
            "tokio",
            "tokio_stream",
            "tokio_util",
            "tonic",
            "tracing",
        ],
    ),
    ("http", &["engine", "error", "health", "metrics", "socket", "volume"], &["axum", "tokio"]),
    ("kube", &["error", "volume"], &["k8s_openapi", "kube", "serde_json", "tokio"]),
];

/// Modules that assemble the others and may name all of them.
const ASSEMBLY: &[&str] = &["lib", "main", "run", "cli", "config", "check"];

/// Crates that have owners; any other may be named anywhere.
fn owned() -> BTreeSet<&'static str> {
    let mut crates: BTreeSet<_> = LAYERS.iter().flat_map(|row| row.2).copied().collect();
    crates.extend(["clap", "hyper_util", "toml"]);
    crates
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut all = Vec::new();
    sources(Path::new("src"), &mut all);
    all.sort();
    assert!(all.len() > 20, "the sources are read from the package's folder");
    all
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.strip_prefix("src").unwrap().components().next().unwrap();
    let first = Path::new(first.as_os_str());
    first.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// A file without its tests and comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
    lines.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The words that follow `before` in a text.
fn words_after<'t>(text: &'t str, before: &str) -> Vec<&'t str> {
    let word = |rest: &'t str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("");
    text.match_indices(before).map(|(at, _)| word(&text[at + before.len()..])).collect()
}

/// Whether a path such as `tonic::…` stands in a text.
fn names_crate(text: &str, name: &str) -> bool {
    let path = format!("{name}::");
    text.match_indices(&path).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn modules_know_only_those_below_them() {
    let mut wrong = Vec::new();
    for path in all_sources() {
        let (module, code) = (module_of(&path), code(&path));
        if ASSEMBLY.contains(&module.as_str()) {
            continue;
        }
        let Some((_, known, _)) = LAYERS.iter().find(|row| row.0 == module) else {
            wrong.push(format!("{}: the module {module} has no row in LAYERS", path.display()));
            continue;
        };
        for used in words_after(&code, "crate::") {
            if used != module && !used.is_empty() && !known.contains(&used) {
                wrong.push(format!("{}: {module} may not know {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_stay_with_their_owners() {
    let mut wrong = Vec::new();
    for path in all_sources() {
        let (module, code) = (module_of(&path), code(&path));
        let Some((_, _, may)) = LAYERS.iter().find(|row| row.0 == module) else { continue };
        for name in owned() {
            if names_crate(&code, name) && !may.contains(&name) {
                wrong.push(format!("{}: {module} may not name the crate {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_sys_is_unsafe() {
    for path in all_sources() {
        if module_of(&path) != "sys" {
            let code = code(&path);
            let found = ["unsafe {", "unsafe fn", "unsafe impl"].iter().find(|word| code.contains(**word));
            assert!(found.is_none(), "{}: {found:?} belongs into src/sys", path.display());
        }
    }
}

#[test]
fn files_stay_small() {
    for path in all_sources() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        assert!(lines <= 400, "{} has {lines} lines without its tests; 400 are the limit", path.display());
    }
}

#[test]
fn names_are_those_of_the_field() {
    for path in all_sources() {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            !["mod", "util", "utils", "common", "types", "helpers", "manager", "misc"].contains(&stem),
            "{}: say what is in it",
            path.display()
        );
    }
}

#[test]
fn the_protocols_are_the_ones_that_their_readme_names() {
    let readme = fs::read_to_string("proto/README.md").unwrap();
    for row in readme.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('`').collect();
        let (path, sum) = (cells[1], cells[cells.len() - 2]);
        let printed = Command::new("sha256sum").arg(format!("proto/{path}")).output().unwrap().stdout;
        assert!(printed.starts_with(sum.as_bytes()), "proto/{path} is not the file with sum {sum}");
    }
}

#[test]
fn the_map_in_architecture_names_every_file() {
    let map = fs::read_to_string("ARCHITECTURE.md").unwrap();
    for path in all_sources() {
        let name = path.strip_prefix("src").unwrap().display().to_string();
        assert!(map.contains(&format!("`{name}`")), "ARCHITECTURE.md does not name `{name}`");
    }
}
