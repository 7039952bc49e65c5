//! Names that calls of this process are creating. A name is unique across the pools of a process, and the shares that a
//! frontend mounts by name. A pool's disk may not respond, so uniqueness is checked in memory only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::pool::object::ObjectKind;
use crate::volume::{Name, PoolName, VolumeId};

/// The claimed names.
#[derive(Debug, Clone, Default)]
pub(super) struct NameClaims {
    claims: Arc<Mutex<HashMap<(ObjectKind, Name), Claimed>>>,
}

#[derive(Debug)]
struct Claimed {
    by: Claimant,
    /// Number of claims.
    count: usize,
}

/// What a name is claimed for.
#[derive(Debug, PartialEq, Eq)]
enum Claimant {
    /// An object of this pool.
    Pool(ObjectKind, PoolName),
    /// A share that a frontend mounts by name.
    Share,
}

impl Claimant {
    fn being_created(&self, name: &Name) -> String {
        match self {
            Self::Pool(kind, pool) => format!("{kind} {name} is being created in pool {pool}"),
            Self::Share => format!("share {name} is being created"),
        }
    }
}

/// A claimed name, released on drop.
#[derive(Debug)]
pub struct NameClaim {
    claims: NameClaims,
    key: (ObjectKind, Name),
}

impl NameClaims {
    /// Claims the name of an object that may be created. Several calls may claim the same object.
    ///
    /// # Errors
    /// `Busy` while an object of this name is being created in another pool, or a share of this name.
    pub(super) fn claim(&self, kind: ObjectKind, id: &VolumeId) -> Result<NameClaim> {
        self.claim_for((kind, id.name.clone()), Claimant::Pool(kind, id.pool.clone()))
    }

    /// Claims the name of a share that may be created. Such a name is that of a volume.
    ///
    /// # Errors
    /// `Busy` while a volume of this name is being created.
    pub(super) fn claim_share(&self, name: &Name) -> Result<NameClaim> {
        self.claim_for((ObjectKind::Volumes, name.clone()), Claimant::Share)
    }

    fn claim_for(&self, key: (ObjectKind, Name), by: Claimant) -> Result<NameClaim> {
        let mut claims = self.lock();
        if let Some(claimed) = claims.get(&key).filter(|claimed| claimed.by != by) {
            let text = format!("{}: retry later", claimed.by.being_created(&key.1));
            return Err(Error::new(Kind::Busy, text));
        }
        let claimed = claims.entry(key.clone()).or_insert(Claimed { by, count: 0 });
        claimed.count += 1;
        drop(claims);
        Ok(NameClaim { claims: self.clone(), key })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ObjectKind, Name), Claimed>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NameClaim {
    fn drop(&mut self) {
        let mut claims = self.claims.lock();
        if let Some(claimed) = claims.get_mut(&self.key) {
            claimed.count -= 1;
            if claimed.count == 0 {
                claims.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_claimed_in_one_pool_at_a_time() {
        let claims = NameClaims::default();
        let claim = |id: &str| claims.claim(ObjectKind::Volumes, &id.parse().unwrap());
        let (first, second) = (claim("a/v").unwrap(), claim("a/v").unwrap());
        assert_eq!(claim("b/v").unwrap_err().kind(), Kind::Busy);
        claim("b/w").unwrap();
        drop(first);
        assert_eq!(claim("b/v").unwrap_err().kind(), Kind::Busy);
        drop(second);
        claim("b/v").unwrap();
    }

    #[test]
    fn a_name_is_claimed_for_a_volume_or_a_share() {
        let claims = NameClaims::default();
        let volume = || claims.claim(ObjectKind::Volumes, &"a/v".parse().unwrap());
        let share = || claims.claim_share(&"v".parse().unwrap());
        let claimed = (share().unwrap(), share().unwrap());
        let error = volume().unwrap_err();
        assert_eq!(
            (error.kind(), error.chain().as_str()),
            (Kind::Busy, "share v is being created: retry later")
        );
        claims.claim(ObjectKind::Snapshots, &"a/v".parse().unwrap()).unwrap();
        drop(claimed);
        let _volume = volume().unwrap();
        assert_eq!(share().unwrap_err().kind(), Kind::Busy);
    }
}
