//! Passes entries from the thread that finds them to the one that writes them, several at a time.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, SyncSender, channel, sync_channel};

use crate::archive::Entry;
use crate::error::{Error, Kind, Result};

/// Entries that are passed at once, their bytes of names, attributes and data, and how often before the sender waits.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 512 << 10;
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
    /// A file that is open for reading.
    Open(OwnedFd),
}

impl Found {
    /// The memory that depends on the tree.
    fn bytes(&self) -> usize {
        let data = if let Data::Read(data) = &self.data { data.len() } else { 0 };
        self.entry.memory() + data
    }
}

pub(super) struct Sender {
    batch: Batch,
    bytes: usize,
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
    (Sender { batch: Vec::new(), bytes: 0, to, used }, Receiver { from, used: used_to })
}

impl Sender {
    /// Passes an entry on. Waits while too many are underway.
    ///
    /// # Errors
    /// `Internal` when the receiver has ended, which has the cause.
    pub(super) fn send(&mut self, entry: Entry, data: Data) -> Result<()> {
        let found = Found { entry, data };
        self.bytes += found.bytes();
        // Few files are open at a time.
        let is_full = matches!(found.data, Data::Open(_)) || self.bytes >= BATCH_BYTES;
        self.batch.push(found);
        if self.batch.len() < BATCH && !is_full { Ok(()) } else { self.flush() }
    }

    /// Passes the last entries on. Same errors as [`Sender::send`].
    pub(super) fn flush(&mut self) -> Result<()> {
        let mut next = self.used.try_recv().unwrap_or_default();
        next.clear();
        self.bytes = 0;
        let batch = std::mem::replace(&mut self.batch, next);
        self.to.send(batch).map_err(|_| Error::new(Kind::Internal, "the writer of the archive has ended"))
    }
}

impl Receiver {
    /// Calls `write` with each entry, until it fails or there are no more.
    pub(super) fn for_each(self, mut write: impl FnMut(&Found) -> Result<()>) -> Result<()> {
        for mut batch in self.from {
            for found in &mut batch {
                write(found)?;
                if matches!(found.data, Data::Open(_)) {
                    found.data = Data::None; // closes the file
                }
            }
            // It is freed by the thread that allocated it: the allocator would have the two wait for each other.
            let _ = self.used.send(batch);
        }
        Ok(())
    }
}
