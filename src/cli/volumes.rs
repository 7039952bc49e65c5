//! The commands on volumes and snapshots: each parses its arguments, calls the engine, and prints the result.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::{interrupt, print, print_error, report};
use crate::command::session::Session;
use crate::command::{inspect, ls, snapshots};
use crate::config;
use crate::config::flags::{
    CloneVolume, Create, CreateSnapshot, Expand, Inspect, Label, Ls, LsSnapshots, NewVolume, Output, Pools,
    Restore, Rm, RmSnapshots, Snapshots, Volumes,
};
use crate::engine::Engine;
use crate::engine::request::{self, ConsistencySpec, PoolSettings, SnapshotFilter, Tuning};
use crate::error::{Context as _, Error, Kind, Result};
use crate::options::assignment::{self, Assigned};
use crate::quantity::DockerSize;
use crate::volume::{Name, Size, SizeRange, Source, Timestamp, VolumeId, shorten};

/// How long a call waits for a copy before the command looks whether it was interrupted.
const COPY_WAIT: Duration = Duration::from_millis(100);

/// Runs a command on volumes.
pub(super) fn run(command: Volumes) -> Result<ExitCode> {
    let result = match command {
        Volumes::Ls(flags) => return list(&flags),
        Volumes::Inspect(flags) => return inspect(&flags),
        Volumes::Rm(flags) => return rm(&flags),
        Volumes::Backup(flags) => return Ok(super::archive::run(*flags)),
        Volumes::Create(flags) => create(flags),
        Volumes::Clone(flags) => clone(flags),
        Volumes::Restore(flags) => match super::archive::is_archive(&flags) {
            Ok(true) => super::archive::restore(flags),
            Ok(false) => restore(flags),
            Err(error) => Err(error),
        },
        Volumes::Expand(flags) => expand(&flags),
        Volumes::Label(flags) => label(&flags),
        Volumes::Snapshot(Snapshots::Create(flags)) => create_snapshot(&flags),
        Volumes::Snapshot(Snapshots::Ls(flags)) => list_snapshots(&flags),
        Volumes::Snapshot(Snapshots::Rm(flags)) => return rm_snapshots(&flags),
    };
    Ok(report(result.err().as_slice()))
}

fn list(flags: &Ls) -> Result<ExitCode> {
    let records = open(&flags.pools)?.records();
    print(&match (flags.quiet, flags.output) {
        (true, _) => ls::to_ids(&records.volumes),
        (false, Output::Text) => ls::to_text(&records.volumes, Timestamp::now()),
        (false, Output::Json) => ls::to_json(&records.volumes)?,
    })?;
    Ok(report(&records.unavailable))
}

fn inspect(flags: &Inspect) -> Result<ExitCode> {
    let session = open(&flags.pools)?;
    let mut found = Vec::new();
    let errors = session.for_each(&flags.volumes, |id| {
        found.push(session.call(&format!("inspect volume {id}"), move |engine| engine.inspect(&id))?);
        Ok(())
    });
    print(&inspect::to_json(&found)?)?;
    Ok(report(&errors))
}

fn rm(flags: &Rm) -> Result<ExitCode> {
    let session = open(&flags.pools)?;
    let errors = session.for_each(&flags.volumes, |id| {
        let (what, dry_run) = (format!("delete volume {id}"), flags.dry_run);
        let text = if dry_run { format!("would {what}\n") } else { format!("{id}\n") };
        session.call(
            &what,
            move |engine| if dry_run { engine.check_removable(&id) } else { engine.remove(&id) },
        )?;
        print(&text)
    });
    Ok(report(&errors))
}

fn create(flags: Create) -> Result<()> {
    let is_anonymous = flags.name.is_none();
    let name = flags.name.unwrap_or_else(anonymous_name);
    let mut assigned = assignment::parse(&flags.new.options, &flags.new.labels)?;
    if is_anonymous {
        assigned.options.labels.entry(assignment::ANONYMOUS.to_owned()).or_default();
    }
    if let Some(pool) = config::first_pool(&flags.pools)? {
        if flags.new.dry_run {
            return print(&format!(
                "would make {} a pool and create volume default/{name}\n",
                pool.path.display()
            ));
        }
        make_pool(pool)?;
    }
    let session = open_to_copy(&flags.pools, assigned.from.is_some())?;
    let source = assigned.from.take().map(|from| source_of(&session, &from)).transpose()?;
    make(&session, name, source, assigned, flags.new.dry_run)
}

/// Makes the first pool of a host without any settings.
fn make_pool(pool: PoolSettings) -> Result<()> {
    let path = pool.path.clone();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.context(|| format!("create {}", path.display()))?;
    let engine = Engine::open(vec![pool], Tuning::default())?;
    if let Some(why) = engine.pools().into_iter().find_map(|pool| pool.unavailable) {
        return Err(Error::new(Kind::Unavailable, why));
    }
    print_error(&format!("{} is now the pool default, since no settings name another one", path.display()));
    Ok(())
}

/// A name like those of Docker's anonymous volumes.
fn anonymous_name() -> String {
    let half = || uuid::Uuid::new_v4().simple().to_string();
    half() + &half()
}

/// The volume, or else the snapshot, that a user means.
pub(super) fn source_of(session: &Session, text: &str) -> Result<Source> {
    let is_volume = session.volume(text).and_then(|id| {
        let what = format!("find volume {id}");
        session.call(&what, move |engine| engine.get(&id).map(|volume| volume.id))
    });
    match is_volume {
        Ok(id) => Ok(Source::Volume(id)),
        Err(error) if error.kind() == Kind::NotFound => match session.snapshot(text) {
            Err(error) if error.kind() == Kind::NotFound => {
                let text = format!("no volume and no snapshot {:?} exists", shorten(text));
                Err(Error::new(Kind::NotFound, text))
            }
            id => Ok(Source::Snapshot(id?)),
        },
        Err(error) => Err(error),
    }
}

fn clone(flags: CloneVolume) -> Result<()> {
    let session = open_to_copy(&flags.pools, true)?;
    let source = Source::Volume(session.volume(&flags.source)?);
    make_copy(&session, flags.name, source, &flags.new)
}

fn restore(flags: Restore) -> Result<()> {
    let session = open_to_copy(&flags.pools, true)?;
    let source = Source::Snapshot(session.snapshot(&flags.source)?);
    make_copy(&session, flags.name, source, &flags.new)
}

/// Creates a copy in the pool of its source, unless the options name another one.
fn make_copy(session: &Session, name: String, source: Source, new: &NewVolume) -> Result<()> {
    let mut assigned = assignment::parse(&new.options, &new.labels)?;
    if assigned.from.is_some() {
        return Err(Error::new(Kind::Invalid, "option from: the source is an argument of this command"));
    }
    assigned.options.pool.get_or_insert_with(|| source.id().pool.clone());
    make(session, name, Some(source), assigned, new.dry_run)
}

fn make(
    session: &Session,
    name: String,
    source: Option<Source>,
    assigned: Assigned,
    dry_run: bool,
) -> Result<()> {
    let directory = plain_name(&name)?;
    let size = assigned.size;
    let pool = session.pool(assigned.options.pool.clone())?;
    let id = VolumeId { pool: pool.clone(), name: directory };
    session.refuse_name_of_other_pool(&id)?;
    let request = assigned.into_request(name, pool, source);
    if dry_run {
        let from = request.source.as_ref().map(|source| format!(" from {source}")).unwrap_or_default();
        let size = size.map(|size| format!(", size {}", Size(size))).unwrap_or_default();
        return print(&format!("would create volume {id}{from}{size}\n"));
    }
    let what = format!("create volume {id}");
    session.copy(&what, move |engine| engine.create(&request).map(Some))?;
    print(&format!("{id}\n"))
}

/// Refuses a name that would become a digest: commands would have to name the volume by it.
pub(super) fn plain_name(name: &str) -> Result<Name> {
    let directory = Name::of(name);
    if directory.is_plain() {
        return Ok(directory);
    }
    let text = format!(
        "name {:?} is not 1 to 64 letters, digits, '_', '.' and '-', starting with a letter or digit",
        shorten(name)
    );
    Err(Error::new(Kind::Invalid, text))
}

fn expand(flags: &Expand) -> Result<()> {
    let size = flags.size.parse::<DockerSize>().context(|| "the new size")?.0;
    let session = open(&flags.pools)?;
    let id = session.volume(&flags.volume)?;
    let what = format!("expand volume {id}");
    if flags.dry_run {
        let shown = id.clone();
        let volume = session.call(&what, move |engine| engine.get(&id))?;
        return print(&format!("would expand volume {shown} from {} to {}\n", Size(volume.size), Size(size)));
    }
    let volume = session.call(&what, move |engine| {
        // The limit refuses a smaller size: a volume never shrinks.
        engine.expand(&id, SizeRange { required: size, limit: size })
    })?;
    print(&format!("{} {}\n", volume.id, Size(volume.size).to_short()))
}

fn label(flags: &Label) -> Result<()> {
    let changes =
        flags.changes.iter().map(|change| label_change(change)).collect::<Result<BTreeMap<_, _>>>()?;
    let session = open(&flags.pools)?;
    let id = session.volume(&flags.volume)?;
    let what = format!("label volume {id}");
    let text = format!("{id}\n");
    if flags.dry_run {
        session.call(&what, move |engine| engine.get(&id))?;
        return print(&format!("would change {} labels of volume {text}", changes.len()));
    }
    session.call(&what, move |engine| engine.relabel(&id, &changes))?;
    print(&text)
}

fn label_change(text: &str) -> Result<(String, Option<String>)> {
    match text.strip_suffix('-').filter(|_| !text.contains('=')) {
        Some(key) => assignment::label_of(key).map(|(key, _)| (key, None)),
        None if text.contains('=') => assignment::label_of(text).map(|(key, value)| (key, Some(value))),
        None => {
            let text = format!("{:?} is neither KEY=VALUE nor KEY-", shorten(text));
            Err(Error::new(Kind::Invalid, text))
        }
    }
}

fn create_snapshot(flags: &CreateSnapshot) -> Result<()> {
    let labels = flags.labels.iter().map(|label| assignment::label_of(label)).collect::<Result<_>>()?;
    let name = plain_name(&flags.name)?;
    let session = open_to_copy(&flags.pools, true)?;
    let source_volume = session.volume(&flags.volume)?;
    let id = VolumeId { pool: source_volume.pool.clone(), name };
    if flags.dry_run {
        return print(&format!("would create snapshot {id} of volume {source_volume}\n"));
    }
    let consistency = ConsistencySpec { consistency: flags.consistency.into(), ..ConsistencySpec::default() };
    let request = request::CreateSnapshot { name: flags.name.clone(), source_volume, consistency, labels };
    session.copy(&format!("create snapshot {id}"), move |engine| {
        engine.create_snapshot(&request).map(|snapshot| snapshot.ready.then_some(()))
    })?;
    print(&format!("{id}\n"))
}

fn list_snapshots(flags: &LsSnapshots) -> Result<()> {
    let session = open(&flags.pools)?;
    let page = session.call("list snapshots", |engine| {
        engine.list_snapshots(&SnapshotFilter::default(), None, usize::MAX)
    })?;
    print(&match flags.quiet {
        true => snapshots::to_ids(&page.items),
        false => snapshots::to_text(&page.items, Timestamp::now()),
    })
}

fn rm_snapshots(flags: &RmSnapshots) -> Result<ExitCode> {
    let session = open(&flags.pools)?;
    let remove = |text: &String| {
        let id = session.snapshot(text)?;
        let (what, shown, is_dry) = (format!("delete snapshot {id}"), id.clone(), flags.dry_run);
        session.call(&what, move |engine| {
            engine.get_snapshot(&id)?;
            if is_dry { Ok(()) } else { engine.delete_snapshot(&id) }
        })?;
        print(&if is_dry { format!("would delete snapshot {shown}\n") } else { format!("{shown}\n") })
    };
    let errors: Vec<_> = flags.snapshots.iter().filter_map(|text| remove(text).err()).collect();
    Ok(report(&errors))
}

fn open(flags: &Pools) -> Result<Session> {
    let (pools, tuning) = config::for_command(flags)?;
    Ok(Session::new(Engine::open_for_command(pools, tuning)?, Arc::new(AtomicBool::new(false))))
}

/// Opens a session whose copies are cancelled by a signal.
pub(super) fn open_to_copy(flags: &Pools, copies: bool) -> Result<Session> {
    if !copies {
        return open(flags);
    }
    let (pools, mut tuning) = config::for_command(flags)?;
    tuning.copy_wait = COPY_WAIT;
    Ok(Session::new(Engine::open_for_command(pools, tuning)?, interrupt::flag()?))
}
