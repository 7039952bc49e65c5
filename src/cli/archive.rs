//! `orlop backup`, and `orlop restore` of an archive.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::first_pool::FirstPool;
use super::volumes::{in_own_words, open_to_copy, plain_name, source_of};
use super::{print, print_error, report};
use crate::archive::compression::{Compressor, Decompressor};
use crate::archive::{Reader, Writer, name};
use crate::command::archive::{
    Input, NewArchive, compare, compression_for, entries_text, is_standard, line, open, restored, shown_path,
    standard_output, summary, warnings,
};
use crate::command::printable;
use crate::command::progress::Total;
use crate::config::flags::{ArchiveFile, Archives, Backup, NewBackup, NewCopy, Pools, Restore};
use crate::engine::request::{ConsistencySpec, CreateVolume};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::fs::unpack::UnpackSpec;
use crate::options::assignment::{self, Assigned};
use crate::volume::{Size, SizeRange, VolumeId};

/// Runs `orlop backup`.
pub(super) fn run(flags: Backup) -> ExitCode {
    let result = match flags.archive {
        None => back_up(flags.backup),
        Some(Archives::Verify(flags)) => verify(&flags),
        Some(Archives::Ls(flags)) => list(&flags),
    };
    report(result.err().as_slice())
}

fn back_up(flags: NewBackup) -> Result<()> {
    let NewBackup { pools, source, output, format, consistency, dry_run } = flags;
    let compression = format.map_or_else(|| compression_for(&output), |format| Ok(format.into()))?;
    let mut session = open_to_copy(&pools, true)?;
    let source = source_of(&session, &source.unwrap_or_default())?;
    session.set_total_of(&source);
    let what = format!("back up {source}");
    if dry_run {
        return print(&format!("would {what} to {}\n", output.display()));
    }
    let file = if is_standard(&output) { None } else { Some(NewArchive::create(&output)?) };
    let stream = file.as_ref().map_or_else(standard_output, NewArchive::stream)?;
    let progress = Arc::new(Progress::default());
    let stop = stop(&progress);
    let consistency = ConsistencySpec { consistency: consistency.into(), ..ConsistencySpec::default() };
    let id = source.id().clone();
    let shown = source.to_string();
    let done = session.transfer(&what, &id.pool, &progress, move |engine, progress| {
        let mut writer = Writer::new(Compressor::start(stream, compression, stop)?);
        let done = engine.back_up(&source, consistency, &mut writer, progress)?;
        let (compressor, _) = writer.finish()?;
        Ok((done, compressor.finish()?))
    });
    let (done, sum) = done.map_err(|error| in_own_words(&error, "--consistency none"))?;
    for warning in warnings(&done) {
        print_error(&warning);
    }
    let text = summary(&shown, &output, &done, &sum);
    match file {
        Some(file) => file.complete(&sum).and_then(|()| print(&text))?,
        None => print_error(text.trim_end()),
    }
    // The backup is complete, whatever becomes of its record and of the copy.
    if let Some(uid) = done.volume {
        let recorded =
            session.call("record the backup", move |engine| engine.record_backup(&id, uid, done.began));
        let _ = recorded.map_err(|error| print_error(&error.chain()));
    }
    if done.is_of_copy { session.remove_copy() } else { Ok(()) }
}

fn stop(progress: &Arc<Progress>) -> impl Fn() -> bool + Send + Sync + 'static {
    let progress = Arc::clone(progress);
    move || progress.is_cancelled()
}

fn verify(flags: &ArchiveFile) -> Result<()> {
    let path = &flags.file;
    let mut reader = Reader::new(Decompressor::start(open(path)?, || false)?);
    let (mut entries, mut bytes) = (0_u64, 0_u64);
    let read = loop {
        match reader.next_entry() {
            Ok(Some(entry)) => {
                (entries, bytes) = (entries + u64::from(!entry.is_top()), bytes + entry.stored());
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    read.context(|| printable(&shown_path(path)))?;
    let sum = reader.into_input().finish()?;
    let checksum = match compare(path, &sum)? {
        Some(file) => format!("matches {}", file.display()),
        None => format!("SHA-256 {}", sum.sha256),
    };
    let bytes = Size(bytes).to_short();
    print(
        &(printable(&format!(
            "{}: complete, {}, {bytes} of data, {checksum}",
            shown_path(path),
            entries_text(entries),
        )) + "\n"),
    )
}

fn list(flags: &ArchiveFile) -> Result<()> {
    let mut reader = Reader::new(Decompressor::start(open(&flags.file)?, || false)?);
    while let Some(entry) = reader.next_entry().context(|| printable(&shown_path(&flags.file)))? {
        print(&line(&entry))?;
    }
    Ok(())
}

/// Whether `orlop restore` is asked for an archive. Refuses what only an archive has for a snapshot.
pub(super) fn is_archive(flags: &Restore) -> Result<bool> {
    let is_archive = name::is_archive(&flags.source);
    if !is_archive && (flags.devices || flags.prefix.is_some() || flags.replace) {
        let text =
            format!("{:?} is no archive: --devices, --prefix and --replace are for archives", flags.source);
        return Err(Error::new(Kind::Invalid, text));
    }
    Ok(is_archive)
}

/// Creates a volume from an archive, or replaces one.
pub(super) fn restore(flags: Restore) -> Result<()> {
    let spec = UnpackSpec {
        devices: flags.devices,
        prefix: flags.prefix.as_deref().map(prefix_of).transpose()?,
        ..UnpackSpec::default()
    };
    let path = PathBuf::from(flags.source);
    if flags.replace { replace(flags.copy, path, spec) } else { restore_new(flags.copy, path, spec) }
}

fn restore_new(copy: NewCopy, path: PathBuf, spec: UnpackSpec) -> Result<()> {
    let NewCopy { pools, name, new } = copy;
    let assigned = assignment::parse(&new.options, &new.labels)?;
    if assigned.from.is_some() {
        return Err(Error::new(Kind::Invalid, "option from: the source is an argument of this command"));
    }
    plain_name(&name)?;
    let first = FirstPool::needed(&pools)?;
    first.as_ref().map_or(Ok(()), |first| first.check(&assigned))?;
    let input = Input::open(path)?;
    if let Some(first) = first {
        if new.dry_run {
            let source = shown_path(&input.path);
            return first.would(&format!("create volume {} from {source}", first.volume(&name)), &assigned);
        }
        first.make()?;
    }
    make(&pools, name, assigned, input, spec, new.dry_run)
}

/// Creates a volume from an archive with these options.
pub(super) fn make(
    pools: &Pools,
    name: String,
    assigned: Assigned,
    input: Input,
    spec: UnpackSpec,
    dry_run: bool,
) -> Result<()> {
    let Assigned { size, options, .. } = assigned;
    let directory = plain_name(&name)?;
    let mut session = open_to_copy(pools, true)?;
    let pool = session.pool(options.pool)?;
    let id = VolumeId { pool: pool.clone(), name: directory };
    session.refuse_volume_name_of_other_pool(&id)?;
    let Input { path, stream } = input;
    session.set_total(Total::of_input(&stream));
    let progress = Arc::new(Progress::default());
    let stop = stop(&progress);
    let mut request = CreateVolume {
        name,
        pool: Some(pool.clone()),
        size: SizeRange { required: 0, limit: 0 },
        owner: options.owner,
        policy: options.policy,
        labels: options.labels,
        source: None,
        consistency: options.consistency,
        may_go_elsewhere: false,
    };
    let (what, shown) = (format!("restore volume {id}"), path.clone());
    if dry_run {
        request.size = SizeRange { required: size.unwrap_or(0), limit: size.unwrap_or(0) };
        if !session.call(&what, move |engine| engine.check_create(&request))? {
            return Err(Error::new(Kind::Conflict, format!("volume {id} already exists: use another name")));
        }
        return print(&format!("would create volume {id} from {}\n", shown_path(&path)));
    }
    let (made, text) = session.transfer(&what, &pool, &progress, move |engine, progress| {
        let mut reader = Reader::new(Decompressor::start(stream, stop)?);
        let origin = reader.start().context(|| shown_path(&shown))?.cloned();
        let size = size.or(origin.as_ref().map(|origin| origin.size)).unwrap_or(0);
        request.size = SizeRange { required: size, limit: size };
        let made = engine.create_from_archive(&request, &mut reader, &spec, progress);
        let (volume, unpacked) = made.context(|| shown_path(&shown))?;
        Ok((volume.id, restored(&shown, origin.as_ref(), &unpacked)))
    })?;
    text.iter().for_each(|line| print_error(line));
    print(&format!("{made}\n"))
}

fn replace(copy: NewCopy, path: PathBuf, spec: UnpackSpec) -> Result<()> {
    let Input { path, stream } = Input::open(path)?;
    let mut session = open_to_copy(&copy.pools, true)?;
    let id = session.volume(&copy.name)?;
    session.set_total(Total::of_input(&stream));
    let (what, shown) = (format!("replace volume {id}"), path.clone());
    let checked = id.clone();
    session.call(&what, move |engine| engine.check_replace(&checked))?;
    if copy.new.dry_run {
        return print(&format!("would replace volume {id} by {}\n", shown_path(&path)));
    }
    let progress = Arc::new(Progress::default());
    let stop = stop(&progress);
    let pool = id.pool.clone();
    let (replaced, text) = session.transfer(&what, &pool, &progress, move |engine, progress| {
        let mut reader = Reader::new(Decompressor::start(stream, stop)?);
        let origin = reader.start().context(|| shown_path(&shown))?.cloned();
        let made = engine.replace_from_archive(&id, &mut reader, &spec, progress);
        let (volume, unpacked) = made.context(|| shown_path(&shown))?;
        Ok((volume.id, restored(&shown, origin.as_ref(), &unpacked)))
    })?;
    text.iter().for_each(|line| print_error(line));
    print(&format!("{replaced}\n"))
}

/// The directory of an archive that a user names.
fn prefix_of(text: &Path) -> Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = text.as_os_str().as_bytes();
    let names: Vec<_> =
        bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.contains(&&b".."[..]) {
        return Err(Error::new(Kind::Invalid, "--prefix: a directory of the archive has no `..`"));
    }
    Ok(names.join(&b'/'))
}
