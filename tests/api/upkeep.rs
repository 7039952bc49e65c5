//! Commands that keep pools in order: listings with filters, prune, df, rename, undelete, adopt, exec, doctor.
#![expect(clippy::disallowed_methods, reason = "the program under test is a process")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use orlop::csi::proto::ListVolumesRequest;
use rustix::mount::UnmountFlags;
use serde_json::{Value, json};

use crate::api::commands::{Container, Pools, Ran, run, set_age};
use crate::common::isolation;
use crate::common::pool::{contents_and_times, edit_record, names, read_record, volume_record};
use crate::common::server::{ORLOP, Server};

fn done(stdout: &str) -> Ran {
    Ran { code: 0, stdout: stdout.into(), stderr: String::new() }
}

/// Runs wrong commands, with and without `--dry-run`: each is refused with this code and text and changes nothing.
fn refused(pools: &Pools, cases: &[(&str, i32, &str)]) {
    let before = contents_and_times(pools.dir.path());
    for (arguments, code, expected) in cases {
        for arguments in [(*arguments).to_owned(), format!("{arguments} --dry-run")] {
            let ran = pools.run(&arguments);
            assert_eq!((ran.code, ran.stdout.as_str()), (*code, ""), "{arguments}: {}", ran.stderr);
            assert!(ran.stderr.contains(expected), "{arguments}: {}", ran.stderr);
        }
    }
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
}

#[test]
fn rename_gives_an_unused_volume_another_name() {
    let pools = Pools::with(&[("a", 4096)], &[("taken", 0)]);
    let p = pools.path("p");
    fs::write(p.join("volumes/a/data/file"), "text").unwrap();
    let uid = read_record(&volume_record(&p, "a"))["uid"].clone();
    fs::create_dir_all(p.join("volumes/mine/data")).unwrap();
    assert_eq!(pools.run("create claimed --label csi.storage.k8s.io/pvc/name=x").code, 0);
    refused(
        &pools,
        &[
            ("rename none x", 3, "volume none does not exist"),
            ("rename a ../x", 2, "is not 1 to 64 letters"),
            ("rename a a", 2, "has this name already"),
            ("rename a mine", 1, "volume p/mine already exists"),
            ("rename a taken", 1, "volume taken already exists in pool q"),
            ("rename mine x", 2, "volume p/mine is unmanaged"),
            ("rename claimed x", 2, "whose PersistentVolume has its name"),
        ],
    );
    assert_eq!(pools.run("rename a b --dry-run"), done("would rename volume p/a to p/b\n"));
    assert_eq!(pools.run("rename a b"), done("p/b\n"));
    let record = read_record(&volume_record(&p, "b"));
    assert_eq!((&record["id"], &record["requestedName"], &record["uid"]), (&json!("p/b"), &json!("b"), &uid));
    assert_eq!(fs::read_to_string(p.join("volumes/b/data/file")).unwrap(), "text");
    assert_eq!(pools.run("inspect a").code, 3);
    assert_eq!(pools.run("create b -o size=4096b"), done("p/b\n"), "the same request finds it");
}

/// As after a crash between the rename and the new record.
#[test]
fn a_renamed_volume_has_the_name_of_its_directory_whatever_its_record_says() {
    let pools = Pools::with(&[("a", 4096)], &[]);
    let volumes = pools.path("p").join("volumes");
    fs::rename(volumes.join("a"), volumes.join("b")).unwrap();
    assert_eq!(pools.run("inspect b").json()[0]["requestedName"], json!("b"));
    assert_eq!(pools.run("create b -o size=4096b"), done("p/b\n"));
}

#[test]
fn a_volume_in_use_is_neither_renamed_nor_pruned() {
    if !isolation::is_root() {
        return;
    }
    let pools = Pools::with(&[("a", 0)], &[]);
    let container =
        Container::start(&pools.path("p").join("volumes/a/data"), &pools.dir.path().join("target"));
    refused(&pools, &[("rename a b", 4, "volume p/a is in use by process")]);
    assert_eq!(pools.run("prune --all --force"), done("nothing to delete\n"));
    assert_eq!(pools.run("ls -q -f dangling=true").stdout, "");
    assert_eq!(pools.run("ls -q -f dangling=false").stdout, "p/a\n");
    let wide = pools.run("ls -o wide").stdout;
    let pid = format!("process {}", container.0.id());
    assert!(wide.lines().nth(1).unwrap().contains(&pid), "{wide}");
    drop(container);
    let table = pools.run("ls").stdout;
    assert!(table.lines().nth(1).unwrap().ends_with("dangling"), "{table}");
    assert_eq!(pools.run("rename a b").code, 0);
}

#[test]
fn a_listing_of_many_mounted_volumes_needs_few_open_files() {
    isolation::in_own_process("api::upkeep::a_listing_of_many_mounted_volumes_needs_few_open_files", || {
        let names: Vec<_> = (0..64).map(|number| format!("v{number}")).collect();
        let volumes: Vec<_> = names.iter().map(|name| (name.as_str(), 0)).collect();
        let pools = Pools::with(&volumes, &[]);
        let target = |name: &String| pools.dir.path().join("targets").join(name);
        for name in &names {
            fs::create_dir_all(target(name)).unwrap();
            let data = pools.path("p").join("volumes").join(name).join("data");
            rustix::mount::mount_bind(data, target(name)).unwrap();
        }
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n 40 && exec \"$@\"", "sh", ORLOP, "ls", "-q", "-f", "dangling=false"]);
        limited.arg(format!("--pool=p={}", pools.path("p").display()));
        let ran = run(&mut limited);
        for name in &names {
            rustix::mount::unmount(target(name), UnmountFlags::empty()).unwrap();
        }
        assert_eq!((ran.code, ran.stdout.lines().count()), (0, names.len()), "{}", ran.stderr);
    });
}

#[tokio::test]
async fn a_server_sees_renamed_restored_and_adopted_volumes() {
    let server = Server::start(true);
    let mut controller = server.controller().await;
    let orlop = |arguments: &str| {
        let mut command = Command::new(ORLOP);
        command.args(arguments.split_whitespace()).arg(format!("--pool=p={}", server.pool().display()));
        let ran = run(&mut command);
        assert_eq!(ran.code, 0, "{arguments}: {}", ran.stderr);
        ran.stdout
    };
    orlop("create a -o size=1m,ondelete=trash");
    orlop("create b -o size=2m,ondelete=trash");
    let directory = server.pool().parent().unwrap().join("existing");
    fs::create_dir(&directory).unwrap();
    let volumes = || ListVolumesRequest::default();
    assert_eq!(controller.list_volumes(volumes()).await.unwrap().into_inner().entries.len(), 2);
    orlop("rename a c");
    orlop("rm b");
    orlop("undelete b");
    orlop(&format!("adopt {} -o size=3m", directory.display()));
    let listed = controller.list_volumes(volumes()).await.unwrap().into_inner().entries;
    let sizes: Vec<_> = listed
        .into_iter()
        .map(|entry| entry.volume.unwrap())
        .map(|volume| (volume.volume_id, volume.capacity_bytes >> 20))
        .collect();
    assert_eq!(sizes, [("p/b".to_owned(), 2), ("p/c".to_owned(), 1), ("p/existing".to_owned(), 3)]);
}

#[test]
fn one_of_several_deleted_volumes_is_chosen_only_if_the_last_one_is_known() {
    let pools = Pools::with(&[], &[]);
    let p = pools.path("p");
    for data in ["first", "second"] {
        assert_eq!(pools.run("create a -o ondelete=retain").code, 0);
        fs::write(p.join("volumes/a/data/file"), data).unwrap();
        assert_eq!(pools.run("rm a").code, 0);
    }
    refused(&pools, &[("undelete a", 2, "the trash has several volumes p/a")]);
    let has_first = |entry: &String| {
        fs::read_to_string(p.join("trash").join(entry).join("data/file")).unwrap() == "first"
    };
    let first = names(&p.join("trash")).into_iter().find(has_first).unwrap();
    assert_eq!(pools.run(&format!("undelete {first}")), done("p/a\n"));
    assert_eq!(fs::read_to_string(p.join("volumes/a/data/file")).unwrap(), "first");
    assert_eq!(pools.run("undelete a --as b"), done("p/b\n"), "only one is left");
}

#[test]
fn a_deleted_volume_is_listed_and_restored_while_the_trash_keeps_it() {
    let pools = Pools::with(&[("gone", 4096)], &[]);
    let p = pools.path("p");
    for (name, policy) in [("a", "ondelete=trash,trashfor=2d"), ("kept", "ondelete=retain")] {
        assert_eq!(pools.run(&format!("create {name} -o size=4096b,{policy} --label app=shop")).code, 0);
        fs::write(p.join("volumes").join(name).join("data/file"), "old").unwrap();
    }
    let uid = read_record(&volume_record(&p, "a"))["uid"].clone();
    assert_eq!(pools.run("rm a kept gone").code, 0);
    assert_eq!(pools.run("create a -o ondelete=trash").code, 0);

    let listed = pools.run("ls --trash -o json").json();
    let shown = |i: usize| (listed[i]["id"].clone(), listed[i]["restorable"].clone());
    let expected =
        [("p/a", true), ("p/gone", false), ("p/kept", true)].map(|(id, is)| (json!(id), json!(is)));
    assert_eq!([shown(0), shown(1), shown(2)], expected);
    let table = pools.run("ls --trash").stdout;
    assert!(table.contains("1d  ") && table.contains("forever  trashed  "), "{table}");
    fs::write(p.join("trash").join(entry_of(&p, "gone")).join("volume.json"), "{").unwrap();
    assert!(pools.run("ls --trash").stdout.contains("no       unreadable  gone."), "{table}");
    assert_eq!(pools.run("ls --trash -o json").json()[1]["state"], json!("unreadable"));
    assert_eq!(pools.run("ls --trash -q").stdout, "p/a\np/gone\np/kept\n");

    refused(
        &pools,
        &[
            ("undelete a", 1, "volume p/a already exists"),
            ("undelete none", 3, "the trash has no volume \"none\""),
            ("undelete q/a", 3, "the trash has no volume"),
            ("undelete gone", 1, "is being removed"),
            ("undelete a --as ../x", 2, "is not 1 to 64 letters"),
        ],
    );
    assert!(
        pools.run("undelete a --as b --dry-run").stdout.starts_with("would restore volume p/b from trash/a.")
    );
    assert_eq!(pools.run("undelete a --as b"), done("p/b\n"));
    let record = read_record(&volume_record(&p, "b"));
    assert_eq!(
        (&record["id"], &record["uid"], &record["labels"]),
        (&json!("p/b"), &uid, &json!({"app": "shop"}))
    );
    assert_eq!(fs::read_to_string(p.join("volumes/b/data/file")).unwrap(), "old");
    assert_eq!(pools.run("undelete p/kept"), done("p/kept\n"));

    // Two of one name: the last one, unless the entry is named.
    assert_eq!(pools.run("rm a").code, 0);
    edit_trash_time(&p, "a", 100);
    assert_eq!(pools.run("create a -o ondelete=trash --label which=last").code, 0);
    assert_eq!(pools.run("rm a").code, 0);
    let first = names(&p.join("trash")).into_iter().find(|name| name.starts_with("a.")).unwrap();
    assert_eq!(pools.run("undelete a"), done("p/a\n"));
    assert_eq!(read_record(&volume_record(&p, "a"))["labels"], json!({"which": "last"}));
    assert_eq!(pools.run(&format!("undelete {first} --as first")), done("p/first\n"));
}

/// The first entry of a volume of this name in the trash.
fn entry_of(pool: &Path, name: &str) -> String {
    names(&pool.join("trash")).into_iter().find(|entry| entry.starts_with(&format!("{name}."))).unwrap()
}

/// Lets the entry of this name in the trash be some seconds older.
fn edit_trash_time(pool: &Path, name: &str, seconds: i64) {
    let (trash, entry) = (pool.join("trash"), entry_of(pool, name));
    let (deleted, rest) = entry[name.len() + 1..].split_once('+').unwrap();
    let older = deleted.parse::<i64>().unwrap() - seconds;
    fs::rename(trash.join(&entry), trash.join(format!("{name}.{older}+{rest}"))).unwrap();
}

#[test]
fn a_volume_that_does_not_fit_stays_in_the_trash() {
    let pools = Pools::with(&[], &[]);
    let p = pools.path("p");
    assert_eq!(pools.run("create a -o size=1m,ondelete=retain").code, 0);
    edit_record(&volume_record(&p, "a"), |record| record["size"] = json!(1_u64 << 60));
    assert_eq!(pools.run("rm a").code, 0);
    refused(&pools, &[("undelete a", 1, "pool p is full")]);
}

#[test]
fn a_directory_becomes_a_volume_without_a_copy() {
    let pools = Pools::with(&[], &[("taken", 0)]);
    let (p, base) = (pools.path("p"), pools.dir.path().display().to_string());
    let srv = pools.dir.path().join("srv/shop");
    fs::create_dir_all(&srv).unwrap();
    fs::set_permissions(&srv, fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(srv.join("file"), "text").unwrap();
    let inode = fs::metadata(srv.join("file")).unwrap().ino();
    symlink(pools.dir.path().join("srv"), pools.dir.path().join("link")).unwrap();
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(elsewhere.path().join("x")).unwrap();
    let elsewhere = elsewhere.path().join("x").display().to_string();
    let refusals = [
        (format!("adopt {base}/none"), 2, "does not exist"),
        (format!("adopt {base}/srv/shop/file"), 2, "is not a directory"),
        (format!("adopt {base}/link/shop"), 2, "its path has a symbolic link"),
        (format!("adopt {base}/link"), 2, "its path has a symbolic link"),
        (format!("adopt {base}/srv/../srv/shop"), 2, "write its path without .."),
        (format!("adopt {base} all"), 2, "a pool is inside of it"),
        (format!("adopt {base}/p/work"), 2, "is inside pool p"),
        (format!("adopt {base}/srv/shop taken"), 1, "volume taken already exists in pool q"),
        (format!("adopt {base}/srv/shop -o uid=1"), 2, "keeps its contents, owner and mode"),
        (format!("adopt {base}/srv/shop -o limit=hard"), 2, "cannot enforce a size"),
        (format!("adopt {base}/srv/shop -o size=8000000T"), 1, "pool p"),
        ("adopt none".to_owned(), 3, "volume none does not exist"),
        ("adopt q/taken".to_owned(), 1, "volume q/taken is managed already"),
        ("adopt / root".to_owned(), 2, "directory /: not the path of a directory"),
    ];
    let refusals: Vec<_> =
        refusals.iter().map(|(words, code, text)| (words.as_str(), *code, *text)).collect();
    refused(&pools, &refusals);
    let other = pools.run(&format!("adopt {elsewhere}"));
    assert_eq!((other.code, other.stdout.as_str()), (2, ""), "{}", other.stderr);
    assert!(other.stderr.contains("on another filesystem"), "{}", other.stderr);
    assert_eq!(names(&p.join("volumes")), Default::default());

    let would = format!("would make directory {base}/srv/shop volume p/shop\n");
    assert_eq!(pools.run(&format!("adopt {base}/srv/shop --dry-run")), done(&would));
    assert_eq!(pools.run(&format!("adopt {base}/srv/shop -o size=1m --label app=shop")), done("p/shop\n"));
    assert!(!srv.exists());
    let data = p.join("volumes/shop/data");
    assert_eq!(fs::metadata(data.join("file")).unwrap().ino(), inode, "not copied");
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o7777, 0o751);
    let record = read_record(&volume_record(&p, "shop"));
    assert_eq!((&record["size"], &record["owner"]["mode"]), (&json!(1 << 20), &json!("0751")));
    assert_eq!(record["labels"], json!({"app": "shop"}));

    fs::create_dir_all(p.join("volumes/mine/data")).unwrap();
    assert_eq!(pools.run("adopt p/mine -o size=2m"), done("p/mine\n"));
    assert_eq!(fs::metadata(p.join("volumes/mine")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(pools.run("rm mine"), done("p/mine\n"), "it is managed now");
}

/// Only checked: a test must not move these directories, whatever orlop does.
#[test]
fn a_directory_that_the_host_needs_is_not_adopted() {
    let pools = Pools::with(&[], &[]);
    for path in
        ["/etc", "/etc/ssl", "/usr", "/usr/share", "/var/log", "/var/tmp", "/home", "/opt", "/root", "/srv"]
    {
        let ran = pools.run(&format!("adopt {path} x --dry-run"));
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{path}: {}", ran.stderr);
        assert!(ran.stderr.contains("the system needs it where it is"), "{path}: {}", ran.stderr);
    }
    if !isolation::is_root() {
        return;
    }
    let script = "mount --bind / \"$1\" && $0 adopt \"$1/opt\" --dry-run";
    let root = pools.dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, ORLOP]).arg(&root);
    let ran = run(command.env("ORLOP_POOL", format!("p={}", pools.path("p").display())));
    assert!(ran.stderr.contains("the system needs it where it is"), "{}", ran.stderr);
}

/// The commands run in a mount namespace of their own.
#[test]
fn a_mount_and_what_contains_one_are_not_adopted() {
    if !isolation::is_root() {
        return;
    }
    let pools = Pools::with(&[], &[]);
    let base = pools.dir.path().join("srv");
    fs::create_dir_all(base.join("mount")).unwrap();
    let script = "\
mount -t tmpfs none $1/mount
$0 adopt $1 --pool p=$2; echo $?
$0 adopt $1/mount --pool p=$2; echo $?";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, ORLOP]);
    let ran = run(command.arg(&base).arg(pools.path("p")));
    assert_eq!(ran.stdout, "2\n2\n", "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("something is mounted at").count(), 2, "{}", ran.stderr);
    assert!(base.join("mount").is_dir());
}

#[test]
fn prune_deletes_unused_anonymous_volumes_after_asking() {
    let pools = Pools::with(&[("named", 0)], &[("labelled", 0)]);
    let create = |arguments: &str| pools.run(&format!("create {arguments}")).stdout.trim_end().to_owned();
    let plain = create("");
    fs::write(pools.path("p").join("volumes").join(&plain[2..]).join("data/file"), vec![1; 1 << 20]).unwrap();
    let kept = create("-o pool=q,ondelete=trash,trashfor=3d");
    create("claimed --label com.docker.volume.anonymous --label csi.storage.k8s.io/pvc/name=x");
    fs::create_dir_all(pools.path("p").join("volumes/mine/data")).unwrap();
    assert_eq!(pools.run("label labelled x=y").code, 0);

    let before = contents_and_times(pools.dir.path());
    let dry = pools.run("prune --dry-run");
    assert_eq!(dry.code, 0);
    assert!(dry.stdout.contains(&format!("{plain}  1Mi\n")), "{}", dry.stdout);
    assert!(dry.stdout.contains(&format!("{kept}  ")), "{}", dry.stdout);
    assert!(dry.stdout.contains(", kept in the trash for 3d\n"), "{}", dry.stdout);
    assert!(dry.stdout.ends_with("2 volumes; would free 1Mi\n"), "{}", dry.stdout);
    assert!(dry.stderr.contains("volumes of Kubernetes claims are not pruned (1 skipped)"), "{}", dry.stderr);
    let asked = run(pools.command("prune").stdin(Stdio::null()));
    assert_eq!(asked.code, 2);
    assert!(asked.stderr.contains("use --force"), "{}", asked.stderr);
    assert_eq!(answered(&pools, "n"), 0);
    assert_eq!(pools.run("prune --filter name=a").code, 2);
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");

    assert_eq!(answered(&pools, "y"), 0);
    assert_eq!(pools.run("ls -q").stdout, "p/claimed\np/mine\np/named\nq/labelled\n");
    let pruned = pools.run("prune --all --force --filter label=x=y");
    assert_eq!(pruned.stdout.lines().next(), Some("q/labelled"));
    let pruned = pools.run("prune -af");
    assert_eq!(pruned.stdout.lines().next(), Some("p/named"), "{}", pruned.stderr);
    assert!(pruned.stdout.contains("Total reclaimed space: "), "{}", pruned.stdout);
    assert_eq!(pools.run("ls -q").stdout, "p/claimed\np/mine\n");
}

/// Runs `orlop prune` on a terminal, and answers its question. Returns the exit code.
fn answered(pools: &Pools, answer: &str) -> i32 {
    let (p, q) = (pools.path("p"), pools.path("q"));
    let line = format!("{ORLOP} prune --pool p={},q={}", p.display(), q.display());
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = terminal.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{answer}").unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("Delete 2 volumes? [y/N]"), "{printed}");
    output.status.code().unwrap()
}

#[test]
fn prune_removes_what_the_trash_keeps_after_asking() {
    let pools = Pools::with(&[], &[]);
    let p = pools.path("p");
    for (name, options) in [("kept", "ondelete=retain"), ("week", "ondelete=trash,trashfor=7d")] {
        assert_eq!(pools.run(&format!("create {name} -o {options} --label of={name}")).code, 0);
        assert_eq!(pools.run(&format!("rm {name}")).code, 0);
    }
    fs::create_dir(p.join("trash/backup.2024")).unwrap();
    fs::create_dir_all(p.join("volumes/mine/data")).unwrap();
    assert_eq!(pools.run("create alive").code, 0);
    let before = contents_and_times(pools.dir.path());
    let ran = pools.run("prune --trash --dry-run");
    assert!(ran.code == 0 && ran.stdout.ends_with("would remove 2 volumes\n"), "{ran:?}");
    assert!(ran.stdout.contains("kept") && ran.stdout.contains("week"), "{ran:?}");
    let ran = pools.run("prune --trash");
    assert!(ran.code == 2 && ran.stderr.contains("--force"), "{ran:?}");
    assert_eq!(pools.run("prune --trash --all").code, 2);
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
    assert_eq!(pools.run("prune --trash --force --filter label=of=week"), done("p/week\n"));
    let left = names(&p.join("trash"));
    assert!(left.len() == 2 && !left.iter().any(|name| name.starts_with("week")), "{left:?}");
    assert_eq!(pools.run("prune --trash --force"), done("p/kept\n"));
    assert_eq!(names(&p.join("trash")), ["backup.2024".to_owned()].into());
    assert_eq!(pools.run("prune --trash --force"), done("nothing to delete\n"));
    assert_eq!(pools.run("ls -q").stdout, "p/alive\np/mine\n");
}

#[test]
fn df_shows_the_space_of_pools_and_volumes() {
    let pools = Pools::with(&[("a", 4 << 20)], &[]);
    assert_eq!(pools.run("snapshot create a s").code, 0);
    fs::write(pools.path("p").join("volumes/a/data/file"), vec![1; 1 << 20]).unwrap();
    let before = contents_and_times(pools.dir.path());
    let header = "POOL  BACKEND  TOTAL";
    assert!(pools.run("df").stdout.starts_with(header));
    let text = pools.run("df -v").stdout;
    assert!(text.contains("\n\nVOLUME  SIZE  USED\np/a     4Mi   1"), "{text}");
    let pool = pools.run("df -v -o json").json()[0].clone();
    let counts = ["pool", "provisioned", "volumes", "snapshots", "trash"].map(|key| pool[key].clone());
    assert_eq!(counts, [json!("p"), json!(4 << 20), json!(1), json!(1), json!(0)]);
    assert!(pool["usage"][0]["used"].as_u64().unwrap() >= 1 << 20, "{pool}");
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
    fs::remove_dir_all(pools.path("q")).unwrap();
    let partly = pools.run("df -v -o json");
    assert_eq!((partly.code, partly.json().as_array().unwrap().len()), (1, 1));
    assert_eq!(partly.stderr.lines().count(), 1, "{}", partly.stderr);
}

#[test]
fn a_forced_removal_passes_over_what_does_not_exist() {
    let pools = Pools::with(&[("a", 0)], &[]);
    assert_eq!(pools.run("rm -f none a"), done("p/a\n"));
    assert_eq!(pools.run("rm --force none"), done(""));
    assert_eq!(pools.run("rm none").code, 3);
}

#[test]
fn listings_are_filtered_and_formatted_as_dockers() {
    let pools = Pools::with(&[("web-1", 0), ("web-2", 0)], &[("db", 4096)]);
    set_age(&pools.path("q"), "db", 5);
    assert_eq!(pools.run("label web-1 app=shop tier=1").code, 0);
    assert_eq!(pools.run("label db app=db").code, 0);
    for (filters, expected) in [
        ("-f name=web", "p/web-1\np/web-2\n"),
        ("-f name=web -f name=db", "p/web-1\np/web-2\nq/db\n"),
        ("-f label=app", "p/web-1\nq/db\n"),
        ("--filter label=app=shop", "p/web-1\n"),
        ("-f label=app=shop -f label=tier=2", ""),
        ("-f pool=q", "q/db\n"),
        ("-f driver=orlop -f pool=q", "q/db\n"),
        ("-f driver=local", ""),
        ("-f dangling=true -f pool=p", "p/web-1\np/web-2\n"),
        ("-f dangling=0", ""),
    ] {
        assert_eq!(pools.run(&format!("ls -q {filters}")), done(expected), "{filters}");
    }
    assert_eq!(pools.run("ls -o name").stdout, "p/web-1\np/web-2\nq/db\n");
    let format = |command: &str, template: &str| run(pools.command(command).args(["--format", template]));
    assert_eq!(format("ls -f pool=q", "{{.Name}}"), done("db\n"));
    let template = r"{{.ID}}\t{{.Driver}} {{ .Labels }} {{.Label `app`}}".replace('`', "\"");
    assert_eq!(format("ls -f label=tier", &template), done("p/web-1\torlop app=shop,tier=1 shop\n"));
    let table = "VOLUME NAME  DRIVER  app\nweb-1        orlop   shop\nweb-2        orlop\n";
    let template = r"table {{.Name}}\t{{.Driver}}\t{{.Label `app`}}".replace('`', "\"");
    assert_eq!(format("ls -f name=web", &template), done(table));
    assert_eq!(format("inspect db", "table {{.CreatedAt}}").stdout.lines().next(), Some("CREATED AT"));
    let mountpoint = pools.path("q").join("volumes/db/data");
    assert_eq!(format("inspect db", "{{.Mountpoint}}"), done(&format!("{}\n", mountpoint.display())));
    assert_eq!(format("inspect db", "{{json .Labels}}"), done("{\"app\":\"db\"}\n"));
    let whole: Value = serde_json::from_str(&format("ls -f name=db", "json").stdout).unwrap();
    assert_eq!(whole["id"], json!("q/db"));
    let wrong = format("ls", "{{.Nope}}");
    assert_eq!((wrong.code, wrong.stdout.as_str()), (2, ""));
    assert!(wrong.stderr.contains("\".Nope\" is no placeholder: those are .Name"), "{}", wrong.stderr);
    for wrong in ["ls -f colour=red", "ls -f name", "ls -f dangling=maybe", "ls -f pool=A"] {
        let ran = pools.run(wrong);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{wrong}: {}", ran.stderr);
    }
    let yaml = pools.run("ls -f pool=q -o yaml").stdout;
    assert!(yaml.starts_with("- \"id\": \"q/db\"\n  \"pool\": \"q\"\n"), "{yaml}");
    assert!(yaml.contains("  \"labels\":\n    \"app\": \"db\"\n"), "{yaml}");
    let wide = pools.run("ls -f pool=q -o wide").stdout;
    let cells: Vec<_> = wide.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        [cells[0], cells[1], cells[2], cells[4], cells[5], cells[6]],
        ["q", "db", "4Ki", "-", "5h", "dangling"]
    );
}

#[test]
fn exec_runs_a_command_that_sees_the_volume() {
    if !isolation::is_root() {
        return;
    }
    let pools = Pools::with(&[("a", 0)], &[]);
    let data = pools.path("p").join("volumes/a/data");
    let at = pools.dir.path().join("at");
    fs::create_dir(&at).unwrap();
    let at = at.display().to_string();
    let exec =
        |flags: &[&str], command: &[&str]| run(pools.command("exec a").args(flags).arg("--").args(command));
    assert_eq!(exec(&[], &["sh", "-c", "pwd; echo text >file; exit 7"]), Ran { code: 7, ..done("/mnt\n") });
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "text\n");
    assert_eq!(exec(&["--at", &at], &["cat", &format!("{at}/file")]), done("text\n"));
    assert!(!Path::new(&at).join("file").exists(), "only the command sees it");
    let read_only = exec(&["--read-only"], &["touch", "x"]);
    assert!(read_only.code == 1 && read_only.stderr.contains("Read-only"), "{}", read_only.stderr);
    assert_eq!(exec(&[], &["no-such-program"]).code, 127);
    assert_eq!(exec(&[], &["/etc/passwd"]).code, 126);
    assert_eq!(exec(&["--at", "/no/such"], &["true"]).code, 2);
    assert_eq!(run(pools.command("exec none").args(["--", "true"])).code, 3);

    let mut command = pools.command("exec a");
    command.args(["--", "sh", "-c", "echo ready; read end"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    let removed = pools.run("rm a");
    assert_eq!(removed.code, 4);
    assert!(removed.stderr.contains(&format!("process {}, sh at /mnt", child.id())), "{}", removed.stderr);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15), "{status}");
    assert_eq!(pools.run("rm a"), done("p/a\n"));
}

#[test]
fn doctor_names_the_next_step_for_each_finding() {
    let pools = Pools::with(&[("good", 0), ("damaged", 0), ("empty", 0)], &[]);
    let p = pools.path("p");
    fs::write(volume_record(&p, "damaged"), "{").unwrap();
    fs::remove_dir(p.join("volumes/empty/data")).unwrap();
    fs::create_dir_all(p.join("volumes/mine/data")).unwrap();
    let before = contents_and_times(pools.dir.path());
    let ran = pools.run("doctor -o json");
    assert_eq!(ran.code, 1);
    let findings = ran.json();
    let of = |object: &str| findings.as_array().unwrap().iter().find(|finding| finding["object"] == object);
    assert!(of("volume p/good").is_none());
    for (object, verdict, next) in [
        ("volume p/damaged", "bad", "restore volume.json"),
        ("volume p/empty", "bad", "restore it from a snapshot"),
        ("volume p/mine", "note", "orlop adopt p/mine"),
    ] {
        let finding = of(object).unwrap();
        assert_eq!(finding["verdict"], json!(verdict), "{finding}");
        assert!(finding["next"].as_str().unwrap().contains(next), "{finding}");
    }
    let text = pools.run("doctor").stdout;
    assert!(text.contains("BAD   volume p/damaged: ") && text.contains("\n      next: "), "{text}");
    assert_eq!(contents_and_times(pools.dir.path()), before, "nothing is changed");
    for name in ["damaged", "empty", "mine"] {
        fs::remove_dir_all(p.join("volumes").join(name)).unwrap();
    }
    assert_eq!(pools.run("doctor").code, 0);
    fs::remove_dir_all(pools.path("q")).unwrap();
    let ran = pools.run("doctor");
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("next: mount its disk or create the directory"), "{}", ran.stdout);
}

#[test]
fn completions_and_man_pages_name_the_visible_commands() {
    let orlop = |arguments: &[&str]| run(Command::new(ORLOP).args(arguments));
    for shell in ["bash", "zsh", "fish"] {
        let script = orlop(&["completions", shell]);
        assert_eq!(script.code, 0);
        assert!(script.stdout.contains("undelete"), "{shell}");
        assert!(!script.stdout.contains("freeze-helper"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(orlop(&["man", dir.path().to_str().unwrap()]), done(""));
    let pages = names(dir.path());
    for page in ["orlop.1", "orlop-create.1", "orlop-snapshot-create.1"] {
        assert!(pages.contains(page), "{pages:?}");
    }
    assert!(!pages.iter().any(|page| page.contains("worker") || page.contains("helper")), "{pages:?}");
    assert_eq!(orlop(&["man", "/no/such"]).code, 1);
}
