//! Random operations on the engine and on a small model of it: after each one, the directories, listings and accounting
//! agree with the model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use orlop::engine::Engine;
use orlop::engine::request::CreateVolume;
use orlop::error::Kind;
use orlop::volume::{OnDelete, Policy, PolicyChange, SizeRange, Source};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::common::pool::{
    check, contents, copy_request, id, listed, listed_snapshots, memory_dir, names, open, request,
    snapshot_request,
};

/// Plain names, and names that are replaced by a digest.
const NAMES: [&str; 6] = ["a", "B.1", "c-c", "..", "new\nline", "/etc/ü"];

/// Sizes that can be provisioned, and sizes that no filesystem has.
const SIZES: [u64; 6] = [0, 1, 4096, 1 << 30, 1 << 62, u64::MAX];

const ON_DELETE: [OnDelete; 3] = [OnDelete::Delete, OnDelete::Trash, OnDelete::Retain];

/// An index of [`NAMES`], [`SIZES`] or [`ON_DELETE`].
type Which = usize;

#[derive(Debug, Clone)]
enum Step {
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

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (name, from) = (0..NAMES.len(), 0..NAMES.len());
    // Mostly sizes that can be provisioned.
    let size = || prop_oneof![8 => 0..4_usize, 1 => 4..SIZES.len()];
    let limit = || prop_oneof![3 => Just(0_usize), 1 => 1..SIZES.len()];
    let on_delete = 0..ON_DELETE.len();
    let step = prop_oneof![
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
    ];
    prop::collection::vec(step, 1..40)
}

#[derive(Debug, Clone, PartialEq)]
struct Volume {
    size: u64,
    on_delete: OnDelete,
    source: Option<Source>,
    managed: bool,
    text: Option<u8>,
}

#[derive(Debug, Clone, PartialEq)]
struct Snapshot {
    of: Which,
    size: u64,
    text: Option<u8>,
}

#[derive(Debug, Default)]
struct Model {
    volumes: BTreeMap<Which, Volume>,
    snapshots: BTreeMap<Which, Snapshot>,
    /// Number of entries that the trash must keep.
    kept: usize,
}

struct Test<'p> {
    engine: Option<Engine>,
    pool: &'p Path,
    model: Model,
}

/// The answer of the engine, or the expected one.
type Answer = Result<(), Kind>;

impl Test<'_> {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn step(&mut self, step: &Step) {
        let (answer, expected) = match *step {
            Step::Create { name, size, limit, on_delete } => self.create(name, size, limit, on_delete),
            Step::Clone { name, from, size } => {
                let source = self.model.volumes.get(&from).map(|volume| (volume.size, volume.text));
                self.copy(name, Source::Volume(id(NAMES[from])), source, size)
            }
            Step::Restore { name, from, size } => {
                let source = self.model.snapshots.get(&from).map(|snapshot| (snapshot.size, snapshot.text));
                self.copy(name, Source::Snapshot(id(NAMES[from])), source, size)
            }
            Step::Delete { name } => self.delete(name),
            Step::Expand { name, size, limit } => self.expand(name, SIZES[size], SIZES[limit]),
            Step::Modify { name, on_delete } => self.modify(name, ON_DELETE[on_delete]),
            Step::Snapshot { name, of } => self.snapshot(name, of),
            Step::DeleteSnapshot { name } => {
                self.model.snapshots.remove(&name);
                (answer_of(self.engine().delete_snapshot(&id(NAMES[name]))), Ok(()))
            }
            Step::Write { name, text } => self.write(name, text),
            Step::AddUnmanaged { name } => self.add_unmanaged(name),
            Step::CrashRemains => self.crash_remains(),
            Step::Restart => {
                self.engine = None;
                self.engine = Some(open(self.pool));
                (Ok(()), Ok(()))
            }
        };
        assert_eq!(answer, expected, "{step:?}");
        self.check();
    }

    fn create(&mut self, name: Which, size: Which, limit: Which, on_delete: Which) -> (Answer, Answer) {
        let (size, limit) = (SIZES[size], SIZES[limit]);
        let limit = if limit < size { 0 } else { limit };
        let policy = Policy {
            on_delete: ON_DELETE[on_delete],
            trash_for: Duration::from_secs(3600),
            ..Policy::default()
        };
        let range = SizeRange { required: size, limit };
        let request = CreateVolume { size: range, policy, ..request(NAMES[name], 0) };
        let answer = answer_of(self.engine().create(&request));
        let expected = match self.model.volumes.get(&name) {
            Some(found) => same(name, found, range, None),
            None if size > 1 << 40 => Err(Kind::NoSpace),
            None => {
                let volume =
                    Volume { size, on_delete: ON_DELETE[on_delete], source: None, managed: true, text: None };
                self.model.volumes.insert(name, volume);
                Ok(())
            }
        };
        (answer, expected)
    }

    fn copy(
        &mut self,
        name: Which,
        source: Source,
        from: Option<(u64, Option<u8>)>,
        size: Which,
    ) -> (Answer, Answer) {
        let required = SIZES[size];
        let range = SizeRange { required, limit: 0 };
        let request = CreateVolume { size: range, ..copy_request(NAMES[name], source.clone()) };
        let answer = answer_of(self.engine().create(&request));
        let expected = match (self.model.volumes.get(&name), from) {
            (Some(found), _) => same(name, found, range, Some(&source)),
            (None, None) => Err(Kind::NotFound),
            (None, Some((has, _))) if required != 0 && required < has => Err(Kind::OutOfRange),
            (None, Some(_)) if required > 1 << 40 => Err(Kind::NoSpace),
            (None, Some((has, text))) => {
                let size = required.max(has);
                let on_delete = OnDelete::default();
                let volume = Volume { size, on_delete, source: Some(source), managed: true, text };
                self.model.volumes.insert(name, volume);
                Ok(())
            }
        };
        (answer, expected)
    }

    fn delete(&mut self, name: Which) -> (Answer, Answer) {
        let answer = answer_of(self.engine().delete(&id(NAMES[name])));
        if self.model.volumes.get(&name).is_some_and(|volume| volume.managed) {
            let deleted = self.model.volumes.remove(&name).unwrap();
            self.model.kept += usize::from(deleted.on_delete != OnDelete::Delete);
        }
        (answer, Ok(()))
    }

    fn expand(&mut self, name: Which, required: u64, limit: u64) -> (Answer, Answer) {
        let answer = answer_of(self.engine().expand(&id(NAMES[name]), SizeRange { required, limit }));
        let expected = match self.model.volumes.get_mut(&name) {
            None => Err(Kind::NotFound),
            Some(volume) if limit != 0 && limit < volume.size => Err(Kind::OutOfRange),
            Some(volume) if required <= volume.size => Ok(()),
            Some(volume) if !volume.managed => Err(Kind::Unsupported),
            Some(_) if required > 1 << 40 => Err(Kind::NoSpace),
            Some(volume) => {
                volume.size = required;
                Ok(())
            }
        };
        (answer, expected)
    }

    fn modify(&mut self, name: Which, on_delete: OnDelete) -> (Answer, Answer) {
        let change = PolicyChange {
            on_delete: Some(on_delete),
            trash_for: Some(Duration::from_secs(7200)),
            ..PolicyChange::default()
        };
        let answer = answer_of(self.engine().modify(&id(NAMES[name]), change));
        let expected = match self.model.volumes.get_mut(&name) {
            None => Err(Kind::NotFound),
            Some(volume) if !volume.managed => Err(Kind::Unsupported),
            Some(volume) => {
                volume.on_delete = on_delete;
                Ok(())
            }
        };
        (answer, expected)
    }

    fn snapshot(&mut self, name: Which, of: Which) -> (Answer, Answer) {
        let answer = answer_of(self.engine().create_snapshot(&snapshot_request(NAMES[name], &id(NAMES[of]))));
        let expected = match (self.model.snapshots.get(&name), self.model.volumes.get(&of)) {
            (Some(found), _) if found.of == of => Ok(()),
            (Some(_), _) => Err(Kind::Conflict),
            (None, None) => Err(Kind::NotFound),
            (None, Some(volume)) => {
                let (size, text) = (volume.size, volume.text);
                self.model.snapshots.insert(name, Snapshot { of, size, text });
                Ok(())
            }
        };
        (answer, expected)
    }

    /// Writes to a volume, as a tenant does.
    fn write(&mut self, name: Which, text: u8) -> (Answer, Answer) {
        if let Some(volume) = self.model.volumes.get_mut(&name) {
            volume.text = Some(text);
            fs::write(self.data("volumes", name).join("file"), [text]).unwrap();
        }
        (Ok(()), Ok(()))
    }

    /// Adds an unmanaged volume, as an administrator does. orlop finds it when it is requested.
    fn add_unmanaged(&mut self, name: Which) -> (Answer, Answer) {
        if self.model.volumes.contains_key(&name) {
            return (Ok(()), Ok(()));
        }
        fs::create_dir_all(self.data("volumes", name)).unwrap();
        let volume =
            Volume { size: 0, on_delete: OnDelete::Retain, source: None, managed: false, text: None };
        self.model.volumes.insert(name, volume);
        (answer_of(self.engine().get(&id(NAMES[name]))), Ok(()))
    }

    /// Adds the remains of a crash, which the next start removes.
    fn crash_remains(&mut self) -> (Answer, Answer) {
        self.engine = None;
        fs::create_dir_all(self.pool.join("work/0123/data/deep")).unwrap();
        fs::write(self.pool.join("work/0123/data/deep/file"), "incomplete").unwrap();
        fs::write(self.pool.join("work/4567"), "a record").unwrap();
        self.engine = Some(open(self.pool));
        (Ok(()), Ok(()))
    }

    fn data(&self, kind: &str, name: Which) -> std::path::PathBuf {
        self.pool.join(kind).join(id(NAMES[name]).name.as_str()).join("data")
    }

    fn check(&self) {
        let engine = self.engine();
        check(engine, self.pool);
        assert!(engine.wait_for_reaper(Duration::from_secs(10)));
        assert_eq!(names(&self.pool.join("trash")).len(), self.model.kept, "entries in the trash");
        let name = |which: &Which| id(NAMES[*which]).name.to_string();
        let sizes: BTreeMap<_, _> = self.model.volumes.iter().map(|(n, v)| (name(n), v.size)).collect();
        assert_eq!(listed(engine), sizes);
        for (which, volume) in &self.model.volumes {
            let found = engine.get(&id(NAMES[*which])).unwrap();
            let requested = if volume.managed { NAMES[*which].to_owned() } else { name(which) };
            assert_eq!(found.requested_name, requested);
            assert_eq!((found.size, found.managed), (volume.size, volume.managed));
            assert_eq!((&found.source, found.policy.on_delete), (&volume.source, volume.on_delete));
            self.check_data("volumes", *which, volume.text);
        }
        let all: Vec<_> = self.model.snapshots.keys().map(name).collect();
        assert!(listed_snapshots(engine).iter().eq(all.iter().collect::<std::collections::BTreeSet<_>>()));
        for (which, snapshot) in &self.model.snapshots {
            let found = engine.get_snapshot(&id(NAMES[*which])).unwrap();
            assert_eq!((found.size, &found.source_volume), (snapshot.size, &id(NAMES[snapshot.of])));
            self.check_data("snapshots", *which, snapshot.text);
        }
    }

    fn check_data(&self, kind: &str, name: Which, text: Option<u8>) {
        let data = self.data(kind, name);
        let files = contents(&data);
        assert_eq!(files.len(), 1 + usize::from(text.is_some()), "{files:?}");
        if let Some(text) = text {
            assert_eq!(fs::read(data.join("file")).unwrap(), [text]);
        }
    }
}

fn answer_of<T>(result: orlop::error::Result<T>) -> Answer {
    result.map(drop).map_err(|error| error.kind())
}

/// Whether an existing volume satisfies a request.
fn same(name: Which, found: &Volume, range: SizeRange, source: Option<&Source>) -> Answer {
    let named = found.managed || id(NAMES[name]).name.as_str() == NAMES[name];
    let same = named && range.admits(found.size) && found.source.as_ref() == source;
    if same { Ok(()) } else { Err(Kind::Conflict) }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        max_shrink_time: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    })]

    #[test]
    fn engine_disk_and_model_agree_after_every_step(steps in steps()) {
        let dir = memory_dir();
        let mut test = Test { engine: Some(open(dir.path())), pool: dir.path(), model: Model::default() };
        for step in &steps {
            test.step(step);
        }
    }
}
