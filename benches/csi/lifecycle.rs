//! Whole lives of volumes and each of their calls, compared with the least driver; memory of the server.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bare::{Bare, Syncs};
use crate::client::Client;
use crate::server::{Server, cpu};
use crate::table::{Bar, Table, median, median_ratio, ms, ratios};
use crate::{Sizes, callers_text};

/// Lifecycles per second of a known driver.
const KNOWN_DRIVER: f64 = 55.0;
/// Milliseconds that the same driver takes to publish.
const KNOWN_PUBLISH: f64 = 7.6;

/// A server and its client.
struct Side {
    server: Arc<Server>,
    client: Client,
    /// Figures of the turns so far.
    turns: Turns,
}

/// Figures of the turns of one side, in their order.
#[derive(Default)]
struct Turns {
    /// Lifecycles per second.
    rates: Vec<f64>,
    /// CPU time of the server per lifecycle, in milliseconds.
    server_cpu: Vec<f64>,
    /// CPU time of the client per lifecycle, in milliseconds.
    client_cpu: Vec<f64>,
}

impl Side {
    async fn new(server: Arc<Server>) -> Self {
        let client = server.client().await;
        client.lifecycle("warm-up", &server.target("warm-up")).await;
        Self { server, client, turns: Turns::default() }
    }

    /// Runs lifecycles for one turn. The removal of their trash counts as CPU time but not as time of the turn.
    async fn turn(&mut self, callers: usize, time: Duration) {
        let (server_cpu, client_cpu) = (self.server.cpu(), cpu("self"));
        let rate = self.server.lifecycles(&self.client, callers, time).await;
        let client_cpu = cpu("self") - client_cpu;
        self.server.trash_removed().await;
        let server_cpu = self.server.cpu() - server_cpu;
        rustix::fs::sync();
        self.turns.rates.push(rate.per_second());
        self.turns.server_cpu.push(ms(server_cpu) / rate.count);
        self.turns.client_cpu.push(ms(client_cpu) / rate.count);
    }
}

/// Rates of the bare calls by threads of this process.
#[derive(Default)]
struct BareTurns {
    /// With every sync that orlop makes.
    all: Vec<f64>,
    /// With a sync of the record alone.
    record: Vec<f64>,
    /// Rates of orlop in the turns before.
    orlop: Vec<f64>,
}

/// Measures lifecycles, single calls and memory.
pub(crate) async fn run(table: &mut Table, sizes: &Sizes, dir: &Path) {
    let server = Server::orlop(&dir.join("orlop")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let idle = server.memory("VmRSS");
    let record = server.record().await;
    let least = Server::least(&dir.join("least"), &record).await;
    // In a pool of its own, since orlop reads what others change in its pool.
    let bare = Bare::new(&dir.join("bare").join("pool"), record);
    let (mut orlop, mut least) = (Side::new(server).await, Side::new(least).await);

    table.section("create + publish + unpublish + delete");
    for &callers in sizes.callers {
        let bare_turns = turns(sizes, callers, &mut orlop, &mut least, &bare).await;
        report(table, callers, &mut orlop, &mut least, &bare_turns);
    }
    calls(table, sizes, &orlop, &least, &bare).await;
    memory(table, idle, &orlop.server);
}

/// Measures pairs of turns in the order A B, B A, A B, …; bare calls follow every third pair.
async fn turns(sizes: &Sizes, callers: usize, orlop: &mut Side, least: &mut Side, bare: &Bare) -> BareTurns {
    let mut bare_turns = BareTurns::default();
    for pair in 0..sizes.pairs {
        let (first, second) =
            if pair % 2 == 0 { (&mut *orlop, &mut *least) } else { (&mut *least, &mut *orlop) };
        first.turn(callers, sizes.turn).await;
        second.turn(callers, sizes.turn).await;
        if pair % 3 == 1 {
            bare_turns.all.push(bare.lifecycles(callers, sizes.turn, Syncs::All));
            bare_turns.record.push(bare.lifecycles(callers, sizes.turn / 2, Syncs::Record));
            bare_turns.orlop.extend(orlop.turns.rates.last());
            bare.clean();
            rustix::fs::sync();
        }
    }
    bare_turns
}

fn report(table: &mut Table, callers: usize, orlop: &mut Side, least: &mut Side, bare: &BareTurns) {
    let (orlop, least) = (std::mem::take(&mut orlop.turns), std::mem::take(&mut least.turns));
    let ratios = ratios(&least.rates, &orlop.rates);
    let rate = median(&orlop.rates);
    let what = format!("lifecycles by {} vs the least driver", callers_text(callers));
    table.compare(&what, (rate, "/s"), (median(&least.rates), "/s"), median(&ratios), Bar::Ratio(1.15));
    table.spread(&ratios);
    let (cpu, least_cpu) = (median(&orlop.server_cpu), median(&least.server_cpu));
    let what = "  CPU time of a lifecycle vs the least driver";
    table.compare(what, (cpu, "ms"), (least_cpu, "ms"), cpu / least_cpu, Bar::None);
    table.single("  CPU time of the caller", (median(&orlop.client_cpu), "ms"), Bar::None);
    for (what, rates) in [
        ("  vs bare calls by threads of one process", &bare.all),
        ("  vs bare calls that sync the record alone", &bare.record),
    ] {
        let ratio = median_ratio(rates, &bare.orlop);
        table.compare(what, (rate, "/s"), (median(rates), "/s"), ratio, Bar::None);
    }
    if callers == 1 {
        let bar = Bar::Above(20.0 * KNOWN_DRIVER);
        table.compare("  vs a known driver", (rate, "/s"), (KNOWN_DRIVER, "/s"), KNOWN_DRIVER / rate, bar);
    }
}

/// Durations of the four calls, in milliseconds.
type Times = [Vec<f64>; 4];

/// Measures each call alone, by one caller.
async fn calls(table: &mut Table, sizes: &Sizes, orlop: &Side, least: &Side, bare: &Bare) {
    let [mut orlop_times, mut least_times, mut bare_times] = [const { [const { Vec::new() }; 4] }; 3];
    for round in 0..sizes.turns * 50 {
        time_bare(bare, &mut bare_times);
        // The order alternates, for the reaper of the first may disturb the second.
        if round % 2 == 0 {
            time_calls(orlop, &mut orlop_times).await;
            time_calls(least, &mut least_times).await;
        } else {
            time_calls(least, &mut least_times).await;
            time_calls(orlop, &mut orlop_times).await;
        }
    }
    bare.clean();
    table.section("one caller, median of each call");
    let names = ["CreateVolume", "NodePublishVolume", "NodeUnpublishVolume", "DeleteVolume"];
    let bars = [Bar::None, Bar::Below(KNOWN_PUBLISH / 20.0), Bar::None, Bar::None];
    for (call, (name, bar)) in names.into_iter().zip(bars).enumerate() {
        let (orlop, least, bare) =
            (median(&orlop_times[call]), median(&least_times[call]), median(&bare_times[call]));
        let what = format!("{name} vs the least driver");
        table.compare(&what, (orlop, "ms"), (least, "ms"), orlop / least, bar);
        table.compare("  vs bare calls", (orlop, "ms"), (bare, "ms"), orlop / bare, Bar::None);
    }
}

async fn time_calls(Side { server, client, .. }: &Side, times: &mut Times) {
    let name = server.name();
    let target = server.target(&name);
    let mut began = Instant::now();
    client.create(&name, None).await;
    began = note(&mut times[0], began);
    client.publish(&name, &target).await;
    began = note(&mut times[1], began);
    client.unpublish(&name, &target).await;
    began = note(&mut times[2], began);
    client.delete(&name).await;
    note(&mut times[3], began);
}

fn time_bare(bare: &Bare, times: &mut Times) {
    let name = bare.name();
    let target = bare.target(&name);
    let mut began = Instant::now();
    bare.create(&name, Syncs::All).unwrap();
    began = note(&mut times[0], began);
    bare.publish(&name, &target).unwrap();
    began = note(&mut times[1], began);
    bare.unpublish(&target).unwrap();
    began = note(&mut times[2], began);
    bare.delete(&name, Syncs::All).unwrap();
    note(&mut times[3], began);
}

/// Notes the time since `began`; returns the beginning of what follows.
fn note(times: &mut Vec<f64>, began: Instant) -> Instant {
    times.push(ms(began.elapsed()));
    Instant::now()
}

fn memory(table: &mut Table, idle: f64, server: &Server) {
    table.section("memory");
    table.single("idle, just started: VmRSS", (idle, "MiB"), Bar::Below(8.0));
    table.single("VmRSS after all these calls", (server.memory("VmRSS"), "MiB"), Bar::None);
    table.single("  anonymous part", (server.memory("RssAnon"), "MiB"), Bar::None);
}
