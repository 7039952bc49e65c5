//! The first pool of a host without any settings. The commands that make a volume make it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::{print, print_error};
use crate::config::flags::Pools;
use crate::config::{self, KNOWN_POOLS};
use crate::engine::Engine;
use crate::engine::request::{PoolSettings, Tuning};
use crate::error::{Context as _, Error, Kind, Result};
use crate::options::assignment::Assigned;
use crate::volume::Limit;

/// The pool that a command makes before its volume.
pub(super) struct FirstPool(PoolSettings);

impl FirstPool {
    /// The pool that a command is to make; `None` if the host has settings, or the pool.
    pub(super) fn needed(flags: &Pools) -> Result<Option<Self>> {
        Ok(config::first_pool(flags)?.map(Self))
    }

    /// Its settings.
    pub(super) fn settings(&self) -> &PoolSettings {
        &self.0
    }

    /// The id of a volume of this name.
    pub(super) fn volume(&self, name: &str) -> String {
        format!("{}/{name}", self.0.name)
    }

    /// Refuses a volume for another pool, before the pool is made.
    pub(super) fn check(&self, assigned: &Assigned) -> Result<()> {
        match &assigned.options.pool {
            Some(other) if *other != self.0.name => {
                let text = format!("pool {other} does not exist; the only pool is {}", self.0.name);
                Err(Error::new(Kind::Invalid, text))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Prints what a dry run would do beside making the pool. What the pool can enforce is known only when it is one.
    pub(super) fn would(&self, rest: &str, assigned: &Assigned) -> Result<()> {
        let condition = match assigned.options.policy.limit {
            Limit::Hard => ", if its filesystem can enforce limit=hard",
            Limit::Auto | Limit::None => "",
        };
        print(&format!("would make {} a pool and {rest}{condition}\n", self.0.path.display()))
    }

    /// Makes the directory a pool, and says so.
    pub(super) fn make(self) -> Result<()> {
        let path = self.0.path.clone();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.context(|| format!("create {}", path.display()))?;
        let engine = Engine::open_recorded(vec![self.0], Tuning::default(), Path::new(KNOWN_POOLS))?;
        if let Some(why) = engine.pools().into_iter().find_map(|pool| pool.unavailable) {
            return Err(Error::new(Kind::Unavailable, why));
        }
        let text = format!("{} is now the pool default, since no settings name another one", path.display());
        print_error(&text);
        Ok(())
    }
}
