//! Keeps the index up to date with the pool's directories, which other processes and administrators change, too.
//!
//! The events of a [`Watch`] name the objects that changed, and these are read again before the index is used. Everything
//! is read again when events were lost, when there is no watch, and in the background when the last time was a minute ago,
//! since an edit of a record in place causes no event. Where other hosts use the pool, the file of [`Generation`] takes the
//! place of the watch.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::OpenPool;
use super::generation::{Changes, Generation};
use super::index::{Index, read_snapshot, read_volume};
use super::medium::Medium;
use super::object::ObjectKind;
use super::store::Store;
use super::watch::Watch;
use crate::error::Result;
use crate::volume::Name;

/// Age at which everything is read again.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Age at which everything is read again for a status, if there is no watch.
const STATUS_AGE: Duration = Duration::from_secs(10);

/// Number of objects that a refresh in the background reads without a pause for other threads.
const CHUNK: usize = 64;

/// The index of a pool, and what is known about its age.
#[derive(Debug, Default)]
pub(super) struct IndexCache {
    index: Mutex<Index>,
    news: Mutex<NewsState>,
}

/// Locked while the index is brought up to date, which reads the disk. The index itself is never locked during I/O.
#[derive(Debug, Default)]
pub(super) struct NewsState {
    watch: Option<Watch>,
    generation: Generation,
    /// Objects that have to be read again.
    stale: BTreeSet<(ObjectKind, Name)>,
    /// Time at which everything was read; `None`: never.
    read_at: Option<Instant>,
    /// Whether a thread reads everything again.
    refreshing: bool,
}

impl IndexCache {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn news(&self) -> MutexGuard<'_, NewsState> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NewsState {
    /// Applies all changes until now to the index.
    pub(super) fn catch_up(&mut self, store: &Store, cache: &IndexCache) -> Result<()> {
        match store.medium() {
            Medium::Local => self.take_events(),
            Medium::Shared => {
                let changes = self.generation.take(store.root())?;
                self.note(changes);
            }
        }
        if !self.is_current(store.medium()) {
            return self.read_all(store, cache);
        }
        for (kind, name) in std::mem::take(&mut self.stale) {
            self.read_again(store, cache, kind, name);
        }
        Ok(())
    }

    /// Announces a rename that follows to the other hosts. The caller holds the commit lock.
    pub(super) fn announce(&mut self, store: &Store, kind: ObjectKind, names: &[&Name]) -> Result<()> {
        if store.medium() == Medium::Shared {
            let changes = self.generation.announce(store.root(), kind, names)?;
            self.note(changes);
        }
        Ok(())
    }

    /// Has an object read again at the next use of the index.
    pub(super) fn read_later(&mut self, kind: ObjectKind, name: &Name) {
        self.stale.insert((kind, name.clone()));
    }

    fn note(&mut self, changes: Changes) {
        match changes {
            Changes::Of(changed) => self.stale.extend(changed),
            Changes::Anything => self.read_at = None,
        }
    }

    /// Whether the index is current but for the stale objects.
    fn is_current(&self, medium: Medium) -> bool {
        match medium {
            Medium::Local => self.watch.is_some(),
            Medium::Shared => self.read_at.is_some(),
        }
    }

    fn take_events(&mut self) {
        if let Some(watch) = &self.watch {
            let news = watch.take();
            self.stale.extend(news.changed.into_keys());
            if news.overflow {
                self.watch = None;
            }
        }
    }

    fn read_all(&mut self, store: &Store, cache: &IndexCache) -> Result<()> {
        // Watch first: a change during the reading is then in the queue. Without a watch, everything is read at each use.
        let is_local = store.medium() == Medium::Local;
        let watch = is_local.then(|| Watch::start(store).ok()).flatten();
        let (index, failed) = Index::read(store)?;
        cache.index().replace(index);
        self.watch = watch;
        self.stale = failed.into_iter().map(|name| (ObjectKind::Volumes, name)).collect();
        self.read_at = Some(Instant::now());
        Ok(())
    }

    fn read_again(&mut self, store: &Store, cache: &IndexCache, kind: ObjectKind, name: Name) {
        let exists = match kind {
            ObjectKind::Volumes => read_volume(store, &name).map(|entry| {
                let exists = entry.is_some();
                cache.index().update_volume(name.clone(), entry);
                exists
            }),
            ObjectKind::Snapshots => read_snapshot(store, &name).map(|entry| {
                let exists = entry.is_some();
                cache.index().update_snapshot(name.clone(), entry);
                exists
            }),
        };
        // A failed call says nothing about the object, and a directory without data may be getting it now.
        let unfinished = match exists {
            Ok(exists) => !exists && store.object(kind, &name).is_ok(),
            Err(_) => true,
        };
        if unfinished {
            self.stale.insert((kind, name));
        }
    }

    /// Drops the event of a rename that this process has just made, since the caller updates the index itself. With more
    /// than one event for the object, it was changed by others, too, and is read again.
    pub(super) fn skip_own(&mut self, kind: ObjectKind, name: &Name) {
        let own = (kind, name.clone());
        self.stale.remove(&own);
        let Some(watch) = &self.watch else { return };
        let mut news = watch.take();
        if news.changed.get(&own) == Some(&1) {
            news.changed.remove(&own);
        }
        self.stale.extend(news.changed.into_keys());
        if news.overflow {
            self.watch = None;
        }
    }

    fn is_old(&self, medium: Medium) -> bool {
        self.is_current(medium)
            && !self.refreshing
            && self.read_at.is_some_and(|time| time.elapsed() >= MAX_AGE)
    }
}

impl OpenPool {
    /// Brings the index up to date and locks it. Callers hold the guard briefly and do no I/O with it.
    ///
    /// # Errors
    /// The error of the failed system call when the objects cannot be listed.
    pub fn index(self: &Arc<Self>) -> Result<MutexGuard<'_, Index>> {
        let mut news = self.cache.news();
        news.catch_up(&self.store, &self.cache)?;
        if news.is_old(self.medium) {
            news.refreshing = self.start_refresh();
        }
        drop(news);
        Ok(self.cached_index())
    }

    /// Like [`OpenPool::index`], for a status that is read often: without a watch, everything is read in the background, and
    /// the index is some seconds old.
    ///
    /// # Errors
    /// Same as [`OpenPool::index`].
    pub fn recent_index(self: &Arc<Self>) -> Result<MutexGuard<'_, Index>> {
        let mut news = self.cache.news();
        let Some(age) = news.read_at.filter(|_| !news.is_current(self.medium)).map(|time| time.elapsed())
        else {
            drop(news);
            return self.index();
        };
        if age >= STATUS_AGE && !news.refreshing {
            news.refreshing = self.start_refresh();
        }
        drop(news);
        Ok(self.cached_index())
    }

    /// Locks the index as it was when it was last used. Does no I/O.
    pub fn cached_index(&self) -> MutexGuard<'_, Index> {
        self.cache.index()
    }

    fn start_refresh(self: &Arc<Self>) -> bool {
        let pool = Arc::clone(self);
        let thread = thread::Builder::new().name("refresh".to_owned());
        thread.spawn(move || pool.refresh()).is_ok()
    }

    /// Reads every object again. Other threads use the index meanwhile.
    fn refresh(&self) {
        for kind in [ObjectKind::Volumes, ObjectKind::Snapshots] {
            let names: Vec<Name> = self.store.names(kind).unwrap_or_default();
            let known: Vec<Name> = match kind {
                ObjectKind::Volumes => self.cached_index().volumes().keys().cloned().collect(),
                ObjectKind::Snapshots => self.cached_index().snapshots().keys().cloned().collect(),
            };
            let all: Vec<Name> =
                names.into_iter().chain(known).collect::<BTreeSet<_>>().into_iter().collect();
            for chunk in all.chunks(CHUNK) {
                let mut news = self.cache.news();
                for name in chunk {
                    news.read_again(&self.store, &self.cache, kind, name.clone());
                }
                drop(news);
                // Give a waiting thread a chance: the mutex is not fair.
                thread::yield_now();
            }
        }
        let mut news = self.cache.news();
        // It is `None` if changes were missed meanwhile: then everything is read again.
        news.read_at = news.read_at.map(|_| Instant::now());
        news.refreshing = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Pool, PoolSettings, Purpose};

    /// The record of a volume of this size, as another version of orlop or an administrator writes it.
    fn record(size: u64) -> String {
        let owner = r#""owner": {"uid": 0, "gid": 0, "mode": "0700"}"#;
        let policy = r#""policy": {"onDelete": "delete", "trashFor": 0, "limit": "auto"}"#;
        format!(
            r#"{{"schema": 1, "uid": "{}", "id": "p/a", "requestedName": "a", "size": {size}, {owner}, {policy},
            "labels": {{}}, "created": "2026-01-02T03:04:05Z", "managed": true}}"#,
            uuid::Uuid::nil()
        )
    }

    #[test]
    fn a_record_that_was_edited_in_place_counts_after_the_next_refresh() {
        let dir = tempfile::tempdir().unwrap();
        let settings = PoolSettings::new("p".parse().unwrap(), dir.path().to_owned());
        let pool = Pool::new(settings, Purpose::Serve, Duration::ZERO, Duration::ZERO);
        let open = pool.get_or_open().unwrap();
        std::fs::create_dir_all(dir.path().join("volumes/a/data")).unwrap();
        let path = dir.path().join("volumes/a/volume.json");
        std::fs::write(&path, record(1)).unwrap();
        assert_eq!(open.index().unwrap().sum_of_sizes(), 1);
        std::fs::write(&path, record(5)).unwrap();
        assert_eq!(open.index().unwrap().sum_of_sizes(), 1, "an edit in place makes no event");
        open.cache.news().read_at = Instant::now().checked_sub(MAX_AGE);
        // The index is used as it is, and everything is read again in the background.
        drop(open.index().unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while open.index().unwrap().sum_of_sizes() != 5 {
            assert!(Instant::now() < deadline, "the refresh finds the edit");
            thread::yield_now();
        }
    }
}
