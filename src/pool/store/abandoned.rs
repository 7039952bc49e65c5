//! What processes that have ended left behind: drafts, new records, and containers that they paused for a copy.

use std::time::{Duration, SystemTime};

use rustix::fs::{self, AtFlags};
use tracing::{info, warn};

use super::record::read_bounded;
use super::{ObjectKind, Store, parse_new_record_name};
use crate::error::{Context as _, Error, Kind, Result};
use crate::pause::{PauseRecord, thaw};
use crate::pool::dirs::{for_each_entry, for_each_name};
use crate::pool::trash::Retention;

/// The file of a draft that names what its creator has frozen.
pub(super) const PAUSE: &str = "pause.json";

/// The largest such file in bytes. A container takes about 200.
const PAUSE_MAX: u64 = 16 << 20;

/// How long a draft is kept whose record of a pause is of another boot or version: another host or process may be able to
/// thaw what it names. No pause takes that long.
const FOREIGN_PAUSE: Duration = Duration::from_secs(600);

impl Store {
    /// Removes what processes that have ended left behind: thaws what they have frozen, moves their drafts into the trash, to
    /// be removed at once, and unlinks new records that are not in place. The creator of a draft holds the lock of its name.
    /// Entries of the trash lose the mark of a deletion in place.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub fn sweep(&self) -> Result<()> {
        let mut left = Vec::new();
        for_each_entry(self.work(), |entry| left.push(entry.to_owned())).context(|| "list work/")?;
        for entry in &left {
            let name = entry.to_string_lossy();
            let Some(_abandoned) = self.try_lock_draft(&name)? else { continue };
            // Its creator may have committed it before the lock was free.
            if fs::statat(self.work(), entry.as_c_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
                && self.is_thawed(&name)
            {
                match self.trash().add(self.work(), entry.as_c_str(), "work", Retention::seconds(0)) {
                    // The reaper removes it where it is.
                    Err(error) if matches!(error.kind(), Kind::NoSpace | Kind::Unavailable) => {}
                    moved => drop(moved?),
                }
            }
        }
        self.sweep_new_records()?;
        self.unmark_buried()
    }

    fn sweep_new_records(&self) -> Result<()> {
        let volumes = self.directory(ObjectKind::Volumes);
        let mut left = Vec::new();
        for_each_name(volumes, |file| {
            left.extend(parse_new_record_name(file).map(|(_, nonce)| (file.to_owned(), nonce.to_owned())));
        })
        .context(|| "list volumes/")?;
        for (file, nonce) in &left {
            if let Some(_abandoned) = self.try_lock_draft(nonce)? {
                let _ = fs::unlinkat(volumes, file.as_str(), AtFlags::empty());
            }
        }
        Ok(())
    }

    /// The abandoned drafts that can be removed. Thaws what their creators have frozen.
    ///
    /// # Errors
    /// The error of the failed system call.
    pub(super) fn abandoned_drafts(&self) -> Result<Vec<String>> {
        let mut drafts = Vec::new();
        for_each_name(self.work(), |entry| drafts.push(entry.to_owned())).context(|| "list work/")?;
        let mut abandoned = Vec::new();
        for entry in drafts {
            if self.try_lock_draft(&entry)?.is_some_and(|_lock| self.is_thawed(&entry)) {
                abandoned.push(entry);
            }
        }
        Ok(abandoned)
    }

    /// Thaws what an abandoned draft names. The caller holds its lock. Reports whether the draft may be removed: not while
    /// something may still be frozen.
    fn is_thawed(&self, draft: &str) -> bool {
        match self.thaw_draft(draft) {
            Ok(done) => done,
            Err(error) => {
                warn!(draft, error = error.chain(), "cannot thaw what a process that has ended left frozen");
                false
            }
        }
    }

    fn thaw_draft(&self, draft: &str) -> Result<bool> {
        let path = format!("{draft}/{PAUSE}");
        let bytes = match read_bounded(self.work(), path.as_str(), PAUSE_MAX) {
            Ok(Some(bytes)) => bytes,
            // Only orlop writes it, whole or not at all.
            Ok(None) => return Ok(true),
            Err(error) if error.kind() == Kind::Unreadable => return Ok(true),
            Err(error) => return Err(error),
        };
        let record = serde_json::from_slice(&bytes).ok().filter(is_this_boot);
        let Some(record) = record else { return Ok(self.age(&path) > FOREIGN_PAUSE) };
        let thawed = thaw("/proc".as_ref(), &record)?;
        if !thawed.is_empty() {
            info!(draft, cgroups = thawed.join(", "), "thawed what a process that has ended left frozen");
        }
        Ok(true)
    }

    /// The age of a file in `work/`. A time in the future says nothing, so the file counts as old.
    fn age(&self, path: &str) -> Duration {
        let Ok(stat) = fs::statat(self.work(), path, AtFlags::SYMLINK_NOFOLLOW) else { return Duration::MAX };
        let modified = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + modified).unwrap_or(Duration::MAX)
    }
}

/// The contents of the file for a record.
///
/// # Errors
/// `InUse` when they would be larger than what is read.
pub(super) fn pause_to_bytes(record: &PauseRecord) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| Error::caused(Kind::Internal, "serialize the record of the pause", error))?;
    if bytes.len() as u64 <= PAUSE_MAX {
        return Ok(bytes);
    }
    let text =
        format!("{} containers are too many to be paused: use consistency: none", record.cgroups.len());
    Err(Error::new(Kind::InUse, text))
}

fn is_this_boot(record: &PauseRecord) -> bool {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim_end() == record.boot_id
}
