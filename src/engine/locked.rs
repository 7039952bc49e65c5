//! Volumes whose lock is held, and reads without the lock.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::Engine;
use crate::backend::LimitSupport;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::locks::{LockGuard, Mode};
use crate::pool::object::{ObjectKey, ObjectKind};
use crate::pool::store::FoundVolume;
use crate::pool::{OpenPool, Reservation, VolumeEntry};
use crate::volume::{
    BackendState, Enforced, Labels, Limit, Limits, Name, OnDelete, Owner, Policy, SCHEMA, Timestamp, Volume,
    VolumeId,
};

/// A volume, existing or not, whose lock is held until this is dropped.
#[derive(Debug)]
pub(super) struct LockedVolume {
    pub(super) pool: Arc<OpenPool>,
    pub(super) id: VolumeId,
    _guard: LockGuard<ObjectKey>,
}

impl LockedVolume {
    /// Reads the record, or makes one for an unmanaged volume, and updates the index with the result. `None` if the volume
    /// does not exist.
    pub(super) fn load(&self) -> Result<Option<Volume>> {
        load_locked(&self.pool, &self.id)
    }

    /// Like [`LockedVolume::load`]; `NotFound` when the volume does not exist.
    pub(super) fn require(&self) -> Result<Volume> {
        self.load()?.ok_or_else(|| not_found(&self.id))
    }

    /// Sets the limits that a record asks for, and writes the record. If that fails, the limits are those of before.
    pub(super) fn change_limits(
        &self,
        before: &Volume,
        volume: &mut Volume,
        growth: Option<Reservation>,
    ) -> Result<()> {
        self.pool.check_changes()?;
        let changed = self.apply_limits(volume).and_then(|()| self.pool.rewrite(volume, growth));
        changed.inspect_err(|_| {
            let _ = self.apply_limits(&mut before.clone());
        })
    }

    /// Sets the limits that a record asks for, and notes in it what the kernel enforces.
    fn apply_limits(&self, volume: &mut Volume) -> Result<()> {
        check_limit(&self.pool, volume.policy)?;
        if self.pool.store.data(ObjectKind::Volumes, &self.id.name)?.is_none() {
            return Err(Error::new(
                Kind::Internal,
                format!("the data directory of volume {} is missing", self.id),
            ));
        }
        let object = self.pool.store.object(ObjectKind::Volumes, &self.id.name)?;
        let enforced = self.pool.backend.set_limit(object.as_fd(), &volume.backend, limits(volume));
        volume.enforced = enforced.context(|| format!("set the limits of volume {}", self.id))?;
        Ok(())
    }
}

impl Engine {
    /// Opens the pool of a volume, existing or not, and locks the volume.
    pub(super) fn lock_volume(&self, id: &VolumeId) -> Result<LockedVolume> {
        self.lock_volume_in(&self.pool(&id.pool)?, id)
    }

    /// Like [`Engine::lock_volume`], in a pool that is open already.
    pub(super) fn lock_volume_in(&self, pool: &Arc<OpenPool>, id: &VolumeId) -> Result<LockedVolume> {
        let guard = pool.store.locks().lock(ObjectKey::Object(ObjectKind::Volumes, id.name.clone()))?;
        Ok(LockedVolume { pool: Arc::clone(pool), id: id.clone(), _guard: guard })
    }

    /// Reads the record without the volume's lock. The index is updated only if the lock is free: otherwise its holder
    /// updates the index, and this record may be out of date.
    pub(super) fn peek(&self, pool: &Arc<OpenPool>, id: &VolumeId) -> Result<Option<Volume>> {
        let found = read(pool, id);
        let entry = found.as_ref().ok().map(|found| found.as_ref().map(VolumeEntry::from));
        if entry.is_some_and(|entry| pool.cached_index().volumes().get(&id.name) == entry.as_ref()) {
            return found;
        }
        let key = ObjectKey::Object(ObjectKind::Volumes, id.name.clone());
        match pool.store.locks().try_lock(key, Mode::Exclusive)? {
            Some(_guard) => load_locked(pool, id),
            None => found,
        }
    }

    /// Like [`Engine::peek`]; `NotFound` when the volume does not exist.
    pub(super) fn require_without_lock(&self, pool: &Arc<OpenPool>, id: &VolumeId) -> Result<Volume> {
        self.peek(pool, id)?.ok_or_else(|| not_found(id))
    }
}

/// Reads the record of a volume whose lock the caller holds, and updates the index with the result. Other errors than a
/// record that cannot be read say nothing about the volume.
pub(super) fn load_locked(pool: &OpenPool, id: &VolumeId) -> Result<Option<Volume>> {
    pool.read_into_index(
        || read(pool, id),
        |found, index| match found {
            Ok(Some(volume)) => index.put_volume(id.name.clone(), VolumeEntry::from(volume)),
            Ok(None) => index.remove_volume(&id.name),
            Err(error) if error.kind() == Kind::Unreadable => index.mark_volume_damaged(&id.name, error),
            Err(_) => {}
        },
    )
}

/// The locks that a copy holds until it ends, so that other processes neither create the same object nor delete the source.
#[derive(Debug)]
pub(super) struct CopyLocks {
    _to: LockGuard<ObjectKey>,
    _source: LockGuard<ObjectKey>,
}

impl CopyLocks {
    /// Locks the object that a copy creates, whose own lock the caller holds, and its source.
    ///
    /// # Errors
    /// `Busy` when another process creates the object or deletes the source.
    pub(super) fn acquire(
        pool: &OpenPool,
        (kind, id): (ObjectKind, &VolumeId),
        source_pool: &OpenPool,
        (source_kind, source): (ObjectKind, &VolumeId),
    ) -> Result<Self> {
        let to = ObjectKey::CopyTo(kind, id.name.clone());
        let to = pool.store.locks().try_lock(to, Mode::Exclusive)?;
        let data = ObjectKey::Data(source_kind, source.name.clone());
        let data = source_pool.store.locks().try_lock(data, Mode::Shared)?;
        let busy = |text: String| Error::new(Kind::Busy, text);
        Ok(Self {
            _to: to.ok_or_else(|| being_copied(kind, &id.name))?,
            _source: data
                .ok_or_else(|| busy(format!("{source_kind} {source} is being deleted or replaced: retry")))?,
        })
    }
}

pub(super) fn being_copied(kind: ObjectKind, name: &Name) -> Error {
    let text = format!("{kind} {name} is being created by a copy in another process: retry later");
    Error::new(Kind::Busy, text)
}

/// Refuses to create or delete an object that a copy of another process is creating. The caller holds the object's lock,
/// so no copy starts meanwhile, and knows that this process has none.
///
/// # Errors
/// `Busy` while the copy runs.
pub(super) fn ensure_no_copy_creates(pool: &OpenPool, kind: ObjectKind, name: &Name) -> Result<()> {
    match pool.store.locks().try_lock(ObjectKey::CopyTo(kind, name.clone()), Mode::Exclusive)? {
        Some(_) => Ok(()),
        None => Err(being_copied(kind, name)),
    }
}

/// Refuses a hard limit in a pool that cannot enforce it.
pub(super) fn check_limit(pool: &OpenPool, policy: Policy) -> Result<()> {
    let (what, how) = match pool.backend.capabilities().limits {
        LimitSupport::None => ("a size", pool.backend.how_to_limit()),
        LimitSupport::Bytes if policy.inodes != 0 => {
            ("a number of inodes", Some("its filesystem counts bytes only: leave out inodes"))
        }
        LimitSupport::Bytes | LimitSupport::BytesAndInodes => return Ok(()),
    };
    if policy.limit != Limit::Hard {
        return Ok(());
    }
    // While ext4 is read-only, its quotas are off.
    pool.check_accepts(pool.fs_stats()?)
        .context(|| format!("pool {} refuses new and larger volumes", pool.settings.name))?;
    let text = format!(
        "limit=hard: pool {} (backend {}) cannot enforce {what}; use limit=auto or limit=none{}",
        pool.settings.name,
        pool.backend.kind(),
        how.map(|how| format!("; {how}")).unwrap_or_default(),
    );
    Err(Error::new(Kind::Unsupported, text))
}

pub(super) fn limits(volume: &Volume) -> Limits {
    Limits { bytes: volume.size, inodes: volume.policy.inodes, mode: volume.policy.limit }
}

pub(super) fn not_found(id: &VolumeId) -> Error {
    Error::new(Kind::NotFound, format!("volume {id} does not exist"))
}

/// A record with the id of the directory that it is in. A plain name of the directory is the requested name, also after a
/// rename.
pub(super) fn as_directory(id: &VolumeId, volume: Volume) -> Volume {
    let requested_name = if id.name.is_plain() { id.name.to_string() } else { volume.requested_name };
    Volume { id: id.clone(), requested_name, ..volume }
}

/// The record of a volume, or a default one for an unmanaged volume. The id is that of the directory, not of the record:
/// the directory may be a copy of another, or the pool may have been renamed.
pub(super) fn read(pool: &OpenPool, id: &VolumeId) -> Result<Option<Volume>> {
    let found = pool.store.find_volume(&id.name)?;
    Ok(found.map(|found| match found {
        FoundVolume::Managed(volume) => as_directory(id, *volume),
        FoundVolume::Unmanaged => unmanaged(id),
    }))
}

/// The record of a volume that has `data` but no record: an administrator placed it in the pool, and orlop never deletes
/// it.
fn unmanaged(id: &VolumeId) -> Volume {
    Volume {
        schema: SCHEMA,
        uid: uuid::Uuid::nil(),
        id: id.clone(),
        requested_name: id.name.to_string(),
        size: 0,
        enforced: Enforced::No,
        backend: BackendState::default(),
        owner: Owner::default(),
        policy: Policy { on_delete: OnDelete::Retain, ..Policy::default() },
        labels: Labels::new(),
        source: None,
        copied: None,
        created: Timestamp::UNIX_EPOCH,
        last_backup: None,
        managed: false,
        ephemeral: false,
    }
}
