//! News of changes in `volumes/` and `snapshots/`, by inotify(7).
//!
//! On a local filesystem, the event of a rename is in the queue before the rename returns, in whichever process. Every
//! change by orlop renames an entry of the watched directories, or changes its mode: a new object into it, a deleted one
//! out of it, and a changed record from `volumes/.<name>.<nonce>.json` into its volume. An edit inside an object's directory is not
//! reported.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::object::ObjectKind;
use super::store::{Store, parse_new_record_name};
use crate::error::{Context as _, Result};
use crate::volume::Name;

/// A watch of a pool's objects.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: OwnedFd,
    volumes: i32,
    snapshots: i32,
}

/// The objects that were added, removed or changed, each with its number of events.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) changed: BTreeMap<(ObjectKind, Name), usize>,
    /// Whether events were lost, so that anything may have changed.
    pub(super) overflow: bool,
}

impl Watch {
    /// Starts to watch. Changes before the call are not reported.
    ///
    /// # Errors
    /// `Internal` when the user has too many inotify instances or watches, or `/proc` is not mounted.
    pub(super) fn start(store: &Store) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .context(|| "create an inotify instance")?;
        let watch = |kind| add(&inotify, store.directory(kind)).context(|| format!("watch {kind}s"));
        let (volumes, snapshots) = (watch(ObjectKind::Volumes)?, watch(ObjectKind::Snapshots)?);
        Ok(Self { inotify, volumes, snapshots })
    }

    /// Takes the events from the queue. Does no I/O.
    pub(super) fn take(&self) -> News {
        let mut news = News::default();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(self.inotify.as_fd(), &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().intersects(lost()) => news.overflow = true,
                Ok(event) => {
                    let kind = if event.wd() == self.volumes {
                        Some(ObjectKind::Volumes)
                    } else {
                        (event.wd() == self.snapshots).then_some(ObjectKind::Snapshots)
                    };
                    let name = event.file_name().and_then(|name| name.to_str().ok());
                    if let (Some(kind), Some(name)) =
                        (kind, name.and_then(|name| object(name, event.events())))
                    {
                        *news.changed.entry((kind, name)).or_default() += 1;
                    }
                }
                Err(Errno::AGAIN) => return news,
                Err(Errno::INTR) => {}
                Err(_) => {
                    news.overflow = true;
                    return news;
                }
            }
        }
    }
}

/// The object that an event is about. A new record concerns its volume when it leaves `volumes/`.
fn object(entry: &str, events: ReadFlags) -> Option<Name> {
    match entry.strip_prefix('.') {
        None => entry.parse().ok(),
        Some(_) if events.contains(ReadFlags::MOVED_FROM) => {
            parse_new_record_name(entry).map(|(name, _)| name)
        }
        Some(_) => None,
    }
}

/// The queue was full, or a watched directory is gone.
fn lost() -> ReadFlags {
    ReadFlags::QUEUE_OVERFLOW | ReadFlags::IGNORED | ReadFlags::UNMOUNT
}

fn add(inotify: &OwnedFd, dir: BorrowedFd<'_>) -> Result<i32, Errno> {
    let path = format!("/proc/thread-self/fd/{}", dir.as_raw_fd());
    let entries = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
    // The mode of a directory tells that its object is deleted.
    inotify::add_watch(inotify, path, entries | WatchFlags::ATTRIB | WatchFlags::ONLYDIR)
}
