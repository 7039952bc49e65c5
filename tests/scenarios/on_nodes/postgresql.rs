//! Snapshots of PostgreSQL under load. PostgreSQL writes to its files in an order that it relies on after a crash: if a
//! snapshot shows its files at different moments, the restored database is corrupt.
//!
//! `ORLOP_PG_SNAPSHOTS` is the number of snapshots (default: 4), `ORLOP_PG_SCALE` the size of the database in units of 16 MB
//! (default: 10).

use std::io::Write as _;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::scenarios::cluster::*;
use crate::scenarios::nodes::*;
use crate::scenarios::objects::*;

const SIZE: &str = "4Gi";
/// This user is in the image.
const POSTGRES: u32 = 999;

/// The server, on an empty volume.
const SERVE: &str = "initdb -D /data/db --no-locale -E UTF8 -A trust >/dev/null
    exec postgres -D /data/db -c unix_socket_directories=/tmp -c log_checkpoints=off";

/// Eight clients, and a checkpoint each second. The latency of each transaction is in the log.
const LOAD: &str = "export PGHOST=127.0.0.1
    until pg_isready -q; do sleep 0.2; done
    pgbench -i -q -s $SCALE postgres
    { while :; do psql -qc checkpoint postgres; sleep 1; done; } &
    touch /tmp/started
    exec pgbench -c 8 -j 2 -T 1000000 -l --log-prefix=/tmp/transactions postgres";

/// The number of transactions and the latency of the slowest one in milliseconds.
const LATENCY: &str =
    "cat /tmp/transactions.* | awk '$3 > slowest { slowest = $3 } END { print NR, int(slowest / 1000) }'";

/// Recovers a database, checks each table with its indexes, and prints the sums that each transaction keeps equal.
const CHECK: &str = "rm -f /data/db/postmaster.pid
    export PGHOST=/tmp
    pg_ctl -D /data/db -w -t 120 -l /tmp/log -o '-c unix_socket_directories=/tmp' start >/dev/null ||
        { cat /tmp/log; exit 1; }
    pg_amcheck --install-missing --heapallindexed postgres
    psql -Atc 'select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
        (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history),
        (select count(*) from pgbench_accounts)' postgres
    pg_ctl -D /data/db -m fast stop >/dev/null";

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A pod that runs a script with PostgreSQL's programs on a claim.
fn postgresql(name: &str, claim: &str, script: &str) -> Value {
    let pod = with(pod(name, claim, script), "/spec/containers/0", "image", "postgresql:debian".into());
    let user = json!({"runAsUser": POSTGRES, "runAsGroup": POSTGRES});
    on_node(with(pod, "/spec", "securityContext", user), first())
}

/// The server, and a container without the volume that sends it transactions.
fn database(claim: &str, scale: usize) -> Value {
    let mut pod = postgresql("database", claim, SERVE);
    let mut load = pod["spec"]["containers"][0].clone();
    load["name"] = "load".into();
    load["command"][2] = LOAD.into();
    load["volumeMounts"] = json!([]);
    load["env"] = json!([{"name": "SCALE", "value": scale.to_string()}]);
    load["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/tmp/started"]}, "periodSeconds": 1});
    pod["spec"]["containers"].as_array_mut().unwrap().push(load);
    pod
}

/// The transactions so far, and the milliseconds that the slowest took.
fn transactions(test: &TestNamespace) -> (u64, u64) {
    let exec = ["exec", "-n", &test.name, "database", "-c", "load", "--", "sh", "-c", LATENCY];
    let printed = run(Command::new("kubectl").args(exec));
    let (number, slowest) = printed.trim().split_once(' ').unwrap();
    (number.parse().unwrap(), slowest.parse().unwrap())
}

/// Takes a snapshot; returns its record, and the seconds until it was ready.
fn take_snapshot(test: &TestNamespace, name: &str, class: &str) -> (Value, f32) {
    let snapshot = with(snapshot(name, "data"), "/spec", "volumeSnapshotClassName", class.into());
    let begin = Instant::now();
    test.create(SNAPSHOTS, &snapshot);
    let ready = test.wait_long(&format!("snapshot {name} is ready"), || {
        Some(test.get(SNAPSHOTS, name)).filter(|snapshot| snapshot["status"]["readyToUse"] == true)
    });
    let seconds = begin.elapsed().as_secs_f32();
    let content = at(&ready, "/status/boundVolumeSnapshotContentName");
    let content = test.get(CONTENTS, &content);
    let handle = at(&content, "/status/snapshotHandle");
    let (pool, id) = handle.split_once('/').unwrap();
    let record = pool_on(first(), pool).join("snapshots").join(id).join("snapshot.json");
    (serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap(), seconds)
}

fn median(mut figures: Vec<f32>) -> f32 {
    figures.sort_by(f32::total_cmp);
    figures[figures.len() / 2]
}

/// Restores a snapshot and checks the database in it.
fn check_restored(test: &TestNamespace, snapshot: &str, scale: usize) {
    test.create(CLAIMS, &copy(snapshot, "orlop", SIZE, &from_snapshot(snapshot)));
    test.create(PODS, &postgresql(snapshot, snapshot, CHECK));
    let output = test.output_long(snapshot);
    let sums: Vec<_> = output.lines().next_back().unwrap().split('|').collect();
    let [accounts, tellers, branches, history, number] = sums[..] else { panic!("{output}") };
    assert_eq!(number, (scale * 100_000).to_string());
    assert!([tellers, branches, history].iter().all(|sum| *sum == accounts), "{snapshot} differs: {output}");
}

#[test]
fn each_snapshot_of_a_busy_database_is_restored_without_corruption() {
    let (snapshots, scale) = (setting("ORLOP_PG_SNAPSHOTS", 4), setting("ORLOP_PG_SCALE", 10));
    let test = TestNamespace::new("postgresql");
    test.create(CLAIMS, &claim("data", "orlop", SIZE));
    test.create(PODS, &database("data", scale));
    test.wait_long("the database is under load", || test.find(PODS, "database").filter(is_ready));
    let before = transactions(&test).0;
    let (mut pauses, mut times, mut plain_times) = (Vec::new(), Vec::new(), Vec::new());
    let mut size = 0;
    for number in 1..=snapshots {
        let (name, plain) = (format!("snapshot-{number}"), format!("plain-{number}"));
        plain_times.push(take_snapshot(&test, &plain, "orlop-none").1);
        test.delete_and_wait(SNAPSHOTS, &plain);
        let (record, seconds) = take_snapshot(&test, &name, "orlop-patient");
        pauses.push(format!("{} ({seconds:.1} s)", record["pauseMs"]));
        times.push(seconds);
        size = record["bytes"].as_u64().unwrap();
        check_restored(&test, &name, scale);
        for (kind, object) in [(PODS, &name), (CLAIMS, &name), (SNAPSHOTS, &name)] {
            test.delete_and_wait(kind, object);
        }
    }
    let (after, slowest) = transactions(&test);
    assert!(after > before, "the load has ended: {}", test.log("database"));
    // Also printed if the test succeeds.
    let _ = writeln!(
        std::io::stderr(),
        "PostgreSQL, {} MB: {snapshots} snapshots are sound. {after} transactions, the slowest took {slowest} ms. \
         Paused for so many milliseconds (in so many seconds until ready): {}. \
         Seconds until ready, median: {:.1}, with consistency: none {:.1}",
        size / 1_000_000,
        pauses.join(", "),
        median(times),
        median(plain_times),
    );
    test.delete_all();
}
