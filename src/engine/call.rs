//! The calls that frontends make, as values: a call runs on the engine of this process, or is sent to a worker.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Engine;
use super::request::{
    Activity, Capacity, CreateGroup, CreateSnapshot, CreateVolume, Described, Listed, Page, PoolStatus,
    Publish, SnapshotFilter, SnapshotGroup, Symptom, Usage,
};
use super::share::PublishShare;
use crate::error::{Error, Kind, Result};
use crate::volume::{Name, PolicyChange, PoolName, SizeRange, Snapshot, Volume, VolumeId};

/// One call of the engine.
pub trait EngineCall: Clone + Into<Call> + Send + 'static {
    /// What it returns.
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    /// Runs it.
    ///
    /// # Errors
    /// Those of the engine's method.
    fn run(self, engine: &Engine) -> Result<Self::Answer>;
}

/// Defines a type for each row, and [`Call`]: name, fields, answer, and what it does with an engine.
macro_rules! calls {
    ($($name:ident { $($field:ident: $type:ty),* } -> $answer:ty = |$engine:ident| $run:expr;)*) => {
        $(
            #[doc = concat!("The call `", stringify!($run), "`.")]
            #[derive(Debug, Clone, Serialize, Deserialize)]
            pub struct $name {
                $(#[doc = concat!("The argument `", stringify!($field), "`.")] pub $field: $type,)*
            }

            impl EngineCall for $name {
                type Answer = $answer;

                fn run(self, $engine: &Engine) -> Result<$answer> {
                    let Self { $($field),* } = self;
                    $run
                }
            }

            impl From<$name> for Call {
                fn from(call: $name) -> Self {
                    Self::$name(call)
                }
            }
        )*

        /// Any call.
        #[derive(Debug, Clone, Serialize, Deserialize)]
        pub enum Call {
            $(#[doc = concat!("See [`struct@", stringify!($name), "`].")] $name($name),)*
        }

        impl Call {
            /// Runs the call and returns its answer as JSON.
            ///
            /// # Errors
            /// Those of the engine's method.
            pub fn run(self, engine: &Engine) -> Result<String> {
                match self {
                    $(Self::$name(call) => to_json(&call.run(engine)?),)*
                }
            }
        }
    };
}

calls! {
    Create { request: CreateVolume } -> Volume = |engine| engine.create(&request);
    Delete { id: VolumeId } -> () = |engine| engine.delete(&id);
    Get { id: VolumeId } -> Volume = |engine| engine.get(&id);
    Expand { id: VolumeId, size: SizeRange } -> Volume = |engine| engine.expand(&id, size);
    Modify { id: VolumeId, change: PolicyChange } -> Volume = |engine| engine.modify(&id, change);
    List { after: Option<VolumeId>, max: usize } -> Page<Listed> = |engine| engine.list(after.as_ref(), max);
    GetCapacity { pool: Option<PoolName> } -> Capacity = |engine| engine.capacity(pool.as_ref());
    TakeSnapshot { request: CreateSnapshot } -> Snapshot = |engine| engine.create_snapshot(&request);
    DeleteSnapshot { id: VolumeId } -> () = |engine| engine.delete_snapshot(&id);
    GetSnapshot { id: VolumeId } -> Snapshot = |engine| engine.get_snapshot(&id);
    TakeGroup { request: CreateGroup } -> SnapshotGroup = |engine| engine.create_group(&request);
    DeleteGroup { id: VolumeId, snapshots: Vec<String> } -> () = |engine| engine.delete_group(&id, &snapshots);
    GetGroup { id: VolumeId, snapshots: Vec<String> } -> SnapshotGroup =
        |engine| engine.get_group(&id, &snapshots);
    ListSnapshots { filter: SnapshotFilter, after: Option<VolumeId>, max: usize } -> Page<Snapshot> =
        |engine| engine.list_snapshots(&filter, after.as_ref(), max);
    GetHealth { id: VolumeId, path: Option<PathBuf> } -> Vec<Symptom> =
        |engine| engine.health(&id, path.as_deref());
    ListHealth { after: Option<VolumeId>, max: usize } -> Page<(VolumeId, Vec<Symptom>)> =
        |engine| engine.list_health(after.as_ref(), max);
    PublishVolume { request: Publish } -> () = |engine| engine.publish(&request);
    Unpublish { id: String, target: PathBuf } -> () = |engine| engine.unpublish(&id, &target);
    Unmount { id: String, target: PathBuf } -> bool = |engine| engine.unmount(&id, &target);
    UnmountLazily { id: String, target: PathBuf } -> bool = |engine| engine.unmount_lazily(&id, &target);
    FinishUnpublish { id: String, target: PathBuf, was_there: bool } -> () =
        |engine| engine.finish_unpublish(&id, &target, was_there);
    MountShare { request: PublishShare } -> () = |engine| engine.publish_share(&request);
    UnmountShare { id: String, target: PathBuf } -> bool = |engine| engine.unpublish_share(&id, &target);
    GetServerOfShare { id: String, path: PathBuf } -> Option<String> =
        |engine| engine.server_of_share(&id, &path);
    GetUsageOfShare { path: PathBuf } -> Usage = |engine| engine.usage_of_share(&path);
    GetUsage { id: VolumeId, path: PathBuf } -> Usage = |engine| engine.stats(&id, &path);
    ExpandPublished { id: VolumeId, path: PathBuf, size: SizeRange } -> Volume =
        |engine| engine.expand_published(&id, &path, size);
    ListNames { pool: PoolName } -> Vec<Name> = |engine| engine.names(&pool);
    Describe { id: VolumeId, targets: PathBuf } -> Described = |engine| engine.describe(&id, &targets);
    RemovePublished { id: VolumeId, targets: PathBuf } -> () =
        |engine| engine.remove_published(&id, &targets);
    CheckVolumeName { id: VolumeId } -> () = |engine| engine.claim_volume_name(&id).map(drop);
    CheckSnapshotName { id: VolumeId } -> () = |engine| engine.claim_snapshot_name(&id).map(drop);
    CheckGroupName { id: VolumeId, snapshots: usize } -> () =
        |engine| engine.claim_group_names(&id, snapshots).map(drop);
    GetStatus { pool: PoolName } -> Option<PoolStatus> = |engine| Ok(engine.status_of(&pool));
    GetActivity { } -> Activity = |engine| Ok(engine.activity());
}

fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::caused(Kind::Internal, "write an answer", error))
}
