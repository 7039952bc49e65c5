//! Whether a copy shows one instant of its source.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

/// What a copy shows of a volume that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// One instant, as after a power failure. The containers that use the volume are paused for the last part of the copy.
    #[default]
    Crash,
    /// Each file at another moment.
    None,
}

impl Consistency {
    /// The name in parameters, records and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::None => "none",
        }
    }
}

/// What a snapshot may cost, in bytes that are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotCost {
    /// Any number: all bytes, where the filesystem cannot share blocks.
    #[default]
    Any,
    /// None: the snapshot shares blocks with its volume.
    Cheap,
}

/// The most bytes of the names of containers in a record, since records have a bound.
const MAX_NAMES: usize = 16 << 10;

/// How consistent a copy was made: a part of the records of snapshots and clones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyRecord {
    /// What the copy shows.
    pub consistency: Consistency,
    /// How long the containers were paused, in milliseconds, rounded up; 0: nothing was paused.
    #[serde(default)]
    pub pause_ms: u64,
    /// The containers that were paused. If there are very many, the last entry states how many more there were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paused: Vec<String>,
}

impl CopyRecord {
    /// The record of a copy for which nothing was paused.
    #[must_use]
    pub fn unpaused(consistency: Consistency) -> Self {
        Self { consistency, pause_ms: 0, paused: Vec::new() }
    }

    /// The record of a copy whose source was paused.
    #[must_use]
    pub fn paused(pause: Duration, mut paused: Vec<String>) -> Self {
        let pause_ms = u64::try_from(pause.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        let mut bytes = 0;
        let fits = |name: &&String| {
            bytes += name.len();
            bytes <= MAX_NAMES
        };
        let kept = paused.iter().take_while(fits).count();
        if kept < paused.len() {
            let more = format!("{} more", paused.len() - kept);
            paused.truncate(kept);
            paused.push(more);
        }
        Self { consistency: Consistency::Crash, pause_ms, paused }
    }

    /// Reads the fields of a snapshot. Earlier versions wrote none, and their copies were not consistent.
    pub(super) fn of_snapshot<'d, D: Deserializer<'d>>(from: D) -> Result<Self, D::Error> {
        let found = Option::<Self>::deserialize(from)?;
        Ok(found.unwrap_or_else(|| Self::unpaused(Consistency::None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_rounded_up_to_milliseconds() {
        let paused = |micros| CopyRecord::paused(Duration::from_micros(micros), Vec::new()).pause_ms;
        assert_eq!([1, 1000, 1001].map(paused), [1, 1, 2]);
    }

    #[test]
    fn the_record_of_a_pause_of_very_many_containers_is_short() {
        let paused = |count: u32| {
            let names = (0..count).map(|number| format!("{number:064}")).collect();
            CopyRecord::paused(Duration::ZERO, names).paused
        };
        assert_eq!((paused(0).len(), paused(256).len(), paused(257).len()), (0, 256, 257));
        let many = paused(5000);
        assert_eq!((many.len(), &many[256][..]), (257, "4744 more"));
    }
}
