//! Writes new files to stable storage while others are extracted, so that little is left to write at the end.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use rustix::fs::syncfs;

use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::open_directory;
use crate::fs::stop::Stop;

/// So many bytes are written at once.
const AT_ONCE: u64 = 16 << 20;
/// What a new file takes besides its data.
const PER_ENTRY: u64 = 4 << 10;

pub(super) struct Flush<'scope> {
    unwritten: u64,
    to: SyncSender<()>,
    thread: ScopedJoinHandle<'scope, ()>,
}

impl<'scope> Flush<'scope> {
    /// Starts the thread that writes. `dir` is a directory of the filesystem.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        dir: BorrowedFd<'_>,
        stop: &'scope Stop<'scope>,
    ) -> Result<Self> {
        let dir = open_directory(dir, c".").context(|| "open the new directory")?;
        let (to, from) = sync_channel(1);
        let thread = Builder::new().name("flush".to_owned()).spawn_scoped(scope, move || {
            from.into_iter().map_while(|()| stop.or_stop(flush(&dir))).for_each(drop);
        });
        let thread = thread.context(|| "start the thread that syncs new files")?;
        Ok(Self { unwritten: 0, to, thread })
    }

    /// Counts an entry and its data.
    pub(super) fn add(&mut self, bytes: u64) {
        self.unwritten = self.unwritten.saturating_add(bytes).saturating_add(PER_ENTRY);
        if self.unwritten >= AT_ONCE && self.to.try_send(()).is_ok() {
            self.unwritten = 0;
        }
    }

    /// Waits until the thread has ended.
    pub(super) fn finish(self) -> Result<()> {
        drop(self.to);
        self.thread.join().map_err(|_| Error::new(Kind::Internal, "the thread that syncs new files panicked"))
    }
}

fn flush(dir: &OwnedFd) -> Result<()> {
    syncfs(dir).context(|| "sync the new files")
}
