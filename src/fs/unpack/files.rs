//! Creates small files in threads of their own, since the kernel creates them more slowly than the archive is read. All files of
//! a directory are created by one thread, in their order: a later entry of the same name replaces an earlier one.

use std::ffi::CString;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender, channel, sync_channel};
use std::thread::{self, Scope, ScopedJoinHandle};

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::{Errno, Result as ErrnoResult, pwrite};

use super::attributes::Attributes;
use super::paths::{Parents, refused};
use crate::archive::Entry;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fs::copy::Progress;
use crate::fs::stop::Stop;

const THREADS: usize = 2;
/// The most files that are passed to a thread at once.
const BATCH: usize = 64;
/// So many bytes in memory are passed on, too. With one more file, a batch has less than 450 KiB.
const BATCH_BYTES: usize = 256 << 10;
/// Batches that wait for a thread before the sender waits: all of them take less than 32 MiB.
const WAITING: usize = 32;

/// The files that are not passed to a thread yet, and the threads.
pub(super) struct Files<'scope> {
    batch: Batch,
    /// The memory of this batch.
    bytes: usize,
    threads: Vec<Worker<'scope>>,
}

/// Files of one directory.
#[derive(Default)]
struct Batch {
    path: Vec<u8>,
    dir: Option<Arc<OwnedFd>>,
    files: Vec<SmallFile>,
}

struct SmallFile {
    name: CString,
    entry: Entry,
    data: Vec<u8>,
}

struct Worker<'scope> {
    to: SyncSender<Batch>,
    /// Batches that are done. They are freed by the thread that allocated them: the allocator would have the two wait for each
    /// other.
    done: mpsc::Receiver<Batch>,
    /// Files that are not done.
    underway: usize,
    thread: ScopedJoinHandle<'scope, u64>,
}

impl<'scope> Files<'scope> {
    /// Starts the threads.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        stop: &'scope Stop<'scope>,
    ) -> Result<Self> {
        let threads = (0..THREADS).map(|_| Worker::start(scope, stop)).collect::<Result<_>>()?;
        Ok(Self { batch: Batch::default(), bytes: 0, threads })
    }

    /// Has a file created in the current directory. Waits while too many are underway.
    ///
    /// # Errors
    /// `Internal` when a thread has ended; [`Stop`] has the cause.
    pub(super) fn add(
        &mut self,
        parents: &Parents,
        name: CString,
        entry: &Entry,
        data: Vec<u8>,
    ) -> Result<()> {
        if self.batch.dir.is_none() || self.batch.path != parents.path() {
            self.pass_on()?;
            self.batch.path = parents.path().to_vec();
            self.bytes = parents.path().len();
            self.batch.dir = Some(parents.shared_dir());
        }
        self.bytes += data.len() + entry.memory();
        self.batch.files.push(SmallFile { name, entry: entry.clone(), data });
        if self.batch.files.len() < BATCH && self.bytes < BATCH_BYTES { Ok(()) } else { self.pass_on() }
    }

    /// The number of files that do not exist yet.
    pub(super) fn underway(&self) -> u64 {
        let passed_on: usize = self.threads.iter().map(|thread| thread.underway).sum();
        (passed_on + self.batch.files.len()) as u64
    }

    /// Waits until all files exist and have their attributes. Same errors as [`Files::add`].
    pub(super) fn wait(&mut self) -> Result<()> {
        self.pass_on()?;
        self.threads.iter_mut().try_for_each(Worker::wait)
    }

    /// Waits until all files exist, and ends the threads. Returns the number of attributes that the filesystem cannot store. Same
    /// errors as [`Files::add`].
    pub(super) fn finish(mut self) -> Result<u64> {
        self.wait()?;
        self.threads.into_iter().map(Worker::finish).sum()
    }

    fn pass_on(&mut self) -> Result<()> {
        if self.batch.files.is_empty() {
            return Ok(());
        }
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&self.batch.path);
        let chosen = usize::try_from(hash % THREADS as u64).unwrap_or(0);
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        self.threads[chosen].send(batch)
    }
}

fn ended() -> Error {
    Error::new(Kind::Internal, "a thread that creates files has ended")
}

impl<'scope> Worker<'scope> {
    fn start<'env>(scope: &'scope Scope<'scope, 'env>, stop: &'scope Stop<'scope>) -> Result<Self> {
        let ((to, from), (done_to, done)) = (sync_channel(WAITING), channel());
        let thread = thread::Builder::new().name("create-files".to_owned());
        let thread = thread.spawn_scoped(scope, || create_all(from, done_to, stop));
        let thread = thread.context(|| "start a thread that creates files")?;
        Ok(Self { to, done, underway: 0, thread })
    }

    fn send(&mut self, batch: Batch) -> Result<()> {
        self.underway += batch.files.len();
        self.to.send(batch).map_err(|_| ended())?;
        self.underway -= self.done.try_iter().map(|batch| batch.files.len()).sum::<usize>();
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        while self.underway > 0 {
            let done = self.done.recv().map_err(|_| ended())?;
            self.underway -= done.files.len();
        }
        Ok(())
    }

    /// Ends the thread. Returns the number of attributes that the filesystem cannot store.
    fn finish(self) -> Result<u64> {
        drop(self.to);
        self.thread.join().map_err(|_| Error::new(Kind::Internal, "a thread that creates files panicked"))
    }
}

/// Creates the files of each batch, until one fails or there are no more. Returns the number of attributes that the filesystem
/// cannot store.
fn create_all(from: mpsc::Receiver<Batch>, done: mpsc::Sender<Batch>, stop: &Stop<'_>) -> u64 {
    let mut attributes = Attributes::default();
    for mut batch in from {
        if stop.or_stop(create_batch(&batch, &mut attributes, stop)).is_none() {
            break;
        }
        // A descriptor of a directory would outlive its move.
        batch.dir = None;
        // After an error, there is no receiver.
        let _ = done.send(batch);
    }
    attributes.skipped
}

fn create_batch(batch: &Batch, attributes: &mut Attributes, stop: &Stop<'_>) -> Result<()> {
    let Some(dir) = &batch.dir else { return Ok(()) };
    batch.files.iter().try_for_each(|file| {
        stop.check()?;
        let made = create_small(dir.as_fd(), file, attributes, stop.progress());
        made.context(|| format!("extract {}", file.entry.shown()))
    })
}

fn create_small(
    dir: BorrowedFd<'_>,
    file: &SmallFile,
    attributes: &mut Attributes,
    progress: &Progress,
) -> Result<()> {
    let created = create_file(dir, &file.name)?;
    write(created.as_fd(), &file.data, 0, progress)?;
    attributes.set(created.as_fd(), &file.entry)
}

/// Creates a file. What an earlier entry of this name has created is replaced, unless it is a directory.
pub(super) fn create_file(dir: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    create(dir, name, || openat(dir, name, flags, Mode::RUSR | Mode::WUSR))
}

/// Creates a name in a directory. What an earlier entry of this name has created is replaced, unless it is a directory.
pub(super) fn create<T>(dir: BorrowedFd<'_>, name: &CString, make: impl Fn() -> ErrnoResult<T>) -> Result<T> {
    let is_directory = || refused("another entry of this name is a directory");
    match make() {
        Err(Errno::EXIST) => {
            match unlinkat(dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => return Err(is_directory()),
                removed => removed.context(|| "replace an earlier entry")?,
            }
            // Directories are created by another thread.
            make().map_err(|error| match error {
                Errno::EXIST => is_directory(),
                error => Error::of_system_call(error, "create"),
            })
        }
        made => made.context(|| "create"),
    }
}

/// Writes data at an offset.
pub(super) fn write(file: BorrowedFd<'_>, data: &[u8], mut at: u64, progress: &Progress) -> Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        let written = pwrite(file, rest, at).context(|| "write")?;
        rest = &rest[written..];
        progress.add(0, written as u64);
        at += written as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::EntryKind;

    #[test]
    fn few_files_with_large_attributes_wait_for_a_thread() {
        let dir = tempfile::tempdir().unwrap();
        let top = std::fs::File::open(dir.path()).unwrap().into();
        let parents = Parents::new(&top).unwrap();
        let entry = Entry {
            path: b"file".to_vec(),
            kind: EntryKind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
            modified: (0, 0),
            accessed: None,
            xattrs: vec![(b"foo.large".to_vec(), vec![7; 60_000])],
            size: 0,
            data: None,
        };
        let progress = Progress::default();
        let stop = Stop::new(&progress);
        thread::scope(|scope| {
            let mut files = Files::start(scope, &stop).unwrap();
            for number in 0..20 {
                let name = CString::new(number.to_string()).unwrap();
                files.add(&parents, name, &entry, Vec::new()).unwrap();
                assert!(files.bytes < BATCH_BYTES && files.batch.files.len() < 5);
            }
            // No filesystem can store them.
            assert_eq!(files.finish().unwrap(), 20);
        });
    }
}
