//! The steps of a sequence, and their execution by an engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::CreateVolume;
use orlop::error::Kind;
use orlop::volume::{OnDelete, Policy, PolicyChange, SizeRange, Source};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::common::pool::{MIB, copy_request, id, request, snapshot_request};

/// Plain names, and names that are replaced by a digest.
pub(super) const NAMES: [&str; 6] = ["a", "B.1", "c-c", "..", "new\nline", "/etc/ü"];

/// Sizes that can be provisioned and hold a few files where they are enforced, and sizes that no filesystem has.
pub(super) const SIZES: [u64; 6] = [0, 4 * MIB, 8 * MIB, 16 * MIB, 1 << 62, u64::MAX];

pub(super) const ON_DELETE: [OnDelete; 3] = [OnDelete::Delete, OnDelete::Trash, OnDelete::Retain];

/// An index of [`NAMES`], [`SIZES`] or [`ON_DELETE`].
pub(super) type Which = usize;

/// The answer of the engine, or the expected one.
pub(super) type Answer = Result<(), Kind>;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Step {
    Create { name: Which, size: Which, limit: Which, on_delete: Which },
    Clone { name: Which, from: Which, size: Which },
    Restore { name: Which, from: Which, size: Which },
    Delete { name: Which },
    Expand { name: Which, size: Which, limit: Which },
    Modify { name: Which, on_delete: Which },
    Snapshot { name: Which, of: Which },
    DeleteSnapshot { name: Which },
    Write { name: Which, text: u8 },
    AddUnmanaged { name: Which },
    CrashRemains,
    Restart,
}

pub(super) fn step() -> impl Strategy<Value = Step> + Clone {
    let (name, from) = (0..NAMES.len(), 0..NAMES.len());
    // Mostly sizes that can be provisioned.
    let size = || prop_oneof![8 => 0..4_usize, 1 => 4..SIZES.len()];
    let limit = || prop_oneof![3 => Just(0_usize), 1 => 1..SIZES.len()];
    let on_delete = 0..ON_DELETE.len();
    prop_oneof![
        4 => (name.clone(), size(), limit(), on_delete.clone())
            .prop_map(|(name, size, limit, on_delete)| Step::Create { name, size, limit, on_delete }),
        2 => (name.clone(), from.clone(), size()).prop_map(|(name, from, size)| Step::Clone { name, from, size }),
        2 => (name.clone(), from.clone(), size()).prop_map(|(name, from, size)| Step::Restore { name, from, size }),
        3 => name.clone().prop_map(|name| Step::Delete { name }),
        2 => (name.clone(), size(), limit()).prop_map(|(name, size, limit)| Step::Expand { name, size, limit }),
        1 => (name.clone(), on_delete).prop_map(|(name, on_delete)| Step::Modify { name, on_delete }),
        3 => (name.clone(), from).prop_map(|(name, of)| Step::Snapshot { name, of }),
        1 => name.clone().prop_map(|name| Step::DeleteSnapshot { name }),
        3 => (name.clone(), any::<u8>()).prop_map(|(name, text)| Step::Write { name, text }),
        1 => name.prop_map(|name| Step::AddUnmanaged { name }),
        1 => Just(Step::CrashRemains),
        2 => Just(Step::Restart),
    ]
}

/// The acceptable sizes of a new volume.
pub(super) fn range(size: Which, limit: Which) -> SizeRange {
    let (required, limit) = (SIZES[size], SIZES[limit]);
    SizeRange { required, limit: if limit < required { 0 } else { limit } }
}

impl Step {
    /// Executes the step on the pool `p`. Steps that no engine executes do nothing.
    pub(super) fn run(&self, engine: &Engine) -> Answer {
        match *self {
            Self::Create { name, size, limit, on_delete } => {
                let (on_delete, trash_for) = (ON_DELETE[on_delete], Duration::from_secs(3600));
                let policy = Policy { on_delete, trash_for, ..Policy::default() };
                let size = range(size, limit);
                answer_of(engine.create(&CreateVolume { size, policy, ..request(NAMES[name], 0) }))
            }
            Self::Clone { name, from, size } => copy(engine, name, Source::Volume(id(NAMES[from])), size),
            Self::Restore { name, from, size } => copy(engine, name, Source::Snapshot(id(NAMES[from])), size),
            Self::Delete { name } => answer_of(engine.delete(&id(NAMES[name]))),
            Self::Expand { name, size, limit } => {
                let range = SizeRange { required: SIZES[size], limit: SIZES[limit] };
                answer_of(engine.expand(&id(NAMES[name]), range))
            }
            Self::Modify { name, on_delete } => {
                let change = PolicyChange {
                    on_delete: Some(ON_DELETE[on_delete]),
                    trash_for: Some(Duration::from_secs(7200)),
                    ..PolicyChange::default()
                };
                answer_of(engine.modify(&id(NAMES[name]), change))
            }
            Self::Snapshot { name, of } => {
                answer_of(engine.create_snapshot(&snapshot_request(NAMES[name], &id(NAMES[of]))))
            }
            Self::DeleteSnapshot { name } => answer_of(engine.delete_snapshot(&id(NAMES[name]))),
            Self::AddUnmanaged { name } => answer_of(engine.get(&id(NAMES[name]))),
            Self::Write { .. } | Self::CrashRemains | Self::Restart => Ok(()),
        }
    }
}

fn copy(engine: &Engine, name: Which, source: Source, size: Which) -> Answer {
    let size = SizeRange { required: SIZES[size], limit: 0 };
    answer_of(engine.create(&CreateVolume { size, ..copy_request(NAMES[name], source) }))
}

fn answer_of<T>(result: orlop::error::Result<T>) -> Answer {
    result.map(drop).map_err(|error| error.kind())
}

/// The directory that holds the data of an object.
pub(super) fn data(pool: &Path, kind: &str, name: Which) -> PathBuf {
    pool.join(kind).join(id(NAMES[name]).name.as_str()).join("data")
}

/// Adds the remains of a crash, which the next start removes.
pub(super) fn add_remains(pool: &Path) {
    fs::create_dir_all(pool.join("work/0123/data/deep")).unwrap();
    fs::write(pool.join("work/0123/data/deep/file"), "incomplete").unwrap();
    fs::write(pool.join("work/4567"), "a record").unwrap();
    fs::write(pool.join("volumes/.a.0123456789abcdef.json"), "{}").unwrap();
}
