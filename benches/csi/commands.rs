//! Commands on a pool that no process serves.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::client::POOL;
use crate::server::{PROGRAM, Server};
use crate::table::{Bar, Table, median, ms};
use crate::{Sizes, trees};

/// Number of volumes in the pool.
const VOLUMES: usize = 10_000;

/// Measures `orlop ls` and `orlop inspect`, from the start of the process to its end.
pub(crate) async fn run(table: &mut Table, sizes: &Sizes, dir: &Path) {
    let record = Server::orlop(dir).await.record().await;
    let pool = dir.join("pool");
    trees::volumes(&pool, &record, VOLUMES);
    rustix::fs::sync();
    table.section(&format!("commands on a pool of {VOLUMES} volumes, without a server"));
    for (arguments, bar) in [(&["ls"][..], 150.0), (&["inspect", "pvc-00000042"][..], 10.0)] {
        let mut times = Vec::new();
        for _ in 0..sizes.pairs {
            let began = Instant::now();
            let mut command = Command::new(PROGRAM);
            command.args(arguments).arg(format!("--pool={POOL}={}", pool.display()));
            let status = command.stdout(Stdio::null()).status().unwrap();
            times.push(ms(began.elapsed()));
            assert!(status.success(), "{arguments:?}: {status}");
        }
        let what = format!("orlop {}, median", arguments[0]);
        table.single(&what, (median(&times), "ms"), Bar::Below(bar));
        table.single("  slowest", (times.into_iter().fold(0.0, f64::max), "ms"), Bar::None);
    }
    trees::remove(&pool.join("volumes"));
}
