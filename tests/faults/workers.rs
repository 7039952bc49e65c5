//! Pools that a worker process serves: the same calls, and what happens when the worker, its disk or its parent ends.

use std::cell::Cell;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop::csi::proto::*;
use orlop::engine::request::Tuning;
use orlop::engine::{Engine, call};
use orlop::error::{Error, Kind};
use orlop::worker::{Group, Launch, Probe, Setup as WorkerSetup};
use rustix::process::{Pid, Signal, kill_process};
use tonic::{Code, Status};

use super::hanging_pool::{CALL_TIMEOUT, Client, SLACK, Setup, is_unavailable, run_with, within_async};
use crate::common::csi::{MIB, create_request, from_snapshot, from_volume, map, size};
use crate::common::isolation::in_own_process;
use crate::common::pool::{memory_dir, settings};
use crate::common::server::Server;
use crate::common::wait::within_seconds;

/// A server of the pool `ok` and the isolated pool `own`, in a directory.
async fn serve(base: &Path) -> (Server, Client) {
    for pool in ["ok", "own"] {
        let _may_exist = fs::create_dir(base.join(pool));
    }
    let base_text = base.display();
    let text = format!(
        "[[pool]]\nname = \"ok\"\npath = \"{base_text}/ok\"\n\
         [[pool]]\nname = \"own\"\npath = \"{base_text}/own\"\nisolated = true\n"
    );
    fs::write(base.join("orlop.toml"), text).unwrap();
    let server = Server::spawn_with_config(base, &base.join("orlop.toml"));
    let client = Client::connect(base).await;
    (server, client)
}

fn run(test: &str, body: impl AsyncFnOnce(&Path)) {
    in_own_process(&format!("faults::workers::{test}"), || {
        let dir = memory_dir();
        let base = dir.path().canonicalize().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(body(&base));
    });
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The worker of a server that has one.
fn worker(server: &Server) -> u32 {
    within_seconds(180, "there is one worker", || server.children().len() == 1);
    server.children()[0]
}

async fn snapshot(client: &mut Client, name: &str, of: &str) -> Result<Snapshot, Status> {
    let request = CreateSnapshotRequest {
        name: name.to_owned(),
        source_volume_id: of.to_owned(),
        ..Default::default()
    };
    let response = client.controller.create_snapshot(request).await?;
    Ok(response.into_inner().snapshot.unwrap())
}

async fn copy(
    client: &mut Client,
    pool: &str,
    name: &str,
    source: Option<VolumeContentSource>,
) -> Result<(), Status> {
    let request = CreateVolumeRequest {
        parameters: map(&[("pool", pool)]),
        volume_content_source: source,
        ..create_request(name)
    };
    client.controller.create_volume(request).await.map(drop)
}

async fn list(client: &mut Client, max_entries: i32, starting_token: &str) -> ListVolumesResponse {
    let request = ListVolumesRequest { max_entries, starting_token: starting_token.to_owned() };
    client.controller.list_volumes(request).await.unwrap().into_inner()
}

#[test]
fn a_worker_serves_every_call_of_an_isolated_pool() {
    run("a_worker_serves_every_call_of_an_isolated_pool", async |base: &Path| {
        let (server, mut client) = serve(base).await;
        client.create("own", "a").await.unwrap();
        client.create("own", "a").await.expect("a retry");
        client.get("own/a").await.unwrap();
        assert_eq!(client.get("own/b").await.unwrap_err().code(), Code::NotFound);
        assert!(client.capacity("own").await.unwrap() > 0);
        fs::write(base.join("own/volumes/a/data/file"), "contents").unwrap();
        let mut taken = None;
        within_async(60, async || {
            taken = snapshot(&mut client.clone(), "s", "own/a").await.ok();
            taken.as_ref().is_some_and(|taken| taken.ready_to_use)
        })
        .await;
        let restore = || from_snapshot("own/s");
        within_async(60, async || copy(&mut client.clone(), "own", "r", restore()).await.is_ok()).await;
        within_async(60, async || copy(&mut client.clone(), "own", "c", from_volume("own/a")).await.is_ok())
            .await;
        for copy in ["r", "c"] {
            let file = base.join(format!("own/volumes/{copy}/data/file"));
            assert_eq!(fs::read_to_string(file).unwrap(), "contents");
        }
        client.publish("own/a").await.unwrap();
        client.publish("own/a").await.expect("a retry");
        let path = base.join("target").display().to_string();
        let stats =
            NodeGetVolumeStatsRequest { volume_id: "own/a".into(), volume_path: path, ..Default::default() };
        assert_eq!(client.node.node_get_volume_stats(stats).await.unwrap().into_inner().usage.len(), 2);
        let error = client.delete("own/a").await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        client.unpublish("own/a").await.unwrap();
        assert!(!base.join("target").exists());
        let expand = ControllerExpandVolumeRequest {
            volume_id: "own/a".into(),
            capacity_range: size(3 * MIB, 0),
            ..Default::default()
        };
        let expanded = client.controller.controller_expand_volume(expand).await.unwrap().into_inner();
        assert_eq!(expanded.capacity_bytes, 3 * MIB);
        assert!(client.storage_health().await.is_empty());
        client.delete("own/a").await.unwrap();
        let request = DeleteSnapshotRequest { snapshot_id: "own/s".into(), ..Default::default() };
        client.controller.delete_snapshot(request).await.unwrap();
        let metrics = server.http("/metrics");
        for line in ["orlop_pool_available{pool=\"own\"} 1\n", "orlop_workers_left_behind{group=\"own\"} 0\n"]
        {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
        assert_eq!(server.children().len(), 1);
    });
}

#[test]
fn listings_contain_the_volumes_of_all_processes_in_order() {
    run("listings_contain_the_volumes_of_all_processes_in_order", async |base: &Path| {
        let (_server, mut client) = serve(base).await;
        for id in ["own/d", "ok/a", "own/c", "ok/b"] {
            let (pool, name) = id.split_once('/').unwrap();
            client.create(pool, name).await.unwrap();
        }
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let page = list(&mut client, 3, &token).await;
            found.extend(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id));
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(found, ["ok/a", "ok/b", "own/c", "own/d"]);
    });
}

#[test]
fn a_name_is_unique_across_the_pools_of_all_processes() {
    run("a_name_is_unique_across_the_pools_of_all_processes", async |base: &Path| {
        let (_server, mut client) = serve(base).await;
        client.create("ok", "a").await.unwrap();
        client.create("own", "b").await.unwrap();
        for (pool, taken) in [("own", "a"), ("ok", "b")] {
            let error = client.create(pool, taken).await.unwrap_err();
            assert_eq!(error.code(), Code::AlreadyExists, "{error:?}");
        }
        within_async(60, async || snapshot(&mut client.clone(), "s", "own/b").await.is_ok()).await;
        let error = snapshot(&mut client, "s", "ok/a").await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error:?}");
    });
}

#[test]
fn a_copy_between_pools_of_different_processes_is_refused() {
    run("a_copy_between_pools_of_different_processes_is_refused", async |base: &Path| {
        let (_server, mut client) = serve(base).await;
        client.create("ok", "a").await.unwrap();
        let error = copy(&mut client, "own", "c", from_volume("ok/a")).await.unwrap_err();
        assert!(error.message().contains("isolated from each other"), "{error:?}");
    });
}

/// A call that was running gets an error with which its caller retries, and the retry finds what was done.
#[test]
fn a_killed_worker_is_replaced_and_retries_succeed() {
    run("a_killed_worker_is_replaced_and_retries_succeed", async |base: &Path| {
        let (server, mut client) = serve(base).await;
        client.create("own", "base").await.unwrap();
        let (killed, is_done) = (Cell::new(0), Cell::new(false));
        let kill = async {
            while !is_done.get() {
                // Another moment each time, and rarely enough that a call can succeed.
                tokio::time::sleep(Duration::from_millis(50 + 37 * killed.get() % 100)).await;
                for pid in server.children().into_iter().filter(|_| killed.get() < 40) {
                    send(pid, Signal::KILL);
                    killed.set(killed.get() + 1);
                }
            }
        };
        let calls = async {
            for round in 0..10 {
                let (id, name, snap) = (format!("own/v{round}"), format!("v{round}"), format!("s{round}"));
                retried(async || client.clone().create("own", &name).await).await;
                retried(async || snapshot(&mut client.clone(), &snap, "own/base").await.map(drop)).await;
                retried(async || client.clone().publish(&id).await).await;
                retried(async || client.clone().unpublish(&id).await).await;
                retried(async || client.clone().capacity("own").await.map(drop)).await;
                retried(async || client.clone().list().await).await;
                retried(async || client.clone().delete(&id).await).await;
            }
            is_done.set(true);
        };
        tokio::join!(kill, calls);
        assert!(killed.get() > 0, "no worker was killed");
        within_async(60, async || client.clone().get("own/base").await.is_ok()).await;
        assert_eq!(fs::read_dir(base.join("own/volumes")).unwrap().count(), 1);
        within_seconds(180, "the killed workers are reaped", || server.children().len() == 1);
    });
}

/// Retries a call as a sidecar does: errors say that the call may have been done, or that another one is at work.
async fn retried(mut call: impl AsyncFnMut() -> Result<(), Status>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(status) = call().await {
        let is_temporary = matches!(status.code(), Code::Unavailable | Code::Aborted);
        assert!(is_temporary && Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn no_worker_outlives_its_parent() {
    run("no_worker_outlives_its_parent", async |base: &Path| {
        let (mut server, mut client) = serve(base).await;
        client.create("own", "a").await.unwrap();
        let first = worker(&server);
        server.kill();
        within_seconds(180, "the worker of a killed parent ends", || !exists(first));
        let (mut server, mut client) = serve(base).await;
        client.get("own/a").await.unwrap();
        let second = worker(&server);
        assert!(server.terminate().success());
        assert!(!exists(second), "a worker is left after SIGTERM");
    });
}

/// The settings of the pool that hangs, besides its name and path.
const SLOW_POOL: &str = "exclusive = true\nmounted = true\nisolated = true";

fn hanging(test: &str, body: impl AsyncFnOnce(Setup)) {
    run_with(&format!("faults::workers::{test}"), SLOW_POOL, body);
}

#[test]
fn a_worker_whose_disk_hangs_is_killed_and_harms_no_other_pool() {
    hanging("a_worker_whose_disk_hangs_is_killed_and_harms_no_other_pool", async |setup: Setup| {
        let (server, mut client) = setup.serve().await;
        client.create("slow", "mine").await.unwrap();
        let first = worker(&server);
        let threads = server.threads();
        for _ in 0..2 {
            setup.fuse.send(Signal::STOP);
            let waiting: Vec<_> = (0..20)
                .map(|_| {
                    let mut client = client.clone();
                    tokio::spawn(async move {
                        is_unavailable("ControllerGetVolume", client.get("slow/mine")).await
                    })
                })
                .collect();
            for number in 0..20 {
                client.cycle(&format!("c{number}")).await;
            }
            for caller in waiting {
                caller.await.unwrap();
            }
            within_seconds(180, "the pool is reported", || {
                server.http("/readyz").contains("pool slow: unavailable: has not responded since 20")
            });
            // One call is let in as a trial; another one is refused at once.
            let (mut trial, mut other) = (client.clone(), client.clone());
            let trial = tokio::spawn(async move { is_unavailable("a trial", trial.get("slow/mine")).await });
            is_unavailable("another call", other.get("slow/mine")).await;
            trial.await.unwrap();
            client.cycle("l").await;
            setup.fuse.send(Signal::CONT);
            within_async(60, async || client.clone().get("slow/mine").await.is_ok()).await;
            within_async(60, async || client.clone().list().await.is_ok()).await;
        }
        within_seconds(180, "the killed workers are gone", || server.children().len() == 1);
        assert_ne!(worker(&server), first);
        within_seconds(180, "no worker is left behind", || {
            server.http("/metrics").contains("orlop_workers_left_behind{group=\"slow\"} 0\n")
                && server.http("/readyz").contains("pool slow: available")
        });
        within_seconds(180, "the threads end", || server.threads() <= threads + 4);
        client.delete("slow/mine").await.unwrap();
    });
}

#[test]
fn volumes_are_unpublished_and_orlop_stops_while_a_worker_hangs() {
    hanging("volumes_are_unpublished_and_orlop_stops_while_a_worker_hangs", async |setup: Setup| {
        let (mut server, mut client) = setup.serve().await;
        client.create("slow", "mine").await.unwrap();
        client.publish("slow/mine").await.unwrap();
        setup.fuse.send(Signal::STOP);
        let mut caller = client.clone();
        let waiting = tokio::spawn(async move { is_unavailable("get", caller.get("slow/mine")).await });
        let answered = tokio::time::timeout(CALL_TIMEOUT, client.unpublish("slow/mine")).await;
        answered.expect("unpublish waits for the disk").unwrap();
        assert!(!setup.base.join("target").exists());
        waiting.await.unwrap();
        let started = Instant::now();
        assert!(server.terminate().success());
        assert!(started.elapsed() < CALL_TIMEOUT * 3 + SLACK, "{:?}", started.elapsed());
    });
}

/// Set in a worker that is this test program again.
const WORKER: &str = "ORLOP_TEST_WORKER";

#[test]
fn a_deposited_lock_survives_its_worker_and_reaches_the_next_one() {
    let test = "a_deposited_lock_survives_its_worker_and_reaches_the_next_one";
    if let Some(base) = std::env::var_os(WORKER) {
        return work_with_lock(Path::new(&base));
    }
    let dir = memory_dir();
    let base = dir.path().to_owned();
    fs::create_dir(base.join("pool")).unwrap();
    let lock = fs::File::create(base.join("lock")).unwrap();
    let arguments = ["--exact", &format!("faults::workers::{test}"), "--nocapture", "--test-threads=1"];
    let launch = Launch {
        program: std::env::current_exe().unwrap(),
        arguments: arguments.iter().map(Into::into).collect(),
        environment: vec![(WORKER.into(), base.clone().into())],
    };
    let setup = WorkerSetup {
        group: "p".to_owned(),
        pools: vec![settings(&base.join("pool"))],
        tuning: Tuning::default(),
        known_pools: base.join("known"),
        log: "off".to_owned(),
        log_as_json: false,
    };
    let group = Group::new(launch, setup, None);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let call = || {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        runtime.block_on(group.call(call::List { after: None, max: 1 }, deadline)).unwrap()
    };
    call();
    assert!(!try_lock(&lock), "the worker holds the lock");
    let worker = fs::read_to_string(base.join("pid")).unwrap().parse().unwrap();
    send(worker, Signal::KILL);
    within_seconds(180, "the worker is reaped", || !exists(worker));
    assert!(!try_lock(&lock), "its parent keeps the lock");
    call();
    assert!(base.join("inherited").exists());
    within_seconds(180, "the next worker releases the lock", || try_lock(&lock));
    runtime.block_on(group.shutdown(Duration::from_secs(60)));
}

/// A worker that takes a lock, or releases the one that its predecessor took.
fn work_with_lock(base: &Path) {
    let (worker, setup, mut kept) = orlop::worker::connect().unwrap();
    fs::write(base.join("pid"), std::process::id().to_string()).unwrap();
    if let Some(lock) = kept.remove("lock") {
        fs::write(base.join("inherited"), "").unwrap();
        drop(lock);
        worker.release("lock").unwrap();
    } else {
        let lock = fs::File::options().write(true).open(base.join("lock")).unwrap();
        assert!(try_lock(&lock));
        worker.deposit("lock", lock.as_fd()).unwrap();
    }
    let engine = Engine::open(setup.pools, setup.tuning).unwrap();
    worker.serve(&Arc::new(engine)).unwrap();
}

/// Locks a file for this open file description, unless another one has it locked.
fn try_lock(file: &fs::File) -> bool {
    let lock = nix::libc::flock {
        l_type: nix::libc::F_WRLCK.try_into().unwrap(),
        l_whence: nix::libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).is_ok()
}

#[test]
fn a_probe_that_fails_refuses_calls_and_starts_no_worker() {
    let dir = memory_dir();
    let setup = WorkerSetup {
        group: "p".to_owned(),
        pools: vec![settings(dir.path())],
        tuning: Tuning::default(),
        known_pools: dir.path().join("known"),
        log: "off".to_owned(),
        log_as_json: false,
    };
    let launch = Launch { program: "/nonexistent".into(), ..Launch::default() };
    let probe = Probe::new(|| Err(Error::new(Kind::Unavailable, "server x does not answer")));
    let group = Group::new(launch, setup, Some(probe));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let error = runtime.block_on(group.call(call::List { after: None, max: 1 }, deadline)).unwrap_err();
    assert_eq!((error.kind(), error.chain().as_str()), (Kind::Unavailable, "server x does not answer"));
}

#[test]
fn a_worker_that_cannot_be_started_is_reaped() {
    let test = "a_worker_that_cannot_be_started_is_reaped";
    in_own_process(&format!("faults::workers::{test}"), || {
        let dir = memory_dir();
        let setup = WorkerSetup {
            group: "p".to_owned(),
            // More than the socket takes before the program has ended.
            pools: vec![settings(dir.path()); 20_000],
            tuning: Tuning::default(),
            known_pools: dir.path().join("known"),
            log: "off".to_owned(),
            log_as_json: false,
        };
        let launch = Launch { program: "/bin/true".into(), arguments: Vec::new(), ..Launch::default() };
        let group = Group::new(launch, setup, None);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        runtime.block_on(group.call(call::List { after: None, max: 1 }, deadline)).unwrap_err();
        let children = || {
            let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
            let of_task = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
            of_task.collect::<String>()
        };
        within_seconds(60, "no process is left", || children().trim().is_empty());
    });
}
