//! A pool that a second, idle process uses too.

use std::path::Path;
use std::sync::Arc;

use crate::client::Client;
use crate::server::Server;
use crate::table::{Bar, Table, median, ratios};
use crate::{Sizes, callers_text};

/// Compares the lifecycles of a process that has the pool to itself with those beside an idle process.
pub(crate) async fn run(table: &mut Table, sizes: &Sizes, dir: &Path) {
    let server = Server::orlop(dir).await;
    let client = server.client().await;
    client.lifecycle("warm-up", &server.target("warm-up")).await;
    table.section("a second, idle process on the pool");
    for &callers in sizes.callers {
        let [mut alone, mut beside] = [const { Vec::new() }; 2];
        for pair in 0..sizes.pairs {
            // In the order A B, B A, A B, …
            for idle in [pair % 2 == 1, pair % 2 == 0] {
                let second = if idle { Some(Server::orlop(dir).await) } else { None };
                let rates = if idle { &mut beside } else { &mut alone };
                rates.push(turn(&server, &client, callers, sizes).await);
                drop(second);
            }
        }
        let ratios = ratios(&alone, &beside);
        let what = format!("lifecycles by {}", callers_text(callers));
        let rates = ((median(&beside), "/s"), (median(&alone), "/s"));
        table.compare(&what, rates.0, rates.1, median(&ratios), Bar::Ratio(1.03));
        table.spread(&ratios);
    }
}

async fn turn(server: &Arc<Server>, client: &Client, callers: usize, sizes: &Sizes) -> f64 {
    let rate = server.lifecycles(client, callers, sizes.turn).await;
    server.trash_removed().await;
    rustix::fs::sync();
    rate.per_second()
}
