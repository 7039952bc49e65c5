//! What the callers of all processes learned about the objects, and whether it fits one history of the pool.
//!
//! An object of a uid exists from one moment to another and never again. A call that returned a uid proves that the object
//! existed at some moment of the call; a call that returned "deleted" or "not found" proves that none of this name existed
//! at some moment of the call. All processes read the same clock.

use std::collections::BTreeMap;

use uuid::Uuid;

/// What a call proves about the object of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observation {
    /// Times in nanoseconds.
    pub(super) start: u64,
    pub(super) end: u64,
    /// The object that existed; `None`: there was none.
    pub(super) uid: Option<Uuid>,
}

/// The time during which an object certainly existed.
#[derive(Debug, Clone, Copy)]
struct Life {
    uid: Uuid,
    from: u64,
    to: u64,
}

/// Checks that the observations of one name fit one history.
///
/// # Errors
/// Two observations that contradict each other.
pub(super) fn check_history(observations: &[Observation]) -> Result<(), String> {
    let mut lives = lives(observations);
    lives.sort_by_key(|life| life.from);
    for pair in lives.windows(2) {
        if pair[1].from < pair[0].to {
            return Err(format!("two objects existed at the same time: {pair:?}"));
        }
    }
    let mut sorted = observations.to_vec();
    sorted.sort_by_key(|seen| seen.start);
    for life in &lives {
        let first = sorted.partition_point(|seen| seen.start < life.from);
        let during = sorted[first..].iter().take_while(|seen| seen.start <= life.to);
        if let Some(other) = during.into_iter().find(|seen| seen.end <= life.to && seen.uid != Some(life.uid))
        {
            return Err(format!("{life:?} existed throughout {other:?}"));
        }
    }
    Ok(())
}

/// The objects that were observed to exist by two calls, one after the other.
fn lives(observations: &[Observation]) -> Vec<Life> {
    let mut lives: BTreeMap<Uuid, Life> = BTreeMap::new();
    for seen in observations {
        let Some(uid) = seen.uid else { continue };
        let life = lives.entry(uid).or_insert(Life { uid, from: seen.end, to: seen.start });
        *life = Life { uid, from: life.from.min(seen.end), to: life.to.max(seen.start) };
    }
    lives.into_values().filter(|life| life.from <= life.to).collect()
}

#[test]
fn a_history_with_two_objects_at_once_or_a_deletion_without_effect_is_refused() {
    let (a, b) = (Some(Uuid::from_u128(1)), Some(Uuid::from_u128(2)));
    let check = |seen: &[(u64, u64, Option<Uuid>)]| {
        let observation = |&(start, end, uid)| Observation { start, end, uid };
        check_history(&seen.iter().map(observation).collect::<Vec<_>>())
    };
    check(&[(1, 2, a), (3, 4, a), (5, 6, None), (7, 8, b), (9, 9, b)]).unwrap();
    check(&[(1, 2, a), (1, 6, None), (1, 6, b), (5, 6, a)]).unwrap();
    check(&[(1, 2, a), (3, 4, None), (5, 6, a)]).unwrap_err();
    check(&[(1, 2, a), (3, 4, b), (5, 6, a)]).unwrap_err();
    check(&[(1, 3, a), (2, 5, b), (6, 7, a), (8, 9, b)]).unwrap_err();
}
