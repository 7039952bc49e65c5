//! `orlop backup` and `orlop restore` of archives, run as a user runs them.
#![expect(clippy::disallowed_methods, reason = "the program under test and tar are processes")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use orlop::engine::Engine;
use orlop::engine::request::Tuning;
use rustix::io::ioctl_fionread;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::commands::{Pools, Ran, run, transcripts};
use super::trees::{acl, facts, make_sparse, make_symlink, set_times, set_xattr};
use crate::common::isolation::is_root;
use crate::common::pool::{names, read_record, request, settings_of, volume_record};
use crate::common::wait::within_seconds;

pub(super) fn data(pools: &Pools, volume: &str) -> PathBuf {
    pools.path("p").join("volumes").join(volume).join("data")
}

/// A pool with the volume `a`, which has a little of everything.
pub(super) fn pools_with_data() -> Pools {
    let pools = Pools::with(&[("a", 1 << 30)], &[]);
    let root = data(&pools, "a");
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/file"), "text").unwrap();
    fs::hard_link(root.join("dir/file"), root.join("again")).unwrap();
    make_symlink("dir/file", &root.join("link"));
    make_sparse(&root.join("sparse"), 1 << 20, &[(65_536, 4096)]);
    set_xattr(&root.join("dir/file"), "system.posix_acl_access", &acl(54_321));
    set_xattr(&root.join("dir/file"), "user.name", b"value");
    set_times(&root.join("dir"), (1, 2), (3, 4));
    pools
}

pub(super) fn ran_well(ran: &Ran) {
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
}

/// The same pools in memory, the first with an empty volume `a`.
pub(super) fn pools_in_memory() -> Pools {
    let pools = Pools { dir: tempfile::tempdir_in("/dev/shm").unwrap() };
    for pool in ["p", "q"] {
        fs::create_dir(pools.path(pool)).unwrap();
        let engine = Engine::open(vec![settings_of(pool, &pools.path(pool))], Tuning::default()).unwrap();
        if pool == "p" {
            engine.create(&request("a", 0)).unwrap();
        }
    }
    pools
}

/// Checks that a failed or interrupted command has left nothing in the pool `p`.
pub(super) fn assert_nothing_left(pools: &Pools, volumes: &[&str]) {
    for directory in ["work", "trash", "snapshots"] {
        assert_eq!(names(&pools.path("p").join(directory)), Default::default(), "{directory}");
    }
    let expected = volumes.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names(&pools.path("p").join("volumes")), expected);
}

pub(super) fn shell(script: &str, dir: &Path) {
    assert!(
        Command::new("sh").args(["-ec", script]).current_dir(dir).status().unwrap().success(),
        "{script}"
    );
}

#[test]
fn a_backup_is_restored_from_each_format() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    let before = facts(&data(&pools, "a"));
    for (at, name) in ["a.tar", "a.tar.gz", "a.tar.zst"].iter().enumerate() {
        let file = pools.dir.path().join(name);
        let ran = pools.run(&format!("backup a -o {}", file.display()));
        ran_well(&ran);
        assert!(
            ran.stdout.starts_with("volume p/a -> ") && ran.stdout.contains(": 5 entries"),
            "{}",
            ran.stdout
        );
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        shell(&format!("sha256sum --quiet -c {name}.sha256"), pools.dir.path());
        let volume = format!("new{at}");
        let ran = pools.run(&format!("restore {} {volume}", file.display()));
        assert_eq!((ran.code, ran.stdout), (0, format!("p/{volume}\n")), "{}", ran.stderr);
        assert!(ran.stderr.contains("is a backup of volume p/a by orlop"), "{}", ran.stderr);
        assert_eq!(facts(&data(&pools, &volume)), before);
        assert_eq!(
            read_record(&volume_record(&pools.path("p"), &volume))["size"],
            json!(1 << 30),
            "that of the volume"
        );
    }
    assert_eq!(facts(&data(&pools, "a")), before);
    let inspected = pools.run("inspect a").stdout;
    assert!(inspected.contains("\"lastBackup\": \"20"), "{inspected}");
    let inspected = pools.run("inspect new0").stdout;
    assert!(inspected.contains("\"lastBackup\": null"), "a new volume has no backup: {inspected}");
    let files = names(pools.dir.path()).into_iter().filter(|name| name.ends_with(".part")).count();
    assert_eq!(files, 0);
    assert_nothing_left(&pools, &["a", "new0", "new1", "new2"]);
}

#[test]
fn a_volume_is_created_from_an_archive() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    let file = pools.dir.path().join("a.tar.zst").display().to_string();
    ran_well(&pools.run(&format!("backup a -o {file}")));
    let planned = pools.run(&format!("create b -o from={file} --dry-run"));
    assert_eq!(planned.stdout, format!("would create volume p/b from {file}\n"));
    ran_well(&pools.run(&format!("create b -o from={file},ondelete=trash --label x=y")));
    assert_eq!(facts(&data(&pools, "a")), facts(&data(&pools, "b")));
    let record = read_record(&volume_record(&pools.path("p"), "b"));
    assert_eq!((&record["size"], &record["labels"]["x"]), (&json!(1 << 30), &json!("y")));
    assert_eq!(record["policy"]["onDelete"], "trash");
    let missing = pools.run("create c -o from=/missing.tar");
    assert_eq!((missing.code, missing.stderr.contains("/missing.tar does not exist")), (2, true));
}

#[test]
fn a_backup_is_piped_to_tar_and_from_it() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    let out = pools.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut backup = pools.command("backup a --format tar").stdout(Stdio::piped()).spawn().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--acls", "-xpf", "-", "-C"]).arg(&out).stdin(backup.stdout.take().unwrap());
    assert!(tar.status().unwrap().success() && backup.wait().unwrap().success());
    let comparable = |path: &Path| {
        facts(path)
            .into_iter()
            .map(|(path, facts)| (path, facts.without_access().without_holes()))
            .collect::<Vec<_>>()
    };
    assert_eq!(comparable(&out), comparable(&data(&pools, "a")));
    let mut tar = Command::new("tar");
    let mut tar = tar
        .args(["--xattrs", "--acls", "-cf", "-", "-C"])
        .arg(&out)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ran = run(pools.command("restore - b").stdin(tar.stdout.take().unwrap()));
    assert!(tar.wait().unwrap().success());
    ran_well(&ran);
    assert!(ran.stderr.contains("standard input is an archive with the files at its root"), "{}", ran.stderr);
    assert_eq!(fs::read(data(&pools, "b").join("again")).unwrap(), b"text");
    assert_eq!(fs::metadata(data(&pools, "b").join("again")).unwrap().nlink(), 2);
}

#[test]
fn a_snapshot_is_backed_up() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    ran_well(&pools.run("snapshot create a s"));
    let before = facts(&pools.path("p").join("snapshots/s/data"));
    fs::write(data(&pools, "a").join("later"), "x").unwrap();
    let file = pools.dir.path().join("s.tgz");
    ran_well(&pools.run(&format!("backup s -o {}", file.display())));
    ran_well(&pools.run(&format!("restore {} b", file.display())));
    assert_eq!(facts(&data(&pools, "b")), before);
}

/// Where the times of files do not tell of each change, even an unused volume is copied first.
#[test]
fn the_copy_of_a_backup_is_removed_also_after_a_kill() {
    if !is_root() {
        return;
    }
    let pools = pools_in_memory();
    for i in 0..5_000 {
        fs::write(data(&pools, "a").join(i.to_string()), "x").unwrap();
    }
    ran_well(&pools.run(&format!("backup a -o {}/a.tar", pools.dir.path().display())));
    assert_nothing_left(&pools, &["a"]);
    let mut child = pools.command("backup a").stdout(Stdio::piped()).spawn().unwrap();
    within_seconds(60, "the copy has a draft", || !names(&pools.path("p").join("work")).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    let engine = Engine::open(vec![settings_of("p", &pools.path("p"))], Tuning::default()).unwrap();
    within_seconds(180, "the draft is removed", || names(&pools.path("p").join("work")).is_empty());
    assert!(engine.wait_for_reaper(std::time::Duration::from_secs(180)));
    drop(engine);
    assert_nothing_left(&pools, &["a"]);
}

pub(super) fn interrupt(child: Child) -> String {
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("interrupted; nothing was created"), "{stderr}");
    stderr
}

#[test]
fn an_interrupted_backup_leaves_no_file() {
    let pools = Pools::with(&[("a", 0)], &[]);
    for i in 0..10_000 {
        fs::write(data(&pools, "a").join(i.to_string()), "x").unwrap();
    }
    let before = names(pools.dir.path());
    let file = pools.dir.path().join("a.tar.gz");
    let mut command = pools.command(&format!("backup a -o {}", file.display()));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    within_seconds(60, "the file is begun", || names(pools.dir.path()) != before);
    interrupt(child);
    assert_eq!(names(pools.dir.path()), before);
    assert_nothing_left(&pools, &["a"]);
    // A reader that does not read delays it no longer than a moment.
    let child =
        pools.command("backup a --format tar").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let is_full = || ioctl_fionread(child.stdout.as_ref().unwrap()).unwrap() >= 64 << 10;
    within_seconds(60, "the pipe to its reader is full", is_full);
    interrupt(child);
}

#[test]
fn an_interrupted_restore_leaves_no_volume() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    fs::write(data(&pools, "a").join("big"), vec![7; 2 << 20]).unwrap();
    let archive = pools.command("backup a --format tar").stderr(Stdio::null()).output().unwrap().stdout;
    let mut command = pools.command("restore - b");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&archive[..archive.len() / 2]).unwrap();
    within_seconds(60, "the volume has a draft", || !names(&pools.path("p").join("work")).is_empty());
    assert_eq!(pools.run("ls -q").stdout, "p/a\n", "it is not visible");
    interrupt(child);
    assert_nothing_left(&pools, &["a"]);
    drop(input);
}

#[test]
fn a_refused_archive_leaves_nothing() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    let dir = pools.dir.path();
    fs::write(data(&pools, "a").join("big"), vec![7; 3 << 20]).unwrap();
    ran_well(&pools.run(&format!("backup a -o {}/good.tar", dir.display())));
    shell(
        "head -c 5000 good.tar > short.tar; tar -P -cf outside.tar --transform 's,^,../,' p/orlop.json",
        dir,
    );
    for (arguments, code, expected) in [
        ("good.tar x -o size=1M", 2, "more data than the size of the volume"),
        ("short.tar x", 1, "ends too early"),
        ("outside.tar x", 1, "has a `..`"),
        ("good.tar a", 1, "volume p/a already exists"),
        ("p/orlop.json x", 1, "ends too early"),
        ("missing.tar x", 2, "does not exist"),
    ] {
        let ran = pools.run(&format!("restore {}/{arguments}", dir.display()));
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{arguments}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{arguments}: {}", ran.stderr);
        assert_nothing_left(&pools, &["a"]);
    }
}

#[test]
fn a_wrong_request_for_a_backup_is_refused() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    let before = names(pools.dir.path());
    for (arguments, code, expected) in [
        ("backup a -o backup.zip", 2, "backup.zip does not end with .tar"),
        ("backup a -o /dev/null --format tar", 2, "/dev/null is not a regular file"),
        ("backup a -o /no/such/a.tar", 1, "/no/such/a.tar"),
        ("backup none", 3, "no volume and no snapshot \"none\" exists"),
        ("restore none x --devices", 2, "are for archives"),
        ("restore none.tar x", 3, "no snapshot and no file \"none.tar\" exists"),
        ("restore ./none.tar ../x", 2, "is not 1 to 64 letters"),
        ("restore ./none.tar x -o from=a", 2, "option from"),
    ] {
        let ran = pools.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{arguments}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{arguments}: {}", ran.stderr);
    }
    let script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let command = pools.command("backup a");
    let mut pty = Command::new("python3");
    let ran = run(pty
        .args(["-c", script])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null()));
    assert!(ran.code == 2 && ran.stdout.contains("not written to a terminal"), "{ran:?}");
    let dry = pools.run("backup a -o a.tar --dry-run");
    assert_eq!((dry.code, dry.stdout.as_str()), (0, "would back up volume p/a to a.tar\n"));
    assert_eq!(names(pools.dir.path()), before);
    assert_nothing_left(&pools, &["a"]);
}

#[test]
fn verify_finds_damage_and_needs_no_pool() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    let dir = pools.dir.path();
    for name in ["a.tar", "a.tar.gz", "a.tar.zst"] {
        ran_well(&pools.run(&format!("backup a -o {}/{name}", dir.display())));
        let verify = |file: &str| {
            run(Command::new(crate::common::server::ORLOP).args(["backup", "verify", file]).current_dir(dir))
        };
        let good = verify(name);
        assert!(good.code == 0 && good.stdout.ends_with(&format!("matches {name}.sha256\n")), "{good:?}");
        let bytes = fs::read(dir.join(name)).unwrap();
        let mut changed = bytes.clone();
        // In a TAR archive, this is a byte that nothing else would miss: the padding of the end.
        let at = bytes.len() - if name == "a.tar" { 1 } else { 20 };
        changed[at] ^= 1;
        fs::write(dir.join(name), &changed).unwrap();
        assert_eq!(verify(name).code, 1);
        fs::write(dir.join(name), &bytes[..bytes.len() / 2]).unwrap();
        let short = verify(name);
        assert!(short.code == 1 && short.stderr.contains("ends too early"), "{name}: {short:?}");
        for behind in ["x", "0123456789abcdef"] {
            fs::write(dir.join(name), [&bytes, behind.as_bytes()].concat()).unwrap();
            let longer = verify(name);
            let tells = longer.stderr.contains("data behind its end");
            assert!(longer.code == 1 && tells, "{name} and {behind}: {longer:?}");
        }
        fs::write(dir.join(name), &bytes).unwrap();
        fs::write(dir.join(format!("{name}.sha256")), format!("{}  {name}\n", "0".repeat(64))).unwrap();
        let other = verify(name);
        assert!(other.code == 1 && other.stderr.contains("does not match"), "{other:?}");
        let mut piped = Command::new(crate::common::server::ORLOP);
        let piped = run(piped.args(["backup", "verify", "-"]).stdin(File::open(dir.join(name)).unwrap()));
        assert!(
            piped.code == 0 && piped.stdout.starts_with("standard input: complete, 5 entries"),
            "{piped:?}"
        );
    }
}

#[test]
fn archives_of_other_programs_are_recognized() {
    if !is_root() {
        return;
    }
    let pools = Pools::with(&[], &[]);
    let dir = pools.dir.path();
    for tree in ["data/sub/data", "vackup-volume/sub", "backup/web/sub/deep", "backup/db"] {
        fs::create_dir_all(dir.join(tree)).unwrap();
    }
    shell(
        "echo 1 > data/sub/file; ln data/sub/file data/data; chmod 750 data; touch -d 2001-01-01 data/sub data",
        dir,
    );
    shell("echo 1 > vackup-volume/sub/file; echo 1 > backup/web/sub/file; echo 1 > backup/db/other", dir);
    shell(
        "tar czf article.tar.gz data; tar czf desktop-old.tar.gz vackup-volume; tar -C data -cf root.tar .",
        dir,
    );
    shell(
        "tar cf offen.tar backup/web; tar cf offen-two.tar backup; tar --format=gnu -C data -cf plain.tar sub data",
        dir,
    );
    for (arguments, path, expected) in [
        ("article.tar.gz v1", "sub/file", "is an archive of a container's data/"),
        ("desktop-old.tar.gz v2", "sub/file", "is an archive of Docker Desktop's volume extension"),
        ("offen.tar v3", "sub/file", "of offen's docker-volume-backup, with the files in backup/web/"),
        ("root.tar v4", "sub/file", "with the files at its root"),
        ("plain.tar v5", "sub/file", "with the files at its root"),
        ("offen-two.tar v6 --prefix backup/db", "other", "is the directory backup/db/ of an archive"),
        ("article.tar.gz v7 --prefix .", "data/sub/file", "with the files at its root"),
    ] {
        let ran = pools.run(&format!("restore {}/{arguments}", dir.display()));
        ran_well(&ran);
        assert!(ran.stderr.contains(expected), "{arguments}: {}", ran.stderr);
        let volume = arguments.split_whitespace().nth(1).unwrap();
        assert_eq!(fs::read(data(&pools, volume).join(path)).unwrap(), b"1\n", "{arguments}");
    }
    let [from, to] = [dir.join("data"), data(&pools, "v1")].map(|path| fs::metadata(path).unwrap());
    assert_eq!(
        (from.mode(), from.mtime()),
        (to.mode(), to.mtime()),
        "the directory itself becomes the volume"
    );
    let [from, to] =
        [dir.join("data/sub"), data(&pools, "v1").join("sub")].map(|path| fs::metadata(path).unwrap());
    assert_eq!(from.mtime(), to.mtime());
    assert_eq!(fs::metadata(data(&pools, "v1").join("data")).unwrap().nlink(), 2);
    assert_eq!(names(&data(&pools, "v1")), ["data".to_owned(), "sub".to_owned()].into());
    assert_eq!(fs::metadata(data(&pools, "v5")).unwrap().mode() & 0o7777, 0o777, "as a new volume has");
    let ran = pools.run(&format!("restore {}/offen-two.tar x", dir.display()));
    assert!(ran.code == 1 && ran.stderr.contains("choose one by --prefix backup/NAME"), "{}", ran.stderr);
    assert_nothing_left(&pools, &["v1", "v2", "v3", "v4", "v5", "v6", "v7"]);
}

#[test]
fn a_device_is_restored_only_if_asked_for() {
    if !is_root() {
        return;
    }
    let pools = pools_with_data();
    let null = data(&pools, "a").join("null");
    super::trees::make_node(&null, rustix::fs::FileType::CharacterDevice, 0o600, (1, 3));
    let file = pools.dir.path().join("a.tar");
    ran_well(&pools.run(&format!("backup a -o {}", file.display())));
    let ran = pools.run(&format!("restore {} b", file.display()));
    assert!(ran.code == 2 && ran.stderr.contains("extract ./null: it is a device"), "{}", ran.stderr);
    assert_nothing_left(&pools, &["a"]);
    ran_well(&pools.run(&format!("restore {} b --devices", file.display())));
    assert_eq!(facts(&data(&pools, "b")), facts(&data(&pools, "a")));
}

#[test]
fn archives_with_a_large_window_are_read_up_to_that_of_zstd() {
    if !is_root() {
        return;
    }
    let pools = Pools::with(&[], &[]);
    let dir = pools.dir.path();
    // Its length is unknown to zstd, so that the window is not reduced to it.
    let compress = |log: u32| {
        shell(
            &format!(
                "mkdir -p t; echo 1 >t/file; tar -C t -cf - . | zstd -q -f -1 --long={log} -o {log}.tar.zst"
            ),
            dir,
        );
        format!("{}/{log}.tar.zst", dir.display())
    };
    let ran = pools.run(&format!("restore {} v", compress(27)));
    ran_well(&ran);
    assert_eq!(fs::read(data(&pools, "v").join("file")).unwrap(), b"1\n");
    let ran = pools.run(&format!("restore {} w", compress(28)));
    assert!(ran.code == 1 && ran.stderr.contains("zstd -dc --long=31 FILE"), "{}", ran.stderr);
    assert_nothing_left(&pools, &["v"]);
}

/// The most memory that a command has used, in KiB.
fn peak_of(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    let status = format!("/proc/{}/status", child.id());
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = peak.max(line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse().unwrap()));
        crate::common::wait::sleep_ms(5);
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[test]
fn a_large_volume_needs_little_memory() {
    if !is_root() {
        return;
    }
    let pools = pools_in_memory();
    for i in 0..100_000 {
        let dir = data(&pools, "a").join(format!("dir-{}", i / 100));
        if i % 100 == 0 {
            fs::create_dir(&dir).unwrap();
        }
        File::create(dir.join(format!("file-{i}"))).unwrap();
    }
    make_sparse(&data(&pools, "a").join("sparse"), 4 << 30, &[(1 << 30, 4096), (3 << 30, 1 << 20)]);
    let file = pools.dir.path().join("a.tar.zst");
    let backup = peak_of(pools.command(&format!("backup a --consistency none -o {}", file.display())));
    let restore = peak_of(pools.command(&format!("restore {} b", file.display())));
    eprintln!("memory: backup {backup} KiB, restore {restore} KiB");
    assert!(backup < 64 << 10 && restore < 64 << 10, "backup {backup} KiB, restore {restore} KiB");
    assert_eq!(fs::metadata(data(&pools, "b").join("sparse")).unwrap().len(), 4 << 30);
}

#[test]
fn an_archive_that_was_compressed_in_parts_is_read() {
    let dir = tempfile::tempdir().unwrap();
    // pzstd writes frames that are to be skipped, also before the first one.
    let script = r"
tar -C /etc -cf all.tar passwd group && split -n 3 all.tar part.
skipped() { printf '\x50\x2a\x4d\x18\x03\x00\x00\x00abc'; }
for part in part.*; do skipped; zstd -qc $part; done >all.tar.zst
for part in part.*; do gzip -c $part; done >all.tar.gz";
    let mut shell = Command::new("bash");
    ran_well(&run(shell.args(["-euc", script]).current_dir(dir.path())));
    for name in ["all.tar", "all.tar.zst", "all.tar.gz"] {
        let mut verify = Command::new(crate::common::server::ORLOP);
        let ran = run(verify.args(["backup", "verify", name]).current_dir(dir.path()));
        assert!(ran.code == 0 && ran.stdout.contains("complete, 2 entries"), "{name}: {ran:?}");
    }
}

/// Replaces what differs from run to run: sizes of archives, and times of backups.
fn without_times(text: &str) -> String {
    let between = |line: &str, start: &str, end: &str| {
        let Some((before, rest)) = line.split_once(start) else { return line.to_owned() };
        let Some((_, after)) = rest.split_once(end) else { return line.to_owned() };
        format!("{before}{start}…{end}{after}")
    };
    let line =
        |line| between(&between(line, " of data, ", " in the archive"), " by orlop, of ", ", consistency");
    text.lines().map(|text| line(text) + "\n").collect()
}

#[test]
fn the_transcripts_of_the_page_about_backups_are_true() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    fs::create_dir(&pool).unwrap();
    let engine = Engine::open(vec![settings_of("default", &pool)], Tuning::default()).unwrap();
    engine.create(&request("web", 1 << 30)).unwrap();
    drop(engine);
    let data = pool.join("volumes/web/data");
    fs::create_dir(data.join("html")).unwrap();
    fs::write(data.join("html/index.html"), "hello\n").unwrap();
    std::os::unix::fs::symlink("html", data.join("www")).unwrap();
    for path in ["html/index.html", "html", "www", "."] {
        set_times(&data.join(path), (1_700_000_000, 0), (1_700_000_000, 0));
    }
    let page = fs::read_to_string("docs/backup.md").unwrap();
    let found = transcripts(&page);
    assert!(found.len() > 6, "{}", found.len());
    for (line, expected) in found {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec 2>&1; PATH=${{0%/*}}:$PATH; {line}"), crate::common::server::ORLOP]);
        shell.env("ORLOP_POOL", format!("default={}", pool.display())).env_remove("ORLOP_CONFIG");
        let printed = String::from_utf8(shell.current_dir(dir.path()).output().unwrap().stdout).unwrap();
        assert_eq!(without_times(&printed), without_times(&expected), "{line}");
    }
}
