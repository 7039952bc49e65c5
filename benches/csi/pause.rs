//! How long a snapshot pauses a container, as its record says: `pauseMs`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::copy::time_program;
use crate::server::Server;
use crate::table::{Bar, Table, median};
use crate::{Sizes, trees};

/// The first argument of this program when it is the container.
pub(crate) const ARGUMENT: &str = "write-in-container";

/// An environment variable with the program of an earlier orlop, whose snapshots are taken in turns with those of this one.
const EARLIER: &str = "ORLOP_BENCH_EARLIER";

/// The parameters of a snapshot that shows an instant, and of one whose files are copied while they change.
const CRASH: &[(&str, &str)] = &[("consistency", "crash"), ("maxPause", "30s")];
const NONE: &[(&str, &str)] = &[("consistency", "none")];

const TURNS: usize = 5;
const SMALL_FILES: usize = 20_000;
const CHANGED: usize = 200;
/// Blocks that the container writes in each file in turn, 8 KiB each, as a database does.
const BLOCK: usize = 8 << 10;

/// A process with a cgroup and a mount namespace of its own, in which a volume is mounted at `/mnt`.
struct Container {
    process: Child,
    cgroup: PathBuf,
}

impl Container {
    /// Starts it; it writes to this many files of the tree, `pause` apart. `None` without cgroups that can be frozen.
    fn start(target: &str, files: usize, pause: Duration) -> Option<Self> {
        let roots = ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists())?;
        let cgroup = root.join(format!("orlop-bench-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let script =
            "echo $$ > \"$1/cgroup.procs\"; mount --bind \"$2\" /mnt; umount \"$2\"; shift 2; exec \"$@\"";
        let mut process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"])
            .arg(&cgroup)
            .arg(target)
            .arg(std::env::current_exe().unwrap())
            .args([ARGUMENT, &files.to_string(), &pause.as_micros().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "started\n", "the container has ended");
        Some(Self { process, cgroup })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        while fs::remove_dir(&self.cgroup).is_err() {
            std::thread::yield_now();
        }
    }
}

/// Writes a block to one file after the other until it is killed: the container.
pub(crate) fn write(mut arguments: impl Iterator<Item = OsString>) -> ! {
    let mut number = || arguments.next().unwrap().into_string().unwrap().parse::<u64>().unwrap();
    let (count, pause) = (number(), Duration::from_micros(number()));
    let mut files: Vec<File> = Vec::new();
    for directory in fs::read_dir("/mnt").unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let names = fs::read_dir(directory.path()).unwrap().flatten();
        files.extend(names.map(|name| File::options().write(true).open(name.path()).unwrap()));
        if files.len() as u64 >= count {
            break;
        }
    }
    files.truncate(usize::try_from(count).unwrap());
    let sizes: Vec<u64> = files.iter().map(|file| file.metadata().unwrap().len()).collect();
    println!("started");
    std::io::stdout().flush().unwrap();
    let mut block = vec![0; BLOCK];
    let mut turn = 0_u64;
    loop {
        for (file, size) in files.iter().zip(&sizes) {
            turn += 1;
            let length = BLOCK.min(usize::try_from(*size).unwrap());
            block[..8].copy_from_slice(&turn.to_ne_bytes());
            // Spread over the file.
            let at = turn.wrapping_mul(0x9e37_79b9) % (size / length as u64) * length as u64;
            file.write_all_at(&block[..length], at).unwrap();
            std::thread::sleep(pause);
        }
    }
}

/// How snapshots of one kind went.
#[derive(Default)]
struct Snapshots {
    /// Milliseconds.
    pauses: Vec<f64>,
    /// Seconds until the snapshot was ready.
    times: Vec<f64>,
}

impl Snapshots {
    async fn take(&mut self, server: &Server, volume: &str, parameters: &[(&str, &str)]) {
        let client = server.client().await;
        rustix::fs::sync();
        let began = Instant::now();
        client.snapshot_with(volume, "snapshot", parameters).await;
        self.times.push(began.elapsed().as_secs_f64());
        let record = fs::read(server.pool.join("snapshots/snapshot/snapshot.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        self.pauses.push(record["pauseMs"].as_f64().unwrap_or_default());
        client.delete_snapshot("snapshot").await;
        server.trash_removed().await;
    }
}

/// How copies of one volume went, in turns.
#[derive(Default)]
struct Copies {
    /// They show an instant.
    crash: Snapshots,
    /// Their files are copied while they change.
    none: Snapshots,
    /// Seconds that `cp -a` and a sync take.
    cp: Vec<f64>,
}

impl Copies {
    async fn take(server: &Server, volume: &str) -> Self {
        let mut copies = Self::default();
        for _ in 0..TURNS {
            copies.crash.take(server, volume, CRASH).await;
            copies.none.take(server, volume, NONE).await;
            copies.cp.push(cp(&server.data(volume), &server.pool.join("copy")));
        }
        copies
    }

    fn report(&self, table: &mut Table, what: &str) {
        let crash = median(&self.crash.times);
        let mut row = |name: &str, other: f64, bar| {
            table.compare(
                &format!("{what}: a snapshot vs {name}"),
                (crash, "s"),
                (other, "s"),
                crash / other,
                bar,
            );
        };
        row("cp -a and sync -f", median(&self.cp), Bar::Ratio(1.3));
        row("consistency: none", median(&self.none.times), Bar::None);
    }
}

/// Copies a tree as a person would, and returns how long that takes, in seconds.
fn cp(from: &Path, to: &Path) -> f64 {
    rustix::fs::sync();
    let (source, copy) = (from.to_str().unwrap(), to.to_str().unwrap());
    let time =
        time_program("cp", &["-a", "--reflink=never", source, copy]) + time_program("sync", &["-f", copy]);
    fs::remove_dir_all(to).unwrap();
    time
}

/// What a container writes: to this many files, so far apart.
type Load = (usize, Duration);

/// Takes a snapshot while a container writes to the volume.
async fn take_of_busy(
    into: &mut Snapshots,
    server: &Server,
    volume: &str,
    load: Load,
    parameters: &[(&str, &str)],
) {
    let client = server.client().await;
    let target = server.target(volume);
    client.publish(volume, &target).await;
    if let Some(container) = Container::start(&target, load.0, load.1) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        into.take(server, volume, parameters).await;
        drop(container);
    }
    client.unpublish(volume, &target).await;
}

/// Compares snapshots of a volume with those of an earlier orlop, in turns. Each has a volume with the same files.
async fn compare_with_earlier(table: &mut Table, servers: [&Server; 2], volume: &str, load: Load) {
    let (mut now, mut earlier) = (Snapshots::default(), Snapshots::default());
    for _ in 0..TURNS {
        take_of_busy(&mut now, servers[0], volume, load, CRASH).await;
        take_of_busy(&mut earlier, servers[1], volume, load, &[]).await;
    }
    let (now, earlier) = (median(&now.times), median(&earlier.times));
    let what = format!("while {} files change: a snapshot vs the earlier program", load.0);
    table.compare(&what, (now, "s"), (earlier, "s"), now / earlier, Bar::Ratio(1.3));
}

/// Measures the pauses of an idle volume, of one with many files of which few change, and of a large one.
pub(crate) async fn run(table: &mut Table, sizes: &Sizes, dir: &Path) {
    let server = Server::orlop(dir).await;
    let earlier = match std::env::var_os(EARLIER) {
        Some(program) => Some(Server::of(Path::new(&program), &dir.join("earlier")).await),
        None => None,
    };
    let load = |files, pause| (files, Duration::from_micros(pause));
    let trees = [
        ("many", SMALL_FILES, 4096, load(CHANGED, 1000), 300.0),
        ("large", sizes.large, 1 << 20, load(sizes.large, 100), 1000.0),
    ];
    for (name, files, bytes, (changing, pause), most) in trees {
        let client = server.client().await;
        client.create_large(name, None).await;
        trees::files(&server.data(name), files, bytes);
        rustix::fs::sync();
        table.section(&format!("pauses for a volume of {files} files of {} KiB", bytes >> 10));
        let idle = Copies::take(&server, name).await;
        table.single("not in use", (median(&idle.crash.pauses), "ms"), Bar::Below(0.1));
        idle.report(table, "not in use");
        let target = server.target(name);
        client.publish(name, &target).await;
        let Some(container) = Container::start(&target, changing, pause) else {
            table.note("no cgroup can be frozen");
            return;
        };
        let busy = Copies::take(&server, name).await;
        drop(container);
        client.unpublish(name, &target).await;
        let (what, pauses) = (format!("while {changing} files change"), &busy.crash.pauses);
        table.single(&what, (median(pauses), "ms"), Bar::Below(most));
        table.single("the longest of them", (pauses.iter().copied().fold(0.0, f64::max), "ms"), Bar::None);
        busy.report(table, &what);
        if let Some(earlier) = &earlier {
            let client = earlier.client().await;
            client.create_large(name, None).await;
            trees::files(&earlier.data(name), files, bytes);
            compare_with_earlier(table, [&server, earlier], name, (changing, pause)).await;
            client.delete(name).await;
            earlier.trash_removed().await;
        }
        client.delete(name).await;
        server.trash_removed().await;
    }
}
