//! The commands that delete volumes, and restore them.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::Instant;

use super::listing::{MEASURE, Needs, listings};
use super::volumes::{open, plain_name};
use super::{print, print_error, report};
use crate::command::filter::Filters;
use crate::command::ls::Listing;
use crate::command::printable;
use crate::command::session::{FromPools, Session};
use crate::config::flags::{Prune, Rm, Undelete};
use crate::engine::Engine;
use crate::engine::trash::{Kept, Trashed};
use crate::error::{Error, Kind, Result};
use crate::options::assignment::ANONYMOUS;
use crate::quantity::HumanDuration;
use crate::volume::{OnDelete, Policy, Size, Volume, VolumeId, shorten};

/// Deletes volumes.
pub(super) fn rm(flags: &Rm) -> Result<ExitCode> {
    let session = open(&flags.pools)?;
    let mut errors = session.for_each(&flags.volumes, |id| {
        let (what, dry_run) = (format!("delete volume {id}"), flags.dry_run);
        let text = if dry_run { format!("would {what}\n") } else { format!("{id}\n") };
        session.call(
            &what,
            move |engine| if dry_run { engine.check_removable(&id) } else { engine.remove(&id) },
        )?;
        print(&text)
    });
    if flags.force {
        errors.retain(|error| error.kind() != Kind::NotFound);
    }
    Ok(report(&errors))
}

/// A volume that `prune` deletes.
struct Candidate {
    id: VolumeId,
    policy: Policy,
    used: Option<u64>,
}

/// Deletes the volumes that are not in use.
pub(super) fn prune(flags: &Prune) -> Result<ExitCode> {
    if flags.trash {
        return super::trash::empty(flags);
    }
    let mut filters = Filters::parse(&flags.filters, &["label"])?;
    filters.dangling = Some(true);
    let session = open(&flags.pools)?;
    let needs = Needs { users: true, orphans: false, usage_until: Some(Instant::now() + MEASURE) };
    let FromPools { items, unavailable } = listings(&session, filters, needs)?;
    let (candidates, mut errors) = candidates(&session, items, flags.all);
    errors.extend(unavailable);
    let frees = freed(&candidates);
    if !flags.force {
        print(&plan(&candidates))?;
    }
    if flags.dry_run {
        print(&format!("{}; would free {}\n", counted(&candidates), Size(frees).to_short()))?;
        return Ok(report(&errors));
    }
    if candidates.is_empty() {
        print("nothing to delete\n")?;
        return Ok(report(&errors));
    }
    if !flags.force && !is_confirmed(&counted(&candidates))? {
        return Ok(report(&errors));
    }
    let mut reclaimed = 0;
    for candidate in &candidates {
        let id = candidate.id.clone();
        match session.call(&format!("delete volume {id}"), move |engine| engine.remove(&id)) {
            Ok(()) => {
                print(&format!("{}\n", candidate.id))?;
                reclaimed += freed(std::slice::from_ref(candidate));
            }
            Err(error) => errors.push(error),
        }
    }
    print(&format!("Total reclaimed space: {}\n", Size(reclaimed).to_short()))?;
    Ok(report(&errors))
}

/// The volumes that can be deleted now. Those of Kubernetes claims are left to Kubernetes.
fn candidates(session: &Session, listed: Vec<Listing>, all: bool) -> (Vec<Candidate>, Vec<Error>) {
    let (mut found, mut errors, mut claimed) = (Vec::new(), Vec::new(), 0);
    for Listing { volume, used, .. } in listed {
        let Ok(record @ Volume { policy, labels, managed: true, .. }) = &volume.record else { continue };
        if !all && !labels.contains_key(ANONYMOUS) {
            continue;
        }
        if record.claim().is_some() {
            claimed += 1;
            continue;
        }
        let (id, asked) = (volume.id.clone(), volume.id.clone());
        match session.call(&format!("check volume {id}"), move |engine| engine.check_removable(&asked)) {
            Ok(()) => found.push(Candidate { id, policy: *policy, used }),
            // A loop device or an overlay uses it, or a call of another process.
            Err(error) if matches!(error.kind(), Kind::InUse | Kind::Busy | Kind::NotFound) => {}
            Err(error) => errors.push(error),
        }
    }
    if claimed > 0 {
        print_error(&format!("volumes of Kubernetes claims are not pruned ({claimed} skipped)"));
    }
    (found, errors)
}

/// The bytes that the deletion frees: those of volumes that are not kept in the trash.
fn freed(candidates: &[Candidate]) -> u64 {
    let deleted = candidates.iter().filter(|candidate| candidate.policy.on_delete == OnDelete::Delete);
    deleted.filter_map(|candidate| candidate.used).sum()
}

fn counted(candidates: &[Candidate]) -> String {
    match candidates.len() {
        1 => "1 volume".to_owned(),
        count => format!("{count} volumes"),
    }
}

fn plan(candidates: &[Candidate]) -> String {
    let line = |candidate: &Candidate| {
        let used = candidate.used.map_or("size unknown".to_owned(), |used| Size(used).to_short());
        let kept = match candidate.policy.on_delete {
            OnDelete::Delete => String::new(),
            OnDelete::Trash => {
                format!(", kept in the trash for {}", HumanDuration(candidate.policy.trash_for).to_short())
            }
            OnDelete::Retain => ", kept in the trash".to_owned(),
        };
        format!("{}  {used}{kept}\n", candidate.id)
    };
    candidates.iter().map(line).collect()
}

/// Asks on the terminal.
pub(super) fn is_confirmed(what: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        let text =
            "there is no terminal to ask on: use --force to delete these volumes, or --dry-run to look";
        return Err(Error::new(Kind::Invalid, text));
    }
    print(&format!("Delete {what}? [y/N] "))?;
    let mut answer = String::new();
    // No answer is a no.
    let _ = io::stdin().lock().read_line(&mut answer);
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Restores a volume from the trash.
pub(super) fn undelete(flags: &Undelete) -> Result<()> {
    let name = flags.name.as_deref().map(plain_name).transpose()?;
    let session = open(&flags.pools)?;
    let Trashed { id, entry, .. } = find_in_trash(&session, &flags.volume)?;
    let to = VolumeId { pool: id.pool.clone(), name: name.unwrap_or(id.name) };
    session.refuse_volume_name_of_other_pool(&to)?;
    let (what, shown) = (format!("restore volume {to}"), format!("trash/{entry}"));
    if flags.dry_run {
        let check = move |engine: &Engine| engine.check_undelete(&to.pool, &entry, &to.name);
        let volume = session.call(&what, check)?;
        return print(&format!("would restore volume {} from {shown}\n", volume.id));
    }
    let volume = session.call(&what, move |engine| engine.undelete(&to.pool, &entry, &to.name))?;
    print(&format!("{}\n", volume.id))
}

/// Refuses several deleted volumes of one name if it is not known which was the last one.
fn refuse_unknown_order(found: &[Trashed]) -> Result<()> {
    for volumes in found.chunk_by(|a, b| a.id == b.id) {
        if volumes.len() > 1 && volumes.iter().any(|trashed| trashed.deleted.is_none()) {
            let entries: Vec<_> = volumes.iter().map(|trashed| trashed.entry.as_str()).collect();
            let text = format!(
                "the trash has several volumes {}, and not all have a time of deletion: name one of {}",
                volumes[0].id,
                entries.join(", ")
            );
            return Err(Error::new(Kind::Invalid, printable(&text)));
        }
    }
    Ok(())
}

/// The deleted volume that a user means: the last one of this name, or the one of this entry.
fn find_in_trash(session: &Session, text: &str) -> Result<Trashed> {
    let (pool, name) = match text.split_once('/') {
        Some((pool, name)) => (Some(session.pool(Some(pool.parse()?))?), name.to_owned()),
        None => (None, text.to_owned()),
    };
    let FromPools { items, unavailable } = match &pool {
        None => session.each_pool("list the trash", Engine::trash),
        Some(pool) => {
            let asked = pool.clone();
            let items = session.call(&format!("list the trash of pool {pool}"), move |e| e.trash(&asked))?;
            FromPools { items, unavailable: Vec::new() }
        }
    };
    if let Some(error) = unavailable.into_iter().next() {
        let text = format!("find {:?}: name its pool, as <pool>/NAME, or retry", shorten(text));
        return Err(Error::caused(error.kind(), text, error));
    }
    // The last one that was deleted comes first.
    let mut found: Vec<Trashed> = items
        .into_iter()
        .filter(|trashed| trashed.id.name.as_str() == name || trashed.entry == name)
        .collect();
    let is_whole = |trashed: &Trashed| trashed.kept != Kept::Due && trashed.record.is_ok();
    if found.iter().any(is_whole) {
        found.retain(is_whole);
    }
    refuse_unknown_order(&found)?;
    found.dedup_by(|second, first| second.id == first.id);
    match &found[..] {
        [] => {
            let text = format!("the trash has no volume {:?}", shorten(text));
            Err(Error::new(Kind::NotFound, text))
        }
        [_] => Ok(found.remove(0)),
        several => {
            let ids: Vec<_> = several.iter().map(|trashed| trashed.id.to_string()).collect();
            let text =
                format!("several pools have such a volume in their trash: name one of {}", ids.join(", "));
            Err(Error::new(Kind::Invalid, printable(&text)))
        }
    }
}
