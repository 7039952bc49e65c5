//! Adopting: a directory of the pool's filesystem, or an unmanaged volume, becomes a volume without being copied.

use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Engine;
use super::create::{new_record, owner_on_disk};
use super::locked::{LockedVolume, check_limit};
use super::request::CreateVolume;
use super::system_directory::is_system_directory;
use super::takeover::enter;
use crate::backend::BackendKind;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::DirIdentity;
use crate::mount::mountinfo;
use crate::pool::check_outside_pools;
use crate::pool::object::ObjectKind;
use crate::volume::{Name, Volume, VolumeId};

impl Engine {
    /// Makes a directory a volume: it is renamed into the pool. Without a directory, the volume is an unmanaged one, which
    /// gets a record. Owner, mode and contents stay as they are.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when the name is taken; `InUse` when the directory is mounted somewhere; `Unsupported` for a
    /// directory on another filesystem, and in a pool on btrfs; `Invalid` for a path that is none of a directory. The directory
    /// is where it was then. In a pool with project quotas also `Unsupported`, naming a file that cannot be counted; then it is a
    /// volume whose size is not enforced.
    pub fn adopt(&self, request: &CreateVolume, directory: Option<&Path>) -> Result<Volume> {
        self.adopt_or_check(request, directory, false)
    }

    /// Returns the volume that [`Engine::adopt`] would make now.
    ///
    /// # Errors
    /// Same as [`Engine::adopt`].
    pub fn check_adopt(&self, request: &CreateVolume, directory: Option<&Path>) -> Result<Volume> {
        self.adopt_or_check(request, directory, true)
    }

    fn adopt_or_check(
        &self,
        request: &CreateVolume,
        directory: Option<&Path>,
        only_check: bool,
    ) -> Result<Volume> {
        let pool = self.requested_pool(request.pool.as_ref())?.get_or_open()?;
        let id = VolumeId { pool: pool.settings.name.clone(), name: Name::of(&request.name) };
        if pool.backend.kind() == BackendKind::Btrfs {
            let text = format!(
                "pool {} has backend {}, whose volumes are subvolumes: create a volume and copy the files",
                pool.settings.name,
                pool.backend.kind()
            );
            return Err(Error::new(Kind::Unsupported, text));
        }
        let _claim = self.claims.claim(ObjectKind::Volumes, &id)?;
        let locked = self.lock_volume_in(&pool, &id)?;
        check_limit(&pool, request.policy)?;
        let found = directory.map(|path| self.find_directory(path)).transpose()?;
        match &found {
            Some(_) => self.refuse_taken(&locked)?,
            None if locked.require()?.managed => {
                let text = format!("volume {id} is managed already");
                return Err(Error::new(Kind::Conflict, text));
            }
            None => {}
        }
        // Files of a volume that is in use are not given a project.
        let is_counted = pool.backend.kind() == BackendKind::Quota;
        let _unused = (is_counted && found.is_none()).then(|| self.lock_unused(&locked)).transpose()?;
        let reservation = pool.reserve(request.size.required)?;
        let mut volume = new_record(id, request, request.size.required);
        if only_check {
            return Ok(volume);
        }
        if let Some(Directory { parent, entry, identity }) = &found {
            let taken = pool.store.take_in(&volume.id.name, (parent.as_fd(), entry), *identity);
            taken.context(|| format!("adopt {}", directory.unwrap_or(Path::new("")).display()))?;
        }
        let adopted = owner_of(&locked).and_then(|owner| {
            volume.owner = owner;
            volume.backend = pool.state_to_enter(&volume.backend)?;
            pool.adopt(&volume, reservation)
        });
        let id = &volume.id;
        adopted.context(|| format!("adopt unmanaged volume {id}, which has the files: orlop adopt {id}"))?;
        if !is_counted {
            return Ok(volume);
        }
        let text = format!("volume {id} has the files, and its size is not enforced: orlop check --fix");
        enter(&locked, volume).context(|| text)?.required()
    }

    /// Checks that a directory can be moved, as far as that does not depend on the pool.
    ///
    /// # Errors
    /// As those of [`Engine::adopt`] about the directory.
    pub fn check_directory(&self, path: &Path) -> Result<()> {
        self.find_directory(path).map(drop)
    }

    fn find_directory(&self, path: &Path) -> Result<Directory> {
        let shown = path.display();
        let invalid = |why: &str| Err(Error::new(Kind::Invalid, format!("directory {shown}: {why}")));
        let (Some(parent), Some(entry)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            return invalid("not the path of a directory that can be moved");
        };
        let dir = open_plain(path, OFlags::PATH)?;
        if !path.is_absolute() {
            return invalid("not an absolute path");
        }
        if let Err(error) = check_outside_pools(dir.as_fd(), path) {
            return invalid(&error.chain());
        }
        if self.pools.iter().any(|pool| pool.settings().path.starts_with(path)) {
            return invalid("a pool is inside of it");
        }
        if is_system_directory(&dir, path) {
            return invalid("the system needs it where it is: copy it into a new volume");
        }
        if let Some(mount) = mount_below(path)? {
            return invalid(&format!("something is mounted at {mount}: unmount it"));
        }
        if let Some(user) = self.user_of(dir.as_fd(), path)? {
            let text = format!("directory {shown} is in use by {user}: stop it and retry");
            return Err(Error::new(Kind::InUse, text));
        }
        let parent = open_plain(parent, OFlags::RDONLY)?;
        let identity = DirIdentity::of(dir.as_fd()).context(|| format!("stat {shown}"))?;
        Ok(Directory { parent, entry: entry.to_owned(), identity })
    }
}

/// A directory that can be moved.
struct Directory {
    parent: OwnedFd,
    entry: String,
    identity: DirIdentity,
}

/// Opens a directory whose path has no symbolic link.
fn open_plain(path: &Path, access: OFlags) -> Result<OwnedFd> {
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let shown = path.display();
    match fs::openat2(CWD, path, flags, Mode::empty(), resolve) {
        Err(Errno::LOOP) => {
            let text = format!("directory {shown}: its path has a symbolic link: name the directory itself");
            Err(Error::new(Kind::Invalid, text))
        }
        Err(Errno::NOENT) => Err(Error::new(Kind::Invalid, format!("directory {shown} does not exist"))),
        Err(Errno::NOTDIR) => Err(Error::new(Kind::Invalid, format!("{shown} is not a directory"))),
        opened => opened.context(|| format!("open {shown}")),
    }
}

/// A mount at a path or below it.
fn mount_below(path: &Path) -> Result<Option<String>> {
    let mut found = None;
    mountinfo::each_own(|line| {
        let target = line.target();
        let is_below = Path::new(std::ffi::OsStr::from_bytes(&target)).starts_with(path);
        if !is_below {
            return ControlFlow::Continue(());
        }
        found = Some(target.escape_ascii().to_string());
        ControlFlow::Break(())
    })?;
    Ok(found)
}

fn owner_of(locked: &LockedVolume) -> Result<crate::volume::Owner> {
    let id = &locked.id;
    let data = locked.pool.store.data(ObjectKind::Volumes, &id.name)?;
    let data = data.ok_or_else(|| Error::new(Kind::NotFound, format!("volume {id} has no data")))?;
    owner_on_disk(data.as_fd())
}
