//! Shares that a frontend mounts by name: their records on this host, their users, and the end of their mounts. Neither a
//! server nor what it has is ever changed.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::described::{OwnAndOthers, refuse_while_used, separate};
use super::{Engine, NameClaim};
use crate::error::{Context as _, Error, Kind, Result};
use crate::mount::{self, MountInfo};
use crate::pool::store::{parse, read_file, replace_file};
use crate::volume::{Name, SCHEMA, Timestamp};

/// What a user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRecord {
    schema: u32,
    /// The name of the volume.
    pub name: Name,
    /// The options, as the frontend got them.
    pub options: BTreeMap<String, String>,
    /// When it was made.
    pub created: Timestamp,
}

/// A record, or why it cannot be read.
type Known = std::result::Result<ShareRecord, String>;

/// The shares of one frontend: a file for each, in a directory of this host. Only this process changes it.
#[derive(Debug)]
pub struct ShareRecords {
    dir: PathBuf,
    known: Mutex<BTreeMap<Name, Known>>,
    /// Locked while the directory is changed.
    changing: Mutex<()>,
}

impl ShareRecords {
    /// Reads the records. A damaged one is known by its name. The directory may be missing.
    ///
    /// # Errors
    /// `Unavailable` when the directory cannot be read.
    pub fn open(dir: PathBuf) -> Result<Self> {
        let known = read_all(&dir).map_err(|error| {
            let text = format!("read the shares in {} (--docker-shares)", dir.display());
            Error::caused(Kind::Unavailable, text, error)
        })?;
        Ok(Self { dir, known: Mutex::new(known), changing: Mutex::default() })
    }

    /// The names of the shares.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        self.known().keys().cloned().collect()
    }

    /// The record of a share; `None` if there is no share of this name.
    ///
    /// # Errors
    /// `Unreadable` when the record is damaged.
    pub fn get(&self, name: &Name) -> Result<Option<ShareRecord>> {
        match self.known().get(name) {
            None => Ok(None),
            Some(Ok(record)) => Ok(Some(record.clone())),
            Some(Err(reason)) => {
                let file = self.dir.join(file_name(name));
                let text = format!(
                    "the record {} of share {name} cannot be read: {reason}: remove the volume and make it again",
                    file.display()
                );
                Err(Error::new(Kind::Unreadable, text))
            }
        }
    }

    /// Records a share. Succeeds if it is recorded with the same options.
    ///
    /// # Errors
    /// `Conflict` when it is recorded with others; `Unreadable` when its record is damaged; `Unavailable` when it cannot be
    /// written.
    pub fn add(&self, name: &Name, options: &BTreeMap<String, String>) -> Result<()> {
        let _changing = self.lock_changes();
        if let Some(found) = self.get(name)? {
            if found.options == *options {
                return Ok(());
            }
            let text =
                format!("share {name} exists with other options: use another name, or remove it first");
            return Err(Error::new(Kind::Conflict, text));
        }
        let record = ShareRecord {
            schema: SCHEMA,
            name: name.clone(),
            options: options.clone(),
            created: Timestamp::now(),
        };
        let write = || {
            let created = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
            created.context(|| "create the directory")?;
            replace_file(open(&self.dir).context(|| "open the directory")?.as_fd(), &file_name(name), &record)
        };
        write().map_err(|error| self.cannot_write(name, error))?;
        self.known().insert(name.clone(), Ok(record));
        Ok(())
    }

    /// Forgets a share. Succeeds if it is not recorded.
    ///
    /// # Errors
    /// `Unavailable` when the record cannot be removed.
    pub fn remove(&self, name: &Name) -> Result<()> {
        let _changing = self.lock_changes();
        let remove = || {
            let dir = match open(&self.dir) {
                Err(Errno::NOENT) => return Ok(()),
                dir => dir.context(|| "open the directory")?,
            };
            match rustix::fs::unlinkat(&dir, file_name(name), AtFlags::empty()) {
                Err(Errno::NOENT) => Ok(()),
                removed => removed.and_then(|()| rustix::fs::fsync(&dir)).context(|| "remove the file"),
            }
        };
        remove().map_err(|error| self.cannot_write(name, error))?;
        self.known().remove(name);
        Ok(())
    }

    fn cannot_write(&self, name: &Name, error: Error) -> Error {
        let text = format!("change the record of share {name} in {} (--docker-shares)", self.dir.display());
        Error::caused(Kind::Unavailable, text, error)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Name, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_changes(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_all(dir: &Path) -> Result<BTreeMap<Name, Known>> {
    let opened = match open(dir) {
        Err(Errno::NOENT) => return Ok(BTreeMap::new()),
        opened => opened.context(|| "open")?,
    };
    let mut known = BTreeMap::new();
    for entry in std::fs::read_dir(dir).context(|| "list")? {
        let file = entry.context(|| "list")?.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(".json")?.parse::<Name>().ok());
        let (Some(file), Some(name)) = (file.to_str(), name) else { continue };
        let record = match read_file(&opened, file) {
            Ok(None) => continue,
            Ok(Some(bytes)) => parse::<ShareRecord>(&bytes),
            Err(error) => Err(error),
        };
        known.insert(name, record.map_err(|error| error.chain()));
    }
    Ok(known)
}

fn file_name(name: &Name) -> String {
    format!("{name}.json")
}

fn open(dir: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Where a share is mounted, and who uses it.
#[derive(Debug, Default)]
pub struct MountedShare {
    /// The targets of the frontend.
    pub targets: Vec<PathBuf>,
    /// The users on this host, as text, apart from mounts in this mount namespace.
    pub users: Vec<String>,
}

impl Engine {
    /// Claims the name of a share that is being created.
    ///
    /// # Errors
    /// `Busy` while a volume of this name is being created.
    pub fn claim_share_name(&self, name: &Name) -> Result<NameClaim> {
        self.claims.claim_share(name)
    }

    /// Describes the mounts of a share, whose targets are the entries of a directory. Does not contact its server.
    ///
    /// # Errors
    /// `Internal` when the mounts or the processes cannot be listed.
    pub fn describe_share(&self, targets: &Path) -> Result<MountedShare> {
        let mounts = mounts_in(targets)?;
        let OwnAndOthers { own, others } = self.users_of_share(&mounts, targets)?;
        Ok(MountedShare { targets: own, users: others.iter().map(ToString::to_string).collect() })
    }

    /// Unmounts a share from the entries of a directory, and removes these, unless a container uses the share. Other mounts of
    /// the same directory of the server in this mount namespace are not of this share. Does not contact its server.
    ///
    /// # Errors
    /// `InUse`, naming the container; `Busy` when the server does not respond and it is still mounted after some seconds.
    pub fn withdraw_share(&self, name: &Name, targets: &Path) -> Result<()> {
        let mounts = mounts_in(targets)?;
        refuse_while_used(name, &self.users_of_share(&mounts, targets)?.others)?;
        for found in mounts {
            let _target = self.lock_target(&found.target)?;
            while mount::mounted_at(&found.target)?.is_some() {
                mount::detach_share(&found.target)?;
            }
            mount::remove_target(&found.target)?;
        }
        Ok(())
    }

    fn users_of_share(&self, mounts: &[MountInfo], targets: &Path) -> Result<OwnAndOthers> {
        let users = self.users.of_mounts(mounts)?;
        let mut separated = separate(users, targets);
        separated.others.retain(|user| user.pid.is_some());
        Ok(separated)
    }
}

/// The mounts on the entries of a directory, which may be missing.
fn mounts_in(dir: &Path) -> Result<Vec<MountInfo>> {
    let what = || format!("list {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(what)?,
    };
    let mut mounts = Vec::new();
    for entry in entries {
        mounts.extend(mount::mounted_at(&entry.context(what)?.path())?);
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("o".to_owned(), text.to_owned())])
    }

    #[test]
    fn shares_are_known_after_a_restart_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/orlop");
        let (a, b): (Name, Name) = ("a.json".parse().unwrap(), "b".parse().unwrap());
        let records = ShareRecords::open(path.clone()).unwrap();
        assert!(records.names().is_empty() && !path.exists());
        records.add(&a, &options("x")).unwrap();
        records.add(&a, &options("x")).unwrap();
        assert_eq!(records.add(&a, &options("y")).unwrap_err().kind(), Kind::Conflict);
        records.add(&b, &options("y")).unwrap();
        records.remove(&b).unwrap();
        records.remove(&b).unwrap();
        let made = records.get(&a).unwrap();
        let records = ShareRecords::open(path).unwrap();
        assert_eq!((records.names(), records.get(&a).unwrap()), (vec![a], made));
        assert_eq!(records.get(&b).unwrap(), None);
    }

    #[test]
    fn a_damaged_record_affects_its_own_share_only() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad): (Name, Name) = ("good".parse().unwrap(), "bad".parse().unwrap());
        ShareRecords::open(dir.path().to_owned()).unwrap().add(&good, &options("x")).unwrap();
        std::fs::write(dir.path().join("bad.json"), "{").unwrap();
        std::fs::write(dir.path().join("other.json.new"), "{").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link.json")).unwrap();
        let records = ShareRecords::open(dir.path().to_owned()).unwrap();
        assert_eq!(records.names(), ["bad", "good", "link"].map(|name| name.parse().unwrap()));
        assert!(records.get(&good).unwrap().is_some());
        let error = records.get(&bad).unwrap_err();
        assert_eq!(error.kind(), Kind::Unreadable);
        assert!(error.chain().contains("bad.json"), "{}", error.chain());
        assert_eq!(records.add(&bad, &options("x")).unwrap_err().kind(), Kind::Unreadable);
        records.remove(&bad).unwrap();
        records.add(&bad, &options("x")).unwrap();
    }
}
