//! Commands on volumes, run as a user runs them: output, exit codes, and what they leave unchanged.
#![expect(clippy::disallowed_methods, reason = "the program under test is a process")]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop::engine::Engine;
use orlop::engine::request::Tuning;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::isolation;
use crate::common::pool::{contents_and_times, edit_record, request, settings_of, volume_record};
use crate::common::server::ORLOP;

/// What a command printed, and its exit code.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

fn run(command: &mut Command) -> Ran {
    let output = command.env_remove("ORLOP_POOL").env_remove("ORLOP_CONFIG").output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The pools `p` and `q` in a temporary directory, served by no process.
struct Pools {
    dir: TempDir,
}

impl Pools {
    /// Creates both pools, each with volumes of these names and sizes.
    fn with(p: &[(&str, u64)], q: &[(&str, u64)]) -> Self {
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

    fn path(&self, pool: &str) -> PathBuf {
        self.dir.path().join(pool)
    }

    /// A command on both pools.
    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(ORLOP);
        let pools = format!("p={},q={}", self.path("p").display(), self.path("q").display());
        command.args(arguments.split_whitespace()).arg("--pool").arg(pools);
        command
    }

    /// Runs a command on both pools.
    fn run(&self, arguments: &str) -> Ran {
        run(&mut self.command(arguments))
    }
}

/// Sets the age of a volume to a little more than this.
fn set_age(pool: &Path, name: &str, hours: i64) {
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
POOL  NAME  SIZE   AGE  STATE
p     a     -      2d   ok
p     b     1.5Gi  5h   ok
q     data  10Gi   1m   ok
";
    assert_eq!(pools.run("ls"), Ran { code: 0, stdout: table.into(), stderr: String::new() });
    assert_eq!(pools.run("list").stdout, table);
    for ids in ["ls -q", "ls --quiet"] {
        assert_eq!(pools.run(ids).stdout, "p/a\np/b\nq/data\n");
    }
    let volumes = pools.run("ls -o json").json();
    let created = &volumes[1]["created"];
    assert!(created.as_str().unwrap().ends_with('Z'), "{created}");
    assert_eq!(
        volumes[1],
        json!({"id": "p/b", "pool": "p", "name": "b", "size": 3 << 29, "created": created, "state": "ok"})
    );
    assert_eq!(volumes.as_array().unwrap().len(), 3);
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
}

#[test]
fn ls_without_volumes_prints_the_header_an_empty_array_or_nothing() {
    let pools = Pools::with(&[], &[]);
    assert_eq!(pools.run("ls").stdout, "POOL  NAME  SIZE  AGE  STATE\n");
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
POOL  NAME     SIZE  AGE  STATE
p     damaged  -     -    unreadable
p     good     4Ki   1m   ok
q     mine     -     -    unmanaged
";
    assert_eq!(listed, Ran { code: 0, stdout: table.into(), stderr: String::new() });
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
    let advice = "no pools: name them with --pool NAME=DIR or --config FILE, or in /etc/orlop/orlop.toml";
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
    for wrong in ["ls -q -o json", "ls -o yaml", "ls extra", "ls --all"] {
        let ran = pools.run(wrong);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{wrong}");
        assert!(ran.stderr.starts_with("error: "), "{wrong}: {}", ran.stderr);
    }
}
