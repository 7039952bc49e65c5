//! The commands that show volumes and pools.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::cluster::orphans;
use super::volumes::open;
use super::{print, report};
use crate::command::filter::Filters;
use crate::command::inspect::Shown;
use crate::command::ls::{self, Listing};
use crate::command::session::{FromPools, Session};
use crate::command::template::Template;
use crate::command::{df, inspect, trash};
use crate::config::flags::{Df, Inspect, InspectOutput, ListOutput, Ls};
use crate::engine::Engine;
use crate::engine::request::StoredVolume;
use crate::engine::survey::PoolUses;
use crate::error::{Context as _, Error, Result};
use crate::volume::{PoolName, Timestamp};

/// How long after its start a plain listing begins to measure another volume. A listing of many volumes stays fast.
const MEASURE_BRIEFLY: Duration = Duration::from_millis(50);
/// The same for a listing that is about the usage of volumes.
pub(super) const MEASURE: Duration = Duration::from_secs(3);

/// What a listing needs beside the records.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needs {
    pub(super) users: bool,
    /// Whether the cluster is asked which volumes it keeps.
    pub(super) orphans: bool,
    /// Until when volumes are measured.
    pub(super) usage_until: Option<Instant>,
}

impl Needs {
    fn of(flags: &Ls, filters: &Filters, template: Option<&Template>, start: Instant) -> Self {
        let only_ids = flags.quiet || flags.output == ListOutput::Name;
        let (state, usage) = match template {
            Some(template) => (template.has_state(), template.has_usage()),
            None => (!only_ids, !only_ids),
        };
        let budget = if flags.output == ListOutput::Wide { MEASURE } else { MEASURE_BRIEFLY };
        Self {
            users: state || filters.dangling.is_some(),
            orphans: state,
            usage_until: usage.then(|| start + budget),
        }
    }
}

/// Lists volumes.
pub(super) fn list(flags: &Ls) -> Result<ExitCode> {
    if flags.trash {
        return list_trash(flags);
    }
    let start = Instant::now();
    let filters = Filters::parse(&flags.filters, &["dangling", "driver", "label", "name", "pool"])?;
    let template = flags.format.as_deref().map(str::parse::<Template>).transpose()?;
    let needs = Needs::of(flags, &filters, template.as_ref(), start);
    let session = open(&flags.pools)?;
    let FromPools { mut items, unavailable } = listings(&session, filters, needs)?;
    if needs.orphans {
        let volumes = items.iter().filter_map(|listing| Some((listing.record()?, listing.path.as_path())));
        let orphans = orphans(&session, &flags.cluster, volumes);
        items.iter_mut().for_each(|listing| listing.is_orphan = orphans.contains(&listing.volume.id));
    }
    let now = Timestamp::now();
    print(&match (flags.quiet, &template, flags.output) {
        (true, ..) | (_, None, ListOutput::Name) => ls::to_ids(&items),
        (_, Some(template), _) => ls::by_template(&items, template),
        (_, _, ListOutput::Text) => ls::to_table(&items, now, false),
        (_, _, ListOutput::Wide) => ls::to_table(&items, now, true),
        (_, _, ListOutput::Json) => ls::to_json(&items)?,
        (_, _, ListOutput::Yaml) => ls::to_yaml(&items)?,
    })?;
    Ok(report(&unavailable))
}

/// The volumes of all pools that the filters admit. A pool that they do not admit is not asked.
pub(super) fn listings(session: &Session, filters: Filters, needs: Needs) -> Result<FromPools<Listing>> {
    let pools = filters.pools().to_vec();
    let list = move |engine: &Engine, pool: &PoolName| of_pool(engine, pool, &filters, needs);
    session.each_named_pool(&pools, "list the volumes", list)
}

fn of_pool(engine: &Engine, pool: &PoolName, filters: &Filters, needs: Needs) -> Result<Vec<Listing>> {
    let (mut volumes, mut uses) = records_and_uses(engine, pool, needs.users)?;
    volumes.retain(|volume| filters.admit(&volume.id, volume.record.as_ref().ok()));
    let measured = match needs.usage_until {
        Some(deadline) => {
            let records: Vec<_> = volumes.iter().filter_map(|volume| volume.record.as_ref().ok()).collect();
            engine.used_bytes(pool, &records, deadline)?
        }
        None => Default::default(),
    };
    let listing = |volume: StoredVolume| {
        let uses = uses.as_mut().and_then(|uses| uses.take(&volume.id.name));
        let used = measured.get(&volume.id.name).copied();
        let path = engine.path_of_data(&volume.id).unwrap_or_default();
        Listing { volume, path, uses, used, is_orphan: false }
    };
    let mut found: Vec<_> = volumes.into_iter().map(listing).collect();
    found.retain(|listing| filters.dangling.is_none() || filters.dangling == listing.is_dangling());
    Ok(found)
}

/// Reads the records of a pool and, at the same time, the mounts of the host.
fn records_and_uses(
    engine: &Engine,
    pool: &PoolName,
    with_uses: bool,
) -> Result<(Vec<StoredVolume>, Option<PoolUses>)> {
    if !with_uses {
        return Ok((engine.records(pool)?, None));
    }
    thread::scope(|scope| {
        let scan = thread::Builder::new().name("users".to_owned());
        let uses = scan.spawn_scoped(scope, || engine.uses_of_pool(pool)).context(|| "start a thread")?;
        let volumes = engine.records(pool);
        let uses = uses.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((volumes?, Some(uses?)))
    })
}

fn list_trash(flags: &Ls) -> Result<ExitCode> {
    let FromPools { items, unavailable } = open(&flags.pools)?.each_pool("list the trash", Engine::trash);
    let now = Timestamp::now();
    print(&match (flags.quiet, flags.output) {
        (true, _) | (_, ListOutput::Name) => trash::to_ids(&items),
        (_, ListOutput::Text) => trash::to_table(&items, now, false),
        (_, ListOutput::Wide) => trash::to_table(&items, now, true),
        (_, ListOutput::Json) => trash::to_json(&items)?,
        (_, ListOutput::Yaml) => trash::to_yaml(&items)?,
    })?;
    Ok(report(&unavailable))
}

/// Shows everything about volumes.
pub(super) fn inspect(flags: &Inspect) -> Result<ExitCode> {
    let template = flags.format.as_deref().map(str::parse::<Template>).transpose()?;
    let session = open(&flags.pools)?;
    let mut found = Vec::new();
    let errors = session.for_each(&flags.volumes, |id| {
        let inspected = session.call(&format!("inspect volume {id}"), move |engine| engine.inspect(&id))?;
        found.push(Shown { inspected, is_orphan: false });
        Ok(())
    });
    let has_state = template.as_ref().map_or(flags.output != InspectOutput::Name, Template::has_state);
    if has_state {
        let volumes = found.iter().map(|shown| (&shown.inspected.volume, shown.inspected.path.as_path()));
        let orphans = orphans(&session, &flags.cluster, volumes);
        found.iter_mut().for_each(|shown| shown.is_orphan = orphans.contains(&shown.inspected.volume.id));
    }
    print(&match (&template, flags.output) {
        (Some(template), _) => inspect::by_template(&found, template),
        (None, InspectOutput::Json) => inspect::to_json(&found)?,
        (None, InspectOutput::Yaml) => inspect::to_yaml(&found)?,
        (None, InspectOutput::Name) => inspect::to_ids(&found),
    })?;
    Ok(report(&errors))
}

/// Shows the space of pools, and of their volumes.
pub(super) fn df(flags: &Df) -> Result<ExitCode> {
    let session = open(&flags.pools)?;
    let FromPools { items: pools, mut unavailable } =
        session.each_pool("measure the space", |engine, pool| Ok(vec![engine.space(pool)?]));
    let with_volumes = flags.verbose && flags.output != ListOutput::Name;
    let volumes = with_volumes.then(|| -> Result<_> {
        let needs = Needs { users: false, orphans: false, usage_until: Some(Instant::now() + MEASURE) };
        let mut found = listings(&session, Filters::default(), needs)?;
        // An unavailable pool is reported once.
        found
            .unavailable
            .retain(|error: &Error| unavailable.iter().all(|known| known.chain() != error.chain()));
        unavailable.append(&mut found.unavailable);
        Ok(found.items)
    });
    let volumes = volumes.transpose()?;
    let of_volumes = volumes.as_deref();
    print(&match flags.output {
        ListOutput::Text => df::to_table(&pools, of_volumes, false),
        ListOutput::Wide => df::to_table(&pools, of_volumes, true),
        ListOutput::Json => df::to_json(&pools, of_volumes)?,
        ListOutput::Yaml => df::to_yaml(&pools, of_volumes)?,
        ListOutput::Name => df::to_names(&pools),
    })?;
    Ok(report(&unavailable))
}
