//! Commands on a terminal, and with a reader that closes its pipe.
#![expect(clippy::disallowed_methods, reason = "the program under test and its terminal are processes")]

use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};

use super::backup::{data, pools_with_data, ran_well, shell};
use super::commands::{Pools, run};
use crate::common::isolation::is_root;
use crate::common::server::ORLOP;

/// Runs a command on a terminal of 40 columns, and writes its input in two parts: the second one when the terminal shows
/// `entries`. Prints what the terminal has got.
const ON_TERMINAL: &str = r#"
import fcntl, os, pty, select, struct, subprocess, sys, termios, time
archive = open(sys.argv[1], "rb").read()
ours, terminal = pty.openpty()
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=terminal, stderr=terminal)
os.close(terminal)
child.stdin.write(archive[:len(archive) // 2])
child.stdin.flush()
shown, deadline, is_complete = b"", time.monotonic() + 120, False
while time.monotonic() < deadline:
    if not is_complete and b"entries" in shown:
        child.stdin.write(archive[len(archive) // 2:])
        child.stdin.close()
        is_complete = True
    if select.select([ours], [], [], 1)[0]:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
sys.stdout.buffer.write(shown)
sys.exit(child.wait())
"#;

/// Runs a command whose standard error is a terminal of 40 columns, and reads its output when the terminal shows `%`. Prints
/// what the terminal has got.
const UNREAD: &str = r#"
import fcntl, os, pty, struct, subprocess, sys, termios
ours, terminal = pty.openpty()
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=terminal)
os.close(terminal)
shown = b""
while b"%" not in shown:
    shown += os.read(ours, 4096)
while child.stdout.read(1 << 20):
    pass
sys.stdout.buffer.write(shown)
sys.exit(child.wait())
"#;

/// The lines that replaced each other on a terminal.
fn lines(shown: &str) -> impl Iterator<Item = &str> {
    shown.split(['\r', '\u{1b}']).map(|line| line.trim_start_matches("[2K"))
}

#[test]
fn what_takes_long_shows_a_bar_if_its_total_is_known() {
    let pools = Pools::with(&[("a", 0)], &[]);
    let mut random = vec![0; 16 << 20];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
    fs::write(data(&pools, "a").join("big"), random).unwrap();
    ran_well(&pools.run("snapshot create a s --consistency none"));
    let backup = pools.command("backup s");
    let mut terminal = Command::new("timeout");
    terminal.args(["60", "python3", "-c", UNREAD]).arg(backup.get_program()).args(backup.get_args());
    for (key, value) in backup.get_envs() {
        value.map(|value| terminal.env(key, value));
    }
    let ran = run(terminal.env("TERM", "xterm"));
    assert_eq!(ran.code, 0, "{ran:?}");
    let line = lines(&ran.stdout).find(|line| line.contains('%')).unwrap();
    assert!(line.contains(">  ") && line.contains(" entries") && line.chars().count() <= 40, "{line:?}");
}

#[test]
fn what_takes_long_shows_its_progress_on_a_narrow_terminal() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    fs::write(data(&pools, "a").join("big"), vec![7; 1 << 20]).unwrap();
    let archive = pools.dir.path().join("a.tar");
    ran_well(&pools.run(&format!("backup a -o {}", archive.display())));
    let restore = pools.command("restore - b");
    let mut terminal = Command::new("python3");
    terminal.args(["-c", ON_TERMINAL]).arg(&archive).arg(restore.get_program()).args(restore.get_args());
    for (key, value) in restore.get_envs() {
        value.map(|value| terminal.env(key, value));
    }
    let ran = run(terminal.env("TERM", "xterm").stdin(Stdio::null()));
    assert_eq!(ran.code, 0, "{ran:?}");
    let (progress, rest) = ran.stdout.rsplit_once("\u{1b}[2K").unwrap();
    let lines: Vec<_> = lines(progress).filter(|line| line.contains("entries")).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line.len() <= 40), "{lines:?}");
    assert!(progress.ends_with('\r'), "the last line is cleared: {progress:?}");
    assert!(rest.contains("standard input is a backup") && rest.ends_with("p/b\r\n"), "{rest:?}");

    let quiet = pools.run(&format!("restore {} c", archive.display()));
    assert!(!quiet.stderr.contains('\r'), "{quiet:?}");
}

/// Runs a command on a terminal, and prints what the terminal has got.
const ON_PLAIN_TERMINAL: &str = r#"
import os, pty, select, subprocess, sys, time
ours, terminal = pty.openpty()
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal)
os.close(terminal)
shown, deadline = b"", time.monotonic() + 60
while time.monotonic() < deadline:
    if select.select([ours], [], [], 1)[0]:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
child.wait()
sys.stdout.buffer.write(shown)
"#;

/// Help and the errors of wrong flags have colours. Tables, ids and errors of commands have none.
#[test]
fn colours_are_only_on_a_terminal_and_not_with_no_color() {
    let pools = Pools::with(&[("a", 4096)], &[]);
    let cases = [
        ("--help", true),
        ("ls --help", true),
        ("ls --colour", true),
        ("ls", false),
        ("ls -o wide", false),
        ("inspect a", false),
        ("df", false),
        ("doctor", false),
        ("rm none", false),
    ];
    for (arguments, has_colours) in cases {
        let piped = pools.run(arguments);
        assert!(!format!("{piped:?}").contains("u{1b}"), "{arguments}: {piped:?}");
        assert!(!piped.stdout.is_empty() || !piped.stderr.is_empty(), "{arguments}");
        let on_terminal = |term: &str, no_color: Option<&str>| {
            let orlop = pools.command(arguments);
            let mut terminal = Command::new("python3");
            terminal.args(["-c", ON_PLAIN_TERMINAL]).arg(orlop.get_program()).args(orlop.get_args());
            for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
                terminal.env_remove(name);
            }
            no_color.map(|value| terminal.env("NO_COLOR", value));
            let shown = run(terminal.env("TERM", term)).stdout;
            assert!(!shown.is_empty(), "{arguments}");
            shown.contains('\u{1b}')
        };
        assert_eq!(on_terminal("xterm-256color", None), has_colours, "{arguments}");
        assert!(!on_terminal("xterm-256color", Some("1")), "{arguments} with NO_COLOR");
        assert!(!on_terminal("dumb", None), "{arguments} with TERM=dumb");
    }
}

#[test]
fn a_reader_that_closes_its_pipe_causes_neither_a_panic_nor_noise() {
    let pools = Pools::with(&[("a", 0)], &[]);
    let archive = pools.dir.path().join("a.tar");
    ran_well(&pools.run(&format!("backup a -o {}", archive.display())));
    let archive = archive.display().to_string();
    let unread = |mut command: Command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (child.wait().unwrap().code().unwrap(), stderr)
    };
    for arguments in [
        "ls",
        "ls -o wide",
        "ls -o json",
        "ls --trash",
        "inspect a",
        "df",
        "df -v",
        "snapshot ls",
        "doctor",
        "check",
        "--help",
        "prune --all --dry-run",
        "create b",
    ] {
        assert_eq!(unread(pools.command(arguments)), (0, String::new()), "{arguments}");
    }
    for arguments in [
        vec!["completions", "bash"],
        vec!["--version"],
        vec!["backup", "ls", &archive],
        vec!["backup", "verify", &archive],
    ] {
        let mut command = Command::new(ORLOP);
        command.args(&arguments);
        assert_eq!(unread(command), (0, String::new()), "{arguments:?}");
    }
    // A backup whose reader has gone is a failure.
    let (code, stderr) = unread(pools.command("backup a"));
    assert!(code == 1 && stderr.lines().count() == 1 && stderr.contains("Broken pipe"), "{code} {stderr}");
}

/// The two commands of an article about volumes, which run busybox with the volume and the current directory mounted.
#[test]
fn the_usual_backup_and_restore_by_a_container_work_without_one() {
    if !is_root() {
        return;
    }
    let pools = Pools::with(&[("source", 0), ("target", 0)], &[]);
    let dir = pools.dir.path();
    fs::create_dir(dir.join("data")).unwrap();
    shell(
        "mkdir sub; echo text > sub/file; ln sub/file again; chown 7:8 sub; touch -d @1700000000 again sub .",
        &data(&pools, "source"),
    );
    let exec = |volume: &str, script: &str| {
        let at = dir.join("data").display().to_string();
        ran_well(&run(pools
            .command(&format!("exec {volume}"))
            .args(["--at", &at, "--", "sh", "-c", script])));
    };
    exec("source", &format!("tar czf {0}/backup.tar.gz -C {0} data", dir.display()));
    exec("target", &format!("tar xzf {0}/backup.tar.gz -C {0}", dir.display()));
    let same = super::trees::facts(&data(&pools, "source"))
        .into_iter()
        .map(|(path, facts)| (path, facts.without_access()))
        .collect::<Vec<_>>();
    let target = super::trees::facts(&data(&pools, "target"));
    assert_eq!(
        target.into_iter().map(|(path, facts)| (path, facts.without_access())).collect::<Vec<_>>(),
        same
    );
    let ran = pools.run(&format!("restore {}/backup.tar.gz third", dir.display()));
    ran_well(&ran);
    assert!(ran.stderr.contains("is an archive of a container's data/"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(data(&pools, "third").join("sub/file")).unwrap(), "text\n");
}
