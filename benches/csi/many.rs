//! A pool full of volumes: start-up, memory, listing, and the rate of new volumes.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::bare::Bare;
use crate::client::rate_of;
use crate::server::Server;
use crate::table::{Bar, Table, median, median_ratio, ms};
use crate::{Sizes, callers_text, trees};

/// A served pool.
struct Pool {
    server: Arc<Server>,
    bare: Bare,
}

/// Measures a full pool, and compares its creates with those of a pool with few volumes.
pub(crate) async fn run(table: &mut Table, sizes: &Sizes, base: &Path) {
    let (few_dir, many_dir) = (base.join("few"), base.join("many"));
    let few_record = fill(&few_dir, sizes.few).await;
    let many_record = fill(&many_dir, sizes.many).await;
    rustix::fs::sync();
    let few = open(&few_dir, few_record).await;
    let many = open(&many_dir, many_record).await;
    table.section(&format!("a pool of {} volumes", sizes.many));
    table.single("start-up until Probe succeeds", (ms(many.server.startup) / 1e3, "s"), Bar::Below(3.0));
    table.single("VmRSS", (many.server.memory("VmRSS"), "MiB"), Bar::Below(64.0));
    listing(table, sizes, &many.server).await;
    for callers in [1, 8] {
        compare_creates(table, sizes, callers, &few, &many).await;
    }
    drop((few, many));
    trees::remove(&many_dir.join("pool/volumes"));
}

/// Lets orlop make a pool, and fills it while no process serves it; returns the record of a volume.
async fn fill(dir: &Path, count: usize) -> Vec<u8> {
    let record = Server::orlop(dir).await.record().await;
    trees::volumes(&dir.join("pool"), &record, count);
    record
}

async fn open(dir: &Path, record: Vec<u8>) -> Pool {
    let server = Server::orlop(dir).await;
    let bare = Bare::new(&server.pool, record);
    Pool { server, bare }
}

async fn listing(table: &mut Table, sizes: &Sizes, server: &Server) {
    let client = server.client().await;
    let (mut times, mut token) = (Vec::new(), String::new());
    for _ in 0..sizes.many / 1000 {
        let began = Instant::now();
        let (count, next) = client.page(1000, token).await;
        times.push(ms(began.elapsed()));
        assert_eq!(count, 1000);
        token = next;
    }
    assert!(token.is_empty(), "all pages were read");
    table.single("ListVolumes, a page of 1000, median", (median(&times), "ms"), Bar::Below(5.0));
    table.single("  slowest", (times.into_iter().fold(0.0, f64::max), "ms"), Bar::None);
}

async fn compare_creates(table: &mut Table, sizes: &Sizes, callers: usize, few: &Pool, many: &Pool) {
    let [mut orlop_few, mut orlop_many, mut bare_few, mut bare_many] = [const { Vec::new() }; 4];
    for _ in 0..sizes.turns {
        for (Pool { server, bare }, orlop_rates, bare_rates) in
            [(few, &mut orlop_few, &mut bare_few), (many, &mut orlop_many, &mut bare_many)]
        {
            orlop_rates.push(creates(server, callers, sizes.turn / 2).await);
            bare_rates.push(bare.creates(callers, sizes.turn / 2));
            bare.clean();
            rustix::fs::sync();
        }
    }
    let what = format!("creates by {} vs a pool of {}", callers_text(callers), sizes.few);
    let ratio = median_ratio(&orlop_few, &orlop_many);
    let rates = ((median(&orlop_many), "/s"), (median(&orlop_few), "/s"));
    table.compare(&what, rates.0, rates.1, ratio, Bar::Ratio(1.1));
    let ratio = median_ratio(&bare_few, &bare_many);
    let rates = ((median(&bare_many), "/s"), (median(&bare_few), "/s"));
    table.compare("  the same by bare calls, both columns", rates.0, rates.1, ratio, Bar::None);
}

/// Creates volumes and returns volumes per second; deletes them afterwards.
async fn creates(server: &Arc<Server>, callers: usize, time: Duration) -> f64 {
    let (client, source) = (server.client().await, Arc::clone(server));
    let created = Arc::new(Mutex::new(Vec::new()));
    let names = Arc::clone(&created);
    let work = move || {
        let (client, name, names) = (client.clone(), source.name(), Arc::clone(&names));
        async move {
            client.create(&name, None).await;
            names.lock().unwrap().push(name);
        }
    };
    let rate = rate_of(callers, time, work).await;
    let client = server.client().await;
    let names = std::mem::take(&mut *created.lock().unwrap());
    for name in names {
        client.delete(&name).await;
    }
    server.trash_removed().await;
    rate.per_second()
}
