//! What is known about the pool of a path, so that the empty directory below an unmounted disk never becomes a new pool.
//!
//! A process remembers the pool that it has opened, and the host keeps a record of it: one file for each path. A path whose
//! record is damaged has had a pool. The record is not part of the pool, and only [`KnownPool::check_unknown`] reads it.

use std::fs::DirBuilder;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::marker::{MARKER, Marker};
use super::mount_point::is_mount_point;
use super::store::{parse, read_file, replace_file};
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{Name, PoolName, SCHEMA};

/// What this process and the host know about the pool of a path.
#[derive(Debug)]
pub(super) struct KnownPool {
    path: PathBuf,
    /// The directory of the host's records; `None`: only this process remembers.
    records: Option<PathBuf>,
    seen: Mutex<Seen>,
}

/// What this process has seen at the path.
#[derive(Debug, Default)]
struct Seen {
    uuid: Option<String>,
    mount_point: bool,
}

/// The host's record of a pool.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PoolRecord {
    schema: u32,
    path: String,
    name: PoolName,
    uuid: String,
}

impl KnownPool {
    /// The pool of a path, of which this process has seen nothing yet.
    pub(super) fn new(path: &Path, records: Option<&Path>) -> Self {
        // The same path in another spelling, such as with a slash at its end, has the same record.
        let path = path.components().collect();
        Self { path, records: records.map(Path::to_owned), seen: Mutex::default() }
    }

    /// Notes whether something is mounted at the path.
    pub(super) fn note_mount(&self) {
        if is_mount_point(&self.path).unwrap_or(false) {
            self.seen().mount_point = true;
        }
    }

    /// Refuses to make a pool at a path that has had one, or that was a mount point and is none.
    ///
    /// # Errors
    /// `Unavailable`, with the remedy; otherwise the error of the failed system call.
    pub(super) fn check_unknown(&self) -> Result<()> {
        let record = self.read()?;
        let seen = self.seen();
        let known = match (&seen.uuid, &record) {
            (Some(uuid), _) => format!("pool {uuid} was here"),
            (None, Some(Ok(record))) => format!("pool {} was here", record.uuid),
            (None, Some(Err(_))) => "a pool was here, of which the host has a damaged record".to_owned(),
            (None, None) if seen.mount_point && !is_mount_point(&self.path)? => {
                "a disk was mounted here".to_owned()
            }
            (None, None) => return Ok(()),
        };
        let forget = match self.file().filter(|_| record.is_some()) {
            Some(file) => format!("remove {} and restart orlop", file.display()),
            None => "restart orlop".to_owned(),
        };
        let text = format!(
            "the directory has no {MARKER}, although {known}: mount its disk; to make a new pool here instead, {forget}"
        );
        Err(Error::new(Kind::Unavailable, text))
    }

    /// Notes the pool that was found or made at the path. The host's record is written when it says something else.
    ///
    /// # Errors
    /// `Unavailable` when the record cannot be written.
    pub(super) fn note(&self, marker: &Marker) -> Result<()> {
        self.seen().uuid = Some(marker.uuid.clone());
        let Some((records, file)) = self.records.as_deref().zip(self.file()) else { return Ok(()) };
        let record = PoolRecord {
            schema: SCHEMA,
            path: self.path.to_string_lossy().into_owned(),
            name: marker.name.clone(),
            uuid: marker.uuid.clone(),
        };
        let found = self.read().unwrap_or_default();
        if found.and_then(Result::ok).as_ref() == Some(&record) {
            return Ok(());
        }
        let write = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(records)
                .context(|| "create its directory")?;
            let dir = open(records).context(|| "open its directory")?;
            replace_file(dir.as_fd(), &self.file_name(), &record)
        };
        write().or_else(|error| {
            // Another process may have written the same record at the same time.
            if self.read().unwrap_or_default().and_then(Result::ok).as_ref() == Some(&record) {
                return Ok(());
            }
            let text = format!("record the pool in {} (--known-pools)", file.display());
            Err(Error::caused(Kind::Unavailable, text, error))
        })
    }

    /// The host's record; `None` if there is none. The inner error says that it is damaged.
    fn read(&self) -> Result<Option<Result<PoolRecord>>> {
        let Some((records, file)) = self.records.as_deref().zip(self.file()) else { return Ok(None) };
        let dir = match open(records) {
            Err(Errno::NOENT) => return Ok(None),
            dir => dir.context(|| format!("open {}", records.display()))?,
        };
        match read_file(dir.as_fd(), self.file_name().as_str()) {
            Err(error) if error.kind() == Kind::Unreadable => Ok(Some(Err(error))),
            bytes => Ok(bytes.context(|| format!("read {}", file.display()))?.map(|bytes| parse(&bytes))),
        }
    }

    fn file(&self) -> Option<PathBuf> {
        self.records.as_ref().map(|records| records.join(self.file_name()))
    }

    /// A path may be longer than the name of a file.
    fn file_name(&self) -> String {
        format!("{}.json", Name::of(&self.path.to_string_lossy()))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(dir: &Path) -> rustix::io::Result<OwnedFd> {
    fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
