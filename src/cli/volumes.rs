//! The commands on volumes and snapshots: each parses its arguments, calls the engine, and prints the result.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::{exec, interrupt, listing, print, print_error, removal, report, snapshots};
use crate::archive;
use crate::command::session::Session;
use crate::command::{self, printable};
use crate::config::flags::{
    Adopt, CloneVolume, Create, Expand, Label, NewCopy, Pools, Rename, Restore, Volumes,
};
use crate::config::{self, KNOWN_POOLS};
use crate::engine::Engine;
use crate::engine::request::{CreateVolume, OwnerSpec, PoolSettings, Tuning};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::fs::unpack::UnpackSpec;
use crate::options::assignment::{self, Assigned};
use crate::quantity::DockerSize;
use crate::volume::{Name, Size, SizeRange, Source, Volume, VolumeId, shorten};

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
        Volumes::Adopt(flags) => adopt(flags),
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
    if let Some(pool) = config::first_pool(&flags.pools)? {
        check_first_volume(&pool, &name, &assigned)?;
        if flags.new.dry_run {
            return print(&format!(
                "would make {} a pool and create volume {}/{name}\n",
                pool.path.display(),
                pool.name
            ));
        }
        make_pool(pool)?;
    }
    if let Some(archive) = assigned.from.take_if(|from| archive::name::is_archive(from)) {
        let (pools, dry_run) = (&flags.pools, flags.new.dry_run);
        return super::archive::make(pools, name, assigned, archive.into(), UnpackSpec::default(), dry_run);
    }
    let session = open_to_copy(&flags.pools, assigned.from.is_some())?;
    let source = assigned.from.take().map(|from| source_of(&session, &from)).transpose()?;
    make(&session, name, source, assigned, flags.new.dry_run)
}

/// Refuses the first volume of a host before a pool is made for it.
fn check_first_volume(pool: &PoolSettings, name: &str, assigned: &Assigned) -> Result<()> {
    plain_name(name)?;
    match &assigned.from {
        Some(archive) if archive::name::is_archive(archive) => {
            drop(command::archive::open(Path::new(archive))?)
        }
        Some(from) => return Err(no_source(from)),
        None => {}
    }
    match &assigned.options.pool {
        Some(other) if *other != pool.name => {
            let text = format!("pool {other} does not exist; the only pool is {}", pool.name);
            Err(Error::new(Kind::Invalid, text))
        }
        Some(_) | None => Ok(()),
    }
}

fn no_source(text: &str) -> Error {
    Error::new(Kind::NotFound, format!("no volume and no snapshot {:?} exists", shorten(text)))
}

/// Makes the first pool of a host without any settings.
fn make_pool(pool: PoolSettings) -> Result<()> {
    let path = pool.path.clone();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.context(|| format!("create {}", path.display()))?;
    let engine = Engine::open_recorded(vec![pool], Tuning::default(), Path::new(KNOWN_POOLS))?;
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
    let source = Source::Snapshot(session.snapshot(&flags.source)?);
    session.set_total_of(&source);
    make_copy(&session, flags.copy, source)
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
    if let Some(claim) = claim_of(&volume) {
        let text = format!("volume {id} is that of {claim}, whose PersistentVolume has its name");
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

/// The claim that a volume belongs to, if Kubernetes has made it for one.
pub(super) fn claim_of(volume: &Volume) -> Option<String> {
    let label = |key: &str| volume.labels.get(&format!("csi.storage.k8s.io/pvc/{key}"));
    label("name").map(|name| format!("claim {}/{name}", label("namespace").map_or("", String::as_str)))
}

/// What `adopt` makes a volume of.
enum Adopted {
    Directory(PathBuf),
    Unmanaged(VolumeId),
}

fn adopt(flags: Adopt) -> Result<()> {
    let Assigned { size, from, options } = assignment::parse(&flags.options, &flags.labels)?;
    if from.is_some() || options.owner != OwnerSpec::default() {
        let text = "options from, uid, gid and mode: a directory keeps its contents, owner and mode";
        return Err(Error::new(Kind::Invalid, text));
    }
    let session = open(&flags.pools)?;
    let (name, pool, adopted) = if flags.directory.starts_with(['/', '.']) {
        let path = directory_of(&flags.directory)?;
        let last = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        (flags.name.unwrap_or(last), session.pool(options.pool)?, Adopted::Directory(path))
    } else {
        let id = session.volume(&flags.directory)?;
        if flags.name.is_some() || options.pool.as_ref().is_some_and(|pool| *pool != id.pool) {
            let text =
                format!("unmanaged volume {id} is adopted where it is: leave out the name and the pool");
            return Err(Error::new(Kind::Invalid, text));
        }
        (id.name.to_string(), id.pool.clone(), Adopted::Unmanaged(id))
    };
    let id = VolumeId { pool: pool.clone(), name: plain_name(&name)? };
    session.refuse_volume_name_of_other_pool(&id)?;
    let request = CreateVolume {
        name,
        pool: Some(pool),
        size: SizeRange { required: size.unwrap_or(0), limit: 0 },
        policy: options.policy,
        labels: options.labels,
        ..CreateVolume::default()
    };
    let (what, path) = match adopted {
        Adopted::Directory(path) => (format!("directory {}", path.display()), Some(path)),
        Adopted::Unmanaged(id) => (format!("unmanaged volume {id}"), None),
    };
    if flags.dry_run {
        let check = move |engine: &Engine| engine.check_adopt(&request, path.as_deref());
        session.call(&format!("adopt {what}"), check)?;
        return print(&format!("would make {} volume {id}\n", printable(&what)));
    }
    // With project quotas, all its files are looked at.
    let adopt = move |engine: &Engine, _: &Progress| engine.adopt(&request, path.as_deref());
    session.transfer(&format!("adopt {what}"), &id.pool, &Arc::new(Progress::default()), adopt)?;
    print(&format!("{id}\n"))
}

/// The absolute path of a directory, without `..`.
fn directory_of(text: &str) -> Result<PathBuf> {
    let path = std::path::absolute(text).context(|| format!("find {:?}", shorten(text)))?;
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        let text = format!("directory {:?}: write its path without ..", shorten(text));
        return Err(Error::new(Kind::Invalid, text));
    }
    Ok(path)
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
