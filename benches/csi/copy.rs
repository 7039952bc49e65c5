//! Volumes full of files: snapshots, clones and deletes, and the memory of copying a huge tree.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use orlop::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};

use crate::client::{Client, id};
use crate::server::Server;
use crate::table::{Bar, Table, median, ms};
use crate::{Sizes, trees};

/// How often each copy is made.
const TURNS: usize = 3;

/// Durations in seconds.
#[derive(Default)]
struct Times {
    /// `cp -a`.
    cp: Vec<f64>,
    /// `cp -a` and `sync -f`.
    cp_and_sync: Vec<f64>,
    snapshot: Vec<f64>,
    clone: Vec<f64>,
}

/// Measures copies and deletes of a volume with many files.
pub(crate) async fn run(table: &mut Table, sizes: &Sizes, dir: &Path) {
    let server = Server::orlop(dir).await;
    let client = server.client().await;
    client.create_large("full", None).await;
    let data = server.data("full");
    trees::files(&data, sizes.files, 4096);
    rustix::fs::sync();
    let mut times = Times::default();
    for turn in 0..TURNS {
        time_copies(&client, &data, &copy_path(dir, turn), turn, &mut times).await;
    }
    report(table, sizes, &times);
    // Not earlier: a disk is slow for a while after it is told that many blocks are free.
    (0..TURNS).for_each(|turn| trees::remove(&copy_path(dir, turn)));
    deletes(table, sizes, &server).await;
    for turn in 0..TURNS {
        client.delete_snapshot(&format!("snapshot-{turn}")).await;
    }
    server.trash_removed().await;
}

fn copy_path(dir: &Path, turn: usize) -> std::path::PathBuf {
    dir.join(format!("cp-{turn}"))
}

async fn time_copies(client: &Client, data: &Path, to: &Path, turn: usize, times: &mut Times) {
    rustix::fs::sync();
    let (from, to) = (data.to_str().unwrap(), to.to_str().unwrap());
    let cp = time_program("cp", &["-a", from, to]);
    times.cp.push(cp);
    times.cp_and_sync.push(cp + time_program("sync", &["-f", to]));
    rustix::fs::sync();
    let began = Instant::now();
    client.snapshot("full", &format!("snapshot-{turn}")).await;
    times.snapshot.push(began.elapsed().as_secs_f64());
    rustix::fs::sync();
    let began = Instant::now();
    let source = match turn {
        0 => Type::Snapshot(SnapshotSource { snapshot_id: id("snapshot-0") }),
        _ => Type::Volume(VolumeSource { volume_id: id("full") }),
    };
    client.create_large(&format!("clone-{turn}"), Some(source)).await;
    times.clone.push(began.elapsed().as_secs_f64());
}

/// Returns how long a program takes, in seconds.
pub(crate) fn time_program(program: &str, args: &[&str]) -> f64 {
    let began = Instant::now();
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
    began.elapsed().as_secs_f64()
}

fn report(table: &mut Table, sizes: &Sizes, times: &Times) {
    table.section(&format!("copying {} files of 4 KiB", sizes.files));
    let (cp, synced) = (median(&times.cp), median(&times.cp_and_sync));
    let (snapshot, clone) = (median(&times.snapshot), median(&times.clone));
    for (what, orlop, other) in [
        ("snapshot vs cp -a and sync -f", snapshot, synced),
        ("clone vs cp -a and sync -f", clone, synced),
        ("snapshot vs cp -a alone, which syncs nothing", snapshot, cp),
    ] {
        table.compare(what, (orlop, "s"), (other, "s"), orlop / other, Bar::None);
    }
}

/// Durations in milliseconds.
#[derive(Default)]
struct Deletes {
    full: Vec<f64>,
    empty: Vec<f64>,
    /// Of empty volumes, while the reaper removes a full one.
    during_removal: Vec<f64>,
}

/// Measures deletes of full and empty volumes, each while the reaper is idle.
async fn deletes(table: &mut Table, sizes: &Sizes, server: &Server) {
    let client = server.client().await;
    let mut times = Deletes::default();
    for name in ["full", "clone-0", "clone-1", "clone-2"] {
        for _ in 0..5 {
            client.create("empty", None).await;
            rustix::fs::sync();
            times.empty.push(time_delete(&client, "empty").await);
        }
        rustix::fs::sync();
        times.full.push(time_delete(&client, name).await);
        let removing = Instant::now();
        while removing.elapsed() < Duration::from_millis(300) {
            client.create("empty", None).await;
            times.during_removal.push(time_delete(&client, "empty").await);
        }
        server.trash_removed().await;
    }
    let (full, empty) = (median(&times.full), median(&times.empty));
    let what = format!("DeleteVolume of {} files vs of none", sizes.files);
    table.compare(&what, (full, "ms"), (empty, "ms"), full / empty, Bar::Ratio(2.0));
    let during = median(&times.during_removal);
    let what = "DeleteVolume of none during that removal vs at rest";
    table.compare(what, (during, "ms"), (empty, "ms"), during / empty, Bar::None);
}

async fn time_delete(client: &Client, name: &str) -> f64 {
    let began = Instant::now();
    client.delete(name).await;
    ms(began.elapsed())
}

/// Measures the time and the memory that a snapshot of a huge tree takes.
pub(crate) async fn run_huge(table: &mut Table, sizes: &Sizes, dir: &Path) {
    let server = Server::orlop(dir).await;
    let client = server.client().await;
    client.create("huge", None).await;
    trees::files(&server.data("huge"), sizes.huge, 0);
    client.create("small", None).await;
    client.snapshot("small", "warm-up").await;
    let before = server.memory("VmRSS");
    let snapshot = {
        let client = client.clone();
        tokio::spawn(async move { client.snapshot("huge", "snapshot").await })
    };
    let (began, mut most) = (Instant::now(), before);
    while !snapshot.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        most = most.max(server.memory("VmRSS"));
    }
    snapshot.await.unwrap();
    table.section(&format!("a snapshot of a tree of {} entries", sizes.huge));
    table.single("time", (began.elapsed().as_secs_f64(), "s"), Bar::None);
    table.single("growth of VmRSS", (most - before, "MiB"), Bar::Below(16.0));
    drop(server);
    trees::remove(&dir.join("pool/volumes/huge/data"));
    trees::remove(&dir.join("pool/snapshots/snapshot/data"));
}
