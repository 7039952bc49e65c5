//! Random operations on the engine against a model of a few lines: disk, listing, ledger and model agree after each.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "ground/pool.rs"]
mod ground;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use ground::{check, contents, copy_of, cut, id, listed, listed_snapshots, names, open, request};
use orlop::engine::Engine;
use orlop::engine::request::CreateVolume;
use orlop::error::Kind;
use orlop::volume::{OnDelete, Policy, PolicyChange, SizeRange, Source};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// Plain names, and such as only a digest can stand for.
const NAMES: [&str; 6] = ["a", "B.1", "c-c", "..", "new\nline", "/etc/ü"];

/// Sizes that may be provisioned, and such as no disk has.
const SIZES: [u64; 6] = [0, 1, 4096, 1 << 30, 1 << 62, u64::MAX];

const FATES: [OnDelete; 3] = [OnDelete::Delete, OnDelete::Trash, OnDelete::Retain];

type Which = usize;

#[derive(Debug, Clone)]
enum Step {
    Create { name: Which, size: Which, limit: Which, fate: Which },
    Clone { name: Which, from: Which, size: Which },
    Restore { name: Which, from: Which, size: Which },
    Delete { name: Which },
    Expand { name: Which, size: Which, limit: Which },
    Modify { name: Which, fate: Which },
    Cut { name: Which, of: Which },
    DeleteSnapshot { name: Which },
    Write { name: Which, text: u8 },
    PutByHand { name: Which },
    Litter,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (name, from) = (0..NAMES.len(), 0..NAMES.len());
    // Mostly sizes that can be had.
    let size = || prop_oneof![8 => 0..4_usize, 1 => 4..SIZES.len()];
    let limit = || prop_oneof![3 => Just(0_usize), 1 => 1..SIZES.len()];
    let fate = 0..FATES.len();
    let step = prop_oneof![
        4 => (name.clone(), size(), limit(), fate.clone())
            .prop_map(|(name, size, limit, fate)| Step::Create { name, size, limit, fate }),
        2 => (name.clone(), from.clone(), size()).prop_map(|(name, from, size)| Step::Clone { name, from, size }),
        2 => (name.clone(), from.clone(), size()).prop_map(|(name, from, size)| Step::Restore { name, from, size }),
        3 => name.clone().prop_map(|name| Step::Delete { name }),
        2 => (name.clone(), size(), limit()).prop_map(|(name, size, limit)| Step::Expand { name, size, limit }),
        1 => (name.clone(), fate).prop_map(|(name, fate)| Step::Modify { name, fate }),
        3 => (name.clone(), from).prop_map(|(name, of)| Step::Cut { name, of }),
        1 => name.clone().prop_map(|name| Step::DeleteSnapshot { name }),
        3 => (name.clone(), any::<u8>()).prop_map(|(name, text)| Step::Write { name, text }),
        1 => name.prop_map(|name| Step::PutByHand { name }),
        1 => Just(Step::Litter),
        2 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

#[derive(Debug, Clone, PartialEq)]
struct Volume {
    size: u64,
    fate: OnDelete,
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
    /// Folders in the trash that are to stay.
    kept: usize,
}

struct World<'p> {
    engine: Option<Engine>,
    pool: &'p Path,
    model: Model,
}

/// What the engine answered, or should have.
type Answer = Result<(), Kind>;

impl World<'_> {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn step(&mut self, step: &Step) {
        let (answer, expected) = match *step {
            Step::Create { name, size, limit, fate } => self.create(name, size, limit, fate),
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
            Step::Modify { name, fate } => self.modify(name, FATES[fate]),
            Step::Cut { name, of } => self.cut(name, of),
            Step::DeleteSnapshot { name } => {
                self.model.snapshots.remove(&name);
                (said(self.engine().delete_snapshot(&id(NAMES[name]))), Ok(()))
            }
            Step::Write { name, text } => self.write(name, text),
            Step::PutByHand { name } => self.put_by_hand(name),
            Step::Litter => self.litter(),
            Step::Restart => {
                self.engine = None;
                self.engine = Some(open(self.pool));
                (Ok(()), Ok(()))
            }
        };
        assert_eq!(answer, expected, "{step:?}");
        self.agree();
    }

    fn create(&mut self, name: Which, size: Which, limit: Which, fate: Which) -> (Answer, Answer) {
        let (size, limit) = (SIZES[size], SIZES[limit]);
        let limit = if limit < size { 0 } else { limit };
        let policy =
            Policy { on_delete: FATES[fate], trash_for: Duration::from_secs(3600), ..Policy::default() };
        let range = SizeRange { required: size, limit };
        let request = CreateVolume { size: range, policy, ..request(NAMES[name], 0) };
        let answer = said(self.engine().create(&request));
        let expected = match self.model.volumes.get(&name) {
            Some(found) => same(name, found, range, None),
            None if size > 1 << 40 => Err(Kind::NoSpace),
            None => {
                let volume = Volume { size, fate: FATES[fate], source: None, managed: true, text: None };
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
        let request = CreateVolume { size: range, ..copy_of(NAMES[name], source.clone()) };
        let answer = said(self.engine().create(&request));
        let expected = match (self.model.volumes.get(&name), from) {
            (Some(found), _) => same(name, found, range, Some(&source)),
            (None, None) => Err(Kind::NotFound),
            (None, Some((has, _))) if required != 0 && required < has => Err(Kind::OutOfRange),
            (None, Some(_)) if required > 1 << 40 => Err(Kind::NoSpace),
            (None, Some((has, text))) => {
                let size = required.max(has);
                let fate = OnDelete::default();
                let volume = Volume { size, fate, source: Some(source), managed: true, text };
                self.model.volumes.insert(name, volume);
                Ok(())
            }
        };
        (answer, expected)
    }

    fn delete(&mut self, name: Which) -> (Answer, Answer) {
        let answer = said(self.engine().delete(&id(NAMES[name])));
        if self.model.volumes.get(&name).is_some_and(|volume| volume.managed) {
            let gone = self.model.volumes.remove(&name).unwrap();
            self.model.kept += usize::from(gone.fate != OnDelete::Delete);
        }
        (answer, Ok(()))
    }

    fn expand(&mut self, name: Which, required: u64, limit: u64) -> (Answer, Answer) {
        let answer = said(self.engine().expand(&id(NAMES[name]), SizeRange { required, limit }));
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

    fn modify(&mut self, name: Which, fate: OnDelete) -> (Answer, Answer) {
        let change = PolicyChange {
            on_delete: Some(fate),
            trash_for: Some(Duration::from_secs(7200)),
            ..PolicyChange::default()
        };
        let answer = said(self.engine().modify(&id(NAMES[name]), change));
        let expected = match self.model.volumes.get_mut(&name) {
            None => Err(Kind::NotFound),
            Some(volume) if !volume.managed => Err(Kind::Unsupported),
            Some(volume) => {
                volume.fate = fate;
                Ok(())
            }
        };
        (answer, expected)
    }

    fn cut(&mut self, name: Which, of: Which) -> (Answer, Answer) {
        let answer = said(self.engine().create_snapshot(&cut(NAMES[name], &id(NAMES[of]))));
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

    /// What a tenant does.
    fn write(&mut self, name: Which, text: u8) -> (Answer, Answer) {
        if let Some(volume) = self.model.volumes.get_mut(&name) {
            volume.text = Some(text);
            fs::write(self.data("volumes", name).join("file"), [text]).unwrap();
        }
        (Ok(()), Ok(()))
    }

    /// What an administrator does. It is a volume once somebody asks for it.
    fn put_by_hand(&mut self, name: Which) -> (Answer, Answer) {
        if self.model.volumes.contains_key(&name) {
            return (Ok(()), Ok(()));
        }
        fs::create_dir_all(self.data("volumes", name)).unwrap();
        let volume = Volume { size: 0, fate: OnDelete::Retain, source: None, managed: false, text: None };
        self.model.volumes.insert(name, volume);
        (said(self.engine().get(&id(NAMES[name]))), Ok(()))
    }

    /// What a crash leaves, found at the next start.
    fn litter(&mut self) -> (Answer, Answer) {
        self.engine = None;
        fs::create_dir_all(self.pool.join("work/0123/data/deep")).unwrap();
        fs::write(self.pool.join("work/0123/data/deep/file"), "half").unwrap();
        fs::write(self.pool.join("work/4567"), "a record").unwrap();
        self.engine = Some(open(self.pool));
        (Ok(()), Ok(()))
    }

    fn data(&self, shelf: &str, name: Which) -> std::path::PathBuf {
        self.pool.join(shelf).join(id(NAMES[name]).name.as_str()).join("data")
    }

    fn agree(&self) {
        let engine = self.engine();
        check(engine, self.pool);
        assert!(engine.wait_idle(Duration::from_secs(10)));
        assert_eq!(names(&self.pool.join("trash")).len(), self.model.kept, "what the trash is to keep");
        let name = |which: &Which| id(NAMES[*which]).name.to_string();
        let sizes: BTreeMap<_, _> = self.model.volumes.iter().map(|(n, v)| (name(n), v.size)).collect();
        assert_eq!(listed(engine), sizes);
        for (which, volume) in &self.model.volumes {
            let found = engine.get(&id(NAMES[*which])).unwrap();
            let requested = if volume.managed { NAMES[*which].to_owned() } else { name(which) };
            assert_eq!(found.requested_name, requested);
            assert_eq!((found.size, found.managed), (volume.size, volume.managed));
            assert_eq!((&found.source, found.policy.on_delete), (&volume.source, volume.fate));
            self.holds("volumes", *which, volume.text);
        }
        let all: Vec<_> = self.model.snapshots.keys().map(name).collect();
        assert!(listed_snapshots(engine).iter().eq(all.iter().collect::<std::collections::BTreeSet<_>>()));
        for (which, snapshot) in &self.model.snapshots {
            let found = engine.get_snapshot(&id(NAMES[*which])).unwrap();
            assert_eq!((found.size, &found.source_volume), (snapshot.size, &id(NAMES[snapshot.of])));
            self.holds("snapshots", *which, snapshot.text);
        }
    }

    fn holds(&self, shelf: &str, name: Which, text: Option<u8>) {
        let data = self.data(shelf, name);
        let files = contents(&data);
        assert_eq!(files.len(), 1 + usize::from(text.is_some()), "{files:?}");
        if let Some(text) = text {
            assert_eq!(fs::read(data.join("file")).unwrap(), [text]);
        }
    }
}

fn said<T>(result: orlop::error::Result<T>) -> Answer {
    result.map(drop).map_err(|error| error.kind())
}

/// Whether an existing volume answers a request.
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
        let dir = ground::place();
        let mut world = World { engine: Some(open(dir.path())), pool: dir.path(), model: Model::default() };
        for step in &steps {
            world.step(step);
        }
    }
}
