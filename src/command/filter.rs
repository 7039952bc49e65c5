//! The filters of listings, as Docker writes them: `dangling=true`, `driver=orlop`, `label=KEY`,
//! `name=PART`, `pool=NAME`.

use super::template::DRIVER;
use crate::error::{Error, Kind, Result};
use crate::volume::{PoolName, Volume, VolumeId, shorten};

/// Which volumes a command is about. Every label must match, and one of the drivers, of the names and of the pools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters {
    /// Whether nothing uses the volume; `None`: both.
    pub dangling: Option<bool>,
    labels: Vec<(String, Option<String>)>,
    drivers: Vec<String>,
    names: Vec<String>,
    pools: Vec<PoolName>,
}

impl Filters {
    /// Parses filters. `known` lists those that the command has.
    ///
    /// # Errors
    /// `Invalid`, which names the filter.
    pub fn parse(filters: &[String], known: &[&str]) -> Result<Self> {
        let mut parsed = Self::default();
        for filter in filters {
            let unknown = || {
                let text = format!("filter {:?}: the filters are {}", shorten(filter), known.join(", "));
                Error::new(Kind::Invalid, text)
            };
            let (key, value) = filter.split_once('=').ok_or_else(unknown)?;
            match key {
                _ if !known.contains(&key) => return Err(unknown()),
                "dangling" => parsed.dangling = Some(parse_bool(value)?),
                "label" => {
                    let (key, value) =
                        value.split_once('=').map_or((value, None), |(key, value)| (key, Some(value)));
                    parsed.labels.push((key.to_owned(), value.map(str::to_owned)));
                }
                "driver" => parsed.drivers.push(value.to_owned()),
                "name" => parsed.names.push(value.to_owned()),
                "pool" => parsed.pools.push(value.parse()?),
                _ => return Err(unknown()),
            }
        }
        Ok(parsed)
    }

    /// The pools whose volumes are wanted; none: those of all pools.
    #[must_use]
    pub fn pools(&self) -> &[PoolName] {
        &self.pools
    }

    /// Whether a volume is wanted, but for its users. The labels of a volume whose record cannot be read are unknown.
    #[must_use]
    pub fn admit(&self, id: &VolumeId, volume: Option<&Volume>) -> bool {
        let has_label = |(key, value): &(String, Option<String>)| {
            let found = volume.and_then(|volume| volume.labels.get(key));
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        self.labels.iter().all(has_label)
            && (self.drivers.is_empty() || self.drivers.iter().any(|driver| driver == DRIVER))
            && (self.names.is_empty() || self.names.iter().any(|part| id.name.as_str().contains(part)))
            && (self.pools.is_empty() || self.pools.contains(&id.pool))
    }
}

fn parse_bool(text: &str) -> Result<bool> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => {
            let text = format!("filter dangling: {:?} is neither true nor false", shorten(text));
            Err(Error::new(Kind::Invalid, text))
        }
    }
}
