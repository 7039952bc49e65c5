//! Backups: a volume or snapshot written into an archive, and a volume made from one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, FileType, Mode as FileMode, OFlags, fstatfs};
use rustix::io::Errno;
use uuid::Uuid;

use super::Engine;
use super::copy::{Copied, CopyTask, max_bytes, too_large};
use super::create::{finish_volume, merged_owner, new_record, owner_on_disk};
use super::locked::{being_copied, check_limit, ensure_no_copy_creates, limits};
use super::request::{ConsistencySpec, CreateVolume};
use super::source::{CopySource, reopen};
use crate::archive::compression::Decompressor;
use crate::archive::{Origin, Reader, Writer, shown};
use crate::backend::CopySpec;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::{Progress, do_times_tell};
use crate::fs::pack::{Packed, pack};
use crate::fs::unpack::{UnpackSpec, Unpacked, unpack};
use crate::pause::sees_host_processes;
use crate::pool::locks::{LockGuard, Mode};
use crate::pool::object::{ObjectKey, ObjectKind};
use crate::pool::store::Draft;
use crate::pool::{Committer, OpenPool};
use crate::volume::{Consistency, CopyRecord, Name, SizeRange, Source, Timestamp, Volume, VolumeId};

/// The result of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackedUp {
    /// What was written.
    pub packed: Packed,
    /// What it shows of a volume.
    pub copied: CopyRecord,
    /// Whether it was made from a copy, which is in the trash now.
    pub is_of_copy: bool,
    /// The uid of the volume; `None` for a snapshot.
    pub volume: Option<Uuid>,
    /// It has everything that was written before.
    pub began: Timestamp,
}

impl Engine {
    /// Writes a volume or snapshot into an archive. A volume in use is copied first, if the archive is to show one instant; the
    /// copy is a draft, which is removed however this ends.
    ///
    /// # Errors
    /// `NotFound`; `InUse` when the users of the volume cannot be paused; `Busy` when cancelled, or when an unused volume
    /// comes into use; `NoSpace` for the copy; otherwise the error of the failed system call or write.
    pub fn back_up<W: Write>(
        &self,
        source: &Source,
        consistency: ConsistencySpec,
        to: &mut Writer<W>,
        progress: &Progress,
    ) -> Result<BackedUp> {
        let (pool, id) = (self.pool(&source.id().pool)?, source.id());
        let kind = kind_of(source);
        let data = ObjectKey::Data(kind, id.name.clone());
        let _source =
            pool.store.locks().try_lock(data, Mode::Shared)?.ok_or_else(|| {
                Error::new(Kind::Busy, format!("{source} is being deleted or replaced: retry"))
            })?;
        let (size, volume) = match source {
            Source::Volume(_) => {
                let volume = self.require_without_lock(&pool, id)?;
                (volume.size, Some(volume.uid))
            }
            Source::Snapshot(_) => (self.require_snapshot(&pool, id)?.size, None),
        };
        let from = CopySource::new(&pool, source.clone());
        let began = Timestamp::now();
        let mut export = Export { engine: self, pool: &pool, from: &from, size, volume, began, to, progress };
        match source {
            Source::Snapshot(_) => export.directly(false, CopyRecord::unpaused(Consistency::Crash)),
            Source::Volume(_) if consistency.consistency == Consistency::None => {
                export.directly(false, CopyRecord::unpaused(Consistency::None))
            }
            Source::Volume(_) if export.is_still()? => {
                export.directly(true, CopyRecord::unpaused(Consistency::Crash))
            }
            Source::Volume(_) => export.copy(consistency),
        }
        .context(|| format!("back up {source}"))
    }

    /// Creates a volume from an archive. It exists when it is complete.
    ///
    /// # Errors
    /// `Conflict` when a volume has the name; `Unreadable` for an archive that is damaged or hostile; `OutOfRange` when it has
    /// more data than the size of the volume; otherwise as [`Engine::create`].
    pub fn create_from_archive<R: Read>(
        &self,
        request: &CreateVolume,
        from: &mut Reader<R>,
        spec: &UnpackSpec,
        progress: &Progress,
    ) -> Result<(Volume, Unpacked)> {
        let pool = self.requested_pool(request.pool.as_ref())?.get_or_open()?;
        let id = VolumeId { pool: pool.settings.name.clone(), name: Name::of(&request.name) };
        let _claim = self.claims.claim(ObjectKind::Volumes, &id)?;
        let _lock = self.lock_to_create(&pool, &id)?;
        check_limit(&pool, request.policy)?;
        let result = make_from_archive(&pool, id, request, from, spec, progress);
        pool.reaper.add(pool.store.trash().take_abandoned());
        result
    }

    /// Creates a volume from an archive of this host. Without a requested size, it has that of the volume in the archive.
    ///
    /// # Errors
    /// `Invalid` for a path that is not that of a file; otherwise as [`Engine::create_from_archive`].
    pub fn create_from_file(&self, mut request: CreateVolume, path: &Path) -> Result<Volume> {
        let shown = || shown(path.as_os_str().as_bytes());
        let mut archive = Reader::new(Decompressor::start(open_file(path).context(shown)?, || false)?);
        let origin = archive.start().context(shown)?;
        if request.size.required == 0 {
            let size = origin.map_or(0, |origin| origin.size);
            request.size = SizeRange { required: size, limit: size };
        }
        let spec = UnpackSpec::default();
        let made = self.create_from_archive(&request, &mut archive, &spec, &Progress::default());
        made.context(shown).map(|(volume, _)| volume)
    }

    /// Locks the name of a volume that does not exist, until it does.
    fn lock_to_create(&self, pool: &Arc<OpenPool>, id: &VolumeId) -> Result<LockGuard<ObjectKey>> {
        let locked = self.lock_volume_in(pool, id)?;
        ensure_no_copy_creates(pool, ObjectKind::Volumes, &id.name)?;
        if locked.load()?.is_some() {
            return Err(Error::new(Kind::Conflict, format!("volume {id} already exists: use another name")));
        }
        self.refuse_name_of_other_pool(id)?;
        pool.store.refuse_if_deleted(ObjectKind::Volumes, &id.name)?;
        let key = ObjectKey::CopyTo(ObjectKind::Volumes, id.name.clone());
        let lock = pool.store.locks().try_lock(key, Mode::Exclusive)?;
        lock.ok_or_else(|| being_copied(ObjectKind::Volumes, &id.name))
    }
}

/// Opens a file, and nothing that could block.
fn open_file(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match fs::open(path, flags, FileMode::empty()) {
        Err(Errno::NOENT | Errno::NXIO) => return Err(Error::new(Kind::Invalid, "there is no such file")),
        opened => File::from(opened.context(|| "open")?),
    };
    let stat = fs::fstat(&file).context(|| "stat")?;
    match FileType::from_raw_mode(stat.st_mode).is_file() {
        true => Ok(file),
        false => Err(Error::new(Kind::Invalid, "it is not a file")),
    }
}

fn make_from_archive<R: Read>(
    pool: &Arc<OpenPool>,
    id: VolumeId,
    request: &CreateVolume,
    from: &mut Reader<R>,
    spec: &UnpackSpec,
    progress: &Progress,
) -> Result<(Volume, Unpacked)> {
    let size = request.size.required;
    let reservation = pool.reserve(size)?;
    let mut volume = new_record(id, request, size);
    let draft = pool.draft()?;
    let unpacked = extract(pool, &draft, &mut volume, from, spec, progress)?;
    volume.owner = merged_owner(request.owner, volume.owner);
    finish_volume(pool, draft, &volume, reservation, Committer::Job)?;
    Ok((volume, unpacked))
}

/// Extracts an archive into a draft with the limits of a volume. Sets the owner of the volume if the archive has one.
pub(super) fn extract<R: Read>(
    pool: &OpenPool,
    draft: &Draft<'_>,
    volume: &mut Volume,
    from: &mut Reader<R>,
    spec: &UnpackSpec,
    progress: &Progress,
) -> Result<Unpacked> {
    volume.backend = pool.allot()?;
    volume.enforced = pool.backend.create(draft.dir(), &volume.backend, limits(volume))?;
    let data = draft.data()?;
    let spec = UnpackSpec { max_bytes: (volume.size != 0).then_some(volume.size), ..spec.clone() };
    let mut unpacked = None;
    pool.backend.within_limits(draft.dir(), &volume.backend, &mut || {
        unpacked = Some(unpack(from, data.as_fd(), draft.dir(), &spec, progress)?);
        Ok(())
    })?;
    let unpacked = unpacked.ok_or_else(|| Error::new(Kind::Internal, "nothing was extracted"))?;
    if unpacked.has_top {
        volume.owner = owner_on_disk(data.as_fd())?;
    }
    Ok(unpacked)
}

fn kind_of(source: &Source) -> ObjectKind {
    match source {
        Source::Volume(_) => ObjectKind::Volumes,
        Source::Snapshot(_) => ObjectKind::Snapshots,
    }
}

/// One backup.
struct Export<'a, W> {
    engine: &'a Engine,
    pool: &'a Arc<OpenPool>,
    from: &'a CopySource,
    size: u64,
    volume: Option<Uuid>,
    began: Timestamp,
    to: &'a mut Writer<W>,
    progress: &'a Progress,
}

impl<W: Write> Export<'_, W> {
    /// Whether nothing uses the volume, on a filesystem whose times tell of every change.
    fn is_still(&self) -> Result<bool> {
        let data = self.from.open()?;
        let filesystem = fstatfs(&data).context(|| "read the filesystem's statistics")?;
        let is_shared = self.pool.used().is_some();
        let is_seen = sees_host_processes();
        let path = self.pool.path_of_data(&self.from.source().id().name);
        Ok(is_seen
            && !is_shared
            && do_times_tell(filesystem.f_type)
            && self.engine.user_of(data.as_fd(), &path)?.is_none())
    }

    fn directly(&mut self, must_be_still: bool, copied: CopyRecord) -> Result<BackedUp> {
        let data = self.from.open()?;
        self.write_origin(copied.consistency)?;
        let packed = pack(data.as_fd(), self.to, must_be_still, self.progress)?;
        if must_be_still && !self.is_still()? {
            return Err(Error::new(Kind::Busy, "the volume came into use during the backup: retry"));
        }
        Ok(self.done(packed, copied, false))
    }

    fn copy(&mut self, consistency: ConsistencySpec) -> Result<BackedUp> {
        let draft = self.pool.draft()?;
        let result = self.copy_to(&draft, consistency);
        drop(draft);
        self.pool.reaper.add(self.pool.store.trash().take_abandoned());
        result
    }

    fn copy_to(&mut self, draft: &Draft<'_>, consistency: ConsistencySpec) -> Result<BackedUp> {
        let source = self.from.source();
        let spec = CopySpec {
            state: self.pool.allot()?,
            max_bytes: max_bytes(source, self.size),
            ..CopySpec::default()
        };
        let (pauses, pool, from, progress) = (&*self.engine.pauses, &**self.pool, self.from, self.progress);
        let task = CopyTask { pauses, pool, from, draft, spec: &spec, consistency, progress };
        let next = "expand the volume, or remove data";
        let Copied { record, .. } = task.run().map_err(|error| too_large(error, source, self.size, next))?;
        let copied = record.unwrap_or_else(|| CopyRecord::unpaused(Consistency::Crash));
        self.write_origin(copied.consistency)?;
        let data = reopen(draft.data()?.as_fd())?;
        let packed = pack(data.as_fd(), self.to, false, progress)?;
        Ok(self.done(packed, copied, true))
    }

    fn done(&self, packed: Packed, copied: CopyRecord, is_of_copy: bool) -> BackedUp {
        BackedUp { packed, copied, is_of_copy, volume: self.volume, began: self.began }
    }

    fn write_origin(&mut self, consistency: Consistency) -> Result<()> {
        self.to.origin(&Origin {
            source: self.from.source().to_string(),
            size: self.size,
            consistency: consistency.as_str().to_owned(),
            created: Timestamp::now().to_string(),
        })
    }
}
