//! What orlop takes, each figure beside the same work by bare system calls in the same run: `make bench`.
//!
//! The real program serves a pool below `target/` on a real socket; the clients are in this process. Other work on the
//! machine disturbs both sides alike, so the two are measured in turns and the middle ratio counts. Words on the
//! command line choose parts (`cargo bench --bench csi -- lifecycle`); `--quick` takes smaller sizes, `--callers=8` only
//! so many at once.
//!
//! All runs in a mount namespace of its own: nothing is seen outside, and nothing stays.
#![expect(clippy::unwrap_used, reason = "a benchmark that panics has no figures")]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]
#![expect(clippy::disallowed_methods, reason = "the program under measurement is a process")]

#[path = "csi/bare.rs"]
mod bare;
#[path = "csi/server.rs"]
mod server;
#[path = "csi/table.rs"]
mod table;
#[path = "csi/trees.rs"]
mod trees;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use orlop::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};

use bare::{Bare, Syncs};
use server::{PROGRAM, Server, id, processor, rate_of};
use table::{Bar, Table, median, ms};

/// Set in the process that has a mount namespace of its own.
const INSIDE: &str = "ORLOP_BENCH_INSIDE";

/// How much of everything.
#[derive(Debug)]
struct Sizes {
    /// Turns of each side.
    turns: usize,
    /// How long a turn lasts.
    turn: Duration,
    few: usize,
    many: usize,
    files: usize,
    huge: usize,
    /// Callers at once.
    callers: &'static [usize],
}

const FULL: Sizes = Sizes {
    turns: 7,
    turn: Duration::from_millis(1200),
    few: 1000,
    many: 100_000,
    files: 100_000,
    huge: 1_000_000,
    callers: &[1, 8, 32],
};
const QUICK: Sizes = Sizes {
    turns: 3,
    turn: Duration::from_millis(500),
    few: 1000,
    many: 10_000,
    files: 10_000,
    huge: 50_000,
    callers: &[1, 8, 32],
};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if !rustix::process::geteuid().is_root() {
        println!("volumes are mounted: this needs root");
        return ExitCode::FAILURE;
    }
    if std::env::var_os(INSIDE).is_none() {
        let failed = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(&words)
            .env(INSIDE, "1")
            .exec();
        println!("unshare, of util-linux: {failed}");
        return ExitCode::FAILURE;
    }
    let mut sizes = if words.iter().any(|word| word == "--quick") { QUICK } else { FULL };
    if let Some(callers) = words.iter().find_map(|word| word.strip_prefix("--callers=")) {
        sizes.callers = vec![callers.parse().unwrap()].leak();
    }
    let parts: Vec<_> = words.into_iter().filter(|word| !word.starts_with("--")).collect();
    // One thread is enough for the callers, and leaves the processors to what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&sizes, &parts))
}

async fn run(sizes: &Sizes, parts: &[String]) -> ExitCode {
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|word| word == part);
    let base = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut table = Table::default();
    machine(&mut table, base.path());
    if wanted("size") {
        size(&mut table);
    }
    if wanted("lifecycle") {
        lifecycle(&mut table, sizes, &base.path().join("lifecycle")).await;
    }
    if wanted("many") {
        many(&mut table, sizes, base.path()).await;
    }
    if wanted("copy") {
        copy(&mut table, sizes, &base.path().join("copy")).await;
    }
    if wanted("huge") {
        huge(&mut table, sizes, &base.path().join("huge")).await;
    }
    match table.missed() {
        [] => println!("\nevery bar is kept"),
        missed => println!("\nmissed: {}", missed.join("; ")),
    }
    ExitCode::SUCCESS
}

/// What was measured on.
fn machine(table: &mut Table, base: &Path) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let filesystem = rustix::fs::statfs(base).map(|stat| match stat.f_type {
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        other => format!("filesystem {other:x}"),
    });
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let processes =
        processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).count();
    table.note(&format!(
        "{processors} processors, Linux {}, {}, {processes} processes, load {}",
        read("/proc/sys/kernel/osrelease"),
        filesystem.unwrap(),
        read("/proc/loadavg"),
    ));
}

fn size(table: &mut Table) {
    table.part("the program");
    let mib = |path: &Path| std::fs::metadata(path).ok().map(|file| file.len() as f64 / 1e6);
    table.alone("release binary", (mib(Path::new(PROGRAM)).unwrap(), "MB"), Bar::Below(15.0));
    let target = Path::new(PROGRAM).ancestors().nth(2).unwrap();
    if let Some(figure) = mib(&target.join("x86_64-unknown-linux-musl/release/orlop")) {
        table.alone("static release binary", (figure, "MB"), Bar::Below(15.0));
    }
}

fn bare_beside(server: &Server) -> Bare {
    Bare::new(&server.pool, &server.pool.with_file_name("bare-targets"), trees::record("bare"))
}

async fn lifecycle(table: &mut Table, sizes: &Sizes, dir: &Path) {
    let server = Server::start(dir).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let idle = server.memory("VmRSS");
    let client = server.client().await;
    let bare = bare_beside(&server);
    client.lifecycle("warm", &server.target("warm")).await;
    bare.rate(1, Duration::from_millis(200), Syncs::All);

    table.part("create + publish + unpublish + delete");
    for &callers in sizes.callers {
        let bar = if callers == 1 { 2.0 } else { 1.5 };
        let [mut ours, mut all, mut lean, mut work, mut bare_work, mut calling] = [const { Vec::new() }; 6];
        let turn = sizes.turn.as_secs_f64();
        for _ in 0..sizes.turns {
            let before = processor("self");
            all.push(bare.rate(callers, sizes.turn, Syncs::All));
            bare_work.push((processor("self") - before) * 1e3 / (all[all.len() - 1] * turn));
            let (before, before_us) = (server.processor(), processor("self"));
            ours.push(server.rate(&client, callers, sizes.turn).await);
            let took = (ours[ours.len() - 1] * turn) / 1e3;
            calling.push((processor("self") - before_us) / took);
            server.reaped().await;
            work.push((server.processor() - before) / took);
            lean.push(bare.rate(callers, sizes.turn / 2, Syncs::Record));
            bare.clean().unwrap();
        }
        let ratio =
            |other: &[f64]| median(other.iter().zip(&ours).map(|(other, ours)| other / ours).collect());
        let (to_all, to_lean) = (ratio(&all), ratio(&lean));
        let who = if callers == 1 { "1 caller".to_owned() } else { format!("{callers} callers") };
        let rate = median(ours);
        table.beside(&who, (rate, "/s"), (median(all), "/s"), to_all, Bar::Ratio(bar));
        let what = "  beside calls that sync the record alone";
        table.beside(what, (rate, "/s"), (median(lean), "/s"), to_lean, Bar::None);
        let (work, bare_work) = (median(work), median(bare_work));
        let what = "  processor time of one, and of the bare calls";
        table.beside(what, (work, "ms"), (bare_work, "ms"), work / bare_work, Bar::None);
        table.alone("  processor time of its caller", (median(calling), "ms"), Bar::None);
        if callers == 1 {
            table.beside(
                "  beside the 55/s of a known driver",
                (rate, "/s"),
                (55.0, "/s"),
                55.0 / rate,
                Bar::Above(1100.0),
            );
        }
    }
    calls(table, sizes, &server, &bare).await;
    table.part("memory");
    table.alone("idle, just started: VmRSS", (idle, "MiB"), Bar::Below(8.0));
    table.alone("  of it anonymous, after all these calls", (server.memory("RssAnon"), "MiB"), Bar::None);
    table.alone("  VmRSS after all these calls", (server.memory("VmRSS"), "MiB"), Bar::None);
}

/// Each call alone, one caller.
async fn calls(table: &mut Table, sizes: &Sizes, server: &Server, bare: &Bare) {
    let client = server.client().await;
    let (mut ours, mut other) = ([const { Vec::new() }; 4], [const { Vec::new() }; 4]);
    let note = |times: &mut [Vec<f64>; 4], call: usize, began: Instant| {
        times[call].push(ms(began.elapsed()));
        Instant::now()
    };
    for _ in 0..sizes.turns * 50 {
        let name = server.name();
        let target = server.target(&name);
        let mut began = Instant::now();
        client.create(&name, None).await;
        began = note(&mut ours, 0, began);
        client.publish(&name, &target).await;
        began = note(&mut ours, 1, began);
        client.unpublish(&name, &target).await;
        began = note(&mut ours, 2, began);
        client.delete(&name).await;
        note(&mut ours, 3, began);

        let name = bare.name();
        began = Instant::now();
        bare.create(&name, Syncs::All);
        began = note(&mut other, 0, began);
        let target = bare.publish(&name);
        began = note(&mut other, 1, began);
        bare.unpublish(&target);
        began = note(&mut other, 2, began);
        bare.delete(&name, Syncs::All);
        note(&mut other, 3, began);
    }
    bare.clean().unwrap();
    table.part("one caller, the middle of each call");
    let names = ["CreateVolume", "NodePublishVolume", "NodeUnpublishVolume", "DeleteVolume"];
    // 7.6 ms is what the same driver takes to publish.
    let bars = [Bar::None, Bar::Below(7.6 / 20.0), Bar::None, Bar::None];
    for (((name, bar), ours), other) in names.into_iter().zip(bars).zip(ours).zip(other) {
        let (ours, other) = (median(ours), median(other));
        table.beside(name, (ours, "ms"), (other, "ms"), ours / other, bar);
    }
}

async fn many(table: &mut Table, sizes: &Sizes, base: &Path) {
    let (few_dir, many_dir) = (base.join("few"), base.join("many"));
    // The pool is made by orlop, filled by us, and read by orlop again.
    for (dir, count) in [(&few_dir, sizes.few), (&many_dir, sizes.many)] {
        drop(Server::start(dir).await);
        trees::volumes(&dir.join("pool"), count);
    }
    rustix::fs::sync();
    let few = Server::start(&few_dir).await;
    let many = Server::start(&many_dir).await;
    table.part(&format!("a pool of {} volumes", sizes.many));
    table.alone("start-up until Probe answers", (ms(many.started) / 1e3, "s"), Bar::Below(3.0));
    table.alone("VmRSS", (many.memory("VmRSS"), "MiB"), Bar::Below(64.0));

    let client = many.client().await;
    let (mut times, mut token) = (Vec::new(), String::new());
    for _ in 0..sizes.many / 1000 {
        let began = Instant::now();
        let (count, next) = client.page(1000, token).await;
        times.push(ms(began.elapsed()));
        assert_eq!(count, 1000);
        token = next;
    }
    assert!(token.is_empty(), "all pages were read");
    table.alone("ListVolumes, a page of 1000, the middle", (median(times.clone()), "ms"), Bar::Below(5.0));
    table.alone("  the slowest", (times.into_iter().fold(0.0, f64::max), "ms"), Bar::None);

    let (few_bare, many_bare) = (bare_beside(&few), bare_beside(&many));
    for callers in [1, 8] {
        let [mut ours_few, mut ours_many, mut bare_few, mut bare_many] = [const { Vec::new() }; 4];
        for _ in 0..sizes.turns {
            for (server, bare, ours, other) in [
                (&few, &few_bare, &mut ours_few, &mut bare_few),
                (&many, &many_bare, &mut ours_many, &mut bare_many),
            ] {
                ours.push(creates(server, callers, sizes.turn / 2).await);
                other.push(bare.rate_of(callers, sizes.turn / 2, || bare.create(&bare.name(), Syncs::All)));
                sweep(&server.pool);
                rustix::fs::sync();
            }
        }
        let ratio = |few: &[f64], many: &[f64]| median(few.iter().zip(many).map(|(a, b)| a / b).collect());
        let (ours, other) = (ratio(&ours_few, &ours_many), ratio(&bare_few, &bare_many));
        let (many, few) = ((median(ours_many), "/s"), (median(ours_few), "/s"));
        let what = format!("creates, {callers} at once, beside those at {}", sizes.few);
        table.beside(&what, many, few, ours, Bar::Ratio(1.1));
        let (many, few) = ((median(bare_many), "/s"), (median(bare_few), "/s"));
        table.beside("  the same by bare calls, both columns", many, few, other, Bar::None);
    }
    drop((few, many));
    trees::remove(&many_dir.join("pool/volumes"));
}

async fn creates(server: &std::sync::Arc<Server>, callers: usize, time: Duration) -> f64 {
    let (client, own) = (server.client().await, std::sync::Arc::clone(server));
    let made = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let names = std::sync::Arc::clone(&made);
    let work = move || {
        let (client, name, names) = (client.clone(), own.name(), std::sync::Arc::clone(&names));
        async move {
            client.create(&name, None).await;
            names.lock().unwrap().push(name);
        }
    };
    let rate = rate_of(callers, time, work).await;
    let client = server.client().await;
    let names = std::mem::take(&mut *made.lock().unwrap());
    for name in names {
        client.delete(&name).await;
    }
    server.reaped().await;
    rate
}

/// Removes the bare sequence's volumes.
fn sweep(pool: &Path) {
    for entry in std::fs::read_dir(pool.join("volumes")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("bare-") {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

fn data(server: &Server, name: &str) -> PathBuf {
    server.pool.join("volumes").join(name).join("data")
}

fn timed(program: &str, args: &[&str]) -> f64 {
    let began = Instant::now();
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
    began.elapsed().as_secs_f64()
}

async fn copy(table: &mut Table, sizes: &Sizes, dir: &Path) {
    let server = Server::start(dir).await;
    let client = server.client().await;
    client.create("full", None).await;
    trees::files(&data(&server, "full"), sizes.files, 4096);
    rustix::fs::sync();
    let from = data(&server, "full");
    let [mut cp, mut synced, mut snapshots, mut clones] = [const { Vec::new() }; 4];
    let mut turn = 0;
    while turn < 3 {
        rustix::fs::sync();
        let to = dir.join(format!("cp-{turn}"));
        let to = to.to_str().unwrap();
        let one = timed("cp", &["-a", from.to_str().unwrap(), to]);
        synced.push(one + timed("sync", &["-f", to]));
        cp.push(one);
        rustix::fs::sync();
        let began = Instant::now();
        client.snapshot("full", &format!("cut-{turn}")).await;
        snapshots.push(began.elapsed().as_secs_f64());
        rustix::fs::sync();
        let began = Instant::now();
        let source = match turn {
            0 => Type::Snapshot(SnapshotSource { snapshot_id: id("cut-0") }),
            _ => Type::Volume(VolumeSource { volume_id: id("full") }),
        };
        client.create(&format!("clone-{turn}"), Some(source)).await;
        clones.push(began.elapsed().as_secs_f64());
        turn += 1;
    }
    table.part(&format!("copying {} files of 4 KiB", sizes.files));
    let cp = median(cp);
    let (synced, snapshot, clone) = (median(synced), median(snapshots), median(clones));
    table.beside(
        "snapshot, beside cp -a and sync -f",
        (snapshot, "s"),
        (synced, "s"),
        snapshot / synced,
        Bar::None,
    );
    table.beside("clone, beside cp -a and sync -f", (clone, "s"), (synced, "s"), clone / synced, Bar::None);
    table.beside(
        "snapshot, beside cp -a alone, which syncs nothing",
        (snapshot, "s"),
        (cp, "s"),
        snapshot / cp,
        Bar::None,
    );
    // Not before: a disk that is told what is free any more is slow for a while.
    (0..turn).for_each(|turn| trees::remove(&dir.join(format!("cp-{turn}"))));
    deletes(table, sizes, &server).await;
    for turn in 0..3 {
        client.delete_snapshot(&format!("cut-{turn}")).await;
    }
    server.reaped().await;
}

/// Volumes full of files, beside empty ones; the reaper rests before each.
async fn deletes(table: &mut Table, sizes: &Sizes, server: &Server) {
    let client = server.client().await;
    let (mut full, mut empty, mut behind) = (Vec::new(), Vec::new(), Vec::new());
    for name in ["full", "clone-0", "clone-1", "clone-2"] {
        for _ in 0..5 {
            client.create("none", None).await;
            rustix::fs::sync();
            let began = Instant::now();
            client.delete("none").await;
            empty.push(ms(began.elapsed()));
        }
        rustix::fs::sync();
        let began = Instant::now();
        client.delete(name).await;
        full.push(ms(began.elapsed()));
        let reaping = Instant::now();
        while reaping.elapsed() < Duration::from_millis(300) {
            client.create("none", None).await;
            let began = Instant::now();
            client.delete("none").await;
            behind.push(ms(began.elapsed()));
        }
        server.reaped().await;
    }
    let (full, empty, behind) = (median(full), median(empty), median(behind));
    let what = format!("DeleteVolume of {} files, beside none", sizes.files);
    table.beside(&what, (full, "ms"), (empty, "ms"), full / empty, Bar::Ratio(2.0));
    let what = "DeleteVolume of none while those are being removed";
    table.beside(what, (behind, "ms"), (empty, "ms"), behind / empty, Bar::None);
}

async fn huge(table: &mut Table, sizes: &Sizes, dir: &Path) {
    let server = Server::start(dir).await;
    let client = server.client().await;
    client.create("huge", None).await;
    trees::files(&data(&server, "huge"), sizes.huge, 0);
    client.create("small", None).await;
    client.snapshot("small", "warm").await;
    let before = server.memory("VmRSS");
    let cut = {
        let client = client.clone();
        tokio::spawn(async move { client.snapshot("huge", "cut").await })
    };
    let (began, mut most) = (Instant::now(), before);
    while !cut.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        most = most.max(server.memory("VmRSS"));
    }
    cut.await.unwrap();
    table.part(&format!("a snapshot of a tree of {} entries", sizes.huge));
    table.alone("time", (began.elapsed().as_secs_f64(), "s"), Bar::None);
    table.alone("growth of VmRSS", (most - before, "MiB"), Bar::Below(16.0));
    drop(server);
    trees::remove(&dir.join("pool/volumes/huge/data"));
    trees::remove(&dir.join("pool/snapshots/cut/data"));
}
