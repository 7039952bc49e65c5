//! Names that calls of this process are creating. A name is unique across the pools of a process, and a pool's disk may
//! not respond, so uniqueness is checked in memory only.

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
    pool: PoolName,
    /// Number of claims.
    count: usize,
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
    /// `Busy` while an object of this name is being created in another pool.
    pub(super) fn claim(&self, kind: ObjectKind, id: &VolumeId) -> Result<NameClaim> {
        let key = (kind, id.name.clone());
        let mut claims = self.lock();
        let claimed =
            claims.entry(key.clone()).or_insert_with(|| Claimed { pool: id.pool.clone(), count: 0 });
        if claimed.pool != id.pool {
            let text = format!("{kind} {} is being created in pool {}: retry later", id.name, claimed.pool);
            return Err(Error::new(Kind::Busy, text));
        }
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
}
