//! Measures orlop and, in the same run, other implementations of the same work: `make bench`.
//!
//! The release binary serves a pool below `target/`, or below the directory `ORLOP_BENCH_DIR`, on a Unix socket; the clients are in this process. orlop and what
//! it is compared with take turns, so other load on the machine affects both, and the median ratio counts.
//!
//! Arguments select parts (`cargo bench --bench csi -- lifecycle`). `--quick` uses smaller sizes, `--callers=8` one
//! number of concurrent callers. Everything runs in a private mount namespace and is removed at the end.
#![expect(clippy::unwrap_used, reason = "a failed benchmark has no figures to report")]
#![expect(clippy::print_stdout, reason = "the printed table is the result")]
#![expect(clippy::disallowed_methods, reason = "the programs under measurement are processes")]

mod archive;
mod bare;
mod client;
mod commands;
mod copy;
mod filesystems;
mod least;
mod lifecycle;
mod many;
mod pause;
mod server;
mod shared;
mod table;
mod trees;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use server::PROGRAM;
use table::{Bar, Table};

/// Set in the process that has a private mount namespace.
const INSIDE: &str = "ORLOP_BENCH_INSIDE";

/// How much of everything is measured.
#[derive(Debug)]
struct Sizes {
    /// Pairs of turns of orlop and the least driver; at least nine for a meaningful spread.
    pairs: usize,
    /// Turns of each side of the other comparisons.
    turns: usize,
    /// Duration of a turn.
    turn: Duration,
    /// Volumes of a small pool.
    few: usize,
    /// Volumes of a full pool.
    many: usize,
    /// Files of a full volume.
    files: usize,
    /// Entries of a huge tree.
    huge: usize,
    /// Files of a large volume under load, of 1 MiB each.
    large: usize,
    /// Numbers of concurrent callers.
    callers: &'static [usize],
}

const FULL: Sizes = Sizes {
    pairs: 11,
    turns: 7,
    turn: Duration::from_millis(1200),
    few: 1000,
    many: 100_000,
    files: 100_000,
    huge: 1_000_000,
    large: 1000,
    callers: &[1, 8, 32],
};
const QUICK: Sizes = Sizes {
    pairs: 9,
    turns: 3,
    turn: Duration::from_millis(500),
    few: 1000,
    many: 10_000,
    files: 10_000,
    huge: 50_000,
    large: 1000,
    callers: &[1, 8, 32],
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    if first.as_ref().is_some_and(|first| first == least::ARGUMENT) {
        least::run(arguments);
        return ExitCode::SUCCESS;
    }
    if first.is_some_and(|first| first == pause::ARGUMENT) {
        pause::write(arguments);
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if !rustix::process::geteuid().is_root() {
        println!("the bench mounts volumes: run it as root");
        return ExitCode::FAILURE;
    }
    if std::env::var_os(INSIDE).is_none() {
        return enter_namespace(&words);
    }
    let sizes = sizes(&words);
    let parts: Vec<_> = words.into_iter().filter(|word| !word.starts_with("--")).collect();
    // The callers share one thread, which leaves most CPU time to the server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&sizes, &parts))
}

/// Executes this program again in a private mount namespace; returns only on failure.
fn enter_namespace(words: &[String]) -> ExitCode {
    let failed = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(words)
        .env(INSIDE, "1")
        .exec();
    println!("run unshare of util-linux: {failed}");
    ExitCode::FAILURE
}

fn sizes(words: &[String]) -> Sizes {
    let mut sizes = if words.iter().any(|word| word == "--quick") { QUICK } else { FULL };
    if let Some(callers) = words.iter().find_map(|word| word.strip_prefix("--callers=")) {
        sizes.callers = vec![callers.parse().unwrap()].leak();
    }
    sizes
}

async fn run(sizes: &Sizes, parts: &[String]) -> ExitCode {
    let selected = |part: &str| parts.is_empty() || parts.iter().any(|word| word == part);
    let dir = std::env::var_os("ORLOP_BENCH_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    let base = tempfile::tempdir_in(dir).unwrap();
    let base = base.path();
    let mut table = Table::default();
    describe_machine(&mut table, base);
    if selected("size") {
        size(&mut table);
    }
    if selected("lifecycle") {
        lifecycle::run(&mut table, sizes, &base.join("lifecycle")).await;
    }
    if selected("shared") {
        shared::run(&mut table, sizes, &base.join("shared")).await;
    }
    if selected("commands") {
        commands::run(&mut table, sizes, &base.join("commands")).await;
    }
    if selected("archive") {
        archive::run(&mut table, sizes, &base.join("archive")).await;
    }
    if selected("many") {
        many::run(&mut table, sizes, base).await;
    }
    if selected("copy") {
        copy::run(&mut table, sizes, &base.join("copy")).await;
    }
    if selected("pause") {
        pause::run(&mut table, sizes, &base.join("pause")).await;
    }
    if selected("filesystems") {
        filesystems::run(&mut table, sizes, &base.join("filesystems")).await;
    }
    if selected("huge") {
        copy::run_huge(&mut table, sizes, &base.join("huge")).await;
    }
    match table.missed() {
        [] => println!("\nall bars are met"),
        missed => println!("\nmissed: {}", missed.join("; ")),
    }
    ExitCode::SUCCESS
}

/// Whether the ext4 filesystem of a directory has a journal.
fn has_journal(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = std::fs::metadata(dir).unwrap().dev();
    let link = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let name = std::fs::read_link(link).ok().and_then(|path| path.file_name().map(std::ffi::OsStr::to_owned));
    name.is_some_and(|name| Path::new("/proc/fs/jbd2").join(format!("{}-8", name.display())).exists())
}

/// Prints what the figures depend on.
fn describe_machine(table: &mut Table, base: &Path) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let filesystem = match rustix::fs::statfs(base).unwrap().f_type {
        0xef53 if !has_journal(base) => {
            // There, each new inode is searched for among those that were freed in the last minutes.
            "ext4 without a journal (removed files slow down the creation of others: choose another by ORLOP_BENCH_DIR)".to_owned()
        }
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        other => format!("filesystem {other:x}"),
    };
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let is_process = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().is_ok();
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter(is_process).count();
    table.note(&format!(
        "{processors} processors, Linux {}, {filesystem}, {processes} processes, load {}",
        read("/proc/sys/kernel/osrelease"),
        read("/proc/loadavg"),
    ));
}

fn size(table: &mut Table) {
    table.section("the program");
    let megabytes = |path: &Path| std::fs::metadata(path).ok().map(|file| file.len() as f64 / 1e6);
    table.single("release binary", (megabytes(Path::new(PROGRAM)).unwrap(), "MB"), Bar::Below(15.0));
    let target = Path::new(PROGRAM).ancestors().nth(2).unwrap();
    if let Some(figure) = megabytes(&target.join("x86_64-unknown-linux-musl/release/orlop")) {
        table.single("static release binary", (figure, "MB"), Bar::Below(15.0));
    }
}

fn callers_text(callers: usize) -> String {
    if callers == 1 { "1 caller".to_owned() } else { format!("{callers} callers") }
}
