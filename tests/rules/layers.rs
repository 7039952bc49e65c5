//! Rules about the source files, above all the layers: the tables below list the modules and crates that each module may
//! use.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module, the modules of this crate that it may name, and the crates that it owns: only modules with such an entry may
/// name them.
type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

const LAYERS: &[Row] = &[
    ("error", &[], &["rustix", "serde", "thiserror"]),
    ("volume", &["error"], &["jiff", "serde", "serde_json", "sha2", "uuid"]),
    ("sys", &["error"], &["rustix", "libc", "linux_raw_sys"]),
    ("archive", &["error"], &["flate2", "serde", "serde_json", "sha2", "zstd"]),
    ("fs", &["archive", "error", "sys"], &["rustix", "twox_hash"]),
    ("mount", &["error", "sys"], &["rustix", "serde"]),
    ("pause", &["error", "mount", "sys"], &["rustix", "serde", "serde_json"]),
    ("backend", &["error", "fs", "volume"], &["rustix"]),
    ("remote", &["error", "mount"], &["rustix", "serde"]),
    (
        "pool",
        &["backend", "error", "fs", "mount", "pause", "remote", "volume"],
        &["nix", "rustix", "serde", "serde_json", "sha2", "tracing", "uuid"],
    ),
    (
        "engine",
        &["archive", "backend", "error", "fs", "mount", "pause", "pool", "remote", "volume"],
        &["rustix", "serde", "serde_json", "tracing", "uuid"],
    ),
    ("worker", &["engine", "error", "volume"], &["nix", "rustix", "serde", "serde_json", "tokio", "tracing"]),
    ("quantity", &["error", "volume"], &["serde"]),
    ("dispatch", &["engine", "error", "volume", "worker"], &["tokio", "tracing"]),
    ("options", &["engine", "error", "quantity", "volume"], &["serde"]),
    ("health", &["dispatch", "engine", "remote", "volume"], &["tokio", "tracing"]),
    ("metrics", &["engine", "health"], &["prometheus_client", "rustix"]),
    (
        "telemetry",
        &["error", "metrics", "volume"],
        &["http", "tokio", "tower", "tracing", "tracing_appender", "tracing_subscriber"],
    ),
    ("socket", &["error", "sys", "volume"], &["futures_util", "rustix", "tokio", "tracing"]),
    (
        "csi",
        &[
            "dispatch",
            "engine",
            "error",
            "health",
            "metrics",
            "mount",
            "options",
            "quantity",
            "remote",
            "socket",
            "telemetry",
            "volume",
        ],
        &[
            "http",
            "prost",
            "prost_types",
            "serde",
            "serde_json",
            "sha2",
            "tokio",
            "tokio_util",
            "tonic",
            "tracing",
        ],
    ),
    (
        "command",
        &["archive", "engine", "error", "fs", "mount", "options", "quantity", "volume"],
        &["indicatif", "serde", "serde_json", "uuid"],
    ),
    (
        "http",
        &["engine", "error", "health", "metrics", "socket", "volume"],
        &["axum", "futures_util", "hyper_util", "tokio"],
    ),
    (
        "docker",
        &[
            "dispatch",
            "engine",
            "error",
            "metrics",
            "mount",
            "options",
            "remote",
            "socket",
            "telemetry",
            "volume",
        ],
        &[
            "axum",
            "futures_util",
            "hyper_util",
            "serde",
            "serde_json",
            "tokio",
            "tokio_util",
            "tower",
            "tracing",
        ],
    ),
    (
        "kube",
        &["error", "volume"],
        &["axum", "futures_util", "k8s_openapi", "kube", "serde", "serde_json", "sha2", "tokio"],
    ),
];

/// Modules that assemble the others and may name any module.
const ASSEMBLY: &[&str] = &["lib", "main", "run", "cli", "config", "check"];

/// Crates that have owners. Any other crate may be named anywhere.
fn owned_crates() -> BTreeSet<&'static str> {
    let mut crates: BTreeSet<_> = LAYERS.iter().flat_map(|row| row.2).copied().collect();
    crates.extend(["clap", "hyper_util", "toml"]);
    crates
}

fn add_sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut all = Vec::new();
    add_sources(Path::new("src"), &mut all);
    all.sort();
    assert!(all.len() > 20, "run this test in the directory of the package");
    all
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.strip_prefix("src").unwrap().components().next().unwrap();
    let first = Path::new(first.as_os_str());
    first.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// The lines of a file without its tests and comments.
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

/// Reports whether a text contains a path such as `tonic::…`.
fn names_crate(text: &str, name: &str) -> bool {
    let path = format!("{name}::");
    text.match_indices(&path).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn modules_use_only_the_layers_below() {
    let mut violations = Vec::new();
    for path in all_sources() {
        let (module, code) = (module_of(&path), code(&path));
        if ASSEMBLY.contains(&module.as_str()) {
            continue;
        }
        let Some((_, allowed, _)) = LAYERS.iter().find(|row| row.0 == module) else {
            violations.push(format!("{}: the module {module} has no row in LAYERS", path.display()));
            continue;
        };
        for used in words_after(&code, "crate::") {
            if used != module && !used.is_empty() && !allowed.contains(&used) {
                violations.push(format!("{}: {module} may not name the module {used}", path.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn crates_are_used_only_by_their_owners() {
    let mut violations = Vec::new();
    for path in all_sources() {
        let (module, code) = (module_of(&path), code(&path));
        let Some((_, _, allowed)) = LAYERS.iter().find(|row| row.0 == module) else { continue };
        for name in owned_crates() {
            if names_crate(&code, name) && !allowed.contains(&name) {
                violations.push(format!("{}: {module} may not name the crate {name}", path.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn unsafe_code_is_only_in_sys() {
    for path in all_sources() {
        if module_of(&path) != "sys" {
            let code = code(&path);
            let found = ["unsafe {", "unsafe fn", "unsafe impl"].iter().find(|word| code.contains(**word));
            assert!(found.is_none(), "{}: {found:?} belongs in src/sys", path.display());
        }
    }
}

#[test]
fn source_files_have_at_most_400_lines() {
    for path in all_sources() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        assert!(lines <= 400, "{} has {lines} lines without its tests; the limit is 400", path.display());
    }
}

#[test]
fn source_files_have_specific_names() {
    for path in all_sources() {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            !["mod", "util", "utils", "common", "types", "helpers", "manager", "misc"].contains(&stem),
            "{}: name the file after its contents",
            path.display()
        );
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the checksum is computed by a program")]
fn protocol_files_match_their_checksums() {
    let readme = fs::read_to_string("proto/README.md").unwrap();
    for row in readme.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('`').collect();
        let (path, sum) = (cells[1], cells[cells.len() - 2]);
        let printed = Command::new("sha256sum").arg(format!("proto/{path}")).output().unwrap().stdout;
        assert!(printed.starts_with(sum.as_bytes()), "the SHA-256 of proto/{path} is not {sum}");
    }
}

#[test]
fn architecture_lists_every_source_file() {
    let page = fs::read_to_string("ARCHITECTURE.md").unwrap();
    for path in all_sources() {
        let name = path.strip_prefix("src").unwrap().display().to_string();
        assert!(page.contains(&format!("`{name}`")), "ARCHITECTURE.md does not name `{name}`");
    }
}
