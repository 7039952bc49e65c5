//! A pool on a server that loses replies: each call is done twice, and the second answer is wrong.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use orlop::engine::Engine;
use orlop::volume::{SizeRange, Source};

use super::lossy::{CREATE, LINK, Proxy, REMOVE, RENAME};
use super::pools::{directory, make_trash_due, open, settings};
use crate::common::pool::{MIB, clone_request, copy_request, names, request, snapshot_request};
use crate::common::wait::within_seconds;

#[test]
fn a_change_whose_reply_was_lost_is_recognized() {
    let pool = directory("lost-replies");
    // Dropped last.
    let proxy = Proxy::start();
    let options = format!("soft,timeo=100,port={}", proxy.port);
    // The server knows calls of 4.0 by their connection.
    let settings = settings("127.0.0.1", "lost-replies", &options, Some("4.0"));
    let engine = open(settings.clone());
    change_everything(&engine, &pool);
    assert_eq!(names(&pool.join("volumes")), BTreeSet::from(["b", "c", "r"].map(str::to_owned)));
    assert_eq!(names(&pool.join("work")).len(), 0);
    for volume in ["b", "c", "r"] {
        assert_eq!(fs::read(pool.join(format!("volumes/{volume}/data/file"))).unwrap(), b"kept");
    }
    drop(engine);
    make_trash_due(&pool);
    let _engine = open(settings);
    within_seconds(180, "the trash is empty", || names(&pool.join("trash")).is_empty());
    let lost = proxy.lost();
    eprintln!("{} replies were lost", lost.len());
    assert_eq!(BTreeSet::from_iter(lost), BTreeSet::from([CREATE, LINK, REMOVE, RENAME]));
}

/// Makes, changes, renames, restores and deletes objects. No call is repeated here.
fn change_everything(engine: &Engine, pool: &Path) {
    let a = engine.create(&request("a", MIB)).unwrap().id;
    fs::write(pool.join("volumes/a/data/file"), "kept").unwrap();
    engine.expand(&a, SizeRange { required: 2 * MIB, limit: 0 }).unwrap();
    let b = engine.rename(&a, &"b".parse().unwrap()).unwrap().id;
    assert_eq!(engine.get(&b).unwrap().size, 2 * MIB);
    let snapshot = engine.create_snapshot(&snapshot_request("s", &b)).unwrap().id;
    engine.create(&copy_request("r", Source::Snapshot(snapshot.clone()))).unwrap();
    engine.create(&clone_request("c", &b)).unwrap();
    let d = engine.create(&request("d", MIB)).unwrap().id;
    engine.delete(&d).unwrap();
    let trashed = engine.trash(&d.pool).unwrap().pop().unwrap();
    engine.undelete(&d.pool, &trashed.entry, &d.name).unwrap();
    engine.delete(&d).unwrap();
    engine.delete_snapshot(&snapshot).unwrap();
}
