//! Snapshots, restores and clones of unusual trees, on each backend.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop::engine::request::Tuning;
use orlop::volume::{SizeRange, Source};

use super::trees::{UNUSUAL, facts};
use crate::common::backends::on_each_backend;
use crate::common::pool::{MIB, clone_request, copy_request, id, long_waits, request, snapshot_request};
use crate::common::wait::within_seconds;

/// How long the copy of a tree, or its removal, may take.
const PATIENCE: Duration = Duration::from_secs(300);

fn data(pool: &Path, kind: &str, name: &str) -> PathBuf {
    pool.join(kind).join(name).join("data")
}

#[test]
fn snapshots_restores_and_clones_are_the_same_as_their_source_on_each_backend() {
    let test =
        "api::whole_copies::snapshots_restores_and_clones_are_the_same_as_their_source_on_each_backend";
    on_each_backend(test, |ground| {
        let dir = ground.new_dir();
        let pool = dir.path();
        // No copy is left to a later call, also on a slow machine.
        let engine = ground.backend.open(pool, Tuning { copy_wait: PATIENCE, ..long_waits() });
        for (number, (name, make)) in UNUSUAL.iter().enumerate() {
            let [volume, snapshot, restored, cloned] =
                ["v", "s", "r", "c"].map(|kind| format!("{kind}{number}"));
            engine.create(&request(&volume, 64 * MIB)).unwrap();
            let source = data(pool, "volumes", &volume);
            make(&source);
            rustix::fs::syncfs(File::open(pool).unwrap().as_fd()).unwrap();
            let before = facts(&source);
            engine.create_snapshot(&snapshot_request(&snapshot, &id(&volume))).unwrap();
            engine.create(&copy_request(&restored, Source::Snapshot(id(&snapshot)))).unwrap();
            engine.create(&clone_request(&cloned, &id(&volume))).unwrap();
            for (kind, copy) in [("snapshots", &snapshot), ("volumes", &restored), ("volumes", &cloned)] {
                let copied = facts(&data(pool, kind, copy));
                let backend = ground.backend.name;
                assert_eq!(
                    before.keys().collect::<Vec<_>>(),
                    copied.keys().collect::<Vec<_>>(),
                    "{backend}: names in {copy} of the tree {name}"
                );
                for (path, expected) in &before {
                    let (expected, copied) = (expected.without_holes(), copied[path].without_holes());
                    assert!(expected == copied, "{backend}: {} in {copy} of the tree {name}", path.display());
                }
            }
            let larger = SizeRange { required: 65 * MIB, limit: 0 };
            assert_eq!(engine.expand(&id(&restored), larger).unwrap().size, 65 * MIB);
            for volume in [&volume, &restored, &cloned] {
                engine.delete(&id(volume)).unwrap();
            }
            engine.delete_snapshot(&id(&snapshot)).unwrap();
        }
        within_seconds(PATIENCE.as_secs(), "the trash is empty", || {
            fs::read_dir(pool.join("trash")).unwrap().count() == 0
        });
    });
}
