//! The names of the volumes, as each pool last listed them. An engine takes any error of `Get` to mean that a volume does
//! not exist, and forgets its labels. So a volume of a pool that does not respond must still be known.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::volume::{Name, PoolName, VolumeId};

/// The pool of each known name.
#[derive(Debug, Default)]
pub(super) struct Catalog(Mutex<BTreeMap<Name, PoolName>>);

impl Catalog {
    /// The volume of this name.
    pub(super) fn find(&self, name: &Name) -> Option<VolumeId> {
        let pool = self.lock().get(name).cloned()?;
        Some(VolumeId { pool, name: name.clone() })
    }

    /// All names in their order, with their pools.
    pub(super) fn names(&self) -> Vec<Name> {
        self.lock().keys().cloned().collect()
    }

    /// Notes a volume that was created or found.
    pub(super) fn add(&self, id: &VolumeId) {
        self.lock().insert(id.name.clone(), id.pool.clone());
    }

    /// Forgets a volume that does not exist any more.
    pub(super) fn remove(&self, id: &VolumeId) {
        let mut names = self.lock();
        if names.get(&id.name) == Some(&id.pool) {
            names.remove(&id.name);
        }
    }

    /// Replaces the names of a pool by those that it has just listed.
    pub(super) fn replace(&self, pool: &PoolName, listed: Vec<Name>) {
        let mut names = self.lock();
        names.retain(|_, of| of != pool);
        for name in listed {
            names.entry(name).or_insert_with(|| pool.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, PoolName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_replaces_the_names_of_its_pool_only() {
        let (catalog, p, q) = (Catalog::default(), "p".parse().unwrap(), "q".parse().unwrap());
        let names = |text: &str| text.split(' ').map(|name| name.parse().unwrap()).collect::<Vec<Name>>();
        catalog.replace(&p, names("a b"));
        catalog.replace(&q, names("c"));
        catalog.replace(&p, names("b d"));
        assert_eq!(catalog.names(), names("b c d"));
        catalog.remove(&"p/c".parse().unwrap());
        assert_eq!(catalog.find(&"c".parse().unwrap()), Some("q/c".parse().unwrap()), "of another pool");
        catalog.remove(&"q/c".parse().unwrap());
        catalog.add(&"q/e".parse().unwrap());
        assert_eq!(catalog.names(), names("b d e"));
    }
}
