//! The last steps for each copied file: its attributes, and what the catalogue remembers of it. In the first pass a thread of its
//! own does them, while the next files are created: for small files they take as long as that.

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rustix::fs::Statx;
use rustix::process::{Resource, getrlimit};

use super::attributes::Attributes;
use super::catalogue::{Catalogue, Record};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::{TreePath, fstat};

/// The most files that are passed to the thread at once. A batch is collected, one waits and one is worked on: two descriptors
/// for each of their files are open.
const BATCH: usize = 16;
/// Where a process may have fewer open files, there is no thread.
const MIN_OPEN_FILES: u64 = 512;

/// A copied regular file that lacks its attributes.
pub(super) struct Unfinished {
    pub(super) name: CString,
    pub(super) source: OwnedFd,
    pub(super) copy: OwnedFd,
    pub(super) stat: Statx,
    pub(super) record: Record,
}

/// Files of one directory.
#[derive(Default)]
struct Batch {
    path: TreePath,
    files: Vec<Unfinished>,
}

/// The thread, and the files that were not passed to it yet.
pub(super) struct Finisher {
    batch: Batch,
    to: SyncSender<Batch>,
    /// Returns the number of attributes that the copies lack.
    thread: JoinHandle<Result<u64>>,
}

impl Finisher {
    /// Starts the thread; `None` if this process cannot have it or the files that it holds open.
    pub(super) fn start(catalogue: &Arc<Catalogue>) -> Option<Self> {
        if getrlimit(Resource::Nofile).current.is_some_and(|limit| limit < MIN_OPEN_FILES) {
            return None;
        }
        let (to, from) = sync_channel(1);
        let catalogue = Arc::clone(catalogue);
        let thread = thread::Builder::new().name("copy-attributes".to_owned());
        let thread = thread.spawn(move || finish_all(&from, &catalogue)).ok()?;
        Some(Self { batch: Batch::default(), to, thread })
    }

    /// Has a file of this directory finished.
    ///
    /// # Errors
    /// `Internal` when the thread has ended; [`Finisher::wait`] has the cause.
    pub(super) fn add(&mut self, path: &TreePath, file: Unfinished) -> Result<()> {
        if self.batch.files.len() == BATCH || self.batch.path != *path {
            self.pass_on()?;
            self.batch.path = path.clone();
        }
        self.batch.files.push(file);
        Ok(())
    }

    /// Passes the collected files to the thread. Same errors as [`Finisher::add`].
    pub(super) fn pass_on(&mut self) -> Result<()> {
        if self.batch.files.is_empty() {
            return Ok(());
        }
        let ended = |_| Error::new(Kind::Internal, "the thread that copies attributes has ended");
        self.to.send(std::mem::take(&mut self.batch)).map_err(ended)
    }

    /// Waits until all files are finished. Returns the number of attributes that they lack.
    ///
    /// # Errors
    /// The first error of the thread.
    pub(super) fn wait(mut self) -> Result<u64> {
        let passed_on = self.pass_on();
        drop(self.to);
        let panicked = |_| Error::new(Kind::Internal, "the thread that copies attributes panicked");
        let skipped = self.thread.join().map_err(panicked)??;
        passed_on.map(|()| skipped)
    }
}

fn finish_all(from: &Receiver<Batch>, catalogue: &Catalogue) -> Result<u64> {
    let mut attributes = Attributes::new();
    let mut skipped = 0;
    for Batch { path, files } in from {
        for file in files {
            let (source, copy) = (file.source.as_fd(), file.copy.as_fd());
            let finished = finish(&mut attributes, catalogue, source, copy, &file.stat, file.record);
            skipped += u64::from(finished.context(|| format!("copy {}", path.join(&file.name)))?);
        }
    }
    Ok(skipped)
}

/// Copies the attributes of an open file, and remembers what was seen of it. Returns the number of attributes that the copy lacks.
pub(super) fn finish(
    attributes: &mut Attributes,
    catalogue: &Catalogue,
    source: BorrowedFd<'_>,
    copy: BorrowedFd<'_>,
    stat: &Statx,
    record: Record,
) -> Result<u32> {
    let before = fstat(copy).context(|| "stat the new file")?;
    let skipped_xattrs = attributes.copy_to_open(source, copy, stat, &before)?;
    catalogue.put(before.stx_ino, &Record { skipped_xattrs, ..record })?;
    Ok(skipped_xattrs)
}
