//! `orlop backup` and `orlop restore` compared with tar and zstd on the same trees. The container of a volume is not running.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::client::POOL;
use crate::server::{PROGRAM, Server};
use crate::table::{Bar, Table, median, median_ratio};
use crate::{Sizes, trees};

const SMALL: &str = "small";
const SPARSE: &str = "sparse";

/// Seconds of the turns of one command and of the one that it is compared with.
#[derive(Default)]
struct Pairs {
    orlop: Vec<f64>,
    other: Vec<f64>,
}

impl Pairs {
    fn print(&self, table: &mut Table, what: &str, bar: Bar) {
        let ratio = median_ratio(&self.orlop, &self.other);
        table.compare(what, (median(&self.orlop), "s"), (median(&self.other), "s"), ratio, bar);
    }
}

/// Measures a volume of many small files, and one of a large sparse file.
pub(crate) async fn run(table: &mut Table, sizes: &Sizes, dir: &Path) {
    {
        let server = Server::orlop(dir).await;
        let client = server.client().await;
        for volume in [SMALL, SPARSE] {
            client.create_large(volume, None).await;
        }
        trees::files(&server.data(SMALL), sizes.files, 1024);
        sparse_file(&server.data(SPARSE).join("file"));
    }
    rustix::fs::sync();
    table.section(&format!("archives of {} files of 1 KiB", sizes.files));
    measure(table, sizes, dir, SMALL);
    table.section("archives of a sparse file of 4 GiB with 32 MiB of data");
    measure(table, sizes, dir, SPARSE);
}

/// Half of the data is random, the other half is text.
fn sparse_file(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(4 << 30).unwrap();
    let mut random = vec![0; 256 << 10];
    let text: Vec<u8> = b"a row of a table; ".iter().copied().cycle().take(256 << 10).collect();
    for block in 0..64 {
        rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty()).unwrap();
        let at = block * (64 << 20);
        file.write_all_at(if block % 2 == 0 { &random } else { &text }, at).unwrap();
        file.write_all_at(&text, at + (256 << 10)).unwrap();
    }
}

fn measure(table: &mut Table, sizes: &Sizes, dir: &Path, volume: &str) {
    let (mut backups, mut restores, mut synced) = (Pairs::default(), Pairs::default(), Pairs::default());
    let flags = if volume == SPARSE { "--sparse" } else { "" };
    let source = format!("pool/volumes/{volume}/data");
    let tar = format!("tar {flags} -C {source} -cf - . | zstd -q -1 -f -o other.tar.zst");
    for turn in 0..sizes.turns {
        // In both orders: the kernel is still at work after a turn has removed its files.
        for orlop_is_first in [true, false] {
            let mut back_up = |is_orlop: bool| match is_orlop {
                true => {
                    backups.orlop.push(shell(dir, &format!("\"$orlop\" backup {volume} -o orlop.tar.zst")))
                }
                false => backups.other.push(shell(dir, &tar)),
            };
            back_up(orlop_is_first);
            back_up(!orlop_is_first);
        }
        shell(dir, "sync");
        // The trees stay until the end: for six minutes, ext4 searches all inodes that were freed for each one that it allocates.
        let new = format!("{volume}-{turn}");
        let mut restore = |is_orlop: bool| match is_orlop {
            true => {
                let restore = shell(dir, &format!("\"$orlop\" restore orlop.tar.zst {new}"));
                restores.orlop.push(restore);
                synced.orlop.push(restore);
                shell(dir, "sync");
            }
            false => {
                let extract = format!("mkdir {new} && zstd -dc other.tar.zst | tar -C {new} -xf -");
                restores.other.push(shell(dir, &extract));
                synced.other.push(restores.other.last().unwrap() + shell(dir, &format!("sync -f {new}")));
            }
        };
        restore(turn % 2 == 0);
        restore(turn % 2 != 0);
    }
    backups.print(table, "orlop backup vs tar | zstd -1", Bar::Ratio(1.0));
    restores.print(table, "orlop restore vs zstd -d | tar x", Bar::Ratio(1.0));
    synced.print(table, "  the same with sync -f, as orlop does", Bar::None);
}

/// Runs a script in a directory; returns its duration in seconds.
fn shell(dir: &Path, script: &str) -> f64 {
    let began = Instant::now();
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(dir).stdout(Stdio::null());
    command.env("orlop", fs::canonicalize(PROGRAM).unwrap());
    command.env("ORLOP_POOL", format!("{POOL}={}", dir.join("pool").display()));
    let output = command.stderr(Stdio::piped()).output().unwrap();
    if !output.status.success() {
        std::io::stdout().write_all(&output.stderr).unwrap();
        panic!("{script}: {}", output.status);
    }
    began.elapsed().as_secs_f64()
}
