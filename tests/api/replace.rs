//! `orlop restore --replace`: the contents of an existing volume are replaced by those of an archive.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use super::backup::{assert_nothing_left, data, interrupt, pools_with_data, ran_well, shell};
use super::commands::{Container, Pools, Ran, run};
use super::trees::facts;
use crate::common::isolation::is_root;
use crate::common::pool::{contents_and_times, edit_record, names, read_record, volume_record};
use crate::common::wait::within_seconds;

/// The pools of [`pools_with_data`] with an archive of the volume `a`, whose contents have changed since.
fn pools_with_backup() -> (Pools, String) {
    let pools = pools_with_data();
    // More than what is read at once.
    fs::write(data(&pools, "a").join("big"), vec![7; 2 << 20]).unwrap();
    let archive = format!("{}/a.tar", pools.dir.path().display());
    ran_well(&pools.run(&format!("backup a -o {archive}")));
    shell("rm -r dir big; echo later > later", &data(&pools, "a"));
    (pools, archive)
}

fn record(pools: &Pools) -> serde_json::Value {
    read_record(&volume_record(&pools.path("p"), "a"))
}

#[test]
fn a_volume_is_replaced_and_keeps_its_name_size_policy_and_labels() {
    if !is_root() {
        return;
    }
    let (pools, archive) = pools_with_backup();
    ran_well(&pools.run("label a color=red"));
    edit_record(&volume_record(&pools.path("p"), "a"), |record| record["future"] = json!("kept"));
    let old = record(&pools);
    ran_well(&pools.run(&format!("restore {archive} b")));
    let ran = pools.run(&format!("restore {archive} a --replace"));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "p/a\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("is a backup of volume p/a by orlop"), "{}", ran.stderr);
    assert_eq!(facts(&data(&pools, "a")), facts(&data(&pools, "b")));
    let new = record(&pools);
    for key in ["id", "requestedName", "size", "labels", "onDelete", "future"] {
        assert_eq!(new[key], old[key], "{key}");
    }
    assert_eq!(new["labels"]["color"], json!("red"));
    assert_ne!(new["uid"], old["uid"], "the old one may be in the trash");
    assert_eq!(names(&pools.path("p").join("work")), Default::default());
    let trash = names(&pools.path("p").join("trash"));
    assert!(
        trash.len() == 1 && trash.first().unwrap().contains("+0."),
        "it is removed by a server: {trash:?}"
    );
}

#[test]
fn the_replaced_contents_are_kept_as_the_policy_says() {
    if !is_root() {
        return;
    }
    let (pools, archive) = pools_with_backup();
    ran_well(&pools.run("create kept -o size=8m,ondelete=trash,trashfor=1h"));
    fs::write(data(&pools, "kept").join("old"), "old").unwrap();
    let uid = read_record(&volume_record(&pools.path("p"), "kept"))["uid"].clone();
    ran_well(&pools.run(&format!("restore {archive} p/kept --replace")));
    assert!(!data(&pools, "kept").join("old").exists());
    ran_well(&pools.run("rename kept new"));
    ran_well(&pools.run("undelete kept"));
    assert_eq!(fs::read_to_string(data(&pools, "kept").join("old")).unwrap(), "old");
    assert_eq!(read_record(&volume_record(&pools.path("p"), "kept"))["uid"], uid);
}

#[test]
fn a_volume_that_cannot_be_replaced_is_unchanged() {
    if !is_root() {
        return;
    }
    let (pools, archive) = pools_with_backup();
    fs::create_dir_all(pools.path("p").join("volumes/mine/data")).unwrap();
    ran_well(&pools.run("create small -o size=4096b"));
    let dir = pools.dir.path();
    shell("head -c 3000 a.tar > short.tar; head -c 100000 /dev/zero > big; tar -cf big.tar big", dir);
    let container = Container::start(&data(&pools, "a"), &dir.join("target"));
    let before = contents_and_times(&pools.path("p").join("volumes"));
    let in_use = format!("volume p/a is in use by process {}", container.0.id());
    for (arguments, code, expected) in [
        (format!("{archive} a --replace"), 4, in_use.as_str()),
        (format!("{archive} a --replace --dry-run"), 4, &in_use),
        (format!("{archive} none --replace"), 3, "volume none does not exist"),
        (format!("{archive} mine --replace"), 2, "volume p/mine is not replaced: it is unmanaged"),
        (format!("{archive} a --replace -o size=1g"), 2, "cannot be used with"),
        ("a a --replace".to_owned(), 2, "--replace are for archives"),
        (format!("{}/short.tar small --replace", dir.display()), 1, "ends too early"),
        (format!("{}/big.tar small --replace", dir.display()), 2, "or expand the one that is to be replaced"),
    ] {
        let ran = pools.run(&format!("restore {arguments}"));
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{arguments}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{arguments}: {}", ran.stderr);
    }
    drop(container);
    let ran = pools.run(&format!("restore {archive} a --replace --dry-run"));
    assert_eq!(
        ran,
        Ran { code: 0, stdout: format!("would replace volume p/a by {archive}\n"), stderr: String::new() }
    );
    assert_eq!(contents_and_times(&pools.path("p").join("volumes")), before);
    assert_nothing_left(&pools, &["a", "mine", "small"]);
}

/// Also shows that nothing begins to use the volume meanwhile.
#[test]
fn an_interrupted_replacement_changes_nothing() {
    if !is_root() {
        return;
    }
    let (pools, archive) = pools_with_backup();
    let before = contents_and_times(&pools.path("p").join("volumes"));
    let bytes = fs::read(Path::new(&archive)).unwrap();
    let mut command = pools.command("restore - a --replace");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&bytes[..bytes.len() / 2]).unwrap();
    within_seconds(60, "the new contents have a draft", || !names(&pools.path("p").join("work")).is_empty());
    let used = run(pools.command("exec a").args(["--", "true"]));
    assert_eq!(used.code, 1, "{}", used.stderr);
    let copied = pools.run("backup a --format tar");
    assert!(copied.code == 1 && copied.stderr.contains("being deleted or replaced"), "{}", copied.stderr);
    interrupt(child);
    drop(input);
    assert_eq!(contents_and_times(&pools.path("p").join("volumes")), before);
    assert_nothing_left(&pools, &["a"]);
    assert_eq!(fs::metadata(data(&pools, "a")).unwrap().nlink(), 2);
}
