//! Commands on volumes, run as a user runs them: output, exit codes, and what they leave unchanged.
#![expect(clippy::disallowed_methods, reason = "the program under test is a process")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::{CreateVolumeRequest, ListVolumesRequest, NodePublishVolumeRequest};
use orlop::engine::Engine;
use orlop::engine::request::Tuning;
use orlop::fs::reflink::shares_blocks;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::csi::{MIB, capability, create_request, size};
use crate::common::isolation;
use crate::common::pool::{contents_and_times, edit_record, names, request, settings_of, volume_record};
use crate::common::server::{ORLOP, Server};

/// What a command printed, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

pub(crate) fn run(command: &mut Command) -> Ran {
    let output = command.env_remove("ORLOP_POOL").env_remove("ORLOP_CONFIG").output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The pools `p` and `q` in a temporary directory, served by no process.
pub(crate) struct Pools {
    pub(crate) dir: TempDir,
}

impl Pools {
    /// Creates both pools, each with volumes of these names and sizes.
    pub(crate) fn with(p: &[(&str, u64)], q: &[(&str, u64)]) -> Self {
        let pools = Self { dir: tempfile::tempdir().unwrap() };
        for (pool, volumes) in [("p", p), ("q", q)] {
            fs::create_dir(pools.path(pool)).unwrap();
            let engine = Engine::open(vec![settings_of(pool, &pools.path(pool))], Tuning::default()).unwrap();
            for (name, size) in volumes {
                engine.create(&request(name, *size)).unwrap();
            }
        }
        pools
    }

    pub(crate) fn path(&self, pool: &str) -> PathBuf {
        self.dir.path().join(pool)
    }

    /// A command on both pools.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(ORLOP);
        let pools = format!("p={},q={}", self.path("p").display(), self.path("q").display());
        command.args(arguments.split_whitespace()).arg("--pool").arg(pools);
        command
    }

    /// Runs a command on both pools.
    pub(crate) fn run(&self, arguments: &str) -> Ran {
        run(&mut self.command(arguments))
    }
}

/// A process in a mount namespace of its own, like a container, with the data of a volume mounted at `target`. It ends
/// when this is dropped.
pub(crate) struct Container(pub(crate) Child);

impl Container {
    pub(crate) fn start(data: &Path, target: &Path) -> Self {
        fs::create_dir(target).unwrap();
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" \"$1\" && echo ready && read end";
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(data).arg(target);
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        shell.stdout.take().unwrap().read_exact(&mut ready).unwrap();
        Self(shell)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.stdin.take().unwrap().write_all(b"\n");
        let _ = self.0.wait();
    }
}

/// Sets the age of a volume to a little more than this.
pub(crate) fn set_age(pool: &Path, name: &str, hours: i64) {
    let created = orlop::volume::Timestamp::now().as_second() - hours * 3600 - 60;
    let created = orlop::volume::Timestamp::from_second(created).unwrap();
    edit_record(&volume_record(pool, name), |record| record["created"] = json!(created.to_string()));
}

#[test]
fn ls_prints_a_table_ids_or_json_ordered_by_id() {
    let pools = Pools::with(&[("b", 3 << 29), ("a", 0)], &[("data", 10 << 30)]);
    set_age(&pools.path("p"), "a", 50);
    set_age(&pools.path("p"), "b", 5);
    set_age(&pools.path("q"), "data", 0);
    let before = contents_and_times(pools.dir.path());
    let table = "\
POOL  NAME  SIZE  USED  USED BY  AGE  STATE
p  a  -  …  -  2d  dangling
p  b  1.5Gi  …  -  5h  dangling
q  data  10Gi  …  -  1m  dangling
";
    let listed = pools.run("ls");
    assert_eq!((listed.code, without_usage(&listed.stdout).as_str(), listed.stderr.as_str()), (0, table, ""));
    let ages = ["AGE", "2d", "5h", "1m"];
    let starts: Vec<_> =
        listed.stdout.lines().zip(ages).map(|(line, age)| line.find(&format!(" {age}  "))).collect();
    assert!(
        starts.iter().all(|start| start.is_some() && *start == starts[0]),
        "not aligned: {}",
        listed.stdout
    );
    assert_eq!(without_usage(&pools.run("list").stdout), table);
    for ids in ["ls -q", "ls --quiet"] {
        assert_eq!(pools.run(ids).stdout, "p/a\np/b\nq/data\n");
    }
    let volumes = pools.run("ls -o json").json();
    let created = &volumes[1]["created"];
    assert!(created.as_str().unwrap().ends_with('Z'), "{created}");
    let used = &volumes[1]["used"];
    assert!(used.is_null() || used.is_u64(), "{used}");
    assert_eq!(
        volumes[1],
        json!({"id": "p/b", "pool": "p", "name": "b", "path": pools.path("p").join("volumes/b/data"), "size": 3 << 29,
            "used": used, "usedBy": [], "labels": {}, "claim": null, "created": created, "state": "dangling"})
    );
    assert_eq!(volumes.as_array().unwrap().len(), 3);
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
}

#[test]
fn ls_without_volumes_prints_the_header_an_empty_array_or_nothing() {
    let pools = Pools::with(&[], &[]);
    assert_eq!(pools.run("ls").stdout, "POOL  NAME  SIZE  USED  USED BY  AGE  STATE\n");
    assert_eq!(pools.run("ls -o json").stdout, "[]\n");
    assert_eq!(pools.run("ls -q"), Ran { code: 0, stdout: String::new(), stderr: String::new() });
}

#[test]
fn ls_marks_unmanaged_and_unreadable_volumes() {
    let pools = Pools::with(&[("good", 4096), ("damaged", 4096)], &[]);
    set_age(&pools.path("p"), "good", 0);
    fs::write(volume_record(&pools.path("p"), "damaged"), "{\"schema\": \"\u{1b}[31m\"}").unwrap();
    fs::create_dir_all(pools.path("q").join("volumes/mine/data")).unwrap();
    fs::create_dir_all(pools.path("q").join("volumes/nothing")).unwrap();
    let listed = pools.run("ls");
    let table = "\
POOL  NAME  SIZE  USED  USED BY  AGE  STATE
p  damaged  -  …  -  -  unreadable
p  good  4Ki  …  -  1m  dangling
q  mine  -  …  -  -  unmanaged
";
    assert_eq!((listed.code, without_usage(&listed.stdout).as_str(), listed.stderr.as_str()), (0, table, ""));
    let json = pools.run("ls -o json");
    let volumes = json.json();
    let error = volumes[0]["error"].as_str().unwrap();
    assert!(error.contains("volumes/damaged/volume.json"), "{error}");
    assert_eq!((&volumes[0]["size"], &volumes[0]["created"]), (&Value::Null, &Value::Null));
    assert_eq!((&volumes[2]["state"], &volumes[2]["created"]), (&json!("unmanaged"), &Value::Null));
    assert!(!json.stdout.contains('\u{1b}'));
}

#[test]
fn ls_prints_the_available_pools_and_fails_for_the_others() {
    let pools = Pools::with(&[], &[("a", 0)]);
    fs::remove_dir_all(pools.path("p")).unwrap();
    let listed = pools.run("ls -q");
    assert_eq!((listed.code, listed.stdout.as_str()), (1, "q/a\n"));
    assert!(listed.stderr.starts_with("orlop: pool p at /") && listed.stderr.contains("missing"));
}

#[test]
fn a_directory_that_is_not_a_pool_is_refused_and_stays_empty() {
    let pools = Pools::with(&[], &[]);
    fs::remove_dir_all(pools.path("q")).unwrap();
    fs::create_dir(pools.path("q")).unwrap();
    let listed = pools.run("ls -q");
    assert_eq!((listed.code, listed.stdout.as_str()), (1, ""));
    assert!(listed.stderr.contains("is not a pool: it has no orlop.json"), "{}", listed.stderr);
    assert_eq!(fs::read_dir(pools.path("q")).unwrap().count(), 0);
}

#[test]
fn pools_come_from_flags_variables_or_files() {
    let pools = Pools::with(&[("a", 0)], &[("b", 0)]);
    let (p, q) = (pools.path("p").display().to_string(), pools.path("q").display().to_string());
    let ls = |environment: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new("env");
        command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
        run(command.args([ORLOP, "ls", "-q"]).args(arguments))
    };
    let file = pools.dir.path().join("orlop.toml").display().to_string();
    fs::write(&file, format!("[[pool]]\nname = \"q\"\npath = {q:?}\nreserve = \"1Gi\"\n")).unwrap();
    assert_eq!(ls(&[], &["--pool", &format!("p={p}"), "--pool", &format!("q={q}")]).stdout, "p/a\nq/b\n");
    assert_eq!(ls(&[("ORLOP_POOL", &format!("p={p}"))], &[]).stdout, "p/a\n");
    assert_eq!(ls(&[], &["--config", &file]).stdout, "q/b\n");
    assert_eq!(ls(&[("ORLOP_CONFIG", &file)], &["--pool", &format!("p={p}")]).stdout, "p/a\nq/b\n");

    let twice = ls(&[("ORLOP_CONFIG", &file)], &["--pool", &format!("q={q}")]);
    assert_eq!((twice.code, twice.stdout.as_str()), (2, ""));
    fs::write(&file, "[[pool]]\nname = \"q\"\npath = \"/q\"\nuuid = 1\n").unwrap();
    let wrong = ls(&[], &["--config", &file]);
    assert_eq!((wrong.code, wrong.stdout.as_str()), (2, ""));
    assert!(wrong.stderr.contains("uuid = 1\n"), "the line is shown as it is: {}", wrong.stderr);
}

/// The commands run in a mount namespace with an empty `/etc`.
#[test]
fn without_any_setting_the_pools_of_the_default_file_are_used() {
    if !isolation::is_root() {
        return;
    }
    let pools = Pools::with(&[("a", 0)], &[("b", 0)]);
    let script = "\
mount -t tmpfs none /etc && mkdir /etc/orlop
$0 ls -q; echo $?
printf '[[pool]]\\nname = \"p\"\\npath = \"%s\"\\n' \"$1\" >/etc/orlop/orlop.toml
$0 ls -q; $0 ls -q --pool q=$2";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, ORLOP]);
    let ran = run(command.arg(pools.path("p")).arg(pools.path("q")));
    assert_eq!(ran.stdout, "2\np/a\nq/b\n", "{}", ran.stderr);
    let advice = "no pools: name them with --pool NAME=DIR or --config FILE, or in /etc/orlop/orlop.toml; `orlop create` makes a first one in \
                  /var/lib/orlop";
    assert_eq!(ran.stderr, format!("orlop: {advice}\n"));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let pools = Pools::with(&[("a", 0)], &[]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = pools.command("ls").stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));

    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = pools.command("ls").stdout(full).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(1), "any other failure to print is one");
}

#[test]
fn wrong_flags_are_refused() {
    let pools = Pools::with(&[], &[]);
    let of_ls = ["ls -q -o json", "ls -o toml", "ls extra", "ls --all"];
    for wrong in of_ls.into_iter().chain(["inspect", "inspect -o text a", "rm", "rm -o json a"]) {
        let ran = pools.run(wrong);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{wrong}");
        assert!(ran.stderr.starts_with("error: "), "{wrong}: {}", ran.stderr);
    }
}

#[test]
fn inspect_prints_the_record_the_path_and_the_users() {
    let pools = Pools::with(&[("a", 4096), ("copy", 0)], &[]);
    let record = volume_record(&pools.path("p"), "a");
    edit_record(&record, |record| {
        record["owner"]["mode"] = json!("0750");
        record["labels"] = json!({"kind": "\u{1b}[31mred\u{9b}"});
        record["source"] = json!({"volume": "p/s"});
        (record["consistency"], record["pauseMs"]) = (json!("crash"), json!(42));
        record["paused"] = json!(["3f3f"]);
        record["policy"] = json!({"onDelete": "trash", "trashFor": 60, "limit": "none"});
        record["uid"] = json!("5a1f6f0e-3c1b-4a0e-9d0c-000000000001");
        record["created"] = json!("2026-01-02T03:04:05.6Z");
        record["ephemeral"] = json!(true);
    });
    fs::write(volume_record(&pools.path("p"), "copy"), "{").unwrap();
    let pool = fs::File::open(pools.path("p")).unwrap();
    let cost = if shares_blocks(pool.as_fd()).unwrap_or(false) { "cheap" } else { "copy" };
    let expected = json!([{
        "id": "p/a",
        "pool": "p",
        "name": "a",
        "requestedName": "a",
        "uid": "5a1f6f0e-3c1b-4a0e-9d0c-000000000001",
        "path": pools.path("p").join("volumes/a/data"),
        "size": 4096,
        "enforced": "no",
        "notEnforced": "limit=none",
        "snapshotCost": cost,
        "owner": {"uid": 0, "gid": 0, "mode": "0750"},
        "policy": {"onDelete": "trash", "trashFor": 60, "limit": "none"},
        "labels": {"kind": "\u{1b}[31mred\u{9b}"},
        "claim": null,
        "source": {"volume": "p/s"},
        "consistency": "crash",
        "pauseMs": 42,
        "paused": ["3f3f"],
        "created": "2026-01-02T03:04:05.6Z",
        "lastBackup": null,
        "managed": true,
        "ephemeral": true,
        "backend": {},
        "state": "dangling",
        "users": [],
    }]);
    let before = contents_and_times(pools.dir.path());
    for arguments in ["inspect p/a", "inspect a", "inspect -o json a"] {
        let ran = pools.run(arguments);
        assert_eq!((ran.code, ran.json(), ran.stderr.as_str()), (0, expected.clone(), ""), "{arguments}");
        assert!(!ran.stdout.contains(|c: char| c.is_control() && c != '\n'), "{}", ran.stdout);
    }
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
}

#[test]
fn inspect_shows_what_an_unmanaged_volume_lacks_as_null() {
    let pools = Pools::with(&[], &[]);
    fs::create_dir_all(pools.path("q").join("volumes/mine/data")).unwrap();
    let volume = pools.run("inspect mine").json().as_array_mut().unwrap().remove(0);
    assert_eq!((&volume["id"], &volume["managed"]), (&json!("q/mine"), &json!(false)));
    for field in ["uid", "owner", "created", "source"] {
        assert_eq!(volume[field], Value::Null, "{field}");
    }
}

#[test]
fn a_volume_that_cannot_be_inspected_does_not_hide_the_others() {
    let pools = Pools::with(&[("a", 0), ("both", 0), ("damaged", 0)], &[("b", 0)]);
    fs::write(volume_record(&pools.path("p"), "damaged"), "{").unwrap();
    fs::create_dir_all(pools.path("q").join("volumes/both/data")).unwrap();
    let inspect = |arguments: &str, code: i32, ids: &[&str], error: &str| {
        let ran = pools.run(&format!("inspect {arguments}"));
        let printed = ran.json();
        let printed: Vec<_> = printed.as_array().unwrap().iter().map(|volume| volume["id"].clone()).collect();
        assert_eq!((ran.code, json!(printed)), (code, json!(ids)), "{arguments}");
        assert!(
            ran.stderr.starts_with("orlop: ") && ran.stderr.contains(error),
            "{arguments}: {}",
            ran.stderr
        );
    };
    inspect("none", 3, &[], "volume none does not exist");
    inspect("p/none b", 3, &["q/b"], "volume p/none does not exist");
    inspect("r/a", 2, &[], "pool r does not exist; the configured pools are: p, q");
    inspect("p/a/data ../a a\u{1b}[31m", 3, &[], "\"p/a/data\" does not exist");
    inspect("both b", 2, &["q/b"], "several pools have a volume both: name one of p/both, q/both");
    inspect("damaged p/a", 1, &["p/a"], "volumes/damaged/volume.json");
    inspect("damaged none a", 1, &["p/a"], "volume none does not exist");
    fs::remove_dir_all(pools.path("q")).unwrap();
    inspect("a p/a", 1, &["p/a"], "name its pool, as <pool>/a");
}

#[test]
fn rm_deletes_by_policy_and_tries_every_volume() {
    let pools = Pools::with(&[("a", 0), ("b", 0), ("kept", 0), ("newer", 0)], &[("c", 0)]);
    let p = pools.path("p");
    edit_record(&volume_record(&p, "kept"), |record| record["policy"]["onDelete"] = json!("retain"));
    edit_record(&volume_record(&p, "newer"), |record| record["schema"] = json!(99));
    fs::create_dir_all(p.join("volumes/mine/data")).unwrap();
    fs::create_dir(p.join("work/draft")).unwrap();
    assert_eq!(pools.run("rm p/a c"), Ran { code: 0, stdout: "p/a\nq/c\n".into(), stderr: String::new() });

    let unknown = pools.run("rm typo/b");
    assert_eq!((unknown.code, unknown.stdout.as_str()), (2, ""));
    assert!(unknown.stderr.contains("pool typo does not exist"), "{}", unknown.stderr);
    let missing = pools.run("ls --config /nowhere/orlop.toml");
    assert_eq!((missing.code, missing.stdout.as_str()), (2, ""));
    assert_eq!(missing.stderr, "orlop: configuration file /nowhere/orlop.toml does not exist\n");
    let absent = pools.run("rm a p/kept");
    assert_eq!((absent.code, absent.stdout.as_str()), (3, "p/kept\n"));
    assert_eq!(absent.stderr, "orlop: volume a does not exist\n");
    let trash: Vec<_> = names(&p.join("trash")).into_iter().collect();
    assert!(trash[0].starts_with("a.1") && trash[1].starts_with("kept.keep."), "{trash:?}");
    assert_eq!(trash.len(), 2, "nothing is reaped");

    let unmanaged = pools.run("remove mine");
    assert_eq!((unmanaged.code, unmanaged.stdout.as_str()), (2, ""));
    let text = "volume p/mine is unmanaged and is never deleted: remove its directory by hand";
    assert_eq!(unmanaged.stderr, format!("orlop: {text}\n"));
    let unreadable = pools.run("rm newer mine");
    assert_eq!((unreadable.code, unreadable.stdout.as_str()), (1, ""));
    assert!(unreadable.stderr.contains("upgrade orlop"), "{}", unreadable.stderr);
    assert_eq!(names(&p.join("volumes")), ["b", "mine", "newer"].map(str::to_owned).into());
    assert_eq!(names(&p.join("work")).len(), 1, "nothing is swept");
}

#[test]
fn a_volume_in_use_is_inspected_with_its_user_and_not_removed() {
    if !isolation::is_root() {
        return;
    }
    let pools = Pools::with(&[("a", 0)], &[("b", 0)]);
    let target = pools.dir.path().join("target\u{1b}[31m\n");
    let container = Container::start(&pools.path("p").join("volumes/a/data"), &target);
    let pid = container.0.id();
    let user = json!({"pod": null, "podNamespace": null, "podName": null, "container": null, "pid": pid,
        "command": "sh", "target": target});
    assert_eq!(pools.run("inspect p/a").json()[0]["users"], json!([user]));

    let removed = pools.run("rm a b");
    assert_eq!((removed.code, removed.stdout.as_str()), (4, "q/b\n"));
    let shown = target.display().to_string().replace('\u{1b}', "\\u001b").replace('\n', "\\u000a");
    let text = format!("volume p/a is in use by process {pid}, sh at {shown}: stop it and retry");
    assert_eq!(removed.stderr, format!("orlop: {text}\n"));
    assert!(pools.path("p").join("volumes/a/data").is_dir());
    drop(container);
    assert_eq!(pools.run("rm a").code, 0);
}

/// The lines that the page shows after each command, by command.
pub(crate) fn transcripts(page: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in page.lines() {
        let code = line.strip_prefix("    ");
        match (code, code.and_then(|code| code.strip_prefix("$ ")), found.last_mut()) {
            (_, Some(command), _) => found.push((command.to_owned(), String::new())),
            (Some(shown), None, Some((_, output))) => *output += &format!("{shown}\n"),
            _ => {}
        }
    }
    found
}

/// The commands below a command that do something themselves, by their words, without hidden ones.
fn leaves(command: &clap::Command, words: &str) -> Vec<(String, clap::Command)> {
    let mut found = Vec::new();
    for child in command.get_subcommands().filter(|child| !child.is_hide_set()) {
        let words = format!("{words}{}", child.get_name());
        found.extend(leaves(child, &format!("{words} ")));
        if !child.has_subcommands() || child.is_args_conflicts_with_subcommands_set() {
            found.push((words, child.clone()));
        }
    }
    found
}

#[test]
fn the_page_lists_every_command_with_its_flags() {
    let page = fs::read_to_string("docs/cli.md").unwrap();
    let command = <orlop::config::flags::Cli as clap::CommandFactory>::command();
    let volume = command.find_subcommand("volume").unwrap();
    let commands = leaves(volume, "");
    assert!(commands.len() > 15, "{}", commands.len());
    for (words, command) in commands {
        let row = page.lines().find(|line| {
            let rest = line.strip_prefix(&format!("| `{words}"));
            rest.is_some_and(|rest| rest.starts_with([' ', '`']))
        });
        let row = row.unwrap_or_else(|| panic!("docs/cli.md has no row for {words}"));
        for flag in command.get_arguments().filter_map(|flag| flag.get_long()) {
            let is_common = matches!(flag, "pool" | "config" | "help");
            assert!(
                is_common || row.contains(&format!("`--{flag}`")),
                "{words} has the flag --{flag}: {row}"
            );
        }
        for flag in row.split('`').filter_map(|word| word.strip_prefix("--")) {
            let exists = command.get_arguments().any(|argument| argument.get_long() == Some(flag));
            assert!(exists, "{words} has no flag --{flag}");
        }
    }
    for (words, _) in leaves(&command, "") {
        let is_named = page.contains(&format!("`{words}")) || page.contains(&format!("orlop {words}"));
        let is_of_servers = matches!(words.as_str(), "serve" | "probe" | "release-node");
        assert!(
            is_named || is_of_servers || words.starts_with("volume "),
            "docs/cli.md does not name {words}"
        );
    }
}

/// The commands run in a mount namespace with an empty `/etc` and `/var/lib`, in one shell.
#[test]
fn the_transcript_of_the_readme_is_true() {
    if !isolation::is_root() {
        return;
    }
    let page = fs::read_to_string("README.md").unwrap();
    let section = page.split("## On a host").nth(1).unwrap().split("\n## ").next().unwrap();
    let transcripts = transcripts(section);
    assert!(transcripts.len() > 5, "{}", transcripts.len());
    let mut script =
        "mount -t tmpfs none /etc && mount -t tmpfs none /var/lib\nPATH=${0%/*}:$PATH\n".to_owned();
    let mut expected = String::new();
    for (line, output) in transcripts {
        script += &format!("{line}\n");
        expected += &output;
    }
    let mut command = Command::new("unshare");
    let ran = run(command.args(["--mount", "--propagation", "private", "sh", "-c", &script, ORLOP]));
    assert_eq!(ran.stdout, expected, "{}", ran.stderr);
}

/// A table of volumes with two spaces between its columns, without what volumes take: that depends on the filesystem, and a
/// busy machine does not measure it in time.
pub(crate) fn without_usage(text: &str) -> String {
    let mut column: Option<usize> = None;
    let line = |line: &str| {
        let mut cells: Vec<_> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        if let Some(found) = cells.iter().position(|cell| *cell == "USED") {
            column = Some(found);
        } else if let Some(cell) = column.and_then(|column| cells.get_mut(column)) {
            *cell = "…";
        }
        if column.is_some() { cells.join("  ") + "\n" } else { format!("{line}\n") }
    };
    text.lines().map(line).collect()
}

/// A transcript without the reason why sizes are not enforced, which depends on the filesystem.
fn without_reason(transcript: &str) -> String {
    let lines = transcript.lines().map(|line| match line.split_once("\"notEnforced\": ") {
        Some((indent, _)) => format!("{indent}\"notEnforced\"\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// Each command of the page prints what the page shows, in the page's order.
#[test]
fn the_transcripts_of_the_page_are_true() {
    if !isolation::is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (pool, target) = (dir.path().join("pool"), dir.path().join("data"));
    fs::create_dir(&pool).unwrap();
    let engine = Engine::open(vec![settings_of("default", &pool)], Tuning::default()).unwrap();
    engine.create(&request("data", 10 << 30)).unwrap();
    engine.create(&request("cache", 512 << 20)).unwrap();
    drop(engine);
    fs::create_dir_all(pool.join("volumes/mine/data")).unwrap();
    set_age(&pool, "data", 50);
    set_age(&pool, "cache", 3);
    let record = volume_record(&pool, "data");
    edit_record(&record, |record| {
        record["uid"] = json!("5a1f6f0e-3c1b-4a0e-9d0c-7e2f4b8a6d13");
        record["policy"] = json!({"onDelete": "trash", "trashFor": 604800, "limit": "auto"});
        record["labels"] = json!({"app": "shop"});
    });
    let container = Container::start(&pool.join("volumes/data/data"), &target);
    let page = fs::read_to_string("docs/cli.md").unwrap();
    let transcripts = transcripts(&page);
    assert!(transcripts.len() > 10, "{}", transcripts.len());
    for (line, expected) in transcripts {
        if line.contains("inspect") {
            edit_record(&record, |record| record["created"] = json!("2026-01-02T03:04:05Z"));
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec 2>&1; PATH=${{0%/*}}:$PATH; {line}"), ORLOP]);
        shell.env("ORLOP_POOL", format!("default={}", pool.display())).env_remove("ORLOP_CONFIG");
        let printed = String::from_utf8(shell.output().unwrap().stdout).unwrap();
        let printed = printed.replace(&pool.display().to_string(), "/var/lib/orlop");
        let printed = printed.replace(&target.display().to_string(), "/data");
        let printed = printed.replace(&container.0.id().to_string(), "4242");
        let shown = |text: &str| without_usage(&without_reason(text));
        assert_eq!(shown(&printed), shown(&expected), "{line}");
    }
}

#[tokio::test]
async fn commands_and_a_server_see_each_others_changes() {
    let server = Server::start(true);
    let (mut controller, mut node) = (server.controller().await, server.node().await);
    for name in ["a", "b"] {
        controller.create_volume(create_request(name)).await.unwrap();
    }
    let target = server.target("target");
    let publish = NodePublishVolumeRequest {
        volume_id: "p/a".into(),
        target_path: target.clone(),
        volume_capability: Some(capability(Mode::SingleNodeMultiWriter)),
        ..NodePublishVolumeRequest::default()
    };
    if isolation::is_root() {
        node.node_publish_volume(publish).await.unwrap();
    }
    let orlop = |arguments: &str| {
        let mut command = Command::new(ORLOP);
        command.args(arguments.split_whitespace()).arg(format!("--pool=p={}", server.pool().display()));
        run(&mut command)
    };
    assert_eq!(orlop("ls -q"), Ran { code: 0, stdout: "p/a\np/b\n".into(), stderr: String::new() });
    if isolation::is_root() {
        assert_eq!(orlop("inspect a").json()[0]["users"][0]["target"], target);
        assert_eq!(orlop("rm a").code, 4);
    }
    assert_eq!(orlop("rm b"), Ran { code: 0, stdout: "p/b\n".into(), stderr: String::new() });
    let listed = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    let ids: Vec<_> = listed.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
    assert_eq!(ids, ["p/a"]);
    controller
        .create_volume(CreateVolumeRequest { capacity_range: size(2 * MIB, 0), ..create_request("b") })
        .await
        .unwrap();
    assert_eq!(orlop("ls -q").stdout, "p/a\np/b\n");
}
