//! The commands that show volumes and pools.

use std::process::ExitCode;
use std::time::Duration;

use super::volumes::open;
use super::{print, report};
use crate::command::filter::Filters;
use crate::command::ls::{self, Listing};
use crate::command::session::{FromPools, Session};
use crate::command::template::Template;
use crate::command::{df, inspect, trash};
use crate::config::flags::{Df, Inspect, Ls, LsOutput, Output};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::volume::{Name, PoolName, Timestamp};

/// How long the usage of the volumes of a pool is measured for a listing.
const MEASURE: Duration = Duration::from_secs(3);

/// What a listing needs beside the records.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needs {
    pub(super) users: bool,
    pub(super) usage: bool,
}

/// Lists volumes.
pub(super) fn list(flags: &Ls) -> Result<ExitCode> {
    if flags.trash {
        return list_trash(flags);
    }
    let filters = Filters::parse(&flags.filters, &["dangling", "label", "name", "pool"])?;
    let template = flags.format.as_deref().map(str::parse::<Template>).transpose()?;
    let is_wide = flags.output == LsOutput::Wide;
    let needs = Needs { users: is_wide || filters.dangling.is_some(), usage: is_wide };
    let FromPools { items, unavailable } = listings(&open(&flags.pools)?, filters, needs);
    let now = Timestamp::now();
    print(&match (flags.quiet, &template, flags.output) {
        (true, ..) | (_, None, LsOutput::Name) => ls::to_ids(&items),
        (_, Some(template), _) => ls::by_template(&items, template),
        (_, _, LsOutput::Text) => ls::to_text(&items, now),
        (_, _, LsOutput::Wide) => ls::to_wide(&items, now),
        (_, _, LsOutput::Json) => ls::to_json(&items)?,
        (_, _, LsOutput::Yaml) => ls::to_yaml(&items)?,
    })?;
    Ok(report(&unavailable))
}

/// The volumes of all pools that the filters admit.
pub(super) fn listings(session: &Session, filters: Filters, needs: Needs) -> FromPools<Listing> {
    session.each_pool("list the volumes", move |engine, pool| of_pool(engine, pool, &filters, needs))
}

fn of_pool(engine: &Engine, pool: &PoolName, filters: &Filters, needs: Needs) -> Result<Vec<Listing>> {
    let mut volumes = engine.records(pool)?;
    volumes.retain(|volume| filters.admit(&volume.id, volume.record.as_ref().ok()));
    let mut uses = needs.users.then(|| engine.used_volumes(pool)).transpose()?;
    let names: Vec<Name> = volumes.iter().map(|volume| volume.id.name.clone()).collect();
    let measured = if needs.usage { engine.used_bytes(pool, &names, MEASURE)? } else { Default::default() };
    let listing = |volume: crate::engine::request::StoredVolume| {
        let uses = uses.as_mut().map(|uses| uses.remove(&volume.id.name).unwrap_or_default());
        let used = measured.get(&volume.id.name).copied();
        let path = engine.path_of_data(&volume.id).unwrap_or_default();
        Listing { volume, path, uses, used }
    };
    let mut found: Vec<_> = volumes.into_iter().map(listing).collect();
    found.retain(|listing| filters.dangling.is_none() || filters.dangling == listing.is_dangling());
    Ok(found)
}

fn list_trash(flags: &Ls) -> Result<ExitCode> {
    let FromPools { items, unavailable } = open(&flags.pools)?.each_pool("list the trash", Engine::trash);
    print(&match (flags.quiet, flags.output) {
        (true, _) | (_, LsOutput::Name) => trash::to_ids(&items),
        (_, LsOutput::Text | LsOutput::Wide) => trash::to_text(&items, Timestamp::now()),
        (_, LsOutput::Json) => trash::to_json(&items)?,
        (_, LsOutput::Yaml) => trash::to_yaml(&items)?,
    })?;
    Ok(report(&unavailable))
}

/// Shows everything about volumes.
pub(super) fn inspect(flags: &Inspect) -> Result<ExitCode> {
    let template = flags.format.as_deref().map(str::parse::<Template>).transpose()?;
    let session = open(&flags.pools)?;
    let mut found = Vec::new();
    let errors = session.for_each(&flags.volumes, |id| {
        found.push(session.call(&format!("inspect volume {id}"), move |engine| engine.inspect(&id))?);
        Ok(())
    });
    print(&match &template {
        Some(template) => inspect::by_template(&found, template),
        None if flags.output == "yaml" => inspect::to_yaml(&found)?,
        None => inspect::to_json(&found)?,
    })?;
    Ok(report(&errors))
}

/// Shows the space of pools, and of their volumes.
pub(super) fn df(flags: &Df) -> Result<ExitCode> {
    let session = open(&flags.pools)?;
    let FromPools { items: pools, mut unavailable } =
        session.each_pool("measure the space", |engine, pool| Ok(vec![engine.space(pool)?]));
    let volumes = flags.verbose.then(|| {
        let needs = Needs { users: false, usage: true };
        let mut found = listings(&session, Filters::default(), needs);
        // An unavailable pool is reported once.
        found
            .unavailable
            .retain(|error: &Error| unavailable.iter().all(|known| known.chain() != error.chain()));
        unavailable.append(&mut found.unavailable);
        found.items
    });
    print(&match flags.output {
        Output::Text => df::to_text(&pools, volumes.as_deref()),
        Output::Json => df::to_json(&pools, volumes.as_deref())?,
    })?;
    Ok(report(&unavailable))
}
