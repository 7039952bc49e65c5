//! Passes entries from the thread that finds them to the one that writes them, several at a time.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, SyncSender, channel, sync_channel};

use rustix::fs::Statx;

use crate::archive::Entry;
use crate::error::{Error, Kind, Result};

/// Entries that are passed at once, and how often before the sender waits.
const BATCH: usize = 64;
const WAITING: usize = 4;

/// An entry, with the data of a regular file that has not been written yet.
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) data: Data,
}

pub(super) enum Data {
    /// No data, or that of another name.
    None,
    /// The whole data of a small file.
    Read(Vec<u8>),
    /// A file that is open for reading, and its attributes before that.
    Open(OwnedFd, Box<Statx>),
}

pub(super) struct Sender {
    batch: Batch,
    to: SyncSender<Batch>,
    used: mpsc::Receiver<Batch>,
}

pub(super) struct Receiver {
    from: mpsc::Receiver<Batch>,
    used: mpsc::Sender<Batch>,
}

type Batch = Vec<Found>;

pub(super) fn queue() -> (Sender, Receiver) {
    let ((to, from), (used_to, used)) = (sync_channel(WAITING), channel());
    (Sender { batch: Vec::new(), to, used }, Receiver { from, used: used_to })
}

impl Sender {
    /// Passes an entry on. Waits while too many are underway.
    ///
    /// # Errors
    /// `Internal` when the receiver has ended, which has the cause.
    pub(super) fn send(&mut self, entry: Entry, data: Data) -> Result<()> {
        let is_open = matches!(data, Data::Open(..));
        self.batch.push(Found { entry, data });
        // Few files are open at a time.
        if self.batch.len() < BATCH && !is_open { Ok(()) } else { self.flush() }
    }

    /// Passes the last entries on. Same errors as [`Sender::send`].
    pub(super) fn flush(&mut self) -> Result<()> {
        let mut next = self.used.try_recv().unwrap_or_default();
        next.clear();
        let batch = std::mem::replace(&mut self.batch, next);
        self.to.send(batch).map_err(|_| Error::new(Kind::Internal, "the writer of the archive has ended"))
    }
}

impl Receiver {
    /// Calls `write` with each entry, until it fails or there are no more.
    pub(super) fn for_each(self, mut write: impl FnMut(&Found) -> Result<()>) -> Result<()> {
        for batch in self.from {
            batch.iter().try_for_each(&mut write)?;
            // It is freed by the thread that allocated it: the allocator would have the two wait for each other.
            let _ = self.used.send(batch);
        }
        Ok(())
    }
}
