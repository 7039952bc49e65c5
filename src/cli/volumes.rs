//! The commands on volumes and snapshots: each parses its arguments, calls the engine, and prints the result.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::first_pool::FirstPool;
use super::{adopt, doctor, exec, interrupt, listing, print, removal, report, snapshots};
use crate::archive;
use crate::command::archive::Input;
use crate::command::session::Session;
use crate::config;
use crate::config::flags::{CloneVolume, Create, Expand, Label, NewCopy, Pools, Rename, Restore, Volumes};
use crate::engine::Engine;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::unpack::UnpackSpec;
use crate::options::assignment::{self, Assigned};
use crate::quantity::DockerSize;
use crate::volume::{Name, Size, SizeRange, Source, VolumeId, shorten};

/// How long a call waits for a copy before the command looks whether it was interrupted.
const COPY_WAIT: Duration = Duration::from_millis(100);

/// Runs a command on volumes.
pub(super) fn run(command: Volumes) -> Result<ExitCode> {
    let result = match command {
        Volumes::Ls(flags) => return listing::list(&flags),
        Volumes::Inspect(flags) => return listing::inspect(&flags),
        Volumes::Df(flags) => return listing::df(&flags),
        Volumes::Rm(flags) => return removal::rm(&flags),
        Volumes::Prune(flags) => return removal::prune(&flags),
        Volumes::Undelete(flags) => removal::undelete(&flags),
        Volumes::Exec(flags) => return exec::exec(&flags),
        Volumes::Rename(flags) => rename(&flags),
        Volumes::Adopt(flags) => adopt::adopt(flags),
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
        Volumes::Snapshot(command) => return snapshots::run(&command),
        Volumes::Doctor(flags) => return doctor::run(&flags),
        Volumes::Check(flags) => return super::check(&flags),
    };
    Ok(report(result.err().as_slice()))
}

fn create(flags: Create) -> Result<()> {
    let is_anonymous = flags.name.is_none();
    let name = flags.name.unwrap_or_else(anonymous_name);
    let mut assigned = assignment::parse(&flags.new.options, &flags.new.labels)?;
    if is_anonymous {
        assigned.options.labels.entry(assignment::ANONYMOUS.to_owned()).or_default();
    }
    plain_name(&name)?;
    let archive = assigned.from.take_if(|from| archive::name::is_archive(from));
    let first = FirstPool::needed(&flags.pools)?;
    if let Some(first) = &first {
        first.check(&assigned)?;
        assigned.from.as_ref().map_or(Ok(()), |from| Err(no_source(from)))?;
    }
    let input = archive.map(|path| Input::open(path.into())).transpose()?;
    if let Some(first) = first {
        if flags.new.dry_run {
            return first.would(&format!("create volume {}", first.volume(&name)), &assigned);
        }
        first.make()?;
    }
    if let Some(input) = input {
        let (pools, dry_run) = (&flags.pools, flags.new.dry_run);
        return super::archive::make(pools, name, assigned, input, UnpackSpec::default(), dry_run);
    }
    let session = open_to_copy(&flags.pools, assigned.from.is_some())?;
    let source = assigned.from.take().map(|from| source_of(&session, &from)).transpose()?;
    make(&session, name, source, assigned, flags.new.dry_run)
}

fn no_source(text: &str) -> Error {
    let or_file = if archive::name::compression_of(text.as_ref()).is_some() { ", and no file" } else { "" };
    Error::new(Kind::NotFound, format!("no volume and no snapshot{or_file} {:?} exists", shorten(text)))
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
            Err(error) if error.kind() == Kind::NotFound => Err(no_source(text)),
            id => Ok(Source::Snapshot(id?)),
        },
        Err(error) => Err(error),
    }
}

fn clone(flags: CloneVolume) -> Result<()> {
    let session = open_to_copy(&flags.copy.pools, true)?;
    let source = Source::Volume(session.volume(&flags.source)?);
    make_copy(&session, flags.copy, source)
}

fn restore(flags: Restore) -> Result<()> {
    let mut session = open_to_copy(&flags.copy.pools, true)?;
    let source = Source::Snapshot(snapshot_of(&session, &flags.source)?);
    session.set_total_of(&source);
    make_copy(&session, flags.copy, source)
}

/// The snapshot of this name. If there is none and the name is that of an archive, the error also says that no such file exists.
fn snapshot_of(session: &Session, text: &str) -> Result<VolumeId> {
    match session.snapshot(text) {
        Err(error)
            if error.kind() == Kind::NotFound && archive::name::compression_of(text.as_ref()).is_some() =>
        {
            Err(Error::new(Kind::NotFound, format!("no snapshot and no file {:?} exists", shorten(text))))
        }
        found => found,
    }
}

/// Creates a copy in the pool of its source, unless the options name another one.
fn make_copy(session: &Session, copy: NewCopy, source: Source) -> Result<()> {
    let mut assigned = assignment::parse(&copy.new.options, &copy.new.labels)?;
    if assigned.from.is_some() {
        return Err(Error::new(Kind::Invalid, "option from: the source is an argument of this command"));
    }
    assigned.options.pool.get_or_insert_with(|| source.id().pool.clone());
    make(session, copy.name, Some(source), assigned, copy.new.dry_run)
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
    session.refuse_volume_name_of_other_pool(&id)?;
    let request = assigned.into_request(name, pool, source);
    let what = format!("create volume {id}");
    if dry_run {
        let from = request.source.as_ref().map(|source| format!(" from {source}")).unwrap_or_default();
        let size = size.map(|size| format!(", size {}", Size(size))).unwrap_or_default();
        let is_new = session.call(&what, move |engine| engine.check_create(&request))?;
        return print(&match is_new {
            true => format!("would create volume {id}{from}{size}\n"),
            false => format!("volume {id} exists already\n"),
        });
    }
    let created = session.copy(&what, move |engine| engine.create(&request).map(Some));
    created.map_err(|error| in_own_words(&error, "-o consistency=none"))?;
    print(&format!("{id}\n"))
}

/// The error of a copy, with the options as this command spells them: the engine spells them as classes do.
pub(super) fn in_own_words(error: &Error, without_pause: &str) -> Error {
    let respell =
        |text: String| text.replace("consistency: none", without_pause).replace("maxPause", "maxpause");
    Error::from_messages(error.kind(), error.messages().into_iter().map(respell).collect())
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
    if flags.shrink {
        return super::shrink::shrink(&session, &id, size, flags.dry_run);
    }
    let what = format!("expand volume {id}");
    // The limit refuses a smaller size: a volume shrinks only on request.
    let range = SizeRange { required: size, limit: size };
    let with_next_step = |error: Error| {
        let is_smaller = error.kind() == Kind::OutOfRange;
        if is_smaller {
            Error::caused(Kind::OutOfRange, "--shrink makes a volume smaller", error)
        } else {
            error
        }
    };
    if flags.dry_run {
        let checked = session.call(&what, move |engine| engine.check_expand(&id, range));
        let volume = checked.map_err(with_next_step)?;
        let (id, from, to) = (&volume.id, Size(volume.size), Size(size));
        return print(&format!("would expand volume {id} from {from} to {to}\n"));
    }
    let volume = session.call(&what, move |engine| engine.expand(&id, range)).map_err(with_next_step)?;
    print(&format!("{} {}\n", volume.id, Size(volume.size).to_short()))
}

fn rename(flags: &Rename) -> Result<()> {
    let name = plain_name(&flags.name)?;
    let session = open(&flags.pools)?;
    let id = session.volume(&flags.volume)?;
    let what = format!("rename volume {id}");
    session.refuse_volume_name_of_other_pool(&VolumeId { pool: id.pool.clone(), name: name.clone() })?;
    let asked = id.clone();
    let volume = session.call(&what, move |engine| engine.get(&asked))?;
    if let Some(claim) = volume.claim() {
        let text = format!("volume {id} is that of claim {claim}, whose PersistentVolume has its name");
        return Err(Error::new(Kind::Unsupported, text));
    }
    if flags.dry_run {
        let old = id.clone();
        let renamed = session.call(&what, move |engine| engine.check_rename(&id, &name))?;
        return print(&format!("would rename volume {old} to {}\n", renamed.id));
    }
    let renamed = session.call(&what, move |engine| engine.rename(&id, &name))?;
    print(&format!("{}\n", renamed.id))
}

fn label(flags: &Label) -> Result<()> {
    let changes =
        flags.changes.iter().map(|change| label_change(change)).collect::<Result<BTreeMap<_, _>>>()?;
    let session = open(&flags.pools)?;
    let id = session.volume(&flags.volume)?;
    let what = format!("label volume {id}");
    let text = format!("{id}\n");
    if flags.dry_run {
        session.call(&what, move |engine| engine.check_relabel(&id))?;
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

pub(super) fn open(flags: &Pools) -> Result<Session> {
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
