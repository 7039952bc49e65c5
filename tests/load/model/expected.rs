//! The model: what a pool must contain after each step.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use orlop::engine::Engine;
use orlop::error::Kind;
use orlop::volume::{OnDelete, SizeRange, Source};

use super::steps::{Answer, NAMES, ON_DELETE, SIZES, Step, Which, data, range};
use crate::common::pool::{Report, check, contents, id, names};

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
pub(super) struct Model {
    volumes: BTreeMap<Which, Volume>,
    snapshots: BTreeMap<Which, Snapshot>,
    /// Number of entries that the trash must keep.
    kept: usize,
}

impl Model {
    /// Applies a step; returns the answer that an engine must give. Also does what tenants and administrators do in a step.
    pub(super) fn apply(&mut self, step: &Step, pool: &Path) -> Answer {
        match *step {
            Step::Create { name, size, limit, on_delete } => {
                self.create(name, range(size, limit), ON_DELETE[on_delete])
            }
            Step::Clone { name, from, size } => {
                let source = self.volumes.get(&from).map(|volume| (volume.size, volume.text));
                self.copy(name, Source::Volume(id(NAMES[from])), source, SIZES[size])
            }
            Step::Restore { name, from, size } => {
                let source = self.snapshots.get(&from).map(|snapshot| (snapshot.size, snapshot.text));
                self.copy(name, Source::Snapshot(id(NAMES[from])), source, SIZES[size])
            }
            Step::Delete { name } => {
                if self.volumes.get(&name).is_some_and(|volume| volume.managed) {
                    let deleted = self.volumes.remove(&name).unwrap();
                    self.kept += usize::from(deleted.on_delete != OnDelete::Delete);
                }
                Ok(())
            }
            Step::Expand { name, size, limit } => self.expand(name, SIZES[size], SIZES[limit]),
            Step::Modify { name, on_delete } => match self.volumes.get_mut(&name) {
                None => Err(Kind::NotFound),
                Some(volume) if !volume.managed => Err(Kind::Unsupported),
                Some(volume) => {
                    volume.on_delete = ON_DELETE[on_delete];
                    Ok(())
                }
            },
            Step::Snapshot { name, of } => self.snapshot(name, of),
            Step::DeleteSnapshot { name } => {
                self.snapshots.remove(&name);
                Ok(())
            }
            Step::Write { name, text } => {
                if let Some(volume) = self.volumes.get_mut(&name) {
                    volume.text = Some(text);
                    fs::write(data(pool, "volumes", name).join("file"), [text]).unwrap();
                }
                Ok(())
            }
            Step::AddUnmanaged { name } => {
                self.volumes.entry(name).or_insert_with(|| {
                    fs::create_dir_all(data(pool, "volumes", name)).unwrap();
                    let on_delete = OnDelete::Retain;
                    Volume { size: 0, on_delete, source: None, managed: false, text: None }
                });
                Ok(())
            }
            Step::CrashRemains | Step::Restart => Ok(()),
        }
    }

    fn create(&mut self, name: Which, range: SizeRange, on_delete: OnDelete) -> Answer {
        let size = range.required;
        match self.volumes.get(&name) {
            Some(found) => same(name, found, range, None),
            None if size > 1 << 40 => Err(Kind::NoSpace),
            None => {
                let volume = Volume { size, on_delete, source: None, managed: true, text: None };
                self.volumes.insert(name, volume);
                Ok(())
            }
        }
    }

    fn copy(
        &mut self,
        name: Which,
        source: Source,
        from: Option<(u64, Option<u8>)>,
        required: u64,
    ) -> Answer {
        let range = SizeRange { required, limit: 0 };
        match (self.volumes.get(&name), from) {
            (Some(found), _) => same(name, found, range, Some(&source)),
            (None, None) => Err(Kind::NotFound),
            (None, Some((has, _))) if required != 0 && required < has => Err(Kind::OutOfRange),
            (None, Some(_)) if required > 1 << 40 => Err(Kind::NoSpace),
            (None, Some((has, text))) => {
                let size = required.max(has);
                let on_delete = OnDelete::default();
                let volume = Volume { size, on_delete, source: Some(source), managed: true, text };
                self.volumes.insert(name, volume);
                Ok(())
            }
        }
    }

    fn expand(&mut self, name: Which, required: u64, limit: u64) -> Answer {
        match self.volumes.get_mut(&name) {
            None => Err(Kind::NotFound),
            Some(volume) if limit != 0 && limit < volume.size => Err(Kind::OutOfRange),
            Some(volume) if required <= volume.size => Ok(()),
            Some(volume) if !volume.managed => Err(Kind::Unsupported),
            Some(_) if required > 1 << 40 => Err(Kind::NoSpace),
            Some(volume) => {
                volume.size = required;
                Ok(())
            }
        }
    }

    fn snapshot(&mut self, name: Which, of: Which) -> Answer {
        match (self.snapshots.get(&name), self.volumes.get(&of)) {
            (Some(found), _) if found.of == of => Ok(()),
            (Some(_), _) => Err(Kind::Conflict),
            (None, None) => Err(Kind::NotFound),
            (None, Some(volume)) => {
                let (size, text) = (volume.size, volume.text);
                self.snapshots.insert(name, Snapshot { of, size, text });
                Ok(())
            }
        }
    }

    /// What every process must report.
    pub(super) fn report(&self) -> Report {
        Report {
            volumes: self.volumes.iter().map(|(which, volume)| (name(which), volume.size)).collect(),
            snapshots: self.snapshots.keys().map(name).collect(),
            provisioned: self.volumes.values().map(|volume| volume.size).sum(),
        }
    }

    /// Checks that an engine and the directories agree with the model.
    pub(super) fn check(&self, engine: &Engine, pool: &Path) {
        check(engine, pool);
        assert!(engine.wait_for_reaper(Duration::from_secs(120)));
        assert_eq!(names(&pool.join("trash")).len(), self.kept, "entries in the trash");
        assert_eq!(Report::of(engine), self.report());
        for (which, volume) in &self.volumes {
            let found = engine.get(&id(NAMES[*which])).unwrap();
            let requested = if volume.managed { NAMES[*which].to_owned() } else { name(which) };
            assert_eq!(found.requested_name, requested);
            assert_eq!((found.size, found.managed), (volume.size, volume.managed));
            assert_eq!((&found.source, found.policy.on_delete), (&volume.source, volume.on_delete));
            check_data(&data(pool, "volumes", *which), volume.text);
        }
        for (which, snapshot) in &self.snapshots {
            let found = engine.get_snapshot(&id(NAMES[*which])).unwrap();
            assert_eq!((found.size, &found.source_volume), (snapshot.size, &id(NAMES[snapshot.of])));
            check_data(&data(pool, "snapshots", *which), snapshot.text);
        }
    }
}

/// The name of an object's directory.
fn name(which: &Which) -> String {
    id(NAMES[*which]).name.to_string()
}

fn check_data(data: &Path, text: Option<u8>) {
    let files = contents(data);
    assert_eq!(files.len(), 1 + usize::from(text.is_some()), "{files:?}");
    if let Some(text) = text {
        assert_eq!(fs::read(data.join("file")).unwrap(), [text]);
    }
}

/// Whether an existing volume satisfies a request.
fn same(name: Which, found: &Volume, range: SizeRange, source: Option<&Source>) -> Answer {
    let named = found.managed || id(NAMES[name]).name.as_str() == NAMES[name];
    let same = named && range.admits(found.size) && found.source.as_ref() == source;
    if same { Ok(()) } else { Err(Kind::Conflict) }
}
