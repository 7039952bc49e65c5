//! `orlop adopt`: a directory becomes a volume without a copy.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::first_pool::FirstPool;
use super::print;
use super::volumes::{open, plain_name};
use crate::command::printable;
use crate::command::session::Session;
use crate::config::flags::Adopt;
use crate::engine::Engine;
use crate::engine::request::{CreateVolume, OwnerSpec, PoolSettings, Tuning};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::options::assignment::{self, Assigned};
use crate::volume::{SizeRange, VolumeId, shorten};

/// What `adopt` makes a volume of.
enum Adopted {
    Directory(PathBuf),
    Unmanaged(VolumeId),
}

/// Makes a directory, or an unmanaged volume, a volume.
pub(super) fn adopt(flags: Adopt) -> Result<()> {
    let assigned = assignment::parse(&flags.options, &flags.labels)?;
    if assigned.from.is_some() || assigned.options.owner != OwnerSpec::default() {
        let text = "options from, uid, gid and mode: a directory keeps its contents, owner and mode";
        return Err(Error::new(Kind::Invalid, text));
    }
    let is_directory = flags.directory.starts_with(['/', '.']);
    let path = is_directory.then(|| directory_of(&flags.directory)).transpose()?;
    if let (Some(path), Some(first)) = (&path, FirstPool::needed(&flags.pools)?) {
        let name = flags.name.as_deref().unwrap_or_else(|| last_name(path));
        plain_name(name)?;
        first.check(&assigned)?;
        check_before_pool(first.settings(), path)?;
        if flags.dry_run {
            let rest = format!("adopt {} as volume {}", shown(path), first.volume(name));
            return first.would(&rest, &assigned);
        }
        first.make()?;
    }
    make(flags, assigned, path)
}

fn make(flags: Adopt, assigned: Assigned, path: Option<PathBuf>) -> Result<()> {
    let session = open(&flags.pools)?;
    let Assigned { size, options, .. } = assigned;
    let (name, pool, adopted) = if let Some(path) = path {
        let name = flags.name.unwrap_or_else(|| last_name(&path).to_owned());
        (name, session.pool(options.pool)?, Adopted::Directory(path))
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

/// The name of a volume that is named after its directory.
fn last_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn shown(path: &Path) -> String {
    printable(&format!("directory {}", path.display()))
}

/// Refuses a directory that cannot be moved into the pool that would be made.
fn check_before_pool(pool: &PoolSettings, path: &Path) -> Result<()> {
    let engine = Engine::open_for_command(vec![pool.clone()], Tuning::default())?;
    let session = Session::new(engine, Arc::new(AtomicBool::new(false)));
    let (directory, pool) = (path.to_owned(), pool.path.clone());
    session.call(&format!("adopt {}", shown(path)), move |engine| {
        engine.check_directory(&directory)?;
        let existing = pool.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        if device_of(existing)? == device_of(&directory)? {
            return Ok(());
        }
        let text = format!(
            "directory {} is on another filesystem than {}, which would become the pool: name a pool on its filesystem \
             with --pool NAME=DIR, or create a volume and copy the files",
            directory.display(),
            pool.display()
        );
        Err(Error::new(Kind::Unsupported, text))
    })
}

fn device_of(path: &Path) -> Result<u64> {
    path.metadata().map(|found| found.dev()).context(|| format!("stat {}", path.display()))
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
