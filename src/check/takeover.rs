//! `orlop check --fix`: pools of plain directories, and volumes without limits, use the project quotas of their filesystem.

use std::sync::Arc;

use super::{Fact, Verdict, fact};
use crate::command::session::{FromPools, Session};
use crate::engine::takeover::Entered;
use crate::error::Result;
use crate::fs::copy::Progress;
use crate::volume::{Enforced, Limit, Size, VolumeId};

/// Takes over the pools whose filesystem has project quotas now, and their volumes, one after another.
#[must_use]
pub fn take_over(session: &Session) -> Vec<Fact> {
    let FromPools { items: ids, unavailable } = session.each_pool("take over", |engine, pool| {
        if engine.take_over_pool(pool)? { engine.ids(pool) } else { Ok(Vec::new()) }
    });
    let mut facts: Vec<_> =
        unavailable.iter().map(|error| fact(Verdict::Bad, "pools", "limits", error.chain())).collect();
    for id in ids {
        let (verdict, found) = match take_over_volume(session, &id) {
            Ok(None) => continue,
            Ok(Some(entered)) => describe(&entered),
            Err(error) => (Verdict::Bad, error.chain()),
        };
        facts.push(fact(verdict, &format!("volume {id}"), "limits", found));
    }
    facts
}

fn take_over_volume(session: &Session, id: &VolumeId) -> Result<Option<Entered>> {
    let (what, asked) = (format!("take over volume {id}"), id.clone());
    session
        .transfer(&what, &id.pool, &Arc::new(Progress::default()), move |engine, _| engine.take_over(&asked))
}

fn describe(entered: &Entered) -> (Verdict, String) {
    let size = Size(entered.volume.size);
    match (entered.above_size, entered.volume.enforced) {
        (Some(used), _) => {
            let text = format!(
                "it uses {}, more than its size of {size}: expand it to have its size enforced",
                Size(used)
            );
            (Verdict::Bad, text)
        }
        (None, Enforced::No) if entered.volume.size == 0 || entered.volume.policy.limit == Limit::None => {
            (Verdict::Ok, "its files are counted; it asks for no limit".to_owned())
        }
        (None, Enforced::No) => {
            let text = format!(
                "its files are counted, but its size of {size} is not enforced: mount the filesystem with prjquota"
            );
            (Verdict::Bad, text)
        }
        (None, Enforced::Bytes | Enforced::Inodes | Enforced::BytesAndInodes) => {
            (Verdict::Ok, format!("its size of {size} is enforced from now on"))
        }
    }
}
