//! Syncs new files while others are extracted, so that little is left to sync at the end.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use rustix::fs::syncfs;

use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::open_directory;
use crate::fs::stop::Stop;

/// So many bytes are synced at once: each sync also writes what others have changed on the filesystem.
const SYNC_AFTER: u64 = 16 << 20;

pub(super) struct EarlySync<'scope> {
    /// Bytes since the last sync was begun.
    unsynced: u64,
    requests: SyncSender<()>,
    thread: ScopedJoinHandle<'scope, ()>,
}

impl<'scope> EarlySync<'scope> {
    /// Starts the thread that syncs. `dir` is a directory of the filesystem.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        dir: BorrowedFd<'_>,
        stop: &'scope Stop<'scope>,
    ) -> Result<Self> {
        let dir = open_directory(dir, c".").context(|| "open the new directory")?;
        // Without a buffer, no request is left when the restore has ended.
        let (requests, received) = sync_channel(0);
        let thread = Builder::new().name("sync".to_owned()).spawn_scoped(scope, move || {
            for () in received {
                if stop.or_stop(sync(&dir)).is_none() {
                    break;
                }
            }
        });
        let thread = thread.context(|| "start the thread that syncs new files")?;
        Ok(Self { unsynced: 0, requests, thread })
    }

    /// Counts bytes of new files, and has them synced if they are many and no sync is underway.
    pub(super) fn count(&mut self, bytes: u64) {
        self.unsynced = self.unsynced.saturating_add(bytes);
        if self.unsynced >= SYNC_AFTER && self.requests.try_send(()).is_ok() {
            self.unsynced = 0;
        }
    }

    /// Ends the thread, when a sync that is underway has ended. Its error is that of [`Stop`].
    pub(super) fn finish(self) -> Result<()> {
        drop(self.requests);
        self.thread.join().map_err(|_| Error::new(Kind::Internal, "the thread that syncs new files panicked"))
    }
}

fn sync(dir: &OwnedFd) -> Result<()> {
    syncfs(dir).context(|| "sync the new files")
}
