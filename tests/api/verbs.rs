//! Commands that make and change volumes and snapshots, with and without a server beside them.
#![expect(clippy::disallowed_methods, reason = "the program under test is a process")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use orlop::csi::proto::ListVolumesRequest;
use serde_json::json;

use crate::api::commands::{Pools, Ran, run};
use crate::common::isolation;
use crate::common::pool::{contents_and_times, names, read_record, snapshot_record, volume_record};
use crate::common::server::{ORLOP, Server};
use crate::common::wait::within_seconds;

fn done(stdout: &str) -> Ran {
    Ran { code: 0, stdout: stdout.into(), stderr: String::new() }
}

fn refused(ran: &Ran, code: i32, expected: &str) {
    assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
}

#[test]
fn create_makes_a_volume_with_its_options_and_labels() {
    let pools = Pools::with(&[], &[]);
    let options = "-o size=10,mode=0750,ONDELETE=trash -o trashfor=2d -o label.team=a --label app=shop";
    assert_eq!(pools.run(&format!("create data {options}")), done("p/data\n"));
    assert_eq!(pools.run(&format!("volume create data {options} -d orlop")), done("p/data\n"), "again");
    let record = read_record(&volume_record(&pools.path("p"), "data"));
    assert_eq!(record["size"], json!(10_u64 << 30));
    assert_eq!(record["policy"], json!({"onDelete": "trash", "trashFor": 172_800, "limit": "auto"}));
    assert_eq!(record["labels"], json!({"app": "shop", "team": "a"}));
    let mode = fs::metadata(pools.path("p").join("volumes/data/data")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o750);
    assert_eq!(pools.run("create other -o pool=q -o size=512m"), done("q/other\n"));
    assert_eq!(pools.run("volume ls -q").stdout, "p/data\nq/other\n");
}

#[test]
fn create_sets_an_owner_by_name() {
    if !isolation::is_root() {
        return;
    }
    let pools = Pools::with(&[], &[]);
    assert_eq!(pools.run("create data -o uid=nobody,gid=12"), done("p/data\n"));
    let data = fs::metadata(pools.path("p").join("volumes/data/data")).unwrap();
    assert_eq!((data.uid(), data.gid()), (65534, 12));
}

#[test]
fn a_volume_without_a_name_is_anonymous_as_dockers_are() {
    let pools = Pools::with(&[], &[]);
    let ran = pools.run("create");
    let name = ran.stdout.trim_end().strip_prefix("p/").unwrap();
    assert!(name.len() == 64 && name.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')), "{name}");
    let record = read_record(&volume_record(&pools.path("p"), name));
    assert_eq!(record["labels"], json!({"com.docker.volume.anonymous": ""}));
}

#[test]
fn a_wrong_request_for_a_volume_is_refused_and_creates_nothing() {
    let pools = Pools::with(&[("a", 4096)], &[("b", 0)]);
    assert_eq!(pools.run("snapshot create b taken").code, 0);
    let before = contents_and_times(pools.dir.path());
    for (arguments, code, expected) in [
        ("create x -o colour=red", 2, "unknown option \"colour\""),
        ("create x -o size=much", 2, "option size: \"much\" is not a size"),
        ("create x -o pool=none", 2, "pool none does not exist; the configured pools are: p, q"),
        ("create x -o uid=nobody-here", 2, "neither a number nor in /etc/passwd"),
        ("create x -o limit=hard", 2, "cannot enforce a size"),
        ("create x --label =v", 2, "is not KEY=VALUE"),
        ("create x -d local", 2, "invalid value 'local'"),
        ("create ../x", 2, "name \"../x\" is not 1 to 64 letters"),
        ("create x -o from=none", 3, "no volume and no snapshot \"none\" exists"),
        ("create a -o size=1G", 1, "volume p/a exists with size"),
        ("create b", 1, "volume b already exists in pool q"),
        ("create x -o size=8000000T", 1, "pool p"),
        ("clone none x", 3, "volume none does not exist"),
        ("clone p/none x", 3, "volume p/none does not exist"),
        ("clone a x -o from=b", 2, "option from"),
        ("restore a x", 3, "snapshot a does not exist"),
        ("snapshot create none x", 3, "volume none does not exist"),
        ("snapshot rm none", 3, "snapshot none does not exist"),
        ("snapshot rm r/s", 2, "pool r does not exist; the configured pools are: p, q"),
        ("snapshot create r/a s", 2, "pool r does not exist"),
        ("snapshot create a taken", 1, "snapshot taken already exists in pool q"),
        ("create x -o ondelete=delete,trashfor=1d", 2, "option trashfor needs ondelete=trash"),
        ("expand none 1G", 3, "volume none does not exist"),
        ("expand a 1b", 2, "--shrink makes a volume smaller"),
        ("expand a 4k --shrink", 2, "is not a smaller size"),
        ("expand a 0 --shrink", 2, "is not a smaller size"),
        ("expand a much", 2, "the new size"),
        ("label none x=y", 3, "volume none does not exist"),
        ("label a x", 2, "neither KEY=VALUE nor KEY-"),
    ] {
        for arguments in [arguments.to_owned(), format!("{arguments} --dry-run")] {
            let ran = pools.run(&arguments);
            assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{arguments}: {}", ran.stderr);
            assert!(ran.stderr.contains(expected), "{arguments}: {}", ran.stderr);
        }
    }
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
}

#[test]
fn a_dry_run_prints_what_would_be_done_and_changes_nothing() {
    let pools = Pools::with(&[("a", 4096)], &[]);
    assert_eq!(pools.run("snapshot create a s").code, 0);
    let before = contents_and_times(pools.dir.path());
    for (arguments, expected) in [
        ("create x -o size=1g --dry-run", "would create volume p/x, size 1Gi (1073741824 bytes)\n"),
        ("clone a x --dry-run", "would create volume p/x from volume p/a\n"),
        ("restore s x --dry-run", "would create volume p/x from snapshot p/s\n"),
        ("expand a 1m --dry-run", "would expand volume p/a from 4Ki (4096 bytes) to 1Mi (1048576 bytes)\n"),
        ("label a x=y z- --dry-run", "would change 2 labels of volume p/a\n"),
        ("snapshot create a t --dry-run", "would create snapshot p/t of volume p/a\n"),
        ("snapshot rm s --dry-run", "would delete snapshot p/s\n"),
        ("rm a --dry-run", "would delete volume p/a\n"),
        ("create a -o size=4096b --dry-run", "volume p/a exists already\n"),
        ("snapshot create a s --dry-run", "snapshot p/s exists already\n"),
    ] {
        assert_eq!(pools.run(arguments), done(expected), "{arguments}");
    }
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
}

#[test]
fn snapshots_are_created_listed_restored_and_deleted() {
    let pools = Pools::with(&[("a", 4 << 20)], &[]);
    let (p, file) = (pools.path("p"), "data/file");
    fs::write(p.join("volumes/a").join(file), "one").unwrap();
    assert_eq!(pools.run("snapshot create a s --label why=upgrade"), done("p/s\n"));
    assert_eq!(pools.run("snapshot create a s"), done("p/s\n"), "again");
    fs::write(p.join("volumes/a").join(file), "two").unwrap();
    let table = "\
POOL  NAME  VOLUME  BYTES  AGE  CONSISTENCY  STATE
p     s     a       3      0s   crash        ok
";
    let listed = pools.run("snapshot ls").stdout;
    let lines = |text: &str| text.lines().map(|line| line.replace("  1s", "  0s")).collect::<Vec<_>>();
    assert_eq!(lines(&listed).first(), lines(table).first());
    assert_eq!(pools.run("snapshot ls -q"), done("p/s\n"));
    assert_eq!(pools.run("restore s old"), done("p/old\n"));
    assert_eq!(pools.run("clone a new -o size=8m,label.x=y"), done("p/new\n"));
    assert_eq!(pools.run("create third -o from=s,pool=q"), done("q/third\n"));
    let read = |pool: &str, volume: &str| {
        fs::read_to_string(pools.path(pool).join("volumes").join(volume).join(file)).unwrap()
    };
    assert_eq!([read("p", "old"), read("p", "new"), read("q", "third")], ["one", "two", "one"]);
    let record = |volume: &str| read_record(&volume_record(&p, volume));
    assert_eq!((&record("old")["size"], &record("new")["size"]), (&json!(4 << 20), &json!(8 << 20)));
    assert_eq!(record("new")["labels"], json!({"x": "y"}));
    assert_eq!(pools.run("snapshot rm s"), done("p/s\n"));
    assert_eq!(pools.run("snapshot ls -q"), done(""));
    refused(&pools.run("clone a small -o size=1m"), 2, "is less than the size of volume p/a");
}

#[test]
fn a_volume_shrinks_on_request_to_no_less_than_it_uses() {
    let pools = Pools::with(&[("a", 8 << 20), ("unlimited", 0)], &[]);
    let p = pools.path("p");
    fs::write(p.join("volumes/a/data/file"), vec![1; 3 << 20]).unwrap();
    fs::create_dir_all(p.join("volumes/mine/data")).unwrap();
    let before = contents_and_times(pools.dir.path());
    for (arguments, expected) in [
        ("expand a 2m --shrink", "volume p/a uses 3"),
        ("expand a 2m --shrink", "more than 2Mi (2097152 bytes): remove files, or choose a larger size"),
        (
            "expand a 9m --shrink",
            "volume p/a has 8Mi (8388608 bytes), and 9Mi (9437184 bytes) is not a smaller size",
        ),
        ("expand unlimited 9m --shrink", "has no size"),
        ("expand mine 9m --shrink", "is unmanaged"),
    ] {
        refused(&pools.run(arguments), 2, expected);
        refused(&pools.run(&format!("{arguments} --dry-run")), 2, expected);
    }
    let would = "would shrink volume p/a from 8Mi (8388608 bytes) to 4Mi (4194304 bytes)\n";
    assert_eq!(pools.run("expand a 4m --shrink --dry-run"), done(would));
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
    assert_eq!(pools.run("expand a 4m --shrink"), done("p/a 4Mi\n"));
    assert_eq!(read_record(&volume_record(&p, "a"))["size"], json!(4 << 20));
    let ls: serde_json::Value = pools.run("df -o json").json();
    assert_eq!(ls[0]["provisioned"], json!(4 << 20), "the rest can be provisioned again");
    assert_eq!(pools.run("create claimed -o size=8m --label csi.storage.k8s.io/pvc/name=x").code, 0);
    let ran = pools.run("expand claimed 4m --shrink");
    assert!(ran.code == 0 && ran.stderr.contains("that of claim /x"), "{ran:?}");
}

#[test]
fn expand_and_label_change_the_record() {
    let pools = Pools::with(&[("a", 4096)], &[]);
    assert_eq!(pools.run("expand a 1.5m"), done("p/a 1.5Mi\n"));
    assert_eq!(pools.run("label a app=shop old=x empty="), done("p/a\n"));
    assert_eq!(pools.run("label p/a old- app=cart"), done("p/a\n"));
    let record = read_record(&volume_record(&pools.path("p"), "a"));
    assert_eq!((&record["size"], &record["labels"]), (&json!(3 << 19), &json!({"app": "cart", "empty": ""})));
    fs::create_dir_all(pools.path("p").join("volumes/mine/data")).unwrap();
    refused(&pools.run("label mine a=b"), 2, "unmanaged");
}

#[test]
fn snapshots_of_the_available_pools_are_listed() {
    let pools = Pools::with(&[("a", 4096)], &[("b", 0)]);
    for arguments in
        ["snapshot create a s --label why=upgrade", "snapshot create a worse", "snapshot create b t"]
    {
        assert_eq!(pools.run(arguments).code, 0);
    }
    fs::write(snapshot_record(&pools.path("p"), "worse"), "{").unwrap();
    let listed = pools.run("snapshot ls -o json").json();
    let (s, worse) = (&listed[0], &listed[1]);
    assert_eq!((&s["id"], &s["sourceVolume"], &s["state"]), (&json!("p/s"), &json!("p/a"), &json!("ok")));
    assert_eq!((&s["size"], &s["labels"]), (&json!(4096), &json!({"why": "upgrade"})));
    assert_eq!((&worse["id"], &worse["state"]), (&json!("p/worse"), &json!("unreadable")));
    assert!(worse["error"].as_str().unwrap().contains("snapshots/worse/snapshot.json"), "{worse}");
    assert!(pools.run("snapshot ls").stdout.contains("unreadable\n"));
    fs::remove_dir_all(pools.path("p")).unwrap();
    let listed = pools.run("snapshot ls -q");
    assert_eq!((listed.code, listed.stdout.as_str()), (1, "q/t\n"));
    assert!(listed.stderr.starts_with("orlop: pool p at /"), "{}", listed.stderr);
}

/// The trash is due, and only a server removes it.
#[test]
fn a_failed_copy_removes_no_trash_of_others() {
    let pools = Pools::with(&[("a", 4096), ("deleted", 0)], &[]);
    let p = pools.path("p");
    assert_eq!(pools.run("rm deleted").code, 0);
    let trash = names(&p.join("trash"));
    assert_eq!(trash.len(), 1);
    fs::write(p.join("volumes/a/data/file"), vec![1; 1 << 20]).unwrap();
    refused(&pools.run("clone a copy"), 2, "volume p/copy");
    assert_eq!(names(&p.join("trash")), trash);
    assert_eq!(names(&p.join("work")), Default::default());
}

#[test]
fn help_fits_a_narrow_terminal() {
    for command in ["create", "snapshot create", "ls", "expand"] {
        let mut orlop = Command::new(ORLOP);
        orlop.args(command.split_whitespace()).arg("--help").env("COLUMNS", "40").stdin(Stdio::null());
        let text = run(&mut orlop).stdout;
        let is_wide = |line: &&str| line.len() > 40 && !line.starts_with("Usage: ");
        let wide = text.lines().find(is_wide);
        assert_eq!(wide, None, "{command}");
    }
}

/// Interrupted by SIGINT as soon as its draft exists.
#[test]
fn an_interrupted_copy_leaves_nothing() {
    let pools = Pools::with(&[("a", 0), ("deleted", 0)], &[]);
    assert_eq!(pools.run("rm deleted").code, 0);
    let p = pools.path("p");
    let trash = names(&p.join("trash"));
    for i in 0..5_000 {
        fs::write(p.join("volumes/a/data").join(i.to_string()), "x").unwrap();
    }
    for arguments in ["clone a copy", "snapshot create a copy"] {
        let child = pools.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        within_seconds(60, "the copy has a draft", || !names(&p.join("work")).is_empty());
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("interrupted; nothing was created"), "{stderr}");
        assert_eq!(names(&p.join("trash")), trash, "{arguments}: the trash of others remains");
        for directory in ["work", "snapshots"] {
            assert_eq!(names(&p.join(directory)), Default::default(), "{arguments}: {directory}");
        }
        assert_eq!(names(&p.join("volumes")), ["a".to_owned()].into());
    }
}

#[tokio::test]
async fn a_server_sees_what_commands_make_and_change() {
    let server = Server::start(true);
    let mut controller = server.controller().await;
    let orlop = |arguments: &str| {
        let mut command = Command::new(ORLOP);
        command.args(arguments.split_whitespace()).arg(format!("--pool=p={}", server.pool().display()));
        let ran = run(&mut command);
        assert_eq!(ran.code, 0, "{arguments}: {}", ran.stderr);
    };
    orlop("create a -o size=1m");
    orlop("snapshot create a s");
    orlop("restore s b");
    orlop("expand a 2m");
    let listed = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    let sizes: Vec<_> = listed
        .entries
        .into_iter()
        .map(|entry| entry.volume.unwrap())
        .map(|volume| (volume.volume_id, volume.capacity_bytes))
        .collect();
    assert_eq!(sizes, [("p/a".to_owned(), 2 << 20), ("p/b".to_owned(), 1 << 20)]);
    orlop("rm a b");
    orlop("snapshot rm s");
    let listed = controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert!(listed.entries.is_empty());
}

/// The commands run in a mount namespace with an empty `/etc` and `/var/lib`.
#[test]
fn the_first_create_of_a_host_without_settings_makes_a_pool_and_says_so() {
    if !isolation::is_root() {
        return;
    }
    let script = "\
mount -t tmpfs none /etc && mount -t tmpfs none /var/lib
$0 ls -q; echo $?
$0 create a --dry-run && $0 create a -o limit=hard --dry-run && ls /var/lib
$0 create ../x; $0 create x -o pool=ssd; $0 create x -o from=y; $0 create x -o from=/missing.tar; ls /var/lib
$0 create a && $0 create b && $0 ls -q";
    let mut command = Command::new("unshare");
    let ran = run(command.args(["--mount", "--propagation", "private", "sh", "-c", script, ORLOP]));
    let expected = "\
2
would make /var/lib/orlop a pool and create volume default/a
would make /var/lib/orlop a pool and create volume default/a, if its filesystem can enforce limit=hard
default/a
default/b
default/a
default/b
";
    assert_eq!(ran.stdout, expected, "{}", ran.stderr);
    let told = "/var/lib/orlop is now the pool default, since no settings name another one";
    assert_eq!(ran.stderr.matches(told).count(), 1, "{}", ran.stderr);
}

/// The commands run in a mount namespace with an empty `/etc`, `/var/lib` and `/srv`, on one filesystem but for `/srv/other`.
#[test]
fn the_first_volume_of_a_host_may_be_restored_or_adopted() {
    if !isolation::is_root() {
        return;
    }
    let script = "\
mount -t tmpfs none /etc && mount -t tmpfs none /var/lib && mkdir /var/lib/shop /var/lib/shop/sub /var/lib/other
mount -t tmpfs none /var/lib/other && mkdir /var/lib/other/shop
echo text >/var/lib/shop/file && tar cf /var/lib/a.tar -C /var/lib/shop . && ln -s shop /var/lib/link
rest() { ls /var/lib | grep -v -e ^shop$ -e ^other$ -e ^a.tar$ -e ^link$; }
$0 restore /var/lib/none.tar x; $0 restore /var/lib/a.tar ../x; $0 restore /var/lib/a.tar x -o pool=ssd
$0 restore snapshot x; $0 restore /var/lib/a.tar x --replace; $0 restore /var/lib/shop x; $0 create x -o from=/dev/null
$0 adopt /var/lib/none; $0 adopt /var/lib/shop ../x; $0 adopt /var/lib/shop -o pool=ssd; $0 adopt /var/lib/link
$0 adopt /var/lib all; $0 adopt /var/lib/shop/file; $0 adopt default/mine; $0 adopt /var/lib/other/shop
rest
$0 restore /var/lib/a.tar x --dry-run; $0 adopt /var/lib/shop --dry-run; rest
$0 $1 && cat /var/lib/orlop/volumes/*/data/file && $0 ls -q";
    let ran_first = |first: &str| {
        let mut command = Command::new("unshare");
        let script = script.replace("$1", first);
        run(command.args(["--mount", "--propagation", "private", "sh", "-c", &script, ORLOP]))
    };
    let told = "orlop: /var/lib/orlop is now the pool default, since no settings name another one\n";
    for (first, name) in [("restore /var/lib/a.tar x", "x"), ("adopt /var/lib/shop", "shop")] {
        let ran = ran_first(first);
        let expected = format!(
            "would make /var/lib/orlop a pool and create volume default/x from /var/lib/a.tar\n\
             would make /var/lib/orlop a pool and adopt directory /var/lib/shop as volume default/shop\n\
             default/{name}\ntext\ndefault/{name}\n"
        );
        assert_eq!(ran.stdout, expected, "{}", ran.stderr);
        assert_eq!(ran.stderr.matches(told).count(), 1, "{}", ran.stderr);
        let (refusals, _) = ran.stderr.split_once(told).unwrap();
        for refusal in [
            "/var/lib/none.tar does not exist",
            "/var/lib/shop is a directory: name an archive",
            "/dev/null is neither a file nor a FIFO: name an archive",
            "is not 1 to 64 letters",
            "pool ssd does not exist; the only pool is default",
            "no pools: name them",
            "directory /var/lib/none does not exist",
            "its path has a symbolic link",
            "a pool is inside of it",
            "/var/lib/shop/file is not a directory",
            "is on another filesystem than /var/lib/orlop, which would become the pool",
        ] {
            assert!(refusals.contains(refusal), "{refusal}: {refusals}");
        }
        assert_eq!(refusals.matches("orlop: ").count(), 15, "each is refused: {refusals}");
    }
}

/// The commands run in a mount namespace with an empty `/etc` and `/var/lib`.
#[test]
fn the_first_volume_of_a_host_may_come_from_a_fifo() {
    if !isolation::is_root() {
        return;
    }
    let script = "\
mount -t tmpfs none /etc && mount -t tmpfs none /var/lib && mkdir /var/lib/shop && mkfifo /var/lib/fifo
echo text >/var/lib/shop/file && tar cf /var/lib/a.tar -C /var/lib/shop .
cat /var/lib/a.tar >/var/lib/fifo &
timeout -k 1 10 $0 $1 && wait $! && cat /var/lib/orlop/volumes/x/data/file";
    for first in ["restore /var/lib/fifo x", "create x -o from=/var/lib/fifo"] {
        let mut command = Command::new("unshare");
        let script = script.replace("$1", first);
        let ran = run(command.args(["--mount", "--propagation", "private", "sh", "-c", &script, ORLOP]));
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "default/x\ntext\n"), "{first}: {}", ran.stderr);
    }
}

/// A volume that cannot be made leaves the first pool, which is empty and which the next command uses.
#[test]
fn a_first_volume_that_fails_leaves_an_empty_pool() {
    if !isolation::is_root() {
        return;
    }
    let script = "\
mount -t tmpfs none /etc && mount -t tmpfs none /var/lib && head -c 2000 /dev/urandom >/var/lib/bad.tar
$0 restore /var/lib/bad.tar a; echo $?; ls /var/lib/orlop/volumes /var/lib/orlop/trash /var/lib/orlop/work | grep -v :
$0 create a";
    let mut command = Command::new("unshare");
    let ran = run(command.args(["--mount", "--propagation", "private", "sh", "-c", script, ORLOP]));
    let lines: Vec<_> = ran.stdout.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines, ["1", "default/a"], "{}", ran.stderr);
}

#[test]
fn a_command_that_waits_for_the_writer_of_a_fifo_ends_by_a_signal() {
    let pools = Pools::with(&[("a", 0)], &[]);
    let fifo = pools.dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let fifo = fifo.display();
    let commands = [
        format!("restore {fifo} x"),
        format!("restore {fifo} a --replace"),
        format!("create x -o from={fifo}"),
    ];
    for arguments in commands {
        let command = pools.command(&arguments);
        let mut limited = Command::new("timeout");
        limited.args(["--kill-after=2", "1"]).arg(command.get_program()).args(command.get_args());
        // `timeout` has no exit code if only SIGKILL has ended the command.
        assert_eq!(run(&mut limited).code, 124, "{arguments}");
        assert_eq!(names(&pools.path("p").join("volumes")), ["a".to_owned()].into(), "{arguments}");
    }
}
