//! Snapshots and restores on btrfs, xfs and ext4, each compared with the copy that a person would make there, and programs that
//! read and write through the path of a pod. The filesystems are in files, on loop devices.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use orlop::csi::proto::volume_content_source::{SnapshotSource, Type};

use crate::client::{Client, id};
use crate::copy::time_program;
use crate::server::Server;
use crate::table::{Bar, Table, median, median_ratio};
use crate::{Sizes, trees};

/// The sizes of all volumes fit into it. The file has holes.
const IMAGE_BYTES: u64 = 200 << 30;
const FILES: usize = 20_000;
const VOLUME: &str = "files";
/// At least nine, for a meaningful median.
const PAIRS: usize = 9;

/// A filesystem and what its copies are compared with.
struct Filesystem {
    name: &'static str,
    mkfs: &'static [&'static str],
    /// Arguments of `cp`.
    cp: &'static [&'static str],
    /// Whether `cp` is followed by `sync -f`, as copies of all bytes are by orlop.
    syncs: bool,
    bar: Bar,
}

const ALL: [Filesystem; 3] = [
    Filesystem {
        name: "btrfs",
        mkfs: &["mkfs.btrfs", "-q"],
        cp: &["-a", "--reflink=always"],
        syncs: false,
        bar: Bar::Below(20.0),
    },
    Filesystem {
        name: "xfs",
        mkfs: &["mkfs.xfs", "-q"],
        cp: &["-a", "--reflink=always"],
        syncs: false,
        bar: Bar::Ratio(1.3),
    },
    Filesystem {
        name: "ext4",
        mkfs: &["mkfs.ext4", "-q", "-N", "1000000", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
        cp: &["-a", "--reflink=never"],
        syncs: true,
        bar: Bar::Ratio(1.2),
    },
];

/// Measures each filesystem that this machine can make and mount.
pub(crate) async fn run(table: &mut Table, sizes: &Sizes, dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for filesystem in &ALL {
        let Some(mounted) = mount(filesystem, dir) else {
            table.note(&format!("{}: this machine cannot make or mount it", filesystem.name));
            continue;
        };
        let server = Server::orlop(&mounted).await;
        let client = server.client().await;
        client.create_large(VOLUME, None).await;
        trees::files(&server.data(VOLUME), FILES, 4096);
        table.section(&format!("{}: a volume of {FILES} files of 4 KiB", filesystem.name));
        copies(table, sizes, filesystem, &server, &client).await;
        programs(table, filesystem, &server, &client).await;
        drop(server);
        let _ = Command::new("umount").arg("--lazy").arg(&mounted).status();
    }
}

/// Makes the filesystem and mounts it.
fn mount(filesystem: &Filesystem, dir: &Path) -> Option<PathBuf> {
    let image = dir.join(format!("{}.img", filesystem.name));
    let mounted = dir.join(filesystem.name);
    File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
    fs::create_dir(&mounted).unwrap();
    let (program, arguments) = filesystem.mkfs.split_first().unwrap();
    let succeeds =
        |command: &mut Command| command.stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    let is_mounted = succeeds(Command::new(program).args(arguments).arg(&image))
        && succeeds(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted));
    is_mounted.then_some(mounted)
}

/// Milliseconds of each turn.
#[derive(Default)]
struct Times {
    snapshot: Vec<f64>,
    restore: Vec<f64>,
    cp: Vec<f64>,
}

async fn copies(table: &mut Table, sizes: &Sizes, filesystem: &Filesystem, server: &Server, client: &Client) {
    let mut times = Times::default();
    // The copies stay: a disk is slow for a while after files were removed.
    for turn in 0..sizes.turns {
        let (snapshot, restored) = (format!("snapshot-{turn}"), format!("restored-{turn}"));
        let to = server.pool.with_file_name(format!("cp-{turn}"));
        rustix::fs::sync();
        let began = Instant::now();
        client.snapshot(VOLUME, &snapshot).await;
        times.snapshot.push(crate::table::ms(began.elapsed()));
        rustix::fs::sync();
        let began = Instant::now();
        let source = Type::Snapshot(SnapshotSource { snapshot_id: id(&snapshot) });
        client.create_large(&restored, Some(source)).await;
        times.restore.push(crate::table::ms(began.elapsed()));
        rustix::fs::sync();
        times.cp.push(cp(filesystem, &server.data(VOLUME), &to));
    }
    let (cp, more) = (filesystem.cp.join(" "), if filesystem.syncs { " and sync -f" } else { "" });
    for (what, orlop) in [("snapshot", &times.snapshot), ("restore", &times.restore)] {
        let ratio = median_ratio(orlop, &times.cp);
        let what = format!("{what} vs cp {cp}{more}");
        table.compare(&what, (median(orlop), "ms"), (median(&times.cp), "ms"), ratio, filesystem.bar);
    }
}

/// Milliseconds that a person's copy takes.
fn cp(filesystem: &Filesystem, from: &Path, to: &Path) -> f64 {
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    let copy = time_program("cp", &[filesystem.cp, &[from, to]].concat());
    let sync = if filesystem.syncs { time_program("sync", &["-f", to]) } else { 0.0 };
    (copy + sync) * 1e3
}

/// Compares what a program reads and writes through the path of a pod with the same in a bare directory.
async fn programs(table: &mut Table, filesystem: &Filesystem, server: &Server, client: &Client) {
    let (target, bare) = (server.target("program"), server.pool.with_file_name("bare"));
    client.create_large("program", None).await;
    client.publish("program", &target).await;
    fs::create_dir(&bare).unwrap();
    let (mut through_path, mut in_bare) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let mut measure = |is_path: bool| {
            let (dir, rates) =
                if is_path { (Path::new(&target), &mut through_path) } else { (&*bare, &mut in_bare) };
            let Some(rate) = fio(dir) else { return false };
            rates.push(rate);
            true
        };
        if !measure(pair % 2 == 0) || !measure(pair % 2 != 0) {
            table.note(&format!("{}: fio is not installed", filesystem.name));
            break;
        }
    }
    if !through_path.is_empty() {
        let (rate, other) = (median(&through_path), median(&in_bare));
        let ratio = median_ratio(&in_bare, &through_path);
        let what = "fio through the path of a pod vs a bare directory";
        table.compare(what, (rate, "/s"), (other, "/s"), ratio, Bar::Ratio(1.03));
    }
    client.unpublish("program", &target).await;
}

/// Reads and writes per second of a job of fio; `None` if it is not installed.
fn fio(dir: &Path) -> Option<f64> {
    let job = [
        "--name=job",
        "--filename_format=job",
        "--size=64m",
        "--rw=randrw",
        "--bs=4k",
        "--ioengine=psync",
        "--time_based",
        "--runtime=3",
        "--output-format=json",
    ];
    let output = Command::new("fio").args(job).arg(format!("--directory={}", dir.display())).output().ok()?;
    assert!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rate = |way: &str| result["jobs"][0][way]["iops"].as_f64().unwrap();
    Some(rate("read") + rate("write"))
}
