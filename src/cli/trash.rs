//! `orlop prune --trash`: volumes in the trash are removed for good.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::removal::is_confirmed;
use super::volumes::open;
use super::{print, report};
use crate::command::filter::Filters;
use crate::command::session::{FromPools, Session};
use crate::command::trash;
use crate::config::flags::Prune;
use crate::engine::Engine;
use crate::engine::trash::{Kept, Trashed};
use crate::error::{Error, Kind, Result};
use crate::volume::Timestamp;

/// How long entries of the trash may take to be removed. A process that keeps moving files in one can make it take for ever.
const REMOVAL: Duration = Duration::from_secs(600);

/// Removes the volumes that the trash keeps.
pub(super) fn empty(flags: &Prune) -> Result<ExitCode> {
    let filters = Filters::parse(&flags.filters, &["label"])?;
    let session = open(&flags.pools)?;
    let FromPools { items: mut kept, unavailable: mut errors } =
        session.each_pool("list the trash", Engine::trash);
    // What is due is being removed, or will be. A volume whose record cannot be read may be needed.
    kept.retain(|trashed| {
        trashed.kept != Kept::Due
            && trashed.record.as_ref().is_ok_and(|volume| filters.admit(&trashed.id, Some(volume)))
    });
    let counted = if kept.len() == 1 { "1 volume".to_owned() } else { format!("{} volumes", kept.len()) };
    if !flags.force && !kept.is_empty() {
        print(&trash::to_table(&kept, Timestamp::now(), false))?;
    }
    if flags.dry_run {
        print(&format!("would remove {counted}\n"))?;
        return Ok(report(&errors));
    }
    if kept.is_empty() {
        print("nothing to delete\n")?;
        return Ok(report(&errors));
    }
    if flags.force || is_confirmed(&format!("{counted} for good"))? {
        errors.extend(remove(&session, &kept)?);
    }
    Ok(report(&errors))
}

/// Removes entries of the trash, and waits until they are gone. Returns what failed.
fn remove(session: &Session, kept: &[Trashed]) -> Result<Vec<Error>> {
    let mut errors = Vec::new();
    for Trashed { id, entry, .. } in kept {
        let (pool, asked) = (id.pool.clone(), entry.clone());
        match session.call(&format!("remove trash/{entry}"), move |engine| engine.expire(&pool, &asked)) {
            Ok(()) => print(&format!("{id}\n"))?,
            Err(error) => errors.push(error),
        }
    }
    let deadline = Instant::now() + REMOVAL;
    let removed = loop {
        match session.remove_copy() {
            Err(error) if error.kind() == Kind::Busy && Instant::now() < deadline => {}
            removed => break removed,
        }
    };
    errors.extend(removed.err());
    Ok(errors)
}
